"""Squared gradients of single examples: the diagonal of the Fisher information."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.methods._common import Batches, require
from fastunlearn._loop import default_forward, trainable_parameters

Losses = Callable[[Tensor, Tensor], Iterable[tuple[float, Tensor]]]
"""`losses(outputs, targets)` of a batch of one -> pairs of a weight and a scalar loss."""


@dataclass(frozen=True)
class FisherOptions:
    """How much of the data a diagonal is taken from.

    Args:
        examples: read the first so many examples of a loader at most [ours]; the papers read all.
    """

    examples: int = 1000

    # of the loaders; of no effect, since examples are taken one by one
    batch_size = 64

    def __post_init__(self) -> None:
        require(self, "examples", self.examples >= 1, "at least 1")


def mean_squares(
    model: nn.Module, loader: Batches, losses: Losses, examples: int
) -> tuple[dict[str, Tensor], int]:
    """Average the weighted squares of every single example's gradients.

    mean over examples i of sum_j v_ij (dl_ij / dw)^2, with the weights v_ij and the losses l_ij
    that `losses` gives for an example. The gradient of a batch is never squared, for that is not a
    Fisher information; so how examples are split into batches changes nothing.

    Args:
        model: in evaluation mode.
        loader: batches of (x, y), examples along the first dimension.
        losses: gives the weighted losses of one example.
        examples: how many to read at most.

    Returns:
        The mean for each trainable parameter, by name, and the number of examples in the loader.

    Raises:
        ValueError: the loader yields no example.
    """
    parameters = trainable_parameters(model, "fisher")
    sums = [torch.zeros_like(p) for p in parameters.values()]
    size = taken = 0
    for x, y in loader:
        size += len(y)
        for i in range(min(len(y), examples - taken)):
            one = default_forward(model, (x[i : i + 1], y[i : i + 1]))
            for weight, loss in losses(*one):
                _add_squares(sums, weight, loss, list(parameters.values()))
            taken += 1
    if taken == 0:
        raise ValueError("fisher: loader must yield at least one example, got none")
    return {name: total / taken for name, total in zip(parameters, sums, strict=True)}, size


def _add_squares(
    sums: list[Tensor], weight: float, loss: Tensor, parameters: list[nn.Parameter]
) -> None:
    # the graph is kept: an example may have several losses of the same outputs
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    for total, gradient in zip(sums, found, strict=True):
        if gradient is not None:
            total.addcmul_(gradient, gradient, value=weight)
