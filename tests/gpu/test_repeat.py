"""Ten thousand runs of one call give the same bits: no result depends on how threads are timed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from gpu.device import DEVICE, OPS, gpu
from torch import Tensor

pytestmark = gpu

RUNS = 10_000
SIZES = (3, 4097, 9_001)
LAYOUT = [x for start, n in ((0, 3), (3, 4097), (4100, 9001)) for x in (start, n, n)]
TOTAL = sum(SIZES)


@pytest.mark.parametrize("operation", ["topk_perturb_", "randomk_perturb_"])
def test_runs_are_identical(operation: str, record_property: Callable[[str, object], None]) -> None:
    draw = torch.Generator().manual_seed(5)
    before = [torch.randn(n, generator=draw).to(DEVICE, torch.bfloat16) for n in SIZES]
    # few values, so that many scores tie at the threshold
    scores = [torch.randint(-40, 41, (n,), generator=draw).float().to(DEVICE) for n in SIZES]
    weights = [weight.clone() for weight in before]
    scale, rng = torch.full((3,), 0.1, dtype=torch.float64), torch.tensor([7, 0])

    def call() -> Tensor:
        torch._foreach_copy_(weights, before)
        tail = ("normal", "add", False, LAYOUT)
        drawn = (scale, rng, [TOTAL // 10], False)
        if operation == "topk_perturb_":
            return OPS.topk_perturb_(weights, scores, *drawn, "grad", "error", *tail)
        return OPS.randomk_perturb_(weights, *drawn, *tail, TOTAL)

    stats = call()
    wanted = [weight.clone().view(torch.int16) for weight in weights]
    assert any(not torch.equal(w, b.view(torch.int16)) for w, b in zip(wanted, before, strict=True))
    differ = torch.zeros((), dtype=torch.int64, device=DEVICE)
    for _ in range(RUNS):
        differ += (call() != stats).sum()
        for weight, bits in zip(weights, wanted, strict=True):
            differ += (weight.view(torch.int16) != bits).sum()
    assert differ.item() == 0
    record_property(f"identical runs of {operation}", RUNS)
