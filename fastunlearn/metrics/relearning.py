"""Relearning speed: how many steps bring the forgotten data back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fastunlearn._loop import forked_rng
from fastunlearn.metrics.checks import check_performance
from fastunlearn.metrics.functional import count_correct
from fastunlearn.metrics.scores_input import check_count

__all__ = ["RelearnResult", "relearn_steps"]

Batch = tuple[Tensor, Tensor]
OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class RelearnResult:
    """What :func:`relearn_steps` found.

    Attributes:
        steps: Gradient steps until the accuracy was back; where ``reached`` is False, the steps
            tried: the true number is greater (censored), so take no plain mean over such results.
        reached: Whether the accuracy came back within the steps allowed.
        target: The accuracy that counted as back.
        accuracies: Accuracy on the forget set before the first step and after each.
    """

    steps: int
    reached: bool
    target: float
    accuracies: tuple[float, ...]


def relearn_steps(
    model: nn.Module,
    forget: Iterable[Batch],
    *,
    target: float,
    make_optimizer: OptimizerFactory,
    loss_fn: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    max_steps: int = 200,
    seed: int = 0,
) -> RelearnResult:
    """Count the gradient steps on the forget set until a model is back at the original's accuracy.

    A model that has forgotten needs as many as the retrained model; far fewer mean that the
    knowledge was hidden, not removed. The count alone says nothing: give the same batches,
    optimiser and target for the retrained model and compare. Where the retrained model starts at
    the target (an easy forget set that generalisation covers), the measure cannot show anything.
    [field]

    Args:
        model: The unlearned model, a classifier with logits of shape (N, C). A deep copy learns;
            the model itself is not mutated. The copy trains in training mode, and its accuracy is
            taken in eval mode.
        forget: Batches (x, y) of the forget set on the model's device, read anew for each pass;
            every batch is one step.
        target: Accuracy on the whole forget set that counts as back, in [0, 1]: the original's.
        make_optimizer: Makes the optimiser for the copy's parameters that require a gradient.
        loss_fn: ``loss_fn(logits, y) -> scalar``.
        max_steps: Steps after which the result is censored, >= 1.
        seed: Seed of torch's generators during the training (dropout); they are put back.

    Returns:
        The result; 0 steps where the model never was below the target. The accuracy over the whole
        forget set is taken after each step.

    Raises:
        TypeError: If ``target`` is not a real number.
        ValueError: If ``target`` or ``max_steps`` is out of range or ``forget`` is empty, or gives
            nothing on a later pass (an iterator instead of a loader).

    Example:
        >>> model = nn.Linear(1, 2, bias=False)
        >>> _ = nn.init.zeros_(model.weight)
        >>> batches = [(torch.tensor([[1.0], [1.0]]), torch.tensor([1, 1]))]
        >>> sgd = lambda parameters: torch.optim.SGD(parameters, lr=0.1)
        >>> found = relearn_steps(model, batches, target=1.0, make_optimizer=sgd)
        >>> found.steps, found.reached, found.accuracies
        (1, True, (0.0, 1.0))

    Source:
        A. Golatkar et al., Eternal sunshine of the spotless net, CVPR 2020 (relearn time); V.
        Chundawat et al., Zero-shot machine unlearning, IEEE TIFS 2023 (anamnesis index).
    """
    op = "relearn_steps"
    check_performance(op, "target", target, upper=1.0)
    check_count(op, "max_steps", max_steps, 1)
    learner = copy.deepcopy(model)
    accuracies = [_accuracy(learner, forget)]
    with torch.inference_mode(False), torch.enable_grad(), forked_rng():
        torch.default_generator.manual_seed(seed)
        optimizer = make_optimizer([p for p in learner.parameters() if p.requires_grad])
        for x, y in _cycle(forget):
            if accuracies[-1] >= target or len(accuracies) > max_steps:
                break
            learner.train()
            optimizer.zero_grad(set_to_none=True)
            loss_fn(learner(x), y).backward()
            optimizer.step()
            accuracies.append(_accuracy(learner, forget))
    return RelearnResult(
        steps=len(accuracies) - 1,
        reached=accuracies[-1] >= target,
        target=float(target),
        accuracies=tuple(accuracies),
    )


@torch.no_grad()
def _accuracy(model: nn.Module, batches: Iterable[Batch]) -> float:
    """Return the accuracy over all batches, in eval mode."""
    model.eval()
    correct = size = 0
    for x, y in _one_pass(batches):
        correct += int(count_correct(model(x), y, "relearn_steps"))
        size += len(y)
    return correct / size


def _cycle(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yield batches pass after pass."""
    while True:
        yield from _one_pass(batches)


def _one_pass(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yield the batches of one pass, or raise where there is none."""
    n_batches = 0
    for batch in batches:
        n_batches += 1
        yield batch
    if not n_batches:
        raise ValueError("relearn_steps: forget must yield a batch on every pass, got none")
