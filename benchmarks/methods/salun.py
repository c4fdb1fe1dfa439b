"""SalUn: random labels on the weights that matter for the forget set, the others frozen."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

import fastunlearn as fu
from benchmarks.methods._common import Batches, require
from benchmarks.methods.random_labels import RandomLabelsOptions, random_labels
from fastunlearn._loop import LossFn, trainable_parameters


@dataclass(frozen=True)
class SalUnOptions(RandomLabelsOptions):
    """Options of `salun`.

    Args:
        fraction: share of the weights that may change, in (0, 1]; 0.5 is the paper's.
    """

    fraction: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "fraction", 0.0 < self.fraction <= 1.0, "in (0, 1]")


def salun(
    model: nn.Module,
    forget: Batches,
    retain: Batches,
    loss_fn: LossFn,
    options: SalUnOptions,
    *,
    seed: int,
) -> None:
    """Fine-tune the salient weights alone on random labels [paper].

    w = m * (w0 + dw) + (1 - m) * w0, with m = 1 where |dL(D_u)/dw| at w0 is among the greatest
    `fraction` of the model, and dw from `random_labels`. The gradient is that of the whole forget
    set, in evaluation mode. Weights outside m keep their bits.

    Args:
        model, forget, retain, loss_fn, seed: see `Core` and `random_labels`.
        options: see `SalUnOptions`.

    Source:
        Fan, Liu, Zhang, Wong, Wei, Liu, "SalUn: Empowering Machine Unlearning via Gradient-based
        Weight Saliency in Both Image Classification and Generation", ICLR 2024.
    """
    masks = saliency_masks(model, forget, loss_fn, options.fraction)
    random_labels(model, forget, retain, loss_fn, options, seed=seed, masks=masks)


def saliency_masks(
    model: nn.Module, forget: Batches, loss_fn: LossFn, fraction: float
) -> dict[str, Tensor]:
    """Return bool masks of the `fraction` of weights with the greatest |dL(D_u)/dw|, by name."""
    scores = fu.score(model, forget, loss_fn, kind="grad")
    parameters = trainable_parameters(model, "salun")
    return fu.select(parameters, fu.TopK(fraction), scores=scores).masks()
