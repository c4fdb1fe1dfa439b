"""SSD, selective synaptic dampening: shrink the weights that matter most for the forget set."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.methods._common import Batches, require, running
from benchmarks.methods._fisher import FisherOptions, mean_squares
from fastunlearn._loop import LossFn


@dataclass(frozen=True)
class SSDOptions(FisherOptions):
    """Options of `ssd`.

    Args:
        alpha: a weight is selected where F(D_u) > alpha * F(D). Since D contains D_u, F(D) is at
            least |D_u| / |D| * F(D_u): from alpha = |D| / |D_u| on nothing is selected. The
            paper's 10 is for forget sets far smaller than a tenth; 5 is ours, for a tenth.
        lam: lambda, the strength: 1 is the paper's; less dampens more.
    """

    alpha: float = 5.0
    lam: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("alpha", "lam"):
            require(self, name, 0.0 < getattr(self, name) < math.inf, "finite and above 0")


def ssd(
    model: nn.Module,
    forget: Batches,
    retain: Batches,
    loss_fn: LossFn,
    options: SSDOptions,
    *,
    seed: int,
) -> None:
    """Dampen the weights with F(D_u) > alpha * F(D): w <- min(lambda F(D) / F(D_u), 1) w [paper].

    F(S) is the diagonal of the empirical Fisher information: the mean over S of the squared
    gradient of a single example's loss, with its own label, in evaluation mode. F(D) is put
    together from both sets: (|D_u| F(D_u) + |D_r| F(D_r)) / |D|. Nothing is trained, buffers stay
    as they are, and nothing is random but for what the model itself may draw.

    The rule compares with a threshold and takes no fixed number, so there is no Top-K in it.

    Args:
        model, forget, retain, loss_fn, seed: see `Core`.
        options: see `SSDOptions`.

    Source:
        Foster, Schoepf, Brintrup, "Fast Machine Unlearning Without Retraining Through Selective
        Synaptic Dampening", AAAI 2024.
    """
    with running(model, seed, train=False):

        def own_loss(outputs: Tensor, targets: Tensor) -> list[tuple[float, Tensor]]:
            return [(1.0, loss_fn(outputs, targets))]

        diagonal = partial(mean_squares, model, losses=own_loss, examples=options.examples)
        (of_forget, n_forget), (of_retain, n_retain) = diagonal(forget), diagonal(retain)
        parameters = dict(model.named_parameters())
        share = n_forget / (n_forget + n_retain)
        for name, here in of_forget.items():
            everywhere = share * here + (1.0 - share) * of_retain[name]
            dampen(parameters[name], here, everywhere, options)


@torch.no_grad()
def dampen(weight: Tensor, forget: Tensor, full: Tensor, options: SSDOptions) -> None:
    """Dampen one tensor in place; unselected elements keep their bits.

    Args:
        weight: any shape.
        forget: F(D_u), of the same shape, at least 0.
        full: F(D), of the same shape, at least 0.
        options: alpha and lambda.
    """
    factor = (options.lam * full / forget).clamp_(max=1.0)
    weight.copy_(torch.where(forget > options.alpha * full, factor * weight, weight))
