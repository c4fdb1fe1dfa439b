"""A slow second implementation of the contract, in plain Python and numpy.

It shares no code with the package: it works on the raw bits of the numbers, sorts everything, runs
Philox and the permutation on Python integers, and rounds to bfloat16 by hand.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

F32 = np.float32
MASK = 0xFFFFFFFF
_BITS = {
    torch.float64: (torch.int64, np.uint64),
    torch.float32: (torch.int32, np.uint32),
    torch.float16: (torch.int16, np.uint16),
    torch.bfloat16: (torch.int16, np.uint16),
}


def raw(tensor: Tensor) -> np.ndarray:
    """The bits of a tensor in logical row-major order, as unsigned integers."""
    signed, unsigned = _BITS[tensor.dtype]
    with torch.no_grad():
        return tensor.detach().clone().reshape(-1).view(signed).numpy().view(unsigned).copy()


def widen(bits: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Bits to float32 (float64 stays float64); exact."""
    if dtype == torch.float64:
        return bits.view(np.float64)
    if dtype == torch.float32:
        return bits.view(np.float32)
    if dtype == torch.float16:
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Round float32 (float64 for float64) to nearest even in the dtype; returns the bits."""
    if dtype == torch.float64:
        return values.view(np.uint64)
    if dtype == torch.float32:
        return values.view(np.uint32)
    if dtype == torch.float16:
        with np.errstate(over="ignore"):
            return values.astype(np.float16).view(np.uint16)
    bits = [int(b) for b in values.view(np.uint32)]
    rounded = [(b + 0x7FFF + ((b >> 16) & 1)) >> 16 for b in bits]
    nan = [b & 0x7FFFFFFF > 0x7F800000 for b in bits]
    return np.array([0x7FC0 if n else r for r, n in zip(rounded, nan, strict=True)], np.uint16)


# Random words -------------------------------------------------------------------------------------


def philox(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """Ten rounds of Philox4x32 on Python integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & MASK, (p0 >> 32) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return [c0, c1, c2, c3]


def block(number: int, seed: int, step: int, stream: int) -> list[int]:
    counter = (number & MASK, number >> 32, stream, step)
    return philox(counter, (seed & MASK, seed >> 32))


@functools.lru_cache(maxsize=256)
def _round_keys(seed: int, step: int, base: int) -> list[int]:
    return [word for j in range(3) for word in block(base, seed, step, 0x100 + j)]


def _feistel(x: Any, bits: int, round_keys: list[int]) -> Any:
    """One pass of the network: on a Python integer, or on an array of uint64."""
    low = bits // 2
    left, right = x >> low, x & ((1 << low) - 1)
    for j, key in enumerate(round_keys):
        if j % 2 == 0:
            left = left ^ (_mix(right ^ key) & ((1 << (bits - low)) - 1))
        else:
            right = right ^ (_mix(left ^ key) & ((1 << low) - 1))
    return left << low | right


@functools.lru_cache(maxsize=256)
def _table(bits: int, seed: int, step: int, base: int) -> list[int]:
    every = np.arange(1 << bits, dtype=np.uint64)
    return _feistel(every, bits, _round_keys(seed, step, base)).tolist()


def permute(x: int, n: int, seed: int, step: int, base: int = 0) -> int:
    """Image of x under the keyed permutation of [0, n)."""
    bits = max(8, (n - 1).bit_length())
    while True:
        if bits <= 10:
            x = _table(bits, seed, step, base)[x]
        else:
            x = _feistel(x, bits, _round_keys(seed, step, base))
        if x < n:
            return x


def _mix(x: Any) -> Any:
    x = ((x ^ x >> 16) * 0x85EBCA6B) & MASK
    x = ((x ^ x >> 13) * 0xC2B2AE35) & MASK
    return x ^ x >> 16


# Noise: numpy float32, one rounding for each operation --------------------------------------------


def _poly(x: F32, *coefficients: float) -> F32:
    total = F32(coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = F32(total * x) + F32(c)
    return total


def _log(x: F32) -> F32:
    bits = int(x.view(np.uint32))
    exponent = (bits - 0x3F3504F3) >> 23
    m = np.uint32(bits - (exponent << 23)).view(F32)
    s = (m - F32(1)) / (m + F32(1))
    s2 = s * s
    series = _poly(s2, 2 / 3, 2 / 5, 2 / 7, 2 / 9) * s2 * s
    e = F32(exponent)
    low = series + e * F32(1.42860682030941723212e-6)
    return (s + s + low) + e * F32(0.693145751953125)


def _normal(v: int) -> F32:
    q = (F32(v) + F32(0.5)) * F32(2.0**-32)
    if q <= F32(0.425):
        r = F32(0.180625) - q * q
        a = (3.3871327179, 50.434271938, 159.29113202, 59.109374720)
        b = (1.0, 17.895169469, 78.757757664, 67.187563600)
        return _poly(r, *a) * q / _poly(r, *b)
    p = (F32(2**31 - 1 - v) + F32(0.5)) * F32(2.0**-32)
    t = np.sqrt(-_log(p)) - F32(1.6)
    c = (1.4234372777, 2.7568153900, 1.3067284816, 0.17023821103)
    return _poly(t, *c) / _poly(t, 1.0, 0.73700164250, 0.12021132975)


def _uniform(v: int) -> F32:
    return (F32(v) + F32(0.5)) * F32(2.0**-32) * F32(2 * math.sqrt(3))


def _laplace(v: int) -> F32:
    return _log((F32(2**31 - 1 - v) + F32(0.5)) * F32(2.0**-31)) * -F32(math.sqrt(0.5))


_KINDS: dict[str, Callable[[int], F32]] = {
    "normal": _normal,
    "uniform": _uniform,
    "laplace": _laplace,
}


def noise(index: Sequence[int], seed: int, step: int, kind: str) -> np.ndarray:
    """Noise of the flat indices, float32."""
    cache: dict[int, list[int]] = {}
    out = np.empty(len(index), F32)
    for j, i in enumerate(index):
        if i >> 2 not in cache:
            cache[i >> 2] = block(i >> 2, seed, step, 0)
        word = cache[i >> 2][i & 3]
        z = _KINDS[kind](word - 2**31 if word >= 2**31 else 2**31 - 1 - word)
        out[j] = z if word >= 2**31 else -z
    return out


# Selection ----------------------------------------------------------------------------------------


def keys(weight: Tensor, score: Tensor, kind: str, nan: str = "largest") -> list[int]:
    """Keys of one tensor, in logical order."""
    with np.errstate(all="ignore"):
        s = widen(raw(score), score.dtype).astype(F32)
        w = widen(raw(weight), weight.dtype).astype(F32)
        value = {"grad": s, "fisher": s * s, "taylor": w * s, "weight": w}[kind]
    found = (int(bits) & 0x7FFFFFFF for bits in value.view(np.uint32))
    return [(0x7FFFFFFF if nan == "largest" else 0) if k > 0x7F800000 else k for k in found]


def rms(weight: Tensor) -> float:
    """Root mean square as the package documents it: integer sums, one rounding at the end."""
    with np.errstate(all="ignore"):
        values = [abs(float(v)) for v in widen(raw(weight), weight.dtype).astype(F32)]
    top = max(values, default=0.0)
    if top == 0.0:
        return 0.0
    shift = 30 - math.frexp(top)[1]
    total = sum(round(math.ldexp(v, shift)) ** 2 for v in values)
    return math.ldexp(math.sqrt(total / len(values)), -shift)


@dataclass
class Place:
    """Where a tensor's elements lie in the flat index space."""

    base: int
    row_len: int
    row_stride: int

    def index(self, local: int) -> int:
        return self.base + local // self.row_len * self.row_stride + local % self.row_len


def whole(tensors: Sequence[Tensor]) -> list[Place]:
    """The places of whole tensors, one after the other."""
    places, base = [], 0
    for tensor in tensors:
        places.append(Place(base, max(tensor.numel(), 1), max(tensor.numel(), 1)))
        base += tensor.numel()
    return places


Pick = tuple[int, int]  # tensor number, local element number


def problems(tensors: Sequence[Tensor], per_tensor: bool) -> list[list[int]]:
    return [[i] for i in range(len(tensors))] if per_tensor else [list(range(len(tensors)))]


def top_k(
    tensor_keys: Sequence[Sequence[int]], places: Sequence[Place], members: list[int], k: int
) -> tuple[list[Pick], tuple[int, int, int]]:
    """The k first in the total order; and threshold key, ties and ties taken."""
    order = sorted(
        (-key, places[t].index(local), t, local)
        for t in members
        for local, key in enumerate(tensor_keys[t])
    )
    if k == 0:
        return [], (-1, 0, 0)
    threshold = -order[k - 1][0]
    ties = sum(-entry[0] == threshold for entry in order)
    taken = sum(-entry[0] == threshold for entry in order[:k])
    return [(t, local) for _, _, t, local in order[:k]], (threshold, ties, taken)


def random_k(
    places: Sequence[Place],
    sizes: Sequence[int],
    ks: Sequence[int],
    per_tensor: bool,
    total: int,
    rng: tuple[int, int],
) -> list[Pick]:
    """The images of 0..k-1, as far as they lie in the tensors."""
    owner = {
        place.index(local): (t, local)
        for t, place in enumerate(places)
        for local in range(sizes[t])
    }
    domains = [(0, total, ks[0])]
    if per_tensor:
        domains = [(p.base, n, k) for p, n, k in zip(places, sizes, ks, strict=True)]
    images = [base + permute(x, n, *rng, base=base) for base, n, k in domains for x in range(k)]
    return [owner[i] for i in images if i in owner]


def _gaps(x: float, dtype: torch.dtype) -> tuple[float, float, int]:
    """Gap between the neighbours of a finite number, whole gaps to it, and 2**32 of the next."""
    digits, least = (7, -126) if dtype == torch.bfloat16 else (10, -14)
    gap = math.ldexp(1.0, max(math.frexp(x)[1] - 1, least) - digits)
    fraction, whole = math.modf(abs(x) / gap)
    return gap, whole, int(fraction * 2**32)


def fraction_of(x: float, dtype: torch.dtype) -> int:
    """How far a finite number is from its neighbour towards 0, in units of 2**-32."""
    return _gaps(x, dtype)[2]


def round_stochastically(x: float, word: int, dtype: torch.dtype) -> float:
    """One of the two neighbours of a finite number, of which the word decides."""
    gap, whole, fraction = _gaps(x, dtype)
    return math.copysign((whole + (word < fraction)) * gap, x)


@dataclass
class Outcome:
    """Expected new bits and counts of one tensor."""

    bits: np.ndarray
    selected: int
    overflow: int
    unchanged: int


def update(
    weight: Tensor,
    place: Place,
    chosen: Sequence[int],
    scale: float,
    rng: tuple[int, int],
    kind: str,
    update: str,
) -> Outcome:
    """Expected bits of one tensor after the write."""
    mode, _, stochastic = update.partition("_")
    bits = raw(weight)
    chosen = sorted(chosen)
    old = widen(bits[chosen], weight.dtype)
    index = [place.index(local) for local in chosen]
    z = noise(index, *rng, kind)
    with np.errstate(all="ignore"):
        step = z.astype(old.dtype) * old.dtype.type(scale)
        new = {"add": old + step, "replace": step, "zero": np.zeros_like(old)}[mode]
        if stochastic and weight.dtype in (torch.bfloat16, torch.float16):
            words = [block(i >> 2, *rng, 1)[i & 3] for i in index]
            for at, word in enumerate(words):
                if np.isfinite(new[at]):
                    new[at] = round_stochastically(float(new[at]), word, weight.dtype)
        stored = narrow(new, weight.dtype)
        now = widen(stored, weight.dtype)
    bits[chosen] = stored
    overflow = int(np.sum(np.isfinite(old) & ~np.isfinite(now)))
    return Outcome(bits, len(chosen), overflow, int(np.sum(old == now)))
