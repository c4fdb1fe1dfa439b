"""A small tour of every kernel, for the sanitizers: seconds where each access is checked."""

from __future__ import annotations

import pytest
import torch
from core.backends import call
from core.configurations import OPERATIONS, Configuration
from core.worlds import build
from gpu.device import calls, check, gpu

pytestmark = gpu

SIZES = (0, 1, 3, 4095, 4097, 9001)


def whole(made: Configuration) -> bool:
    """Calls that the kernels serve themselves: plain lists of not too many elements."""
    return made.layout == "whole" and sum(e.numel for e in made.entries) < 20_000


@pytest.mark.parametrize("operation", OPERATIONS)
def test_generated_calls(operation: str) -> None:
    for made in calls(lambda made: made.operation == operation and whole(made), 4):
        check(made, build(made))


@pytest.mark.parametrize("share", [0.01, 0.5])
@pytest.mark.parametrize("operation", [name for name in OPERATIONS if "k_" in name])
def test_few_and_many(operation: str, share: float) -> None:
    draw = torch.Generator().manual_seed(3)
    weights = [torch.randn(n, generator=draw) for n in SIZES]
    scores = [torch.randn(n, generator=draw) for n in SIZES] if operation[0] == "t" else []
    for allowed in (False, True):
        k = [int(share * sum(SIZES))]
        made, world = call(operation, weights, scores, k, allow_overflow=allowed)
        check(made, world)


def test_search_among_ties() -> None:
    """All keys equal: the bracket says nothing and the exact search decides."""
    weights = [torch.zeros(n) for n in SIZES]
    made, world = call("topk_perturb_", weights, [torch.ones(n) for n in SIZES], [5000])
    check(made, world)
