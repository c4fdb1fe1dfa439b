"""Intervals and the smallest detectable effects, against known values."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from fastunlearn.metrics import (
    mean_interval,
    paired_difference,
    proportion_interval,
    smallest_detectable_auc,
    smallest_detectable_effect,
    undefined_reason,
)


def test_mean_interval_of_a_normal_sample() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = mean_interval(values)
    # Theory: mean +- 1.96 s / sqrt(n). 9,999 resamples give each end to about 2 % of that.
    half = 1.96 * float(values.std()) / 20
    assert found.value == pytest.approx(float(values.mean()), abs=1e-15)
    assert (found.low, found.high) == pytest.approx(
        (found.value - half, found.value + half), abs=0.08 * half
    )
    assert mean_interval(values) == found and mean_interval(values, seed=1) != found
    assert mean_interval(values, level=0.5).high < found.high


def test_mean_interval_at_the_edges() -> None:
    same = mean_interval(torch.full((5,), 0.25))
    assert (same.value, same.low, same.high) == (0.25, 0.25, 0.25)
    single = mean_interval(torch.tensor([2.0]))
    assert single.value == 2.0 and undefined_reason(single.low) == "one value has no spread"
    broken = mean_interval(torch.tensor([1.0, math.nan]))
    assert undefined_reason(broken.value) == "1 of 2 values are not finite"


def test_pairs_are_kept_together() -> None:
    generator = torch.Generator().manual_seed(0)
    seeds = 10.0 * torch.randn(30, generator=generator, dtype=torch.float64)
    gain = 0.1 * torch.randn(30, generator=generator, dtype=torch.float64) + 1.0
    found = paired_difference(seeds + gain, seeds)
    assert found.value == pytest.approx(float(gain.mean()), abs=1e-12)
    assert 0.9 < found.low < found.high < 1.1  # unpaired it would be some 5 wide
    with pytest.raises(ValueError, match=r"^paired_difference: second must have shape \(30,\)"):
        paired_difference(seeds, gain[:-1])


def test_clopper_pearson() -> None:
    # Closed forms: 0 of n has upper end 1 - (a/2)^(1/n), n of n has lower end (a/2)^(1/n).
    assert proportion_interval(0, 20).high == pytest.approx(1 - 0.025 ** (1 / 20), rel=1e-9)
    assert proportion_interval(20, 20).low == pytest.approx(0.025 ** (1 / 20), rel=1e-9)
    found = proportion_interval(7, 20)
    assert found.low == pytest.approx(stats.beta.ppf(0.025, 7, 14), rel=1e-9)
    assert found.high == pytest.approx(stats.beta.ppf(0.975, 8, 13), rel=1e-9)
    with pytest.raises(ValueError, match=r"successes must be in \[0, 5\], got 6"):
        proportion_interval(6, 5)


def test_smallest_detectable_effect_is_the_power_of_the_t_test() -> None:
    # Cohen's tables: a paired t test of a medium effect (0.5) needs 34 pairs for a power of 0.8.
    assert smallest_detectable_effect(1.0, 34) < 0.5 < smallest_detectable_effect(1.0, 33)
    n, effect = 5, smallest_detectable_effect(2.0, 5)
    draws = stats.norm.rvs(effect, 2.0, size=(40_000, n), random_state=0)
    rejected = stats.ttest_1samp(draws, 0.0, axis=1).pvalue < 0.05
    # Standard error of a share of 0.8 in 40,000: 0.002.
    assert rejected.mean() == pytest.approx(0.8, abs=0.008)
    assert undefined_reason(smallest_detectable_effect(1.0, 1))
    assert smallest_detectable_effect(0.0, 5) == 0.0


def test_smallest_detectable_auc() -> None:
    # (1.959964 + 0.841621) * sqrt(201 / 120000)
    assert smallest_detectable_auc(100, 100) == pytest.approx(0.114660, abs=1e-6)
    assert "too few" in undefined_reason(smallest_detectable_auc(2, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval(torch.ones(3), level=1.0), r"mean_interval: level must be in"),
        (lambda: smallest_detectable_effect(-1.0, 5), "std must be a finite number >= 0"),
        (lambda: smallest_detectable_effect(1.0, 0), "n must be an integer >= 1, got 0"),
        (lambda: smallest_detectable_effect(1.0, 5, power=0.01), "power must be in"),
        (lambda: smallest_detectable_auc(0, 5), "n_members must be an integer >= 1"),
    ],
)
def test_refusals(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
