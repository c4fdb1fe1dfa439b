"""Random lists of tensors with every awkward shape, dtype, stride and value."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from core import oracle
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SHAPES = ((), (0,), (1,), (3,), (7,), (2, 5), (5, 3), (4, 0), (1, 1, 6), (2, 3, 2, 2), (33,))
STRIDES = ("contiguous", "transposed", "step", "columns", "offset", "channels_last")
POOLS = ("normal", "ties", "special", "bits")
SPECIAL = (0.0, -0.0, math.inf, -math.inf, 1e-45, -1e-45, 1e-41, 6e-8, 1.0, -1.0, 65504.0, 3.3e38)


def numbers(pool: str, shape: tuple[int, ...], dtype: torch.dtype, draw: Any) -> Tensor:
    """A contiguous tensor from one of the pools; never NaN."""
    count = math.prod(shape)
    if pool == "bits":
        signed = {8: torch.int64, 4: torch.int32, 2: torch.int16}[dtype.itemsize]
        bits = torch.tensor(draw.integers(0, 256, count * dtype.itemsize), dtype=torch.uint8)
        values = bits.view(signed).view(dtype) if count else torch.empty(0, dtype=dtype)
        return torch.where(values.isnan(), torch.ones((), dtype=dtype), values).reshape(shape)
    if pool == "normal":
        values = draw.standard_normal(count)
    else:
        choices = (0.0, -0.0, 0.5, -0.5, 2.0) if pool == "ties" else SPECIAL
        values = draw.choice(choices, count)
    return torch.tensor(values, dtype=torch.float64).to(dtype).reshape(shape)


def place(values: Tensor, strides: str) -> tuple[Tensor, Tensor]:
    """The values at other strides, and the buffer that surrounds them."""
    shape = values.shape
    if strides == "transposed" and values.dim() >= 2:
        buffer = torch.full(tuple(reversed(shape)), 7, dtype=values.dtype)
        view = buffer.permute(*reversed(range(values.dim())))
    elif strides == "step" and values.dim():
        buffer = torch.full((*shape[:-1], 2 * shape[-1]), 7, dtype=values.dtype)
        view = buffer[..., ::2]
    elif strides == "columns" and values.dim():
        buffer = torch.full((*shape[:-1], shape[-1] + 3), 7, dtype=values.dtype)
        view = buffer[..., 1 : 1 + shape[-1]]
    elif strides == "channels_last" and values.dim() == 4:
        buffer = view = torch.full(shape, 7, dtype=values.dtype).contiguous(
            memory_format=torch.channels_last
        )
    elif strides == "offset":
        buffer = torch.full((values.numel() + 3,), 7, dtype=values.dtype)
        view = buffer[3:].view(shape)
    else:
        buffer = view = torch.empty(shape, dtype=values.dtype)
    view.copy_(values)
    return view, buffer


def image(tensor: Tensor) -> bytes:
    """Every byte of the memory that a tensor lies in."""
    if not tensor.untyped_storage().nbytes():
        return b""
    line = torch.empty(0, dtype=torch.uint8).set_(tensor.detach().untyped_storage())
    return line.numpy().tobytes()


@dataclass
class Group:
    """Parameters, their scores, and the memory around the parameters."""

    weights: list[Tensor] = field(default_factory=list)
    scores: list[Tensor] = field(default_factory=list)
    buffers: list[Tensor] = field(default_factory=list)

    @property
    def numel(self) -> int:
        return sum(w.numel() for w in self.weights)

    def add(self, weight: Tensor, score: Tensor, buffer: Tensor) -> None:
        self.weights.append(weight)
        self.scores.append(score)
        self.buffers.append(buffer)

    def memory(self) -> list[bytes]:
        return [image(buffer) for buffer in self.buffers]


def expect(
    group: Group,
    picks: list[oracle.Pick],
    places: list[oracle.Place],
    scale: list[float],
    rng: tuple[int, int],
    kind: str,
    update: str,
) -> list[oracle.Outcome]:
    """Expected outcome of each tensor for a set of picks."""
    chosen: list[list[int]] = [[] for _ in group.weights]
    for tensor, local in picks:
        chosen[tensor].append(local)
    return [
        oracle.update(w, p, c, s, rng, kind, update)
        for w, p, c, s in zip(group.weights, places, chosen, scale, strict=True)
    ]


def expected_memory(group: Group, outcomes: list[oracle.Outcome]) -> list[bytes]:
    """The bytes of every buffer once the outcomes are written into it, and nothing else."""
    found = []
    for weight, buffer, outcome in zip(group.weights, group.buffers, outcomes, strict=True):
        bits = torch.from_numpy(outcome.bits.view(f"i{weight.element_size()}"))
        copy = torch.empty(0, dtype=weight.dtype).set_(buffer.detach().untyped_storage().clone())
        line = copy.as_strided(weight.shape, weight.stride(), weight.storage_offset())
        line.copy_(bits.view(weight.dtype).reshape(weight.shape))
        found.append(image(copy))
    return found


def generator(seed: int) -> Any:
    return np.random.default_rng(seed)
