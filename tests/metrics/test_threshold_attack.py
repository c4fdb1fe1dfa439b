"""The threshold attack: rates at low false-positive rates, intervals, known values."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from fastunlearn.metrics import threshold_attack, undefined_reason


def normal(n: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, generator=generator, dtype=torch.float64) + shift


def test_perfect_memoriser() -> None:
    result = threshold_attack(normal(1000, 0, 50.0), normal(1000, 1))
    assert (result.auc, result.auc_low, result.accuracy) == (1.0, 1.0, 1.0)
    for rate in result.rates:
        assert rate.tpr == rate.high == 1.0
        # Clopper-Pearson at 1000 of 1000: (0.025)^(1/1000).
        assert rate.low == pytest.approx(0.025 ** (1 / 1000), rel=1e-9)


def test_nothing_to_find() -> None:
    result = threshold_attack(normal(2000, 0), normal(2000, 1))
    assert result.auc_low < 0.5 < result.auc_high
    # Standard error of a balanced accuracy of chance: 0.5 / sqrt(4000) = 0.008.
    assert abs(result.accuracy - 0.5) < 0.03
    for rate in result.rates:
        assert rate.low <= rate.fpr_high and rate.fpr_low <= rate.high
        assert rate.fpr_low < rate.measured_fpr == rate.fpr < rate.fpr_high


def test_the_accuracy_does_not_find_members_in_noise() -> None:
    results = [threshold_attack(normal(20, s), normal(20, 1000 + s)) for s in range(20)]
    # Choosing and trying on the same 40 scores gives about 0.6. Standard error here: 0.08 / 4.5.
    assert np.mean([r.accuracy for r in results]) < 0.55


def test_area_is_that_of_scikit_learn() -> None:
    members, others = normal(60, 0, 0.7).round(decimals=1), normal(80, 1).round(decimals=1)
    expected = roc_auc_score([1] * 60 + [0] * 80, torch.cat([members, others]))
    assert threshold_attack(members, others).auc == pytest.approx(expected, abs=1e-15)


def test_rate_by_hand() -> None:
    others = torch.arange(200.0)  # 1 % allows two above the threshold: it is 197
    members = torch.tensor([196.0, 197.0, 197.5, 198.0, 500.0])
    rate = threshold_attack(members, others).rate_at(0.01)
    assert rate.tpr == 3 / 5 and rate.measured_fpr == 0.01
    # Clopper-Pearson for 3 of 5, from its beta quantiles in published tables.
    assert (rate.low, rate.high) == pytest.approx((0.1466, 0.9473), abs=1e-4)
    # And for 2 of 200.
    assert (rate.fpr_low, rate.fpr_high) == pytest.approx((0.0012, 0.0357), abs=1e-4)


def test_ties_are_not_found() -> None:
    others = torch.cat([torch.zeros(90), torch.ones(10)])
    rate = threshold_attack(torch.ones(50), others, false_positive_rates=[0.05]).rates[0]
    assert rate.tpr == 0.0 and rate.measured_fpr == 0.0
    rate = threshold_attack(torch.ones(50), others, false_positive_rates=[0.1]).rates[0]
    assert rate.tpr == 1.0 and rate.measured_fpr == 0.1


def test_what_is_too_small_to_resolve_is_undefined() -> None:
    result = threshold_attack(normal(50, 0), normal(999, 1))
    rate = result.rate_at(0.001)
    assert math.isnan(rate.tpr) and "999 non-members resolve no" in undefined_reason(rate.tpr)
    assert not math.isnan(result.rate_at(0.01).tpr)
    assert not math.isnan(threshold_attack(normal(50, 0), normal(1000, 1)).rate_at(0.001).tpr)
    content = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert content["rates"][0]["tpr"] is None
    assert list(content["undefined"]) == ["tpr_at_0.001"]


def test_a_rate_that_rounds_down_keeps_its_count() -> None:
    # 0.07 * 100 is 7.000000000000001, 0.29 * 100 is 28.999999999999996.
    for fpr in (0.07, 0.29):
        rate = threshold_attack(torch.ones(3), torch.arange(100.0), false_positive_rates=[fpr])
        assert rate.rates[0].measured_fpr == fpr


def test_conspicuous_forgetting_is_below_a_half() -> None:
    result = threshold_attack(normal(200, 0, -3.0), normal(200, 1))
    assert result.auc_high < 0.1


def test_scores_that_are_not_finite() -> None:
    result = threshold_attack(torch.tensor([1.0, math.nan]), torch.tensor([0.0, 1.0]))
    assert result.undefined_reason == "1 of 4 scores are not finite"
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["auc"] is None


@pytest.mark.parametrize(
    ("members", "others", "options", "error", "message"),
    [
        (torch.zeros(0), torch.zeros(2), {}, ValueError, "member_scores must have 1 dim"),
        (torch.zeros(2), torch.zeros(2, 1), {}, ValueError, "nonmember_scores must have 1 dim"),
        (torch.zeros(2).long(), torch.zeros(2), {}, TypeError, "floating-point tensor, got torch"),
        ([1.0], torch.zeros(2), {}, TypeError, "got list"),
        (torch.zeros(2), torch.zeros(2), {"false_positive_rates": [0.0]}, ValueError, "got 0"),
    ],
)
def test_refusals(members, others, options, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^threshold_attack: .*{message}"):
        threshold_attack(members, others, **options)
