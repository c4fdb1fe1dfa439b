"""U-LiRA's likelihood ratio: against scipy, masks, known values on Gaussian models."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from fastunlearn.metrics import lira_scores, threshold_attack


def draws(models: int, n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(models, n, generator=generator, dtype=torch.float64)


def test_by_hand() -> None:
    # Unlearned: mean 4, variance 2 (unbiased). Held out: mean 0, variance 8. Target 2.
    unlearned, held_out = torch.tensor([[3.0], [5.0]]), torch.tensor([[-2.0], [2.0]])
    found = lira_scores(unlearned, held_out, torch.tensor([2.0]))
    # -log(2)/2 - 4/4 - (-log(8)/2 - 4/16) = log(4)/2 - 3/4
    assert float(found) == pytest.approx(math.log(2) - 0.75, abs=1e-14)


@pytest.mark.parametrize("variance", ["per_example", "fixed"])
def test_against_scipy_with_masks(variance: str) -> None:
    scores = draws(9, 7, 0) * 2 + 1
    target = draws(1, 7, 1)[0]
    mask = draws(9, 7, 2).argsort(0).argsort(0) < torch.tensor([2, 3, 4, 5, 6, 7, 4])
    found = lira_scores(
        scores, scores, target, unlearned_mask=mask, held_out_mask=~mask, variance=variance
    )
    sides = [[scores[side[:, i], i] for i in range(7)] for side in (mask, ~mask)]
    assert all(len(column) >= 2 for side in sides for column in side)
    pooled = [
        sum(float(c.var()) * (len(c) - 1) for c in side) / sum(len(c) - 1 for c in side)
        for side in sides
    ]
    for i in range(7):
        logs = [
            stats.norm.logpdf(
                float(target[i]),
                float(side[i].mean()),
                float(side[i].std()) if variance == "per_example" else math.sqrt(pooled[k]),
            )
            for k, side in enumerate(sides)
        ]
        assert float(found[i]) == pytest.approx(logs[0] - logs[1], abs=1e-12)


def test_values_that_do_not_count_are_not_read() -> None:
    scores = draws(6, 4, 0)
    mask = torch.tensor([1, 1, 1, 0, 0, 0]).bool().unsqueeze(-1).expand(6, 4)
    expected = lira_scores(scores[:3], scores[3:], scores[0] + 1)
    spoiled = [torch.where(side, scores, torch.nan) for side in (mask, ~mask)]
    found = lira_scores(*spoiled, scores[0] + 1, unlearned_mask=mask, held_out_mask=~mask)
    assert torch.equal(found, expected) and bool(found.isfinite().all())


def test_too_few_models_give_nan_for_that_example_alone() -> None:
    scores, target = draws(4, 3, 0), torch.zeros(3)
    mask = torch.ones(4, 3, dtype=torch.bool)
    mask[1:, 1] = False  # one model left
    mask[:, 2] = False  # none left
    per_example = lira_scores(scores, scores, target, unlearned_mask=mask)
    assert per_example.isnan().tolist() == [False, True, True]
    fixed = lira_scores(scores, scores, target, unlearned_mask=mask, variance="fixed")
    assert fixed.isnan().tolist() == [False, False, True]


def test_models_that_agree_to_the_bit_give_a_finite_ratio() -> None:
    found = lira_scores(torch.full((3, 2), 9.0), torch.zeros(3, 2), torch.tensor([9.0, 0.0]))
    assert bool(found.isfinite().all()) and found[0] > 1e6 and found[1] < -1e6


def ratios_of(effect: float, variance: str, seed: int) -> tuple[Tensor, Tensor]:
    """Ratios and membership of 4,000 examples whose score rises by `effect` if members."""
    n, models = 4000, 64
    difficulty = 3 * draws(1, n, seed)
    member = draws(1, n, seed + 1)[0] > 0
    noise = draws(2 * models + 1, n, seed + 2) + difficulty
    target = noise[-1] + effect * member
    unlearned, held_out = noise[:models] + effect, noise[models:-1]
    return lira_scores(unlearned, held_out, target, variance=variance), member


@pytest.mark.parametrize("variance", ["per_example", "fixed"])
def test_area_of_theory(variance: str) -> None:
    # Two normals that lie d = 1 apart: AUC = Phi(1 / sqrt(2)) = 0.7602. The 64 + 64 shadow models
    # add noise to the estimated means, worth under 0.005; the standard error over 4,000 is 0.0075.
    scores, member = ratios_of(1.0, variance, 0)
    result = threshold_attack(scores[member], scores[~member])
    assert result.auc == pytest.approx(stats.norm.cdf(1 / math.sqrt(2)), abs=0.025)
    # The rates of the Neyman-Pearson test: TPR = Phi(d + z_FPR), 0.092 at 1 %.
    rate = result.rate_at(0.01)
    assert rate.low < stats.norm.cdf(1 + stats.norm.ppf(rate.fpr_high))
    assert rate.high > stats.norm.cdf(1 + stats.norm.ppf(rate.fpr_low)) > rate.fpr_low


def test_it_beats_one_threshold_for_all() -> None:
    scores, member = ratios_of(1.0, "fixed", 0)
    difficulty = 3 * draws(1, 4000, 0)[0]
    raw = difficulty + draws(129, 4000, 2)[-1] + member
    single = threshold_attack(raw[member], raw[~member])
    assert single.auc < 0.65 < threshold_attack(scores[member], scores[~member]).auc


def test_nothing_to_find() -> None:
    scores, member = ratios_of(0.0, "per_example", 10)
    result = threshold_attack(scores[member], scores[~member])
    assert result.auc_low < 0.5 < result.auc_high


def test_over_forgetting_is_found_as_well() -> None:
    # A threshold would give an AUC below a half; the ratio learns the direction.
    scores, member = ratios_of(-3.0, "fixed", 20)
    assert threshold_attack(scores[member], scores[~member]).auc > 0.95


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"held_out": torch.zeros(3, 5)}, ValueError, r"held_out must have shape \(models, 4\)"),
        ({"unlearned": torch.zeros(4)}, ValueError, "unlearned must have 2 dim"),
        ({"target": torch.zeros(4).long()}, TypeError, "target must be a floating-point tensor"),
        ({"unlearned_mask": torch.ones(3, 4)}, TypeError, "unlearned_mask must be a bool"),
        ({"held_out_mask": torch.ones(2, 4).bool()}, ValueError, r"must have shape \(3, 4\)"),
        ({"variance": "none"}, ValueError, "variance must be"),
    ],
)
def test_refusals(change, error: type[Exception], message: str) -> None:
    options = {
        "unlearned": torch.zeros(3, 4),
        "held_out": torch.zeros(3, 4),
        "target": torch.zeros(4),
    }
    with pytest.raises(error, match=f"^lira_scores: .*{message}"):
        lira_scores(**(options | change))
