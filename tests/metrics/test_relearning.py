"""Relearning speed: counted by hand, censored, without a trace on the model."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fastunlearn.metrics import relearn_steps


def sgd(parameters) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1.0)


def scalar_model(margin: float) -> nn.Module:
    """Two classes, logits (0, w) with w = margin for the input 1."""
    model = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0], [margin]]))
    return model


def shift_loss(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """A loss whose gradient is constant: each step of SGD raises the second weight by 1."""
    return -logits[:, 1].mean()


BATCH = [(torch.ones(4, 1), torch.ones(4).long())]


@pytest.mark.parametrize(("margin", "steps"), [(0.5, 0), (-0.5, 1), (-3.5, 4)])
def test_steps_by_hand(margin: float, steps: int) -> None:
    model = scalar_model(margin)
    before = copy.deepcopy(model.state_dict())
    found = relearn_steps(model, BATCH, target=1.0, make_optimizer=sgd, loss_fn=shift_loss)
    assert (found.steps, found.reached) == (steps, True)
    assert found.accuracies == (0.0,) * steps + (1.0,)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.weight.grad is None and model.training


def test_censored() -> None:
    found = relearn_steps(
        scalar_model(-9.5), BATCH, target=1.0, make_optimizer=sgd, loss_fn=shift_loss, max_steps=3
    )
    assert (found.steps, found.reached, len(found.accuracies)) == (3, False, 4)


def test_every_batch_is_a_step_and_all_batches_count() -> None:
    # One example of each class: the target of 1 cannot be met, half can.
    batches = [(torch.ones(1, 1), torch.tensor([0])), (torch.ones(1, 1), torch.tensor([1]))]
    found = relearn_steps(scalar_model(1.0), batches, target=0.75, make_optimizer=sgd, max_steps=5)
    assert (found.steps, found.reached, set(found.accuracies)) == (5, False, {0.5})


def test_dropout_is_seeded_and_the_generator_put_back() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2))
    batch = [(torch.randn(6, 4), torch.tensor([0, 1, 0, 1, 0, 1]))]
    state = torch.get_rng_state()
    runs = [
        relearn_steps(model, batch, target=1.0, make_optimizer=sgd, max_steps=20, seed=seed)
        for seed in (0, 0)
    ]
    assert runs[0] == runs[1] and torch.equal(torch.get_rng_state(), state)


def test_refusals() -> None:
    options = {"target": 1.0, "make_optimizer": sgd}
    with pytest.raises(ValueError, match="forget must yield a batch"):
        relearn_steps(scalar_model(0.0), [], **options)
    with pytest.raises(ValueError, match="forget must yield a batch on every pass"):
        relearn_steps(scalar_model(-5.0), iter(BATCH), **options)
    with pytest.raises(ValueError, match=r"target must be in \[0, 1\], got 2"):
        relearn_steps(scalar_model(0.0), BATCH, **(options | {"target": 2.0}))
    with pytest.raises(ValueError, match="max_steps must be an integer >= 1, got 0"):
        relearn_steps(scalar_model(0.0), BATCH, max_steps=0, **options)
