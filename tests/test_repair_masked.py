"""Masked repair: whatever the optimiser does, no unselected element changes a bit."""

from __future__ import annotations

import contextlib
import functools
import math
from typing import Any

import pytest
import torch
from repair_cases import OPTIMIZERS, RETAIN, SGD, copies, network, perturbed, repaired
from torch import Tensor, nn
from torch.nn import functional as F

from fastunlearn import _finetune
from fastunlearn._finetune import reference_copy
from fastunlearn.repair import Repair


def unselected_moves(model: nn.Module, before: dict[str, Tensor], masks: dict[str, Tensor]) -> int:
    """Count the unselected elements, and the elements of buffers, whose bits changed."""
    moved = 0
    for name, value in model.state_dict().items():
        kept = ~masks[name] if name in masks else torch.ones_like(value, dtype=torch.bool)
        old, new = (t[kept].contiguous().view(torch.uint8) for t in (before[name], value))
        moved += int((old != new).sum())
    return moved


@pytest.mark.parametrize("distill", [0.0, 0.5])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_masked_repair_moves_the_selected_elements_alone(name: str, distill: float) -> None:
    model = network()
    reference = reference_copy(model) if distill else None
    masks = perturbed(model)
    with torch.no_grad():  # bits that arithmetic would not keep
        model[0].weight.view(-1)[1], model[5].weight.view(-1)[1] = -0.0, -0.0
        if reference is not None:
            reference[5].weight.view(-1)[1] = -0.0
    before = copies(model)
    repair = Repair(epochs=2, masked=True, distill=distill, optimizer=OPTIMIZERS[name])
    outcome = repaired(model, repair, masks, reference=reference)
    assert unselected_moves(model, before, masks) == 0
    assert [entry["divergence"] is None for entry in outcome.history] == [not distill] * 2
    for key, parameter in model.named_parameters():
        if masks[key].any():
            assert not torch.equal(parameter, before[key]), f"{key} must have been repaired"


@pytest.mark.parametrize("name", ["sgd", "nesterov", "adam", "adamw", "rmsprop", "adagrad"])
def test_clearing_gradients_alone_would_not_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mistake of peers: without the restoring half, weight decay moves what is "frozen"."""
    monkeypatch.setattr(_finetune._Guard, "around_step", lambda self: contextlib.nullcontext())
    model = network()
    masks = perturbed(model)
    before = copies(model)
    repair = Repair(epochs=2, masked=True, distill=0, optimizer=OPTIMIZERS[name])
    repaired(model, repair, masks)
    assert unselected_moves(model, before, masks) > 0


def test_unselected_gradients_do_not_reach_the_moments() -> None:
    made: list[torch.optim.Optimizer] = []

    def optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        made.append(torch.optim.Adam(parameters, lr=0.01))
        return made[0]

    model = network()
    masks = perturbed(model)
    gradients: list[Tensor | None] = []
    repaired(model, Repair(masked=True, optimizer=optimizer), masks,
             hook=lambda *call: gradients.append(model[0].weight.grad))  # fmt: skip
    assert gradients == [None] * 3  # not even computed for a tensor with nothing selected
    state = made[0].state
    assert model[0].weight not in state  # nothing selected: not even handed over
    moment = state[model[5].weight]["exp_avg"]
    assert not moment[~masks["5.weight"]].any() and moment[masks["5.weight"]].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_masked_repair_of_strided_and_other_dtypes(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).to(dtype)
    model[1].weight = nn.Parameter(model[1].weight.detach().t().contiguous().t())
    masks = perturbed(model)
    before = copies(model)
    repair = Repair(masked=True, distill=0, optimizer=OPTIMIZERS["sgd"])
    data = [(x.to(dtype), y) for x, y in RETAIN]
    # The first tensor has nothing selected and the last all of it; make both partial here.
    masks = {name: (torch.arange(m.numel()) % 3 == 0).view_as(m) for name, m in masks.items()}
    repaired(model, repair, masks, retain=data)
    assert unselected_moves(model, before, masks) == 0
    assert not torch.equal(model[1].weight, before["1.weight"])


def test_masked_repair_with_sparse_gradients() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Flatten(), nn.Linear(6, 4))
    model[2].requires_grad_(False)
    masks = {"0.weight": (torch.arange(15) % 2 == 0).view(5, 3)}
    before = copies(model)
    data = [(torch.tensor([[0, 1], [1, 1]]), torch.tensor([2, 3]))]
    made: list[torch.optim.Optimizer] = []

    def adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        made.append(torch.optim.SparseAdam(parameters, lr=0.1))
        return made[0]

    repaired(model, Repair(epochs=3, masked=True, distill=0, optimizer=adam), masks, retain=data)
    assert unselected_moves(model, before, masks) == 0
    assert not torch.equal(model[0].weight, before["0.weight"])
    moment = made[0].state[model[0].weight]["exp_avg"]
    assert not moment[~masks["0.weight"]].any() and moment[masks["0.weight"]].any()


def test_nan_gradients_of_unselected_elements_do_not_matter() -> None:
    model = nn.Linear(2, 2, bias=False)
    masks = {"weight": torch.tensor([[True, False], [True, False]])}
    before = copies(model)
    # The second input's gradient is infinite times zero.
    data = [(torch.tensor([[1.0, math.inf]]), torch.tensor([0]))]

    def finite(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(
            torch.nan_to_num(outputs, 0.0, 0.0, 0.0) + model.weight[0, 0], targets
        )

    repair = Repair(masked=True, distill=0, optimizer=SGD, clip_grad_norm=1.0)
    repaired(model, repair, masks, retain=data, loss_fn=finite)
    assert unselected_moves(model, before, masks) == 0 and bool(model.weight.isfinite().all())


class Counting(nn.Linear):
    """A layer with a buffer of its own that every call moves."""

    def __init__(self) -> None:
        """Build it for flattened 6x6 images."""
        super().__init__(36, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Count the call."""
        self.calls += 1
        return super().forward(x.flatten(1))


@pytest.mark.parametrize("masked", [False, True])
def test_buffers_move_in_a_plain_repair_only(masked: bool) -> None:
    model = Counting()
    masks = {"weight": torch.ones(3, 36, dtype=torch.bool)}  # no mask: nothing of the bias
    bias = model.bias.detach().clone()
    repaired(model, Repair(masked=masked, distill=0), masks)
    assert int(model.calls) == (0 if masked else len(RETAIN))
    assert torch.equal(model.bias, bias) == masked


def test_nothing_selected() -> None:
    model = network()
    before = copies(model)
    masks = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in model.named_parameters()}
    outcome = repaired(model, Repair(masked=True), masks)
    assert outcome.stopped == "nothing selected" and outcome.history == []
    assert unselected_moves(model, before, {}) == 0


class Interrupting(torch.optim.SGD):
    """Writes to every parameter, then is interrupted."""

    def step(self, closure: Any = None) -> None:
        """Run the closure, spoil the weights, and stop."""
        closure()
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                parameter.add_(1.0)
        raise KeyboardInterrupt


def test_an_interrupted_step_keeps_the_unselected_elements() -> None:
    model = network().train()
    model[1].eval()
    model[5].bias.grad = torch.ones(3)
    masks = perturbed(model)
    before, flags = copies(model), [m.training for m in model.modules()]
    spoil = functools.partial(Interrupting, lr=0.1)
    with pytest.raises(KeyboardInterrupt):
        repaired(model, Repair(masked=True, optimizer=spoil), masks)
    assert unselected_moves(model, before, masks) == 0
    assert [m.training for m in model.modules()] == flags
    assert torch.equal(model[5].bias.grad, torch.ones(3)) and model[5].weight.grad is None


def test_clipping_bounds_the_selected_gradient() -> None:
    model = network()
    masks = perturbed(model)
    before = copies(model)
    unit = functools.partial(torch.optim.SGD, lr=1.0)
    repair = Repair(masked=True, optimizer=unit, clip_grad_norm=0.01, max_steps=1, distill=0)
    repaired(model, repair, masks)
    after = copies(model)
    moved = torch.cat([(after[n] - before[n]).double().flatten() for n in masks]).norm().item()
    # The norm counts what takes part alone; 1e-6 guards clip_grad_norm_'s division, the rest is
    # rounding of weights of order 1.
    assert moved == pytest.approx(0.01, rel=1e-3)
