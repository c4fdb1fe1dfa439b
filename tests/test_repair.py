"""Repair: the objective, the stop rules, and a masked repair that moves nothing else."""

from __future__ import annotations

import copy
import functools
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from repair_cases import (
    FORGET,
    OPTIMIZERS,
    RETAIN,
    SGD,
    STILL,
    copies,
    network,
    perturbed,
    repaired,
)
from torch import Tensor, nn
from torch.nn import functional as F

from fastunlearn._finetune import reference_copy
from fastunlearn.divergence import jeffreys, jensen_shannon
from fastunlearn.repair import Repair, default_optimizer

# --- the objective ------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "divergence"), [("js", jensen_shannon), ("jeffreys", jeffreys)])
def test_one_step_by_hand(name: str, divergence: Callable[[Tensor, Tensor], Tensor]) -> None:
    """w <- w - lr * d(task + lambda * divergence)/dw, the divergence in evaluation mode."""
    model = network()
    model[4].p = 0.0  # no dropout: the task term below runs without the repair's generator
    reference = reference_copy(model)
    perturbed(model)
    expected = copy.deepcopy(model)
    (x, y), (x_u, _) = RETAIN[0], FORGET[0]
    task = F.cross_entropy(expected.train()(x), y)
    distance = divergence(expected.eval()(x_u), reference(x_u))
    (task + 3.0 * distance).backward()
    repair = Repair(distill=3.0, divergence=name, optimizer=SGD, max_steps=1)
    outcome = repaired(model, repair, reference=reference)
    entry = outcome.history[0]
    assert entry["task_loss"] == pytest.approx(task.item(), rel=1e-5)
    assert entry["divergence"] == pytest.approx(distance.item(), rel=1e-5) and distance > 0
    assert entry["loss"] == entry["task_loss"] + 3.0 * entry["divergence"]
    for got, wanted in zip(model.parameters(), expected.parameters(), strict=True):
        # One float32 sum of two gradients in another order.
        torch.testing.assert_close(got, wanted - 0.1 * wanted.grad, rtol=1e-5, atol=1e-6)


def test_divergence_is_zero_where_the_models_agree() -> None:
    outcome = repaired(network(), Repair(optimizer=STILL, max_steps=1))
    # Batch statistics have moved by one batch; with those of w0 the divergence would be 0.
    assert 0 <= outcome.history[0]["divergence"] < 0.01
    model = network()
    model[1].requires_grad_(False)
    assert repaired(model, Repair(optimizer=STILL)).history[0]["divergence"] == 0.0


def test_distillation_pulls_towards_the_original() -> None:
    distances = []
    for distill in (0.0, 0.1, 50.0):
        model = network()
        reference = reference_copy(model)
        perturbed(model)
        repaired(model, Repair(epochs=8, distill=distill, optimizer=SGD), reference=reference)
        x = torch.cat([x for x, _ in FORGET])
        distances.append(jensen_shannon(model.eval()(x), reference(x)).item())
    assert distances[0] > distances[1] > distances[2]


@pytest.mark.parametrize("given", [False, True])
def test_without_distillation_nothing_of_it_is_used(given: bool) -> None:
    reference = reference_copy(network()) if given else None
    outcome = repaired(network(), Repair(distill=0), forget=None, reference=reference)
    entry = outcome.history[0]
    assert entry["divergence"] is None and entry["loss"] == entry["task_loss"]


def test_forget_loader_starts_anew() -> None:
    seen: list[int] = []

    class Counted:
        """Two batches, noted as they are drawn."""

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            for index, batch in enumerate(FORGET):
                seen.append(index)
                yield batch

    repaired(network(), Repair(epochs=2), forget=Counted())
    # The trial, then one for each of 2 epochs x 3 retain batches.
    assert seen == [0] + [0, 1, 0, 1, 0, 1]


def test_reference_shares_frozen_parameters_only() -> None:
    model = network()
    model[0].requires_grad_(False)
    reference = reference_copy(model.train())
    assert reference[0].weight is model[0].weight
    assert reference[5].weight is not model[5].weight
    assert reference[1].running_mean is not model[1].running_mean
    assert not any(p.requires_grad for p in reference.parameters())
    assert model[5].weight.requires_grad and model.training
    assert not any(module.training for module in reference.modules())


# --- stopping, schedules, clipping --------------------------------------------------------------


def test_max_steps_and_history() -> None:
    outcome = repaired(network(), Repair(epochs=5, max_steps=4))
    assert [(e["epoch"], e["steps"]) for e in outcome.history] == [(1, 3), (2, 4)]
    assert outcome.stopped == "max_steps" and len(outcome.seconds) == 2


def test_patience() -> None:
    frozen = network()
    frozen[4].p = 0.0
    frozen[1].requires_grad_(False)
    outcome = repaired(frozen, Repair(epochs=9, patience=2, optimizer=STILL))
    assert (len(outcome.history), outcome.stopped) == (3, "patience")
    falling = repaired(network(), Repair(epochs=4, patience=1, optimizer=SGD))
    assert (len(falling.history), falling.stopped) == (4, "epochs")
    strict = repaired(network(), Repair(epochs=4, patience=1, min_delta=9.0, optimizer=SGD))
    assert (len(strict.history), strict.stopped) == (2, "patience")


def test_stop_when_sees_each_entry() -> None:
    seen: list[dict[str, Any]] = []

    def stop(entry: dict[str, Any]) -> bool:
        seen.append(entry)
        return entry["epoch"] == 2

    outcome = repaired(network(), Repair(epochs=5, stop_when=stop))
    assert seen == outcome.history and len(seen) == 2 and outcome.stopped == "stop_when"


def test_scheduler_steps_with_the_optimizer() -> None:
    made: list[torch.optim.Optimizer] = []

    def optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        made.append(SGD(parameters))
        return made[0]

    halve = functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5)
    repaired(network(), Repair(optimizer=optimizer, scheduler=halve))
    assert made[0].param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**3)


# --- the model's state --------------------------------------------------------------------------


def test_statistics_follow_the_retain_set_alone() -> None:
    model, plain = network(), network()
    repaired(model, Repair(optimizer=STILL))
    repaired(plain, Repair(optimizer=STILL, distill=0))
    assert int(model[1].num_batches_tracked) == len(RETAIN)
    assert torch.equal(model[1].running_mean, plain[1].running_mean)
    assert bool(model[1].running_mean.any())


def test_frozen_normalisation_keeps_its_statistics() -> None:
    model = network()
    model[1].requires_grad_(False)
    before = copies(model)
    repaired(model, Repair())
    assert torch.equal(model[1].running_mean, before["1.running_mean"])
    assert not torch.equal(model[5].weight, before["5.weight"])


def test_frozen_parameters_flags_and_gradients_stay() -> None:
    model = network().eval()
    model[0].weight.requires_grad_(False)
    model[5].bias.grad = torch.full((3,), 5.0)
    gradient, before = model[5].bias.grad, copies(model)
    repaired(model, Repair(optimizer=OPTIMIZERS["sgd"]))
    assert torch.equal(model[0].weight, before["0.weight"])
    assert model[5].bias.grad is gradient and gradient.tolist() == [5.0] * 3
    assert model[5].weight.grad is None and not any(m.training for m in model.modules())


def test_gradients_stay_where_the_optimizer_takes_some_parameters() -> None:
    """Those of the others are the caller's: neither written to nor counted by the clipping."""
    moved = []
    for stale in (0.0, 1e6):
        model = network()
        given = [torch.full_like(p, stale) for p in model.parameters()]
        for parameter, gradient in zip(model.parameters(), given, strict=True):
            parameter.grad = gradient
        last = Repair(optimizer=lambda parameters: SGD(parameters[-1:]), clip_grad_norm=1.0)
        repaired(model, last)
        for parameter, gradient in zip(model.parameters(), given, strict=True):
            assert parameter.grad is gradient and bool((gradient == stale).all())
        moved.append(model[5].bias.detach().clone())
    assert torch.equal(*moved) and not torch.equal(moved[0], network()[5].bias)


def test_an_outer_autocast_sees_each_step() -> None:
    """Autocast keeps 16-bit copies of the weights, which a step makes stale."""

    def own(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            return model(batch[0]), batch[1]

    model, other = network(), network()
    for each in (model, other):
        each[4].p = 0.0
    repair = Repair(epochs=3, optimizer=SGD)
    with torch.autocast("cpu", torch.bfloat16):
        outer = repaired(model, repair)
    inner = repaired(other, repair, forward_fn=own)
    first, last = inner.history[0]["task_loss"], inner.history[-1]["task_loss"]
    assert first - last > 0.1
    # bfloat16 rounding of logits of order 1, against a fall of the loss that stale weights miss.
    assert outer.history[-1]["task_loss"] == pytest.approx(last, abs=0.03)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_callers_without_gradients(context: type) -> None:
    model = network()
    before = copies(model)
    reference = reference_copy(model)
    with context():
        repaired(model, Repair(), reference=reference)
    assert not torch.equal(model[5].weight, before["5.weight"])


# --- refusals and description -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (ValueError, "retain must yield at least one batch, got none", {"retain": []}),
        (ValueError, "forget must yield at least one batch, got none", {"forget": []}),
        (TypeError, "loss_fn must return a tensor, got float", {"loss_fn": lambda out, y: 0.0}),
        (FloatingPointError, "loss must be finite, got nan in epoch 1",
         {"loss_fn": lambda out, y: out.sum() * math.nan}),
        (ValueError, r"at least 2 classes to distil, got \(6, 1\); pass distill=0",
         {"forward_fn": lambda m, b: (m(b[0])[:, :1], b[1]), "loss_fn": lambda out, y: out.mean()}),
        (TypeError, "outputs must be a tensor of logits to distil, got list",
         {"forward_fn": lambda m, b: ([m(b[0])], b[1]),
          "loss_fn": lambda out, y: F.cross_entropy(out[0], y)}),
    ],
)  # fmt: skip
def test_refused_data(error: type[Exception], message: str, changes: dict[str, Any]) -> None:
    with pytest.raises(error, match=f"^repair: .*{message}"):
        repaired(network(), Repair(), **changes)


def test_refused_optimizers() -> None:
    stranger = nn.Parameter(torch.ones(1))
    wide = Repair(optimizer=lambda parameters: torch.optim.SGD([*parameters, stranger], lr=0.1))
    with pytest.raises(ValueError, match="^repair: optimizer must be built .* got 1 other"):
        repaired(network(), wide)
    with pytest.raises(TypeError, match="^repair: optimizer must return .* got list"):
        repaired(network(), Repair(optimizer=list))


@pytest.mark.parametrize(
    ("error", "field", "value"),
    [
        *[(ValueError, name, 0) for name in ("epochs", "max_steps", "patience", "clip_grad_norm")],
        *[(TypeError, name, 1.5) for name in ("epochs", "max_steps", "patience")],
        *[(TypeError, name, True) for name in ("epochs", "distill", "min_delta")],
        *[(ValueError, "distill", value) for value in (-0.1, math.nan, math.inf)],
        *[(TypeError, name, "adam") for name in ("optimizer", "scheduler", "stop_when")],
        (TypeError, "distill", "0.1"),
        (TypeError, "epochs", None),
        (TypeError, "optimizer", None),
        (ValueError, "min_delta", -1.0),
        (ValueError, "divergence", "kl"),
        (TypeError, "masked", 1),
    ],
)
def test_refused_fields(error: type[Exception], field: str, value: object) -> None:
    got = value if error is ValueError else type(value).__name__
    with pytest.raises(error, match=rf"^Repair: {field} must be .* got '?{got}'?$"):
        Repair(**{field: value})  # type: ignore[arg-type]


def test_description_is_json() -> None:
    default = json.loads(json.dumps(Repair().to_dict()))
    assert default["optimizer"] == "fastunlearn.repair.default_optimizer"
    assert default["distill"] == 0.1 and default["scheduler"] is None
    cosine = functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=3)
    made = Repair(optimizer=OPTIMIZERS["lbfgs"], scheduler=cosine).to_dict()
    assert made["optimizer"] == "torch.optim.lbfgs.LBFGS(lr=0.1, max_iter=3)"
    assert made["scheduler"] == "torch.optim.lr_scheduler.CosineAnnealingLR(T_max=3)"


def test_default_optimizer() -> None:
    optimizer = default_optimizer([nn.Parameter(torch.ones(1))])
    group = optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.01, 0.9, 0)
