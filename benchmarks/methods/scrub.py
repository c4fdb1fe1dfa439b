"""SCRUB: away from the original model on the forget set, towards it on the retain set."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from benchmarks.methods._common import (
    Batches,
    TrainingOptions,
    descend,
    kl_divergence,
    logits,
    make_optimizer,
    require,
    running,
)
from fastunlearn._finetune import reference_copy
from fastunlearn._loop import LossFn, default_forward


@dataclass(frozen=True)
class ScrubOptions(TrainingOptions):
    """Options of `scrub`.

    Args:
        max_epochs: in how many of the first epochs a pass over the forget set comes first; at
            least 0. Default ours: all but the last.
        alpha: weight of the divergence on the retain set, at least 0; default ours.
        gamma: weight of the task loss on the retain set, at least 0; default ours.
    """

    max_epochs: int = 2
    alpha: float = 0.5
    gamma: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "max_epochs", self.max_epochs >= 0, "at least 0")
        for name in ("alpha", "gamma"):
            require(self, name, 0.0 <= getattr(self, name) < math.inf, "finite and at least 0")


def scrub(
    model: nn.Module,
    forget: Batches,
    retain: Batches,
    loss_fn: LossFn,
    options: ScrubOptions,
    *,
    seed: int,
) -> None:
    """Alternate max steps on the forget set and min steps on the retain set [paper].

    With d(x; w) = KL(p(x; w0) || p(x; w)), w0 the original model:

    - max step, over D_u: maximise d
    - min step, over D_r: minimise alpha * d + gamma * L

    An epoch is a pass of max steps, in the first `max_epochs` of them, then a pass of min steps,
    with one optimiser for both. The original model runs in evaluation mode, the other in training
    mode, as in the authors' code, so batch-norm statistics see both sets. Temperature 1; without
    the paper's rewinding (SCRUB+R).

    At w = w0 the gradient of d is 0. So without batch norm or dropout the first pass of max steps
    has nothing but rounding to go by.

    Args:
        model, forget, retain, loss_fn, seed: see `Core`. The model gives logits of shape (B, C).
        options: see `ScrubOptions`.

    Source:
        Kurmanji, Triantafillou, Hayes, Triantafillou, "Towards Unbounded Machine Unlearning",
        NeurIPS 2023.
    """
    original = reference_copy(model)

    def min_loss(batch: Any) -> Tensor:
        outputs, targets = default_forward(model, batch)
        distance = kl_divergence(logits(original, batch), outputs)
        return options.alpha * distance + options.gamma * loss_fn(outputs, targets)

    with running(model, seed, train=True):
        optimizer = make_optimizer(model, options)
        for epoch in range(options.epochs):
            for batch in forget if epoch < options.max_epochs else ():
                distance = kl_divergence(logits(original, batch), logits(model, batch))
                descend(optimizer, -distance)
            for batch in retain:
                descend(optimizer, min_loss(batch))
