"""torchmetrics classes on the pure functions.

Each is updated batch by batch with the logits of the models it compares, and gathers its states
over processes. Inside a ``MetricCollection`` call ``update`` with keywords: the argument names are
the same in all classes, and each takes the ones it needs. Parameter distance, run-time ratio and
average gap have nothing to accumulate over batches and are functions only.

A value that does not exist (a denominator of 0, no example) is NaN, and ``undefined_reason`` says
why.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastunlearn.divergence import jensen_shannon
from fastunlearn.metrics.attack_metric import MembershipInferenceAttack
from fastunlearn.metrics.functional import (
    count_correct,
    forgetting_rate,
    forgetting_rate_normalised,
    memory_retention_rate,
    memory_retention_rate_normalised,
    unlearning_accuracy,
    unlearning_degree,
    unlearning_degree_normalised,
)
from fastunlearn.metrics.metric_base import UnlearningMetric
from fastunlearn.metrics.undefined import Undefined

__all__ = [
    "ForgettingRate",
    "JensenShannonToRetrained",
    "MembershipInferenceAttack",
    "MemoryRetentionRate",
    "NormalisedForgettingRate",
    "NormalisedMemoryRetentionRate",
    "NormalisedUnlearningDegree",
    "UnlearningAccuracy",
    "UnlearningDegree",
]


class _AccuracyMetric(UnlearningMetric):
    """Counts, for each model in ``models``, how often it is right on the same examples."""

    models: tuple[str, ...] = ()
    function: Callable[..., float]
    total: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for model in self.models:
            self.add_state(f"{model}_correct", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def _count(self, targets: Tensor, *logits: Tensor) -> None:
        """Count one batch; the logits come in the order of ``models``."""
        op = f"{type(self).__name__}.update"
        # All counts first: a batch with one bad argument must leave every state as it was.
        counts = [count_correct(each, targets, op) for each in logits]
        for model, count in zip(self.models, counts, strict=True):
            setattr(self, f"{model}_correct", getattr(self, f"{model}_correct") + count)
        self.total = self.total + targets.numel()

    def compute(self) -> Tensor:
        """Return the metric over all examples so far: 0-dim, NaN where undefined."""
        total = int(self.total)
        if total == 0:
            return self._as_tensor(Undefined("there is no example"))
        accuracies = (int(getattr(self, f"{model}_correct")) / total for model in self.models)
        return self._as_tensor(type(self).function(*accuracies))


class ForgettingRate(_AccuracyMetric):
    """Forgetting rate over the forget set: :func:`~fastunlearn.metrics.forgetting_rate`.

    [name: paper; formula: ours] No direction is better: the retrained model's value is the goal.

    Args:
        **kwargs: Keywords of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = ForgettingRate()
        >>> right, wrong = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
        >>> metric.update(original=right, unlearned=wrong, targets=torch.tensor([1]))
        >>> metric.compute()
        tensor(1.)
    """

    higher_is_better = None
    plot_upper_bound = 1.0
    models = ("original", "unlearned")
    function = staticmethod(forgetting_rate)

    def update(self, original: Tensor, unlearned: Tensor, targets: Tensor) -> None:
        """Add one batch of the forget set.

        Args:
            original: Logits of the original model, shape (N, C).
            unlearned: Logits of the unlearned model, shape (N, C).
            targets: Class indices, shape (N,).
        """
        self._count(targets, original, unlearned)


class NormalisedForgettingRate(_AccuracyMetric):
    """Forgetting relative to retraining: :func:`~fastunlearn.metrics.forgetting_rate_normalised`.

    [ours] 1 is best, so that no direction is better.

    Args:
        **kwargs: Keywords of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = NormalisedForgettingRate()
        >>> right, wrong = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
        >>> metric.update(right, unlearned=wrong, retrained=right, targets=torch.tensor([1]))
        >>> metric.compute(), metric.undefined_reason
        (tensor(nan), 'the original and the retrained model perform equally on the forget set')
    """

    higher_is_better = None
    models = ("original", "unlearned", "retrained")
    function = staticmethod(forgetting_rate_normalised)

    def update(
        self, original: Tensor, unlearned: Tensor, retrained: Tensor, targets: Tensor
    ) -> None:
        """Add one batch of the forget set.

        Args:
            original: Logits of the original model, shape (N, C).
            unlearned: Logits of the unlearned model, shape (N, C).
            retrained: Logits of the retrained model, shape (N, C).
            targets: Class indices, shape (N,).
        """
        self._count(targets, original, unlearned, retrained)


class MemoryRetentionRate(_AccuracyMetric):
    """Retention over the retain or test set: :func:`~fastunlearn.metrics.memory_retention_rate`.

    [name: paper; formula: ours]

    Args:
        **kwargs: Keywords of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = MemoryRetentionRate()
        >>> right = torch.tensor([[0.0, 1.0]])
        >>> metric.update(original=right, unlearned=right, targets=torch.tensor([1]))
        >>> metric.compute()
        tensor(1.)
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    models = ("original", "unlearned")
    function = staticmethod(memory_retention_rate)

    def update(self, original: Tensor, unlearned: Tensor, targets: Tensor) -> None:
        """Add one batch of the retain or test set.

        Args:
            original: Logits of the original model, shape (N, C).
            unlearned: Logits of the unlearned model, shape (N, C).
            targets: Class indices, shape (N,).
        """
        self._count(targets, original, unlearned)


class NormalisedMemoryRetentionRate(_AccuracyMetric):
    """Retention relative to the retrained model, over the retain or test set.

    [ours] See :func:`~fastunlearn.metrics.memory_retention_rate_normalised`.

    Args:
        **kwargs: Keywords of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = NormalisedMemoryRetentionRate()
        >>> right, wrong = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
        >>> metric.update(unlearned=wrong, retrained=right, targets=torch.tensor([1]))
        >>> metric.compute()
        tensor(0.)
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    models = ("unlearned", "retrained")
    function = staticmethod(memory_retention_rate_normalised)

    def update(self, unlearned: Tensor, retrained: Tensor, targets: Tensor) -> None:
        """Add one batch of the retain or test set.

        Args:
            unlearned: Logits of the unlearned model, shape (N, C).
            retrained: Logits of the retrained model, shape (N, C).
            targets: Class indices, shape (N,).
        """
        self._count(targets, unlearned, retrained)


class UnlearningAccuracy(_AccuracyMetric):
    """Error of the unlearned model on the forget set.

    [field] See :func:`~fastunlearn.metrics.unlearning_accuracy`. No direction is better: the
    retrained model's value is the goal.

    Args:
        **kwargs: Keywords of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = UnlearningAccuracy()
        >>> metric.update(torch.tensor([[0.0, 1.0], [0.0, 1.0]]), targets=torch.tensor([1, 0]))
        >>> metric.compute()
        tensor(0.5000)
    """

    higher_is_better = None
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    models = ("unlearned",)
    function = staticmethod(unlearning_accuracy)

    def update(self, unlearned: Tensor, targets: Tensor) -> None:
        """Add one batch of the forget set.

        Args:
            unlearned: Logits of the unlearned model, shape (N, C).
            targets: Class indices, shape (N,).
        """
        self._count(targets, unlearned)


class UnlearningDegree(_AccuracyMetric):
    """Unlearning degree over the shifted forget set.

    [paper] See :func:`~fastunlearn.metrics.unlearning_degree`. No direction is better: the
    retrained model's value is the goal.

    Args:
        **kwargs: Keywords of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = UnlearningDegree()
        >>> right, wrong = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
        >>> metric.update(original=right, unlearned=wrong, targets=torch.tensor([1]))
        >>> metric.compute()
        tensor(1.)
    """

    higher_is_better = None
    plot_lower_bound = -1.0
    plot_upper_bound = 1.0
    models = ("original", "unlearned")
    function = staticmethod(unlearning_degree)

    def update(self, original: Tensor, unlearned: Tensor, targets: Tensor) -> None:
        """Add one batch of the shifted forget set.

        Args:
            original: Logits of the original model, shape (N, C).
            unlearned: Logits of the unlearned model, shape (N, C).
            targets: Class indices, shape (N,).
        """
        self._count(targets, original, unlearned)


class NormalisedUnlearningDegree(_AccuracyMetric):
    """Unlearning degree relative to retraining, over the shifted forget set.

    [ours] See :func:`~fastunlearn.metrics.unlearning_degree_normalised`. 1 is best, so that no
    direction is better.

    Args:
        **kwargs: Keywords of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = NormalisedUnlearningDegree()
        >>> right, wrong = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
        >>> metric.update(right, unlearned=wrong, retrained=wrong, targets=torch.tensor([1]))
        >>> metric.compute()
        tensor(1.)
    """

    higher_is_better = None
    models = ("original", "unlearned", "retrained")
    function = staticmethod(unlearning_degree_normalised)

    def update(
        self, original: Tensor, unlearned: Tensor, retrained: Tensor, targets: Tensor
    ) -> None:
        """Add one batch of the shifted forget set.

        Args:
            original: Logits of the original model, shape (N, C).
            unlearned: Logits of the unlearned model, shape (N, C).
            retrained: Logits of the retrained model, shape (N, C).
            targets: Class indices, shape (N,).
        """
        self._count(targets, original, unlearned, retrained)


class JensenShannonToRetrained(UnlearningMetric):
    """Mean Jensen-Shannon divergence, in nats, of the unlearned to the retrained model's outputs.

    [field] In [0, ln 2]; see :func:`fastunlearn.divergence.jensen_shannon`. For reporting: no
    gradient passes through the state.

    Args:
        **kwargs: Keywords of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = JensenShannonToRetrained()
        >>> metric.update(unlearned=torch.zeros(2, 3), retrained=torch.zeros(2, 3))
        >>> metric.compute()
        tensor(0.)
    """

    higher_is_better = False
    plot_lower_bound = 0.0
    divergence: Tensor
    total: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("divergence", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, unlearned: Tensor, retrained: Tensor) -> None:
        """Add one batch.

        Args:
            unlearned: Logits of the unlearned model, shape (..., C).
            retrained: Logits of the retrained model, the same shape.
        """
        values = jensen_shannon(unlearned.detach(), retrained.detach(), reduction="none")
        self.divergence = self.divergence + values.sum(dtype=torch.float64)
        self.total = self.total + values.numel()

    def compute(self) -> Tensor:
        """Return the mean over all examples so far: 0-dim, NaN where there is none."""
        total = int(self.total)
        if total == 0:
            return self._as_tensor(Undefined("there is no example"))
        return self._as_tensor(float(self.divergence) / total)
