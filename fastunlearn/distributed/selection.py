"""`select` over parameters that are spread over processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastunlearn._ops import Stat, ops
from fastunlearn.distributed.agree import Together
from fastunlearn.distributed.operations import Run, device_of
from fastunlearn.distributed.shards import Sharded, layout_of, pieces, views_of
from fastunlearn.receipt import key_to_score
from fastunlearn.reference.memory import layouts
from fastunlearn.selection import unpacked
from fastunlearn.strategies import Strategy, TopK
from fastunlearn.targets import Scores


@dataclass(frozen=True)
class ShardSelection:
    """This rank's part of a selection.

    Attributes:
        strategy: what selected.
        count: number of selected elements on all ranks.
        counts: on this rank, by parameter.
        threshold: see `fastunlearn.Selection`.
    """

    strategy: Strategy
    count: int
    counts: dict[str, int]
    threshold: float | tuple[float | None, ...] | None
    _shards: Sharded = field(repr=False)
    _packed: list[Tensor] = field(repr=False)

    def masks(self) -> dict[str, Tensor]:
        """For each parameter a bool tensor of the shape of this rank's shard."""
        found: dict[str, Tensor] = {}
        packed = iter(zip(self._shards.pieces, self._packed, strict=True))
        described = zip(self._shards.names, self._shards.shapes, self._shards.boxes, strict=True)
        for name, shape, (box, offset) in described:
            mask = torch.zeros(box, dtype=torch.bool)
            for view, _, _ in pieces(mask, mask, shape, offset):
                piece, bits = next(packed)
                view.copy_(unpacked(bits, piece.view.shape))
            found[name] = mask
        return found

    def indices(self) -> Tensor:
        """Flat indices, in the full model, of what this rank has: int64, ascending."""
        views, found = views_of(self._shards), [torch.empty(0, dtype=torch.int64)]
        parts = layouts(views, layout_of(self._shards))
        for view, bits, part in zip(views, self._packed, parts, strict=True):
            local = unpacked(bits, view.shape).flatten().nonzero().squeeze(1)
            found.append(part.to_global(local).cpu())
        return torch.cat(found)  # pieces come in the order of their indices


def select(
    target: Any,
    strategy: Strategy,
    *,
    scores: Scores | None = None,
    seed: int | None = None,
    step: int = 0,
    group: dist.ProcessGroup | None = None,
) -> ShardSelection:
    """Select the elements that `perturb_` would change under the same arguments.

    Every rank of the group calls it, with its own shards. Nothing is written. Three small
    collectives for Top-K, three more where the ties at the threshold must be split; one for
    Random-k.

    Args:
        target, strategy, scores, seed, step, group: see `perturb_`.

    Returns:
        What this rank has of the one selection, on the CPU.

    Raises:
        PlanError, PeerError, TypeError, ValueError: as for `perturb_`.
    """
    if not isinstance(target, (nn.Module, Mapping)):
        target = list(target)
    run = Run(Together("select", group, device_of(target)), strategy, step, True)
    run.plan(target, scores, seed)
    shards, names = run.shards, run.shards.names
    views, layout = views_of(shards), layout_of(shards)
    keys: list[int] = []
    packed: list[Tensor] = []
    stats = torch.zeros(0, len(Stat), dtype=torch.int64)
    if isinstance(strategy, TopK):
        share, here = run.share()
        keys = share.key.tolist()
        if views:
            own = [piece.score for piece in shards.pieces]
            ranked = (here, run.per_tensor, run.kind, strategy.nan)
            packed, stats = ops.topk_select(views, own, *ranked, layout)
    elif views:
        drawn = (run.rng(), run.k_of_pieces, run.per_tensor)
        packed, stats = ops.randomk_select(views, *drawn, layout, shards.numel)
    counts = dict.fromkeys(names, 0)
    for piece, count in zip(shards.pieces, stats[:, Stat.SELECTED].tolist(), strict=True):
        counts[names[piece.parameter]] += count
    threshold = tuple(map(key_to_score, keys)) if run.per_tensor and keys else None
    return ShardSelection(
        strategy=strategy,
        count=sum(run.k),
        counts=counts,
        threshold=threshold if run.per_tensor or not keys else key_to_score(keys[0]),
        _shards=shards,
        _packed=[bits.cpu() for bits in packed],
    )
