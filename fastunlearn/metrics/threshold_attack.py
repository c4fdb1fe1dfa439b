"""A membership attack by one threshold on a score: area, rates at low false-positive rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from fastunlearn.metrics.attack import area_under_curve, bootstrap_interval
from fastunlearn.metrics.intervals import proportion_interval, smallest_detectable_auc
from fastunlearn.metrics.scores_input import Array, check_between, score_array
from fastunlearn.metrics.undefined import Undefined, undefined_reason

__all__ = ["RateAtFPR", "ThresholdResult", "threshold_attack"]

FALSE_POSITIVE_RATES = (0.001, 0.01)


@dataclass(frozen=True)
class RateAtFPR:
    """The true-positive rate at a low false-positive rate.

    Attributes:
        fpr: The false-positive rate asked for.
        tpr: Share of members above the threshold; undefined where ``fpr`` is below what the
            non-members resolve.
        low: Lower end of the 95 % Clopper-Pearson interval of ``tpr`` at this threshold.
        high: Upper end.
        measured_fpr: Share of non-members above the threshold, at most ``fpr``.
        fpr_low: Lower end of the 95 % Clopper-Pearson interval of ``measured_fpr``.
        fpr_high: Upper end: ``low`` above it shows a leak, ``low`` above ``fpr`` alone does not.
    """

    fpr: float
    tpr: float
    low: float
    high: float
    measured_fpr: float
    fpr_low: float
    fpr_high: float


@dataclass(frozen=True)
class ThresholdResult:
    """What :func:`threshold_attack` achieved.

    Attributes:
        auc: Area under the ROC curve, members being positive.
        auc_low: Lower end of its 95 % bootstrap interval over the examples.
        auc_high: Upper end.
        accuracy: Balanced accuracy at a threshold that was chosen on the other half of the data.
        rates: The true-positive rates at the false-positive rates asked for.
        resolution: The smallest false-positive rate that the non-members resolve, 1 / n_nonmembers.
        detectable: The smallest distance of the AUC from 0.5 that this many examples would show
            (two-sided 5 %, power 80 %).
        n_members: Number of member examples.
        n_nonmembers: Number of non-member examples.
    """

    auc: float
    auc_low: float
    auc_high: float
    accuracy: float
    rates: tuple[RateAtFPR, ...]
    resolution: float
    detectable: float
    n_members: int
    n_nonmembers: int

    @property
    def undefined_reason(self) -> str | None:
        """Why there is no AUC, or None where there is one."""
        return undefined_reason(self.auc)

    def rate_at(self, fpr: float) -> RateAtFPR:
        """Return the entry of ``rates`` for one of the false-positive rates asked for."""
        for rate in self.rates:
            if rate.fpr == fpr:
                return rate
        raise KeyError(f"rate_at: fpr must be one of {[r.fpr for r in self.rates]}, got {fpr}")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for JSON: None where undefined, and ``undefined`` for the reasons."""
        fields = asdict(self)
        reasons = {"auc": self.undefined_reason, "detectable": undefined_reason(self.detectable)}
        reasons |= {f"tpr_at_{r.fpr:g}": undefined_reason(r.tpr) for r in self.rates}
        return {
            **_without_nan(fields),
            "undefined": {name: reason for name, reason in reasons.items() if reason},
        }


def threshold_attack(
    member_scores: Tensor,
    nonmember_scores: Tensor,
    *,
    false_positive_rates: Sequence[float] = FALSE_POSITIVE_RATES,
    seed: int = 0,
) -> ThresholdResult:
    """Attack by one threshold on a score, greater meaning member.

    What a reader must know:

    - Members and non-members must come from one distribution: the same classes in the same shares,
      the same preprocessing and, for mislabelled members, non-members mislabelled by the same rule.
      Otherwise the attack measures that difference. Nothing is matched here.
    - For a forget set, members are its examples and non-members data never trained on. Below 0.5
      the AUC means that forgotten examples score *lower* than unseen ones: conspicuous as well.
    - A low AUC with a high rate at 0.1 % false positives is a leak: a few examples are exposed with
      certainty. The rate at a low false-positive rate is the figure to report.
    - n non-members resolve no false-positive rate below 1 / n; such rates are undefined, not 0.
      Close to that limit the threshold hangs on a few non-members, and the rate with it: its own
      interval covers the members at that threshold, so set it against ``fpr_high``, not ``fpr``.
    - The threshold leaves at most floor(fpr * n) non-members strictly above it; ties never count as
      found.
    - The intervals cover one model. Another training seed needs another model.

    Args:
        member_scores: Shape (m,), floating point, such as
            :func:`~fastunlearn.metrics.membership_scores` gives. Not mutated.
        nonmember_scores: Shape (n,), likewise.
        false_positive_rates: Rates in (0, 1).
        seed: Seed of the bootstrap and of the halves for the accuracy, >= 0.

    Returns:
        The result. Its figures are :class:`~fastunlearn.metrics.Undefined` where a score is not
        finite; the accuracy is where a side has fewer than two examples.

    Raises:
        ImportError: If scipy is missing.
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If a shape or a rate does not fit.

    Example:
        >>> import torch
        >>> result = threshold_attack(torch.arange(100.0) + 90.0, torch.arange(100.0))
        >>> result.auc, result.rate_at(0.01).tpr, result.resolution
        (0.995, 0.91, 0.01)
        >>> result.rate_at(0.001).tpr
        Undefined('100 non-members resolve no false-positive rate below 0.01')

    Source:
        S. Yeom et al., Privacy risk in machine learning, CSF 2018 (threshold on the loss); N.
        Carlini et al., IEEE S&P 2022 (true-positive rate at low false-positive rates).
    """
    op = "threshold_attack"
    members = score_array(op, "member_scores", member_scores)
    others = score_array(op, "nonmember_scores", nonmember_scores)
    fprs = [check_between(op, "false_positive_rates", f, 0.0, 1.0) for f in false_positive_rates]
    bad = int((~np.isfinite(members)).sum() + (~np.isfinite(others)).sum())
    if bad:
        return _undefined_result(bad, members, others, fprs)
    low, high = bootstrap_interval(members, others, seed=seed)
    return ThresholdResult(
        auc=area_under_curve(members, others),
        auc_low=low,
        auc_high=high,
        accuracy=_cross_accuracy(members, others, seed),
        rates=tuple(_rate_at(fpr, members, others) for fpr in fprs),
        resolution=1.0 / len(others),
        detectable=smallest_detectable_auc(len(members), len(others)),
        n_members=len(members),
        n_nonmembers=len(others),
    )


def _rate_at(fpr: float, members: Array, others: Array) -> RateAtFPR:
    """Return the true-positive rate at the lowest threshold that keeps the false-positive rate."""
    n = len(others)
    # 0.001 * 3000 is 3 to the last bit or just below it.
    allowed = int(fpr * n + 1e-9)
    if allowed < 1:
        nothing = Undefined(f"{n} non-members resolve no false-positive rate below {1 / n:g}")
        return RateAtFPR(fpr, *[nothing] * 6)
    threshold = np.partition(others, n - 1 - allowed)[n - 1 - allowed]
    found, measured = (
        proportion_interval(int((side > threshold).sum()), len(side)) for side in (members, others)
    )
    return RateAtFPR(
        fpr, found.value, found.low, found.high, measured.value, measured.low, measured.high
    )


def _cross_accuracy(members: Array, others: Array, seed: int) -> float:
    """Return the balanced accuracy with the threshold of each half tried on the other half.

    The best threshold on the data it is measured on finds members in pure noise.
    """
    if min(len(members), len(others)) < 2:
        return Undefined("two examples on each side are needed to choose a threshold and to try it")
    generator = np.random.default_rng(seed)
    halves = [np.array_split(generator.permutation(side), 2) for side in (members, others)]
    accuracies = []
    for fitted, tried in ((0, 1), (1, 0)):
        threshold = _best_threshold(halves[0][fitted], halves[1][fitted])
        hits = (halves[0][tried] >= threshold).mean()
        accuracies.append((hits + (halves[1][tried] < threshold).mean()) / 2)
    return float(np.mean(accuracies))


def _best_threshold(members: Array, others: Array) -> float:
    """Return a t for which "member if score >= t" has the best balanced accuracy.

    It lies halfway between two scores, so that a gap between the sides is shared evenly.
    """
    candidates = np.unique(np.concatenate([members, others]))
    hits = 1.0 - np.searchsorted(np.sort(members), candidates, "left") / len(members)
    rejected = np.searchsorted(np.sort(others), candidates, "left") / len(others)
    best = int(np.argmax(hits + rejected))
    return float(candidates[[max(best - 1, 0), best]].mean())


def _undefined_result(
    bad: int, members: Array, others: Array, fprs: Sequence[float]
) -> ThresholdResult:
    """Return a result whose figures are undefined because some scores are not finite."""
    nothing = Undefined(f"{bad} of {len(members) + len(others)} scores are not finite")
    return ThresholdResult(
        auc=nothing,
        auc_low=nothing,
        auc_high=nothing,
        accuracy=nothing,
        rates=tuple(RateAtFPR(fpr, *[nothing] * 6) for fpr in fprs),
        resolution=1.0 / len(others),
        detectable=smallest_detectable_auc(len(members), len(others)),
        n_members=len(members),
        n_nonmembers=len(others),
    )


def _without_nan(value: Any) -> Any:
    """Replace every NaN inside dicts and tuples by None."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and undefined_reason(value) else value
