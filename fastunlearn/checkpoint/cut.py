"""Finds the one cut of a checkpoint's scores, and what each slice has of the selected set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastunlearn._ops import ops
from fastunlearn.checkpoint import stream
from fastunlearn.checkpoint.files import Checkpoint
from fastunlearn.checkpoint.header import DTYPES
from fastunlearn.checkpoint.stream import Digest, Piece, Run, Slice, ahead, runs
from fastunlearn.cut import KEY_BITS, find_share


class Cut(NamedTuple):
    """The elements of one selection problem that are selected.

    Those with a key above `key`, and those with this key and a flat index of at most `last`.

    Attributes:
        key: -1 where nothing is selected.
        last: a flat index.
        ties, ties_taken: elements with this key, and how many of them are selected.
    """

    key: int
    last: int
    ties: int
    ties_taken: int


class Scores:
    """The scores of a checkpoint's tensors, on disk.

    Args:
        checkpoint: holds them under the names of the tensors.
        base: flat index of the first element of each tensor that takes part, by name.
        numel: size of the flat index space.
        nan: see `fastunlearn.TopK`.
        most_bytes: of a run.

    Attributes:
        digest: of the scores that take part, once all were read.
    """

    def __init__(
        self, checkpoint: Checkpoint, base: dict[str, int], numel: int, nan: str, most_bytes: int
    ) -> None:
        self.checkpoint, self.base, self.numel = checkpoint, base, numel
        self.nan, self.most_bytes = nan, most_bytes
        self.digest = Digest()

    def cuts(self, k: Sequence[int], per_tensor: bool) -> dict[str, Cut]:
        """Find the cut that holds for each tensor.

        Args:
            k: number of elements to select; one for each tensor where `per_tensor`.

        Raises:
            ValueError: NaN scores, where they are refused.
        """
        if not per_tensor:
            return dict.fromkeys(self.base, self._cut(set(self.base), k[0]))
        return {name: self._cut({name}, own) for name, own in zip(self.base, k, strict=True)}

    def _cut(self, names: set[str], k: int) -> Cut:
        counts = _Counts(self, names)
        nothing = torch.zeros(0, dtype=torch.int64)
        share = find_share(counts, torch.tensor([k]), nothing, self.numel)
        return Cut(int(share.key), int(share.last), int(share.ties), int(share.ties_taken))

    def layout(self, parts: Sequence[Slice]) -> list[int]:
        """The op argument `layout` of some slices."""
        found: list[int] = []
        for part in parts:
            found += (self.base[part.name] + part.first, part.numel, part.numel)
        return found

    def here(self, parts: Sequence[Slice], values: list[Tensor], cuts: dict[str, Cut]) -> list[int]:
        """Count what each slice has of the selected set.

        Args:
            parts, values: slices, and their scores.
        """
        every = range(len(parts))
        first = [self.base[part.name] + part.first for part in parts]
        wanted = [cuts[part.name] for part in parts]
        kind = (values, values, "grad", self.nan)
        split = [cut.key >= 0 and cut.ties_taken < cut.ties for cut in wanted]
        # the tie keys too, where all of them are taken; those of a negative key count for nothing
        low = [cut.key + own for cut, own in zip(wanted, split, strict=True)]
        counted = ops.key_histogram(*kind, list(every), low, KEY_BITS, 1)[:, 0]
        if any(split):
            key = [cut.key if own else -1 for cut, own in zip(wanted, split, strict=True)]
            shared = ((stream.SEGMENT - 1).bit_length(), 1, self.layout(parts))
            counted += ops.tie_histogram(*kind, list(every), key, first, *shared)[:, 0]
            after = [max(cut.last + 1, own) for cut, own in zip(wanted, first, strict=True)]
            counted -= ops.tie_histogram(*kind, list(every), key, after, *shared)[:, 0]
        return [
            number if cut.key >= 0 else 0
            for cut, number in zip(wanted, counted.tolist(), strict=True)
        ]


class _Counts:
    """See `fastunlearn.cut.Counts`; one place, whose parts are of no interest."""

    def __init__(self, scores: Scores, names: set[str]) -> None:
        self.scores, self.names = scores, names

    def keys(self, low: Tensor, shift: int, bins: int) -> tuple[Tensor, Tensor]:
        total = torch.zeros(1, bins + 1, dtype=torch.int64)
        for parts, values in self._walk():
            kind = (values, values, "grad", self.scores.nan, [0] * len(parts))
            total += ops.key_histogram(*kind, low.tolist(), shift, bins)
        refused = int(total[0, bins])
        if refused:
            raise ValueError(
                f"perturb: scores must not be NaN, got {refused} NaN; nan='largest' or "
                "nan='smallest' accepts them"
            )
        return total[:0, :bins], total[:, :bins]

    def ties(self, key: Tensor, first: Tensor, shift: int, bins: int) -> tuple[Tensor, Tensor]:
        total = torch.zeros(1, bins, dtype=torch.int64)
        for parts, values in self._walk():
            kind = (values, values, "grad", self.scores.nan, [0] * len(parts))
            at = (key.tolist(), first.tolist())
            total += ops.tie_histogram(*kind, *at, shift, bins, self.scores.layout(parts))
        return total[:0], total

    def _walk(self) -> Iterator[tuple[list[Slice], list[Tensor]]]:
        """Yield slices and their scores."""
        scores = self.scores
        pieces = ahead(
            self._reader(run) for run in runs(scores.checkpoint, scores.most_bytes, self.names)
        )
        for piece in pieces:
            parts = [part for part in piece.run.slices if part.numel]
            yield parts, [piece.elements(part) for part in parts]

    def _reader(self, run: Run) -> Callable[[], Piece]:
        scores = self.scores

        def read() -> Piece:
            piece = Piece(scores.checkpoint, run)
            for part in run.slices:
                if part.name not in scores.digest.tensors:
                    scores.digest.add(part, piece.raw(part))
            return piece

        return read


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
