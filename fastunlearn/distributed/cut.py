"""The exact cut of a selection whose elements lie in several places, from counts alone.

Every place counts its own keys; the sums of the counts decide. The cut is that of
`fastunlearn.reference.topk`: all keys above a threshold, and the ties at it up to one flat index.
What a place has of the selected set is a prefix of its own elements in the order (key descending,
flat index ascending), so a number tells each place all it needs to know.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

KEY_BITS = 31
_WIDE = ((15, 1 << 16), (0, 1 << 15))
_NARROW = ((20, 1 << 11), (10, 1 << 10), (0, 1 << 10))
_INDEX_LEVELS = 3


class Counts(Protocol):
    """Counts of this place and of all places together; rows are selection problems."""

    def keys(self, low: Tensor, shift: int, bins: int) -> tuple[Tensor, Tensor]:
        """Count keys by (key - low) >> shift.

        Args:
            low: int64, shape (problems,).
            shift, bins: width of a bin in bits, and number of bins; other keys are not counted.

        Returns:
            int64 of shape (parts, bins), of this place's parts, and (problems, bins), of all.
        """
        ...

    def ties(self, key: Tensor, first: Tensor, shift: int, bins: int) -> tuple[Tensor, Tensor]:
        """Count elements with this very key by (flat index - first) >> shift; else as `keys`."""
        ...


class Share(NamedTuple):
    """What is selected here, and the cut that decides it.

    Attributes:
        here: number of selected elements of each part of this place, int64.
        key: threshold of each problem, int64, shape (problems,); -1 where nothing is selected.
        ties, ties_taken: elements of each problem whose key equals the threshold.
    """

    here: Tensor
    key: Tensor
    ties: Tensor
    ties_taken: Tensor


def find_share(counts: Counts, k: Tensor, problem: Tensor, numel: int) -> Share:
    """Find the cut that leaves exactly k elements, and this place's share of them.

    Two sums of counts (three where there are many problems), and three more where the ties at a
    threshold must be split.

    Args:
        counts: of all places.
        k: int64, shape (problems,), each at most the number of the problem's elements.
        problem: number of the problem that each part of this place belongs to, int64.
        numel: size of the flat index space.
    """
    low, above = torch.zeros_like(k), torch.zeros_like(k)
    here = torch.zeros_like(problem)
    rows = torch.arange(len(problem))
    for shift, bins in _WIDE if len(k) == 1 else _NARROW:
        own, total = counts.keys(low, shift, bins)
        greater = total.flip(1).cumsum(1).flip(1) - total  # keys in bins above each
        place = ((above[:, None] + greater) < k[:, None]).int().argmax(1)  # the lowest such bin
        above += greater.gather(1, place[:, None])[:, 0]
        reached = place[problem]
        upper = own.flip(1).cumsum(1).flip(1) - own
        here += upper[rows, reached]
        low += place << shift
    at = own[rows, place[problem]]
    ties = total.gather(1, place[:, None])[:, 0]
    taken = torch.where(k > 0, k - above, 0)
    key = torch.where(k > 0, low, -1)
    split = bool((taken < ties)[k > 0].any())
    at = _first_ties(counts, low, taken, problem, numel) if split else at
    here = torch.where(k[problem] > 0, here + at, 0)
    return Share(here, key, torch.where(k > 0, ties, 0), taken)


def _first_ties(counts: Counts, key: Tensor, need: Tensor, problem: Tensor, numel: int) -> Tensor:
    """Return how many of each problem's first `need` ties, by flat index, each part has."""
    width = -(-max(numel.bit_length(), 1) // _INDEX_LEVELS)
    first, before = torch.zeros_like(key), torch.zeros_like(key)
    rows = torch.arange(len(problem))
    here = torch.zeros_like(problem)
    for level in reversed(range(_INDEX_LEVELS)):
        own, total = counts.ties(key, first, level * width, 1 << width)
        lower = total.cumsum(1) - total  # ties in bins below each
        fits = (before[:, None] + lower) < need[:, None]
        place = (fits.sum(1) - 1).clamp(0)  # the last bin that is begun
        before += lower.gather(1, place[:, None])[:, 0]
        below = own.cumsum(1) - own
        here += below[rows, place[problem]]
        first += place << (level * width)
    return torch.where(need[problem] > 0, here + own[rows, place[problem]], 0)
