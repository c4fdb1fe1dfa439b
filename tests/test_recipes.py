"""Recipes: the length of the repair, what is passed on, refusals."""

from __future__ import annotations

import pytest
import torch
from repair_cases import FORGET, RETAIN, network
from torch.nn.functional import cross_entropy

import fastunlearn as fu
from fastunlearn.recipes import PEER, RECOMMENDED, Recipe


@pytest.mark.parametrize(
    ("passes", "batches", "epochs", "steps"),
    [(1.7, 100, 2, 170), (1.0, 57, 1, 57), (0.01, 3, 1, 1), (2.0, None, 2, None)],
)
def test_passes_become_steps(passes: float, batches: int, epochs: int, steps: int) -> None:
    repair = Recipe(fu.RandomK(0.1), passes=passes).repair(batches)
    assert (repair.epochs, repair.max_steps, repair.teacher_steps) == (epochs, steps, 0)


@pytest.mark.parametrize(("passes", "steps"), [(2.0, 114), (0.5, 28), (0.001, 1)])
def test_a_teachers_passes_become_steps(passes: float, steps: int) -> None:
    how = {"teacher": "perturbed", "distill": 1.0, "teacher_passes": passes}
    assert Recipe(fu.RandomK(0.1), **how).repair(57).teacher_steps == steps


def test_unlearn_is_that_of_its_strategy_and_repair() -> None:
    here, there = network(), network()
    recipe = Recipe(fu.TopK(0.3, rel_std=1.0), teacher="perturbed", distill=1.0, passes=1.34)
    data = {"forget": FORGET, "retain": RETAIN, "loss_fn": cross_entropy, "seed": 3}
    result = recipe.unlearn(here, **data)
    assert result.history[-1]["steps"] == 4 and result.stopped == "max_steps"
    fu.unlearn(there, recipe.strategy, repair=recipe.repair(3), **data)
    for a, b in zip(here.parameters(), there.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_loader_without_length_rounds_up() -> None:
    class Endless:
        def __iter__(self):  # type: ignore[no-untyped-def]
            return iter(RETAIN)

    recipe = Recipe(fu.RandomK(0.1), passes=1.2)
    result = recipe.unlearn(
        network(), forget=FORGET, retain=Endless(), loss_fn=cross_entropy, seed=0
    )
    assert result.history[-1]["steps"] == 2 * len(RETAIN)
    taught = Recipe(fu.RandomK(0.1), teacher="perturbed", distill=1.0, teacher_passes=1.0)
    with pytest.raises(ValueError, match="retain must have a length for teacher_passes > 0"):
        taught.repair(None)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"passes": 0.0}, ValueError, "Recipe: passes must be a finite number > 0, got 0.0"),
        ({"lr": float("nan")}, ValueError, "Recipe: lr must be a finite number > 0, got nan"),
        ({"lr": True}, TypeError, "Recipe: lr must be a finite number > 0, got bool"),
        (
            {"teacher_passes": -1.0},
            ValueError,
            "Recipe: teacher_passes must be a finite number >= 0",
        ),
        (
            {"teacher_passes": 1.0},
            ValueError,
            "Recipe: teacher_passes must be 0 with teacher='original', got 1.0",
        ),
        ({"teacher": "best"}, ValueError, "Repair: teacher must be"),
        (
            {"teacher": "perturbed", "distill": 0.0},
            ValueError,
            "Repair: distill must be > 0 with teacher='perturbed', got 0",
        ),
    ],
)
def test_refusals(changes: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Recipe(fu.RandomK(0.1), **changes)  # type: ignore[arg-type]


def test_the_named_recipes() -> None:
    repair = RECOMMENDED.repair(100)
    assert (repair.teacher, repair.teacher_steps, repair.max_steps) == ("perturbed", 200, 150)
    assert repair.teacher_optimizer is not None and repair.of_teacher() is not None
    assert repair.of_teacher().to_dict()["optimizer"] == "torch.optim.adam.Adam(lr=0.004)"
    assert repair.to_dict()["optimizer"] == "torch.optim.adam.Adam(lr=0.001)"
    falling = repair.to_dict()["teacher_scheduler"]
    assert falling == "torch.optim.lr_scheduler.CosineAnnealingLR(T_max=200)"
    assert repair.scheduler is None and repair.of_teacher().scheduler is not None
    without = PEER.repair(100)
    assert without.teacher_optimizer is None and without.teacher_scheduler is None
    assert (PEER.strategy.k, PEER.strategy.std, PEER.distill) == (0.01, 0.1, 0.1)
