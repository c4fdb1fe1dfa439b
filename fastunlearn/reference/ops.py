"""The reference kernels: what each operation of `fastunlearn._ops` computes.

They are the specification that every compiled backend reproduces bit for bit. Arguments are trusted
here; `fastunlearn.targets` validates them at the border.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum

import torch
from torch import Tensor

from fastunlearn.reference import counts, randomk, topk
from fastunlearn.reference.keys import KeySource
from fastunlearn.reference.memory import Layout, layouts
from fastunlearn.reference.noise import noise as noise_at
from fastunlearn.reference.philox import Rng
from fastunlearn.reference.rms import rms_all
from fastunlearn.reference.surroundings import kernel
from fastunlearn.reference.update import Noise, Plan


class Stat(IntEnum):
    """Columns of the statistics that every operation returns: int64, one row for each tensor."""

    SELECTED = 0
    THRESHOLD = 1  # key of the K-th greatest score; -1 where there is none
    TIES = 2  # elements of the tensor's selection problem whose key equals the threshold
    TIES_TAKEN = 3
    NAN = 4  # NaN scores met under nan="error"; where any is counted nothing was written
    OVERFLOW = 5  # finite weights that became infinite; where refused, nothing was written
    UNCHANGED = 6  # selected weights whose new value equals the old one


def _cuts(
    keys: KeySource, parts: Sequence[Layout], k: Sequence[int], per_tensor: bool
) -> list[topk.Cut]:
    """Cut of each tensor: its own, or the one that all share."""
    if per_tensor:
        return [topk.find_cut(keys, parts, [i], count) for i, count in enumerate(k)]
    return [topk.find_cut(keys, parts, range(len(parts)), k[0])] * len(parts)


def _stats(cuts: Sequence[topk.Cut]) -> Tensor:
    """Statistics that the cuts alone decide; the other columns are 0."""
    rows = []
    for cut in cuts:
        row = [0] * len(Stat)
        row[Stat.THRESHOLD] = cut.key if cut.ties else -1
        row[Stat.TIES], row[Stat.TIES_TAKEN] = cut.ties, cut.ties_taken
        rows.append(row)
    return torch.tensor(rows, dtype=torch.int64).view(len(cuts), len(Stat))


def _refused_for_nan(keys: KeySource, parts: Sequence[Layout]) -> Tensor:
    stats = torch.zeros(len(parts), len(Stat), dtype=torch.int64)
    stats[:, Stat.NAN] = torch.tensor(topk.count_nan(keys, [part.numel for part in parts]))
    return stats


def _perturb(plan: Plan, stats: Tensor, allow_overflow: bool) -> Tensor:
    """Fill in the statistics of a plan and carry it out unless it would overflow."""
    stats[:, Stat.SELECTED] = torch.tensor(plan.selected)
    stats[:, Stat.OVERFLOW] = torch.tensor(plan.overflow)
    stats[:, Stat.UNCHANGED] = torch.tensor(plan.unchanged)
    if allow_overflow or not any(plan.overflow):
        plan.commit()
        touched = [w for w in plan.weights if not w.is_inference()]
        torch.autograd.graph.increment_version(touched)
    return stats


def _pack(
    tensors: Sequence[Tensor], batches: Iterable[list[tuple[int, Tensor]]], stats: Tensor
) -> list[Tensor]:
    """One bit for each element, least significant first; counts go to the statistics."""
    packed = [
        torch.zeros((tensor.numel() + 7) // 8, dtype=torch.uint8, device=tensor.device)
        for tensor in tensors
    ]
    for batch in batches:
        for tensor, local in batch:
            bit = torch.bitwise_left_shift(torch.ones_like(local), local & 7).to(torch.uint8)
            packed[tensor].index_add_(0, local >> 3, bit)
            stats[tensor, Stat.SELECTED] += local.numel()
    return packed


@kernel
def topk_perturb_(
    weights: Sequence[Tensor],
    scores: Sequence[Tensor],
    scale: Tensor,
    rng: Tensor,
    k: Sequence[int],
    per_tensor: bool,
    score: str,
    nan: str,
    noise: str,
    update: str,
    allow_overflow: bool,
    layout: Sequence[int],
) -> Tensor:
    """Perturb the K elements of greatest score in place; see `fastunlearn._ops` for arguments."""
    parts = layouts(weights, layout)
    keys = KeySource(weights, scores, score, nan)
    cuts = _cuts(keys, parts, k, per_tensor)
    plan = Plan(weights, parts, Noise(scale, Rng.from_tensor(rng), noise, update))
    try:
        plan.extend(topk.selected(keys, parts, cuts))
    except topk.NanFoundError:
        return _refused_for_nan(keys, parts)
    return _perturb(plan, _stats(cuts), allow_overflow)


@kernel
def topk_select(
    weights: Sequence[Tensor],
    scores: Sequence[Tensor],
    k: Sequence[int],
    per_tensor: bool,
    score: str,
    nan: str,
    layout: Sequence[int],
) -> tuple[list[Tensor], Tensor]:
    """Select the K elements of greatest score; packed bits for each tensor, and statistics."""
    parts = layouts(weights, layout)
    keys = KeySource(weights, scores, score, nan)
    cuts = _cuts(keys, parts, k, per_tensor)
    stats = _stats(cuts)
    try:
        return _pack(weights, topk.selected(keys, parts, cuts), stats), stats
    except topk.NanFoundError:
        return _pack(weights, [], stats), _refused_for_nan(keys, parts)


@kernel
def randomk_perturb_(
    weights: Sequence[Tensor],
    scale: Tensor,
    rng: Tensor,
    k: Sequence[int],
    per_tensor: bool,
    noise: str,
    update: str,
    allow_overflow: bool,
    layout: Sequence[int],
    total: int,
) -> Tensor:
    """Perturb a uniform K-subset of the elements in place."""
    parts = layouts(weights, layout)
    state = Rng.from_tensor(rng)
    plan = Plan(weights, parts, Noise(scale, state, noise, update))
    plan.extend(randomk.selected(parts, k, per_tensor, total, state, weights[0].device))
    return _perturb(plan, _stats([topk.NOTHING] * len(parts)), allow_overflow)


@kernel
def randomk_select(
    weights: Sequence[Tensor],
    rng: Tensor,
    k: Sequence[int],
    per_tensor: bool,
    layout: Sequence[int],
    total: int,
) -> tuple[list[Tensor], Tensor]:
    """Select a uniform K-subset of the elements; packed bits for each tensor, and statistics."""
    parts = layouts(weights, layout)
    stats = _stats([topk.NOTHING] * len(parts))
    state = Rng.from_tensor(rng)
    batches = randomk.selected(parts, k, per_tensor, total, state, weights[0].device)
    return _pack(weights, batches, stats), stats


@kernel
def topk_perturb_overflow(
    weights: Sequence[Tensor],
    scores: Sequence[Tensor],
    scale: Tensor,
    rng: Tensor,
    k: Sequence[int],
    per_tensor: bool,
    score: str,
    nan: str,
    noise: str,
    update: str,
    layout: Sequence[int],
) -> Tensor:
    """Count what `topk_perturb_` would make overflow; int64, shape (number of tensors,)."""
    parts = layouts(weights, layout)
    keys = KeySource(weights, scores, score, nan)
    plan = Plan(weights, parts, Noise(scale, Rng.from_tensor(rng), noise, update))
    plan.extend(topk.selected(keys, parts, _cuts(keys, parts, k, per_tensor)))
    return torch.tensor(plan.overflow)


@kernel
def randomk_perturb_overflow(
    weights: Sequence[Tensor],
    scale: Tensor,
    rng: Tensor,
    k: Sequence[int],
    per_tensor: bool,
    noise: str,
    update: str,
    layout: Sequence[int],
    total: int,
) -> Tensor:
    """Count what `randomk_perturb_` would make overflow; int64, shape (number of tensors,)."""
    parts = layouts(weights, layout)
    state = Rng.from_tensor(rng)
    plan = Plan(weights, parts, Noise(scale, state, noise, update))
    plan.extend(randomk.selected(parts, k, per_tensor, total, state, weights[0].device))
    return torch.tensor(plan.overflow)


@kernel
def key_histogram(
    weights: Sequence[Tensor],
    scores: Sequence[Tensor],
    score: str,
    nan: str,
    row: Sequence[int],
    low: Sequence[int],
    shift: int,
    bins: int,
) -> Tensor:
    """Count keys by (key - low[row]) >> shift, and refused NaN scores; one row for each `low`."""
    return counts.key_histogram(KeySource(weights, scores, score, nan), row, low, shift, bins)


@kernel
def tie_histogram(
    weights: Sequence[Tensor],
    scores: Sequence[Tensor],
    score: str,
    nan: str,
    row: Sequence[int],
    key: Sequence[int],
    first: Sequence[int],
    shift: int,
    bins: int,
    layout: Sequence[int],
) -> Tensor:
    """Count elements whose key is key[row] by (flat index - first[row]) >> shift."""
    keys = KeySource(weights, scores, score, nan)
    return counts.tie_histogram(keys, layouts(weights, layout), row, key, first, shift, bins)


@kernel
def noise(index: Tensor, rng: Tensor, kind: str) -> Tensor:
    """Noise of unit variance that each flat index owns: fp32, the shape of `index`."""
    return noise_at(index.flatten(), Rng.from_tensor(rng), kind).view(index.shape)


@kernel
def rms(tensors: Sequence[Tensor]) -> Tensor:
    """Root mean square of each tensor: float64, shape (number of tensors,)."""
    return rms_all(tensors)
