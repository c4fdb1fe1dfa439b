"""Methods: what each may read, what it must leave alone, and that it does its job."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from fastunlearn.evaluation.config import parse_config
from fastunlearn.evaluation.data import Samples, TensorLoader, derive_seed
from fastunlearn.evaluation.methods import METHODS, RecipeOptions
from fastunlearn.evaluation.models import build_model
from fastunlearn.evaluation.one_seed import make_task
from fastunlearn.evaluation.parsing import ConfigError
from fastunlearn.evaluation.task import Task
from fastunlearn.evaluation.training import predict
from fastunlearn.recipes import RECOMMENDED

from .conftest import tiny_config

UNLEARNERS = [name for name in METHODS if "retrain" not in name and name != "original"]


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
    raw["methods"] |= {"retrain_again": {}, "recipe": {}}
    bare = make_task(parse_config(raw), digits, seed=0)
    return replace(bare, original=run(bare, "original").model)


def poisoned(task: Task) -> Task:
    """Return the task with NaN for every forget image and no original model."""
    scenario = task.scenario
    forget = Samples(torch.full_like(scenario.forget.x, torch.nan), scenario.forget.y)
    return replace(task, scenario=replace(scenario, forget=forget), original=None)


@pytest.mark.parametrize("name", ["retrain", "retrain_again"])
def test_retraining_reads_neither_the_forget_set_nor_the_original(task, name):
    clean = weights(run(task, name).model)
    assert equal(clean, weights(run(poisoned(task), name).model))
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


def test_the_second_retraining_starts_elsewhere_and_reads_another_order(task):
    still = replace(task.config, train=replace(task.config.train, lr=1e-30))
    first, second = (
        run(replace(task, config=still), name).model for name in ("retrain", "retrain_again")
    )
    assert not equal(weights(first), weights(second))
    orders = []
    for purpose in ("retrain", "retrain again"):
        seed = derive_seed(0, purpose, "batch order")
        orders.append(torch.cat([y for _, y in TensorLoader(task.scenario.retain, 64, seed=seed)]))
    assert not torch.equal(*orders)


def repair_batches(task: Task, entry: dict, distill: float) -> list[torch.Tensor]:
    """Return the inputs of a method's two repair epochs, in order.

    They are the last that the model is given; scoring and checks come before. A step gives it one
    batch, with distillation two more: the forget batch, to the model and to its reference copy.
    """
    seen: list[torch.Tensor] = []

    def note(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        seen.append(inputs[0].clone())

    original = copy.deepcopy(task.original)
    original.register_forward_pre_hook(note)
    raw = tiny_config()
    raw |= {"methods": {"row": entry}, "repair": {"epochs": 2, "distill": distill}}
    method = parse_config(raw).methods["row"]
    METHODS[method.kind].run(replace(task, original=original), method)
    count = 2 * len(task.retain_loader(64)) * (3 if distill else 1)
    assert len(seen) >= count
    return seen[-count:]


def test_all_methods_repair_on_the_same_sequence_of_batches(task):
    top_k, random_k = {"kind": "top_k", "k": 9}, {"kind": "random_k", "k": 9}
    for distill in (0.0, 0.1):
        expected = repair_batches(task, random_k, distill)
        assert equal(repair_batches(task, top_k, distill), expected)
        assert equal(repair_batches(task, {**top_k, "score": "ratio"}, distill), expected)
    expected = repair_batches(task, random_k, 0.0)
    assert equal(repair_batches(task, {"kind": "fine_tune"}, 0.0), expected)
    labels = [y for _, y in task.retain_loader(64)]
    assert not torch.equal(torch.cat(labels), task.scenario.retain.y), "the order is shuffled"


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


def test_a_partly_retrained_model_keeps_a_stratified_nested_part(task, monkeypatch):
    from fastunlearn.evaluation import retraining

    seen: dict[float, Samples] = {}
    forget, retain = task.scenario.forget, task.scenario.retain

    def note(task: Task, samples: Samples, purpose: str) -> None:
        assert purpose == "partly retrained", "one seed of weights for the whole series"
        seen[kept] = samples

    monkeypatch.setattr(retraining, "train_fresh", note)
    for kept in (0.5, 0.1, 1e-6):
        raw = {**tiny_config(), "methods": {"partly_retrained": {"kept": kept}}}
        method = parse_config(raw).methods["partly_retrained"]
        METHODS["partly_retrained"].run(task, method)
    sizes = [len(samples) - len(retain) for samples in seen.values()]
    assert sizes == [round(0.5 * len(forget)), round(0.1 * len(forget)), 1]
    half, tenth = (samples.x[: len(samples) - len(retain)] for samples in list(seen.values())[:2])
    assert torch.equal(half[: len(tenth)], tenth)
    assert all(any(torch.equal(x, y) for y in forget.x) for x in half)
    counts = seen[0.5].y[: sizes[0]].bincount(minlength=10)
    assert int((2 * counts - forget.y.bincount()).abs().max()) <= 2
    assert torch.equal(seen[0.5].x[sizes[0] :], retain.x)


def test_the_default_recipe_is_the_recommended_one(task):
    assert RecipeOptions().recipe() == RECOMMENDED
    with pytest.raises(ConfigError, match="select must be one of 'top_k', 'random_k'"):
        RecipeOptions(select="best_k")
    with pytest.raises(ConfigError, match="Recipe: passes must be a finite number > 0"):
        RecipeOptions(passes=0.0)


def test_the_recipe_is_that_of_the_library(task):
    outcome = run(task, "recipe")
    model = task.copy_of_original()
    result = RECOMMENDED.unlearn(
        model,
        forget=task.forget_loader(64),
        retain=task.retain_loader(64),
        loss_fn=torch.nn.functional.cross_entropy,
        seed=derive_seed(task.seed, "perturb"),
    )
    assert equal(weights(outcome.model), weights(model))
    assert outcome.selected["k"] == result.receipt.count
