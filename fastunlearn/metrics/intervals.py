"""Uncertainty of a figure, and the smallest effect that a run could have shown."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from fastunlearn.metrics.scores_input import check_between, check_count, score_array
from fastunlearn.metrics.undefined import Undefined

__all__ = [
    "Interval",
    "mean_interval",
    "paired_difference",
    "proportion_interval",
    "smallest_detectable_auc",
    "smallest_detectable_effect",
]

_RESAMPLES = 9999


@dataclass(frozen=True)
class Interval:
    """A figure with its confidence interval.

    Attributes:
        value: The estimate.
        low: Lower end; :class:`~fastunlearn.metrics.Undefined` where there is none.
        high: Upper end, likewise.
        n: Number of values behind it.
    """

    value: float
    low: float
    high: float
    n: int


def mean_interval(values: Tensor, *, level: float = 0.95, seed: int = 0) -> Interval:
    """Return the mean of values with its bootstrap interval (BCa, 9,999 resamples).

    The values are the independent units: one per seed for a claim about the method, one per example
    for a claim about one model. Mixing both (examples of several seeds in one list) understates the
    spread. With fewer than about 10 values every bootstrap is too narrow (five values: nearer 85 %
    than 95 %); the t interval of an evaluation's results is then the one to trust.

    Args:
        values: Shape (n,), floating point, not mutated.
        level: Confidence level in (0, 1).
        seed: Seed of the resampling; the same seed gives the same interval.

    Returns:
        The interval. Both ends equal the mean where all values are the same; they are undefined for
        a single value, and everything is where a value is not finite.

    Raises:
        ImportError: If scipy is missing.
        TypeError: If ``values`` is not a floating-point tensor.
        ValueError: If a shape or ``level`` does not fit.

    Example:
        >>> import torch
        >>> found = mean_interval(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
        >>> found.value, found.low < 3.5 < found.high, found.n
        (3.5, True, 6)

    Source:
        B. Efron, Better bootstrap confidence intervals, JASA 1987 (BCa).
    """
    op = "mean_interval"
    rows = score_array(op, "values", values)
    check_between(op, "level", level, 0.0, 1.0)
    n = len(rows)
    if not np.isfinite(rows).all():
        nothing = Undefined(f"{int((~np.isfinite(rows)).sum())} of {n} values are not finite")
        return Interval(nothing, nothing, nothing, n)
    mean = float(rows.mean())
    if n == 1:
        nothing = Undefined("one value has no spread")
        return Interval(mean, nothing, nothing, 1)
    if (rows == rows[0]).all():
        return Interval(mean, mean, mean, n)
    found = _scipy_stats(op).bootstrap(
        (rows,),
        np.mean,
        n_resamples=_RESAMPLES,
        batch=1000,
        confidence_level=level,
        method="BCa",
        rng=np.random.default_rng(seed),
    )
    return Interval(
        mean, float(found.confidence_interval.low), float(found.confidence_interval.high), n
    )


def paired_difference(
    first: Tensor, second: Tensor, *, level: float = 0.95, seed: int = 0
) -> Interval:
    """Return the mean of first - second over pairs, with its bootstrap interval.

    Pairs share what varies between them (the seed and its split), so the interval of the difference
    is narrower than the two intervals suggest. Compare methods with it, not by overlapping bars.

    Args:
        first: Shape (n,), floating point, one value per seed or example. Not mutated.
        second: Shape (n,), the same seeds or examples in the same order. Not mutated.
        level: Confidence level in (0, 1).
        seed: Seed of the resampling.

    Returns:
        As :func:`mean_interval`.

    Raises:
        ImportError: If scipy is missing.
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If shapes differ or do not fit.

    Example:
        >>> import torch
        >>> a = torch.tensor([0.9, 0.5, 0.7])
        >>> paired_difference(a, a - 0.25).value
        0.25
    """
    op = "paired_difference"
    score_array(op, "first", first)
    score_array(op, "second", second)
    if first.shape != second.shape:
        raise ValueError(
            f"{op}: second must have shape {tuple(first.shape)}, got {tuple(second.shape)}"
        )
    return mean_interval(first.double() - second.double(), level=level, seed=seed)


def proportion_interval(successes: int, trials: int, *, level: float = 0.95) -> Interval:
    """Return a proportion with its exact (Clopper-Pearson) interval.

    Never too narrow for independent trials, also at 0 and at 1.

    Args:
        successes: Number of successes, in [0, trials].
        trials: Number of independent trials, >= 1.
        level: Confidence level in (0, 1).

    Returns:
        The interval.

    Raises:
        ImportError: If scipy is missing.
        ValueError: If an argument is out of range.

    Example:
        >>> found = proportion_interval(0, 10)
        >>> found.value, found.low, round(found.high, 4)
        (0.0, 0.0, 0.3085)

    Source:
        C. Clopper, E. Pearson, The use of confidence or fiducial limits illustrated in the case of
        the binomial, Biometrika 1934.
    """
    op = "proportion_interval"
    check_count(op, "trials", trials, 1)
    if check_count(op, "successes", successes, 0) > trials:
        raise ValueError(f"{op}: successes must be in [0, {trials}], got {successes}")
    check_between(op, "level", level, 0.0, 1.0)
    found = (
        _scipy_stats(op)
        .binomtest(successes, trials)
        .proportion_ci(confidence_level=level, method="exact")
    )
    return Interval(successes / trials, float(found.low), float(found.high), trials)


def smallest_detectable_effect(
    std: float, n: int, *, level: float = 0.05, power: float = 0.8
) -> float:
    """Return the smallest mean difference that a paired t test of n seeds would likely have shown.

    The true mean d for which a two-sided t test of n differences with standard deviation ``std``
    finds a difference of the right sign with probability ``power``; exact, by the non-central t
    distribution. A run that shows no difference says nothing about differences below it.

    Args:
        std: Standard deviation of the differences between seeds, >= 0.
        n: Number of seeds.
        level: Size of the two-sided test, in (0, 1).
        power: Probability of detection, in (level, 1).

    Returns:
        The effect in the unit of ``std``; :class:`~fastunlearn.metrics.Undefined` for one seed.

    Raises:
        ImportError: If scipy is missing.
        ValueError: If an argument is out of range.

    Example:
        >>> round(smallest_detectable_effect(1.0, n=34), 2)
        0.5

    Source:
        J. Cohen, Statistical power analysis for the behavioral sciences, 2nd ed. 1988.
    """
    op = "smallest_detectable_effect"
    if not (math.isfinite(std) and std >= 0.0):
        raise ValueError(f"{op}: std must be a finite number >= 0, got {std}")
    check_count(op, "n", n, 1)
    check_between(op, "level", level, 0.0, 1.0)
    check_between(op, "power", power, level, 1.0)
    if n == 1:
        return Undefined("one seed cannot show a difference")
    stats = _scipy_stats(op)
    from scipy.optimize import brentq

    critical = stats.t.ppf(1.0 - level / 2.0, n - 1)

    def surplus(shift: float) -> float:
        return float(stats.nct.sf(critical, n - 1, shift)) - power

    return float(brentq(surplus, 0.0, 3.0 * critical + 5.0)) * std / math.sqrt(n)


def smallest_detectable_auc(
    n_members: int, n_others: int, *, level: float = 0.05, power: float = 0.8
) -> float:
    """Return the smallest distance of an AUC from 0.5 that an attack of this size would show.

    (z_{1 - level/2} + z_power) * SE with the standard error of the AUC where there is nothing to
    find, SE^2 = (n + m + 1) / (12 n m). An AUC closer to 0.5 than that cannot be told from chance
    reliably, so "AUC 0.5" never means less than "below this".

    Args:
        n_members: Number of member examples n, >= 1, independent of each other.
        n_others: Number of other examples m, >= 1, independent of each other.
        level: Size of the two-sided test, in (0, 1).
        power: Probability of detection, in (level, 1).

    Returns:
        A distance in (0, 0.5]; :class:`~fastunlearn.metrics.Undefined` where not even an AUC of 1
        would be shown.

    Raises:
        ImportError: If scipy is missing.
        ValueError: If an argument is out of range.

    Example:
        >>> round(smallest_detectable_auc(400, 400), 4)
        0.0572

    Source:
        H. Mann, D. Whitney, On a test of whether one of two random variables is stochastically
        larger than the other, Annals of Mathematical Statistics 1947 (the variance).
    """
    op = "smallest_detectable_auc"
    n, m = check_count(op, "n_members", n_members, 1), check_count(op, "n_others", n_others, 1)
    check_between(op, "level", level, 0.0, 1.0)
    check_between(op, "power", power, level, 1.0)
    norm = _scipy_stats(op).norm
    deviations = float(norm.ppf(1.0 - level / 2.0) + norm.ppf(power))
    distance = deviations * math.sqrt((n + m + 1) / (12.0 * n * m))
    if distance > 0.5:
        return Undefined(f"{n} and {m} examples are too few to show even an AUC of 1")
    return distance


def _scipy_stats(op: str) -> Any:
    """Return scipy.stats, or raise an ImportError that says how to get it."""
    try:
        from scipy import stats
    except ImportError as error:
        raise ImportError(
            f'{op}: scipy must be installed: pip install "fastunlearn[eval]"'
        ) from error
    return stats
