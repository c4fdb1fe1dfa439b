"""What `unlearn` tries before it perturbs: a refused repair has changed nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from repair_cases import FORGET, RETAIN, STRATEGIES, changed, copies, network, run, same
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from fastunlearn.repair import Repair
from fastunlearn.strategies import RandomK, TopK


def raising(*_: object) -> Any:
    """Stand in for a factory that fails."""
    raise RuntimeError("no such thing")


def one_logit(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return outputs of shape (N, 1), which cannot be distilled."""
    return model(batch[0])[:, :1], batch[1]


def as_list(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[list[Tensor], Tensor]:
    """Return outputs that are no tensor."""
    return [model(batch[0])], batch[1]


def graphless(outputs: Any, targets: Tensor) -> Tensor:
    """Return a loss that nothing can be learned from."""
    return torch.zeros(())


def first_mean(outputs: Any, targets: Tensor) -> Tensor:
    """Return a loss of any outputs."""
    return outputs[0].mean()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("strategy", [TopK(9, score="weight"), RandomK(9)], ids=["top", "random"])
@pytest.mark.parametrize(
    ("error", "message", "repair", "changes"),
    [
        (ValueError, "repair: retain must yield at least one batch", {}, {"retain": []}),
        (ValueError, "repair: forget must yield at least one batch", {}, {"forget": []}),
        (TypeError, "repair: optimizer must return .* got int", {"optimizer": lambda p: 3}, {}),
        (RuntimeError, "no such thing", {"optimizer": raising}, {}),
        (RuntimeError, "no such thing", {"scheduler": raising}, {}),
        (ValueError, r"repair: outputs must have shape .* got \(6, 1\)", {},
         {"forward_fn": one_logit, "loss_fn": first_mean}),
        (TypeError, "repair: outputs must be a tensor of logits to distil, got list", {},
         {"forward_fn": as_list, "loss_fn": first_mean}),
        (TypeError, "repair: loss_fn must return a floating scalar", {"distill": 0},
         {"loss_fn": lambda outputs, y: outputs.mean(0)}),
        (ValueError, "repair: loss must depend on a trainable parameter", {"distill": 0},
         {"loss_fn": graphless}),
        (RuntimeError, "no such thing", {}, {"forward_fn": raising}),
    ],
)  # fmt: skip
def test_repair_is_refused_before_the_perturbation(
    error: type[Exception],
    message: str,
    repair: dict[str, Any],
    changes: dict[str, Any],
    strategy: TopK | RandomK,
    masked: bool,
) -> None:
    model = network().train()
    model[1].eval()
    model[5].bias.grad = torch.ones(3)
    before, flags = copies(model), [m.training for m in model.modules()]
    with pytest.raises(error, match=f"^{message}"):
        run(model, strategy, repair=Repair(masked=masked, **repair), **changes)
    assert not any(bool(diff.any()) for diff in changed(model, before).values())
    assert [m.training for m in model.modules()] == flags
    assert model[5].bias.grad.tolist() == [1.0] * 3 and model[5].weight.grad is None


class Counted:
    """A loader that counts the passes begun over it."""

    def __init__(self, batches: list[Any]) -> None:
        """Hold the batches."""
        self.batches, self.passes = batches, 0

    def __iter__(self) -> Iterator[Any]:
        """Begin a pass."""
        self.passes += 1
        return iter(self.batches)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("distill", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["grad", "ratio", "weight", "random"])
def test_as_many_passes_before_the_repair_for_every_strategy(
    kind: str, distill: float, masked: bool
) -> None:
    """Otherwise loaders with their own generators would repair strategies in different orders."""
    strategy = RandomK(9) if kind == "random" else TopK(9, score=kind)
    forget, retain = Counted(FORGET), Counted(RETAIN)
    repair = Repair(distill=distill, masked=masked, max_steps=1)
    run(network(), strategy, forget=forget, retain=retain, repair=repair)
    assert retain.passes == 1 + 1
    scored = kind in ("grad", "ratio")
    assert forget.passes == (1 + 1 if distill else int(scored))


class Tired(nn.Module):
    """A layer with a buffer that every call moves, and that moves the outputs."""

    def __init__(self) -> None:
        """Start at 0."""
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Count the call and scale by it."""
        self.calls += 1
        return x / (1 + self.calls)


def shuffled() -> DataLoader[tuple[Tensor, ...]]:
    """Return a loader that shuffles with torch's global generator."""
    x, y = (torch.cat(parts) for parts in zip(*RETAIN, strict=True))
    return DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True)


@pytest.mark.parametrize("masked", [False, True])
def test_the_repair_is_the_same_without_the_trial(
    masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout, orders, the statistics and buffers of both models."""
    models = [nn.Sequential(*network(), Tired()) for _ in range(2)]
    repair = Repair(masked=masked, epochs=2, distill=1.0)
    data = {"forget": shuffled(), "retain": shuffled(), "repair": repair}
    tried = run(models[0], RandomK(50, std=1.0), **data)
    monkeypatch.setattr("fastunlearn._finetune._Run.try_out", lambda *_: None)
    untried = run(models[1], RandomK(50, std=1.0), **data)
    assert same(*models) and tried.history == untried.history


class Stream(IterableDataset):  # type: ignore[type-arg]
    """Examples of unknown number."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one example at a time."""
        for x, y in FORGET:
            yield from zip(x, y, strict=True)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=["grad", "fisher", "random"])
def test_loaders_without_a_length(strategy: TopK | RandomK) -> None:
    stream = DataLoader(Stream(), batch_size=6)
    with pytest.raises(TypeError):
        len(stream)
    models = [network(), network()]
    streamed = run(models[0], strategy, forget=stream, retain=stream)
    x, y = (torch.cat(parts) for parts in zip(*FORGET, strict=True))
    known = DataLoader(TensorDataset(x, y), batch_size=6)
    listed = run(models[1], strategy, forget=known, retain=known)
    assert same(*models) and streamed.history == listed.history
