"""Philox4x32-10, the counter-based generator behind every random choice of the library.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC'11
(Random123).

A word is addressed, never drawn in turn: element `i` of the flat index space owns lane `i & 3` of
the block whose counter is `(lo32(i >> 2), hi32(i >> 2), stream, step)`, under the key
`(lo32(seed), hi32(seed))`. Any backend, thread count or sharding therefore sees the same words.

Words are unsigned 32-bit values held in int64 tensors: torch has no full uint32 arithmetic, and
int64 products wrap modulo 2**64, which leaves the low 64 bits of a 32 x 32-bit product exact.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MASK32 = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

# Counter word 2. One stream per purpose, so that no two purposes ever read the same word.
STREAM_NOISE = 0
STREAM_ROUNDING = 1  # stochastic rounding of 16-bit weights
STREAM_SAMPLE = 2  # reserved: sample positions of the compiled backends
STREAM_PERMUTATION = 0x100  # + block number: round keys of the Random-k permutation


class Rng(NamedTuple):
    """Address of a random stream: a 64-bit seed and a 32-bit step, both unsigned."""

    seed: int
    step: int

    @staticmethod
    def from_tensor(state: Tensor) -> Rng:
        """Read the op argument `rng`: int64 tensor of shape (2,), holding seed and step."""
        seed, step = state.tolist()
        return Rng(seed & 0xFFFFFFFFFFFFFFFF, step & MASK32)


def philox4x32(counter: Tensor, key: tuple[int, int]) -> Tensor:
    """Apply ten Philox rounds to a batch of counters.

    Args:
        counter: int64 tensor of shape (4, m), each entry in [0, 2**32).
        key: two words in [0, 2**32).

    Returns:
        int64 tensor of shape (4, m), each entry in [0, 2**32).
    """
    device = counter.device
    multipliers = torch.tensor(_MULTIPLIERS, device=device).unsqueeze(1)
    keys = torch.tensor(
        [[(key[w] + r * _WEYL[w]) & MASK32 for w in (0, 1)] for r in range(_ROUNDS)], device=device
    ).unsqueeze(2)
    even, odd = counter[0::2], counter[1::2]  # words (0, 2) and words (1, 3)
    for round_key in keys:
        product = (even * multipliers).flip(0)
        even = ((product >> 32) & MASK32).bitwise_xor_(odd).bitwise_xor_(round_key)
        odd = product.bitwise_and_(MASK32)
    return torch.stack((even[0], odd[0], even[1], odd[1]))


def blocks(block: Tensor, rng: Rng, stream: int) -> Tensor:
    """Return the four words of each block.

    Args:
        block: int64 tensor of shape (m,), block numbers (`i >> 2`), each >= 0.
        rng: seed and step.
        stream: counter word 2, one of the STREAM constants.

    Returns:
        int64 tensor of shape (4, m).
    """
    constant = torch.tensor([[stream], [rng.step]], device=block.device)
    low_high = torch.stack((block & MASK32, (block >> 32) & MASK32))
    counter = torch.cat((low_high, constant.expand(2, block.numel())))
    return philox4x32(counter, (rng.seed & MASK32, rng.seed >> 32))


def words(index: Tensor, rng: Rng, stream: int) -> Tensor:
    """Return the word that each flat index owns.

    Args:
        index: int64 tensor of shape (m,), ascending for best speed, any order allowed.
        rng: seed and step.
        stream: counter word 2.

    Returns:
        int64 tensor of shape (m,), each entry in [0, 2**32).
    """
    if index.numel() == 0:
        return index
    block = index >> 2
    lane = index & 3
    low, high = (int(bound) for bound in torch.aminmax(block))
    span = high - low + 1
    if span < index.numel():  # dense enough that computing every block once is less work
        table = blocks(torch.arange(low, high + 1, device=index.device), rng, stream)
        return table.flatten()[lane * span + (block - low)]
    return blocks(block, rng, stream).gather(0, lane.unsqueeze(0)).squeeze(0)
