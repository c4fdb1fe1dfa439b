"""Keyed permutation of [0, n): a Feistel network with cycle walking.

Random-k takes the images of 0..K-1. It needs no memory of size n, gives exactly K distinct
elements, and membership of any element can be decided on its own through the inverse.

The domain is rounded up to b = max(8, bit_length(n - 1)) bits and split into a left part of
b - b // 2 bits and a right part of b // 2 bits, which are updated in turn. An image outside [0, n)
is permuted again until it falls inside: fewer than two walks on average above 128 elements. Halves
of one or two bits would make the subsets of tiny sets measurably uneven, hence the 8; there all
images are computed once and the walks go through the table.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastunlearn.reference.philox import MASK32, STREAM_PERMUTATION, Rng, blocks

ROUNDS = 12
_MIN_BITS = 8


def _round_function(x: Tensor, key: int) -> Tensor:
    """Mix 32 bits under a key: the finaliser of MurmurHash3 (Appleby, public domain)."""
    x = x ^ key
    x = (x ^ (x >> 16)).mul_(0x85EBCA6B).bitwise_and_(MASK32)
    x = (x ^ (x >> 13)).mul_(0xC2B2AE35).bitwise_and_(MASK32)
    return x ^ (x >> 16)


class Permutation:
    """Permutation of [0, n) under a seed, a step and the base index of the domain.

    Args:
        n: size of the domain, 1 <= n <= 2**62.
        rng: seed and step.
        base: flat index of the domain's first element; gives each tensor its own permutation
            when the scope is one tensor.
    """

    def __init__(self, n: int, rng: Rng, base: int = 0) -> None:
        self.n = n
        bits = max(_MIN_BITS, (n - 1).bit_length())
        self.right_bits = bits // 2
        self.left_mask = (1 << (bits - self.right_bits)) - 1
        self.right_mask = (1 << self.right_bits) - 1
        block = torch.tensor([base])
        self.keys: list[int] = []
        for j in range(ROUNDS // 4):
            self.keys += blocks(block, rng, STREAM_PERMUTATION + j).flatten().tolist()

    def _feistel(self, x: Tensor, inverse: bool) -> Tensor:
        left, right = x >> self.right_bits, x & self.right_mask
        rounds = range(ROUNDS)
        for j in reversed(rounds) if inverse else rounds:
            if j % 2 == 0:
                left = left ^ _round_function(right, self.keys[j]).bitwise_and_(self.left_mask)
            else:
                right = right ^ _round_function(left, self.keys[j]).bitwise_and_(self.right_mask)
        return (left << self.right_bits) | right

    def _walk(self, x: Tensor, inverse: bool) -> Tensor:
        if self.n <= 1 << (_MIN_BITS - 1):
            table = self._feistel(torch.arange(1 << _MIN_BITS), inverse).tolist()
            return torch.tensor([self._inside(table, i) for i in x.tolist()], dtype=torch.int64)
        y = self._feistel(x, inverse)
        outside = (y >= self.n).nonzero().squeeze(1)
        while outside.numel():
            y[outside] = self._feistel(y[outside], inverse)
            outside = outside[y[outside] >= self.n]
        return y

    def _inside(self, table: list[int], i: int) -> int:
        i = table[i]
        while i >= self.n:
            i = table[i]
        return i

    def __call__(self, x: Tensor) -> Tensor:
        """Image of each element: int64 tensor of shape (m,), entries in [0, n), to the same."""
        return self._walk(x, inverse=False)

    def inverse(self, y: Tensor) -> Tensor:
        """Preimage of each element; shapes and dtypes as in `__call__`."""
        return self._walk(y, inverse=True)
