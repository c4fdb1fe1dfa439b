"""Exact Random-k: a uniform K-subset through a keyed permutation, in O(K) work and memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fastunlearn.reference.memory import CHUNK, Layout, chunks
from fastunlearn.reference.permutation import Permutation
from fastunlearn.reference.philox import Rng


def subset(n: int, k: int, rng: Rng, base: int = 0) -> Iterator[Tensor]:
    """Yield the subset in batches: base + perm(0..k-1), ascending inside a batch.

    Args:
        n: size of the domain, n >= 1.
        k: number of elements, 0 <= k <= n.
        rng: seed and step.
        base: flat index of the domain's first element.

    Yields:
        int64 tensors of shape (m,), m <= CHUNK, on the CPU.
    """
    permutation = Permutation(n, rng, base)
    for start in range(0, k, CHUNK):
        yield base + permutation(torch.arange(start, min(start + CHUNK, k))).sort().values


def locate(index: Tensor, parts: Sequence[Layout]) -> list[tuple[int, Tensor]]:
    """Find the tensors that ascending flat indices lie in.

    Returns:
        Pairs of tensor number and local element numbers, as `topk.selected` yields them.
    """
    bounds = torch.tensor([[part.base, part.end] for part in parts], device=index.device)
    cuts = torch.searchsorted(index, bounds).tolist()
    found = []
    for tensor, (part, (start, stop)) in enumerate(zip(parts, cuts, strict=True)):
        local = part.to_local(index[start:stop])
        local = local[local >= 0]
        if local.numel():
            found.append((tensor, local))
    return found


def selected(
    parts: Sequence[Layout],
    k: Sequence[int],
    per_tensor: bool,
    total: int,
    rng: Rng,
    device: torch.device,
) -> Iterator[list[tuple[int, Tensor]]]:
    """Yield what Random-k selects, in batches of pairs of tensor number and local numbers.

    Args:
        parts: layout of all tensors.
        k: one count for each tensor where `per_tensor`, else one for all of [0, total).
        per_tensor: whether each tensor has a subset of its own.
        total: size of the flat index space.
        rng: seed and step.
        device: where the local numbers are wanted.
    """
    here = sum(part.numel for part in parts)
    if not per_tensor and k[0] and here <= min(k[0], total - k[0]):
        yield from _asked(parts, k[0], Permutation(total, rng), device)
        return
    domains = [(0, total, k[0])]
    if per_tensor:
        domains = [(part.base, part.numel, count) for part, count in zip(parts, k, strict=True)]
    for base, size, count in domains:
        if count:
            for index in subset(size, count, rng, base):
                found = locate(index.to(device), parts)
                if found:  # else none of them is a part's: a shard may meet a batch of others'
                    yield found


def _asked(
    parts: Sequence[Layout], k: int, permutation: Permutation, device: torch.device
) -> Iterator[list[tuple[int, Tensor]]]:
    """Ask each element for its preimage: of a share with fewer elements than there are selected."""
    numels = [part.numel for part in parts]
    for tensor, part in enumerate(parts):
        for [piece] in chunks(numels, [tensor]):
            local = torch.arange(piece.start, piece.stop)
            chosen = local[permutation.inverse(part.to_global(local)) < k]
            if chosen.numel():
                yield [(tensor, chosen.to(device))]
