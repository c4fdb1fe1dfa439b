"""What the ranks count together: keys, ties, squares."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastunlearn._ops import ops
from fastunlearn.distributed.agree import Together
from fastunlearn.distributed.shards import Sharded, layout_of, views_of
from fastunlearn.reference import rms
from fastunlearn.reference.keys import INFINITY


class Counter:
    """Counts keys and ties of this rank, and sums them over all ranks."""

    def __init__(
        self, together: Together, shards: Sharded, kind: str, nan: str, per_tensor: bool
    ) -> None:
        self.together, self.kind, self.nan = together, kind, nan
        self.views, self.layout = views_of(shards), layout_of(shards)
        self.scores = [piece.score for piece in shards.pieces]
        self.owned = torch.tensor([piece.owned for piece in shards.pieces], dtype=torch.bool)
        owner = torch.tensor([piece.parameter for piece in shards.pieces], dtype=torch.int64)
        self.problems = len(shards.names) if per_tensor else 1
        # Parts: each piece where tensors are problems of their own, else what this rank counts for
        # all, and what it has beside.
        self.problem = owner if per_tensor else torch.zeros(2, dtype=torch.int64)
        self.counted = self.owned if per_tensor else torch.tensor([True, False])
        self.row = list(range(len(owner))) if per_tensor else (~self.owned).int().tolist()
        self.checked = nan != "error"

    def keys(self, low: Tensor, shift: int, bins: int) -> tuple[Tensor, Tensor]:
        """See `cut.Counts`; refuses NaN on all ranks."""
        own = torch.zeros(len(self.problem), bins + 1, dtype=torch.int64)

        def count() -> Tensor:
            if self.views:
                at = low[self.problem].tolist()
                ranked = (self.views, self.scores, self.kind, self.nan)
                own.copy_(ops.key_histogram(*ranked, self.row, at, shift, bins))
            return self._counted(own)

        total = self.together.sum((self.problems, bins + 1), count).cpu()
        refused = int(total[:, bins].sum())
        if refused:
            raise ValueError(
                f"{self.together.op}: scores must not be NaN, got {refused} NaN on all ranks "
                "together; nan='largest' or nan='smallest' accepts them"
            )
        return own[:, :bins], total[:, :bins]

    def ties(self, key: Tensor, first: Tensor, shift: int, bins: int) -> tuple[Tensor, Tensor]:
        """See `cut.Counts`."""
        own = torch.zeros(len(self.problem), bins, dtype=torch.int64)

        def count() -> Tensor:
            if self.views:
                ranked = (self.views, self.scores, self.kind, self.nan, self.row)
                at = (key[self.problem].tolist(), first[self.problem].tolist())
                own.copy_(ops.tie_histogram(*ranked, *at, shift, bins, self.layout))
            return self._counted(own)

        return own, self.together.sum((self.problems, bins), count).cpu()

    def _counted(self, own: Tensor) -> Tensor:
        """Add up by problem what this rank counts for all."""
        total = torch.zeros(self.problems, own.shape[1], dtype=torch.int64)
        return total.index_add_(0, self.problem[self.counted], own[self.counted])


def root_mean_squares(together: Together, shards: Sharded) -> Tensor:
    """Root mean square of each whole parameter: float64. The same bits as that of one process."""
    count = len(shards.names)
    owned = [piece for piece in shards.pieces if piece.owned]

    def greatest() -> Tensor:
        found = [0] * count
        for piece in owned:
            found[piece.parameter] = max(found[piece.parameter], rms.greatest_bits(piece.view))
        return torch.tensor(found)

    bits = together.greatest((count,), greatest).tolist()
    top = [rms.key_to_float(value) for value in bits]
    usual = [0 < value < INFINITY for value in bits]

    def sums() -> Tensor:
        found = torch.zeros(count, 2, dtype=torch.int64)
        for piece in owned:
            at = piece.parameter
            if usual[at]:
                shift = rms.shift_of(top[at])
                found[at] += torch.tensor(rms.square_sums(piece.view, shift))
        return found

    halves = together.sum((count, 2), sums).tolist()
    found = top
    for at, ((high, low), shape) in enumerate(zip(halves, shards.shapes, strict=True)):
        if usual[at]:
            found[at] = rms.root(high, low, math.prod(shape), rms.shift_of(top[at]))
    return torch.tensor(found, dtype=torch.float64)
