"""A perturbed teacher: it changes places with the model, and may learn before it teaches."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from repair_cases import FORGET, RETAIN, SGD, STILL, changed, copies, network, run
from torch import Tensor, nn

from fastunlearn.divergence import jensen_shannon
from fastunlearn.evaluation.one_seed import counted_steps
from fastunlearn.repair import Repair
from fastunlearn.strategies import TopK

HALVING = functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)


def test_a_perturbed_teacher_changes_places_with_the_model() -> None:
    """Without a step the model keeps its bits, and the divergence is that of the perturbation."""
    model = network()
    model[1].requires_grad_(False)  # statistics stay for either teacher: only the noise differs
    before = copies(model)
    still = functools.partial(torch.optim.SGD, lr=0.0)
    there, back = (
        run(network_, TopK(0.1, std=1.0), repair=Repair(optimizer=still, teacher=teacher))
        for network_, teacher in ((model, "perturbed"), (frozen_norm(), "original"))
    )
    assert not any(bool(diff.any()) for diff in changed(model, before).values())
    assert there.receipt.to_dict()["count"] == back.receipt.to_dict()["count"] > 0
    assert there.history[0]["divergence"] == pytest.approx(back.history[0]["divergence"], rel=1e-6)
    assert there.history[0]["divergence"] > 1e-3
    assert there.history[0]["task_loss"] < back.history[0]["task_loss"]


def test_a_perturbed_teacher_is_followed_on_the_forget_set() -> None:
    distances = []
    for distill in (0.1, 20.0):
        model, teacher = network(), network()
        run(teacher, TopK(0.3, std=1.0), repair=None)
        options = {"epochs": 10, "optimizer": SGD, "distill": distill, "teacher": "perturbed"}
        run(model, TopK(0.3, std=1.0), repair=Repair(**options))
        x = torch.cat([x for x, _ in FORGET])
        distances.append(jensen_shannon(model.eval()(x), teacher.eval()(x)).item())
    assert distances[1] < 0.5 * distances[0]


def test_a_perturbed_teacher_leaves_running_statistics() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.named_buffers()}
    still = functools.partial(torch.optim.SGD, lr=0.0)
    run(model, TopK(0.1, std=1.0), repair=Repair(teacher="perturbed", optimizer=still))
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    run(model, TopK(0.1, std=1.0), repair=Repair(optimizer=still))
    assert not torch.equal(model[1].running_mean, before["1.running_mean"])


def test_a_perturbed_teacher_leaves_a_sparse_patch_where_masked() -> None:
    model = network()
    before = copies(model)
    repair = Repair(epochs=2, masked=True, distill=1.0, teacher="perturbed", optimizer=SGD)
    result = run(model, TopK(0.3, std=1.0), repair=repair)
    masks = result.selection.masks()
    for name, moved in changed(model, before).items():
        assert not (moved & ~masks.get(name, torch.zeros_like(moved))).any(), name
    assert any(bool(diff.any()) for diff in changed(model, before).values())


@pytest.mark.parametrize("scheduler", [None, HALVING])
def test_a_perturbed_teacher_learns_before_it_teaches(scheduler: Any) -> None:
    """It is what a plain repair of as many steps makes of the perturbed model; w starts at w0."""
    strategy, model, teacher = TopK(0.3, std=1.0), network(), network()
    before = copies(model)
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    plain = Repair(epochs=2, max_steps=5, distill=0.0, optimizer=SGD, scheduler=scheduler)
    run(teacher, strategy, repair=plain)
    calls: list[tuple[str, int, int | None]] = []
    how = {"teacher": "perturbed", "teacher_steps": 5, "teacher_optimizer": SGD}
    how["teacher_scheduler"] = scheduler
    repair = Repair(distill=1.0, optimizer=STILL, **how)
    result = run(model, strategy, repair=repair, progress=lambda *call: calls.append(call))
    assert not any(bool(diff.any()) for diff in changed(model, before).values())
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    distances = [jensen_shannon(model.eval()(x), teacher.eval()(x)).item() for x, _ in FORGET]
    taught = [distances[step % len(FORGET)] for step in range(len(RETAIN))]
    assert result.history[0]["divergence"] == pytest.approx(sum(taught) / len(taught), rel=1e-5)
    assert [entry["steps"] for entry in result.teacher_history] == [3, 5]
    assert result.teacher_history[0]["divergence"] is None
    assert [call for call in calls if call[0] == "teacher"] == [
        ("teacher", done, 5) for done in range(1, 6)
    ]
    assert [call[1] for call in calls if call[0] == "repair"] == [1, 2, 3]


def test_a_masked_repair_masks_the_teachers_steps_too() -> None:
    model = network()
    before = copies(model)
    options = {"masked": True, "distill": 1.0, "teacher": "perturbed", "teacher_steps": 4}
    result = run(model, TopK(0.3, std=1.0), repair=Repair(optimizer=SGD, **options))
    masks = result.selection.masks()
    for name, moved in changed(model, before).items():
        assert not (moved & ~masks.get(name, torch.zeros_like(moved))).any(), name
    assert len(result.teacher_history) == 2


@pytest.mark.parametrize("how", ["diverges", "stopped"])
def test_a_lesson_that_ends_early_leaves_the_original(how: str) -> None:
    model = network()
    before = copies(model)
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    model[0].weight.grad = gradient = torch.ones_like(model[0].weight)
    rate = 1e38 if how == "diverges" else 0.1

    def stop(phase: str, done: int, total: int | None) -> None:
        if how == "stopped" and (phase, done) == ("teacher", 3):
            raise KeyboardInterrupt

    options = {"teacher": "perturbed", "teacher_steps": 6, "distill": 1.0}
    options["teacher_optimizer"] = functools.partial(torch.optim.SGD, lr=rate)
    with pytest.raises(FloatingPointError if how == "diverges" else KeyboardInterrupt):
        run(model, TopK(0.3, std=1.0), repair=Repair(**options), progress=stop)
    assert not any(bool(diff.any()) for diff in changed(model, before).values())
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    assert model[0].weight.grad is gradient and all(m.training for m in model.modules())


class Caching(nn.Module):
    """Keeps a buffer of the longest batch so far, and makes another in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("longest", torch.zeros(0))
        self.register_buffer("late", None)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > len(self.longest):
            self.longest = x.new_zeros(len(x))
        if self.training and self.late is None:
            self.late = x.new_ones(())
        return x


def test_a_teacher_may_make_and_resize_buffers() -> None:
    model = nn.Sequential(network(), Caching()).eval()
    before = [parameter.clone() for parameter in model.parameters()]
    retain = [(x[:size], y[:size]) for (x, y), size in zip(RETAIN, (2, 4, 6), strict=True)]
    options = {"teacher": "perturbed", "teacher_steps": 5, "distill": 1.0, "optimizer": STILL}
    result = run(model, TopK(0.3, std=1.0), retain=retain, repair=Repair(**options))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    assert len(result.teacher_history) == 2 and math.isfinite(result.history[0]["loss"])


def test_lesson_and_repair_are_the_same_bits_from_the_same_seed_and_counted() -> None:
    """Dropout draws in both; the study counts the steps of both."""
    options = {"teacher": "perturbed", "teacher_steps": 4, "distill": 1.0, "optimizer": SGD}
    states = []
    for seed in (0, 0, 1):
        model = nn.Sequential(network(), nn.Dropout(0.5))
        with counted_steps() as steps:
            run(model, repair=Repair(max_steps=3, **options), seed=seed)
        assert steps() == 4 + 3
        states.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def test_a_lesson_does_not_follow_the_repairs_scheduler() -> None:
    """One with a horizon of its own would raise, or go wrong, in a lesson of another length."""
    once = functools.partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=2)
    options = {"teacher": "perturbed", "teacher_steps": 6, "distill": 1.0, "max_steps": 2}
    result = run(network(), repair=Repair(scheduler=once, optimizer=SGD, **options))
    assert (result.teacher_history[-1]["steps"], result.stopped) == (6, "max_steps")


def frozen_norm() -> nn.Module:
    """Return the network with its batch norm frozen, so that its statistics stay."""
    model = network()
    model[1].requires_grad_(False)
    return model
