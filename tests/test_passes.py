"""Two backward passes without stored gradients give the bits of one with them."""

from __future__ import annotations

import copy
import doctest
from typing import Any

import pytest
import torch
from torch import nn

import fastunlearn as fu
from fastunlearn import passes
from fastunlearn.passes import perturb_by_passes_


def net(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(37, 50), nn.LayerNorm(50), nn.ReLU(), nn.Dropout(0.3), nn.Linear(50, 11)
    ).to(dtype)


def backward_of(model: nn.Module, *, ties: bool = False) -> Any:
    dtype = next(model.parameters()).dtype
    x = torch.randn(5, 37, generator=torch.Generator().manual_seed(1)).to(dtype)
    if ties:
        x = torch.ones_like(x)
        return lambda: model(x).sum().backward()
    return lambda: model(x).square().sum().backward()


def both(strategy: fu.TopK, dtype: torch.dtype = torch.float32, **how: Any) -> tuple[Any, Any]:
    """Receipts; the parameters are compared bit for bit."""
    stored, streamed = net(dtype), net(dtype)
    torch.manual_seed(7)
    backward_of(stored, **how)()
    wanted = fu.perturb_(stored, strategy, seed=3, step=2)
    torch.manual_seed(7)
    found = perturb_by_passes_(streamed, strategy, backward_of(streamed, **how), seed=3, step=2)
    for one, other in zip(stored.parameters(), streamed.parameters(), strict=True):
        assert torch.equal(one, other)
    if not (strategy.include or strategy.exclude):
        assert all(p.grad is None for p in streamed.parameters())
    return found, wanted


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("score", ["grad", "fisher", "taylor"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("k", [0, 1, 7, 0.01, 0.3, 1.0])
def test_the_bits_and_the_receipt_of_one_pass(k: Any, dtype: Any, score: Any, ties: bool) -> None:
    strategy = fu.TopK(k, rel_std=0.5, score=score)
    found, wanted = both(strategy, dtype, ties=ties)
    assert found.to_dict() == wanted.to_dict()
    assert not (ties and score == "grad" and k == 0.3) or wanted.ties > wanted.ties_taken > 0


@pytest.mark.parametrize("how", [{"mode": "replace"}, {"mode": "zero"}, {"noise": "laplace"},
                                 {"rounding": "stochastic", "std": 1e-3},
                                 {"include": ["4.*"]}, {"exclude": ["0.weight"]}])  # fmt: skip
def test_strategies(how: Any) -> None:
    found, wanted = both(fu.TopK(0.1, **{"std": 0.3, **how}), torch.bfloat16)
    assert found.to_dict() == wanted.to_dict()


def refused(model: nn.Module, backward: Any, words: str, strategy: Any = None, **how: Any) -> None:
    before = copy.deepcopy(model.state_dict())
    with pytest.raises((TypeError, ValueError), match=words):
        perturb_by_passes_(model, strategy or fu.TopK(9), backward, seed=0, **how)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(p._backward_hooks or p._post_accumulate_grad_hooks for p in model.parameters())


def test_passes_that_differ_are_refused() -> None:
    model = net()
    draw = torch.Generator().manual_seed(5)  # which nobody puts back
    refused(
        model, lambda: model(torch.randn(5, 37, generator=draw)).sum().backward(), "in both passes"
    )


def test_the_number_of_gradients_is_checked() -> None:
    model = net()
    model.extra = nn.Linear(2, 2)
    once = backward_of(model[:5])
    refused(model, once, "got none for extra.weight, extra.bias")
    model = net()
    once = backward_of(model)
    refused(model, lambda: (once(), once()), "must run one backward pass")
    refused(model, lambda: None, "must get a gradient")


def test_nan_overflow_and_hostile_arguments_are_refused() -> None:
    model = net()
    refused(model, lambda: (model(torch.ones(2, 37)).sum() * float("nan")).backward(), "NaN")
    half = net(torch.float16)
    refused(half, backward_of(half, ties=True), "that overflow", fu.TopK(0.9, std=1e5))
    once = backward_of(model)
    refused(model, once, "must be a TopK", fu.RandomK(3))
    refused(model, once, "scope 'global'", fu.TopK(3, scope="tensor"))
    refused(model, once, "score grad, fisher or taylor", fu.TopK(3, score="weight"))
    model[0].weight.requires_grad_(False)
    refused(model, once, "must be a leaf that requires")
    model[0].weight.requires_grad_(True)
    once()
    with pytest.raises(ValueError, match="must have no .grad yet"):
        perturb_by_passes_(model, fu.TopK(9), once)


def test_an_exception_in_a_pass_leaves_no_hook() -> None:
    model = net()

    def fail() -> None:
        backward_of(model)()
        raise OSError("the data are gone")

    with pytest.raises(OSError, match="the data are gone"):
        perturb_by_passes_(model, fu.TopK(9), fail)
    assert all(p.grad is None for p in model.parameters())
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def test_overflow_may_be_allowed() -> None:
    model = net(torch.float16)
    receipt = perturb_by_passes_(
        model, fu.TopK(0.9, std=1e5), backward_of(model, ties=True), allow_overflow=True
    )
    assert receipt.overflow > 0


def test_example() -> None:
    torch.manual_seed(0)
    failed, tried = doctest.testmod(passes)
    assert tried > 0 and failed == 0
