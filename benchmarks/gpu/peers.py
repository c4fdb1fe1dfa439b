"""Idioms that are at home on GPUs; the others are those of `fastunlearn.bench.peers`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastunlearn.bench.peers import Peer


@torch.no_grad()
def cupy_partition(parameters: Sequence[Tensor], k: float, std: float) -> None:
    """CuPy's partition, a CUB sort of all magnitudes, then noise under a mask.

    16-bit scores are ranked as fp32, for CuPy has no bf16.
    """
    import cupy

    gradients = [p.grad for p in parameters if p.grad is not None]
    magnitudes = torch.cat([grad.flatten() for grad in gradients]).abs().float()
    place = magnitudes.numel() - round(k * magnitudes.numel())
    threshold = float(cupy.partition(cupy.from_dlpack(magnitudes), place)[place])
    for parameter, grad in zip(parameters, gradients, strict=True):
        noise = torch.randn_like(parameter) * std
        parameter.add_(noise * (grad.abs() >= threshold))
    cupy.get_default_memory_pool().free_all_blocks()  # for those who come after


@torch.no_grad()
def foreach_bernoulli(parameters: Sequence[Tensor], k: float, std: float) -> None:
    """Random parameters by a Bernoulli mask, fused over all tensors: about k, not exactly."""
    masks = [torch.rand_like(parameter) < k for parameter in parameters]
    noise = [torch.randn_like(parameter) for parameter in parameters]
    torch._foreach_mul_(noise, masks)
    torch._foreach_add_(list(parameters), noise, alpha=std)


TOP_K: dict[str, Peer] = {"CuPy: partition": cupy_partition}
RANDOM_K: dict[str, Peer] = {"torch._foreach, Bernoulli mask": foreach_bernoulli}
