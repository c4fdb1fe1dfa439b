"""The write: noise on the selected elements, planned in full before the first bit changes."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from fastunlearn.reference import memory
from fastunlearn.reference.memory import Layout
from fastunlearn.reference.noise import noise
from fastunlearn.reference.philox import Rng


class Noise(NamedTuple):
    """How the selected elements change."""

    scale: Tensor  # float64, shape (number of tensors,), on the CPU
    rng: Rng
    kind: str
    mode: str


class Plan:
    """New values of all selected elements, and what writing them would do.

    Attributes:
        writes: triples of tensor number, local element numbers and new values.
        selected, overflow, unchanged: counts for each tensor. `overflow` counts finite weights
            whose new value is not finite, `unchanged` those whose new value equals the old one.
    """

    def __init__(self, weights: Sequence[Tensor], parts: Sequence[Layout], change: Noise) -> None:
        self.weights = weights
        self.parts = parts
        self.change = change
        self.writes: list[tuple[int, Tensor, Tensor]] = []
        self.selected = [0] * len(weights)
        self.overflow = [0] * len(weights)
        self.unchanged = [0] * len(weights)

    def extend(self, batches: Iterable[list[tuple[int, Tensor]]]) -> None:
        """Plan the update of every batch; one batch shares one evaluation of the noise."""
        for batch in batches:
            index = [self.parts[tensor].to_global(local) for tensor, local in batch]
            z = noise(torch.cat(index), self.change.rng, self.change.kind)
            for (tensor, local), part in zip(
                batch, z.split([local.numel() for _, local in batch]), strict=True
            ):
                self._add(tensor, local, part)

    def _add(self, tensor: int, local: Tensor, z: Tensor) -> None:
        old = memory.read(self.weights[tensor], local)
        new = _updated(old, z, float(self.change.scale[tensor]), self.change.mode)
        self.writes.append((tensor, local, new))
        self.selected[tensor] += local.numel()
        self.overflow[tensor] += int(torch.count_nonzero(old.isfinite() & ~new.isfinite()))
        self.unchanged[tensor] += int(torch.count_nonzero(old == new))

    def commit(self) -> None:
        """Write everything. An interrupt from the keyboard waits until the last write is done."""
        with _interrupt_deferred():
            for tensor, local, new in self.writes:
                memory.write(self.weights[tensor], local, new)


def _updated(old: Tensor, z: Tensor, scale: float, mode: str) -> Tensor:
    """One multiply and one add in fp32 (fp64 weights: fp64), then one rounding to the dtype."""
    if mode == "zero":
        return torch.zeros_like(old)
    wide = torch.float64 if old.dtype == torch.float64 else torch.float32
    step = z.to(wide) * torch.tensor(scale, dtype=wide, device=z.device)
    return (step if mode == "replace" else old.to(wide) + step).to(old.dtype)


@contextmanager
def _interrupt_deferred() -> Iterator[None]:
    """Hold SIGINT back inside the block and deliver it at the end; main thread only."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or handler is None:
        yield
        return
    held: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if held:
        signal.raise_signal(signal.SIGINT)
