"""Receipts of operations that return before the device has ended: read late, refused late.

A device that is still at work is played by statistics that nobody may look at before the receipt is
read; the operations themselves run on the CPU.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fastunlearn as fu
from fastunlearn import perturb, selection, targets
from fastunlearn.targets import work_together


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Make every result late; returns the statistics that were looked at."""
    found: list[Tensor] = []

    def tally(stats: Tensor) -> selection.Tally:
        found.append(stats)
        return selection.tally(stats)

    monkeypatch.setattr(perturb, "_is_late", lambda result: True)
    monkeypatch.setattr(perturb, "tally", tally)
    return found


def parameter(values: list[float], scores: list[float]) -> Tensor:
    weight = torch.tensor(values)
    weight.grad = torch.tensor(scores)
    return weight


def test_receipt_is_read_once_and_late(reads: list[Tensor]) -> None:
    weight = parameter([1.0, 2.0, 3.0], [0.0, 5.0, 1.0])
    receipt = fu.perturb_([weight], fu.TopK(1), seed=0)
    assert not hasattr(receipt, "__array__") and not reads
    assert receipt.count == 1 and len(reads) == 1
    assert receipt.tensors[0].selected == 1 and receipt.threshold == 5.0 and receipt.ties == 1
    assert receipt.check() is receipt and len(reads) == 1


def test_late_receipt_equals_one_that_was_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    receipts = []
    for late in (False, True):
        monkeypatch.setattr(perturb, "_is_late", lambda result, late=late: late)
        weights = [parameter([1.0, 2.0], [3.0, 3.0]), parameter([1.0], [2.0])]
        receipts.append(fu.perturb_(weights, fu.TopK(2, rel_std=0.5), seed=3, keep_seed=True))
    assert receipts[0] == receipts[1]


# What waits for the device when the tensor lies there.
WAITING = ["item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__"]


@pytest.mark.parametrize("long_way", [False, True])
@pytest.mark.parametrize(
    "strategy",
    [
        fu.TopK(2, std=0.1),
        fu.TopK(0.5, rel_std=0.1, scope="tensor"),
        fu.TopK(1, std=0.1, score="taylor", nan="largest"),
        fu.RandomK(2, std=0.1),
        fu.RandomK(2, rel_std=0.1),
    ],
)
def test_no_tensor_is_read_before_the_receipt(
    reads: list[Tensor], monkeypatch: pytest.MonkeyPatch, strategy: Any, long_way: bool
) -> None:
    weights = [parameter([1.0, 2.0, 3.0], [3.0, 1.0, 2.0]), parameter([4.0, 5.0], [0.5, 6.0])]
    met: list[str] = []
    if long_way:  # without the compiled border, as for what it does not vouch for
        for module in (perturb, selection, targets):
            monkeypatch.setattr(module, "shortcut", lambda name: lambda *_: None)
    with monkeypatch.context() as patch:
        for name in WAITING:
            true = getattr(Tensor, name)

            def noted(self: Tensor, *args: Any, name: str = name, true: Any = true) -> Any:
                met.append(name)
                return true(self, *args)

            patch.setattr(Tensor, name, noted)
        assert bool(torch.ones(())) and met == ["__bool__"]  # the trap works
        met.clear()
        receipt = fu.perturb_(weights, strategy, seed=0)
        assert not met and not reads
    assert receipt.check().count > 0 and len(reads) == 1


READINGS: dict[str, Callable[[fu.Receipt], Any]] = {
    "check": lambda receipt: receipt.check(),
    "a field": lambda receipt: receipt.k,
    "tensors": lambda receipt: receipt.tensors,
    "json": lambda receipt: receipt.to_json(),
    "repr": repr,
    "copy": copy.deepcopy,
}


@pytest.mark.parametrize("reading", READINGS)
def test_refused_nan_is_told_by_every_reading(reads: list[Tensor], reading: str) -> None:
    weight = parameter([1.0, 2.0], [float("nan"), 1.0])
    receipt = fu.perturb_([("a", weight)], fu.TopK(1), seed=0)
    for _ in range(2):  # a refusal is not forgotten
        with pytest.raises(ValueError, match=r"perturb_: scores must not be NaN, got 1 NaN.* 'a'"):
            READINGS[reading](receipt)
    assert weight.tolist() == [1.0, 2.0] and reads


def test_refused_overflow_is_told_late(reads: list[Tensor]) -> None:
    weight = parameter([3.4e38, 2.0], [1.0, 1.0])
    receipt = fu.perturb_([("a", weight)], fu.TopK(2, std=3e38), seed=1)
    assert not reads
    with pytest.raises(ValueError, match=r"must leave torch.float32 weights finite.* in 'a'"):
        receipt.check()
    assert weight[1].item() == 2.0
    allowed = fu.perturb_([weight], fu.TopK(2, std=3e38), seed=1, allow_overflow=True)
    assert allowed.check().overflow > 0


def test_refused_scale_is_told_late(reads: list[Tensor]) -> None:
    weights = [("a", parameter([1.0], [9.0])), ("b", parameter([float("inf")], [1.0]))]
    receipt = fu.perturb_(weights, fu.TopK(1, rel_std=0.1), seed=0)
    with pytest.raises(ValueError, match=r"rel_std must meet a finite root mean square.* 'b'"):
        receipt.check()


def test_refused_step_counts_as_used(reads: list[Tensor]) -> None:
    weight = parameter([1.0], [float("nan")])
    stepper = fu.Perturber([weight], fu.TopK(1), seed=0)
    refused = stepper.step()
    weight.grad = torch.ones(1)
    assert stepper.step().step == 1
    with pytest.raises(ValueError, match="must not be NaN"):
        refused.check()


def test_unlearn_is_refused_before_the_repair(reads: list[Tensor]) -> None:
    model = torch.nn.Linear(2, 2)
    kept = copy.deepcopy(model.state_dict())
    data = [(torch.ones(1, 2), torch.zeros(1, dtype=torch.int64))]
    scores = {name: torch.full_like(p, float("nan")) for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match="must not be NaN"):
        fu.unlearn(
            model,
            fu.TopK(1),
            forget=data,
            retain=data,
            loss_fn=torch.nn.functional.cross_entropy,
            repair=fu.Repair(epochs=1),
            scores=scores,
        )
    assert all(bool((kept[name] == p).all()) for name, p in model.state_dict().items())


def test_gpus_work_together_where_their_kernels_are(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, first, second = map(torch.device, ("cpu", "cuda:0", "cuda:1"))
    assert work_together(set()) and work_together({cpu}) and work_together({first})
    assert not work_together({cpu, first})
    for served in ("cuda", "reference"):
        monkeypatch.setattr(
            "fastunlearn.targets.backend_of",
            lambda name, device, served=served: served if device.type == "cuda" else "cpu",
        )
        assert work_together({first, second}) == (served == "cuda")
        assert not work_together({cpu, first})
