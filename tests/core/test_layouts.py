"""The same elements give the same bits, however they are split, strided, sharded or threaded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from core import oracle
from core.cases import DTYPES, STRIDES, Group, expect, expected_memory, generator, numbers, place
from torch import Tensor

import fastunlearn as fu

OPS = torch.ops.fastunlearn
RNG = (2**64 - 3, 5)
KINDS = ("normal", "uniform", "laplace")


def rng_tensor(seed: int = RNG[0], step: int = RNG[1]) -> Tensor:
    return torch.tensor([seed - 2**64 * (seed >> 63), step])


def pack(places: list[oracle.Place]) -> list[int]:
    return [x for p in places for x in (p.base, p.row_len, p.row_stride)]


def flat(tensors: list[Tensor]) -> np.ndarray:
    return np.concatenate([oracle.raw(t) for t in tensors])


def split(values: Tensor, draw: Any, strides: str) -> list[Tensor]:
    """Cut a flat tensor into random pieces, some empty, some 0-dim, some with two dimensions."""
    pieces, start = [], 0
    while start < values.numel():
        size = min(int(draw.choice((0, 1, 2, 3, 6, 8, 31))), values.numel() - start)
        shape = {1: (), 6: (2, 3), 8: (2, 2, 2)}.get(size, (size,))
        piece, _ = place(values[start : start + size].reshape(shape).clone(), strides)
        pieces.append(piece)
        start += size
    return pieces


@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("strategy", ["top_k", "random_k", "ties"])
def test_split_and_strides_do_not_matter(strategy: str, dtype: torch.dtype, strides: str) -> None:
    draw = generator(STRIDES.index(strides))
    values = numbers("normal", (301,), dtype, draw)
    scores = numbers("ties" if strategy == "ties" else "normal", (301,), dtype, draw)
    chosen: Any = fu.RandomK(97) if strategy == "random_k" else fu.TopK(97)
    results = []
    for seed in range(3):
        cut = [generator(seed), generator(seed)]
        weights = split(values, cut[0], strides)
        given = None if strategy == "random_k" else split(scores, cut[1], "contiguous")
        if seed == 0:
            weights, given = [values.clone()], given and [scores]
        receipt = fu.perturb_(weights, chosen, scores=given, seed=7)
        assert receipt.count == 97
        results.append(flat(weights))
    assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2])
    assert (results[0] != oracle.raw(values)).sum() > 90


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "base", [0, 1, 2**31 - 2, 2**32 - 3, 2**33 + 5, 2**34 - 2, 2**40 + 3, 2**61 + 1]
)
def test_topk_at_huge_bases(base: int, kind: str) -> None:
    draw = generator(base % 1000)
    group = Group()
    for size in (9, 1, 13):
        weight = numbers("normal", (size,), torch.float32, draw)
        group.add(weight, numbers("ties", (size,), torch.float32, draw), weight)
    starts = [base + 40, base, base + 11]  # list order is not index order
    places = [
        oracle.Place(s, w.numel(), w.numel()) for s, w in zip(starts, group.weights, strict=True)
    ]
    keys = [oracle.keys(s, s, "grad") for s in group.scores]
    picks, cut = oracle.top_k(keys, places, [0, 1, 2], 11)
    scale = [0.5, 1.0, 2.0]
    outcomes = expect(group, picks, places, scale, RNG, kind, "add")
    wanted = expected_memory(group, outcomes)
    stats = OPS.topk_perturb_(
        group.weights, group.scores, torch.tensor(scale, dtype=torch.float64), rng_tensor(), [11],
        False, "grad", "error", kind, "add", False, pack(places),
    )  # fmt: skip
    assert group.memory() == wanted
    assert tuple(stats[0, 1:4].tolist()) == cut
    index = torch.arange(base, base + 8).view(2, 4)
    z = OPS.noise(index, rng_tensor(), kind)
    assert z.shape == (2, 4)
    assert np.array_equal(oracle.raw(z), oracle.noise(range(base, base + 8), *RNG, kind).view("u4"))


@pytest.mark.parametrize("total", [2**31 + 7, 2**33 + 1, 2**40 + 3, 2**62])
def test_randomk_in_a_huge_index_space(total: int) -> None:
    images = [oracle.permute(x, total, *RNG) for x in range(64)]
    group, places = Group(), []
    for image in images[::7]:  # small shards around some of the images
        places.append(oracle.Place(max(image - 2, 0), 5, 5))
        weight = torch.zeros(5)
        group.add(weight, weight, weight)
    picks = oracle.random_k(places, [5] * len(places), [64], False, total, RNG)
    assert len(picks) >= len(places)
    outcomes = expect(group, picks, places, [1.0] * len(places), RNG, "normal", "add")
    wanted = expected_memory(group, outcomes)
    scale = torch.ones(len(places), dtype=torch.float64)
    packed, _ = OPS.randomk_select(group.weights, rng_tensor(), [64], False, pack(places), total)
    arguments = (scale, rng_tensor(), [64], False, "normal", "add", False, pack(places), total)
    stats = OPS.randomk_perturb_(group.weights, *arguments)
    assert group.memory() == wanted
    assert stats[:, 0].tolist() == [o.selected for o in outcomes]
    bits = [int(np.unpackbits(p.numpy()).sum()) for p in packed]
    assert bits == [o.selected for o in outcomes]


def shards(matrix: Tensor, how: str) -> list[tuple[Tensor, oracle.Place]]:
    """Column, row or tile shards of a matrix, each at its place in the whole."""
    rows, columns = matrix.shape
    row_cuts, column_cuts = [0, rows], [0, columns]
    if how in ("rows", "tiles"):
        row_cuts = [0, 2, 2, 3, rows]
    if how in ("columns", "tiles"):
        column_cuts = [0, 1, 5, 5, columns]
    found = []
    for top, bottom in zip(row_cuts, row_cuts[1:], strict=False):
        for left, right in zip(column_cuts, column_cuts[1:], strict=False):
            tile = matrix[top:bottom, left:right].clone()
            place = oracle.Place(top * columns + left, max(right - left, 1), columns)
            found.append((tile, place))
    return found


def join(tiles: list[Tensor], places: list[oracle.Place], shape: tuple[int, int]) -> np.ndarray:
    whole = np.zeros(shape[0] * shape[1], np.uint64)
    for tile, where in zip(tiles, places, strict=True):
        for local, bits in enumerate(oracle.raw(tile)):
            whole[where.index(local)] = bits
    return whole


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("k", [1, 17, 40, 76, 77])
@pytest.mark.parametrize("pool", ["normal", "ties"])
@pytest.mark.parametrize("how", ["rows", "columns", "tiles"])
def test_shards_give_the_bits_of_the_whole(how: str, pool: str, k: int, reverse: bool) -> None:
    draw = generator(k)
    shape = (7, 11)
    weights = numbers("normal", shape, torch.bfloat16, draw)
    scores = numbers(pool, shape, torch.float32, draw)
    parts = list(zip(shards(weights, how), shards(scores, how), strict=True))
    parts = parts[::-1] if reverse else parts
    tiles, places = [p[0][0] for p in parts], [p[0][1] for p in parts]
    given = [p[1][0] for p in parts]
    scale = torch.full((len(tiles),), 0.5, dtype=torch.float64)
    tail = ("laplace", "add", False, pack(places))
    OPS.topk_perturb_(tiles, given, scale, rng_tensor(), [k], False, "grad", "error", *tail)
    whole = weights.clone()
    strategy = fu.TopK(k, std=0.5, noise="laplace")
    fu.perturb_([whole], strategy, scores=[scores], seed=RNG[0], step=RNG[1])
    assert np.array_equal(join(tiles, places, shape), oracle.raw(whole))
    OPS.randomk_perturb_(tiles, scale, rng_tensor(), [k], False, *tail, 77)
    strategy = fu.RandomK(k, std=0.5, noise="laplace")
    fu.perturb_([whole], strategy, seed=RNG[0], step=RNG[1])
    assert np.array_equal(join(tiles, places, shape), oracle.raw(whole))


@pytest.mark.parametrize("how", ["rows", "columns", "tiles", "whole"])
@pytest.mark.parametrize("k", [0, 20, 77 * 100, 77 * 199, 77 * 200])
def test_randomk_of_a_small_share(how: str, k: int) -> None:
    """Each shard in a call of its own, of an index space in which it is little."""
    draw = generator(k)
    shape, total = (7, 11), 77 * 200
    weights = numbers("normal", shape, torch.float32, draw)
    base = 77 * 50
    images = {oracle.permute(x, total, *RNG) - base for x in range(k)}
    found = set()
    for tile, own in shards(weights, how):
        where = oracle.Place(own.base + base, own.row_len, own.row_stride)
        packed, stats = OPS.randomk_select([tile], rng_tensor(), [k], False, pack([where]), total)
        bits = np.unpackbits(packed[0].numpy(), bitorder="little")[: tile.numel()]
        local = np.flatnonzero(bits)
        found |= {own.index(int(i)) for i in local}
        before = tile.clone()
        arguments = (torch.ones(1, dtype=torch.float64), rng_tensor(), [k], False)
        how_to = ("normal", "add", False, pack([where]), total)
        written = OPS.randomk_perturb_([tile], *arguments, *how_to)
        changed = np.flatnonzero((before != tile).flatten().numpy())
        assert changed.tolist() == local.tolist()
        assert stats[0, 0] == written[0, 0] == len(local)
    assert found == {image for image in images if 0 <= image < 77}


def digest(n: int) -> tuple[bytes, list[int]]:
    draw = torch.Generator().manual_seed(1)
    weights = [torch.randn(n, generator=draw), torch.randn(n // 7, 7, generator=draw).t()]
    scores = [torch.randn(w.shape, generator=draw).mul(8).round() for w in weights]
    fu.perturb_(weights, fu.TopK(0.3, rel_std=0.5), scores=scores, seed=3)
    fu.perturb_(weights, fu.RandomK(0.2), seed=3)
    indices = fu.select(weights, fu.TopK(0.01), scores=scores).indices()
    return b"".join(oracle.raw(w).tobytes() for w in weights), indices.tolist()


def test_threads_and_repeats_do_not_matter() -> None:
    """Above the size where torch splits work, and above the one-chunk paths of the selection."""
    first = digest(150_001)
    assert digest(150_001) == first
    torch.set_num_threads(2)
    assert digest(150_001) == first


def test_oracle_is_philox() -> None:
    """The known answers of Random123, so that the oracle cannot be wrong together with the code."""
    assert oracle.philox([0] * 4, [0] * 2) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = [0xFFFFFFFF]
    assert oracle.philox(ones * 4, ones * 2) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    pi = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]
    known = [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]
    assert oracle.philox(pi, [0xA4093822, 0x299F31D0]) == known
