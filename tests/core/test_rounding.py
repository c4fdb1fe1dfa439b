"""Stochastic rounding of 16-bit weights: its neighbours, its shares, and what it is for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from core import oracle

import fastunlearn as fu
from fastunlearn.reference.rounding import TYPES, round_stochastically

MASK = (1 << 32) - 1
types = pytest.mark.parametrize("dtype", TYPES, ids=str)
strategies = pytest.mark.parametrize("kind", [fu.TopK, fu.RandomK])


def values(dtype: torch.dtype) -> torch.Tensor:
    """Finite fp32 numbers of every exponent, and those around every border of the type."""
    bits = np.random.default_rng(0).integers(0, 1 << 32, 20_000, dtype=np.uint64)
    drawn = torch.from_numpy(bits.astype(np.uint32).view(np.float32))
    every = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype).float()
    some = every[:: 7 if dtype == torch.bfloat16 else 3]
    near = [some, *(torch.nextafter(some, torch.tensor(to)) for to in (-math.inf, math.inf))]
    found = torch.cat([drawn, *near])
    return found[found.isfinite()]


@types
def test_neighbours_by_words_around_the_border(dtype: torch.dtype) -> None:
    x = values(dtype)
    fractions = [oracle.fraction_of(float(v), dtype) for v in x]
    borders = torch.tensor(fractions)
    for words in (borders - 1, borders, borders + 1, torch.zeros_like(borders)):
        words = words & MASK
        found = round_stochastically(x, words, dtype)
        pairs = zip(x.tolist(), words.tolist(), strict=True)
        wanted = [oracle.round_stochastically(v, word, dtype) for v, word in pairs]
        wide = torch.tensor(wanted, dtype=torch.float64)
        beyond = wide.abs() > torch.finfo(dtype).max
        assert torch.equal(found.double(), torch.where(beyond, wide.sign() * math.inf, wide))
        assert torch.equal(found.signbit(), x.signbit())


@types
@strategies
def test_what_the_type_holds_keeps_its_bits(dtype: torch.dtype, kind: Any) -> None:
    every = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)
    weight = every[every.isfinite() & (every.view(torch.int16) != -(1 << 15))]  # -0 + 0 is 0
    strategy = kind(weight.numel(), std=0.0, rounding="stochastic")
    scores = {"scores": [torch.ones_like(weight)]} if kind is fu.TopK else {}
    before = weight.clone()
    fu.perturb_([weight], strategy, seed=1, **scores)
    assert torch.equal(weight.view(torch.int16), before.view(torch.int16))


@types
@pytest.mark.parametrize("value", [1.25, 0.3, -5e-6, 700.0])
def test_small_noise_is_kept_on_average(dtype: torch.dtype, value: float) -> None:
    """A tenth of half a unit in the last place: lost to the nearest, kept by chance."""
    n = 400_000
    start = torch.full((n,), value).to(dtype)
    after = torch.nextafter(start[:1], torch.tensor([math.inf], dtype=dtype))
    gap = float((after - start[:1]).abs())
    std = 0.05 * gap / 3  # beyond 5 of it lies nothing that matters here
    for rounding in ("nearest", "stochastic"):
        weight = start.clone()
        strategy = fu.RandomK(n, std=std, noise="uniform", mode="add", rounding=rounding)  # type: ignore[arg-type]
        receipt = fu.perturb_([weight], strategy, seed=3, keep_seed=True)
        moved = (weight.double() - start.double()) / gap
        if rounding == "nearest":
            assert receipt.unchanged == n and not moved.any()
            continue
        z = torch.ops.fastunlearn.noise(torch.arange(n), torch.tensor([3, 0]), "uniform")
        exact = z.double() * std / gap
        assert set(moved.tolist()) == {-1.0, 0.0, 1.0}
        assert receipt.unchanged == int((moved == 0).sum())
        error = moved - exact  # mean 0, variance |exact| (1 - |exact|)
        spread = float((exact.abs() * (1 - exact.abs())).sum().sqrt())
        assert abs(float(error.sum())) < 5 * spread
        assert abs(float(moved.abs().sum() - exact.abs().sum())) < 5 * spread


@types
def test_shares_follow_the_fraction(dtype: torch.dtype) -> None:
    words = torch.from_numpy(np.random.default_rng(1).integers(0, 1 << 32, 100_000))
    for fraction in (0.0, 1 / 64, 0.25, 0.5, 0.75, 63 / 64):
        low = torch.tensor([1.5], dtype=dtype)
        gap = float(torch.nextafter(low, torch.tensor([2.0], dtype=dtype)) - low)
        x = torch.full((words.numel(),), 1.5 + fraction * gap)
        share = float((round_stochastically(x, words, dtype) > 1.5).double().mean())
        spread = math.sqrt(fraction * (1 - fraction) / words.numel())
        assert abs(share - fraction) <= 5 * spread


def test_words_are_not_those_of_the_noise() -> None:
    """Weights of 0 replaced by noise: were the words shared, large noise would never go up."""
    n = 100_000
    weight = torch.zeros(n, dtype=torch.bfloat16)
    fu.perturb_([weight], fu.RandomK(n, std=1.0, mode="replace", rounding="stochastic"), seed=5)
    z = torch.ops.fastunlearn.noise(torch.arange(n), torch.tensor([5, 0]), "normal")
    exact = z.abs().double()
    gap = 2.0 ** (torch.floor(torch.log2(exact)) - 7)
    up = weight.abs().double() > exact
    fraction = exact / gap - torch.floor(exact / gap)
    for side in (z > 0, z < 0):
        spread = float((fraction * (1 - fraction))[side].sum().sqrt())
        assert abs(float(up[side].sum() - fraction[side].sum())) < 5 * spread


@strategies
def test_overflow_by_rounding_alone_is_refused(kind: Any) -> None:
    weight = torch.full((1000,), 65504.0, dtype=torch.float16)
    scores = {"scores": [torch.ones(1000)]} if kind is fu.TopK else {}
    assert fu.perturb_([weight.clone()], kind(1000, std=1.0), seed=2, **scores).overflow == 0
    strategy = kind(1000, std=1.0, rounding="stochastic")
    before = weight.clone()
    with pytest.raises(ValueError, match="overflow"):
        fu.perturb_([weight], strategy, seed=2, **scores)
    assert torch.equal(weight, before)
    receipt = fu.perturb_([weight], strategy, seed=2, allow_overflow=True, **scores)
    assert receipt.overflow == int(weight.isinf().sum()) > 0


def test_other_types_and_zero_round_to_nearest() -> None:
    for dtype in (torch.float32, torch.float64):
        weights = [torch.linspace(-1, 1, 999, dtype=dtype) for _ in range(2)]
        for weight, rounding in zip(weights, ("nearest", "stochastic"), strict=True):
            fu.perturb_([weight], fu.RandomK(500, rounding=rounding), seed=1)  # type: ignore[arg-type]
        assert torch.equal(*weights)
    assert fu.TopK(1, mode="zero", rounding="stochastic").update == "zero"


def test_strategies_from_before_it_are_read() -> None:
    from fastunlearn.strategies import strategy_of

    old = fu.TopK(5).to_dict()
    assert old.pop("rounding") == "nearest"
    assert strategy_of(old) == fu.TopK(5)
    assert strategy_of(fu.TopK(5, rounding="stochastic").to_dict()).rounding == "stochastic"
