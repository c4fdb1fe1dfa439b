"""Runs an evaluation seed by seed, keeping what is done whatever happens next."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastunlearn._ops import backend_of
from fastunlearn._version import __version__
from fastunlearn.evaluation.config import Config, ConfigError
from fastunlearn.evaluation.data import DATASETS, Samples, derive_seed, stratified_choice
from fastunlearn.evaluation.measure import measure
from fastunlearn.evaluation.methods import METHODS, Outcome, Task
from fastunlearn.evaluation.models import save_weights
from fastunlearn.evaluation.results import (
    SCHEMA,
    ResultsError,
    read_results,
    summarise,
    write_results,
)
from fastunlearn.evaluation.scenarios import make_scenario
from fastunlearn.metrics import run_time_ratio

RESULTS_NAME = "results.json"
# How the package begins a message about an argument; here all of these come from the user.
_REFUSALS = ("perturb_:", "select:", "score:", "unlearn:")


@dataclass(frozen=True)
class Event:
    """One piece of progress: a step of a seed begins, goes on, or ends.

    Args:
        seed: of the run.
        seed_number: its place among the seeds, from 1.
        n_seeds: number of seeds.
        label: display name of what is done.
        step: place of it within the seed, from 1; 0 is the warm-up before the first seed.
        n_steps: steps of a seed.
        part: what goes on inside the step: phase, how much is done, of how much (or None).
        seconds: what the step took, once it has ended.
    """

    seed: int
    seed_number: int
    n_seeds: int
    label: str
    step: int
    n_steps: int
    part: tuple[str, int, int | None] | None = None
    seconds: float | None = None


Progress = Callable[[Event], None]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a run. `results` holds the seeds done so far; None if there are none."""

    def __init__(self, results: dict[str, Any] | None) -> None:
        super().__init__("interrupted")
        self.results = results


def run(
    config: Config, out: str | Path, *, resume: bool = False, progress: Progress | None = None
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
        return _run(config, out / RESULTS_NAME, resume, progress or _silent)


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


def _run(config: Config, path: Path, resume: bool, progress: Progress) -> dict[str, Any]:
    resuming = resume and path.exists()
    results = _resumed(config, path) if resuming else _assemble(config, environment(), [])
    try:
        samples = DATASETS[config.dataset].load()
        missing = [s for s in config.seeds if all(r["seed"] != s for r in results["runs"])]
        for seed in missing:
            finished, original = _run_seed(config, samples, seed, progress, seed == missing[0])
            if config.save_models:
                save_weights(original, path.parent / "models" / f"original-{seed}.safetensors")
            if not results["runs"] and path.exists():
                os.replace(path, path.with_name("results.previous.json"))
            results = _assemble(config, results["environment"], [*results["runs"], finished])
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


def _silent(event: Event) -> None:
    """Report nothing."""


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


def _run_seed(
    config: Config, samples: Samples, seed: int, progress: Progress, warm_up: bool
) -> tuple[dict[str, Any], nn.Module]:
    """Return the entry of one seed for the results, and its original model."""
    task = make_task(config, samples, seed)
    scenario = task.scenario
    number = config.seeds.index(seed) + 1
    first = Event(seed, number, len(config.seeds), "", 0, len(config.methods) + 1)
    if warm_up:
        progress(replace(first, label="Warm-up"))
        _run_methods(_shortened(task), first, _silent)
    started = time.perf_counter()
    outcomes = _run_methods(task, first, progress)
    event = replace(first, label="Metrics", step=first.n_steps)
    progress(event)
    measuring = time.perf_counter()
    metrics = measure(outcomes, scenario, seed=seed)
    progress(replace(event, seconds=time.perf_counter() - measuring))
    reference_seconds = outcomes["retrain"].seconds
    original = outcomes["original"].model
    entry = {
        "seed": seed,
        "sizes": {
            "forget": len(scenario.forget),
            "retain": len(scenario.retain),
            "test": len(scenario.test),
        },
        "n_params": sum(p.numel() for p in original.parameters()),
        "methods": {
            name: {
                "label": config.methods[name].label,
                "metrics": metrics[name].values,
                "undefined": metrics[name].undefined,
                "selected": outcome.selected,
                "seconds": outcome.seconds,
                "run_time_ratio": run_time_ratio(outcome.seconds, reference_seconds),
            }
            for name, outcome in outcomes.items()
        },
        "elapsed_seconds": time.perf_counter() - started,
    }
    return entry, original


def make_task(config: Config, samples: Samples, seed: int) -> Task:
    """Split the samples for one seed and choose its forget set; no model is trained yet."""
    n_classes = DATASETS[config.dataset].n_classes
    test, train = stratified_choice(
        samples.y, config.test_fraction, seed=derive_seed(seed, "split")
    )
    scenario = make_scenario(
        config.scenario, samples.at(train), samples.at(test), n_classes, seed=seed
    )
    return Task(config, seed, scenario, n_classes)


def _shortened(task: Task) -> Task:
    """Return the task with one short epoch.

    Running it first keeps what happens once in a process, such as lazy imports and the choice of
    convolution kernels for a shape, out of the times of the first seed.
    """
    config, scenario = task.config, task.scenario
    some = torch.arange(min(2 * config.train.batch_size, len(scenario.retain)))
    few = torch.arange(min(config.train.batch_size, len(scenario.forget)))
    short = replace(scenario, retain=scenario.retain.at(some), forget=scenario.forget.at(few))
    return replace(
        task,
        config=replace(config, train=replace(config.train, epochs=1)),
        scenario=short,
    )


def _run_methods(task: Task, first: Event, progress: Progress) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}
    for step, (name, method) in enumerate(task.config.methods.items(), start=1):
        event = replace(first, label=method.label, step=step)
        progress(event)

        def within(phase: str, done: int, total: int | None, event: Event = event) -> None:
            progress(replace(event, part=(phase, done, total)))

        try:
            outcome = METHODS[method.kind].run(replace(task, progress=within), method)
        except (TypeError, ValueError) as error:
            if str(error).startswith(_REFUSALS):
                raise ConfigError(f"methods.{name}: {error}") from error
            raise
        outcomes[name] = outcome
        if name == "original":
            task = replace(task, original=outcome.model)
        progress(replace(event, seconds=outcome.seconds))
    return outcomes
