"""A captured call, replayed with another seed, other scores and scales, equals the eager call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from core.worlds import rng_tensor
from gpu.device import DEVICE, OPS, bits, gpu
from torch import Tensor

from fastunlearn.reference import ops as reference

pytestmark = gpu

SEEDS = (0, 1, 2**63, 2**64 - 1)
SIZES = (1, 70_001, 4096)
LAYOUT = [1, 1, 1, 2, 70_001, 70_001, 80_000, 4096, 4096]
TOTAL = 100_000
K = 7000


@dataclass
class Inputs:
    """Everything that a replay reads anew."""

    weights: list[Tensor]
    scores: list[Tensor]
    scale: Tensor
    rng: Tensor

    def to(self, device: torch.device) -> Inputs:
        moved = [[t.to(device, copy=True) for t in ts] for ts in (self.weights, self.scores)]
        return Inputs(*moved, self.scale.to(device, copy=True), self.rng.to(device, copy=True))

    def copy_(self, other: Inputs) -> None:
        torch._foreach_copy_(self.weights + self.scores, other.weights + other.scores)
        self.scale.copy_(other.scale)
        self.rng.copy_(other.rng)


def inputs(number: int, dtype: torch.dtype, seed: int) -> Inputs:
    draw = torch.Generator().manual_seed(number)
    weights = [torch.randn(n, generator=draw).to(dtype) for n in SIZES]
    scores = [torch.randn(n, generator=draw).mul(100).round() for n in SIZES]
    scale = torch.tensor([0.5, 0.1, 0.01 * number], dtype=torch.float64)
    return Inputs(weights, scores, scale, rng_tensor(seed, number))


def call(operations: Any, operation: str, given: Inputs) -> list[Tensor]:
    """Everything that the operation returns."""
    tail = ("normal", "add", False, LAYOUT)
    if operation == "topk_perturb_":
        drawn = (given.scale, given.rng, [K], False, "grad", "error")
        return [operations.topk_perturb_(given.weights, given.scores, *drawn, *tail)]
    if operation == "randomk_perturb_":
        drawn = (given.scale, given.rng, [K], False)
        return [operations.randomk_perturb_(given.weights, *drawn, *tail, TOTAL)]
    if operation == "topk_select":
        ranked = ([K], False, "grad", "error", LAYOUT)
        packed, stats = operations.topk_select(given.weights, given.scores, *ranked)
    else:
        packed, stats = operations.randomk_select(
            given.weights, given.rng, [K], False, LAYOUT, TOTAL
        )
    return [*packed, stats]


def warmed(operation: str, given: Inputs) -> None:
    """What capture wants done before: one eager run on a stream of its own."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call(OPS, operation, given)
    torch.cuda.current_stream().wait_stream(stream)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "operation", ["topk_perturb_", "randomk_perturb_", "topk_select", "randomk_select"]
)
def test_replays_equal_eager_calls(operation: str, dtype: torch.dtype) -> None:
    static = inputs(1, dtype, 99).to(DEVICE)
    warmed(operation, static)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call(OPS, operation, static)
    seen = set()
    for number, seed in enumerate(SEEDS, 2):
        given = inputs(number, dtype, seed)
        static.copy_(given)
        graph.replay()
        wanted = call(reference, operation, given)
        for found, one in zip(results, wanted, strict=True):
            assert torch.equal(found.cpu(), one)
        for found, one in zip(static.weights, given.weights, strict=True):
            assert torch.equal(bits(found), bits(one))
        seen.add(tuple(bits(static.weights[1])[:999].tolist()))
    assert len(seen) == len(SEEDS)  # each seed has noise, or at least inputs, of its own


def test_a_refused_replay_changes_nothing_and_the_next_one_works() -> None:
    static = inputs(1, torch.float32, 99).to(DEVICE)
    warmed("topk_perturb_", static)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call(OPS, "topk_perturb_", static)
    given = inputs(2, torch.float32, 3)
    given.scores[1][5] = float("nan")
    for spoilt in (True, False):
        if not spoilt:
            given.scores[1][5] = 0.0
        static.copy_(given)
        graph.replay()
        before = [bits(weight) for weight in given.weights]
        wanted = call(reference, "topk_perturb_", given)
        assert torch.equal(results[0].cpu(), wanted[0])
        after = [bits(weight) for weight in static.weights]
        assert all(map(torch.equal, after, map(bits, given.weights)))
        assert all(map(torch.equal, before, after)) == spoilt
