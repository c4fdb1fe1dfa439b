"""Make the known-answer vectors of this folder, without using fastunlearn.

    python tests/data/make_vectors.py

`noise.csv`: word, fp32 bits of the normal, uniform and Laplace noise, and exact quantiles from
mpmath at 40 digits. The bits come from exact rational arithmetic (`fractions`), rounded to fp32
after every step by a routine of its own. `philox.json`: Random123's published vectors, and blocks
from a scalar implementation. `randomk.json`: K-subsets from a scalar Feistel network.
"""

from __future__ import annotations

import csv
import json
import math
import random
from fractions import Fraction
from pathlib import Path

import mpmath

HERE = Path(__file__).parent
M32 = 0xFFFFFFFF


def round_fp32(x: Fraction) -> Fraction:
    """Round to nearest, ties to even, in the normal range of fp32."""
    if x == 0:
        return Fraction(0)
    magnitude = abs(x)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if magnitude < Fraction(2) ** exponent:
        exponent -= 1
    unit = Fraction(2) ** (exponent - 23)
    assert -126 <= exponent <= 127, "outside the normal range"
    return (round(magnitude / unit) * unit) * (1 if x > 0 else -1)


def sqrt_fp32(x: Fraction) -> Fraction:
    """Correctly rounded square root: 80 extra bits leave no tie in doubt for fp32 arguments."""
    scaled = (x.numerator << 200) // x.denominator
    return round_fp32(Fraction(math.isqrt(scaled), 1 << 100))


def bits_of(x: Fraction) -> int:
    """The fp32 bit pattern of an exactly representable value >= 0."""
    if x == 0:
        return 0
    exponent = math.frexp(float(x))[1] - 1
    mantissa = abs(x) / Fraction(2) ** (exponent - 23)
    assert mantissa.denominator == 1
    return (exponent + 127) << 23 | int(mantissa) - (1 << 23)


def constants(*texts: str) -> list[Fraction]:
    return [round_fp32(Fraction(text)) for text in texts]


A = constants("3.3871327179", "50.434271938", "159.29113202", "59.109374720")
B = constants("1", "17.895169469", "78.757757664", "67.187563600")
C = constants("1.4234372777", "2.7568153900", "1.3067284816", "0.17023821103")
D = constants("1", "0.73700164250", "0.12021132975")
SPLIT, CENTRE, SHIFT = constants("0.425", "0.180625", "1.6")
ATANH = constants("2/3", "2/5", "2/7", "2/9")
LN2_HIGH, LN2_LOW = constants("0.693145751953125", "1.42860682030941723212e-6")


def horner(x: Fraction, c: list[Fraction]) -> Fraction:
    result = round_fp32(x * c[-1])
    for value in reversed(c[1:-1]):
        result = round_fp32(round_fp32(result + value) * x)
    return round_fp32(result + c[0])


def log_fp32(x: Fraction) -> Fraction:
    pattern = bits_of(x)
    exponent = (pattern - 0x3F3504F3) >> 23
    m = x / Fraction(2) ** exponent
    s = round_fp32(round_fp32(m - 1) / round_fp32(m + 1))
    s2 = round_fp32(s * s)
    series = round_fp32(round_fp32(horner(s2, ATANH) * s2) * s)
    low = round_fp32(series + round_fp32(exponent * LN2_LOW))
    return round_fp32(round_fp32(2 * s + low) + round_fp32(exponent * LN2_HIGH))


def unit(v: int, exponent: int) -> Fraction:
    return round_fp32(round_fp32(Fraction(v)) + Fraction(1, 2)) * Fraction(2) ** exponent


def fold(word: int) -> tuple[int, int]:
    """Sign and distance from the median."""
    return (1, word - 2**31) if word >= 2**31 else (-1, 2**31 - 1 - word)


def normal(word: int) -> int:
    sign, v = fold(word)
    q = unit(v, -32)
    if q <= SPLIT:
        r = round_fp32(CENTRE - round_fp32(q * q))
        z = round_fp32(round_fp32(horner(r, A) * q) / horner(r, B))
    else:
        t = round_fp32(sqrt_fp32(-log_fp32(unit(2**31 - 1 - v, -32))) - SHIFT)
        z = round_fp32(horner(t, C) / horner(t, D))
    return signed_bits(sign, z)


def uniform(word: int) -> int:
    sign, v = fold(word)
    return signed_bits(sign, round_fp32(unit(v, -32) * round_fp32(Fraction(2 * math.sqrt(3)))))


def laplace(word: int) -> int:
    sign, v = fold(word)
    scale = round_fp32(Fraction(math.sqrt(0.5)))
    return signed_bits(sign, round_fp32(-log_fp32(unit(2**31 - 1 - v, -31)) * scale))


def signed_bits(sign: int, magnitude: Fraction) -> int:
    """The fp32 bits; below the median a zero is -0, so that noise(~x) == -noise(x)."""
    return (sign < 0) << 31 | bits_of(magnitude)


def exact_normal(word: int) -> mpmath.mpf:
    sign, v = fold(word)
    # from the distance to the median, so that no digits cancel: sqrt(2) erfinv(2 (v + 1/2) / 2^32)
    return sign * mpmath.sqrt(2) * mpmath.erfinv((2 * mpmath.mpf(v) + 1) / 2**32)


def exact_laplace(word: int) -> mpmath.mpf:
    sign, v = fold(word)
    return -sign * mpmath.log((2**31 - v - mpmath.mpf(1) / 2) / 2**31) / mpmath.sqrt(2)


def philox(counter: list[int], key: list[int]) -> list[int]:
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & M32, (p0 >> 32) ^ c3 ^ k1, p0 & M32
        k0, k1 = (k0 + 0x9E3779B9) & M32, (k1 + 0xBB67AE85) & M32
    return [c0, c1, c2, c3]


def mix(x: int, key: int) -> int:
    x ^= key
    x = (x ^ x >> 16) * 0x85EBCA6B & M32
    x = (x ^ x >> 13) * 0xC2B2AE35 & M32
    return x ^ x >> 16


def random_subset(n: int, k: int, seed: int, step: int, base: int) -> list[int]:
    bits = max(8, (n - 1).bit_length())
    right_bits = bits // 2
    left_bits = bits - right_bits
    seed_words = [seed & M32, seed >> 32]
    keys = [
        word
        for j in range(3)
        for word in philox([base & M32, base >> 32, 0x100 + j, step], seed_words)
    ]
    chosen = []
    for i in range(k):
        x = i
        while True:
            left, right = x >> right_bits, x & (1 << right_bits) - 1
            for number, key in enumerate(keys):
                if number % 2 == 0:
                    left ^= mix(right, key) & (1 << left_bits) - 1
                else:
                    right ^= mix(left, key) & (1 << right_bits) - 1
            x = left << right_bits | right
            if x < n:
                break
        chosen.append(base + x)
    return sorted(chosen)


def vector_words() -> list[int]:
    """Extremes, both sides of each branch, powers of two, an even grid and random words."""
    split = 2**31 + int(0.425 * 2**32)
    near = [split + d for d in range(-64, 65)]
    upper = [2**31 + (1 << e) + d for e in range(31) for d in (-1, 0, 1)]
    grid = [2**31 + i * (2**31 // 1024) for i in range(1024)]
    tail = [M32 - d for d in range(512)]
    draw = random.Random(20240108)
    drawn = [draw.randrange(2**31, 2**32) for _ in range(600)]
    words = {w for w in near + upper + grid + tail + drawn if 2**31 <= w <= M32}
    return sorted(words | {M32 - w for w in words})


def write_noise() -> None:
    mpmath.mp.dps = 40
    with (HERE / "noise.csv").open("w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(["word", "normal", "uniform", "laplace", "normal_exact", "laplace_exact"])
        for word in vector_words():
            bits = [f"{f(word):08x}" for f in (normal, uniform, laplace)]
            exact = [mpmath.nstr(f(word), 17) for f in (exact_normal, exact_laplace)]
            out.writerow([word, *bits, *exact])


def write_philox() -> None:
    published = [
        [[0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"],
        [[M32] * 4, [M32] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"],
        [
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ],
    ]
    cases = []
    for counter, key, text in published:
        words = [int(word, 16) for word in text.split()]
        assert philox(counter, key) == words
        cases.append({"source": "Random123", "counter": counter, "key": key, "words": words})
    draw = random.Random(1)
    for _ in range(256):
        counter = [draw.randrange(2**32) for _ in range(4)]
        key = [draw.randrange(2**32) for _ in range(2)]
        words = philox(counter, key)
        cases.append({"source": "scalar", "counter": counter, "key": key, "words": words})
    write_lines("philox.json", cases)


def write_randomk() -> None:
    cases = []
    for n, k in ((1, 1), (2, 1), (3, 2), (5, 2), (16, 5), (17, 17), (1000, 100), (65537, 40)):
        for seed, step, base in ((0, 0, 0), (2**64 - 1, 7, 0), (0x0123456789ABCDEF, 1, 2**33 + 3)):
            subset = random_subset(n, k, seed, step, base)
            cases.append(
                {"n": n, "k": k, "seed": seed, "step": step, "base": base, "subset": subset}
            )
    for n in (10**8, 2**33 + 5, 2**40):
        subset = random_subset(n, 64, 42, 3, 0)
        cases.append({"n": n, "k": 64, "seed": 42, "step": 3, "base": 0, "subset": subset})
    write_lines("randomk.json", cases)


def write_lines(name: str, cases: list[dict]) -> None:
    body = ",\n".join(json.dumps(case) for case in cases)
    (HERE / name).write_text(f"[\n{body}\n]\n")


if __name__ == "__main__":
    write_philox()
    write_randomk()
    write_noise()
