"""The idioms that people write today, each as its users write it.

Each takes parameters with gradients, a fraction and a standard deviation, and perturbs in place.
Those of `TOP_K` select by |gradient|, those of `RANDOM_K` at random.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import prune

Peer = Callable[[Sequence[Tensor], float, float], None]


def _gradients(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _cat(parameters: Sequence[Tensor]) -> Tensor:
    return torch.cat([grad.flatten() for grad in _gradients(parameters)])


def _add_flat(parameters: Sequence[Tensor], flat: Tensor) -> None:
    start = 0
    for parameter in parameters:
        stop = start + parameter.numel()
        parameter.add_(flat[start:stop].view_as(parameter))
        start = stop


def _add_at(parameters: Sequence[Tensor], index: Tensor, std: float) -> None:
    """Noise at flat indices; only one tensor alone can be written through them directly."""
    noise = torch.randn(index.numel(), dtype=parameters[0].dtype, device=index.device) * std
    if len(parameters) == 1:
        parameters[0].view(-1).index_add_(0, index, noise)
        return
    total = sum(parameter.numel() for parameter in parameters)
    _add_flat(parameters, noise.new_zeros(total).index_add_(0, index, noise))


@torch.no_grad()
def cat_topk_index_add(parameters: Sequence[Tensor], k: float, std: float) -> None:
    """Concatenate all gradients, torch.topk, index_add_ of noise."""
    gradients = _cat(parameters)
    index = gradients.abs().topk(round(k * gradients.numel())).indices
    _add_at(parameters, index, std)


@torch.no_grad()
def cat_kthvalue_where(parameters: Sequence[Tensor], k: float, std: float) -> None:
    """Concatenate all magnitudes, torch.kthvalue, dense noise under a mask."""
    magnitudes = _cat(parameters).abs()
    count = round(k * magnitudes.numel())
    threshold = magnitudes.kthvalue(magnitudes.numel() - count + 1).values
    noise = torch.randn_like(magnitudes) * std
    _add_flat(parameters, torch.where(magnitudes >= threshold, noise, 0))


@torch.no_grad()
def argsort_argsort(parameters: Sequence[Tensor], k: float, std: float) -> None:
    """Saliency mask by the rank of every element.

    Source: the mask of Fan et al., "SalUn" (ICLR 2024), as their published code makes it.
    """
    elements = -_cat(parameters).abs()
    threshold_index = int(elements.numel() * k)
    ranks = torch.argsort(torch.argsort(elements))
    start = 0
    for parameter in parameters:
        tensor_ranks = ranks[start : start + parameter.numel()]
        mask = torch.zeros_like(tensor_ranks)
        mask[tensor_ranks < threshold_index] = 1
        parameter.add_(torch.randn_like(parameter) * std * mask.view_as(parameter))
        start += parameter.numel()


@torch.no_grad()
def numpy_partition(parameters: Sequence[Tensor], k: float, std: float) -> None:
    """abs + np.partition + noise under a mask; 16-bit gradients as fp32, for numpy has no bf16."""
    gradients = [grad.flatten().float().numpy() for grad in _gradients(parameters)]
    magnitudes = np.abs(gradients[0] if len(gradients) == 1 else np.concatenate(gradients))
    place = magnitudes.size - round(k * magnitudes.size)
    threshold = np.partition(magnitudes, place)[place]
    generator = np.random.default_rng()
    for parameter, grad in zip(parameters, gradients, strict=True):
        mask = torch.from_numpy(np.abs(grad) >= threshold).view_as(parameter)
        noise = generator.standard_normal(int(mask.sum()), dtype=np.float32) * np.float32(std)
        parameter[mask] += torch.from_numpy(noise).to(parameter.dtype)


@torch.no_grad()
def prune_global_unstructured(parameters: Sequence[Tensor], k: float, std: float) -> None:
    """The masks of `torch.nn.utils.prune.global_unstructured` (L1), then dense noise under them."""
    holders = []
    for parameter in parameters:
        holder = torch.nn.Module()
        holder.register_parameter("weight", torch.nn.Parameter(parameter))
        holders.append((holder, "weight"))
    amount = sum(p.numel() for p in parameters)
    amount -= round(k * amount)
    scores = dict(zip(holders, _gradients(parameters), strict=True))
    prune.global_unstructured(holders, prune.L1Unstructured, scores, amount=amount)
    for parameter, (holder, _) in zip(parameters, holders, strict=True):
        parameter.add_(torch.randn_like(parameter) * std * cast(Tensor, holder.weight_mask))


@torch.no_grad()
def dampening(parameters: Sequence[Tensor], k: float, std: float) -> None:
    """Per-tensor dampening: another method of unlearning, shown for its price.

    |gradient| stands for the importance on the forget set and |weight| for that on all data, with
    alpha such that about a fraction k of normal values is dampened. lambda is alpha too: weights
    are halved on average, so that repeated runs do not end among slow denormal numbers.

    Source: Foster et al., "Selective Synaptic Dampening" (AAAI 2024), as their published code.
    """
    alpha = math.tan(math.pi / 2 * (1 - k))
    for parameter, grad in zip(parameters, _gradients(parameters), strict=True):
        forget, original = grad.abs(), parameter.abs()
        locations = torch.where(forget > original * alpha)
        update = (original * alpha).div(forget).pow(1)[locations]
        update[update > 1] = 1
        parameter[locations] = parameter[locations].mul(update)


@torch.no_grad()
def bernoulli_mask(parameters: Sequence[Tensor], k: float, std: float) -> None:
    """Random parameters by a Bernoulli mask: about k of them, not exactly."""
    for parameter in parameters:
        mask = torch.rand_like(parameter) < k
        parameter.add_(torch.randn_like(parameter) * mask * std)


@torch.no_grad()
def randperm_slice(parameters: Sequence[Tensor], k: float, std: float) -> None:
    """Random parameters by the first K of a full permutation."""
    total = sum(parameter.numel() for parameter in parameters)
    order = torch.randperm(total, device=parameters[0].device)
    _add_at(parameters, order[: round(k * total)], std)


TOP_K: dict[str, Peer] = {
    "cat + topk + index_add_": cat_topk_index_add,
    "cat + kthvalue + where": cat_kthvalue_where,
    "SalUn: argsort(argsort(cat))": argsort_argsort,
    "abs + np.partition": numpy_partition,
    "prune.global_unstructured": prune_global_unstructured,
    "SSD: per-tensor dampening": dampening,
}
RANDOM_K: dict[str, Peer] = {
    "Bernoulli mask": bernoulli_mask,
    "randperm[:K]": randperm_slice,
}
