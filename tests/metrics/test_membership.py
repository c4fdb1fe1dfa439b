"""The membership-inference attack: features, balance, honesty of the scores, interval."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import one_hot

from fastunlearn.metrics import (
    MEMBERSHIP_FEATURES,
    MembershipResult,
    membership_attack,
    membership_features,
)
from fastunlearn.metrics.attack import (
    area_under_curve,
    balance,
    bootstrap_interval,
    canonical_order,
    out_of_fold_scores,
)


def example_logits(
    n: int, seed: int, classes: int = 4, boost: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Noise logits with `boost` added to the true class, and balanced targets."""
    targets = torch.arange(n) % classes
    noise = torch.randn(n, classes, generator=torch.Generator().manual_seed(seed))
    return noise + boost * one_hot(targets, classes), targets


def attack(forget_boost: float, unseen_boost: float, n: int = 200, **options) -> MembershipResult:
    forget = example_logits(n, 1, boost=forget_boost)
    unseen = example_logits(n, 2, boost=unseen_boost)
    return membership_attack(*forget, *unseen, **options)


def null_features(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two samples of one distribution, six correlated features each."""
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(2 * n, 6)) + generator.normal(size=(2 * n, 1))
    return rows[:n], rows[n:]


def test_features_hand_computed() -> None:
    logits = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64).log() + 3.0
    features = dict(
        zip(MEMBERSHIP_FEATURES, membership_features(logits, torch.tensor([1]))[0], strict=True)
    )
    expected = {
        "loss": -math.log(0.2),
        "confidence": 0.2,
        "entropy": -sum(p * math.log(p) for p in (0.7, 0.2, 0.1)),
        "modified_entropy": -0.8 * math.log(0.2) - 0.7 * math.log(0.3) - 0.1 * math.log(0.9),
        "max_probability": 0.7,
        "logit_scaled_confidence": math.log(0.2 / 0.8),
    }
    # A few float64 roundings of numbers below 3.
    assert {k: float(v) for k, v in features.items()} == pytest.approx(expected, abs=1e-14)


def test_features_of_a_saturated_model_are_finite_and_exact() -> None:
    logits = torch.tensor([[1000.0, 0.0, -1000.0]]).expand(2, 3)
    right, wrong = membership_features(logits, torch.tensor([0, 1])).tolist()
    assert right == [0.0, 1.0, 0.0, 0.0, 1.0, 1000.0]
    # -(1 - 0) log e^-1000 - 1 * log(1 - p_0), where 1 - p_0 = e^-1000.
    assert wrong == [1000.0, 0.0, 0.0, 2000.0, 1.0, -1000.0]


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=6), st.data())
def test_feature_properties(row: list[float], data: st.DataObject) -> None:
    target = data.draw(st.integers(0, len(row) - 1))
    logits = torch.tensor([row], dtype=torch.float64)
    loss, confidence, entropy, modified, maximum, scaled = membership_features(
        logits, torch.tensor([target])
    )[0].tolist()
    assert loss >= 0 and modified >= 0 and -1e-12 <= entropy <= math.log(len(row)) + 1e-12
    assert 0 <= confidence <= maximum <= 1
    others = torch.cat([logits[0, :target], logits[0, target + 1 :]])
    # Log-odds of the softmax are the logit against the log-sum of the rest; logits are below 50.
    assert scaled == pytest.approx(row[target] - others.logsumexp(0).item(), abs=1e-12)


@pytest.mark.parametrize(
    ("logits", "targets", "error", "message"),
    [
        (torch.zeros(2, 1), torch.zeros(2).long(), ValueError, r"C >= 2, got \(2, 1\)"),
        (torch.zeros(2, 2, 2), torch.zeros(2, 2).long(), ValueError, r"shape \(N, C\)"),
        (torch.zeros(0, 2), torch.zeros(0).long(), ValueError, "at least one example"),
        (torch.zeros(2, 2), torch.tensor([0, 2]), ValueError, r"in \[0, 2\), got 2"),
        (torch.zeros(2, 2), torch.zeros(2), TypeError, "integer"),
    ],
)
def test_feature_refusals(logits, targets, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^membership_features: .*{message}"):
        membership_features(logits, targets)


SCORES = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=8).map(np.array)


@given(SCORES, SCORES)
def test_area_under_curve_is_the_share_of_pairs(positive: np.ndarray, negative: np.ndarray) -> None:
    wins = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    expected = sum(wins) / len(wins)
    # One division of exact halves.
    assert area_under_curve(positive, negative) == pytest.approx(expected, abs=1e-15)
    assert area_under_curve(negative, positive) == pytest.approx(1 - expected, abs=1e-15)


def test_bootstrap_interval_has_the_width_of_theory() -> None:
    generator = np.random.default_rng(0)
    positive, negative = generator.normal(size=(2, 300))
    low, high = bootstrap_interval(positive, negative, seed=0)
    area = area_under_curve(positive, negative)
    assert low < area < high
    # Mann-Whitney under the null: variance (2n + 1) / (12 n^2). With 1,000 resamples each end has
    # a standard error of 6 % of the half-width; the sample's own spread adds a few per cent.
    theory = 2 * 1.96 * math.sqrt(601 / (12 * 300**2))
    assert high - low == pytest.approx(theory, rel=0.2)


def test_a_perfect_memoriser_is_found() -> None:
    result = attack(forget_boost=12.0, unseen_boost=0.0)
    assert result.auc > 0.99 and result.accuracy > 0.97 and result.loss_auc > 0.99
    assert result.auc_low > 0.98
    assert (result.n_per_side, result.n_forget, result.n_unseen) == (200, 200, 200)


def test_over_forgetting_is_found_too() -> None:
    result = attack(forget_boost=-6.0, unseen_boost=6.0)
    assert result.auc > 0.99  # recognisable
    assert result.loss_auc < 0.01  # because its loss is conspicuously high


@pytest.mark.parametrize("boost", [0.0, 3.0])
def test_one_distribution_gives_an_interval_around_a_half(boost: float) -> None:
    result = attack(forget_boost=boost, unseen_boost=boost)
    assert result.auc_low <= 0.5 <= result.auc_high
    assert result.auc_low <= result.auc <= result.auc_high
    assert 0.4 < result.accuracy < 0.6


def test_a_leak_from_the_test_fold_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def mean_area() -> float:
        areas = []
        for seed in range(25):
            members, others = null_features(15, seed)
            areas.append(area_under_curve(*out_of_fold_scores(members, others, folds=5, seed=seed)))
        return float(np.mean(areas))

    def leaky(model, features, labels, *, cv, method):
        return getattr(model.fit(features, labels), method)(features)

    # Standard error of the mean of 25 areas at n = 15 per side: 0.12 / 5 = 0.024.
    assert mean_area() < 0.56
    monkeypatch.setattr("sklearn.model_selection.cross_val_predict", leaky)
    assert mean_area() > 0.62


def test_unbalanced_sides_are_balanced() -> None:
    forget, unseen = example_logits(60, 1), example_logits(400, 2)
    result = membership_attack(*forget, *unseen)
    assert (result.n_per_side, result.n_forget, result.n_unseen) == (60, 60, 400)
    swapped = membership_attack(*unseen, *forget)
    assert (swapped.n_per_side, swapped.n_forget, swapped.n_unseen) == (60, 400, 60)


def test_balance_draws_each_class_without_replacement() -> None:
    forget = (np.arange(6.0)[:, None], np.array([0, 0, 0, 1, 1, 2]))
    unseen = (np.arange(10.0, 18.0)[:, None], np.array([0, 1, 1, 1, 1, 3, 3, 3]))
    members, others = balance(forget, unseen, seed=0)
    assert members.shape == others.shape == (3, 1)
    assert sum(value in (0, 1, 2) for value in members[:, 0]) == 1  # class 0: one on each side
    assert {3.0, 4.0} <= set(members[:, 0])  # class 1: both of the forget examples
    assert set(others[:, 0]) <= {10.0, 11.0, 12.0, 13.0, 14.0} and len(set(others[:, 0])) == 3
    draws = {tuple(balance(forget, unseen, seed=seed)[1][:, 0]) for seed in range(20)}
    assert len(draws) > 3


def test_labels_are_matched_so_that_the_class_mix_is_no_clue() -> None:
    # A model that answers at random on class 0 and knows the others, for seen and unseen alike.
    logits, targets = example_logits(800, 3)
    logits = logits + 8.0 * one_hot(targets, 4) * (targets != 0).unsqueeze(-1)
    forget = targets[:400] == 0
    sides = (logits[:400][forget], targets[:400][forget], logits[400:], targets[400:])
    matched = membership_attack(*sides)
    assert matched.n_per_side == 100
    assert matched.auc_low <= 0.5 <= matched.auc_high
    assert membership_attack(*sides, match_labels=False).auc > 0.8


def test_the_order_of_examples_changes_nothing() -> None:
    forget, unseen = example_logits(90, 1, boost=1.0), example_logits(120, 2)
    order = torch.randperm(120, generator=torch.Generator().manual_seed(0))
    shuffled = (unseen[0][order], unseen[1][order])
    first = membership_attack(*forget, *unseen, seed=5)
    assert membership_attack(*forget, *shuffled, seed=5) == first
    assert membership_attack(*forget, *unseen, seed=6) != first


def test_canonical_order_keeps_rows_whole() -> None:
    features = torch.tensor([[2.0, 0.0], [1.0, 5.0], [1.0, 4.0]])
    rows, labels = canonical_order(features, torch.tensor([0, 1, 0]))
    assert rows.tolist() == [[1.0, 4.0], [2.0, 0.0], [1.0, 5.0]]
    assert labels.tolist() == [0, 0, 1]


def test_result_as_json() -> None:
    result = attack(0.0, 0.0, n=40, folds=4, seed=9)
    content = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert content["auc"] == result.auc and content["undefined"] is None
    assert (content["folds"], content["seed"], content["n_per_side"]) == (4, 9, 40)
    with pytest.raises(AttributeError):
        result.auc = 1.0  # type: ignore[misc]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_diverged_model_has_no_result(bad: float) -> None:
    logits, targets = example_logits(40, 1)
    logits[7, 2] = bad
    result = membership_attack(logits, targets, *example_logits(40, 2))
    assert math.isnan(result.auc) and math.isnan(result.loss_auc)
    assert result.undefined_reason == "1 of 80 examples have an output that is not finite"
    content = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert content["auc"] is None and content["auc_low"] is None
    assert content["undefined"] == result.undefined_reason


def test_too_few_examples_have_no_result() -> None:
    forget, unseen = example_logits(4, 1, classes=2), example_logits(40, 2, classes=2)
    result = membership_attack(*forget, *unseen)
    assert result.undefined_reason == "only 4 examples on each side for 5 folds"
    assert not membership_attack(*forget, *unseen, folds=4).undefined_reason
    apart = membership_attack(forget[0], forget[1] * 0, unseen[0], unseen[1] * 0 + 1)
    assert apart.undefined_reason == "only 0 examples on each side for 5 folds"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 1}, "folds must be an integer >= 2, got 1"),
        ({"folds": 2.5}, "folds must be an integer >= 2, got 2.5"),
        ({"folds": True}, "folds must be an integer >= 2, got True"),
        ({"seed": -1}, r"seed must be an integer in \[0, 2\^32\), got -1"),
        ({"seed": 2**32}, "seed must be an integer"),
    ],
)
def test_option_refusals(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^membership_attack: {message}"):
        attack(0.0, 0.0, n=40, **options)


def test_input_refusals() -> None:
    forget, unseen = example_logits(40, 1), example_logits(40, 2, classes=3)
    with pytest.raises(ValueError, match="unseen_logits must have 4 classes, got 3"):
        membership_attack(*forget, *unseen)
    with pytest.raises(ValueError, match="at least one example"):
        membership_attack(*forget, torch.zeros(0, 4), torch.zeros(0).long())


def test_missing_scikit_learn_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(ImportError, match=r'scikit-learn .* pip install "fastunlearn\[eval\]"'):
        attack(0.0, 0.0, n=40)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_every_seed_gives_numbers_in_range(seed: int) -> None:
    result = attack(1.0, 0.0, n=30, seed=seed)
    assert 0 <= result.auc_low <= result.auc_high <= 1
    assert 0 <= result.accuracy <= 1
