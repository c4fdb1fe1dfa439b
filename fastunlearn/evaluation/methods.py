"""The methods that an evaluation compares, in a small registry.

A method is a function `(task, method) -> Outcome` and one line in `METHODS`; other modules add
theirs by `register`. It works on a fresh copy of the original model (or, for retraining, on fresh
weights), and the seconds of its outcome cover all that it needs: scoring, perturbation and repair.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fastunlearn._loop import ProgressHook
from fastunlearn.evaluation.config import (
    Config,
    ConfigError,
    FineTuneConfig,
    MethodConfig,
    RepairConfig,
    build,
)
from fastunlearn.evaluation.data import Samples, TensorLoader, derive_seed
from fastunlearn.evaluation.models import build_model, load_weights
from fastunlearn.evaluation.scenarios import Scenario
from fastunlearn.evaluation.training import fit, optimizer_factory, silent
from fastunlearn.repair import Repair
from fastunlearn.strategies import RandomK, TopK
from fastunlearn.unlearn import unlearn


@dataclass(frozen=True)
class Task:
    """What a method is given.

    Args:
        config: the evaluation.
        seed: of this run; every source of randomness derives its own from it.
        scenario: the sets.
        n_classes: number of classes.
        original: the model trained on forget and retain set; None while it is not trained yet.
            Methods must not change it.
        progress: called as work inside a method is done: phase, done, total.
    """

    config: Config
    seed: int
    scenario: Scenario
    n_classes: int
    original: nn.Module | None = None
    progress: ProgressHook = silent

    def copy_of_original(self) -> nn.Module:
        """Return a copy of the original model that may be changed."""
        if self.original is None:
            raise ValueError("task: original must be trained before this method, got None")
        return copy.deepcopy(self.original)

    def retain_loader(self, batch_size: int) -> TensorLoader:
        """Return shuffled batches of the retain set, in one order for all methods and passes.

        A pass that scoring or a check takes before the repair then changes nothing for it.
        """
        seed = derive_seed(self.seed, "repair", "retain order")
        return TensorLoader(self.scenario.retain, batch_size, seed=seed, reshuffle=False)

    def forget_loader(self, batch_size: int) -> TensorLoader:
        """Return shuffled batches of the forget set, in one order for all methods and passes."""
        seed = derive_seed(self.seed, "repair", "forget order")
        return TensorLoader(self.scenario.forget, batch_size, seed=seed, reshuffle=False)


@dataclass(frozen=True)
class Outcome:
    """What a method gives: the model, the seconds it took, and which parameters were selected.

    `selected` is None for methods that select nothing, else
    `{"k": int, "tensors": [{"name", "numel", "selected"}, ...]}` in model order.
    """

    model: nn.Module
    seconds: float
    selected: dict[str, Any] | None = None


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
class NoOptions:
    """The options of a method that has none."""


@dataclass(frozen=True)
class MethodKind:
    """An entry of the registry: display name, options, settings of its repair, the function."""

    label: str
    options: type
    repair: type[FineTuneConfig] | None
    run: Callable[[Task, MethodConfig], Outcome]


def train_original(task: Task, method: MethodConfig) -> Outcome:
    """Train fresh weights on the whole training set, forget and retain together.

    Where the configuration names a file, its weights are taken instead, and the time is 0.
    """
    if task.config.original is not None:
        model = _fresh_model(task, "original")
        load_weights(model, task.config.original.replace("{seed}", str(task.seed)))
        return Outcome(model.eval(), 0.0)
    forget, retain = task.scenario.forget, task.scenario.retain
    everything = Samples(torch.cat([forget.x, retain.x]), torch.cat([forget.y, retain.y]))
    return _train_fresh(task, everything, "original")


def retrain(task: Task, method: MethodConfig) -> Outcome:
    """Train fresh weights on the retain set alone: the gold standard.

    Neither the forget set nor the original model is read. Initial weights and batch order come
    from seeds of their own, so nothing of the original model's training is repeated.
    """
    return _train_fresh(task, task.scenario.retain, "retrain")


def retrain_again(task: Task, method: MethodConfig) -> Outcome:
    """Retrain once more, with other initial weights and another batch order.

    Its distance to `retrain` is what two honest retrainings differ by.
    """
    return _train_fresh(task, task.scenario.retain, "retrain again")


def perturb_and_repair(task: Task, method: MethodConfig) -> Outcome:
    """Unlearn by Top-K or Random-k perturbation and repair, through `fastunlearn.unlearn`."""
    strategy = METHODS[method.kind].options(**_as_arguments(method.options))
    assert isinstance(method.repair, RepairConfig)
    model = task.copy_of_original()
    started = time.perf_counter()
    result = unlearn(
        model,
        strategy,
        forget=task.forget_loader(method.repair.batch_size),
        retain=task.retain_loader(method.repair.batch_size),
        loss_fn=cross_entropy,
        repair=to_repair(method.repair),
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
    "top_k": MethodKind("Top-K", TopK, RepairConfig, perturb_and_repair),
    "random_k": MethodKind("Random-k", RandomK, RepairConfig, perturb_and_repair),
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


def parse_methods(raw: Any, repair: RepairConfig) -> dict[str, MethodConfig]:
    """Check the `methods` block and put `original` and `retrain` first.

    Args:
        raw: mapping of row name to options, or None for all methods with default options. An
            entry's `kind` defaults to its name; `repair` overrides single keys of the shared
            repair.
        repair: the shared repair.

    Raises:
        ConfigError: an entry is not valid.
    """
    given = DEFAULT_METHODS if raw is None else raw
    if not isinstance(given, dict) or not all(isinstance(name, str) for name in given):
        raise ConfigError(f"methods must be a mapping of names to options, got {given!r}")
    first = {name: given.get(name, {}) for name in ("original", "retrain")}
    methods = {}
    for name, entry in {**first, **given}.items():
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


def _train_fresh(task: Task, samples: Samples, purpose: str) -> Outcome:
    train = task.config.train
    started = time.perf_counter()
    model = _fresh_model(task, purpose)
    loader = TensorLoader(
        samples, train.batch_size, seed=derive_seed(task.seed, purpose, "batch order")
    )
    optimizer = optimizer_factory(train)(model.parameters())
    fit(model, loader, optimizer, train.epochs, progress=task.progress)
    return Outcome(model, time.perf_counter() - started)


def _fresh_model(task: Task, purpose: str) -> nn.Module:
    image_size = task.scenario.retain.x.shape[-1]
    seed = derive_seed(task.seed, purpose, "weights")
    return build_model(task.config.model, image_size, task.n_classes, seed=seed)


def _selected(receipt: dict[str, Any]) -> dict[str, Any]:
    tensors = [
        {"name": t["name"], "numel": math.prod(t["shape"]), "selected": t["selected"]}
        for t in receipt["tensors"]
    ]
    return {"k": receipt["count"], "tensors": tensors}
