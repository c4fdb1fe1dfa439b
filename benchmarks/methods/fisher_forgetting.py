"""Fisher forgetting: noise on every weight, the more the less the retain set cares for it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.methods._common import Batches, require, running
from benchmarks.methods._fisher import FisherOptions, mean_squares
from fastunlearn._loop import LossFn

FLOOR, CEILING = 1e-8, 1e3  # of F and of 1 / F, as in the authors' code


@dataclass(frozen=True)
class FisherForgettingOptions(FisherOptions):
    """Options of `fisher_forgetting`.

    Args:
        examples: see `FisherOptions`; 300 by default, since each costs a backward pass for every
            class.
        lambda_sigma2: the paper's lambda * sigma_h^2, strength of the noise, at least 0. With the
            default (ours) a weight without any influence gets noise of standard deviation 0.056.
    """

    examples: int = 300
    lambda_sigma2: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        holds = 0.0 <= self.lambda_sigma2 < math.inf
        require(self, "lambda_sigma2", holds, "finite and at least 0")


def fisher_forgetting(
    model: nn.Module,
    forget: Batches,
    retain: Batches,
    loss_fn: LossFn,
    options: FisherForgettingOptions,
    *,
    seed: int,
) -> None:
    """Add noise: w <- w + (lambda sigma_h^2)^(1/4) F^(-1/4) n, with n from N(0, 1) [paper].

    F is the diagonal of the Fisher information on D_r: the mean over examples of
    sum_y p(y|x) (d log p(y|x) / dw)^2, over all classes y and not the labels alone. 1 / F is
    min(1 / (F + 1e-8), 1e3), as in the authors' code; its other adjustments by kind of layer, and
    its square root where the paper has a fourth root, are left out. In evaluation mode; nothing is
    trained, buffers stay as they are and the forget set is not read.

    Args:
        model, forget, retain, seed: see `Core`. The model gives logits of shape (B, C).
        loss_fn: -log p(y|x) for class numbers y, such as `cross_entropy`.
        options: see `FisherForgettingOptions`.

    Source:
        Golatkar, Achille, Soatto, "Eternal Sunshine of the Spotless Net: Selective Forgetting in
        Deep Networks", CVPR 2020.
    """

    def over_classes(outputs: Tensor, targets: Tensor) -> list[tuple[float, Tensor]]:
        p = outputs.detach().softmax(-1).squeeze(0).tolist()
        return [(p[c], loss_fn(outputs, torch.full_like(targets, c))) for c in range(len(p))]

    with running(model, seed, train=False) as generator:
        diagonal, _ = mean_squares(model, retain, over_classes, options.examples)
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, fisher in diagonal.items():
                weight = parameters[name]
                noise = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
                inverse = (1.0 / (fisher + FLOOR)).clamp_(max=CEILING)
                std = (options.lambda_sigma2 * inverse) ** 0.25
                weight.add_(std * noise.to(weight.device))
