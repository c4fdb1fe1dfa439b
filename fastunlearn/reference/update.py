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
from fastunlearn.reference.philox import STREAM_ROUNDING, Rng, words
from fastunlearn.reference.rounding import TYPES, round_stochastically

# Pairs of tensor number and local element numbers (int64 of shape (m,), m > 0).
Batch = list[tuple[int, Tensor]]
_STOCHASTIC = "_stochastic"


class Noise(NamedTuple):
    """How the selected elements change."""

    scale: Tensor  # float64, shape (number of tensors,), on the CPU
    rng: Rng
    kind: str
    update: str  # mode, with "_stochastic" after it where 16-bit weights are rounded so

    @property
    def mode(self) -> str:
        return self.update.removesuffix(_STOCHASTIC)

    def rounding(self, index: Tensor, dtype: torch.dtype) -> Tensor | None:
        """Words by which the new values at flat indices are rounded; None: to nearest."""
        by_words = self.update.endswith(_STOCHASTIC) and dtype in TYPES
        return words(index, self.rng, STREAM_ROUNDING) if by_words else None


class Plan:
    """New values of all selected elements, and what writing them would do.

    Attributes:
        writes: line of memory, places in it and new values (see `memory.locate`), ready, so that
            the writes themselves allocate nothing of size.
        selected, overflow, unchanged: counts for each tensor. `overflow` counts finite weights
            whose new value is not finite, `unchanged` those whose new value equals the old one.
    """

    def __init__(self, weights: Sequence[Tensor], parts: Sequence[Layout], change: Noise) -> None:
        self.weights = weights
        self.parts = parts
        self.change = change
        self.writes: list[tuple[Tensor, Tensor, Tensor]] = []
        self.selected = [0] * len(weights)
        self.overflow = [0] * len(weights)
        self.unchanged = [0] * len(weights)

    def extend(self, batches: Iterable[Batch]) -> None:
        """Plan the update of every batch; one batch shares one evaluation of the noise."""
        for batch in batches:
            index = memory.join([self.parts[tensor].to_global(local) for tensor, local in batch])
            z = noise(index, self.change.rng, self.change.kind)
            if len({self.weights[tensor].dtype for tensor, _ in batch}) == 1:
                self._add(batch, index, z)
                continue
            sizes = [local.numel() for _, local in batch]
            for entry, *part in zip(batch, index.split(sizes), z.split(sizes), strict=True):
                self._add([entry], *part)

    def _add(self, batch: Batch, index: Tensor, z: Tensor) -> None:
        """Plan a batch whose weights share one dtype."""
        sizes = [local.numel() for _, local in batch]
        located = [memory.locate(self.weights[tensor], local) for tensor, local in batch]
        old = memory.join([line[places] for line, places in located])
        scale = self.change.scale[[tensor for tensor, _ in batch]].to(z.device)
        if len(batch) > 1:
            scale = scale.repeat_interleave(torch.tensor(sizes, device=z.device))
        rounding = self.change.rounding(index, old.dtype)
        new = _updated(old, z, scale, self.change.mode, rounding)
        for (line, places), values in zip(located, new.split(sizes), strict=True):
            self.writes.append((line, places, values))
        tensors = [tensor for tensor, _ in batch]
        for tensor, size in zip(tensors, sizes, strict=True):
            self.selected[tensor] += size
        _tally(self.overflow, tensors, sizes, old.isfinite() & ~new.isfinite())
        _tally(self.unchanged, tensors, sizes, old == new)

    def commit(self) -> None:
        """Write everything. An interrupt from the keyboard waits until the last write is done."""
        with _interrupt_deferred():
            for line, places, values in self.writes:
                memory.write(line, places, values)


def _tally(counts: list[int], tensors: list[int], sizes: list[int], flags: Tensor) -> None:
    """Add to the count of each tensor how many of its flags are set."""
    if bool(flags.any()):
        for tensor, part in zip(tensors, flags.split(sizes), strict=True):
            counts[tensor] += int(torch.count_nonzero(part))


def _updated(old: Tensor, z: Tensor, scale: Tensor, mode: str, rounding: Tensor | None) -> Tensor:
    """One multiply and one add in fp32 (fp64 weights: fp64), then one rounding to the dtype.

    A NaN result is written as the dtype's default quiet NaN: payloads differ between processors.
    """
    if mode == "zero":
        return torch.zeros_like(old)
    wide = torch.float64 if old.dtype == torch.float64 else torch.float32
    step = z.to(wide) * scale.to(wide)
    new = step if mode == "replace" else old.to(wide) + step
    if rounding is None:
        new = new.to(old.dtype)
    else:
        new = round_stochastically(new, rounding, old.dtype)
    return new.masked_fill_(new.isnan(), torch.nan)


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
