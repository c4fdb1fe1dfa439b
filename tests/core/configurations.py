"""Generated calls of every operation, described in full: a number gives one, always the same."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from core import oracle
from core.cases import DTYPES

OPERATIONS = ("topk_perturb_", "topk_select", "randomk_perturb_", "randomk_select", "noise", "rms")
_SHARES = (0.45, 0.25, 0.12, 0.1, 0.04, 0.04)
STRIDES = (
    "contiguous", "offset", "transposed", "permuted", "step", "columns", "channels_last", "singles",
)  # fmt: skip
VALUES = (
    "normal", "ties", "special", "bits", "equal", "zeros", "ascending", "descending", "few",
    "narrow", "wide", "clustered",
)  # fmt: skip
LAYOUTS = ("whole", "gaps", "far", "shards")
ALIASES = ("same", "swapped", "shifted", "transposed", "reinterpreted", "expanded")
SCORES = ("grad", "fisher", "taylor", "weight")
NANS = ("error", "largest", "smallest")
KINDS = ("normal", "uniform", "laplace")
UPDATES = ("add", "replace", "zero")
SCALES = (0.0, 0.1, 0.1, 0.1, 1e-6, 300.0, 7e4, 3e38, 1e300, 1e-45)
INDEX_ORDERS = ("ascending", "shuffled", "far", "strided", "repeated", "scalar")
SEEDS = (0, 1, 2**32, 2**63, 2**64 - 1)
STEPS = (0, 1, 2**31, 2**32 - 1)

# Sizes around the words, vectors and chunks of the kernels; a list is made of one of these rows.
_TINY = (0, 1, 2, 3, 7, 31, 63, 64, 65, 100)
_SIZES = {
    "tiny": _TINY,
    "middle": (*_TINY, 255, 1000, 4095, 4096, 4097, 10_000),
    "chunk": (0, 1, 64, 4097, 65_535, 65_536, 65_537),
    "large": (131_071, 131_073, 196_609, 262_144, 300_001),
}
SIZES = sorted({size for row in _SIZES.values() for size in row})
_MOST = {"tiny": 12, "middle": 5, "chunk": 2, "large": 1}
_SIZE_SHARES = {True: (0.5, 0.33, 0.13, 0.04), False: (0.6, 0.35, 0.04, 0.01)}  # topk, the rest


class Draw:
    """Choices from one generator."""

    def __init__(self, number: int) -> None:
        self.source = np.random.default_rng([2026, number])

    def pick(self, options: Sequence[Any], shares: Sequence[float] | None = None) -> Any:
        if shares is None:
            return options[int(self.source.integers(len(options)))]
        return options[int(self.source.choice(len(options), p=shares))]

    def between(self, low: int, high: int) -> int:
        """An integer in [low, high]."""
        return int(self.source.integers(low, high + 1))

    def chance(self, probability: float) -> bool:
        return bool(self.source.random() < probability)


@dataclass(frozen=True)
class Entry:
    """One tensor of the list and its score."""

    shape: tuple[int, ...]
    weight: torch.dtype
    weight_strides: str
    weight_values: str
    score: torch.dtype
    score_strides: str  # one of STRIDES, or "expanded"
    score_values: str
    magnitude: float  # of the scores
    scale: float  # of the noise
    place: oracle.Place

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Configuration:
    """One call. Fields that the operation does not take are drawn and left unused."""

    number: int
    operation: str
    entries: tuple[Entry, ...]
    alias: str | None  # how the scores share memory with the weights
    layout: str
    total: int
    k: tuple[int, ...]
    per_tensor: bool
    score: str
    scores_are_weights: bool
    nan: str
    nan_share: float  # of the scores
    weight_nan_share: float
    special_share: float  # of the scores: infinities, zeros of both signs, denormals
    noise: str
    update: str
    allow_overflow: bool
    seed: int
    step: int
    index: str  # order of the indices given to `noise`
    threads: int
    flush: bool  # whether the caller's thread flushes denormal numbers to zero

    @property
    def topk(self) -> bool:
        return self.operation.startswith("topk")

    @property
    def writes(self) -> bool:
        return self.operation.endswith("perturb_")


def shape_of(draw: Draw, size: int, strides: str) -> tuple[int, ...]:
    """A shape of about `size` elements, with the dimensions that the strides need."""
    if strides == "channels_last":
        channels, side = draw.pick((1, 3, 8)), draw.pick((1, 2, 3))
        return (size // (channels * side * side), channels, side, side)
    if strides == "permuted":
        return (2, draw.pick((1, 3, 5)), size // 6)
    if strides == "singles":
        return (1, size, 1)
    rows = draw.pick((2, 3, 16, 64))
    if strides in ("transposed", "columns") or (size % rows == 0 and draw.chance(0.5)):
        return (rows, size // rows)
    return () if size == 1 and draw.chance(0.5) else (size,)


def _sizes(draw: Draw, topk: bool) -> list[int]:
    row = draw.pick(tuple(_SIZES), _SIZE_SHARES[topk])
    return [draw.pick(_SIZES[row]) for _ in range(draw.between(1, _MOST[row]))]


def _shapes(draw: Draw, sizes: list[int], strides: list[str], alias: str | None) -> list[Any]:
    shapes = [shape_of(draw, n, kind) for n, kind in zip(sizes, strides, strict=True)]
    if alias == "swapped":
        return [shapes[0]] * len(shapes)
    if alias == "transposed":
        return [(int(n**0.5), int(n**0.5)) for n in sizes]
    return shapes


def _whole(numels: list[int]) -> list[oracle.Place]:
    starts = itertools.accumulate(numels, initial=0)
    return [oracle.Place(s, max(n, 1), max(n, 1)) for s, n in zip(starts, numels, strict=False)]


def _shuffled(draw: Draw, numels: list[int], start: int, gap: int) -> list[oracle.Place]:
    """Whole tensors with gaps between them; list order is not index order."""
    places: list[Any] = [None] * len(numels)
    for i in draw.source.permutation(len(numels)).tolist():
        start += draw.between(0, gap)
        places[i] = oracle.Place(start, max(numels[i], 1), max(numels[i], 1))
        start += numels[i]
    return places


def _shards(draw: Draw, numels: list[int]) -> list[oracle.Place]:
    """Column blocks of one matrix: the rows of all entries interleave. Last rows may be partial."""
    widths = [draw.between(1, draw.pick((2, 9, max(n, 1)))) for n in numels]
    row = sum(widths) + draw.between(0, 3)
    column = draw.pick((0, 0, 5, 2**33 + 1))
    places: list[Any] = [None] * len(numels)
    for i in draw.source.permutation(len(numels)).tolist():
        places[i] = oracle.Place(column, widths[i], row)
        column += widths[i]
    return places


def end_of(place: oracle.Place, numel: int) -> int:
    return place.index(numel - 1) + 1 if numel else place.base


def _places(draw: Draw, layout: str, numels: list[int]) -> tuple[list[oracle.Place], int]:
    """Place of each tensor, and a total that holds them all."""
    if layout == "whole":
        return _whole(numels), sum(numels)
    if layout == "gaps":
        places = _shuffled(draw, numels, 0, draw.pick((1, 10, 1000)))
    elif layout == "far":
        start = draw.pick((2**31, 2**32 - 3, 2**32, 2**34 - 70, 2**34 + 5, 2**40, 2**61))
        places = _shuffled(draw, numels, start - draw.between(0, 99), 2 ** draw.between(0, 34))
    else:
        places = _shards(draw, numels)
    ends = [end_of(p, n) for p, n in zip(places, numels, strict=True)]
    return places, max(ends) + draw.between(0, 9)


def _around_images(entries: list[Entry], total: int, rng: tuple[int, int]) -> list[Entry]:
    """Move far tensors to where Random-k falls, so that some of it meets them."""
    images = sorted({oracle.permute(x, total, *rng) for x in range(24)})
    moved, end = [], 0
    for entry in entries:
        while images and images[0] - entry.numel // 2 < end:
            images.pop(0)
        if not images or images[0] + entry.numel > total:
            return entries
        base = images.pop(0) - entry.numel // 2
        place = oracle.Place(base, entry.place.row_len, entry.place.row_stride)
        moved.append(dataclasses.replace(entry, place=place))
        end = base + entry.numel
    return moved


def _count(draw: Draw, n: int) -> int:
    few = draw.between(2, 20)
    wanted = draw.pick((0, 1, few, n // 100, n // 100, n // 10, n // 10, n // 2, n - 1, n))
    return min(max(wanted, 0), n)


def _counts(draw: Draw, numels: list[int], per_tensor: bool, topk: bool, total: int) -> list[int]:
    if per_tensor:
        return [_count(draw, n) for n in numels]
    if topk:
        return [_count(draw, sum(numels))]
    if total > 500_000:  # nothing may be proportional to it
        return [min(draw.pick((0, 1, 24, 1000, 5000)), total)]
    return [_count(draw, total)]


def _entries(draw: Draw, operation: str, alias: str | None, layout: str) -> tuple[list[Entry], int]:
    sizes = _sizes(draw, operation.startswith("topk"))
    mixed = [draw.chance(0.3), draw.chance(0.3)]
    common = [draw.pick(DTYPES), draw.pick(DTYPES)]
    strides = [draw.pick(STRIDES) if draw.chance(0.6) else "contiguous" for _ in sizes]
    shapes = _shapes(draw, sizes, strides, alias)
    numels = [math.prod(shape) for shape in shapes]
    places, total = _places(draw, layout, numels)
    values, layer_scales, odd_scales = draw.pick(VALUES), draw.chance(0.2), draw.chance(0.6)
    entries = []
    for shape, kind, place in zip(shapes, strides, places, strict=True):
        entry = Entry(
            shape=shape,
            weight=draw.pick(DTYPES) if mixed[0] else common[0],
            weight_strides=kind,
            weight_values=draw.pick(("normal", "normal", "normal", "special", "bits", "zeros")),
            score=draw.pick(DTYPES) if mixed[1] else common[1],
            score_strides=draw.pick((*STRIDES, "expanded")) if draw.chance(0.5) else "contiguous",
            score_values=draw.pick(VALUES) if draw.chance(0.2) else values,
            magnitude=10.0 ** draw.between(-6, 6) if layer_scales else 1.0,
            scale=draw.pick(SCALES) if odd_scales else 0.1,
            place=place,
        )
        entries.append(entry)
    return entries, total


def configuration(number: int) -> Configuration:
    """The configuration of a number."""
    draw = Draw(number)
    operation = draw.pick(OPERATIONS, _SHARES)
    topk = operation.startswith("topk")
    per_tensor = draw.chance(0.3)
    layout = draw.pick(LAYOUTS, (0.6, 0.1, 0.15, 0.15))
    if per_tensor and not topk and layout == "shards":
        layout = "gaps"  # a shard is no domain of its own
    alias = draw.pick(ALIASES) if topk and draw.chance(0.2) else None
    entries, total = _entries(draw, operation, alias, layout)
    seed = draw.pick(SEEDS) if draw.chance(0.5) else int(draw.source.integers(0, 2**64, dtype="u8"))
    step = draw.pick(STEPS)
    if not topk and layout == "far" and not per_tensor:
        entries = _around_images(entries, total, (seed, step))
    score, nan = draw.pick(SCORES, (0.5, 0.15, 0.2, 0.15)), draw.pick(NANS, (0.5, 0.25, 0.25))
    return Configuration(
        number=number,
        operation=operation,
        entries=tuple(entries),
        alias=alias,
        layout=layout,
        total=total,
        k=tuple(_counts(draw, [e.numel for e in entries], per_tensor, topk, total)),
        per_tensor=per_tensor,
        score=score,
        scores_are_weights=score == "weight" and alias is None and draw.chance(0.7),
        nan=nan,
        nan_share=draw.pick((0.0, 1e-3, 0.1), (0.9, 0.05, 0.05) if nan == "error" else None),
        weight_nan_share=draw.pick((0.0, 0.01), (0.9, 0.1)),
        special_share=draw.pick((0.0, 0.01, 0.2)),
        noise=draw.pick(KINDS),
        update=draw.pick(UPDATES, (0.6, 0.2, 0.2)),
        allow_overflow=draw.chance(0.5),
        seed=seed,
        step=step,
        index=draw.pick(INDEX_ORDERS),
        threads=draw.between(1, 8),
        flush=draw.chance(0.15),
    )
