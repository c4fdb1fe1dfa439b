"""The methods as kinds of the evaluation: registered, configured, run on a task."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from unittest import mock

import pytest

pytest.importorskip("sklearn")

from benchmarks.methods import KINDS, register_all  # noqa: E402
from fastunlearn.evaluation.config import ConfigError, parse_config  # noqa: E402
from fastunlearn.evaluation.data import load_digits  # noqa: E402
from fastunlearn.evaluation.methods import METHODS, register  # noqa: E402
from fastunlearn.evaluation.one_seed import make_task  # noqa: E402
from fastunlearn.evaluation.task import Task  # noqa: E402

from .cases import same_bits, state  # noqa: E402

QUICK = {"ssd": {"examples": 30}, "fisher_forgetting": {"examples": 5}}


@pytest.fixture(autouse=True, scope="module")
def registered() -> Iterator[None]:
    """Register everything for these tests, and leave the registry as it was."""
    with mock.patch.dict(METHODS):
        register_all()
        yield


@pytest.fixture(scope="module")
def task() -> Task:
    methods = {name: {"epochs": 1} | QUICK.get(name, {}) for name in KINDS}
    for name in QUICK:
        del methods[name]["epochs"]
    raw = {
        "dataset": "digits",
        "model": "small_cnn",
        "scenario": {"kind": "random", "fraction": 0.1},
        "train": {"epochs": 2},
        "methods": methods,
    }
    bare = make_task(parse_config(raw), load_digits(), seed=0)
    original = METHODS["original"].run(bare, bare.config.methods["original"]).model
    return replace(bare, original=original)


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_runs_on_a_copy_and_repeats(task: Task, name: str) -> None:
    method = task.config.methods[name]
    before = state(task.original)
    first, second = (METHODS[name].run(task, method) for _ in range(2))
    assert same_bits(state(task.original), before)
    assert first.model is not task.original and not first.model.training
    assert same_bits(state(first.model), state(second.model))
    assert all(p.isfinite().all() for p in first.model.parameters())
    assert first.seconds > 0.0 and first.selected is None


def test_options_reach_the_method(task: Task) -> None:
    method = task.config.methods["ssd"]
    still = replace(method, options={**method.options, "alpha": 1e9})
    assert same_bits(state(METHODS["ssd"].run(task, still).model), state(task.original))


def test_configurations_name_the_kinds_and_their_options(task: Task) -> None:
    raw = task.config.to_dict()
    raw["methods"] = {"mine": {"kind": "salun", "fraction": 0.25, "lr": 0.01}}
    mine = parse_config(raw).methods["mine"]
    assert (mine.label, mine.options["fraction"], mine.options["lr"]) == ("SalUn", 0.25, 0.01)
    assert mine.options["epochs"] == 3 and mine.repair is None
    assert parse_config(task.config.to_dict()).digest() == task.config.digest()
    for wrong in ({"sparsity": 0.5}, {"fraction": "half"}, {"fraction": 2.0}):
        raw["methods"] = {"salun": wrong}
        with pytest.raises(ConfigError):
            parse_config(raw)


def test_a_name_is_taken_once() -> None:
    register_all()  # again: nothing to do
    with pytest.raises(ValueError, match="name must be new, got 'salun', which is taken"):
        register("salun", KINDS["ssd"])
    with pytest.raises(ValueError, match="got 'original'"):
        register("original", KINDS["ssd"])
    with mock.patch.dict(METHODS, {"ssd": KINDS["salun"]}), pytest.raises(ValueError, match="ssd"):
        register_all()
