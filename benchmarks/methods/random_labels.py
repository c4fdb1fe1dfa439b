"""Random labels: learn wrong labels for the forget set, and keep the retain set's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.methods._common import (
    Batches,
    TrainingOptions,
    joined,
    paired,
    require,
    running,
)
from fastunlearn._finetune import _Guard
from fastunlearn._loop import LossFn, default_forward, trainable_parameters
from fastunlearn.evaluation.training import optimizer_factory


@dataclass(frozen=True)
class RandomLabelsOptions(TrainingOptions):
    """Options of `random_labels`.

    Args:
        retain_weight: the paper's alpha, weight of the retain loss, at least 0; 1 is ours.
    """

    retain_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "retain_weight", 0 <= self.retain_weight < math.inf, "finite and at least 0")


def random_labels(
    model: nn.Module,
    forget: Batches,
    retain: Batches,
    loss_fn: LossFn,
    options: RandomLabelsOptions,
    *,
    seed: int,
    masks: Mapping[str, Tensor] | None = None,
) -> None:
    """Minimise L(D_u with labels y' != y) + alpha * L(D_r) [paper].

    y' is uniform over the other classes and drawn anew whenever an example comes up. A step takes
    one retain batch and the next forget batch [ours], joined for one pass through the model, so
    that batch norm sees both at once: pass by pass its running statistics come to fit neither, and
    a ResNet-8 loses half its test accuracy.

    Args:
        model, forget, retain, loss_fn, seed: see `Core`. The model gives logits of shape (B, C),
            C at least 2, and the targets are class numbers, int64 of shape (B,).
        options: see `RandomLabelsOptions`.
        masks: bool masks by parameter name, True where a weight may change; None for all. All
            others keep their bits whatever the optimiser does (momentum, weight decay).
            Batch-norm statistics are no weights and go on.

    Source:
        Golatkar, Achille, Soatto, "Eternal Sunshine of the Spotless Net: Selective Forgetting in
        Deep Networks", CVPR 2020; in the form of Fan et al., "SalUn", ICLR 2024.
    """
    masks = {} if masks is None else masks
    parameters = trainable_parameters(model, "random_labels")
    guard = _Guard(parameters, masks, parameters, copied=True)
    free = [p for name, p in parameters.items() if name not in masks or bool(masks[name].any())]
    with running(model, seed, train=True) as generator:
        optimizer = optimizer_factory(options)(free)
        for retain_batch, (x, y) in paired(retain, forget, options.epochs):
            optimizer.zero_grad(set_to_none=True)
            outputs, targets = default_forward(model, joined((x, y), retain_batch))
            taught, kept = outputs.split([len(y), len(targets) - len(y)])
            wrong = wrong_labels(targets[: len(y)], outputs.shape[-1], generator)
            loss = loss_fn(taught, wrong)
            loss = loss + options.retain_weight * loss_fn(kept, targets[len(y) :])
            loss.backward()
            with guard.around_step():
                optimizer.step()


def wrong_labels(labels: Tensor, n_classes: int, generator: torch.Generator) -> Tensor:
    """Draw for each label one of the others, uniformly.

    Args:
        labels: int64, any shape and device, in [0, n_classes).
        n_classes: number of classes, at least 2.
        generator: on the CPU.

    Returns:
        int64, of the same shape and device.
    """
    shift = torch.randint(1, n_classes, labels.shape, generator=generator)
    return (labels + shift.to(labels.device)) % n_classes
