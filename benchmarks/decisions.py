"""Reproduce the figures by which docs/design.md explains two decisions.

python -m benchmarks.decisions
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import torch
from scipy import stats

from fastunlearn.reference import permutation
from fastunlearn.reference.philox import STREAM_PERMUTATION, Rng, philox4x32

KEYS = 200_000


def roots_off() -> tuple[int, int]:
    """Of 100,000 fp32 values in [1, 21): roots and quotients that torch does not round right."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(100_000, generator=generator) * 20 + 1
    y = torch.rand(100_000, generator=generator) + 1
    roots = torch.sqrt(x).numpy() != np.sqrt(x.numpy())
    quotients = (x / y).numpy() != x.numpy() / y.numpy()
    return int(roots.sum()), int(quotients.sum())


def evenness_p(n: int, k: int, bits: int, rounds: int) -> float:
    """Chi-squared p of all K-subsets of n elements, over many keys, on a domain of `bits` bits."""
    permutation.ROUNDS = rounds
    network = permutation.Permutation(n, Rng(5, 0))
    network.right_bits = bits // 2
    network.left_mask = (1 << (bits - network.right_bits)) - 1
    network.right_mask = (1 << network.right_bits) - 1
    step = torch.arange(KEYS)
    zero = torch.zeros_like(step)
    keys = [
        word.unsqueeze(1)
        for j in range(rounds // 4)
        for word in philox4x32(
            torch.stack((zero, zero, zero + STREAM_PERMUTATION + j, step)), (5, 0)
        )
    ]
    image = torch.arange(k).expand(KEYS, k).clone()
    rows, first = step, True
    while rows.numel():
        network.keys = [key[rows] for key in keys]
        part = image[rows]
        moved = network._feistel(part, inverse=False)
        image[rows] = part = moved if first else torch.where(part >= n, moved, part)
        rows, first = rows[(part >= n).any(1)], False
    place = {subset: i for i, subset in enumerate(combinations(range(n), k))}
    drawn = [place[tuple(row)] for row in np.sort(image.numpy(), axis=1).tolist()]
    return float(stats.chisquare(np.bincount(drawn, minlength=len(place))).pvalue)


def main() -> None:
    """Print both."""
    roots, quotients = roots_off()
    print(f"not rounded right, of 100,000: {roots} roots, {quotients} quotients")
    for bits, rounds in ((3, 12), (3, 24), (8, 12)):
        p = {f"{k} of {n}": evenness_p(n, k, bits, rounds) for n, k in ((5, 2), (8, 4))}
        print(
            f"{bits} bits, {rounds} rounds:", ", ".join(f"{s}: p = {v:.0e}" for s, v in p.items())
        )


if __name__ == "__main__":
    main()
