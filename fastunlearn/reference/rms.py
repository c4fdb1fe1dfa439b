"""Root mean square of each tensor, exact enough to be independent of the order of summation.

Floating-point sums depend on the order, hence on threads and sharding. Here each |w| is scaled by
the power of two that brings the greatest below 2**30, rounded to an integer, squared exactly, and
summed in integers (high and low halves of 32 bits apart). Only the last square root rounds.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from fastunlearn.reference.keys import INFINITY
from fastunlearn.reference.memory import Piece, chunks, read_slice

_BITS = 30


def key_to_float(bits: int) -> float:
    """Return the fp32 value of some bits; one NaN for all of them."""
    return math.nan if bits > INFINITY else float(struct.unpack("<f", struct.pack("<i", bits))[0])


def _magnitudes(tensor: Tensor, piece: Piece) -> Tensor:
    return read_slice(tensor, piece.start, piece.stop).to(torch.float32).abs()


def greatest_bits(tensor: Tensor) -> int:
    """Return the bits of the greatest fp32 magnitude; those of a NaN are the greatest of all."""
    greatest = 0
    for [piece] in chunks([tensor.numel()], [0]):
        bits = _magnitudes(tensor, piece).contiguous().view(torch.int32)
        greatest = max(greatest, int(bits.max()))
    return greatest


def shift_of(greatest: float) -> int:
    """Return the power of two that brings a finite magnitude > 0 below 2**30."""
    return _BITS - math.frexp(greatest)[1]


def square_sums(tensor: Tensor, shift: int) -> tuple[int, int]:
    """Return the exact sum of the scaled, rounded squares: high and low 32-bit halves, apart."""
    high = low = 0
    for [piece] in chunks([tensor.numel()], [0]):
        # float64 holds the product by a power of two exactly, for every fp32 value and shift
        scaled = (_magnitudes(tensor, piece).to(torch.float64) * 2.0**shift).round().to(torch.int64)
        square = scaled * scaled
        high += int((square >> 32).sum())
        low += int((square & 0xFFFFFFFF).sum())
    return high, low


def root(high: int, low: int, count: int, shift: int) -> float:
    """Return the root mean square of `count` elements from their sums."""
    return math.ldexp(math.sqrt(((high << 32) + low) / count), -shift)


def rms(tensor: Tensor) -> float:
    """Root mean square of a tensor; relative error below 2**-30 of the greatest magnitude.

    Args:
        tensor: any floating dtype and strides; float64 is rounded to fp32 first.

    Returns:
        The root mean square as a double; 0 for an empty tensor, NaN or infinity where the tensor
        holds one.
    """
    greatest = key_to_float(greatest_bits(tensor))
    if not 0.0 < greatest < math.inf:
        return greatest
    shift = shift_of(greatest)
    return root(*square_sums(tensor, shift), tensor.numel(), shift)


def rms_all(tensors: Sequence[Tensor]) -> Tensor:
    """Root mean square of each tensor: float64 tensor of shape (number of tensors,)."""
    return torch.tensor([rms(tensor) for tensor in tensors], dtype=torch.float64)
