"""What is measured on: how the elements are split into tensors, and the values of the gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from fastunlearn.bench.models import Shape, models


def _even(count: int) -> Callable[[int], list[Shape]]:
    return lambda n: [(n // count,)] * count


# name: shapes for a number of elements
LAYOUTS: dict[str, Callable[[int], list[Shape]]] = {
    "one tensor": lambda n: [(n,)],
    "20 tensors": _even(20),
    "62 tensors": _even(62),
    "tensors of 100": lambda n: [(100,)] * (n // 100),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_LEAST_SIZE = 1000  # so that the smallest K is one element
TIES_K = 0.01  # the K whose threshold lies amid the ties of "ties"


@dataclass(frozen=True)
class Data:
    """Parameters with gradients.

    Args:
        layout: a name of `LAYOUTS`, or of a model in `models()`.
        size: number of elements, where the layout has no size of its own.
        values: a name of `VALUES`.
        dtype: of weights and gradients, a name of `DTYPES`.
    """

    layout: str
    size: int = 0
    values: str = "normal"
    dtype: str = "fp32"

    @property
    def shapes(self) -> list[Shape]:
        """Shape of each parameter."""
        if self.layout in LAYOUTS:
            return LAYOUTS[self.layout](self.size)
        return list(models()[self.layout].values())

    @property
    def numel(self) -> int:
        """Number of elements of all parameters."""
        return sum(map(math.prod, self.shapes))

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights and the gradients."""
        return 2 * self.numel * DTYPES[self.dtype].itemsize

    def shrunk(self, factor: int) -> Data:
        """The same with fewer elements, to try the machinery; models become even layers."""
        if factor == 1:
            return self
        layout = self.layout if self.layout in LAYOUTS else "62 tensors"
        return replace(self, layout=layout, size=max(self.numel // factor, _LEAST_SIZE))


class _Place(NamedTuple):
    """Where a tensor lies in the flat index space and in the list."""

    start: int
    total: int
    number: int
    tensors: int


def _normal(grad: Tensor, place: _Place) -> None:
    grad.normal_()


def _scales(grad: Tensor, place: _Place) -> None:
    grad.normal_()
    if place.number == place.tensors // 2:
        grad.mul_(1e6)


def _zeros(grad: Tensor, place: _Place) -> None:
    grad.normal_().mul_(torch.rand(grad.shape, device=grad.device) >= 0.7)


def _equal(grad: Tensor, place: _Place) -> None:
    grad.fill_(0.5)


def _sorted(grad: Tensor, place: _Place) -> None:
    stop = place.start + grad.numel()
    ends = (place.start / place.total, stop / place.total)
    ramp = torch.linspace(*ends, grad.numel(), device=grad.device)
    grad.copy_(ramp.view_as(grad))


def _ties(grad: Tensor, place: _Place) -> None:
    """Ranks K/2 to 3K/2 are equal, so K falls amid them: a million for K = 1 % of 1e8."""
    grad.normal_()
    tail = torch.tensor([0.25, 0.75], dtype=torch.float64) * TIES_K
    high, low = (-torch.special.ndtri(tail)).tolist()
    magnitude = grad.abs()
    grad.masked_fill_((magnitude >= low) & (magnitude <= high), low)


# name: fills a gradient
VALUES: dict[str, Callable[[Tensor, _Place], None]] = {
    "normal": _normal,
    "one layer 1e6 times larger": _scales,
    "70 % zeros": _zeros,
    "all equal": _equal,
    "sorted": _sorted,
    "ties": _ties,
}


def make(data: Data, seed: int = 0, device: torch.device | str = "cpu") -> list[torch.nn.Parameter]:
    """Return parameters with gradients; the weights are normal whatever the values."""
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        dtype, shapes, total = DTYPES[data.dtype], data.shapes, data.numel
        # Repeated, since drawing 1e9 weights whose values do not matter would take a while.
        block = torch.randn(1 << 20, device=device).to(dtype)
        parameters, start = [], 0
        for number, shape in enumerate(shapes):
            weight, grad = (torch.empty(shape, dtype=dtype, device=device) for _ in range(2))
            for part in weight.view(-1).split(block.numel()):
                part.copy_(block[: part.numel()])
            VALUES[data.values](grad, _Place(start, total, number, len(shapes)))
            parameter = torch.nn.Parameter(weight)
            parameter.grad = grad
            parameters.append(parameter)
            start += grad.numel()
    return parameters
