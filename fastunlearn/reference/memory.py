"""Flat, logical row-major access to tensors of any strides, without copying them.

A layout places a tensor's elements in the flat index space of the whole model: local element `l`
has index `base + (l // row_len) * row_stride + l % row_len`. A whole tensor has one row; a shard
of a larger tensor keeps the indices that its elements have there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

CHUNK = 1 << 20  # elements per pass; bounds every temporary that is not proportional to K


class Layout(NamedTuple):
    """Where a tensor's elements lie in the flat index space."""

    base: int
    row_len: int
    row_stride: int
    numel: int

    def to_global(self, local: Tensor) -> Tensor:
        """Flat index of each local element; int64 tensors of shape (m,)."""
        if self.row_len >= self.numel:
            return local + self.base
        row = local.div(self.row_len, rounding_mode="floor")
        return self.base + row * self.row_stride + (local - row * self.row_len)

    def to_local(self, index: Tensor) -> Tensor:
        """Local number of each flat index, -1 for those that lie in the gaps between rows."""
        relative = index - self.base
        if self.row_len >= self.numel:
            return relative
        row = relative.div(self.row_stride, rounding_mode="floor")
        column = relative - row * self.row_stride
        return torch.where(column < self.row_len, row * self.row_len + column, -1)

    @property
    def end(self) -> int:
        """One past the flat index of the last element."""
        if self.numel == 0:
            return self.base
        row, column = divmod(self.numel - 1, self.row_len)
        return self.base + row * self.row_stride + column + 1


def layouts(tensors: Sequence[Tensor], packed: Sequence[int]) -> list[Layout]:
    """Unpack the op argument `layout`: base, row_len and row_stride of each tensor in turn."""
    return [
        Layout(packed[3 * i], packed[3 * i + 1], packed[3 * i + 2], tensor.numel())
        for i, tensor in enumerate(tensors)
    ]


def in_order(parts: Sequence[Layout]) -> bool:
    """Whether walking the tensors in list order walks their flat indices in ascending order."""
    return all(part.row_len >= part.numel for part in parts) and all(
        left.end <= right.base for left, right in zip(parts, parts[1:], strict=False)
    )


class Piece(NamedTuple):
    """Elements start..stop of one tensor, numbered by its place in the list."""

    tensor: int
    start: int
    stop: int


def chunks(numels: Sequence[int], members: Sequence[int]) -> Iterator[list[Piece]]:
    """Cut the named tensors into groups of at most CHUNK elements, in order.

    Small tensors share a chunk, so that the cost of a pass does not grow with their number alone.
    """
    group: list[Piece] = []
    room = CHUNK
    for tensor in members:
        start = 0
        while start < numels[tensor]:
            stop = min(start + room, numels[tensor])
            group.append(Piece(tensor, start, stop))
            room -= stop - start
            start = stop
            if room == 0:
                yield group
                group, room = [], CHUNK
    if group:
        yield group


def _offsets(tensor: Tensor, local: Tensor) -> Tensor:
    """Distance in elements from the tensor's first element to each local element."""
    offset = torch.zeros_like(local)
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.stride()), strict=True):
        quotient = local.div(size, rounding_mode="floor")
        offset += (local - quotient * size) * stride
        local = quotient
    return offset


def _line(tensor: Tensor) -> Tensor:
    """The tensor's memory from its first to its last element, as a contiguous 1-D view."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    extent = 1 + sum((size - 1) * stride for size, stride in pairs)
    return tensor.as_strided((extent,), (1,), tensor.storage_offset())


def join(parts: list[Tensor]) -> Tensor:
    """Concatenate 1-D tensors; a single one is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def read_slice(tensor: Tensor, start: int, stop: int) -> Tensor:
    """Elements start..stop in logical order, shape (stop - start,); a view where possible."""
    if tensor.is_contiguous():
        return tensor.view(-1)[start:stop]
    if stop - start == tensor.numel():
        return tensor.reshape(-1)
    return read(tensor, torch.arange(start, stop, device=tensor.device))


def locate(tensor: Tensor, local: Tensor) -> tuple[Tensor, Tensor]:
    """A 1-D view of the tensor's memory, and the places of the given local numbers in it."""
    if tensor.is_contiguous():
        return tensor.view(-1), local
    return _line(tensor), _offsets(tensor, local)


def read(tensor: Tensor, local: Tensor) -> Tensor:
    """Gather the elements of the given local numbers; shape (m,)."""
    line, places = locate(tensor, local)
    return line[places]


def write(line: Tensor, places: Tensor, values: Tensor) -> None:
    """Scatter values (shape (m,), the tensor's dtype) to what `locate` gave, in place."""
    line[places] = values
