"""The results file: the schema is held, statistics are right, writing is atomic."""

from __future__ import annotations

import copy
import json
import math
import os
from typing import Any

import pytest

from fastunlearn.evaluation import results as module
from fastunlearn.evaluation.results import (
    ResultsError,
    read_results,
    summarise,
    validate,
    without_times,
    write_results,
)

GONE = object()


@pytest.fixture
def results(finished) -> dict[str, Any]:
    return copy.deepcopy(finished[1])


def put(place: Any, path: str, value: Any) -> None:
    *parents, last = (int(key) if key.isdigit() else key for key in path.split("."))
    for parent in parents:
        place = place[parent]
    if value is GONE:
        del place[last]
    else:
        place[last] = value


TOP_K = "runs.0.methods.top_k"


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("schema", "fastunlearn.results/2", "schema"),
        ("summary", GONE, "summary"),
        ("extra", 1, "extra"),
        ("complete", "yes", "complete must be bool"),
        ("complete", False, "complete must be True"),
        ("runs.1.seed", 0, "one entry for each seed"),
        ("runs.1.seed", 5, "among"),
        ("runs.1.seed", True, "seed must be int"),
        ("runs.0.n_params", 1.5, "n_params must be int"),
        ("runs.0.sizes.forget", GONE, "sizes"),
        ("runs.0.methods.retrain", GONE, "'retrain'"),
        ("runs.0.elapsed_seconds", None, "elapsed_seconds must be a finite number"),
        (f"{TOP_K}.metrics.mia_auc", GONE, "mia_auc"),
        (f"{TOP_K}.metrics.fr", 0.5, "fr"),
        (f"{TOP_K}.metrics.mia_auc", math.nan, "finite number, got nan"),
        (f"{TOP_K}.metrics.mia_auc", "0.5", "finite number, got '0.5'"),
        (f"{TOP_K}.metrics.mia_auc", None, "reason for null"),
        (f"{TOP_K}.undefined.mia_auc", "none", "reason for null"),
        (f"{TOP_K}.selected.k", 3, "add up to k=3"),
        (f"{TOP_K}.selected.tensors.0.selected", GONE, "selected.tensors"),
        (f"{TOP_K}.selected", [], "selected must be object or null"),
        ("summary.top_k.mia_auc.n", GONE, "mia_auc"),
        ("summary.top_k.mia_auc.mean", math.inf, "mean must be a finite number"),
    ],
)
def test_a_broken_file_is_refused_by_name(results, path, value, words):
    validate(results)
    put(results, path, value)
    with pytest.raises(ResultsError) as caught:
        validate(results)
    assert words in str(caught.value)


def test_null_with_a_reason_is_valid(results):
    put(results, f"{TOP_K}.metrics.mia_auc", None)
    put(results, f"{TOP_K}.undefined.mia_auc", "too few examples")
    validate(results)


def test_summary_is_the_student_interval(results):
    runs = [copy.deepcopy(results["runs"][0]) for _ in range(4)]
    for run, value in zip(runs, [0.1, 0.2, 0.3, None], strict=True):
        run["methods"]["top_k"]["metrics"]["mia_auc"] = value
    row = summarise(runs)["top_k"]["mia_auc"]
    half = 4.302652729911275 * 0.1 / math.sqrt(3)  # t(0.975, 2), from a printed table
    assert row["n"] == 3
    assert row["mean"] == pytest.approx(0.2) and row["std"] == pytest.approx(0.1)
    assert row["ci_low"] == pytest.approx(0.2 - half)
    assert row["ci_high"] == pytest.approx(0.2 + half)


def test_one_or_no_value_has_no_interval(results):
    runs = results["runs"][:1]
    assert summarise(runs)["top_k"]["mia_auc"]["ci_low"] is None
    runs[0]["methods"]["top_k"]["metrics"]["mia_auc"] = None
    assert summarise(runs)["top_k"]["mia_auc"] == {
        "mean": None, "std": None, "ci_low": None, "ci_high": None, "n": 0,
    }  # fmt: skip
    assert summarise([]) == {}


def test_without_times_drops_all_times_and_nothing_else(results):
    bare = json.dumps(without_times(results))
    for key in module.TIMES:
        assert f'"{key}"' in json.dumps(results) and f'"{key}"' not in bare
    slower = copy.deepcopy(results)
    slower["runs"][0]["methods"]["top_k"]["seconds"] = 99.0
    assert without_times(slower) == without_times(results)
    slower["runs"][0]["methods"]["top_k"]["metrics"]["mia_auc"] = 0.123
    assert without_times(slower) != without_times(results)


def test_a_failed_write_leaves_the_old_file_and_no_other(results, tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    write_results(results, path)
    before = path.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        write_results({**results, "name": "new"}, path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["results.json"]


def test_invalid_results_are_never_written(results, tmp_path):
    with pytest.raises(ResultsError):
        write_results({**results, "schema": "other"}, tmp_path / "results.json")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff"])
def test_a_file_that_is_no_results_file_is_refused(tmp_path, text):
    path = tmp_path / "results.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ResultsError):
        read_results(path)
