"""Every operation on the device leaves the bits that the reference leaves on the host."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from core.backends import call
from core.cases import DTYPES
from core.configurations import ALIASES, KINDS, LAYOUTS, NANS, OPERATIONS, SCORES, STRIDES, UPDATES
from core.worlds import FILL, View, rng_tensor
from gpu.device import DEVICE, OPS, check, check_kind, gpu
from torch import Tensor

from fastunlearn._ops import backend_of
from fastunlearn.reference import ops as reference
from fastunlearn.reference.ops import Stat

pytestmark = gpu

# Around the tile of 4096 elements, the vectors and the words; a list of several tiles each.
SIZES = {
    "nothing": [0],
    "one": [1],
    "three": [3],
    "odd": [4093],
    "tile": [4096],
    "over a tile": [4097],
    "many tiles": [300_001],
    "list": [5, 0, 1, 4096, 3, 9001, 0],
    "small ones": [100] * 300,
}
SELECTIONS = [name for name in OPERATIONS if name.endswith(("perturb_", "select"))]


def normal(sizes: list[int], dtype: torch.dtype, seed: int = 1) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(n, generator=draw).to(dtype) for n in sizes]


def some(operation: str, sizes: list[int], dtype: torch.dtype) -> tuple[Any, ...]:
    """Weights, and scores where the operation reads some."""
    scores = normal(sizes, dtype, 2) if operation.startswith("topk") else []
    return normal(sizes, dtype), scores


@pytest.mark.parametrize("operation", OPERATIONS)
def test_compiled_kernels_are_in_use(operation: str) -> None:
    """Else every other test would compare the reference with itself."""
    assert backend_of(operation, DEVICE) == "cuda"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("operation", SELECTIONS)
def test_sizes(operation: str, sizes: list[int], dtype: torch.dtype) -> None:
    total = sum(sizes)
    for k in sorted({0, 1, total // 100, total // 2, total}):
        if k <= total:
            made, world = call(operation, *some(operation, sizes, dtype), [k])
            wanted = check(made, world)
            assert wanted.results["stats"][:, Stat.SELECTED].sum() == k


@pytest.mark.parametrize("sizes", [[4097], [1, 4096, 3, 9001]], ids=str)
@pytest.mark.parametrize("operation", SELECTIONS)
def test_each_tensor_by_itself(operation: str, sizes: list[int]) -> None:
    for k in ([0] * len(sizes), [n // 2 for n in sizes], [(n + 9) // 10 for n in sizes], sizes):
        given = some(operation, sizes, torch.float32)
        check(*call(operation, *given, k, per_tensor=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 1, 3, 4097, 100_001])
def test_noise(count: int, kind: str) -> None:
    for start, step in ((0, 1), (2**34 - 50, 1), (7, 2**40)):
        index = start + step * torch.arange(count)
        found = OPS.noise(index.to(DEVICE), rng_tensor(2**63 + 5, 9), kind)
        wanted = reference.noise(index, rng_tensor(2**63 + 5, 9), kind)
        assert torch.equal(found.cpu().view(torch.int32), wanted.view(torch.int32))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_rms(sizes: list[int], dtype: torch.dtype) -> None:
    tensors = normal(sizes, dtype)
    found = OPS.rms([tensor.to(DEVICE) for tensor in tensors]).cpu()
    assert torch.equal(found.view(torch.int64), reference.rms(tensors).view(torch.int64))


# Memory -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("operation", SELECTIONS)
def test_memory_off_the_16_byte_grid(operation: str, dtype: torch.dtype, offset: int) -> None:
    """Weights and scores begin `offset` and `offset + 1` elements into their memory."""
    sizes = [9001, 4096]
    made, world = call(operation, *some(operation, sizes, dtype), [1000])
    world.buffers = [
        torch.cat([b.new_full((offset + i % 2,), FILL), b, b.new_full((5,), FILL)])
        for i, b in enumerate(world.buffers)
    ]
    for views in (world.weight_views, world.score_views):
        views[:] = [
            View(v.buffer, v.dtype, v.shape, v.stride, offset + v.buffer % 2) for v in views
        ]
    check(made, world)


@pytest.mark.parametrize("strides", [s for s in STRIDES if s != "contiguous"])
def test_strided_weights(strides: str) -> None:
    check_kind(lambda made: made.writes and _has(made, "weight_strides", strides), 12)


@pytest.mark.parametrize("strides", [*STRIDES[1:], "expanded"])
def test_strided_scores(strides: str) -> None:
    plain = {"topk": True, "alias": None, "scores_are_weights": False}
    check_kind(
        lambda made: (
            all(getattr(made, name) == value for name, value in plain.items())
            and _has(made, "score_strides", strides)
        ),
        8,
    )


def _has(made: Any, name: str, value: str) -> bool:
    return any(getattr(entry, name) == value and entry.numel > 9 for entry in made.entries)


@pytest.mark.parametrize("operation", SELECTIONS)
def test_more_dimensions_than_the_kernels_have(operation: str) -> None:
    made, world = call(operation, *some(operation, [2**7], torch.float32), [40])
    shape, stride = (2,) * 7, tuple(2**i for i in (3, 1, 6, 0, 4, 2, 5))
    view = world.weight_views[0]
    world.weight_views[0] = View(view.buffer, view.dtype, shape, stride, 0)
    if world.score_views:
        score = world.score_views[0]
        world.score_views[0] = View(score.buffer, score.dtype, shape, stride, 0)
    check(made, world)


@pytest.mark.parametrize("alias", ALIASES)
def test_scores_in_the_memory_of_weights(alias: str) -> None:
    check_kind(lambda made: made.alias == alias, 8)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_places_in_the_flat_index_space(layout: str) -> None:
    check_kind(lambda made: made.layout == layout and "_" in made.operation, 16)


# Values -------------------------------------------------------------------------------------------

INF, NAN = math.inf, math.nan
VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "all equal": torch.ones_like,
    "all zero": torch.zeros_like,
    "zeros of both signs": lambda x: torch.where(x < 0, -0.0, 0.0),
    "70 % zeros": lambda x: torch.where(x.abs() < 1.04, 0.0, x),
    "few values": lambda x: x.mul(3).round(),
    "all infinite": lambda x: torch.full_like(x, -INF),
    "some infinite": lambda x: torch.where(x.abs() > 2.5, x.sign() * INF, x),
    "denormal": lambda x: x.mul(3).round() * 1e-44,
    "ascending": lambda x: torch.arange(float(len(x))),
    "descending": lambda x: -torch.arange(float(len(x)), 0, -1),
    "one great tile": lambda x: x * torch.where(torch.arange(len(x)) // 4096 == 3, 1e6, 1.0),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("values", VALUES)
def test_values_of_scores(values: str, dtype: torch.dtype) -> None:
    n = 300_001
    weights = normal([n], torch.float32)
    (drawn,) = normal([n], torch.float32, 2)
    scores = [VALUES[values](drawn).to(dtype)]
    for k in (1, 3000, 150_000, n - 1):
        for operation in ("topk_select", "topk_perturb_"):
            check(*call(operation, weights, scores, [k]))


@pytest.mark.parametrize("count", [1, 1000, 300_001])
@pytest.mark.parametrize("nan", NANS)
def test_nan_scores(nan: str, count: int) -> None:
    sizes = [4097, 300_001, 3]
    scores = normal(sizes, torch.float32, 2)
    scores[1][torch.randperm(300_001, generator=torch.Generator().manual_seed(1))[:count]] = NAN
    for operation in ("topk_select", "topk_perturb_"):
        for k in (0, 1, 2000, 200_000):
            made, world = call(operation, normal(sizes, torch.float32), scores, [k], nan=nan)
            stats = check(made, world).results["stats"]
            assert stats[:, Stat.NAN].sum() == (count if nan == "error" else 0)


@pytest.mark.parametrize("nan", NANS)
def test_nan_scores_by_tensor(nan: str) -> None:
    """One NaN refuses the whole call, even in a tensor of which nothing is to be selected."""
    sizes = [4097, 5000, 3]
    scores = normal(sizes, torch.float32, 2)
    scores[1][[0, 4999]] = NAN
    for k in ([10, 0, 1], [10, 500, 1]):
        given = (normal(sizes, torch.float32), scores, k)
        check(*call("topk_perturb_", *given, nan=nan, per_tensor=True))


@pytest.mark.parametrize("score", SCORES)
def test_kinds_of_scores(score: str) -> None:
    check_kind(lambda made: made.topk and made.score == score, 12)


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("noise", KINDS)
def test_kinds_of_noise_and_update(noise: str, update: str) -> None:
    check_kind(lambda made: made.writes and (made.noise, made.update) == (noise, update), 8)


# All or nothing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [0, -1])
@pytest.mark.parametrize("share", [0.001, 0.6], ids=["journal", "screen"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("operation", ["topk_perturb_", "randomk_perturb_"])
def test_overflow(operation: str, dtype: torch.dtype, share: float, where: int) -> None:
    """One weight would overflow, among few selected or many: refused whole, or allowed.

    By its number of bytes the first is undone from a journal of old values; the second is more
    than such a journal holds, and is screened before the first write.
    """
    n = 1_000_003
    weights, scores = some(operation, [n, 5000], dtype)
    greatest = torch.finfo(dtype).max
    scale = greatest / 64
    wanted = call(operation, weights, scores, [int(share * n)], scale=scale, allow_overflow=True)
    after = check(*wanted).world.weights[0]
    selected = (after != weights[0]).nonzero().squeeze(1)
    place = selected[where]
    # pushed on in the direction in which its noise goes
    weights[0][place] = math.copysign(greatest, float(after[place] - weights[0][place]))
    for allowed in (False, True):
        k = [int(share * n)]
        made, world = call(operation, weights, scores, k, scale=scale, allow_overflow=allowed)
        outcome = check(made, world)
        assert outcome.results["stats"][:, Stat.OVERFLOW].sum() == 1
        assert torch.equal(outcome.world.weights[0], weights[0]) == (not allowed)


@pytest.mark.parametrize("allowed", [False, True])
def test_generated_overflow(allowed: bool) -> None:
    kind = {"writes": True, "allow_overflow": allowed, "update": "add"}
    found = check_kind(
        lambda made: (
            all(getattr(made, name) == value for name, value in kind.items())
            and any(entry.scale > 1e4 for entry in made.entries)
        ),
        30,
    )
    counts = [int(one.results["stats"][:, Stat.OVERFLOW].sum()) for one in found]
    assert sum(count > 0 for count in counts) > 3
