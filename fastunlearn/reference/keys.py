"""Scores to keys: the total order that the selection follows.

A key is the bit pattern of the fp32 score with the sign cleared, compared as an integer. So -0
equals +0, denormal numbers keep their order, an infinity is the greatest, and no floating-point
compare (which a flush-to-zero mode would change) takes part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastunlearn.reference import memory

MAGNITUDE = 0x7FFFFFFF
INFINITY = 0x7F800000
_NAN_KEY = {"error": None, "largest": MAGNITUDE, "smallest": 0}

# Value of a score from the weight and the stored score; both fp32, one rounding each.
SCORES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "grad": lambda weight, score: score,
    "fisher": lambda weight, score: score * score,
    "taylor": lambda weight, score: weight * score,
    "weight": lambda weight, score: weight,
}


class KeySource:
    """Keys of a list of tensors, computed piece by piece.

    Args:
        weights: parameters, any strides, floating dtypes; read by `taylor` and `weight` only.
        scores: stored scores, shaped like the weights, floating dtypes.
        kind: a key of SCORES.
        nan: what a NaN counts as: "largest", "smallest" (a score of 0), or "error" (it keeps a key
            above INFINITY, which the caller counts).
    """

    def __init__(self, weights: Sequence[Tensor], scores: Sequence[Tensor], kind: str, nan: str):
        self.weights = weights
        self.scores = scores
        self.value = SCORES[kind]
        self.reads_weights = kind in ("taylor", "weight")
        self.nan_key = _NAN_KEY[nan]

    @property
    def refuses_nan(self) -> bool:
        """Whether a NaN keeps its own key, above INFINITY, for the caller to refuse."""
        return self.nan_key is None

    def _keys(self, weight: Tensor, score: Tensor) -> Tensor:
        value = self.value(weight, score).contiguous()
        keys = value.view(torch.int32) & MAGNITUDE
        if self.nan_key is None:
            return keys
        return torch.where(keys > INFINITY, self.nan_key, keys)

    def piece(self, piece: memory.Piece) -> Tensor:
        """Keys of one piece: int32 tensor of shape (stop - start,)."""
        return self.chunk([piece])

    def chunk(self, group: Sequence[memory.Piece]) -> Tensor:
        """Keys of the pieces of one chunk in a row: int32 tensor of at most CHUNK elements."""
        score = _read_fp32(self.scores, group)
        return self._keys(_read_fp32(self.weights, group) if self.reads_weights else score, score)

    def at(self, tensor: int, local: Tensor) -> Tensor:
        """Keys of single elements of one tensor: int32 tensor of shape (m,)."""
        score = memory.read(self.scores[tensor], local).to(torch.float32)
        weight = score
        if self.reads_weights:
            weight = memory.read(self.weights[tensor], local).to(torch.float32)
        return self._keys(weight, score)


def _read_fp32(tensors: Sequence[Tensor], group: Sequence[memory.Piece]) -> Tensor:
    parts = [memory.read_slice(tensors[i], start, stop) for i, start, stop in group]
    return memory.join([part.to(torch.float32) for part in parts])
