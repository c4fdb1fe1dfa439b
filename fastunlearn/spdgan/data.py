"""What goes into an SPD-GAN: checked examples and labels, and the forget set in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastunlearn.spdgan.config import SPDGANConfig

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True)
class ForgetSet:
    """The forget set in memory, in an order that its content alone decides.

    Attributes:
        x: Shape (N, C, H, W) or (N, F), floating, the loader's dtype, on the CPU.
        y: int64, shape (N,), on the CPU.
        batch_size: Length of the loader's first batch.
        digest: SHA-256 over all examples and labels.
    """

    x: Tensor
    y: Tensor
    batch_size: int
    digest: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return tuple(self.x.shape[1:])


def read_forget_set(loader: Iterable[Any], config: SPDGANConfig) -> ForgetSet:
    """Read a loader of pairs (x, y) once and check it.

    The examples are sorted by a hash of their bytes: the loader's order is without effect, and
    the leading part is as good as a random one.

    Raises:
        TypeError, ValueError: The loader is empty, or a batch is not a pair of floating examples
            (B, C, H, W) or (B, F) within the bounds and integer labels (B,).
    """
    batches: list[tuple[Tensor, Tensor]] = []
    for batch in loader:
        x, y = _checked_pair(batch, config)
        if batches and x.shape[1:] != batches[0][0].shape[1:]:
            wanted, got = (tuple(t.shape[1:]) for t in (batches[0][0], x))
            raise ValueError(f"SPDGAN.fit: examples must all have shape {wanted}, got {got}")
        batches.append((x.detach().cpu(), y.detach().cpu().long()))
    if not batches or not batches[0][0].numel():
        raise ValueError("SPDGAN.fit: forget_loader must yield at least one example, got none")
    x, y = (torch.cat(parts).contiguous() for parts in zip(*batches, strict=True))
    keys = [_hash(x[i], y[i]) for i in range(len(y))]
    order = sorted(range(len(y)), key=keys.__getitem__)
    digest = hashlib.sha256(b"".join(sorted(keys))).hexdigest()
    return ForgetSet(x[order], y[order], len(batches[0][1]), digest)


def check_examples(op: str, x: Any, config: SPDGANConfig) -> Tensor:
    """Return ``x`` if it is a floating, finite batch within the bounds of the configuration.

    Raises:
        TypeError: It is not a floating-point tensor.
        ValueError: Its shape is neither (N, C, H, W) nor (N, F), or a value is not finite or out
            of bounds.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{op}: x must be a floating-point tensor, got {got}")
    if x.ndim not in (2, 4):
        raise ValueError(f"{op}: x must have shape (N, C, H, W) or (N, F), got {tuple(x.shape)}")
    if x.numel():
        bad = int((~torch.isfinite(x)).sum())
        if bad:
            raise ValueError(f"{op}: x must be finite, got {bad} NaN or infinite values")
        low, high = config.bounds(image=x.ndim == 4)
        least, greatest = float(x.min()), float(x.max())
        if least < low or greatest > high:
            raise ValueError(
                f"{op}: x must be in [{low:g}, {high:g}] (low and high of the SPDGANConfig), "
                f"got values in [{least:g}, {greatest:g}]"
            )
    return x


def _checked_pair(batch: Any, config: SPDGANConfig) -> tuple[Tensor, Tensor]:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        got = f"{type(batch).__name__}"
        raise TypeError(f"SPDGAN.fit: forget_loader must yield pairs (x, y), got {got}")
    x, y = check_examples("SPDGAN.fit", batch[0], config), batch[1]
    if not isinstance(y, Tensor) or y.dtype not in _INTEGERS:
        got = str(y.dtype if isinstance(y, Tensor) else type(y).__name__)
        raise TypeError(f"SPDGAN.fit: labels must be an integer tensor, got {got}")
    if tuple(y.shape) != (len(x),):
        raise ValueError(f"SPDGAN.fit: labels must have shape ({len(x)},), got {tuple(y.shape)}")
    return x, y


def _hash(x: Tensor, y: Tensor) -> bytes:
    return hashlib.sha256(tensor_bytes(x) + tensor_bytes(y)).digest()


def tensor_bytes(value: Tensor) -> bytes:
    """Return the bytes of a tensor of any dtype, row by row."""
    flat = value.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()
