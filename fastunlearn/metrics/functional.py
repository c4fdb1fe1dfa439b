"""Pure functions for the performance metrics of machine unlearning.

Words: w0 is the original model, w1 the unlearned model, w* the model retrained without the forget
set; D_u is the forget set, D_r the retain set, D_t the test set; G(D_u) is the forget set as
SPD-GAN shifts it. P(w, S) is the performance of w on S, as a fraction such as :func:`accuracy`
gives, greater is better. Retain accuracy and test accuracy are plain accuracies of w1 on D_r and
D_t.

Formulas carry their origin: [paper] the source paper, [field] usual in the literature, [ours]
defined by this project.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fastunlearn.divergence import Reduction, jensen_shannon
from fastunlearn.metrics.checks import check_logits, check_performance, check_targets
from fastunlearn.metrics.undefined import Undefined

__all__ = [
    "AVERAGE_GAP_METRICS",
    "accuracy",
    "average_gap",
    "forgetting_rate",
    "forgetting_rate_normalised",
    "js_divergence",
    "memory_retention_rate",
    "memory_retention_rate_normalised",
    "run_time_ratio",
    "unlearning_accuracy",
    "unlearning_degree",
    "unlearning_degree_normalised",
]

AVERAGE_GAP_METRICS = ("unlearning_accuracy", "retain_accuracy", "test_accuracy", "mia_auc")
"""The four metrics over which :func:`average_gap` takes its mean."""


def count_correct(logits: Tensor, targets: Tensor, op: str = "accuracy") -> Tensor:
    """Return how many rows of ``logits`` predict their target: int64, 0-dim, same device."""
    check_logits(op, "logits", logits)
    check_targets(op, "targets", targets, logits)
    # argmax would name the first NaN as the winner and so credit a diverged model with a class.
    valid = ~logits.isnan().any(-1)
    return ((logits.argmax(-1) == targets.to(logits.device)) & valid).sum()


def accuracy(logits: Tensor, targets: Tensor) -> float:
    """Return the fraction of examples whose greatest logit is the target's.

    Among equal greatest logits the lowest class index counts as the prediction. A row with a NaN
    predicts nothing and counts as wrong, so that a diverged model gets no credit.

    Args:
        logits: Shape (..., C), floating point, not mutated.
        targets: Shape (...), integer class indices in [0, C), not mutated.

    Returns:
        A number in [0, 1].

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If there is no example, shapes differ or an index is out of range.

    Example:
        >>> logits = torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0]])
        >>> accuracy(logits, torch.tensor([0, 1, 1]))
        0.6666666666666666
    """
    return int(count_correct(logits, targets)) / targets.numel()


def forgetting_rate(original: float, unlearned: float) -> float:
    """Return the part of the performance on the forget set that unlearning removed.

    (P(w0, D_u) - P(w1, D_u)) / P(w0, D_u). [name: paper; formula: ours] The best value is not 1 but
    what the retrained model has: see :func:`forgetting_rate_normalised`.

    Args:
        original: P(w0, D_u), finite and >= 0.
        unlearned: P(w1, D_u), finite and >= 0.

    Returns:
        At most 1; negative where unlearning raised the performance; :class:`Undefined` (a NaN with
        a reason) where the original model has none.

    Raises:
        TypeError: If an argument is not a real number.
        ValueError: If an argument is negative, infinite or NaN.

    Example:
        >>> forgetting_rate(original=0.8, unlearned=0.2)
        0.7500000000000001
    """
    p0 = check_performance("forgetting_rate", "original", original)
    p1 = check_performance("forgetting_rate", "unlearned", unlearned)
    if p0 == 0.0:
        return Undefined("the original model's performance on the forget set is 0")
    return (p0 - p1) / p0


def forgetting_rate_normalised(original: float, unlearned: float, retrained: float) -> float:
    """Return forgetting relative to what retraining forgets.

    (P(w0, D_u) - P(w1, D_u)) / (P(w0, D_u) - P(w*, D_u)). [ours] 1 means that it forgets what
    retraining forgets, more than 1 that it forgets more, 0 that it forgets nothing.

    A small denominator (a model that generalises does as well on the forget set when it never saw
    it) makes the value noisy, and a negative one turns its sign: read it beside the three
    performances.

    Args:
        original: P(w0, D_u), finite and >= 0.
        unlearned: P(w1, D_u), finite and >= 0.
        retrained: P(w*, D_u), finite and >= 0.

    Returns:
        The ratio, or :class:`Undefined` where original and retrained model perform equally.

    Raises:
        TypeError: If an argument is not a real number.
        ValueError: If an argument is negative, infinite or NaN.

    Example:
        >>> forgetting_rate_normalised(original=1.0, unlearned=0.25, retrained=0.5)
        1.5
    """
    op = "forgetting_rate_normalised"
    p0 = check_performance(op, "original", original)
    p1 = check_performance(op, "unlearned", unlearned)
    reference = check_performance(op, "retrained", retrained)
    return _over_retraining(p0, p1, reference, "the forget set")


def memory_retention_rate(original: float, unlearned: float) -> float:
    """Return the part of the performance on kept data that unlearning left.

    P(w1, D_r) / P(w0, D_r), and the same on D_t. [name: paper; formula: ours]

    Args:
        original: P(w0, D_r), finite and >= 0.
        unlearned: P(w1, D_r), finite and >= 0.

    Returns:
        1 where nothing was lost, above 1 where the model got better; :class:`Undefined` where the
        original model's performance is 0.

    Raises:
        TypeError: If an argument is not a real number.
        ValueError: If an argument is negative, infinite or NaN.

    Example:
        >>> memory_retention_rate(original=0.8, unlearned=0.6)
        0.7499999999999999
    """
    return _retention("memory_retention_rate", "original", original, unlearned)


def memory_retention_rate_normalised(unlearned: float, retrained: float) -> float:
    """Return the performance on kept data relative to the retrained model's.

    P(w1, D_r) / P(w*, D_r), and the same on D_t. [ours] 1 means as good as retraining.

    Args:
        unlearned: P(w1, D_r), finite and >= 0.
        retrained: P(w*, D_r), finite and >= 0.

    Returns:
        The ratio, or :class:`Undefined` where the retrained model's performance is 0.

    Raises:
        TypeError: If an argument is not a real number.
        ValueError: If an argument is negative, infinite or NaN.

    Example:
        >>> memory_retention_rate_normalised(unlearned=0.75, retrained=0.75)
        1.0
    """
    return _retention("memory_retention_rate_normalised", "retrained", retrained, unlearned)


def _retention(op: str, reference_name: str, reference: float, unlearned: float) -> float:
    """Divide the unlearned model's performance by that of the reference model."""
    denominator = check_performance(op, reference_name, reference)
    numerator = check_performance(op, "unlearned", unlearned)
    if denominator == 0.0:
        return Undefined(f"the {reference_name} model's performance on the kept data is 0")
    return numerator / denominator


def unlearning_accuracy(unlearned: float) -> float:
    """Return the error of the unlearned model on the forget set, UA = 1 - P(w1, D_u). [field]

    Args:
        unlearned: P(w1, D_u), an accuracy in [0, 1].

    Returns:
        A number in [0, 1]. The best value is the retrained model's, not 1.

    Raises:
        TypeError: If the argument is not a real number.
        ValueError: If the argument is outside [0, 1].

    Example:
        >>> unlearning_accuracy(0.75)
        0.25

    Source:
        C. Fan et al., SalUn, ICLR 2024.
    """
    return 1.0 - check_performance("unlearning_accuracy", "unlearned", unlearned, upper=1.0)


def unlearning_degree(original: float, unlearned: float) -> float:
    """Return how much performance on the shifted forget set unlearning removed.

    P(w0, G(D_u)) - P(w1, G(D_u)). [paper] w0 must have been trained on D_r and G(D_u): then what it
    does well on G(D_u) it has learned from that data itself.

    Args:
        original: P(w0, G(D_u)), finite and >= 0.
        unlearned: P(w1, G(D_u)), finite and >= 0.

    Returns:
        0 for the untouched model; negative where unlearning raised the performance. The best value
        is the retrained model's: see :func:`unlearning_degree_normalised`.

    Raises:
        TypeError: If an argument is not a real number.
        ValueError: If an argument is negative, infinite or NaN.

    Example:
        >>> unlearning_degree(original=0.75, unlearned=0.5)
        0.25

    Source:
        Z. Zuo, Z. Tang, K. Li, A. Datta, Machine Unlearning Through Fine-Grained Model Parameters
        Perturbation, IEEE TKDE 37(4), 2025.
    """
    op = "unlearning_degree"
    p0 = check_performance(op, "original", original)
    return p0 - check_performance(op, "unlearned", unlearned)


def unlearning_degree_normalised(original: float, unlearned: float, retrained: float) -> float:
    """Return the unlearning degree relative to the retrained model's.

    (P(w0, G(D_u)) - P(w1, G(D_u))) / (P(w0, G(D_u)) - P(w*, G(D_u))). [ours] 0 for the untouched
    model, 1 where as much is forgotten as by retraining, more than 1 where more is.

    The denominator is the instrument's spread: where it is small the value is noisy, and where it
    is negative the sign turns.

    Args:
        original: P(w0, G(D_u)), finite and >= 0.
        unlearned: P(w1, G(D_u)), finite and >= 0.
        retrained: P(w*, G(D_u)), finite and >= 0.

    Returns:
        The ratio, or :class:`Undefined` where original and retrained model perform equally.

    Raises:
        TypeError: If an argument is not a real number.
        ValueError: If an argument is negative, infinite or NaN.

    Example:
        >>> unlearning_degree_normalised(original=1.0, unlearned=0.75, retrained=0.5)
        0.5
    """
    op = "unlearning_degree_normalised"
    p0 = check_performance(op, "original", original)
    p1 = check_performance(op, "unlearned", unlearned)
    reference = check_performance(op, "retrained", retrained)
    return _over_retraining(p0, p1, reference, "the shifted forget set")


def _over_retraining(original: float, unlearned: float, retrained: float, where: str) -> float:
    """Return what unlearning took away over what retraining does, on the data named `where`."""
    if original == retrained:
        return Undefined(f"the original and the retrained model perform equally on {where}")
    return (original - unlearned) / (original - retrained)


def js_divergence(logits_p: Tensor, logits_q: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Return the Jensen-Shannon divergence of two models' outputs in nats, without a graph.

    The same number as :func:`fastunlearn.divergence.jensen_shannon`, in [0, ln 2], for reporting;
    0 means that both models answer alike on these inputs. [field]

    Args:
        logits_p: Shape (..., C), floating point, not mutated.
        logits_q: Same shape and device, not mutated.
        reduction: ``"mean"`` over all distributions, ``"batchmean"`` or ``"none"``.

    Returns:
        A tensor that requires no gradient: 0-dim, or shape (...) for ``"none"``.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If shapes differ, there is no example or ``reduction`` is unknown.

    Example:
        >>> logits = torch.tensor([[1.0, 2.0]])
        >>> float(js_divergence(logits, logits))
        0.0
    """
    with torch.no_grad():
        return jensen_shannon(logits_p, logits_q, reduction)


def run_time_ratio(unlearning_seconds: float, retraining_seconds: float) -> float:
    """Return the time of unlearning divided by the time of retraining. [ours]

    Args:
        unlearning_seconds: Wall-clock seconds, finite and >= 0.
        retraining_seconds: Wall-clock seconds on the same machine, finite and >= 0.

    Returns:
        Below 1 where unlearning is faster; :class:`Undefined` where retraining took no time.

    Raises:
        TypeError: If an argument is not a real number.
        ValueError: If an argument is negative, infinite or NaN.

    Example:
        >>> run_time_ratio(unlearning_seconds=3.0, retraining_seconds=60.0)
        0.05
    """
    op = "run_time_ratio"
    unlearning = check_performance(op, "unlearning_seconds", unlearning_seconds)
    retraining = check_performance(op, "retraining_seconds", retraining_seconds)
    if retraining == 0.0:
        return Undefined("the retraining time is 0 seconds")
    return unlearning / retraining


def average_gap(
    unlearned: Mapping[str, float | None], retrained: Mapping[str, float | None]
) -> float:
    """Return the mean absolute difference to the retrained model over four metrics.

    (|dUA| + |dRA| + |dTA| + |dMIA|) / 4 [field], with UA = ``unlearning_accuracy``, RA =
    ``retain_accuracy``, TA = ``test_accuracy`` and MIA = ``mia_auc``, all fractions. Tables in the
    literature use the share of forget examples that an attack calls unseen as MIA; here it is the
    AUC of :func:`fastunlearn.metrics.membership_attack` [ours], so values are comparable within
    this project only.

    Args:
        unlearned: The unlearned model's metrics by name; further names are ignored.
        retrained: The retrained model's metrics by name; further names are ignored.

    Returns:
        A number >= 0; 0 is best. :class:`Undefined` where one of the metrics is NaN or None.

    Raises:
        TypeError: If a metric is not a real number.
        ValueError: If one of :data:`AVERAGE_GAP_METRICS` is missing or infinite.

    Example:
        >>> ours = dict(unlearning_accuracy=0.5, retain_accuracy=1, test_accuracy=1, mia_auc=0.5)
        >>> gold = dict(unlearning_accuracy=0.25, retain_accuracy=1, test_accuracy=1, mia_auc=0.75)
        >>> average_gap(ours, gold)
        0.125

    Source:
        C. Fan et al., SalUn, ICLR 2024 (average gap).
    """
    op = "average_gap"
    gaps = []
    for name in AVERAGE_GAP_METRICS:
        pair = []
        for owner, metrics in (("unlearned", unlearned), ("retrained", retrained)):
            if name not in metrics:
                raise ValueError(f"{op}: {owner} must contain {name!r}, got {sorted(metrics)}")
            value = metrics[name]
            if value is None or (isinstance(value, float) and math.isnan(value)):
                return Undefined(f"{name} of the {owner} model is undefined")
            pair.append(check_performance(op, f"{owner}[{name!r}]", value))
        gaps.append(abs(pair[0] - pair[1]))
    return math.fsum(gaps) / len(gaps)
