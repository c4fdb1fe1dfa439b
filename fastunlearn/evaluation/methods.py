"""The methods that an evaluation compares, in a small registry.

A method is a function `(task, method) -> Outcome` and one line in `METHODS`; other modules add
theirs by `register`. It works on a fresh copy of the original model (or, for retraining, on fresh
weights), and the seconds of its outcome cover all that it needs: scoring, perturbation and repair.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fastunlearn.evaluation.config import FineTuneConfig, MethodConfig, RepairConfig
from fastunlearn.evaluation.data import derive_seed
from fastunlearn.evaluation.parsing import ConfigError, build, check_choice, check_range
from fastunlearn.evaluation.retraining import (
    PartlyRetrainedOptions,
    partly_retrain,
    retrain,
    retrain_again,
    train_original,
)
from fastunlearn.evaluation.task import Outcome, Task
from fastunlearn.evaluation.training import fit, optimizer_factory
from fastunlearn.recipes import RECOMMENDED, Recipe
from fastunlearn.repair import Repair
from fastunlearn.strategies import RandomK, TopK
from fastunlearn.unlearn import Result, unlearn

_STRATEGY = RECOMMENDED.strategy


@dataclass(frozen=True)
class AscentOptions:
    """Bounds of gradient ascent: steps, batch, SGD learning rate and gradient norm of a step."""

    steps: int = 10
    batch_size: int = 64
    lr: float = 0.02
    max_norm: float = 1.0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("lr", "max_norm"):
            if getattr(self, name) <= 0.0:
                raise ConfigError(f"{name} must be above 0, got {getattr(self, name)}")


@dataclass(frozen=True)
class RecipeOptions:
    """A `fastunlearn.recipes.Recipe`, flat; the defaults are those of the recommended one.

    Args:
        select: `top_k` or `random_k`.
        score: what Top-K sorts by; without meaning for `random_k`.
        k: share of the parameters, in (0, 1].
        rel_std, mode: see `fastunlearn.TopK`.
        teacher, distill, passes, teacher_passes, lr, teacher_lr, masked: see
            `fastunlearn.recipes.Recipe`; with `teacher: original` also give `teacher_passes: 0`.
        batch_size: examples in a batch of either set.
    """

    select: str = "random_k"
    score: str = "ratio"
    k: float = _STRATEGY.k
    rel_std: float = _STRATEGY.rel_std or 0.0
    mode: str = _STRATEGY.mode
    teacher: str = RECOMMENDED.teacher
    distill: float = RECOMMENDED.distill
    passes: float = RECOMMENDED.passes
    teacher_passes: float = RECOMMENDED.teacher_passes
    lr: float = RECOMMENDED.lr
    teacher_lr: float = RECOMMENDED.teacher_lr
    masked: bool = False
    batch_size: int = 64

    def __post_init__(self) -> None:
        check_choice("select", self.select, ("top_k", "random_k"))
        check_range("batch_size", self.batch_size, low=1)
        try:
            self.recipe()
        except (TypeError, ValueError) as error:
            raise ConfigError(str(error)) from error

    def recipe(self) -> Recipe:
        """Return the recipe that these options describe."""
        how: dict[str, Any] = {"rel_std": self.rel_std, "mode": self.mode}
        top = self.select == "top_k"
        strategy = TopK(self.k, score=self.score, **how) if top else RandomK(self.k, **how)  # type: ignore[arg-type]
        names = ("teacher", "distill", "passes", "teacher_passes", "lr", "teacher_lr", "masked")
        return Recipe(strategy, **{name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class NoOptions:
    """The options of a method that has none."""


@dataclass(frozen=True)
class MethodKind:
    """An entry of the registry: display name, options, settings of its repair, the function."""

    label: str
    options: type
    repair: type[FineTuneConfig] | None
    run: Callable[[Task, MethodConfig], Outcome]


def perturb_and_repair(task: Task, method: MethodConfig) -> Outcome:
    """Unlearn by Top-K or Random-k perturbation and repair, through `fastunlearn.unlearn`."""
    strategy = METHODS[method.kind].options(**_as_arguments(method.options))
    assert isinstance(method.repair, RepairConfig)
    how = functools.partial(unlearn, strategy=strategy, repair=to_repair(method.repair))
    return _unlearned(task, method.repair.batch_size, how)


def follow_recipe(task: Task, method: MethodConfig) -> Outcome:
    """Unlearn by a recipe, through `fastunlearn.recipes`."""
    options = RecipeOptions(**method.options)
    return _unlearned(task, options.batch_size, options.recipe().unlearn)


def _unlearned(task: Task, batch_size: int, how: Callable[..., Result]) -> Outcome:
    model = task.copy_of_original()
    started = time.perf_counter()
    result = how(
        model,
        forget=task.forget_loader(batch_size),
        retain=task.retain_loader(batch_size),
        loss_fn=cross_entropy,
        seed=derive_seed(task.seed, "perturb"),
        progress=task.progress,
    )
    seconds = time.perf_counter() - started
    model.eval()
    return Outcome(model, seconds, _selected(result.receipt.to_dict()))


def fine_tune(task: Task, method: MethodConfig) -> Outcome:
    """Fine-tune on the retain set, with as many optimiser steps as the repair of the others."""
    assert method.repair is not None
    model = task.copy_of_original()
    started = time.perf_counter()
    fit(
        model,
        task.retain_loader(method.repair.batch_size),
        optimizer_factory(method.repair)(model.parameters()),
        method.repair.epochs,
        cosine=False,
        progress=task.progress,
    )
    return Outcome(model, time.perf_counter() - started)


def gradient_ascent(task: Task, method: MethodConfig) -> Outcome:
    """Climb the forget set's loss for a few clipped SGD steps.

    The climb ends early where a batch's loss reaches ln(n_classes), that of a uniform guess:
    beyond it the model is only being destroyed. Batch-norm statistics stay as they are.
    """
    options = AscentOptions(**method.options)
    model = task.copy_of_original().eval()
    loader = task.forget_loader(options.batch_size)
    started = time.perf_counter()
    optimizer = torch.optim.SGD(model.parameters(), lr=options.lr, maximize=True)
    done = False
    steps = 0
    while not done:
        for x, y in loader:
            loss = cross_entropy(model(x), y)
            done = steps == options.steps or loss.item() >= math.log(task.n_classes)
            if done:
                break
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), options.max_norm)
            optimizer.step()
            steps += 1
    optimizer.zero_grad(set_to_none=True)
    return Outcome(model, time.perf_counter() - started)


METHODS: dict[str, MethodKind] = {
    "original": MethodKind("Original", NoOptions, None, train_original),
    "retrain": MethodKind("Retrained", NoOptions, None, retrain),
    "retrain_again": MethodKind("Retrained again", NoOptions, None, retrain_again),
    "partly_retrained": MethodKind(
        "Partly retrained", PartlyRetrainedOptions, None, partly_retrain
    ),
    "top_k": MethodKind("Top-K", TopK, RepairConfig, perturb_and_repair),
    "random_k": MethodKind("Random-k", RandomK, RepairConfig, perturb_and_repair),
    "recipe": MethodKind("Recipe", RecipeOptions, None, follow_recipe),
    "fine_tune": MethodKind("Fine-tuning", NoOptions, FineTuneConfig, fine_tune),
    "gradient_ascent": MethodKind("Gradient ascent", AscentOptions, None, gradient_ascent),
}

DEFAULT_METHODS: dict[str, dict[str, Any]] = {
    "retrain_again": {},
    "top_k": {"k": 0.01},
    "random_k": {"k": 0.01},
    "fine_tune": {},
    "gradient_ascent": {},
}


def register(name: str, kind: MethodKind) -> None:
    """Add a method to the registry, so that configurations may name it as their kind.

    Raises:
        ValueError: the name is taken.
    """
    if name in METHODS:
        raise ValueError(f"register: name must be new, got {name!r}, which is taken")
    METHODS[name] = kind


def parse_methods(
    raw: Any, repair: RepairConfig, added: Mapping[str, Any] | None = None
) -> dict[str, MethodConfig]:
    """Check the `methods` block and put `original` and `retrain` first.

    Args:
        raw: mapping of row name to options, or None for all methods with default options. An
            entry's `kind` defaults to its name; `repair` overrides single keys of the shared
            repair.
        repair: the shared repair.
        added: rows that follow where the block lacks them.

    Raises:
        ConfigError: an entry is not valid.
    """
    given = DEFAULT_METHODS if raw is None else raw
    if not isinstance(given, dict) or not all(isinstance(name, str) for name in given):
        raise ConfigError(f"methods must be a mapping of names to options, got {given!r}")
    first = {name: given.get(name, {}) for name in ("original", "retrain")}
    last = {name: row for name, row in (added or {}).items() if name not in given}
    methods = {}
    for name, entry in {**first, **given, **last}.items():
        methods[name] = _parse_method(name, {} if entry is None else entry, repair)
    for name in first:
        if methods[name].kind != name:
            raise ConfigError(f"methods.{name}.kind must be {name!r}, got {methods[name].kind!r}")
    return methods


def to_repair(config: RepairConfig) -> Repair | None:
    """Return the `fastunlearn.Repair` that a configuration describes; None for no epochs."""
    if config.epochs == 0:
        return None
    return Repair(
        epochs=config.epochs,
        distill=config.distill,
        divergence=config.divergence,
        masked=config.masked,
        optimizer=optimizer_factory(config),
    )


def _parse_method(name: str, entry: Any, repair: RepairConfig) -> MethodConfig:
    where = f"methods.{name}"
    if not isinstance(entry, dict):
        raise ConfigError(f"{where} must be a mapping of options to values, got {entry!r}")
    options = dict(entry)
    kind = options.pop("kind", name)
    if kind not in METHODS:
        raise ConfigError(f"{where}.kind must be one of {', '.join(METHODS)}, got {kind!r}")
    label = options.pop("label", METHODS[kind].label)
    if not isinstance(label, str):
        raise ConfigError(f"{where}.label must be a string, got {label!r}")
    own_repair, cls = None, METHODS[kind].repair
    if cls is not None:
        shared = cls(**{f.name: getattr(repair, f.name) for f in dataclasses.fields(cls)})
        own_repair = build(cls, f"{where}.repair", options.pop("repair", {}), base=shared)
    parsed = _parse_options(METHODS[kind].options, where, options)
    return MethodConfig(kind, label, parsed, own_repair)


def _parse_options(cls: type, where: str, options: dict[str, Any]) -> dict[str, Any]:
    if cls not in (TopK, RandomK):
        return dataclasses.asdict(build(cls, where, options))
    allowed = [f.name for f in dataclasses.fields(cls) if f.init]
    unknown = [key for key in options if key not in allowed]
    if unknown:
        raise ConfigError(
            f"{where}: keys must be among kind, label, repair, {', '.join(allowed)}, "
            f"got {', '.join(map(repr, unknown))}"
        )
    try:
        strategy = cls(**_as_arguments(options))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from error
    resolved = {key: getattr(strategy, key) for key in allowed}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in resolved.items()}


def _as_arguments(options: Any) -> dict[str, Any]:
    # YAML and JSON have lists, the strategies take tuples
    return {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}


def _selected(receipt: dict[str, Any]) -> dict[str, Any]:
    tensors = [
        {"name": t["name"], "numel": math.prod(t["shape"]), "selected": t["selected"]}
        for t in receipt["tensors"]
    ]
    return {"k": receipt["count"], "tensors": tensors}
