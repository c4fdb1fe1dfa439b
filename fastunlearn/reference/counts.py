"""Histograms of keys and of ties: what several places count to find one cut together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fastunlearn.reference.keys import INFINITY, KeySource
from fastunlearn.reference.memory import Layout, Piece, chunks


def key_histogram(
    keys: KeySource, row: Sequence[int], low: Sequence[int], shift: int, bins: int
) -> Tensor:
    """Count keys in bins of equal width, and NaN scores that are refused.

    Args:
        keys: of all tensors.
        row: of the result, to which each tensor is counted.
        low: least key of each row's first bin.
        shift, bins: width of a bin in bits, and number of bins. Other keys are not counted.

    Returns:
        int64 of shape (len(low), bins + 1), on the CPU; the last column counts refused NaN.
    """
    found = torch.zeros(len(low), bins + 1, dtype=torch.int64)
    for members, to in _runs(row):
        for group in chunks([score.numel() for score in keys.scores], members):
            chunk = keys.chunk(group)
            found[to, :bins] += _binned(chunk.to(torch.int64) - low[to], shift, bins)
            if keys.refuses_nan:
                found[to, bins] += int(torch.count_nonzero(chunk > INFINITY))
    return found


def tie_histogram(
    keys: KeySource,
    parts: Sequence[Layout],
    row: Sequence[int],
    key: Sequence[int],
    first: Sequence[int],
    shift: int,
    bins: int,
) -> Tensor:
    """Count the elements with one key by their flat index.

    Args:
        keys, row, shift, bins: see `key_histogram`.
        parts: layout of all tensors.
        key: of the elements to count, for each row.
        first: least flat index of each row's first bin.

    Returns:
        int64 of shape (len(key), bins), on the CPU.
    """
    found = torch.zeros(len(key), bins, dtype=torch.int64)
    for members, to in _runs(row):
        for [piece] in _single(keys, members):
            local = (keys.piece(piece) == key[to]).nonzero().squeeze(1) + piece.start
            index = parts[piece.tensor].to_global(local)
            found[to] += _binned(index - first[to], shift, bins)
    return found


def _runs(row: Sequence[int]) -> Iterator[tuple[list[int], int]]:
    """Yield the tensors of each row."""
    for to in sorted(set(row)):
        yield [i for i, own in enumerate(row) if own == to], to


def _single(keys: KeySource, members: Sequence[int]) -> Iterator[list[Piece]]:
    numels = [score.numel() for score in keys.scores]
    for member in members:
        yield from chunks(numels, [member])


def _binned(distance: Tensor, shift: int, bins: int) -> Tensor:
    """Count distances >= 0 by bin; int64 tensor of shape (bins,), on the CPU."""
    place = distance >> shift  # of a negative one: negative
    place = place[(place >= 0) & (place < bins)]
    return torch.bincount(place, minlength=bins).cpu()
