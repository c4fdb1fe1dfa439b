"""The least that memory asks for, measured in the same run as everything else.

"read": every gradient once, for a small Top-K. "update": gradients once, weights read and written,
for a Top-K so large that nearly every cache line of the weights is touched. "scatter": K weights
read and written at random places, for Random-k.

Each floor is the least of several ways, since none is fastest for every dtype and list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastunlearn import _extension

DENSE_K = 0.05  # from here on Top-K is set against "update": a line of 16 weights is seldom spared

Run = Callable[[], object]


def _gradients(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _torch_sum(parameters: Sequence[Tensor], k: float) -> Run:
    gradients = _gradients(parameters)
    if all(grad.dtype.itemsize == 2 and grad.numel() % 2 == 0 for grad in gradients):
        # A sum of 16-bit values is bound by their conversion, not by memory.
        gradients = [grad.view(-1).view(torch.float32) for grad in gradients]
    return lambda: [grad.sum() for grad in gradients]


def _stream_read(parameters: Sequence[Tensor], k: float) -> Run | None:
    module = _extension.load()
    read = getattr(module, "stream_read", None)
    gradients = _gradients(parameters)
    if read is None or any(grad.device.type != "cpu" for grad in gradients):
        return None
    return lambda: read(gradients, torch.get_num_threads())


def _foreach_add(parameters: Sequence[Tensor], k: float) -> Run:
    weights, gradients = [p.detach() for p in parameters], _gradients(parameters)
    return lambda: torch._foreach_add_(weights, gradients, alpha=0)


def _add(parameters: Sequence[Tensor], k: float) -> Run:
    pairs = [(p.detach(), grad) for p, grad in zip(parameters, _gradients(parameters), strict=True)]
    return lambda: [weight.add_(grad, alpha=0) for weight, grad in pairs]


def _index_add(parameters: Sequence[Tensor], k: float) -> Run | None:
    index = _places(parameters, k)
    if index is None:
        return None
    line = parameters[0].detach().view(-1)
    zeros = line.new_zeros(index.numel())
    return lambda: line.index_add_(0, index, zeros)


def _numpy_add(parameters: Sequence[Tensor], k: float) -> Run | None:
    index = _places(parameters, k)
    if index is None or parameters[0].dtype == torch.bfloat16 or index.device.type != "cpu":
        return None
    line, places = parameters[0].detach().view(-1).numpy(), index.numpy()

    def run() -> None:
        line[places] += 0

    return run


def _places(parameters: Sequence[Tensor], k: float) -> Tensor | None:
    """K random places in one tensor; torch has no scatter over a list."""
    if len(parameters) != 1:
        return None
    total = parameters[0].numel()
    return torch.randint(total, (round(k * total),), device=parameters[0].device)


# floor: ways to measure it; a way that cannot serve a case gives None
FLOORS: dict[str, dict[str, Callable[[Sequence[Tensor], float], Run | None]]] = {
    "read": {"read: torch.sum": _torch_sum, "read: stream_read": _stream_read},
    "update": {"update: _foreach_add_": _foreach_add, "update: add_": _add},
    "scatter": {"scatter: index_add_": _index_add, "scatter: numpy": _numpy_add},
}


def floor_of(kind: str, k: float) -> str:
    """Name of the floor that a case is set against."""
    if kind == "random_k":
        return "scatter"
    return "update" if k >= DENSE_K else "read"
