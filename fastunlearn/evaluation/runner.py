"""Runs an evaluation seed by seed, keeping what is done whatever happens next."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fastunlearn._ops import backend_of
from fastunlearn._version import __version__
from fastunlearn.evaluation.audit import save_instrument
from fastunlearn.evaluation.config import Config
from fastunlearn.evaluation.data import DATASETS
from fastunlearn.evaluation.models import save_weights
from fastunlearn.evaluation.one_seed import Progress, run_seed, unheard
from fastunlearn.evaluation.results import (
    SCHEMA,
    ResultsError,
    read_results,
    summarise,
    write_results,
)

RESULTS_NAME = "results.json"


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a run. `results` holds the seeds done so far; None if there are none."""

    def __init__(self, results: dict[str, Any] | None) -> None:
        super().__init__("interrupted")
        self.results = results


def run(
    config: Config,
    out: str | Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    scores: str | Path | None = None,
) -> dict[str, Any]:
    """Run an evaluation and write `results.json` after every seed.

    The same configuration gives the same results but for times, on the same machine with the
    same versions and number of threads. Torch's generators and thread count are put back.

    Args:
        config: what to run.
        out: folder of the results file; made if missing. An older results file there is kept as
            `results.previous.json` once the first seed is done.
        resume: go on with the seeds that the results file there lacks, if there is one.
        progress: called at the begin and the end of every step.
        scores: folder whose `memorisation` subfolder keeps memorisation scores, so that runs on the
            same training sets share them; None for `out`.

    Returns:
        The results, as written.

    Raises:
        ResultsError: with `resume`, the file there is broken, of another configuration, or from
            another environment.
        Interrupted: on Ctrl-C; finished seeds are on disk.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with _threads(config.threads):
        return _run(config, out / RESULTS_NAME, resume, progress or unheard, Path(scores or out))


def environment() -> dict[str, Any]:
    """Return what the figures depend on besides the configuration."""
    return {
        "fastunlearn": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "backend": backend_of("topk_perturb_", torch.device("cpu")),
        "platform": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
    }


def _run(
    config: Config, path: Path, resume: bool, progress: Progress, scores: Path
) -> dict[str, Any]:
    resuming = resume and path.exists()
    results = _resumed(config, path) if resuming else _assemble(config, environment(), [])
    try:
        samples = DATASETS[config.dataset].load()
        missing = [s for s in config.seeds if all(r["seed"] != s for r in results["runs"])]
        for seed in missing:
            done = run_seed(
                config,
                samples,
                seed,
                progress,
                warm_up=seed == missing[0],
                folder=scores,
            )
            if config.save_models:
                models = path.parent / "models"
                save_weights(done.original, models / f"original-{seed}.safetensors")
            if done.instrument is not None:
                save_instrument(done.instrument, path.parent)
            if not results["runs"] and path.exists():
                os.replace(path, path.with_name("results.previous.json"))
            results = _assemble(config, results["environment"], [*results["runs"], done.entry])
            write_results(results, path)
    except KeyboardInterrupt:
        raise Interrupted(results if results["runs"] else None) from None
    return results


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Run a block with a number of torch threads, and put the number back."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _assemble(
    config: Config, environment: dict[str, Any], runs: list[dict[str, Any]]
) -> dict[str, Any]:
    ordered = sorted(runs, key=lambda entry: config.seeds.index(entry["seed"]))
    return {
        "schema": SCHEMA,
        "name": config.name,
        "config": config.to_dict(),
        "config_digest": config.digest(),
        "environment": environment,
        "complete": len(runs) == len(config.seeds),
        "runs": ordered,
        "summary": summarise(ordered),
    }


def _resumed(config: Config, path: Path) -> dict[str, Any]:
    """Read the results to go on with; refuse figures that could not stand beside new ones."""
    found = read_results(path)
    if found["config_digest"] != config.digest():
        raise ResultsError(
            f"resume: {path} must be of this configuration "
            f"(digest {config.digest()[:12]}), got digest {found['config_digest'][:12]}"
        )
    extra = sorted({done["seed"] for done in found["runs"]} - set(config.seeds))
    if extra:
        raise ResultsError(f"resume: seeds of {path} must be among {config.seeds}, got {extra}")
    for key, here in environment().items():
        there = found["environment"].get(key)
        if there != here:
            raise ResultsError(f"resume: {key} must be {there!r} as in {path}, got {here!r}")
    return _assemble(config, found["environment"], found["runs"])
