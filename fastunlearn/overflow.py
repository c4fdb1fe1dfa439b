"""Whether noise can make a weight overflow, told without drawing it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_LARGEST = {torch.float16: 65504.0}
_MOST_NOISE = 16.0  # standard deviations; beyond every distribution of 32-bit words


def cannot_overflow(tensors: Sequence[Tensor], scale: Tensor, mode: str) -> bool:
    """Whether no weight can overflow, told by the greatest magnitude of each tensor alone.

    Args:
        tensors: weights, any strides, read only.
        scale: standard deviation of the noise in each, float64.
        mode: see `fastunlearn.strategies.Strategy`.
    """
    if mode == "zero":
        return True
    for tensor, std in zip(tensors, scale.tolist(), strict=True):
        half = _LARGEST.get(tensor.dtype, 3.38e38) / 2
        if not _MOST_NOISE * abs(std) < half:
            return False
        if tensor.numel():
            least, greatest = torch.aminmax(tensor.detach())  # at the speed of a read
            if not (-half < float(least) and float(greatest) < half):  # a NaN too
                return False
    return True
