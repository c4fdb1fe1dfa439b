"""The public objects: frozen, printable, JSON, step numbers; and the examples in the docstrings."""

from __future__ import annotations

import collections
import dataclasses
import doctest
import hashlib
import importlib
import json
import math
import types
from typing import Any

import pytest
import torch
from torch import nn

import fastunlearn as fu
from fastunlearn import receipt as receipts

STRATEGIES = [
    fu.TopK(3),
    fu.TopK(0.5, rel_std=1.5, score="ratio", nan="smallest", include=["a", "b*"]),
    fu.RandomK(0),
    fu.RandomK(1.0, std=0, noise="uniform", mode="zero", scope="tensor", exclude=("x",)),
]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_strategies_are_values(strategy: Any) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        strategy.k = 1
    assert eval(repr(strategy), {"TopK": fu.TopK, "RandomK": fu.RandomK}) == strategy
    plain = json.loads(json.dumps(strategy.to_dict(), allow_nan=False))
    assert plain == strategy.to_dict()
    assert plain.pop("name") == {"TopK": "top_k", "RandomK": "random_k"}[type(strategy).__name__]
    assert set(plain) == {field.name for field in dataclasses.fields(strategy)}
    assert type(strategy)(**plain) == strategy
    assert len({strategy, dataclasses.replace(strategy)}) == 1


def test_default_scales() -> None:
    assert (fu.TopK(1).std, fu.RandomK(1).std) == (0.1, 0.1)
    assert fu.TopK(1, rel_std=2).std is None


@pytest.mark.parametrize(
    ("k", "n", "count"),
    [(0.5, 5, 2), (0.5, 7, 4), (0.25, 10, 2), (0.75, 10, 8), (1.0, 9, 9), (1, 9, 1), (1e-9, 9, 0)],
)
def test_fraction_rounds_half_to_even(k: Any, n: int, count: int) -> None:
    assert fu.TopK(k).count(n) == fu.RandomK(k).count(n) == count


def receipt_of(strategy: Any, **options: Any) -> fu.Receipt:
    weights = {"a": torch.zeros(2, 3), "b": torch.zeros((), dtype=torch.bfloat16)}
    scores = None
    if isinstance(strategy, fu.TopK):
        scores = {"a": torch.tensor([[1, 2, 2], [2, 0, math.inf]]), "b": torch.tensor(2.0)}
    return fu.perturb_(weights, strategy, scores=scores, seed=5, step=9, **options)


def test_receipt_says_what_was_done() -> None:
    receipt = receipt_of(fu.TopK(3, std=0.25), keep_seed=True)
    found = json.loads(receipt.to_json())
    assert found == receipt.to_dict()
    assert found.pop("version") == fu.__version__
    assert found.pop("backend") in ("reference", "cpu")
    commitment = hashlib.sha256(b"fastunlearn seed " + (5).to_bytes(8, "little")).hexdigest()
    assert found == {
        "op": "perturb_",
        "device": "cpu",
        "strategy": fu.TopK(3, std=0.25).to_dict(),
        "n": 7,
        "k": 3,
        "count": 3,
        "threshold": 2.0,
        "ties": 4,
        "ties_taken": 2,
        "overflow": 0,
        "unchanged": 0,
        "tensors": [
            {"name": "a", "shape": [2, 3], "dtype": "float32", "selected": 3, "scale": 0.25,
             "threshold": 2.0},
            {"name": "b", "shape": [], "dtype": "bfloat16", "selected": 0, "scale": 0.25,
             "threshold": 2.0},
        ],
        "seed_commitment": commitment,
        "seed": 5,
        "step": 9,
    }  # fmt: skip


def test_receipt_is_strict_json() -> None:
    infinite = receipt_of(fu.TopK(1))
    assert infinite.threshold == math.inf
    assert json.loads(infinite.to_json())["threshold"] == "inf"
    assert "\n" not in infinite.to_json(indent=None)
    per_tensor = receipt_of(fu.TopK(1, scope="tensor"))
    assert per_tensor.threshold is None and per_tensor.k == 2
    assert [t.threshold for t in per_tensor.tensors] == [math.inf, 2.0]
    random = receipt_of(fu.RandomK(2))
    assert random.threshold is None and random.seed is None and random.ties == 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        random.count = 3  # type: ignore[misc]


def test_unchanged_counts_noise_that_rounds_away() -> None:
    weights = [torch.full((64,), 256.0, dtype=torch.bfloat16)]
    assert fu.perturb_(weights, fu.RandomK(1.0, std=1e-3)).unchanged == 64
    assert fu.perturb_(weights, fu.RandomK(1.0, mode="zero")).unchanged == 0
    assert fu.perturb_(weights, fu.RandomK(10, mode="zero")).unchanged == 10


@pytest.mark.parametrize("key", [-1, 2**31, 2**40])
def test_keys_of_no_score(key: int) -> None:
    assert receipts.key_to_score(key) is None
    assert receipts.key_to_score(0x3F800000) == 1.0


def test_selection_is_frozen_and_its_parts_are_copies() -> None:
    selection = fu.select({"a": torch.zeros(9)}, fu.RandomK(4), seed=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        selection.count = 3  # type: ignore[misc]
    selection.masks().clear()
    selection.packed().clear()
    assert list(selection.packed()) == ["a"] and int(selection.mask("a").sum()) == 4
    assert selection.strategy == fu.RandomK(4)


# Perturber ----------------------------------------------------------------------------------------


def test_perturber_counts_steps() -> None:
    weight, plain = torch.zeros(40), torch.zeros(40)
    perturber = fu.Perturber([weight], fu.RandomK(11), seed=8, keep_seed=True)
    for step in range(3):
        receipt = perturber.step()
        assert (receipt.step, receipt.seed) == (step, 8)
        fu.perturb_([plain], fu.RandomK(11), seed=8, step=step)
        assert torch.equal(weight, plain)


def test_perturber_draws_one_seed() -> None:
    perturber = fu.Perturber([torch.zeros(4)], fu.RandomK(1))
    commitments = {perturber.step().seed_commitment for _ in range(3)}
    assert len(commitments) == 1
    assert fu.Perturber([torch.zeros(4)], fu.RandomK(1)).step().seed_commitment not in commitments


def test_refused_step_may_be_tried_again() -> None:
    weight = nn.Parameter(torch.ones(4))
    perturber = fu.Perturber(iter([weight]), fu.TopK(2), seed=1)
    with pytest.raises(ValueError, match=r"must have a \.grad"):
        perturber.step()
    weight.grad = torch.ones(4)
    assert perturber.step().step == 0
    assert perturber.step(scores=[torch.ones(4)]).step == 1


@pytest.mark.parametrize(
    "wrap",
    [dict, collections.OrderedDict, lambda d: list(d.items()), lambda d: iter(d.values()),
     lambda d: (v for v in d.values()), types.MappingProxyType],
)  # fmt: skip
def test_perturber_rereads_its_target(wrap: Any) -> None:
    weights = {"a": torch.zeros(3), "b": torch.zeros(2)}
    perturber = fu.Perturber(wrap(weights), fu.RandomK(1.0))
    assert perturber.step().count == perturber.step().count == 5


def test_perturber_passes_its_options_on() -> None:
    full = torch.full((4,), 65504.0, dtype=torch.float16)
    strategy = fu.TopK(1.0, std=1e6)
    perturber = fu.Perturber(
        [full, torch.zeros(2)], strategy, allow_overflow=True, missing_grad="skip"
    )
    full.grad = torch.ones_like(full)
    receipt = perturber.step()
    assert receipt.overflow > 0 and len(receipt.tensors) == 1


@pytest.mark.parametrize(
    "name", ["strategies", "selection", "perturb", "overlap", "scores", "unlearn"]
)
def test_examples_in_docstrings(name: str) -> None:
    module = importlib.import_module(f"fastunlearn.{name}")
    torch.manual_seed(0)
    failed, tried = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failed == 0
    assert tried > 0 or name == "overlap"
