"""The study's runner: what is done is kept, gone on with, and never done twice."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

pytest.importorskip("sklearn")

from benchmarks.methods import register_all  # noqa: E402
from benchmarks.study import execute  # noqa: E402
from benchmarks.study.cells import Cell  # noqa: E402
from benchmarks.study.execute import Plan, run_all, run_cell  # noqa: E402
from fastunlearn.evaluation import runner  # noqa: E402
from fastunlearn.evaluation.config import Config, parse_config  # noqa: E402
from fastunlearn.evaluation.methods import METHODS  # noqa: E402
from fastunlearn.evaluation.results import read_results, write_results  # noqa: E402

SEEDS = [3, 4, 5]


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    """Leave the registry of methods as it was."""
    with mock.patch.dict(METHODS):
        yield


def tiny(
    name: str = "tiny", seeds: list[int] = SEEDS, epochs: int = 1, methods: Any = None
) -> Cell:
    """Return a cell whose real run takes about a second."""
    raw = {
        "name": name,
        "dataset": "digits",
        "model": "small_cnn",
        "threads": 1,
        "scenario": {"kind": "random", "fraction": 0.1},
        "seeds": seeds,
        "train": {"epochs": epochs},
        "methods": methods or {"fine_tune": {}},
    }
    return Cell(name, parse_config(raw))


class Stub:
    """Stands in for the runner: seeds that it was asked for, results without a model."""

    def __init__(self, template: dict[str, Any]) -> None:
        self.template = template
        self.calls: list[tuple[tuple[int, ...], bool]] = []

    def __call__(
        self, config: Config, folder: Path, *, resume: bool, scores: Path
    ) -> dict[str, Any]:
        self.calls.append((config.seeds, resume))
        assert scores == folder.parent  # shared by all cells
        (entry,) = self.template["runs"]
        runs = [{**entry, "seed": seed} for seed in config.seeds]
        results = {
            **self.template,
            "config": config.to_dict(),
            "config_digest": config.digest(),
            "complete": True,
            "runs": runs,
        }
        folder.mkdir(parents=True, exist_ok=True)
        write_results(results, folder / runner.RESULTS_NAME)
        return results


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return real results of one seed."""
    return runner.run(tiny(seeds=[3]).config, tmp_path_factory.mktemp("template"))


@pytest.fixture
def stub(template: dict[str, Any]) -> Stub:
    return Stub(template)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(tmp_path / "work", tmp_path / "out")


def seeds_in(path: Path) -> list[int]:
    return [entry["seed"] for entry in read_results(path)["runs"]]


def test_every_seed_is_a_run_that_goes_on_with_the_last(plan: Plan, stub: Stub) -> None:
    run_cell(tiny(), plan, run=stub)
    assert stub.calls == [((3,), False), ((3, 4), True), ((3, 4, 5), True)]
    assert seeds_in(plan.result(tiny())) == SEEDS
    assert read_results(plan.result(tiny()))["complete"]


def test_a_complete_cell_is_skipped(plan: Plan, stub: Stub) -> None:
    run_cell(tiny(), plan, run=stub)
    shutil.rmtree(plan.work)
    stub.calls.clear()
    run_cell(tiny(), plan, run=stub)
    assert stub.calls == []


def test_an_interrupted_cell_goes_on_where_it_stopped(plan: Plan, stub: Stub) -> None:
    class StopError(Exception):
        """The machine goes down."""

    def fails_at_4(config: Config, folder: Path, *, resume: bool, scores: Path) -> dict[str, Any]:
        if 4 in config.seeds:
            raise StopError
        return stub(config, folder, resume=resume, scores=scores)

    with pytest.raises(StopError):
        run_cell(tiny(), plan, run=fails_at_4)
    partial = read_results(plan.result(tiny()))
    assert [entry["seed"] for entry in partial["runs"]] == [3]
    assert partial["config"]["seeds"] == SEEDS and not partial["complete"]
    stub.calls.clear()
    run_cell(tiny(), plan, run=stub)
    assert stub.calls == [((3, 4), True), ((3, 4, 5), True)]


def test_what_lies_in_one_folder_alone_is_not_lost(plan: Plan, stub: Stub) -> None:
    run_cell(tiny(), plan, run=stub)
    plan.result(tiny()).unlink()
    stub.calls.clear()
    run_cell(tiny(), plan, run=stub)
    assert stub.calls == [] and seeds_in(plan.result(tiny())) == SEEDS


def test_no_seed_begins_after_the_deadline(plan: Plan, stub: Stub) -> None:
    late = Plan(plan.work, plan.out, deadline=1000.0)
    lines: list[str] = []
    with mock.patch.object(execute.time, "time", side_effect=[999.0, 999.0, 999.0, 1000.0]):
        run_cell(tiny(), late, run=stub, say=lines.append)
    assert stub.calls == [((3,), False)]
    assert seeds_in(plan.result(tiny())) == [3]
    assert lines[-1] == "tiny: out of time, 1 of 3 seeds"


def test_other_settings_start_anew(plan: Plan, stub: Stub) -> None:
    run_cell(tiny(), plan, run=stub)
    stub.calls.clear()
    run_cell(tiny(epochs=2), plan, run=stub)
    assert stub.calls[0] == ((3,), False)
    assert read_results(plan.result(tiny()))["config"]["train"]["epochs"] == 2


def test_processes_run_the_cells_and_a_failure_stops_no_other(plan: Plan) -> None:
    # SalUn's kind has to be known in the other process as well
    register_all()
    broken, whole = tiny("broken"), tiny("whole", seeds=[3], methods={"salun": {}})
    (plan.work / "broken").mkdir(parents=True)
    (plan.work / "broken" / runner.RESULTS_NAME).write_text("{")
    lines: list[str] = []
    failed = run_all([broken, whole], plan, jobs=1, say=lines.append)
    assert [line.split(":")[0] for line in failed] == ["broken"]
    assert "must be JSON" in failed[0] and lines == [f"FAILED {failed[0]}"]
    assert "salun" in read_results(plan.result(whole))["summary"]
