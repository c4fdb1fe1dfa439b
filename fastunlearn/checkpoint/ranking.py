"""The scores of a checkpoint on disk: the one cut that they give, and each slice's share of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from fastunlearn._ops import ops
from fastunlearn.checkpoint.files import Checkpoint
from fastunlearn.checkpoint.header import DTYPES
from fastunlearn.checkpoint.stream import Digest, Piece, Ring, Run, Slice, ahead, read_slice, runs

_KEY_BITS = 31
_UPPER_BITS = 15  # below the upper 16 bits of a key, which are all that a bfloat16 has
_SAMPLED_FROM = 1 << 28  # elements; below, a second pass costs less than it takes to sample
_BLOCKS, _BLOCK = 1 << 13, 128
_READERS = 16  # threads that sample; they mostly wait for the disk
_BRACKET_BINS = 1 << 20
# The bracket's half width in standard deviations of an independent sample; neighbours are alike.
_DEVIATIONS = 24.0


class Cut(NamedTuple):
    """The elements of one selection problem that are selected.

    Those with a key above `key`, and the first `ties_taken` with this key by flat index.

    Attributes:
        key: -1 where nothing is selected.
        ties, ties_taken: elements with this key, and how many of them are selected.
    """

    key: int
    ties: int
    ties_taken: int


class Ranking:
    """Finds the cut of the scores, in one pass over them where it can, else in two.

    Args:
        scores: a checkpoint that holds them under the names of the tensors.
        names: of the tensors that take part, in the order of their flat indices.
        nan: see `fastunlearn.TopK`.
        most_bytes: of a run.

    Attributes:
        digest: of the scores that take part, once all were read.
    """

    def __init__(self, scores: Checkpoint, names: Sequence[str], nan: str, most_bytes: int) -> None:
        self.scores, self.names, self.nan, self.most_bytes = scores, names, nan, most_bytes
        self.digest = Digest()
        self._ring = Ring(2, most_bytes)
        self._cuts: dict[str, Cut] = {}
        self._left: dict[str, list[int]] = {}  # ties still to be taken, shared in a problem

    def find(self, k: Sequence[int], per_tensor: bool) -> None:
        """Find the cut that holds for each tensor.

        Args:
            k: number of elements to select; one for each tensor where `per_tensor`.

        Raises:
            ValueError: NaN scores, where they are refused.
        """
        problems = [[name] for name in self.names] if per_tensor else [list(self.names)]
        for members, own in zip(problems, k, strict=True):
            cut = self._cut(set(members), own)
            self._cuts.update(dict.fromkeys(members, cut))
            self._left.update(dict.fromkeys(members, [cut.ties_taken]))

    def cut(self, name: str) -> Cut:
        """The cut that holds for a tensor."""
        return self._cuts[name]

    def take(self, parts: Sequence[Slice], values: list[Tensor]) -> list[int]:
        """Count what each slice has of the selected set. Every slice comes once, in order.

        Args:
            parts, values: slices, and their scores.
        """
        cuts = [self._cuts[part.name] for part in parts]
        every = (values, values, "grad", self.nan, list(range(len(parts))))
        low = [cut.key for cut in cuts]
        ties = ops.key_histogram(*every, low, 0, 1)[:, 0].tolist()
        above = ops.key_histogram(*every, [key + 1 for key in low], _KEY_BITS, 1)[:, 0].tolist()
        found = []
        for part, cut, own, more in zip(parts, cuts, above, ties, strict=True):
            left = self._left[part.name]
            taken = min(left[0], more)
            left[0] -= taken
            found.append(own + taken if cut.key >= 0 else 0)
        return found

    def _cut(self, names: set[str], k: int) -> Cut:
        low = self._bracket(names, k)
        if low is not None:
            counts, above = self._count(names, low, 0, _BRACKET_BINS)
            if above < k <= above + int(counts.sum()):
                return _decide(counts, above, low, k)[0]
        counts, above = self._count(names, 0, _UPPER_BITS, 1 << _KEY_BITS - _UPPER_BITS)
        cut, above = _decide(counts, above, 0, k)
        exact = self.nan == "error" and all(self._dtype(name) == "BF16" for name in names)
        if exact or cut.key < 0:
            return cut._replace(key=cut.key << _UPPER_BITS) if cut.key >= 0 else cut
        low = cut.key << _UPPER_BITS
        return _decide(self._count(names, low, 0, 1 << _UPPER_BITS)[0], above, low, k)[0]

    def _dtype(self, name: str) -> str:
        return self.scores.tensors[name].entry.dtype

    def _count(self, names: set[str], low: int, shift: int, bins: int) -> tuple[Tensor, int]:
        """Count keys by (key - low) >> shift, in int64 of shape (bins,), and those above."""
        counts = torch.zeros(bins + 1, dtype=torch.int64)
        above, end = 0, low + (bins << shift)
        jobs = (self._reader(run) for run in runs(self.scores, self.most_bytes, names))
        with ThreadPoolExecutor(1, "fastunlearn-digest") as hasher:
            for piece in ahead(jobs):
                hashed = hasher.submit(self.digest.add_all, piece)
                values = [piece.elements(part) for part in piece.run.slices if part.numel]
                every = (values, values, "grad", self.nan, [0] * len(values))
                counts += ops.key_histogram(*every, [low], shift, bins)[0]
                if end >> _KEY_BITS == 0:
                    above += int(ops.key_histogram(*every, [end], _KEY_BITS, 1)[0, 0])
                hashed.result()
        refused = int(counts[bins])
        if refused:
            raise ValueError(
                f"perturb: scores must not be NaN, got {refused} NaN; nan='largest' or "
                "nan='smallest' accepts them"
            )
        return counts[:bins], above

    def _reader(self, run: Run) -> Callable[[], Piece]:
        return lambda: Piece(self.scores, run, self._ring)

    def _bracket(self, names: set[str], k: int) -> int | None:
        """Draw keys and return the least of the `_BRACKET_BINS` around the threshold, or None.

        The draw decides the number of passes, never the result.
        """
        sizes = {name: self.scores.tensors[name].entry.numel for name in self.names}
        total = sum(sizes[name] for name in names)
        if total < _SAMPLED_FROM or k == 0:
            return None
        if self.nan != "error" or all(self._dtype(name) == "BF16" for name in names):
            return None
        with ThreadPoolExecutor(_READERS) as pool:
            blocks = list(pool.map(lambda at: read_slice(self.scores, *at), self._places(sizes)))
        keys = torch.cat(blocks).to(torch.float32).view(torch.int32) & ((1 << _KEY_BITS) - 1)
        keys = keys.sort(descending=True).values
        rank = len(keys) * k / total
        spread = _DEVIATIONS * math.sqrt(max(rank * (1 - k / total), 1.0))
        most, least = (
            int(keys[min(max(round(rank + side * spread), 0), len(keys) - 1)]) for side in (-1, 1)
        )
        if most - least >= _BRACKET_BINS:
            return None
        return max(0, (most + least - _BRACKET_BINS) // 2)

    def _places(self, sizes: dict[str, int]) -> Iterator[tuple[str, int, int]]:
        """Yield name, first element and number of elements of blocks drawn at random."""
        source = torch.Generator().manual_seed(0)
        names = [name for name, size in sizes.items() if size]
        share = torch.tensor([float(sizes[name]) for name in names])
        chosen = torch.multinomial(share, _BLOCKS, replacement=True, generator=source).sort().values
        where = torch.rand(_BLOCKS, generator=source, dtype=torch.float64).tolist()
        for number, place in zip(chosen.tolist(), where, strict=True):
            size = sizes[names[number]]
            first = int(place * max(size - _BLOCK, 0))
            yield names[number], first, min(_BLOCK, size)


def _decide(counts: Tensor, above: int, low: int, k: int) -> tuple[Cut, int]:
    """Find the bin of the k-th greatest key.

    Args:
        counts: of keys in ascending bins, int64, shape (bins,).
        above: number of keys above all bins.
        low: number of the first bin.

    Returns:
        The cut, as if the bin were a single key, and the number of keys above it.
    """
    if k == 0:
        return Cut(-1, 0, 0), 0
    greater = above + counts.flip(0).cumsum(0).flip(0) - counts
    place = int((greater < k).int().argmax())  # the lowest bin with fewer than k keys above it
    over, ties = int(greater[place]), int(counts[place])
    return Cut(low + place, ties, k - over), over


def check_scores(scores: Checkpoint, checkpoint: Checkpoint, names: Sequence[str]) -> None:
    """Refuse scores that do not fit the tensors they are for.

    Raises:
        ValueError: a shape differs, or the dtype is none of a score.
    """
    for name in names:
        wanted, found = checkpoint.tensors[name].entry, scores.tensors[name].entry
        if found.dtype not in DTYPES:
            kinds = ", ".join(DTYPES)
            raise ValueError(f"perturb: scores[{name!r}] must be {kinds}, got {found.dtype}")
        if wanted.shape != found.shape:
            raise ValueError(
                f"perturb: scores[{name!r}] must have shape {wanted.shape}, got {found.shape}"
            )
