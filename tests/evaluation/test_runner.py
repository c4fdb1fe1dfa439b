"""Runs: repeatable, resumable, and nothing is lost on Ctrl-C."""

from __future__ import annotations

import copy
import json
import os
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from fastunlearn.evaluation.config import ConfigError, parse_config
from fastunlearn.evaluation.methods import METHODS
from fastunlearn.evaluation.models import build_model
from fastunlearn.evaluation.one_seed import Event
from fastunlearn.evaluation.results import METRICS, ResultsError, read_results, without_times
from fastunlearn.evaluation.runner import Interrupted, run


def text(results) -> str:
    return json.dumps(without_times(results), sort_keys=True)


def interrupt_at(monkeypatch, seed: int, kind: str = "fine_tune") -> None:
    """Let a method of one seed raise as Ctrl-C does."""
    real = METHODS[kind]

    def stop(task, method):
        if task.seed == seed:
            raise KeyboardInterrupt
        return real.run(task, method)

    monkeypatch.setitem(METHODS, kind, replace(real, run=stop))


def test_a_run_writes_complete_and_valid_results(finished):
    out, results = finished
    assert read_results(out / "results.json") == results
    assert results["complete"] and [r["seed"] for r in results["runs"]] == [0, 1]
    assert os.listdir(out) == ["results.json"]
    for entry in results["runs"]:
        assert sum(entry["sizes"].values()) == 1797
        methods = entry["methods"]
        assert list(methods) == list(results["config"]["methods"]) == list(results["summary"])
        assert methods["retrain"]["run_time_ratio"] == 1.0
        assert methods["retrain"]["metrics"]["js_to_retrained"] == 0.0
        assert methods["retrain"]["metrics"]["average_gap"] == 0.0
        assert methods["original"]["metrics"]["parameter_distance"] == 0.0
        assert methods["original"]["metrics"]["memory_retention_rate"] == 1.0
        assert methods["original"]["selected"] is None
        assert methods["top_k"]["selected"]["k"] == 354
    assert set(results["summary"]["top_k"]) == {*METRICS, "seconds", "run_time_ratio"}


def test_the_same_seed_gives_the_same_results_alone_or_resumed(finished, raw_config, tmp_path):
    _, whole = finished
    first = run(parse_config({**raw_config, "seeds": [0]}), tmp_path)
    assert text(first["runs"][0]) == text(whole["runs"][0])
    assert first["complete"]
    events: list[Event] = []
    second = run(parse_config(raw_config), tmp_path, resume=True, progress=events.append)
    assert {event.seed for event in events} == {1}
    assert second["runs"][0] == first["runs"][0], "the first seed is kept, times and all"
    assert text(second) == text(whole)


def test_figures_of_the_attack_and_of_the_gap_fit_together(finished):
    for entry in finished[1]["runs"]:
        aim = entry["methods"]["retrain"]["metrics"]
        for method in entry["methods"].values():
            own = method["metrics"]
            assert own["mia_auc_low"] < own["mia_auc"] < own["mia_auc_high"]
            assert 0.0 < own["mia_loss_auc"] < 1.0
            assert 100 < own["mia_examples_per_side"] <= entry["sizes"]["forget"]
            names = ("forget_accuracy", "retain_accuracy", "test_accuracy")
            gap = sum(abs(own[n] - aim[n]) for n in names)
            assert own["average_gap_without_attack"] == pytest.approx(gap / 3)
            whole = gap + abs(own["mia_auc"] - aim["mia_auc"])
            assert own["average_gap"] == pytest.approx(whole / 4)
            ratio = own["retain_accuracy"] / aim["retain_accuracy"]
            assert own["memory_retention_rate_normalised"] == pytest.approx(ratio)


def test_a_saved_original_is_loaded_and_gives_the_same_figures(raw_config, tmp_path):
    raw = {**raw_config, "methods": {"top_k": {"k": 0.01}}}
    trained = run(parse_config({**raw, "save_models": True}), tmp_path / "a")
    folder = tmp_path / "a" / "models"
    assert sorted(os.listdir(folder)) == ["original-0.safetensors", "original-1.safetensors"]
    raw["original"] = str(folder / "original-{seed}.safetensors")
    loaded = run(parse_config(raw), tmp_path / "b")
    assert text(loaded["runs"]) == text(trained["runs"])
    assert [r["methods"]["original"]["seconds"] for r in loaded["runs"]] == [0.0, 0.0]
    assert os.listdir(tmp_path / "b") == ["results.json"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("output.bias"), "missing or unknown: output.bias"),
        (lambda s: s.update(extra=torch.zeros(1)), "missing or unknown: extra"),
        (
            lambda s: s.update({"output.bias": torch.zeros(3)}),
            r"output.bias .*\(10,\), got .*\(3,\)",
        ),
        (lambda s: s.update({"output.bias": torch.zeros(10).double()}), "got torch.float64"),
    ],
)
def test_an_original_that_does_not_fit_is_refused(raw_config, tmp_path, change, words):
    state = build_model("small_cnn", 8, 10, seed=0).state_dict()
    change(state)
    path = tmp_path / "original.safetensors"
    save_file(state, path)
    with pytest.raises(ConfigError, match=words):
        run(parse_config({**raw_config, "original": str(path)}), tmp_path / "out")


@pytest.mark.parametrize("content", [None, b"", b"not safetensors"])
def test_an_original_that_is_no_safetensors_file_is_refused(raw_config, tmp_path, content):
    path = tmp_path / "original.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="must be a safetensors file"):
        run(parse_config({**raw_config, "original": str(path)}), tmp_path / "out")


def test_seeds_differ(finished):
    _, results = finished
    a, b = (copy.deepcopy(entry) for entry in results["runs"])
    del a["seed"], b["seed"]
    assert text(a) != text(b)


def test_ctrl_c_keeps_the_finished_seeds_and_resume_goes_on(
    finished, raw_config, tmp_path, monkeypatch
):
    config = parse_config(raw_config)
    with monkeypatch.context() as patch:
        interrupt_at(patch, seed=1)
        with pytest.raises(Interrupted) as caught:
            run(config, tmp_path)
    left = read_results(tmp_path / "results.json")
    assert caught.value.results == left
    assert not left["complete"] and [r["seed"] for r in left["runs"]] == [0]
    assert text(run(config, tmp_path, resume=True)) == text(finished[1])


def test_ctrl_c_in_the_first_seed_leaves_older_results_alone(
    finished, raw_config, tmp_path, monkeypatch
):
    shutil.copy(finished[0] / "results.json", tmp_path)
    before = (tmp_path / "results.json").read_bytes()
    interrupt_at(monkeypatch, seed=0, kind="original")
    with pytest.raises(Interrupted) as caught:
        run(parse_config(raw_config), tmp_path)
    assert caught.value.results is None
    assert os.listdir(tmp_path) == ["results.json"]
    assert (tmp_path / "results.json").read_bytes() == before


def test_a_run_without_resume_keeps_the_older_results_beside(finished, raw_config, tmp_path):
    shutil.copy(finished[0] / "results.json", tmp_path)
    run(parse_config({**raw_config, "seeds": [3], "methods": {}}), tmp_path)
    assert read_results(tmp_path / "results.previous.json") == finished[1]
    assert [r["seed"] for r in read_results(tmp_path / "results.json")["runs"]] == [3]


def test_resuming_a_complete_run_does_nothing(finished, raw_config, tmp_path):
    shutil.copy(finished[0] / "results.json", tmp_path)
    events: list[Event] = []
    results = run(parse_config(raw_config), tmp_path, resume=True, progress=events.append)
    assert results == finished[1] and not events


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train": {"epochs": 2}}, "of this configuration"),
        ({"seeds": [0]}, r"seeds .* must be among \(0,\), got \[1\]"),
    ],
)
def test_resume_refuses_another_configuration(finished, raw_config, tmp_path, change, words):
    shutil.copy(finished[0] / "results.json", tmp_path)
    with pytest.raises(ResultsError, match=words):
        run(parse_config({**raw_config, **change}), tmp_path, resume=True)


def test_resume_refuses_another_environment(finished, raw_config, tmp_path):
    changed = copy.deepcopy(finished[1])
    changed["environment"]["torch"] = "1.0"
    (tmp_path / "results.json").write_text(json.dumps(changed))
    with pytest.raises(ResultsError, match="torch must be '1.0'"):
        run(parse_config(raw_config), tmp_path, resume=True)


def test_progress_tells_every_step_in_order(raw_config, tmp_path):
    events: list[Event] = []
    raw = {**raw_config, "seeds": [0], "methods": {"fine_tune": None}}
    run(parse_config(raw), tmp_path, progress=events.append)
    steps = [(e.step, e.label, e.seconds is None) for e in events if e.part is None]
    labels = ["Original", "Retrained", "Fine-tuning", "Metrics"]
    expected = [(i, label, begins) for i, label in enumerate(labels, 1) for begins in (True, False)]
    assert steps == [(0, "Warm-up", True), *expected]
    assert any(e.part == ("epoch", 1, 1) for e in events)


def test_threads_are_set_for_the_run_and_put_back(raw_config, tmp_path):
    before = torch.get_num_threads()
    seen: set[int] = set()

    def note(event: Event) -> None:
        seen.add(torch.get_num_threads())

    try:
        torch.set_num_threads(3)
        raw = {**raw_config, "seeds": [0], "methods": {}, "threads": 1}
        results = run(parse_config(raw), tmp_path, progress=note)
        assert seen == {1} == {results["environment"]["threads"]}
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "scenario", [{"kind": "class", "class": 3}, {"kind": "mislabelled", "fraction": 0.05}]
)
def test_other_scenarios_run(raw_config, tmp_path, scenario):
    raw = {**raw_config, "seeds": [0], "scenario": scenario, "methods": {"top_k": {"k": 0.01}}}
    results = run(parse_config(raw), tmp_path)
    for method in results["runs"][0]["methods"].values():
        assert method["metrics"]["mia_auc"] is not None
    retrained = results["runs"][0]["methods"]["retrain"]["metrics"]
    assert retrained["forget_accuracy"] < 0.2, "what was never learned is not known"


def test_memorised_examples_are_scored_once_and_kept(raw_config, tmp_path):
    scenario = {"kind": "memorised", "fraction": 0.05, "models": 3}
    raw = {**raw_config, "seeds": [0], "scenario": scenario, "methods": {}}
    events: list[Event] = []
    first = run(parse_config(raw), tmp_path, progress=events.append)
    assert first["config"]["scenario"] == scenario
    labels = [(e.step, e.label) for e in events if e.seconds is not None]
    assert labels[:2] == [(1, "Memorisation scores"), (2, "Original")]
    assert max(e.step for e in events) == events[0].n_steps == 4
    parts = [e.part for e in events if e.label == "Memorisation scores" and e.part]
    assert [(done, of) for _, done, of in parts] == [(1, 3), (2, 3), (3, 3)]
    assert len(list((tmp_path / "memorisation").iterdir())) == 1
    again: list[Event] = []
    second = run(parse_config(raw), tmp_path, progress=again.append)
    assert text(second) == text(first)
    assert not [e for e in again if e.label == "Memorisation scores" and e.part]
    # another run on the same training set may share them
    third = run(parse_config(raw), tmp_path / "other", progress=again.append, scores=tmp_path)
    assert text(third) == text(first) and not (tmp_path / "other/memorisation").exists()
    assert not [e for e in again if e.label == "Memorisation scores" and e.part]
