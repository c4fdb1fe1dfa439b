"""The curve of gain against shift: the audit's own figures, resuming, the smallest useful shift."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

pytest.importorskip("sklearn")

from benchmarks.study import curve
from benchmarks.study.cells import cells
from benchmarks.study.curve import SCHEMA, curve_config, run, smallest_useful_epsilon
from benchmarks.study.resumable import add, begin
from fastunlearn.evaluation.audit import aim, audit_entry, make_instrument
from fastunlearn.evaluation.config import Config, parse_config
from fastunlearn.evaluation.data import Samples, load_digits
from fastunlearn.evaluation.methods import METHODS
from fastunlearn.evaluation.one_seed import make_task
from fastunlearn.evaluation.training import silent


@pytest.fixture(autouse=True, scope="module")
def unregistered() -> Iterator[None]:
    """Leave the registry as it was; the study's cells register their methods."""
    with mock.patch.dict(METHODS):
        yield


def tiny(**changes: Any) -> Config:
    raw = {
        "dataset": "digits",
        "model": "small_cnn",
        "scenario": {"kind": "random", "fraction": 0.4},
        "seeds": [3],
        "train": {"epochs": 3, "lr": 0.003},
        "methods": {},
        "spdgan": {
            "max_steps": 20,
            "width": 8,
            "references": [1, 0.5],
            "retrained": 2,
            "anchors": [],
        },
    }
    return parse_config(raw | changes)


@pytest.fixture(scope="module")
def samples() -> Samples:
    return load_digits().at(torch.arange(500))


def rows(*gains: tuple[int, float, float | None]) -> list[dict[str, Any]]:
    return [{"seed": seed, "epsilon": epsilon, "gain": gain} for seed, epsilon, gain in gains]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (rows((0, 0.1, 9.9), (0, 0.2, 10.0), (0, 0.3, 20.0)), 0.2),
        (rows((0, 0.1, 30.0), (1, 0.1, 9.0), (0, 0.2, 11.0), (1, 0.2, 12.0)), 0.2),
        (rows((0, 0.1, 30.0), (0, 0.2, 30.0), (1, 0.2, 30.0)), 0.2),  # seed 1 lacks 0.1
        (rows((0, 0.1, 30.0), (1, 0.1, None)), None),
        (rows((0, 0.3, 12.0), (0, 0.1, 12.0), (0, 0.2, 1.0)), 0.1),  # out of order, not monotone
        (rows((0, 0.1, 2.0)), None),
        ([], None),
    ],
)
def test_the_smallest_useful_epsilon_by_hand(found, expected):
    assert smallest_useful_epsilon(found) == expected


def test_another_gain_may_be_asked_for():
    assert smallest_useful_epsilon(rows((0, 0.1, 2.0), (0, 0.2, 4.0)), least_gain=2.0) == 0.1


def test_a_row_has_the_figures_of_an_audit_with_that_epsilon(samples, tmp_path):
    config = tiny()
    row = run(config, samples, [0.17], tmp_path / "c.json", tell=silent_line)["rows"][0]
    assert config.spdgan is not None
    gan = replace(config.spdgan.gan, epsilon=0.17)
    audited = replace(config, spdgan=replace(config.spdgan, gan=gan))
    instrument = make_instrument(make_task(audited, samples, 3), lambda _: nullcontext(silent))
    outcomes = {
        name: METHODS[name].run(instrument.task, config.methods[name])
        for name in ("original", "retrain")
    }
    entry = audit_entry(instrument, outcomes, aim(instrument, outcomes))
    assert (row["seed"], row["epsilon"]) == (3, 0.17)
    assert row["spread"] == entry["spread"]["shifted"]
    assert row["plain_spread"] == entry["spread"]["plain"]
    assert row["gain"] == entry["gain"] == row["spread"] / row["plain_spread"]
    assert (row["linf"], row["psnr"]) == (entry["closeness"]["linf"], entry["closeness"]["psnr"])
    assert row["references"] == entry["references"]["shifted"] and len(row["references"]) == 2
    assert row["stopped"] == entry["fit"]["stopped"]
    assert 0.1 < row["linf"] <= 0.17 + 1e-6


def silent_line(line: str) -> None:
    """Say nothing."""


@pytest.fixture
def stubbed(monkeypatch) -> list[tuple[int, float]]:
    """Replace the measurements; return the list of those that were taken."""
    taken: list[tuple[int, float]] = []

    def point(seed: int, epsilon: float) -> dict[str, Any]:
        taken.append((seed, epsilon))
        return {"seed": seed, "epsilon": epsilon, "spread": 0.5, "gain": float("nan")}

    monkeypatch.setattr(curve, "share", lambda task: task.seed)
    monkeypatch.setattr(curve, "point", point)
    return taken


def test_finished_rows_are_kept_and_missing_ones_added(samples, tmp_path, stubbed):
    out = tmp_path / "new" / "curve.json"
    run(tiny(), samples, [0.1, 0.2], out, tell=silent_line)
    first = json.loads(out.read_text())
    assert first["schema"] == SCHEMA and "seeds" not in first["config"]
    assert [row["gain"] for row in first["rows"]] == [None, None]
    second = run(tiny(seeds=[3, 4]), samples, [0.1, 0.2, 0.3], out, tell=silent_line)
    assert stubbed == [(3, 0.1), (3, 0.2), (3, 0.3), (4, 0.1), (4, 0.2), (4, 0.3)]
    assert second["rows"][:2] == first["rows"] and json.loads(out.read_text())["rows"][5:]
    assert [path.name for path in out.parent.iterdir()] == ["curve.json"]


def test_an_interrupted_run_keeps_its_rows(samples, tmp_path, stubbed, monkeypatch):
    out = tmp_path / "curve.json"

    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny(), samples, [0.1, 0.2], out, tell=interrupt)
    assert [row["epsilon"] for row in json.loads(out.read_text())["rows"]] == [0.1]


def test_rows_of_other_settings_are_refused(samples, tmp_path, stubbed):
    out = tmp_path / "curve.json"
    run(tiny(), samples, [0.1], out, tell=silent_line)
    before = out.read_bytes()
    with pytest.raises(ValueError, match="resume: config of .*curve.json must be"):
        run(tiny(train={"epochs": 3}), samples, [0.2], out, tell=silent_line)
    assert out.read_bytes() == before and len(stubbed) == 1
    out.write_text("{")
    with pytest.raises(ValueError, match="resume: .*curve.json must be JSON"):
        run(tiny(), samples, [0.2], out, tell=silent_line)


@pytest.mark.parametrize("key", ["schema", "environment"])
def test_a_file_of_another_schema_or_environment_is_refused(key: str, tmp_path: Path):
    path = tmp_path / "rows.json"
    add({**begin(path, "s/1", {}), key: "other"}, {}, path)
    with pytest.raises(ValueError, match=f"resume: {key} of"):
        begin(path, "s/1", {})


def test_numbers_that_are_not_finite_become_none_at_any_depth(tmp_path):
    path = tmp_path / "rows.json"
    results = begin(path, "s/1", {})
    add(results, {"a": [1.0, float("inf")], "b": {"c": (float("nan"), "x", True)}}, path)
    expected = [{"a": [1.0, None], "b": {"c": [None, "x", True]}}]
    assert results["rows"] == json.loads(path.read_text())["rows"] == expected


def test_the_curve_is_that_of_the_studys_audit():
    cell = {c.name: c.config for c in cells()}["mnist5k-small_cnn-random-10-shifted"]
    config = curve_config()
    assert config.spdgan is not None and cell.spdgan is not None
    assert config.spdgan == replace(cell.spdgan, anchors=())
    assert list(config.methods) == ["original", "retrain"]
    same = {f: getattr(cell, f) for f in ("name", "methods", "seeds", "spdgan")}
    assert replace(config, **same) == cell
