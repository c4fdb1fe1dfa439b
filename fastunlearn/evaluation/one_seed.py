"""One seed of an evaluation: its steps in order, and its entry in the results."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from fastunlearn._loop import ProgressHook
from fastunlearn.evaluation.audit import (
    Instrument,
    aim,
    audit_entry,
    extra_steps,
    make_instrument,
)
from fastunlearn.evaluation.config import Config
from fastunlearn.evaluation.data import (
    DATASETS,
    Samples,
    TensorLoader,
    derive_seed,
    stratified_choice,
)
from fastunlearn.evaluation.measure import measure
from fastunlearn.evaluation.memorisation import memorisation_scores
from fastunlearn.evaluation.methods import METHODS
from fastunlearn.evaluation.models import build_model
from fastunlearn.evaluation.parsing import ConfigError
from fastunlearn.evaluation.scenarios import make_scenario
from fastunlearn.evaluation.task import Outcome, Task
from fastunlearn.evaluation.training import fit, optimizer_factory, silent
from fastunlearn.metrics import run_time_ratio

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


@dataclass(frozen=True)
class Seed:
    """What one seed gives.

    Args:
        entry: its place in `runs` of the results file.
        original: the original model.
        instrument: what an audit measured with; None where there was none.
    """

    entry: dict[str, Any]
    original: nn.Module
    instrument: Instrument | None


class _Steps:
    """Counts the steps of a seed and tells of them."""

    def __init__(self, first: Event, progress: Progress) -> None:
        self._event = first
        self._progress = progress

    @contextmanager
    def step(self, label: str) -> Iterator[ProgressHook]:
        """Tell that a step begins and ends; yield the hook for what goes on inside it."""
        event = self._event = replace(self._event, label=label, step=self._event.step + 1)
        self._progress(event)

        def within(phase: str, done: int, total: int | None) -> None:
            self._progress(replace(event, part=(phase, done, total)))

        started = time.perf_counter()
        yield within
        self._progress(replace(event, seconds=time.perf_counter() - started))


def unheard(event: Event) -> None:
    """Report nothing."""


def run_seed(
    config: Config,
    samples: Samples,
    seed: int,
    progress: Progress,
    *,
    warm_up: bool,
    folder: Path,
) -> Seed:
    """Run all steps of one seed.

    Args:
        config: the evaluation.
        samples: the whole data set.
        seed: one of the configuration's.
        progress: called at the begin and the end of every step.
        warm_up: run a shortened form first.
        folder: memorisation scores are kept there.
    """
    scored = config.scenario.kind == "memorised"
    n_steps = scored + extra_steps(config) + len(config.methods) + 1
    first = Event(seed, config.seeds.index(seed) + 1, len(config.seeds), "", 0, n_steps)
    steps = _Steps(first, progress)
    with steps.step("Memorisation scores") if scored else nullcontext(silent) as within:
        task = make_task(config, samples, seed, folder=folder, progress=within)
    if warm_up:
        progress(replace(first, label="Warm-up"))
        _run_methods(_shortened(task), _Steps(first, unheard))
    started = time.perf_counter()
    instrument = None if config.spdgan is None else make_instrument(task, steps.step)
    task = task if instrument is None else instrument.task
    outcomes = _run_methods(task, steps)
    with steps.step("Metrics"):
        aims = None if instrument is None else aim(instrument, outcomes)
        entry = _entry(task, outcomes, aims)
        if instrument is not None and aims is not None:
            entry["audit"] = audit_entry(instrument, outcomes, aims)
    entry["elapsed_seconds"] = time.perf_counter() - started
    return Seed(entry, outcomes["original"].model, instrument)


def _entry(
    task: Task, outcomes: dict[str, Outcome], aims: tuple[float, float] | None
) -> dict[str, Any]:
    metrics = measure(outcomes, task.scenario, seed=task.seed, aim=aims)
    reference_seconds = outcomes["retrain"].seconds
    return {
        "seed": task.seed,
        "sizes": {
            "forget": len(task.scenario.forget),
            "retain": len(task.scenario.retain),
            "test": len(task.scenario.test),
        },
        "n_params": sum(p.numel() for p in outcomes["original"].model.parameters()),
        "methods": {
            name: {
                "label": task.config.methods[name].label,
                "metrics": metrics[name].values,
                "undefined": metrics[name].undefined,
                "selected": outcome.selected,
                "seconds": outcome.seconds,
                "run_time_ratio": run_time_ratio(outcome.seconds, reference_seconds),
            }
            for name, outcome in outcomes.items()
        },
    }


def make_task(
    config: Config,
    samples: Samples,
    seed: int,
    *,
    folder: Path | None = None,
    progress: ProgressHook = silent,
) -> Task:
    """Split the samples for one seed and choose its forget set.

    No model of the run is trained yet; for memorised examples those that score them are.

    Args:
        config: the evaluation.
        samples: the whole data set.
        seed: of the run.
        folder: keeps memorisation scores, so that an interrupted run goes on with them.
        progress: of the scoring.
    """
    n_classes = DATASETS[config.dataset].n_classes
    chosen, rest = stratified_choice(
        samples.y, config.test_fraction, seed=derive_seed(seed, "split")
    )
    train, test = samples.at(rest), samples.at(chosen)
    scores = None
    if config.scenario.kind == "memorised":
        scores = _memorisation(config, train, seed, folder, progress)
    scenario = make_scenario(
        config.scenario, train, test, n_classes, seed=seed, memorisation=scores
    )
    return Task(config, seed, scenario, n_classes)


def _memorisation(
    config: Config, samples: Samples, seed: int, folder: Path | None, progress: ProgressHook
) -> Tensor:
    """Score the training set by models of the kind that the run trains."""
    settings, n_classes = config.train, DATASETS[config.dataset].n_classes
    assert config.scenario.models is not None  # set for this kind of scenario

    def train(model: nn.Module, part: Samples, own: int) -> None:
        loader = TensorLoader(part, settings.batch_size, seed=own)
        fit(model, loader, optimizer_factory(settings)(model.parameters()), settings.epochs)

    return memorisation_scores(
        samples,
        make_model=lambda own: build_model(config.model, samples.x.shape[-1], n_classes, seed=own),
        train=train,
        n_models=config.scenario.models,
        seed=derive_seed(seed, "memorisation"),
        folder=None if folder is None else folder / "memorisation",
        key=json.dumps(
            [config.model, dataclasses.asdict(settings), torch.__version__, torch.get_num_threads()]
        ),
        progress=progress,
    ).scores


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


def _run_methods(task: Task, steps: _Steps) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}
    for name, method in task.config.methods.items():
        with steps.step(method.label) as within:
            try:
                with counted_steps() as count:
                    outcome = METHODS[method.kind].run(replace(task, progress=within), method)
            except (TypeError, ValueError) as error:
                if str(error).startswith(_REFUSALS):
                    raise ConfigError(f"methods.{name}: {error}") from error
                raise
        outcomes[name] = replace(outcome, optimizer_steps=count())
        if name == "original":
            task = replace(task, original=outcome.model)
    return outcomes


@contextmanager
def counted_steps() -> Iterator[Callable[[], int]]:
    """Count the optimiser steps that are taken in the block, whoever takes them."""
    steps = 0

    def one_more(*_: Any) -> None:
        nonlocal steps
        steps += 1

    hook = register_optimizer_step_post_hook(one_more)
    try:
        yield lambda: steps
    finally:
        hook.remove()
