"""Runs the cells of the study, seed by seed, and keeps whatever is done."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.methods import register_all
from benchmarks.study.cells import Cell
from fastunlearn.evaluation import runner
from fastunlearn.evaluation.config import Config
from fastunlearn.evaluation.results import read_results, write_results

Run = Callable[..., dict[str, Any]]
Say = Callable[[str], None]


def _say(text: str) -> None:
    print(text, flush=True)  # a log file should show it at once


@dataclass(frozen=True)
class Plan:
    """Where the work is done and kept, and until when a seed may begin.

    Args:
        work: folder of the working folders, one for each cell.
        out: folder of the results files, one for each cell.
        deadline: time (of `time.time`) after which no seed begins; None for no end.
    """

    work: Path
    out: Path
    deadline: float | None = None

    def result(self, cell: Cell) -> Path:
        """Return the results file of a cell."""
        return self.out / f"{cell.name}.json"


def run_all(cells: Sequence[Cell], plan: Plan, jobs: int, say: Say = _say) -> list[str]:
    """Run what the cells lack, each cell in one of `jobs` processes.

    Returns:
        One line for each cell that failed.
    """
    failed = []
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(jobs, context, initializer=register_all) as pool:
        work = {pool.submit(run_cell, cell, plan): cell for cell in cells}
        try:
            for future in as_completed(work):
                error = future.exception()
                if error is not None:  # one cell's failure must not cost the others their time
                    failed.append(f"{work[future].name}: {type(error).__name__}: {error}")
                    say(f"FAILED {failed[-1]}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()  # or it would go on with the cell that is queued for it
            raise
    return failed


def run_cell(cell: Cell, plan: Plan, *, run: Run = runner.run, say: Say = _say) -> None:
    """Run the seeds that a cell lacks, and write its results file after each.

    Results of other settings are not gone on with: the cell starts anew.

    Args:
        cell: what to run.
        plan: where and until when.
        run: as `fastunlearn.evaluation.runner.run`.
        say: told of every seed.

    Raises:
        ResultsError: the results there are broken or of another environment.
    """
    folder, config = plan.work / cell.name, cell.config
    done = _begin(cell, plan)
    for seed in [s for s in config.seeds if s not in done]:
        if plan.deadline is not None and time.time() >= plan.deadline:
            say(f"{cell.name}: out of time, {len(done)} of {len(config.seeds)} seeds")
            return
        say(f"{cell.name}: seed {seed} ...")
        started = time.time()
        so_far = tuple(s for s in config.seeds if s in {*done, seed})
        results = run(config.with_seeds(so_far), folder, resume=bool(done), scores=plan.work)
        write_results(_planned(config, results), plan.result(cell))
        done.append(seed)
        took = f"{time.time() - started:.0f} s"
        say(f"{cell.name}: seed {seed}: {took}, {len(done)} of {len(config.seeds)} seeds")


def _begin(cell: Cell, plan: Plan) -> list[int]:
    """Bring both results files of a cell to what is done; return the seeds that are.

    The working folder may lack what was committed, the results folder what was done last.
    """
    paths = (plan.work / cell.name / runner.RESULTS_NAME, plan.result(cell))
    found = [read_results(path) for path in paths if path.exists()]
    found = [results for results in found if results["config_digest"] == cell.config.digest()]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
    if not found:
        return []
    most = max(found, key=lambda results: len(results["runs"]))
    for path in paths:
        write_results(_planned(cell.config, most), path)
    return [entry["seed"] for entry in most["runs"]]


def _planned(config: Config, results: dict[str, Any]) -> dict[str, Any]:
    """Return results that name all seeds of the cell as planned, not those run so far alone."""
    complete = len(results["runs"]) == len(config.seeds)
    return {**results, "config": config.to_dict(), "complete": complete}
