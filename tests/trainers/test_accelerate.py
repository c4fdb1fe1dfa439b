"""The perturber for loops written with Accelerate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

accelerate = pytest.importorskip("accelerate")

from trainers.models import kth  # noqa: E402

import fastunlearn as fu  # noqa: E402
from fastunlearn.trainers.accelerate import Perturber  # noqa: E402


@pytest.fixture
def accelerator() -> Any:
    accelerate.state.AcceleratorState._reset_state(True)
    accelerate.state.GradientState._reset_state()
    return accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)


def loop(accelerator: Any, strategy: Any, *, blow: int = -1, **how: Any) -> Any:
    """Eight batches, four steps; the gradients that each step ended with."""
    torch.manual_seed(0)
    net = nn.Linear(5, 3)
    model, optimizer = accelerator.prepare(net, torch.optim.SGD(net.parameters(), lr=0.1))
    perturber = Perturber(accelerator, model, strategy, seed=2, **how)
    seen = []
    for batch in range(8):
        with accelerator.accumulate(model):
            x = torch.randn(4, 5)
            accelerator.backward(model(x).square().mean() * (1e30 if batch == blow else 1))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            receipt = perturber.step()
            seen.append((receipt, [p.grad.clone() for p in net.parameters()]))
            optimizer.zero_grad()
    return perturber, seen


def test_perturbs_after_steps_by_their_gradient(accelerator: Any) -> None:
    perturber, seen = loop(accelerator, fu.TopK(4, std=0.1), every=2)
    assert [i for i, (receipt, _) in enumerate(seen) if receipt] == [3, 7]
    assert [receipt.step for receipt in perturber.stepper.receipts] == [0, 1]
    for receipt, gradients in (seen[3], seen[7]):
        assert receipt.threshold == kth(gradients, 4)
        assert torch.cat([g.flatten() for g in gradients]).norm() <= 0.1001


def test_no_perturbation_after_a_step_that_was_left_out(accelerator: Any) -> None:
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    perturber, seen = loop(accelerator, fu.TopK(4, std=0.1), blow=2)
    assert [i for i, (receipt, _) in enumerate(seen) if receipt] == [1, 5, 7]
    assert perturber.stepper.skipped == 1
    assert [receipt.step for receipt in perturber.stepper.receipts] == [0, 2, 3]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"every": 0}, "every must be >= 1"),
        ({"every": True}, "every must be an int"),
        ({"strategy": None}, "strategy must be"),
    ],
)
def test_arguments_out_of_range_are_refused(
    accelerator: Any, how: dict[str, Any], words: str
) -> None:
    strategy = how.pop("strategy", fu.TopK(1))
    with pytest.raises((TypeError, ValueError), match=words):
        Perturber(accelerator, nn.Linear(2, 2), strategy, **how)
