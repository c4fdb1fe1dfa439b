"""The idioms that people write today, each as its users write it.

Each takes parameters with gradients, a fraction and a standard deviation, and perturbs in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Peer = Callable[[Sequence[Tensor], float, float], None]


def _add_flat(parameters: Sequence[Tensor], flat: Tensor) -> None:
    start = 0
    for parameter in parameters:
        stop = start + parameter.numel()
        parameter.add_(flat[start:stop].view_as(parameter))
        start = stop


@torch.no_grad()
def cat_topk_index_add(parameters: Sequence[Tensor], k: float, std: float) -> None:
    """Concatenate all gradients, torch.topk, index_add_ of noise."""
    gradients = torch.cat([p.grad.flatten() for p in parameters])
    count = round(k * gradients.numel())
    index = gradients.abs().topk(count).indices
    if len(parameters) == 1:
        parameters[0].view(-1).index_add_(0, index, torch.randn(count) * std)
        return
    change = torch.zeros_like(gradients).index_add_(0, index, torch.randn(count) * std)
    _add_flat(parameters, change)


@torch.no_grad()
def cat_kthvalue_where(parameters: Sequence[Tensor], k: float, std: float) -> None:
    """Concatenate all magnitudes, torch.kthvalue, dense noise under a mask."""
    magnitudes = torch.cat([p.grad.flatten() for p in parameters]).abs()
    count = round(k * magnitudes.numel())
    threshold = magnitudes.kthvalue(magnitudes.numel() - count + 1).values
    _add_flat(
        parameters, torch.where(magnitudes >= threshold, torch.randn_like(magnitudes), 0) * std
    )


@torch.no_grad()
def bernoulli_mask(parameters: Sequence[Tensor], k: float, std: float) -> None:
    """Random parameters by a Bernoulli mask: about k of them, not exactly."""
    for parameter in parameters:
        mask = torch.rand_like(parameter) < k
        parameter.add_(torch.randn_like(parameter) * mask * std)


@torch.no_grad()
def randperm_slice(parameters: Sequence[Tensor], k: float, std: float) -> None:
    """Random parameters by the first K of a full permutation."""
    total = sum(p.numel() for p in parameters)
    count = round(k * total)
    index = torch.randperm(total)[:count]
    if len(parameters) == 1:
        parameters[0].view(-1).index_add_(0, index, torch.randn(count) * std)
        return
    _add_flat(parameters, torch.zeros(total).index_add_(0, index, torch.randn(count) * std))


TOP_K: dict[str, Peer] = {
    "cat + topk + index_add_": cat_topk_index_add,
    "cat + kthvalue + where": cat_kthvalue_where,
}
RANDOM_K: dict[str, Peer] = {
    "Bernoulli mask": bernoulli_mask,
    "randperm[:K]": randperm_slice,
}
