"""The models that are trained from scratch: original, retrained, partly retrained."""

from __future__ import annotations

import time
from dataclasses import dataclass

from torch import nn

from fastunlearn.evaluation.config import MethodConfig
from fastunlearn.evaluation.data import (
    Samples,
    TensorLoader,
    derive_seed,
    joined,
    stratified_order,
)
from fastunlearn.evaluation.models import build_model, load_weights
from fastunlearn.evaluation.parsing import check_fraction
from fastunlearn.evaluation.task import Outcome, Task
from fastunlearn.evaluation.training import fit, optimizer_factory


@dataclass(frozen=True)
class PartlyRetrainedOptions:
    """The share of the forget set that stays in the training set, in (0, 1)."""

    kept: float = 0.5

    def __post_init__(self) -> None:
        check_fraction("kept", self.kept)


def train_original(task: Task, method: MethodConfig) -> Outcome:
    """Train fresh weights on the whole training set, forget and retain together.

    Where the configuration names a file, its weights are taken instead, and the time is 0.
    """
    if task.config.original is not None:
        model = _fresh_model(task, "original")
        load_weights(model, task.config.original.replace("{seed}", str(task.seed)))
        return Outcome(model.eval(), 0.0)
    return train_fresh(task, joined(task.scenario.forget, task.scenario.retain), "original")


def retrain(task: Task, method: MethodConfig) -> Outcome:
    """Train fresh weights on the retain set alone: the gold standard.

    Neither the forget set nor the original model is read. Initial weights and batch order come
    from seeds of their own, so nothing of the original model's training is repeated.
    """
    return train_fresh(task, task.scenario.retain, "retrain")


def retrain_again(task: Task, method: MethodConfig) -> Outcome:
    """Retrain once more, with other initial weights and another batch order.

    Its distance to `retrain` is what two honest retrainings differ by.
    """
    return train_fresh(task, task.scenario.retain, "retrain again")


def partly_retrain(task: Task, method: MethodConfig) -> Outcome:
    """Retrain on the retain set and a stratified part of the forget set, at least one example.

    With less kept, an evaluation must find more forgotten: the figures of such a series show
    whether it can tell. A smaller part lies inside a greater one, and all parts of a seed start
    from the same weights.
    """
    forget = task.scenario.forget
    count = max(1, round(method.options["kept"] * len(forget)))
    order = stratified_order(forget.y, seed=derive_seed(task.seed, "partly retrained", "kept"))
    kept = forget.at(order[:count])
    return train_fresh(task, joined(kept, task.scenario.retain), "partly retrained")


def train_reference(task: Task, number: int) -> nn.Module:
    """Train one of the models that an audit's generator works against; `number` is from 1."""
    audit = task.config.spdgan
    assert audit is not None  # asked for by audits alone
    share = audit.references[number - 1]
    return train_fresh(task, task.scenario.retain, f"reference {number}", share=share).model


def retrain_further(task: Task, number: int) -> nn.Module:
    """Train one more of the retrained models whose mean an audit sets a method against.

    `number` is from 2: the first is `retrain`. None of them is `retrain_again`, so that its row
    stays a judgement of a model by others.
    """
    return train_fresh(task, task.scenario.retain, f"retrained {number}").model


def train_fresh(task: Task, samples: Samples, purpose: str, *, share: float = 1.0) -> Outcome:
    """Train fresh weights on `samples`.

    Args:
        task: the run.
        samples: the training set.
        purpose: weights and batch order have seeds of it.
        share: of the configured epochs, rounded, at least one.
    """
    train = task.config.train
    started = time.perf_counter()
    model = _fresh_model(task, purpose)
    loader = TensorLoader(
        samples, train.batch_size, seed=derive_seed(task.seed, purpose, "batch order")
    )
    optimizer = optimizer_factory(train)(model.parameters())
    fit(model, loader, optimizer, max(1, round(share * train.epochs)), progress=task.progress)
    return Outcome(model, time.perf_counter() - started)


def _fresh_model(task: Task, purpose: str) -> nn.Module:
    image_size = task.scenario.retain.x.shape[-1]
    seed = derive_seed(task.seed, purpose, "weights")
    return build_model(task.config.model, image_size, task.n_classes, seed=seed)
