"""An audit: SPD-GAN shifts the forget set of a seed, and the figures say what that brought.

Protocol [paper: shift and degree; ours: the rest], for each seed: (1) train the references on the
retain set; (2) fit SPD-GAN on the forget set against them; (3) train the original model on retain
set and shifted forget set; (4) unlearn the shifted forget set; (5) retrain on the retain set,
several times, with seeds that no reference had; (6) the figures.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastunlearn._loop import ProgressHook
from fastunlearn.evaluation.anchors import anchor_order, out_of_order
from fastunlearn.evaluation.config import Config
from fastunlearn.evaluation.data import (
    Samples,
    TensorLoader,
    derive_seed,
    joined,
    stratified_order,
)
from fastunlearn.evaluation.retraining import retrain_further, train_fresh, train_reference
from fastunlearn.evaluation.scenarios import shifted
from fastunlearn.evaluation.task import Outcome, Task
from fastunlearn.evaluation.training import predict
from fastunlearn.metrics import Undefined, accuracy, undefined_reason
from fastunlearn.spdgan import SPDGAN, FitReport, pictures

Step = Callable[[str], AbstractContextManager[ProgressHook]]
"""Begins a step of that name; gives the hook for progress inside it."""

PICTURED = 8


@dataclass(frozen=True)
class Instrument:
    """What an audit measures with.

    Args:
        task: the run, its forget set shifted.
        gan: the generator that shifted it.
        fit: how its training went.
        references: the models that it was trained against.
        retrained: further retrained models: with the row `retrain` they say how a model does that
            never saw the forget set.
        plain: the original model as it would be without an audit: trained on retain set and
            unshifted forget set, with the seeds of the original model.
    """

    task: Task
    gan: SPDGAN
    fit: FitReport
    references: tuple[nn.Module, ...]
    retrained: tuple[nn.Module, ...]
    plain: nn.Module


def extra_steps(config: Config) -> int:
    """Return the number of steps that `make_instrument` takes; 0 where there is no audit."""
    audit = config.spdgan
    return 0 if audit is None else len(audit.references) + audit.retrained + 1


def make_instrument(task: Task, step: Step) -> Instrument:
    """Train the references and SPD-GAN, shift the forget set, retrain beside `retrain`.

    Args:
        task: of a configuration with an audit, its forget set as it is.
        step: begins each step.
    """
    settings = task.config.spdgan
    assert settings is not None  # the runner asks for audits alone
    references = []
    for number in range(1, len(settings.references) + 1):
        with step(f"Reference model {number}") as progress:
            references.append(train_reference(replace(task, progress=progress), number))
    gan = SPDGAN(settings.gan, seed=derive_seed(task.seed, "SPD-GAN"))
    with step("SPD-GAN") as progress:
        loader = TensorLoader(task.scenario.forget, settings.batch_size)
        fit = gan.fit(loader, references, progress=progress)
    retrained = []
    for number in range(2, settings.retrained + 1):
        with step(f"Retrained model {number}") as progress:
            retrained.append(retrain_further(replace(task, progress=progress), number))
    with step("Original on unshifted data") as progress:
        everything = joined(task.scenario.forget, task.scenario.retain)
        plain = train_fresh(replace(task, progress=progress), everything, "original").model
    audited = replace(task, scenario=shifted(task.scenario, gan.perturb))
    return Instrument(audited, gan, fit, tuple(references), tuple(retrained), plain)


def save_instrument(instrument: Instrument, folder: Path) -> None:
    """Write SPD-GAN to `spdgan/seed-N` and a picture of what it does to `pictures/seed-N.png`."""
    name = f"seed-{instrument.task.seed}"
    instrument.gan.save(folder / "spdgan" / name)
    scenario = instrument.task.scenario
    assert scenario.unshifted_forget is not None  # an instrument's task is shifted
    # of different classes, as a data set may be sorted by them
    shown = stratified_order(scenario.forget.y, seed=0)[:PICTURED]
    plain, moved = scenario.unshifted_forget.at(shown), scenario.forget.at(shown)
    figure = pictures(plain.x, moved.x, moved.y, n=PICTURED)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "pictures" / f"{name}.png", dpi=160, metadata={"Software": None})


def mean_accuracy(models: Sequence[nn.Module], samples: Samples) -> float:
    """Return the mean accuracy of some models: right answers over all answers.

    One division, so that models of equal accuracy have exactly that mean: a mean of quotients may
    miss it by a rounding, and a spread of 0 then passes for one that is not.
    """
    logits = torch.cat([predict(model, samples) for model in models])
    return accuracy(logits, samples.y.repeat(len(models)))


def aim(instrument: Instrument, outcomes: Mapping[str, Outcome]) -> tuple[float, float]:
    """Return the retrained models' mean accuracy on the shifted and the unshifted forget set."""
    scenario = instrument.task.scenario
    assert scenario.unshifted_forget is not None  # an instrument's task is shifted
    models = (outcomes["retrain"].model, *instrument.retrained)
    return (
        mean_accuracy(models, scenario.forget),
        mean_accuracy(models, scenario.unshifted_forget),
    )


def audit_entry(
    instrument: Instrument, outcomes: Mapping[str, Outcome], aims: tuple[float, float]
) -> dict[str, Any]:
    """Return what the results file says of the instrument: see docs/results.md.

    Gains [paper: the idea; ours: `plain`]: the spread between original and retrained model on the
    shifted forget set, over the same spread on the unshifted one. For `gain` the latter is that of
    the plain original model, which did learn the unshifted data: the fair comparison, and the
    smaller gain. For `gain_unshifted` it is that of the audit's own original model. The retrained
    models' part in each is `aims`, see `aim`.
    """
    scenario = instrument.task.scenario
    after, before = scenario.forget, scenario.unshifted_forget
    assert before is not None  # an instrument's task is shifted
    original = outcomes["original"].model
    models = (outcomes["retrain"].model, *instrument.retrained)
    test = [_accuracy(model, scenario.test) for model in models]
    spread = {
        "shifted": _accuracy(original, after) - aims[0],
        "plain": _accuracy(instrument.plain, before) - aims[1],
        "unshifted": _accuracy(original, before) - aims[1],
    }
    gains = {
        "gain": gain(spread["shifted"], spread["plain"]),
        "gain_unshifted": gain(spread["shifted"], spread["unshifted"]),
    }
    reasons = {name: undefined_reason(value) for name, value in gains.items()}
    closeness = dataclasses.asdict(instrument.fit.closeness)
    return {
        "fit": {
            "steps": instrument.fit.steps,
            "stopped": instrument.fit.stopped,
            "seconds": instrument.fit.seconds,
        },
        "closeness": {name: _finite(value) for name, value in closeness.items()},
        "references": _on_both(instrument.references, after, before),
        "retrained": {**_on_both(models, after, before), "test": test},
        "spread": spread,
        **{name: _finite(value) for name, value in gains.items()},
        "undefined": {name: reason for name, reason in reasons.items() if reason is not None},
        "anchors": _anchors(instrument.task, outcomes, aims[0]),
    }


def gain(spread: float, plain_spread: float) -> float:
    """Return how many times farther the instrument spreads original and retrained model apart.

    Args:
        spread: P(original) - P(retrained) on the shifted forget set.
        plain_spread: the same on the unshifted forget set.

    Returns:
        The ratio; `Undefined` where the plain spread is not above 0.

    Example:
        >>> gain(0.75, 0.0625)
        12.0
    """
    if plain_spread <= 0.0:
        return Undefined("plain accuracy does not tell original and retrained model apart at all")
    return spread / plain_spread


def _anchors(task: Task, outcomes: Mapping[str, Outcome], aim: float) -> dict[str, Any]:
    methods = {name: method.to_dict() for name, method in task.config.methods.items()}
    *before, last = order = anchor_order(methods)
    assert last == "retrain"  # in its place stands the mean of all retrained models
    found = [_accuracy(outcomes[name].model, task.scenario.forget) for name in before]
    found.append(aim)
    degrees = [found[0] - value for value in found]
    wrong = [[order[i], order[j]] for i, j in out_of_order(degrees)]
    return {"order": order, "degrees": degrees, "in_order": not wrong, "out_of_order": wrong}


def _on_both(
    models: Iterable[nn.Module], after: Samples, before: Samples
) -> dict[str, list[float]]:
    return {
        data: [_accuracy(model, samples) for model in models]
        for data, samples in (("shifted", after), ("unshifted", before))
    }


def _accuracy(model: nn.Module, samples: Samples) -> float:
    return accuracy(predict(model, samples), samples.y)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
