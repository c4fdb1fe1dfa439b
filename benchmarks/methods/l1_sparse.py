"""L1-sparse: fine-tune on the retain set with a penalty that makes weights small."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

from benchmarks.methods._common import (
    Batches,
    TrainingOptions,
    descend,
    make_optimizer,
    mean_loss,
    require,
    running,
)
from fastunlearn._loop import LossFn


@dataclass(frozen=True)
class L1SparseOptions(TrainingOptions):
    """Options of `l1_sparse`.

    Args:
        gamma: weight of the penalty in the first epoch, at least 0; 0 is fine-tuning. 5e-4 is
            ours.
    """

    gamma: float = 5e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "gamma", 0.0 <= self.gamma < math.inf, "finite and at least 0")


def l1_sparse(
    model: nn.Module,
    forget: Batches,
    retain: Batches,
    loss_fn: LossFn,
    options: L1SparseOptions,
    *,
    seed: int,
) -> None:
    """Minimise L(D_r) + gamma_t * ||w||_1 with gamma_t = (1 - t / T) * gamma [paper].

    t is the epoch from 0, T their number, w all trainable parameters. In training mode. The forget
    set is not read.

    Args:
        model, forget, retain, loss_fn, seed: see `Core`.
        options: see `L1SparseOptions`.

    Source:
        Jia, Liu, Ram, Yao, Liu, Liu, Sharma, Liu, "Model Sparsity Can Simplify Machine
        Unlearning", NeurIPS 2023.
    """
    with running(model, seed, train=True):
        optimizer = make_optimizer(model, options)
        for epoch in range(options.epochs):
            gamma = (1.0 - epoch / options.epochs) * options.gamma
            for batch in retain:
                descend(optimizer, mean_loss(model, batch, loss_fn) + gamma * l1_norm(model))


def l1_norm(model: nn.Module) -> Tensor:
    """Return the sum of |w| over all trainable parameters, a scalar with a graph."""
    norms = [p.abs().sum() for p in model.parameters() if p.requires_grad]
    return sum(norms[1:], norms[0])
