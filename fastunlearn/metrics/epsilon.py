"""The epsilon score of the NeurIPS 2023 machine-unlearning challenge."""

from __future__ import annotations

import numpy as np
from torch import Tensor
from torch import from_numpy as tensor_of

from fastunlearn.metrics.checks import check_performance
from fastunlearn.metrics.scores_input import Array, score_array
from fastunlearn.metrics.undefined import Undefined

__all__ = ["epsilon_score", "example_epsilons", "forgetting_quality"]

_BIN_WIDTH = 0.5
_BINS = 13


def example_epsilons(unlearned: Tensor, retrained: Tensor, *, delta: float = 0.0) -> Tensor:
    """Return how well one threshold tells unlearned from retrained models, for each example.

    Per example, an attack says "unlearned" for models that score above a threshold (or at most the
    threshold: both directions are tried, as unlearning may lower the score), with false-positive
    rate a over the retrained and false-negative rate b over the unlearned models. Its epsilon is
    max(log(1 - delta - a) - log b, log(1 - delta - b) - log a); the example's is the greatest over
    all attacks, and at least 0. The challenge's conventions are kept: an attack without any error
    gives infinity, one with a = 0 or b = 0 alone is left out.

    What a reader must know: this is an estimate from few models, no guarantee of differential
    privacy. With M models on each side a finite epsilon is at most log(M - 1) (0 for M = 2), and
    leaving out attacks with a single empty error lets near-perfect separation score near 0; the
    challenge used 512 models. The attack family is the single threshold; the challenge's released
    code also tried double thresholds, so values are comparable within this project only.

    Args:
        unlearned: Shape (M, N), floating point, a score of N forget examples in M unlearned models
            such as the scaled logit of :func:`~fastunlearn.metrics.membership_scores`. Not mutated.
        retrained: Shape (R, N), the same of R models retrained without them. Not mutated.
        delta: In [0, 1).

    Returns:
        Shape (N,), float64, on the CPU: numbers >= 0, infinity where separation is perfect, NaN
        where a score is NaN. Costs a sort of each column.

    Raises:
        TypeError: If a tensor is not floating point.
        ValueError: If a shape does not fit or ``delta`` is out of range.

    Example:
        >>> import torch
        >>> unlearned = torch.tensor([[1.0, 9.0], [2.0, 8.0], [3.0, 7.0], [4.0, 6.0]])
        >>> retrained = torch.tensor([[0.0, 0.0], [0.5, 0.0], [1.5, 0.0], [3.5, 0.0]])
        >>> [round(value, 4) for value in example_epsilons(unlearned, retrained).tolist()]
        [1.0986, inf]

    Source:
        E. Triantafillou et al., Are we making progress in unlearning? Findings from the first
        NeurIPS unlearning competition, 2024, arXiv 2406.09073.
    """
    op = "example_epsilons"
    ours = score_array(op, "unlearned", unlearned, ndim=2)
    theirs = score_array(op, "retrained", retrained, ndim=2)
    if ours.shape[1] != theirs.shape[1]:
        raise ValueError(
            f"{op}: retrained must have shape (models, {ours.shape[1]}), got {theirs.shape}"
        )
    if not 0.0 <= delta < 1.0:
        raise ValueError(f"{op}: delta must be in [0, 1), got {delta}")
    missed, alarms = _error_rates(ours, theirs)
    epsilons = np.maximum(
        _greatest_epsilon(alarms, missed, delta), _greatest_epsilon(1 - alarms, 1 - missed, delta)
    )
    epsilons[np.isnan(ours).any(0) | np.isnan(theirs).any(0)] = np.nan
    return tensor_of(epsilons)


def forgetting_quality(epsilons: Tensor) -> float:
    """Return F, the mean over the forget examples of H = 2 / 2^n.

    n is the bin of the example's epsilon: 1 for [0, 0.5), 2 for [0.5, 1), ..., 13 for 6 and more,
    infinity included. So F is 1 where no attack does better than chance and 2^-12, not 0, where all
    separate perfectly.

    Args:
        epsilons: Shape (N,), floating point, from :func:`example_epsilons`. Not mutated.

    Returns:
        A number in [2^-12, 1], greater is better; :class:`~fastunlearn.metrics.Undefined` where an
        epsilon is NaN.

    Raises:
        TypeError: If ``epsilons`` is not a floating-point tensor.
        ValueError: If it has not one dimension, no element, or a negative element.

    Example:
        >>> import torch
        >>> forgetting_quality(torch.tensor([0.2, 0.7]))
        0.75

    Source:
        As :func:`example_epsilons`.
    """
    op = "forgetting_quality"
    values = score_array(op, "epsilons", epsilons)
    if np.isnan(values).any():
        return Undefined(f"{int(np.isnan(values).sum())} of {len(values)} epsilons are NaN")
    if (values < 0).any():
        raise ValueError(f"{op}: epsilons must be >= 0, got {values.min()}")
    bins = np.minimum(np.floor(values / _BIN_WIDTH) + 1, _BINS)
    return float(np.mean(2.0 / 2.0**bins))


def epsilon_score(
    epsilons: Tensor, *, retain: float, retain_retrained: float, test: float, test_retrained: float
) -> float:
    """Return the challenge's score: F * RA / RA* * TA / TA*.

    Args:
        epsilons: Shape (N,), from :func:`example_epsilons`. Not mutated.
        retain: Mean accuracy of the unlearned models on the retain set, in [0, 1].
        retain_retrained: Mean accuracy of the retrained models there.
        test: Mean accuracy of the unlearned models on the test set.
        test_retrained: Mean accuracy of the retrained models there.

    Returns:
        A number >= 0, greater is better, 1 for models like retrained ones;
        :class:`~fastunlearn.metrics.Undefined` where an epsilon is NaN or a retrained accuracy 0.

    Raises:
        TypeError: If an accuracy is not a real number.
        ValueError: If an accuracy is outside [0, 1] or ``epsilons`` does not fit.

    Example:
        >>> import torch
        >>> epsilon_score(
        ...     torch.tensor([0.7]), retain=0.5, retain_retrained=1.0, test=1.0, test_retrained=1.0
        ... )
        0.25

    Source:
        As :func:`example_epsilons`.
    """
    op = "epsilon_score"
    own = [
        check_performance(op, name, value, upper=1.0)
        for name, value in (("retain", retain), ("test", test))
    ]
    reference = [
        check_performance(op, name, value, upper=1.0)
        for name, value in (
            ("retain_retrained", retain_retrained),
            ("test_retrained", test_retrained),
        )
    ]
    if not all(reference):
        return Undefined("an accuracy of the retrained models is 0")
    quality = forgetting_quality(epsilons)
    # Arithmetic would turn the reason of an undefined quality into a plain NaN.
    if isinstance(quality, Undefined):
        return quality
    return quality * own[0] / reference[0] * own[1] / reference[1]


def _error_rates(unlearned: Array, retrained: Array) -> tuple[Array, Array]:
    """Return false-negative and false-positive rate of "unlearned if score > t" for each t.

    Shapes (M + R, N): t runs through the sorted scores of each column. A place whose score occurs
    again after it is no threshold; it gets NaN.
    """
    values = np.concatenate([unlearned, retrained])
    order = np.argsort(values, axis=0, kind="stable")
    ranked = np.take_along_axis(values, order, 0)
    is_unlearned = order < len(unlearned)
    missed = np.cumsum(is_unlearned, 0) / len(unlearned)
    alarms = 1.0 - np.cumsum(~is_unlearned, 0) / len(retrained)
    tied = np.zeros(values.shape, bool)
    tied[:-1] = ranked[:-1] == ranked[1:]
    return np.where(tied, np.nan, missed), np.where(tied, np.nan, alarms)


def _greatest_epsilon(false_positive: Array, false_negative: Array, delta: float) -> Array:
    """Return the greatest epsilon over the attacks of each column, at least 0, shape (N,)."""
    a, b = false_positive, false_negative
    with np.errstate(divide="ignore", invalid="ignore"):
        each = np.fmax(np.log(1 - delta - a) - np.log(b), np.log(1 - delta - b) - np.log(a))
    each = np.where((a == 0) | (b == 0), 0.0, each)
    each = np.where((a == 0) & (b == 0), np.inf, each)
    return np.fmax(np.fmax.reduce(each, axis=0), 0.0)
