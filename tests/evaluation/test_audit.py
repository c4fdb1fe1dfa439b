"""Audits: protocol, anchors, gain, what is written."""

from __future__ import annotations

import copy
import itertools
import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fastunlearn.evaluation import audit, retraining
from fastunlearn.evaluation.anchors import anchor_order, out_of_order
from fastunlearn.evaluation.audit import gain, mean_accuracy
from fastunlearn.evaluation.config import ConfigError, parse_config
from fastunlearn.evaluation.data import Samples, derive_seed
from fastunlearn.evaluation.methods import METHODS
from fastunlearn.evaluation.models import build_model
from fastunlearn.evaluation.one_seed import counted_steps, make_task
from fastunlearn.evaluation.results import (
    AUDIT_METRICS,
    METRICS,
    ResultsError,
    read_results,
    summarise,
    validate,
    without_times,
)
from fastunlearn.evaluation.retraining import train_fresh
from fastunlearn.evaluation.runner import run
from fastunlearn.evaluation.task import Outcome, Task
from fastunlearn.evaluation.training import predict
from fastunlearn.metrics import accuracy, undefined_reason
from fastunlearn.spdgan import SPDGAN

from .conftest import tiny_config

COMMITTED = [
    Path(__file__).parents[2] / "docs" / "results" / name
    for name in ("mnist-5-seeds.json", "sweep.json")
]


def audit_config(**changes: Any) -> dict[str, Any]:
    """Return a tiny configuration whose generator hardly learns, but shifts."""
    raw = tiny_config()
    raw["methods"] = {"fine_tune": None}
    raw["train"] = {"epochs": 2, "lr": 0.003}
    raw["spdgan"] = {
        "max_steps": 20,
        "width": 8,
        "lr": 0.03,
        "references": [1],
        "retrained": 2,
        "anchors": [0.5, 0.05],
    }
    return raw | changes


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, Any]]:
    """Return the folder and the results of an audit over two seeds."""
    out = tmp_path_factory.mktemp("audited")
    return out, run(parse_config(audit_config()), out)


def test_the_block_gets_defaults_and_reads_back():
    config = parse_config(audit_config(spdgan={"epsilon": 0.2, "radius": None}))
    assert (config.spdgan.references, config.spdgan.batch_size) == ((1.0, 1.0, 0.33, 0.17), 64)
    assert config.spdgan.retrained == 3
    assert config.spdgan.anchors == (0.5, 0.1, 0.02) and config.spdgan.gan.epsilon == 0.2
    assert parse_config(config.to_dict()) == config
    rows = {n: m.options["kept"] for n, m in config.methods.items() if "kept" in m.options}
    assert rows == {
        "partly_retrained_0.5": 0.5, "partly_retrained_0.1": 0.1, "partly_retrained_0.02": 0.02,
    }  # fmt: skip
    assert config.digest() != parse_config(audit_config()).digest()


def test_a_configuration_becomes_an_audit_once():
    plain = parse_config(tiny_config())
    config = plain.as_audit()
    assert plain.spdgan is None and "spdgan" not in plain.to_dict()
    assert config.spdgan is not None and config.as_audit() is config
    assert list(config.methods)[:6] == list(plain.methods) and len(config.methods) == 9


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"spdgan": None}, ["spdgan must be a mapping", "None"]),
        ({"spdgan": {"steps": 3}}, ["spdgan", "'references'", "'max_steps'", "'steps'"]),
        ({"spdgan": {"references": 2}}, ["spdgan.references", "list", "2"]),
        ({"spdgan": {"references": []}}, ["spdgan.references", "[]"]),
        ({"spdgan": {"references": [0.5, 0.0]}}, ["spdgan.references", "above 0", "[0.5, 0.0]"]),
        ({"spdgan": {"retrained": 0}}, ["spdgan.retrained", "at least 1", "0"]),
        ({"spdgan": {"batch_size": 1.5}}, ["spdgan.batch_size", "whole number", "1.5"]),
        ({"spdgan": {"epsilon": -0.1}}, ["spdgan:", "epsilon", "-0.1"]),
        ({"spdgan": {"epsilon": None}}, ["spdgan.epsilon", "number", "None"]),
        ({"spdgan": {"radius": "far"}}, ["spdgan.radius", "number", "'far'"]),
        ({"spdgan": {"anchors": 0.5}}, ["spdgan.anchors", "list", "0.5"]),
        ({"spdgan": {"anchors": [0.1, 0.5]}}, ["spdgan.anchors", "fall", "[0.1, 0.5]"]),
        ({"spdgan": {"anchors": [1.0]}}, ["spdgan.anchors", "below 1", "1.0"]),
        ({"original": "a"}, ["original must be absent in an audit", "'a'"]),
        ({"methods": {"partly_retrained": {"kept": 1.0}}}, ["kept", "below 1", "1.0"]),
    ],
)
def test_a_wrong_value_is_refused_by_name(change, words):
    with pytest.raises(ConfigError) as caught:
        parse_config(audit_config(**change))
    for word in words:
        assert word in str(caught.value)


def test_figures_are_those_of_the_saved_generator(audited, digits):
    out, results = audited
    entry = results["runs"][0]
    task = make_task(parse_config(audit_config()), digits, 0)
    forget = task.scenario.forget
    moved = SPDGAN.load(out / "spdgan" / "seed-0").perturb(forget.x)
    reach = float((moved - forget.x).abs().max())
    assert reach == pytest.approx(entry["audit"]["closeness"]["linf_max"]) and reach > 0.05
    # the retrained model depends on nothing of the audit, so it can be had again without one
    model = METHODS["retrain"].run(task, task.config.methods["retrain"]).model
    own = entry["methods"]["retrain"]["metrics"]
    assert own["unshifted_forget_accuracy"] == accuracy(predict(model, forget), forget.y)
    shifted = accuracy(predict(model, replace(forget, x=moved)), forget.y)
    assert own["forget_accuracy"] == shifted != own["unshifted_forget_accuracy"]


def test_figures_fit_together(audited):
    _, results = audited
    for entry in results["runs"]:
        methods = {name: m["metrics"] for name, m in entry["methods"].items()}
        first, retrained = methods["original"], entry["audit"]["retrained"]
        aim = {data: sum(found) / len(found) for data, found in retrained.items()}
        assert {data: len(found) for data, found in retrained.items()} == {
            "shifted": 2,
            "unshifted": 2,
            "test": 2,
        }
        assert retrained["test"][0] == methods["retrain"]["test_accuracy"]
        keys = ("forget_accuracy", "unshifted_forget_accuracy")
        own = methods["retrain"]
        assert [own[key] for key in keys] == [retrained[d][0] for d in ("shifted", "unshifted")]
        spread = {
            data: first[key] - aim[data]
            for key, data in zip(keys, ("shifted", "unshifted"), strict=True)
        }
        for own in methods.values():
            assert set(own) == {*METRICS, *AUDIT_METRICS}
            degree = first["forget_accuracy"] - own["forget_accuracy"]
            assert own["unlearning_degree"] == pytest.approx(degree)
            plain = first["unshifted_forget_accuracy"] - own["unshifted_forget_accuracy"]
            assert own["unshifted_degree"] == pytest.approx(plain)
            for key, data, lost in (
                ("unlearning_degree_normalised", "shifted", degree),
                ("unshifted_degree_normalised", "unshifted", plain),
            ):
                if spread[data] == 0.0:
                    assert own[key] is None
                else:
                    assert own[key] == pytest.approx(lost / spread[data])
        assert first["unlearning_degree"] == 0.0
        said = entry["audit"]
        assert said["spread"]["shifted"] == pytest.approx(spread["shifted"])
        assert said["spread"]["unshifted"] == pytest.approx(spread["unshifted"])
        order = ["original", "partly_retrained_0.5", "partly_retrained_0.05", "retrain"]
        assert said["anchors"]["order"] == order
        degrees = [methods[name]["unlearning_degree"] for name in order[:-1]]
        degrees.append(spread["shifted"])
        assert said["anchors"]["degrees"] == pytest.approx(degrees)
        wrong = [[order[i], order[j]] for i, j in out_of_order(said["anchors"]["degrees"])]
        assert said["anchors"]["out_of_order"] == wrong
        assert said["anchors"]["in_order"] == (not wrong)


def test_an_audit_writes_generator_picture_and_valid_results(audited):
    out, results = audited
    assert read_results(out / "results.json") == results
    assert sorted(os.listdir(out / "pictures")) == ["seed-0.png", "seed-1.png"]
    assert (out / "pictures" / "seed-0.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(os.listdir(out / "spdgan")) == ["seed-0", "seed-1"]
    assert set(results["summary"]["original"]) >= set(AUDIT_METRICS)


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.name)
def test_committed_results_are_still_readable(path):
    results = read_results(path)
    assert summarise(results["runs"]).keys() == results["summary"].keys()


def test_an_audit_of_one_seed_gives_what_it_gives_among_others(audited, tmp_path):
    alone = run(parse_config(audit_config(seeds=[1])), tmp_path)
    wanted = audited[1]["runs"][1]
    assert json.dumps(without_times(alone["runs"][0])) == json.dumps(without_times(wanted))
    first, again = (p / "pictures" / "seed-1.png" for p in (audited[0], tmp_path))
    assert first.read_bytes() == again.read_bytes()


def silent_step(labels: list[str]):
    from contextlib import contextmanager

    @contextmanager
    def step(label: str):
        labels.append(label)
        yield lambda phase, done, total: None

    return step


def test_references_have_seeds_of_their_own_and_see_the_retain_set_alone(digits, monkeypatch):
    raw = audit_config()
    raw["spdgan"]["references"] = [1, 0.5]
    raw["train"] = {"epochs": 4, "lr": 1e-30}
    task = make_task(parse_config(raw), digits, 3)
    seen: list[tuple[int, str, float]] = []

    def note(task: Task, samples: Samples, purpose: str, share: float = 1.0) -> Outcome:
        seen.append((len(samples), purpose, share))
        assert purpose == "original" or samples is task.scenario.retain
        return train_fresh(task, samples, purpose, share=share)

    monkeypatch.setattr(audit, "train_fresh", note)
    monkeypatch.setattr(retraining, "train_fresh", note)
    labels: list[str] = []
    instrument = audit.make_instrument(task, silent_step(labels))
    assert labels == [
        "Reference model 1", "Reference model 2", "SPD-GAN", "Retrained model 2",
        "Original on unshifted data",
    ]  # fmt: skip
    assert len(labels) == audit.extra_steps(task.config)
    retain, everything = len(task.scenario.retain), len(task.scenario.retain.y) + 143
    assert seen == [
        (retain, "reference 1", 1.0), (retain, "reference 2", 0.5), (retain, "retrained 2", 1.0),
        (everything, "original", 1.0),
    ]  # fmt: skip
    own = [METHODS[name].run(task, None).model for name in ("retrain", "retrain_again")]
    models = [*instrument.references, *instrument.retrained, *own]
    first = [model.hidden.weight for model in models]
    assert len(first) == 5
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(first, 2))
    plain = build_model("small_cnn", 8, 10, seed=derive_seed(3, "original", "weights"))
    assert torch.equal(instrument.plain.hidden.weight, plain.hidden.weight)


def test_a_reference_gets_its_share_of_the_epochs(digits):
    raw = audit_config()
    raw["train"] = {"epochs": 6}
    raw["spdgan"]["references"] = [1, 0.33, 0.01]
    task = make_task(parse_config(raw), digits, 0)
    batches = math.ceil(len(task.scenario.retain) / 64)
    for number, epochs in ((1, 6), (2, 2), (3, 1)):
        with counted_steps() as steps:
            retraining.train_reference(task, number)
        assert steps() == epochs * batches


def test_anchors_are_ordered_by_what_they_keep():
    rows = parse_config(audit_config()).to_dict()["methods"]
    rows["more"] = {"kind": "partly_retrained", "kept": 0.9}
    assert anchor_order(rows) == [
        "original", "more", "partly_retrained_0.5", "partly_retrained_0.05", "retrain",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("degrees", "wrong"),
    [
        ([0.0, 0.1, 0.1, 0.5], []),
        ([0.0, 0.2, 0.1, 0.5], [(1, 2)]),
        ([0.0, 0.1, 0.6, 0.5], [(2, 3)]),
        ([0.0, -0.1, 0.2, 0.5], [(0, 1)]),
        ([0.0, 0.0, 0.0], [(0, 2)]),
        ([0.0, 0.0], [(0, 1)]),
        ([0.0, -0.2], [(0, 1)]),
    ],
)
def test_what_is_out_of_order_is_named(degrees, wrong):
    assert out_of_order(degrees) == wrong


class Knows(torch.nn.Module):
    """Gets the first `right` of the examples 0, 1, 2, ... right; all are of class 0."""

    def __init__(self, right: int) -> None:
        super().__init__()
        self.right = right

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        known = (x.flatten() < self.right).float()
        return torch.stack([known, 1.0 - known], dim=1)


@pytest.mark.parametrize("total", [14, 144, 400])
def test_the_mean_of_equal_models_is_exact(total):
    """A mean of quotients misses by a rounding, and a spread of 0 then passes for a gain."""
    x = torch.arange(total).reshape(-1, 1, 1, 1).float()
    samples = Samples(x, torch.zeros(total, dtype=torch.int64))
    for right in range(total + 1):
        alone = accuracy(predict(Knows(right), samples), samples.y)
        for around in (0, min(right, total - right)):
            models = [Knows(right - around), Knows(right), Knows(right + around)]
            assert mean_accuracy(models, samples) == alone == right / total


def test_gain_by_hand():
    assert gain(0.75, 0.0625) == 12.0
    for spread in (0.0, -0.25):
        found = gain(0.5, spread)
        assert math.isnan(found) and "does not tell" in (undefined_reason(found) or "")


def put(place: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for parent in parents:
        place = place[parent]
    place[last] = value


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("gain", "12", "gain must be a finite number"),
        ("gain", None, "reason for null gains only"),
        ("retrained.shifted", 0.2, "retrained.shifted must be list"),
        ("retrained.other", [], "other"),
        ("retrained.shifted", [0.2, "0.3"], "retrained.shifted must be a finite number"),
        ("fit.steps", "4", "fit.steps must be int"),
        ("closeness.l2", math.nan, "closeness.l2 must be a finite number"),
        ("anchors.in_order", 1, "anchors.in_order must be bool"),
        ("spread.plain", None, "spread.plain must be a finite number"),
        ("more", 1, "more"),
    ],
)
def test_a_broken_audit_is_refused_by_name(audited, path, value, words):
    results = copy.deepcopy(audited[1])
    said = results["runs"][0]["audit"]
    said["undefined"].pop("gain", None)
    said["gain"] = 12.0
    validate(results)
    put(said, path, value)
    with pytest.raises(ResultsError) as caught:
        validate(results)
    assert words in str(caught.value)


def test_a_file_from_before_several_retrained_models_is_readable(audited):
    results = copy.deepcopy(audited[1])
    for entry in results["runs"]:
        del entry["audit"]["retrained"]["test"]
    validate(results)
    for entry in results["runs"]:
        del entry["audit"]["retrained"]
    validate(results)


def test_audit_figures_belong_to_audits_alone(audited):
    results = copy.deepcopy(audited[1])
    del results["runs"][0]["audit"]
    with pytest.raises(ResultsError, match="unlearning_degree"):
        validate(results)
