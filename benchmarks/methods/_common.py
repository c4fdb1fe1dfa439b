"""What the methods share: options, the surroundings of a run, pairs of batches, a divergence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div

from fastunlearn._finetune import cycle
from fastunlearn._loop import LossFn, default_forward, forked_rng, preserved_mode, set_mode
from fastunlearn.evaluation.config import ConfigError, FineTuneConfig
from fastunlearn.evaluation.training import optimizer_factory

Batches = Iterable[Any]
"""Re-iterable batches of (x, y)."""


class Core(Protocol):
    """A method itself: changes `model` in place, reading two loaders of (x, y).

    Training flags and torch's generators are as before afterwards, and every `.grad` is None. The
    same seed and loaders give the same bits on one machine. `loss_fn(outputs, targets)` is a mean
    over the examples of a batch.
    """

    def __call__(
        self,
        model: nn.Module,
        forget: Batches,
        retain: Batches,
        loss_fn: LossFn,
        options: Any,
        *,
        seed: int,
    ) -> None: ...


def require(options: object, name: str, holds: bool, expected: str) -> None:
    """Raise `ConfigError` unless a field of some options holds what is expected of it."""
    if not holds:
        where = f"{type(options).__name__}.{name}"
        raise ConfigError(f"{where} must be {expected}, got {getattr(options, name)}")


@dataclass(frozen=True)
class TrainingOptions(FineTuneConfig):
    """Epochs, batches and optimiser: by default 3 epochs of Adam, lr 1e-3, batches of 64 [ours]."""

    epochs: int = 3

    def __post_init__(self) -> None:
        self._check(type(self).__name__, least_epochs=1)


@contextmanager
def running(model: nn.Module, seed: int, *, train: bool) -> Iterator[torch.Generator]:
    """Run a block in training or evaluation mode, with seeded dropout, and tidy up after it.

    Yields:
        A CPU generator for the method's own draws.
    """
    with torch.enable_grad(), forked_rng(), preserved_mode(model):
        torch.manual_seed(seed)
        set_mode(model, train=train)
        try:
            yield torch.Generator().manual_seed(seed)
        finally:
            model.zero_grad(set_to_none=True)


def make_optimizer(model: nn.Module, options: FineTuneConfig) -> torch.optim.Optimizer:
    """Make the optimiser of some options over all trainable parameters."""
    return optimizer_factory(options)(p for p in model.parameters() if p.requires_grad)


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Take one optimiser step down a loss."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def mean_loss(model: nn.Module, batch: Any, loss_fn: LossFn) -> Tensor:
    """Return the loss of a batch."""
    return loss_fn(*default_forward(model, batch))


def logits(model: nn.Module, batch: Any) -> Tensor:
    """Return the outputs of a model for a batch, shape (B, C)."""
    return default_forward(model, batch)[0]


def paired(retain: Batches, forget: Batches, epochs: int) -> Iterator[tuple[Any, Any]]:
    """Yield every retain batch of `epochs` passes together with the next forget batch.

    The forget loader is started anew whenever it ends.

    Raises:
        ValueError: the forget loader is empty.
    """
    endless = cycle(forget, "forget")
    for _ in range(epochs):
        yield from zip(retain, endless, strict=False)


def joined(first: Any, second: Any) -> tuple[Tensor, Tensor]:
    """Return two batches (x, y) as one, the first's examples first."""
    x, y = (torch.cat(pair) for pair in zip(first, second, strict=True))
    return x, y


def kl_divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """Return KL(softmax(teacher) || softmax(student)) in nats, the mean over a batch.

    Args:
        teacher: logits, shape (B, C), a constant.
        student: logits, shape (B, C); the gradient with respect to them is
            (softmax(student) - softmax(teacher)) / B.
    """
    target = teacher.detach().log_softmax(-1)
    return kl_div(student.log_softmax(-1), target, reduction="batchmean", log_target=True)
