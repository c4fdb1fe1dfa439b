"""Root mean square of each tensor, exact enough to be independent of the order of summation.

Floating-point sums depend on the order, hence on threads and sharding. Here each |w| is scaled by
the power of two that brings the greatest below 2**30, rounded to an integer, squared exactly, and
summed in integers (high and low halves of 32 bits apart). Only the last square root rounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastunlearn.reference.memory import Piece, chunks, read_slice

_BITS = 30


def _magnitudes(tensor: Tensor, piece: Piece) -> Tensor:
    return read_slice(tensor, piece.start, piece.stop).to(torch.float32).abs()


def rms(tensor: Tensor) -> float:
    """Root mean square of a tensor; relative error below 2**-30 of the greatest magnitude.

    Args:
        tensor: any floating dtype and strides; float64 is rounded to fp32 first.

    Returns:
        The root mean square as a double; 0 for an empty tensor, NaN or infinity where the tensor
        holds one.
    """
    groups = [group[0] for group in chunks([tensor.numel()], [0])]
    greatest = max((float(_magnitudes(tensor, piece).max()) for piece in groups), default=0.0)
    if any(bool(_magnitudes(tensor, piece).isnan().any()) for piece in groups):
        return math.nan
    if greatest == 0.0 or math.isinf(greatest):
        return greatest
    shift = _BITS - math.frexp(greatest)[1]
    total = 0
    for piece in groups:
        # float64 holds the product by a power of two exactly, for every fp32 value and shift
        scaled = (_magnitudes(tensor, piece).to(torch.float64) * 2.0**shift).round().to(torch.int64)
        square = scaled * scaled
        total += (int((square >> 32).sum()) << 32) + int((square & 0xFFFFFFFF).sum())
    return math.ldexp(math.sqrt(total / tensor.numel()), -shift)


def rms_all(tensors: Sequence[Tensor]) -> Tensor:
    """Root mean square of each tensor: float64 tensor of shape (number of tensors,)."""
    return torch.tensor([rms(tensor) for tensor in tensors], dtype=torch.float64)
