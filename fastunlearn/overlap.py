"""Exact tests for tensors whose elements share memory, whatever their strides."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def overlaps_itself(tensor: Tensor) -> bool:
    """Whether two elements of the tensor have the same address."""
    if tensor.numel() < 2 or tensor.is_contiguous():
        return False
    steps = sorted(
        (stride, size)
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
        if size > 1
    )
    extent = 1 + sum(stride * (size - 1) for stride, size in steps)
    if extent < tensor.numel():
        return True  # more elements than addresses; this also bounds the list made below
    reach = 0
    for stride, size in steps:
        if stride <= reach:
            break
        reach += stride * (size - 1)
    else:
        return False  # each dimension steps over everything the smaller ones reach
    offsets = torch.zeros(1, dtype=torch.int64)
    for stride, size in steps:
        offsets = (offsets.unsqueeze(1) + torch.arange(size) * stride).flatten()
    return bool(torch.unique(offsets).numel() < offsets.numel())


def _bounds(tensor: Tensor) -> tuple[int, int]:
    """Addresses of the first byte and of one past the last byte."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    extent = 1 + sum((size - 1) * stride for size, stride in pairs)
    start = tensor.data_ptr()
    return start, start + extent * tensor.element_size()


class _Footprint:
    """The addresses of a tensor, for numpy to solve on; the memory is never read."""

    def __init__(self, tensor: Tensor) -> None:
        size = tensor.element_size()
        self.__array_interface__ = {
            "version": 3,
            "typestr": f"|V{size}",
            "data": (tensor.data_ptr(), True),
            "shape": tuple(tensor.shape),
            "strides": tuple(stride * size for stride in tensor.stride()),
        }


def overlapping_pair(tensors: Sequence[Tensor]) -> tuple[int, int] | None:
    """Find two tensors that share an address.

    Returns:
        Their places in the list, or None. Bounds are compared first; numpy's exact solver decides
        only for tensors whose bounds interleave, such as column slices of one matrix.
    """
    spans = sorted((*_bounds(t), i) for i, t in enumerate(tensors) if t.numel())
    open_spans: list[tuple[int, int]] = []
    for start, stop, i in spans:
        open_spans = [(end, j) for end, j in open_spans if end > start]
        for _, j in open_spans:
            if np.shares_memory(_array(tensors[i]), _array(tensors[j])):
                return min(i, j), max(i, j)
        open_spans.append((stop, i))
    return None


def _array(tensor: Tensor) -> np.ndarray:
    return np.asarray(_Footprint(tensor))
