"""Methods: what each may read, what it must leave alone, and that it does its job."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from fastunlearn.evaluation.config import parse_config
from fastunlearn.evaluation.data import Samples, derive_seed
from fastunlearn.evaluation.methods import METHODS, Task
from fastunlearn.evaluation.models import build_model
from fastunlearn.evaluation.runner import make_task
from fastunlearn.evaluation.training import predict

from .conftest import tiny_config

UNLEARNERS = [name for name in METHODS if name not in ("original", "retrain")]


def run(task: Task, name: str):
    method = task.config.methods[name]
    return METHODS[method.kind].run(task, method)


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [value.clone() for value in model.state_dict().values()]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture(scope="module")
def task(digits) -> Task:
    raw = tiny_config()
    raw["train"] = {"epochs": 3, "lr": 0.003}
    bare = make_task(parse_config(raw), digits, seed=0)
    return replace(bare, original=run(bare, "original").model)


def poisoned(task: Task) -> Task:
    """Return the task with NaN for every forget image and no original model."""
    scenario = task.scenario
    forget = Samples(torch.full_like(scenario.forget.x, torch.nan), scenario.forget.y)
    return replace(task, scenario=replace(scenario, forget=forget), original=None)


def test_retraining_reads_neither_the_forget_set_nor_the_original(task):
    clean = weights(run(task, "retrain").model)
    assert equal(clean, weights(run(poisoned(task), "retrain").model))
    # the same poison does reach a model that is trained on the forget set
    assert any(value.isnan().any() for value in weights(run(poisoned(task), "original").model))


def test_retraining_starts_from_fresh_weights(task):
    still = replace(task.config, train=replace(task.config.train, lr=1e-30))
    model = run(replace(task, config=still), "retrain").model
    fresh = build_model("small_cnn", 8, 10, seed=derive_seed(0, "retrain", "weights"))
    assert equal(weights(model), weights(fresh))
    assert not equal(weights(fresh), weights(task.original))
    first = build_model("small_cnn", 8, 10, seed=derive_seed(0, "original", "weights"))
    assert not equal(weights(fresh), weights(first))


@pytest.mark.parametrize("name", UNLEARNERS)
def test_methods_work_on_a_copy_and_repeat(task, name):
    before = weights(task.original)
    state = torch.get_rng_state()
    first, second = run(task, name), run(task, name)
    assert torch.equal(torch.get_rng_state(), state)
    assert equal(weights(task.original), before)
    assert not equal(weights(first.model), before)
    assert equal(weights(first.model), weights(second.model))
    assert first.model is not task.original and not first.model.training
    assert first.seconds > 0.0


@pytest.mark.parametrize(("name", "count"), [("top_k", 354), ("random_k", 50)])
def test_perturbations_say_what_they_selected(task, name, count):
    selected = run(task, name).selected
    parameters = dict(task.original.named_parameters())
    assert selected["k"] == count == sum(t["selected"] for t in selected["tensors"])
    found = {t["name"]: t["numel"] for t in selected["tensors"]}
    assert found == {n: p.numel() for n, p in parameters.items()}


def test_without_repair_only_the_selected_parameters_differ(task):
    method = task.config.methods["top_k"]
    bare = replace(method, repair=replace(method.repair, epochs=0))
    model = METHODS["top_k"].run(task, bare).model
    old = dict(task.original.named_parameters())
    changed = sum(int((p != old[n]).sum()) for n, p in model.named_parameters())
    assert changed == 354


def test_fine_tuning_takes_the_steps_of_the_repairs_and_never_sees_the_forget_set(task):
    steps: dict[str, set[int]] = {}
    for name in ("top_k", "fine_tune"):
        seen = steps.setdefault(name, set())

        def note(phase: str, done: int, total: int | None, seen: set[int] = seen) -> None:
            if phase == "repair":
                seen.add(done)

        run(replace(task, progress=note), name)
    loader = task.retain_loader(task.config.methods["fine_tune"].repair.batch_size)
    assert max(steps["top_k"]) == len(loader)
    clean = weights(run(task, "fine_tune").model)
    assert equal(
        clean, weights(run(replace(poisoned(task), original=task.original), "fine_tune").model)
    )


def forget_loss(task: Task, model: nn.Module) -> float:
    forget = task.scenario.forget
    return float(nn.functional.cross_entropy(predict(model, forget), forget.y))


def test_gradient_ascent_climbs_and_stops_at_a_uniform_guess(task):
    method = task.config.methods["gradient_ascent"]
    start = forget_loss(task, task.original)
    few = replace(method, options={**method.options, "steps": 2})
    many = replace(method, options={**method.options, "steps": 2000, "lr": 0.1})
    climbed = forget_loss(task, METHODS["gradient_ascent"].run(task, few).model)
    bounded = forget_loss(task, METHODS["gradient_ascent"].run(task, many).model)
    assert start < climbed < bounded < 2 * torch.log(torch.tensor(10.0))


def test_a_method_before_the_original_is_trained_is_an_error(task):
    with pytest.raises(ValueError, match="original must be trained"):
        run(replace(task, original=None), "fine_tune")
