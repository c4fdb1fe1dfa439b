"""Exact global Top-K over a list of tensors, without concatenating or sorting them.

The selected set is the first K elements in the order (key descending, flat index ascending). It is
described by a `Cut`: every key above the threshold, and the ties at the threshold up to one flat
index. So membership of an element follows from its own key and index alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastunlearn.reference.keys import INFINITY, MAGNITUDE, KeySource
from fastunlearn.reference.memory import Layout, Piece, chunks, in_order, join

_SMALL = 1 << 17  # up to here one selection over all keys at once is faster than sampling
_SAMPLE = 1 << 16  # at most, and at most one element in 2 ** _SAMPLE_SHIFT
_SAMPLE_SHIFT = 6
_LOG_INVERSE_MISS = 20.0  # the bracket misses the threshold with probability exp(-20), each side
_LOW_BITS = 15


class Cut(NamedTuple):
    """Elements with key > `key`, and those with key == `key` and flat index <= `last_tie`.

    Keys lie in [0, MAGNITUDE], as every key must that an int32 tensor is compared with.
    """

    key: int
    last_tie: int | None  # None: every tie is taken
    ties: int  # number of elements with key == `key`
    ties_taken: int


NOTHING = Cut(MAGNITUDE, -1, 0, 0)  # the greatest key, and no tie taken


class NanFoundError(Exception):
    """A NaN is among the selected; since NaN keys are the greatest, this finds any NaN at all."""


def find_cut(keys: KeySource, parts: Sequence[Layout], members: Sequence[int], k: int) -> Cut:
    """Find the cut that leaves exactly k of the members' elements.

    Args:
        keys: keys of all tensors.
        parts: layout of all tensors.
        members: list places of the tensors that take part.
        k: number of elements, 0 <= k <= total number of elements of the members.
    """
    numels = [part.numel for part in parts]
    total = sum(numels[member] for member in members)
    if k == 0:  # the lower key still takes nothing, but lets a NaN be met
        return NOTHING._replace(key=INFINITY) if keys.refuses_nan else NOTHING
    if total <= _SMALL:
        every = join([keys.chunk(group) for group in chunks(numels, members)])
        key = int(torch.kthvalue(every, total - k + 1).values)
        above, ties = _count(every, key)
    else:
        found = _bracketed(keys, numels, members, k, total)
        key, above, ties = found if found else _radix(keys, numels, members, k)
    taken = k - above
    last_tie = None if taken == ties else _last_tie(keys, parts, members, key, taken)
    return Cut(key, last_tie, ties, taken)


def _count(keys: Tensor, key: int) -> tuple[int, int]:
    """Numbers of keys above and equal to a key."""
    return int(torch.count_nonzero(keys > key)), int(torch.count_nonzero(keys == key))


def _sample(keys: KeySource, numels: Sequence[int], members: Sequence[int], total: int) -> Tensor:
    """Keys at uniformly drawn positions, descending. The draw decides speed, never the result."""
    generator = torch.Generator().manual_seed(0)
    size = min(_SAMPLE, total >> _SAMPLE_SHIFT)
    positions = torch.randint(total, (size,), generator=generator).sort().values
    ends = torch.tensor([numels[member] for member in members]).cumsum(0)
    cuts = torch.searchsorted(positions, ends).tolist()
    found, start, base = [], 0, 0
    for member, stop in zip(members, cuts, strict=True):
        if stop > start:
            local = (positions[start:stop] - base).to(keys.scores[member].device)
            found.append(keys.at(member, local))
        start, base = stop, base + numels[member]
    return torch.cat(found).sort(descending=True).values


def _bracketed(
    keys: KeySource, numels: Sequence[int], members: Sequence[int], k: int, total: int
) -> tuple[int, int, int] | None:
    """One streaming read between two sampled bounds; None where the bounds miss the threshold.

    Keys equal to a bound are counted, never collected, so that heavy ties cost no memory.

    Returns:
        Threshold key, number of keys above it, number of keys equal to it.
    """
    sample = _sample(keys, numels, members, total)
    rank = sample.numel() * k / total
    spread = _LOG_INVERSE_MISS / 3
    spread += math.sqrt(spread**2 + 2 * rank * (1 - k / total) * _LOG_INVERSE_MISS)
    first, last = math.floor(rank - spread), math.ceil(rank + spread)
    high = int(sample[first - 1]) if first >= 1 else MAGNITUDE
    low = int(sample[last - 1]) if last <= sample.numel() else -1
    above = equal_high = equal_low = 0
    inside: list[Tensor] = []
    for group in chunks(numels, members):
        chunk = keys.chunk(group)
        candidates = chunk[chunk >= low]
        inner = candidates[(candidates < high) & (candidates > low)]
        over, at_high = _count(candidates, high)
        above += over
        equal_high += at_high
        equal_low += candidates.numel() - over - at_high - inner.numel()
        inside.append(inner)
    middle = torch.cat(inside)
    return _decide(middle, k, (high, low), above, equal_high, equal_low)


def _decide(
    middle: Tensor, k: int, bounds: tuple[int, int], above: int, equal_high: int, equal_low: int
) -> tuple[int, int, int] | None:
    high, low = bounds
    if not above < k <= above + equal_high + middle.numel() + equal_low:
        return None
    if k <= above + equal_high:
        return high, above, equal_high
    above += equal_high
    if k > above + middle.numel():
        return low, above + middle.numel(), equal_low
    key = int(torch.kthvalue(middle, middle.numel() - (k - above) + 1).values)
    over, ties = _count(middle, key)
    return key, above + over, ties


def _radix(
    keys: KeySource, numels: Sequence[int], members: Sequence[int], k: int
) -> tuple[int, int, int]:
    """Exact threshold by two histograms, of the high and of the low bits; no luck involved."""
    above, prefix = 0, 0
    for shift, bins in ((_LOW_BITS, 1 << 16), (0, 1 << _LOW_BITS)):
        histogram = torch.zeros(bins, dtype=torch.int64, device=keys.scores[members[0]].device)
        for group in chunks(numels, members):
            chunk = keys.chunk(group)
            if shift == 0:
                chunk = chunk[chunk >> _LOW_BITS == prefix] & (bins - 1)
            histogram += torch.bincount(chunk >> shift, minlength=bins)
        reach = histogram.flip(0).cumsum(0)
        from_top = int(torch.searchsorted(reach, k - above))
        digit = bins - 1 - from_top
        above += int(reach[from_top - 1]) if from_top else 0
        prefix = prefix << _LOW_BITS | digit if shift == 0 else digit
    return prefix, above, int(histogram[digit])


def _last_tie(
    keys: KeySource, parts: Sequence[Layout], members: Sequence[int], key: int, need: int
) -> int:
    """Flat index of the need-th tie, lowest index first."""
    ascending = in_order([parts[member] for member in members])
    lowest = torch.empty(0, dtype=torch.int64)
    for group in chunks([part.numel for part in parts], members):
        for piece in group:
            local = (keys.piece(piece) == key).nonzero().squeeze(1) + piece.start
            if ascending and local.numel() < need:
                need -= local.numel()
                continue
            index = parts[piece.tensor].to_global(local).cpu()
            if ascending:
                return int(index[need - 1])
            lowest = torch.cat((lowest, index)).sort().values[:need]
    return int(lowest[-1])


def selected(
    keys: KeySource, parts: Sequence[Layout], cuts: Sequence[Cut]
) -> Iterator[list[tuple[int, Tensor]]]:
    """Walk the chunks and yield what the cuts select in each.

    Args:
        keys: keys of all tensors.
        parts: layout of all tensors.
        cuts: cut of each tensor.

    Yields:
        Pairs of tensor number and local element numbers, ascending: int64 of shape (m,), m > 0.

    Raises:
        NanFoundError: a NaN score was met and the key source refuses it.
    """
    for group in chunks([part.numel for part in parts], range(len(parts))):
        values = keys.chunk(group)
        hits = (values >= _thresholds(cuts, group, values.device)).nonzero().squeeze(1)
        if not hits.numel():
            continue
        values = values[hits]
        if keys.refuses_nan and int(values.max()) > INFINITY:
            raise NanFoundError
        found = list(_split(group, parts, cuts, hits, values))
        if found:  # else every hit is a tie beyond the last one taken
            yield found


def _thresholds(cuts: Sequence[Cut], group: Sequence[Piece], device: torch.device) -> int | Tensor:
    """Threshold key of a chunk: one number, or one for each element where its tensors differ."""
    found = [cuts[piece.tensor].key for piece in group]
    if min(found) == max(found):
        return found[0]
    lengths = torch.tensor([piece.stop - piece.start for piece in group])
    return torch.tensor(found).repeat_interleave(lengths).to(device)


def _split(
    group: Sequence[Piece],
    parts: Sequence[Layout],
    cuts: Sequence[Cut],
    hits: Tensor,
    values: Tensor,
) -> Iterator[tuple[int, Tensor]]:
    """Give a chunk's hits back to its tensors, less the ties beyond the last one taken."""
    ends = list(itertools.accumulate(piece.stop - piece.start for piece in group))
    bounds = torch.searchsorted(hits, torch.tensor(ends, device=hits.device)).tolist()
    begin = first = 0
    for piece, end, stop in zip(group, ends, bounds, strict=True):
        local = hits[first:stop] + (piece.start - begin)
        cut = cuts[piece.tensor]
        if local.numel() and cut.last_tie is not None:
            index = parts[piece.tensor].to_global(local)
            local = local[(values[first:stop] > cut.key) | (index <= cut.last_tie)]
        if local.numel():
            yield piece.tensor, local
        begin, first = end, stop


def count_nan(keys: KeySource, numels: Sequence[int]) -> list[int]:
    """Number of NaN keys in each tensor."""
    counts = [0] * len(numels)
    for group in chunks(numels, range(len(numels))):
        for piece in group:
            counts[piece.tensor] += int(torch.count_nonzero(keys.piece(piece) > INFINITY))
    return counts
