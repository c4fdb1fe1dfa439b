"""Philox words to noise of unit variance, bit for bit the same on every IEEE-754 machine.

Every step is one fp32 add, subtract, multiply, divide or square root, rounded once, or an integer
operation. There is no libm call, no fused multiply-add and no fast-math form, so any backend that
performs the same steps in the same order returns the same bits.

A word `x` in [0, 2**32) stands for the probability `(x + 0.5) / 2**32`. It is folded at the median,
`v = x - 2**31` where that is not negative and `v = 2**31 - 1 - x` elsewhere, which makes every
distribution exactly symmetric: `z(~x) == -z(x)`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fastunlearn.reference.philox import STREAM_NOISE, Rng, words

_HALF_RANGE = 1 << 31
_BATCH = 1 << 16  # elements per pass: keeps the temporaries of the polynomials in the cache


def _f32(*values: float) -> tuple[float, ...]:
    """Round constants to fp32 once, as a C++ `f` suffix does."""
    return tuple(float(np.float32(value)) for value in values)


# AS241 PPND7 (Wichura 1988): central ratio in 0.180625 - q^2, tail ratio in sqrt(-log p) - 1.6.
_A = _f32(3.3871327179e0, 5.0434271938e1, 1.5929113202e2, 5.9109374720e1)
_B = _f32(1.0, 1.7895169469e1, 7.8757757664e1, 6.7187563600e1)
_C = _f32(1.4234372777e0, 2.7568153900e0, 1.3067284816e0, 1.7023821103e-1)
_D = _f32(1.0, 7.3700164250e-1, 1.2021132975e-1)
_SPLIT, _CENTRE, _SHIFT = _f32(0.425, 0.180625, 1.6)
# log: atanh series 2s + s^3 (2/3 + 2/5 s^2 + ...); ln 2 in two parts, the first with zeros below.
_ATANH = _f32(2 / 3, 2 / 5, 2 / 7, 2 / 9)
_LN2_HIGH, _LN2_LOW = _f32(0.693145751953125, 1.42860682030941723212e-6)
_SQRT_HALF_BITS = 0x3F3504F3
_UNIFORM_SCALE, _LAPLACE_SCALE = _f32(2 * 3**0.5, 0.5**0.5)


def _horner(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """Evaluate c0 + x (c1 + x (c2 + ...)), one rounding for each multiply and each add."""
    result = x * coefficients[-1]
    for coefficient in coefficients[-2:0:-1]:
        result = result.add_(coefficient).mul_(x)
    return result.add_(coefficients[0])


def _log(x: Tensor) -> Tensor:
    """Natural logarithm of normal positive fp32 values, within 2 units in the last place."""
    bits = x.view(torch.int32)
    exponent = (bits - _SQRT_HALF_BITS) >> 23  # so that the mantissa lies in [sqrt(1/2), sqrt(2))
    mantissa = (bits - (exponent << 23)).view(torch.float32)
    s = (mantissa - 1.0).div_(mantissa + 1.0)
    s2 = s * s
    series = _horner(s2, _ATANH).mul_(s2).mul_(s)
    scale = exponent.to(torch.float32)
    low = series.add_(scale * _LN2_LOW)
    return (s + s).add_(low).add_(scale * _LN2_HIGH)


def _sqrt(x: Tensor) -> Tensor:
    """Correctly rounded fp32 square root.

    `torch.sqrt` may call a vector library that is off by one unit in the last place. A root in
    fp64 with that error still rounds right: for x in [1, 4) the root of an fp32 number keeps
    2**-50 away from the midpoint of two fp32 numbers.
    """
    return x.to(torch.float64).sqrt_().to(torch.float32)


def _fold(word: Tensor) -> tuple[Tensor, Tensor]:
    """Fold words at the median: (below the median, integer distance v from it in [0, 2**31))."""
    signed = word - _HALF_RANGE
    below = signed < 0
    return below, torch.where(below, -1 - signed, signed)


def _to_unit(v: Tensor, exponent: int) -> Tensor:
    """(v + 0.5) * 2**exponent in fp32: one rounding for the conversion, one for the add."""
    return v.to(torch.float32).add_(0.5).mul_(2.0**exponent)


def normal(word: Tensor) -> Tensor:
    """Standard normal quantile of each word, by AS241 PPND7 in fp32; |error| < 1.7e-6.

    Args:
        word: int64 tensor of shape (m,), each entry in [0, 2**32).

    Returns:
        fp32 tensor of shape (m,), in [-6.34, 6.34]; never 0, NaN or infinite.

    Source: Wichura, "Algorithm AS 241: the percentage points of the normal distribution",
    Applied Statistics 37 (1988). Its far-tail branch is not needed: p >= 2**-33.
    """
    below, v = _fold(word)
    q = _to_unit(v, -32)
    r = _CENTRE - q * q
    z = _horner(r, _A).mul_(q).div_(_horner(r, _B))
    tail = (q > _SPLIT).nonzero().squeeze(1)  # 15 % of all words
    p = _to_unit(_HALF_RANGE - 1 - v[tail], -32)
    t = _sqrt(_log(p).neg_()).sub_(_SHIFT)
    z[tail] = _horner(t, _C).div_(_horner(t, _D))
    return torch.where(below, -z, z)


def uniform(word: Tensor) -> Tensor:
    """Uniform on (-sqrt(3), sqrt(3)), unit variance. Shapes and dtypes as in `normal`."""
    below, v = _fold(word)
    z = _to_unit(v, -32).mul_(_UNIFORM_SCALE)
    return torch.where(below, -z, z)


def laplace(word: Tensor) -> Tensor:
    """Laplace of unit variance, `-log(2 p) / sqrt(2)` with sign. Shapes as in `normal`."""
    below, v = _fold(word)
    z = torch.rsub(_log(_to_unit(_HALF_RANGE - 1 - v, -31)).mul_(_LAPLACE_SCALE), 0.0)
    return torch.where(below, -z, z)


DISTRIBUTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": normal,
    "uniform": uniform,
    "laplace": laplace,
}


def noise(index: Tensor, rng: Rng, kind: str) -> Tensor:
    """Noise of unit variance that each flat index owns.

    Args:
        index: int64 tensor of shape (m,), flat indices >= 0.
        rng: seed and step.
        kind: a key of DISTRIBUTIONS.

    Returns:
        fp32 tensor of shape (m,).
    """
    out = torch.empty(index.shape, dtype=torch.float32, device=index.device)
    distribution = DISTRIBUTIONS[kind]
    for part, target in zip(index.split(_BATCH), out.split(_BATCH), strict=True):
        target.copy_(distribution(words(part, rng, STREAM_NOISE)))
    return out
