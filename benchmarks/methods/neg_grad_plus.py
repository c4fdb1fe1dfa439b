"""NegGrad+: down the retain set's loss and up the forget set's, in the same step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from benchmarks.methods._common import (
    Batches,
    TrainingOptions,
    descend,
    make_optimizer,
    mean_loss,
    paired,
    require,
    running,
)
from fastunlearn._loop import LossFn


@dataclass(frozen=True)
class NegGradPlusOptions(TrainingOptions):
    """Options of `neg_grad_plus`.

    Args:
        alpha: weight of the retain loss, in [0, 1]; 1 is fine-tuning. 0.95 is ours.
    """

    alpha: float = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "alpha", 0.0 <= self.alpha <= 1.0, "in [0, 1]")


def neg_grad_plus(
    model: nn.Module,
    forget: Batches,
    retain: Batches,
    loss_fn: LossFn,
    options: NegGradPlusOptions,
    *,
    seed: int,
) -> None:
    """Minimise alpha * L(D_r) - (1 - alpha) * L(D_u) [paper].

    A step takes one retain batch and the next forget batch; the forget loader is started anew
    whenever it ends. Both go through the model in training mode, as in the authors' code, so
    batch-norm statistics see both. With alpha = 1 the forget set is not read.

    The second term has no bound: with a small alpha the model is destroyed.

    Args:
        model, forget, retain, loss_fn, seed: see `Core`.
        options: see `NegGradPlusOptions`.

    Source:
        Kurmanji, Triantafillou, Hayes, Triantafillou, "Towards Unbounded Machine Unlearning",
        NeurIPS 2023.
    """
    with running(model, seed, train=True):
        optimizer = make_optimizer(model, options)
        for retain_batch, forget_batch in paired(retain, forget, options.epochs):
            loss = options.alpha * mean_loss(model, retain_batch, loss_fn)
            if options.alpha < 1.0:
                loss = loss - (1.0 - options.alpha) * mean_loss(model, forget_batch, loss_fn)
            descend(optimizer, loss)
