"""The training routine of the evaluation: deterministic, the same for every model."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fastunlearn._loop import ProgressHook
from fastunlearn.evaluation.config import FineTuneConfig
from fastunlearn.evaluation.data import Samples, TensorLoader

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def silent(phase: str, done: int, total: int | None) -> None:
    """Report no progress."""


def optimizer_factory(config: FineTuneConfig) -> OptimizerFactory:
    """Return a function that makes the configured optimiser for some parameters."""

    def make(params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        if config.optimizer == "adam":
            return torch.optim.Adam(params, lr=config.lr, weight_decay=config.weight_decay)
        return torch.optim.SGD(
            params, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )

    return make


def fit(
    model: nn.Module,
    loader: TensorLoader,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    *,
    cosine: bool = True,
    progress: ProgressHook = silent,
) -> None:
    """Train `model` in place by cross-entropy.

    Args:
        model: the classifier; left in eval mode.
        loader: batches of (x, y).
        optimizer: over the parameters to train.
        epochs: passes over the loader.
        cosine: let the learning rate fall to zero along half a cosine, step by step.
        progress: called after each epoch with "epoch", the epoch from 1, and their number.
    """
    steps = max(1, epochs * len(loader))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) if cosine else None
    model.train()
    for epoch in range(epochs):
        for x, y in loader:
            optimizer.zero_grad(set_to_none=True)
            cross_entropy(model(x), y).backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()
        progress("epoch", epoch + 1, epochs)
    optimizer.zero_grad(set_to_none=True)
    model.eval()


@torch.no_grad()
def predict(model: nn.Module, samples: Samples, batch_size: int = 500) -> Tensor:
    """Return the logits of all samples, shape (N, n_classes), in evaluation mode.

    The model's mode is restored.
    """
    was_training = model.training
    model.eval()
    try:
        batches = [model(x) for x, _ in TensorLoader(samples, batch_size)]
    finally:
        model.train(was_training)
    return torch.cat(batches)
