"""Stochastic rounding of fp32 to 16-bit types, by one random word for each value.

A value between two numbers of the type becomes the one farther from zero where its word is below
the fraction of the gap that it has gone, in units of 2**-32 cut off, and the nearer one elsewhere.
So the expected result is the value itself, to 2**-32 of the gap, and a value that the type holds
keeps its bits. From the greatest finite number on, the next one is infinity.
"""

from __future__ import annotations

import torch
from torch import Tensor

TYPES = (torch.bfloat16, torch.float16)


def round_stochastically(x: Tensor, words: Tensor, dtype: torch.dtype) -> Tensor:
    """Round to a 16-bit type.

    Args:
        x: fp32, shape (m,); NaN gives NaN.
        words: int64, shape (m,), each entry in [0, 2**32).
        dtype: one of `TYPES`.

    Returns:
        `dtype`, shape (m,).
    """
    bits = x.masked_fill(x.isnan(), torch.nan).view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    gaps, fraction = _bfloat16(bits) if dtype == torch.bfloat16 else _float16(bits)
    raw = gaps + (words < fraction) | bits >> 16 & 0x8000
    return raw.to(torch.int16).view(dtype)


def _bfloat16(bits: Tensor) -> tuple[Tensor, Tensor]:
    """Magnitude cut off to storage bits, and what was cut off in units of 2**-32 of the gap."""
    return bits >> 16 & 0x7FFF, (bits & 0xFFFF) << 16


def _float16(bits: Tensor) -> tuple[Tensor, Tensor]:
    """The same. In gaps of its own size a value is mantissa / 2**shift."""
    magnitude = bits & 0x7FFFFFFF
    exponent = magnitude >> 23
    mantissa = (magnitude & 0x7FFFFF) + 0x800000
    shift = (126 - exponent).clamp(13, 56)  # 2**-56 of a gap, and all below, count as 0
    gaps = (exponent - 113).clamp_(min=0) * 1024 + (mantissa >> shift)
    fraction = (mantissa << 32 >> shift) & 0xFFFFFFFF
    infinite = magnitude >= 0x47800000  # 2**16
    gaps = gaps.masked_fill_(infinite, 0x7C00).masked_fill_(magnitude > 0x7F800000, 0x7E00)
    return gaps, fraction.masked_fill_(infinite, 0)
