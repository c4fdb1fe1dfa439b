"""A million elements and more on every backend: values meant to mislead, threads, shared memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from core.backends import OPS, call, check, compiled
from core.cases import generator
from core.worlds import arguments
from torch import Tensor

from fastunlearn.reference import ops as reference
from fastunlearn.reference.ops import Stat
from fastunlearn.reference.philox import Rng, blocks

N = 2**20 + 7  # enough for eight threads, and the last chunk is a short one
M = 300_001  # enough for two threads, and too many elements to keep their old values
SAMPLE_STREAM = 2  # of the Philox words that place the sample of the compiled kernels
Made = Callable[[Any], np.ndarray]


def sampled(n: int) -> np.ndarray:
    """The places that the compiled kernels sample in n elements to find the n // 2 greatest.

    Only speed may depend on them.
    """
    size = int((n * math.sqrt(2 * 0.5 * 0.5 * 12) / 5) ** (2 / 3))
    word = blocks(torch.arange(size // 4 + 1), Rng(0, 0), SAMPLE_STREAM).T.flatten()[:size].numpy()
    first = n // size * np.arange(size) + n % size * np.arange(size) // size
    return first + (word * (n // size) >> 32)


def misleading(sign: int) -> Made:
    """Great values where the sample looks and nowhere else, or the other way round."""

    def make(draw: Any) -> np.ndarray:
        values = draw.random(N) + 1
        values[sampled(N)] += 10 * sign if sign > 0 else -1
        return values

    return make


def region(start: int, stop: int) -> Made:
    """All great values side by side, so that few chunks hold the whole selection."""

    def make(draw: Any) -> np.ndarray:
        values = draw.random(N)
        values[start:stop] += 1
        return values

    return make


def every(step: int, offset: int) -> Made:
    def make(draw: Any) -> np.ndarray:
        values = draw.random(N)
        values[offset::step] *= 1000
        return values

    return make


def ulps(spread: int) -> Made:
    """Keys that differ in their last bits alone."""
    return lambda draw: 1 + draw.integers(0, spread, N) * 2.0**-23


def alone(value: float, other: float, place: int) -> Made:
    def make(draw: Any) -> np.ndarray:
        values = np.full(N, other)
        values[place] = value
        return values

    return make


PATTERNS: dict[str, Made] = {
    "sample too great": misleading(1),
    "sample too small": misleading(-1),
    "first chunk": region(0, 65_536),
    "last chunk": region(N - N % 65_536, N),
    "across chunks": region(65_000, 66_000),
    "every 64th": every(64, 0),
    "every 65536th": every(65_536, 65_535),
    "one ulp": ulps(2),
    "many ulps": ulps(1 << 21),
    "all equal": lambda draw: np.full(N, -3.0),
    "all zero": lambda draw: np.where(draw.random(N) < 0.5, 0.0, -0.0),
    "one great": alone(1.0, 0.0, N - 1),
    "one small": alone(0.0, 1.0, 0),
    "half infinite": lambda draw: np.where(draw.random(N) < 0.5, -math.inf, draw.random(N)),
    "denormal": lambda draw: draw.integers(0, 1 << 20, N) * 2.0**-149,
    "all magnitudes": lambda draw: 10.0 ** draw.uniform(-45, 38.5, N),
    "70 % zeros": lambda draw: np.where(draw.random(N) < 0.7, 0.0, draw.standard_normal(N)),
    "ascending": lambda draw: np.arange(N) * 1.0,
    "descending": lambda draw: np.arange(N)[::-1] * 1.0,
    "sawtooth": lambda draw: np.arange(N) % 65_537 * 1.0,
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@compiled
@pytest.mark.parametrize("name", PATTERNS)
def test_misleading_values(name: str) -> None:
    number = list(PATTERNS).index(name)
    values = torch.from_numpy(PATTERNS[name](generator(number)).copy())
    scores = values.to(torch.float32 if "ulp" in name else DTYPES[number % 3])
    for k in (N // 100, N // 2, N - 1):
        check(*call("topk_select", [scores], [scores], [k], threads=4))
    split = [part.clone() for part in scores.split([70_000, 0, 65_536, N - 135_536])]
    weights = [torch.zeros(part.shape, dtype=torch.bfloat16) for part in split]
    check(*call("topk_perturb_", weights, split, [N // 16], threads=8, seed=2**64 - 1))


@compiled
@pytest.mark.parametrize("k", [0.001, 0.1, 0.6])
def test_random_k_of_a_million(k: float) -> None:
    weights = [torch.ones(700_001), torch.ones(3), torch.ones(N - 700_004, dtype=torch.bfloat16)]
    check(*call("randomk_perturb_", weights, [], [int(N * k)]), threads=(1, 5))


@compiled
@pytest.mark.parametrize("step", [1, 63, 64, 65, 129])
@pytest.mark.parametrize("k", [0.01, 0.6])
def test_random_k_of_each_tensor_where_the_first_have_none(k: float, step: int) -> None:
    """Wherever the first tensor with a share begins, its bits are found."""
    weights = [torch.zeros(step), torch.zeros(5000), torch.zeros(step), torch.zeros(9)]
    counts = [0, int(5000 * k), 0, 3]
    for operation in ("randomk_perturb_", "randomk_select"):
        wanted = check(*call(operation, weights, [], counts, per_tensor=True))
        assert wanted.results["stats"][:, Stat.SELECTED].tolist() == counts


# All or nothing -----------------------------------------------------------------------------------


@compiled
@pytest.mark.parametrize("allow", [False, True])
@pytest.mark.parametrize("k", [1000, M])
@pytest.mark.parametrize("operation", ["topk_perturb_", "randomk_perturb_"])
def test_one_overflow_at_the_end(operation: str, k: int, allow: bool) -> None:
    weight = torch.ones(M, dtype=torch.float16)
    weight[-1] = torch.finfo(torch.float16).max
    scores, counts = ([weight.abs()], [k]) if operation == "topk_perturb_" else ([], [M])
    for seed, overflow in ((0, 1), (1, 0), (5, 1)):  # the sign of the noise decides
        options: dict[str, Any] = {"scale": 90.0, "noise": "uniform", "allow_overflow": allow}
        made = call(operation, [weight], scores, counts, seed=seed, **options)
        wanted = check(*made, threads=(1, 4))
        assert int(wanted.results["stats"][0, Stat.OVERFLOW]) == overflow
        assert wanted.bumped == [allow or not overflow]


@compiled
@pytest.mark.parametrize("update", ["add", "replace"])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("k", [3000, M])
def test_noise_that_overflows_weights_of_zero(k: int, dtype: torch.dtype, update: str) -> None:
    """No weight is great; the noise alone overflows."""
    weight, scores = torch.zeros(M, dtype=dtype), torch.arange(float(M))
    scale = float(torch.finfo(dtype).max)
    made = call("topk_perturb_", [weight], [scores], [k], scale=scale, update=update)
    wanted = check(*made)
    assert int(wanted.results["stats"][0, Stat.OVERFLOW]) > 0 and wanted.bumped == [False]


@compiled
@pytest.mark.parametrize("k", [0, 1, N // 2])
def test_one_nan_at_the_end(k: int) -> None:
    weight, scores = torch.zeros(N), torch.arange(float(N))
    scores[-1] = math.nan
    for operation in ("topk_perturb_", "topk_select"):
        wanted = check(*call(operation, [weight], [scores], [k]), threads=(1, 4))
        assert int(wanted.results["stats"][0, Stat.NAN]) == 1


# Shared memory ------------------------------------------------------------------------------------


def aliases() -> dict[str, tuple[list[Tensor], list[Tensor]]]:
    """Weights, and scores that a write to other weights than their own would change."""
    draw = torch.Generator().manual_seed(3)
    square = torch.randn(1000, 1000, generator=draw)
    line = torch.randn(N, generator=draw)
    pair = [torch.randn(600_000, generator=draw) for _ in range(2)]
    half = torch.randn(N, generator=draw).to(torch.bfloat16)
    return {
        "itself": ([line], [line]),
        "transposed": ([square], [square.t()]),
        "swapped": (pair, pair[::-1]),
        "first for both": (pair, [pair[0], pair[0]]),
        "one for all": ([line], [line[-1:].expand(N)]),
        "other dtype": ([half], [half.view(torch.float16)]),
        "columns": ([square], [square[:, 7:8].expand(1000, 1000)]),
    }


@compiled
@pytest.mark.parametrize(
    ("k", "update", "nan"), [(3000, "replace", "error"), (400_000, "add", "largest")]
)
@pytest.mark.parametrize("name", aliases())
def test_scores_in_the_memory_of_the_weights(name: str, k: int, update: str, nan: str) -> None:
    weights, scores = aliases()[name]
    made = call("topk_perturb_", weights, scores, [k], scale=9.0, update=update, nan=nan)
    check(*made, threads=(1, 8))


# Threads and lists --------------------------------------------------------------------------------


def left_by(operations: Any, operation: str, given: tuple[Any, ...]) -> list[Tensor]:
    """What a call leaves; not how many weights it left unchanged, which the call before decides."""
    found = getattr(operations, operation)(*given)
    if operation == "topk_select":
        return [*found[0], found[1]]
    return [*(weight.view(torch.int16) for weight in given[0]), found[:, : Stat.UNCHANGED]]


@compiled
@pytest.mark.parametrize("operation", ["topk_perturb_", "topk_select", "randomk_perturb_"])
def test_the_same_call_fifty_times_with_each_number_of_threads(operation: str) -> None:
    draw = torch.Generator().manual_seed(5)
    weights = [torch.randn(N, generator=draw).to(torch.bfloat16), torch.randn(99, generator=draw)]
    scores = [torch.randn(w.shape, generator=draw).mul(64).round() for w in weights]
    scores = [] if operation == "randomk_perturb_" else scores
    made, world = call(operation, weights, scores, [9999], update="replace")  # as often as you like
    wanted = left_by(reference, operation, arguments(made, world.copy()))
    given = arguments(made, world)
    for threads in range(1, 9):
        torch.set_num_threads(threads)
        for _ in range(50):
            found = left_by(OPS, operation, given)
            assert all(map(torch.equal, wanted, found)), f"{threads} threads"


@compiled
def test_hundreds_of_small_tensors() -> None:
    draw = generator(9)
    sizes = draw.integers(0, 7, 700).tolist()
    weights = [torch.from_numpy(draw.standard_normal(n)).to(torch.float16) for n in sizes]
    scores = [torch.from_numpy(draw.integers(-9, 9, n)).to(torch.float32) for n in sizes]
    for operation in ("topk_perturb_", "topk_select", "randomk_perturb_", "randomk_select", "rms"):
        given = scores if operation.startswith("topk") else []
        check(*call(operation, weights, given, [500], threads=3))
