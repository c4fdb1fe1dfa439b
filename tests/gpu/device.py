"""Run generated calls on a GPU, beside the reference on a copy of the same memory on the host."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from core.configurations import OPERATIONS, Configuration, configuration
from core.worlds import Outcome, World, build, first_difference, run
from torch import Tensor

from fastunlearn.reference import ops as reference

OPS = torch.ops.fastunlearn
DEVICE = torch.device("cuda")
gpu = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


def moved(world: World, device: torch.device = DEVICE) -> World:
    """A copy with its buffers, and so every gap and offset, on the device."""
    buffers = [buffer.to(device, copy=True) for buffer in world.buffers]
    return World(buffers, world.weight_views, world.score_views)


def _operations(device: torch.device) -> Any:
    """The operations; the indices of `noise`, which no world holds, are moved on the way."""
    named = {name: getattr(OPS, name) for name in OPERATIONS}
    named["noise"] = lambda index, rng, kind: OPS.noise(index.to(device), rng, kind)
    return SimpleNamespace(**named)


def run_there(made: Configuration, world: World, device: torch.device = DEVICE) -> Outcome:
    """Call on a copy of a world on the device; the outcome is brought to the host."""
    found = run(_operations(device), made, moved(world, device))
    host = moved(found.world, torch.device("cpu"))
    results = {name: tensor.cpu() for name, tensor in found.results.items()}
    return Outcome(host, host.weights, results, found.bumped)


def check(made: Configuration, world: World, device: torch.device = DEVICE) -> Outcome:
    """Compare the device with the reference on the host; returns what the reference did."""
    wanted = run(reference, made, world.copy())
    difference = compared(made, wanted, run_there(made, world, device))
    assert difference is None, f"{difference}\n{made}"
    return wanted


def compared(made: Configuration, wanted: Outcome, found: Outcome) -> str | None:
    """First difference between two outcomes.

    A refusal becomes known on the device alone, so there the version counters rise for a refused
    call too.
    """
    missed = [w and not f for w, f in zip(wanted.bumped, found.bumped, strict=True)]
    if any(missed) or (any(found.bumped) and not made.writes):
        return f"version counters: rose {wanted.bumped} and {found.bumped}"
    return first_difference(wanted, dataclasses.replace(found, bumped=wanted.bumped))


def calls(wanted: Callable[[Configuration], object], count: int) -> Iterator[Configuration]:
    """The first generated calls of a kind."""
    made = map(configuration, itertools.count())
    return itertools.islice(filter(wanted, made), count)


def check_kind(wanted: Callable[[Configuration], object], count: int) -> list[Outcome]:
    """Check the first generated calls of a kind; returns what the reference did."""
    return [check(made, build(made)) for made in calls(wanted, count)]


def bits(tensor: Tensor) -> Tensor:
    """A copy of the bits of the elements, as integers on the host."""
    signed = {8: torch.int64, 4: torch.int32, 2: torch.int16}[tensor.element_size()]
    copy = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    return copy.view(signed)
