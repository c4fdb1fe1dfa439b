"""The checks: pools, shared shadow models, the challenge's score, relearning, similarity."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch

pytest.importorskip("sklearn")

from benchmarks.methods import register_all
from benchmarks.study import checks
from benchmarks.study.cells import METHODS as ROWS
from benchmarks.study.checks import (
    CELLS,
    CHECKED,
    SCHEMA,
    Sizes,
    check_configs,
    checked,
    prepare,
    relearning,
    run,
    similarity,
)
from benchmarks.study.shadows import (
    Outputs,
    Shadows,
    _of_members,
    attacks,
    challenge,
    unlearned_model,
)
from fastunlearn.evaluation.config import Config, parse_config
from fastunlearn.evaluation.data import Samples, load_digits
from fastunlearn.evaluation.methods import METHODS
from fastunlearn.evaluation.one_seed import make_task
from fastunlearn.evaluation.shadow import PoolScores, ShadowScores
from fastunlearn.evaluation.training import predict
from fastunlearn.metrics import accuracy, layer_similarity
from fastunlearn.report.view import interval_of


@pytest.fixture(autouse=True, scope="module")
def registered() -> Iterator[None]:
    """Register everything for these tests, and leave the registry as it was."""
    with mock.patch.dict(METHODS):
        register_all()
        yield


def tiny(kind: str = "random", **changes: Any) -> Config:
    raw = {
        "dataset": "digits",
        "model": "small_cnn",
        "scenario": {"kind": kind, "fraction": 0.1},
        "seeds": [3],
        "train": {"epochs": 2, "lr": 0.003},
        "methods": ROWS,
    }
    return checked(parse_config(raw | changes))


AUDIT = {"max_steps": 10, "width": 4, "references": [1], "anchors": [0.5]}


@pytest.fixture(scope="module")
def samples() -> Samples:
    return load_digits()


@pytest.fixture(scope="module")
def few(samples: Samples) -> Samples:
    return samples.at(torch.arange(300))


def silent_line(line: str) -> None:
    """Say nothing."""


def places(of: Samples, among: Samples) -> list[int]:
    """Return the place of each image among others; all images must be different."""
    index = {bytes(x.numpy().tobytes()): i for i, x in enumerate(among.x)}
    assert len(index) == len(among)
    return [index[bytes(x.numpy().tobytes())] for x in of.x]


def test_pools_and_base_part_the_training_set(samples):
    data = Shadows(tiny(), samples, 6)._data
    task = make_task(tiny(), samples, 3)
    found = [places(part, samples) for part in (data.base, data.forget, data.retain)]
    together = sorted(sum(found, []))
    assert together == sorted(set(together))
    test = set(places(task.scenario.test, samples))
    assert set(together) == set(range(len(samples))) - test
    trained = len(data.base) + (len(data.forget) + len(data.retain)) / 2
    assert len(data.forget) / 2 / trained == pytest.approx(0.1, abs=0.002)
    assert len(data.retain) == pytest.approx(len(data.forget), abs=3)
    for part, where in zip((data.base, data.forget, data.retain), found, strict=True):
        assert torch.equal(part.y, samples.y[where])


def test_only_the_forget_pool_is_mislabelled_and_all_of_it(samples):
    plain = Shadows(tiny(), samples, 6)._data
    data = Shadows(tiny("mislabelled"), samples, 6)._data
    for own, other in ((data.base, plain.base), (data.retain, plain.retain)):
        assert torch.equal(own.x, other.x) and torch.equal(own.y, other.y)
    assert torch.equal(data.forget.x, plain.forget.x)
    assert bool((data.forget.y != plain.forget.y).all())


def test_only_the_forget_pool_is_shifted_and_all_of_it(few):
    plain = Shadows(tiny(), few, 6)._data
    data = Shadows(tiny(spdgan=AUDIT | {"epsilon": 0.2}), few, 6)._data
    for own, other in ((data.base, plain.base), (data.retain, plain.retain)):
        assert torch.equal(own.x, other.x) and torch.equal(own.y, other.y)
    assert torch.equal(data.forget.y, plain.forget.y)
    moved = (data.forget.x - plain.forget.x).abs().flatten(1).amax(1)
    assert bool((moved > 0).all()) and float(moved.max()) <= 0.2 + 1e-6


def test_other_scenarios_are_refused(samples):
    config = tiny(scenario={"kind": "class", "class": 3})
    with pytest.raises(ValueError, match="Shadows: scenario must be random or mislabelled"):
        Shadows(config, samples, 6)


@pytest.fixture(scope="module")
def shadows(few: Samples) -> Shadows:
    return Shadows(tiny(), few, 6)


def test_shadow_models_are_trained_once_and_unlearned_as_if_trained_anew(few, shadows):
    trainings = []
    train = shadows._train
    shadows._train = lambda *given: (trainings.append(given[2]), train(*given))[1]
    first = shadows.outputs("original")
    second = shadows.outputs("fine_tune")
    assert len(trainings) == len(set(trainings)) == 6
    for name in ("forget", "retain"):
        own, other = getattr(first.scores, name), getattr(second.scores, name)
        assert torch.equal(own.original, own.unlearned)
        assert torch.equal(own.original, other.original)
        assert not torch.equal(other.original, other.unlearned)
    fresh = Shadows(tiny(), few, 6).outputs("fine_tune")
    assert torch.equal(fresh.scores.forget.unlearned, second.scores.forget.unlearned)
    assert (fresh.retain, fresh.test) == (second.retain, second.test)
    assert 0.0 < second.test <= 1.0 and second.retain != first.retain


def test_every_shadow_model_is_unlearned_with_its_own_sets_and_seed(few, shadows, monkeypatch):
    kind, tasks = METHODS["fine_tune"], []
    spy = replace(kind, run=lambda task, method: (tasks.append(task), kind.run(task, method))[1])
    monkeypatch.setitem(METHODS, "fine_tune", spy)
    found = shadows.outputs("fine_tune")
    assert len({task.seed for task in tasks}) == 6
    pools = shadows._data
    for number, task in enumerate(tasks):
        members = found.scores.forget.members[number]
        assert torch.equal(task.scenario.forget.x, pools.forget.at(members.nonzero().flatten()).x)
        size = len(pools.base) + int(found.scores.retain.members[number].sum())
        assert len(task.scenario.retain) == size


def test_retraining_leaves_no_trace_of_the_forget_half(shadows):
    once, again = shadows.outputs("retrain"), shadows.outputs("retrain_again")
    assert not torch.equal(once.scores.forget.unlearned, again.scores.forget.unlearned)
    assert challenge(again, again)["quality"] == 1.0


def test_the_row_of_attacks_says_what_it_could_have_found(shadows):
    found = attacks(shadows.outputs("original").scores)
    assert set(found) == {"forget", "retain"}
    n = found["forget"]["auc"]["n"]
    assert found["forget"]["auc"]["low"] < found["forget"]["auc"]["high"]
    assert [rate["fpr"] for rate in found["forget"]["rates"]] == [0.001, 0.01]
    # 6 models with half of some 40 examples each resolve 1 %, not 0.1 %
    assert found["forget"]["rates"][0]["tpr"] is None and found["forget"]["rates"][1]["tpr"] >= 0
    assert list(found["forget"]["undefined"]) == ["tpr_at_0.001"]
    said = found["forget"]["strength"]
    assert said.startswith(f"6 models attacked, 2 shadow models on each side of a ratio, {n} ex")
    assert f"{found['forget']['detectable']:.3f}" in said


def pool(unlearned: torch.Tensor, members: torch.Tensor) -> PoolScores:
    return PoolScores(members, unlearned, unlearned)


MEMBERS = torch.tensor([[1, 0, 1], [0, 1, 0], [0, 0, 1], [1, 1, 0]]).bool()


def test_scores_of_the_models_that_unlearned_an_example():
    scores = torch.arange(12.0).double().view(4, 3)
    assert _of_members(pool(scores, MEMBERS)).tolist() == [[0.0, 4.0, 2.0], [9.0, 10.0, 8.0]]


def outputs(scores: torch.Tensor, members: torch.Tensor, retain: float, test: float) -> Outputs:
    own = pool(scores, members)
    return Outputs(ShadowScores(own, own), retain, test)


def test_the_challenge_by_hand():
    members = MEMBERS.repeat(2, 1)
    theirs = outputs(torch.randn(8, 3, dtype=torch.double), members, 0.8, 0.5)
    same = challenge(replace(theirs, retain=0.4, test=0.25), theirs)
    assert (same["quality"], same["separated"]) == (1.0, 0.0)
    assert same["score"] == pytest.approx(0.5 * 0.5)
    assert same["models_per_side"] == 4
    assert same["greatest_finite_epsilon"] == pytest.approx(1.0986123)  # log 3
    # far from all of the retrained models on the first example alone
    moved = theirs.scores.forget.unlearned.clone()
    moved[:, 0] += 100.0
    far = challenge(outputs(moved, members, 0.8, 0.5), theirs)
    assert far["separated"] == pytest.approx(1 / 3)
    assert far["quality"] == far["score"] == pytest.approx((2.0**-12 + 1 + 1) / 3)


@pytest.fixture(scope="module")
def prepared(few: Samples) -> Any:
    return prepare(make_task(tiny(), few, 3))


def test_prepared_models_are_those_of_the_evaluation(few, prepared):
    task = make_task(tiny(), few, 3)
    for name, model in (("original", prepared.task.original), ("retrain", prepared.retrained)):
        expected = METHODS[name].run(task, task.config.methods[name]).model.state_dict()
        assert all(torch.equal(expected[k], v) for k, v in model.state_dict().items())
    audited = prepare(make_task(tiny(spdgan=AUDIT), few, 3)).task
    assert audited.scenario.unshifted_forget is not None


def test_a_method_runs_through_its_registered_kind_with_its_options(prepared, monkeypatch):
    task, seen = prepared.task, []
    kind = METHODS["recipe"]

    def spy(given, method):
        seen.append((given, method))
        return kind.run(given, method)

    monkeypatch.setitem(METHODS, "recipe", replace(kind, run=spy))
    model = unlearned_model(task, "recipe_top_k")
    assert seen[0][0] is task and seen[0][1].options["select"] == "top_k"
    same = unlearned_model(task, "original")
    assert same is not task.original and model is not task.original
    before = task.original.state_dict()
    assert all(torch.equal(before[k], v) for k, v in same.state_dict().items())
    assert not all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_relearning_counts_steps_and_the_censored(prepared):
    untrained = copy.deepcopy(prepared.task.original)
    torch.nn.init.zeros_(untrained.output.weight)
    pairs = [(prepared, prepared.task.original), (prepared, untrained), (prepared, untrained)]
    found = relearning(pairs, max_steps=1)
    assert found["steps"] == [0, 1, 1] and found["reached"] == [True, False, False]
    assert (found["censored"], found["max_steps"], found["seeds"]) == (2, 1, [3, 3, 3])
    assert found["median"] == float("inf")  # written as None
    forget = prepared.task.scenario.forget
    assert found["target"] == [accuracy(predict(prepared.task.original, forget), forget.y)] * 3
    assert relearning(pairs[:1], max_steps=1)["median"] == 0.0


def test_similarity_to_the_retrained_model_is_by_layer(prepared):
    same = similarity([(prepared, prepared.retrained)] * 2)
    assert list(same) == ["features.0", "features.3", "hidden", "output"]
    for layer in same.values():
        assert layer["values"] == pytest.approx([1.0, 1.0])
    other = similarity([(prepared, prepared.task.original)])
    forget, original = prepared.task.scenario.forget.x, prepared.task.original
    direct = layer_similarity(original, prepared.retrained, forget, debiased=True)
    for name, layer in other.items():
        assert layer["values"] == [direct[name]] and layer["mean"] < 0.9999
        assert layer["low"] is None and layer["high"] is None
    both = similarity([(prepared, prepared.retrained), (prepared, original)])
    for name, layer in both.items():
        stat = interval_of([1.0, direct[name]])
        assert (layer["low"], layer["high"]) == pytest.approx(stat.interval, abs=1e-4)


def test_a_run_writes_every_row_and_goes_on_with_those_it_lacks(few, tmp_path, monkeypatch):
    out = tmp_path / "new" / "checks.json"
    configs = {"shifted": tiny(spdgan=AUDIT, seeds=[3, 4]), "wrong": tiny("mislabelled")}
    monkeypatch.setattr(checks, "CHECKED", ("original", "top_k"))
    sizes = Sizes(shadow_models=6, relearn_steps=3)
    run(configs, few, sizes, out, silent_line)
    first = json.loads(out.read_text())
    assert first["schema"] == SCHEMA and first["config"]["sizes"]["shadow_models"] == 6
    names = [(row["cell"], row["method"]) for row in first["rows"]]
    assert names == [(c, m) for c in ("shifted", "wrong") for m in ("original", "top_k")]
    for row in first["rows"]:
        assert set(row) == {
            "cell", "method", "label", "seconds", "ulira", "challenge", "relearning", "similarity",
        }  # fmt: skip
        assert set(row["ulira"]) == {"forget", "retain"}
    assert first["rows"][0]["relearning"]["steps"] == [0, 0]
    lost = first["rows"].pop()
    first["rows"][0]["label"] = "kept"
    out.write_text(json.dumps(first))
    told: list[str] = []
    second = run(configs, few, sizes, out, told.append)
    assert [line.rpartition(":")[0] for line in told] == ["wrong: Top-K, K = 1 %"]
    assert second["rows"][:3] == first["rows"]
    assert {**second["rows"][3], "seconds": 0} == {**lost, "seconds": 0}
    with pytest.raises(ValueError, match="resume: config of"):
        run(configs, few, Sizes(8, 3), out, silent_line)


def test_the_studys_cells_and_settings_are_checked():
    configs = check_configs()
    assert tuple(configs) == CELLS
    for name, config in configs.items():
        assert tuple(config.methods) == ("retrain", *CHECKED)
        assert len(config.seeds) == 5 and (config.spdgan is not None) == ("shifted" in name)
        assert config.methods["salun"].kind == "salun"
        assert config.methods["recipe_top_k"].options["select"] == "top_k"
    assert set(CHECKED) - {"original"} <= set(ROWS)
