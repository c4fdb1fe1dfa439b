"""Membership scores: sign, hand-computed values, extreme logits."""

from __future__ import annotations

import math

import pytest
import torch

from fastunlearn.metrics import MEMBERSHIP_SCORES, membership_scores

P = (0.7, 0.2, 0.1)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("confidence", 0.2),
        ("loss", math.log(0.2)),
        ("entropy", sum(p * math.log(p) for p in P)),
        # Song & Mittal with y = 1, negated.
        (
            "modified_entropy",
            0.8 * math.log(0.2) + 0.7 * math.log(0.3) + 0.1 * math.log(0.9),
        ),
        ("scaled_logit", math.log(0.2 / 0.8)),
    ],
)
def test_hand_computed(kind: str, expected: float) -> None:
    logits = torch.tensor([P], dtype=torch.float64).log() - 2.0
    score = membership_scores(logits, torch.tensor([1]), kind)
    assert score.shape == (1,) and score.dtype == torch.float64
    # A few float64 roundings of numbers below 3.
    assert float(score) == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("kind", MEMBERSHIP_SCORES)
def test_greater_means_member(kind: str) -> None:
    sure_and_right, unsure = torch.tensor([[5.0, 0.0, 0.0]]), torch.tensor([[0.5, 0.0, 0.0]])
    y = torch.tensor([0])
    assert membership_scores(sure_and_right, y, kind) > membership_scores(unsure, y, kind)


def test_only_the_entropy_ignores_the_label() -> None:
    logits = torch.tensor([[5.0, 0.0], [5.0, 0.0]])
    for kind in MEMBERSHIP_SCORES:
        right, wrong = membership_scores(logits, torch.tensor([0, 1]), kind).tolist()
        assert right == wrong if kind == "entropy" else right > wrong, kind


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        ("confidence", 1.0, 0.0),
        ("loss", 0.0, -1e4),
        ("entropy", 0.0, 0.0),
        # (1 - 0) * -1e4 for y and 1 * log(1 - p_0) = -1e4 for the class that wins.
        ("modified_entropy", 0.0, -2e4),
        ("scaled_logit", 1e4, -1e4),
    ],
)
def test_extreme_logits(kind: str, right: float, wrong: float) -> None:
    logits = torch.tensor([[1e4, 0.0], [1e4, 0.0]])
    assert membership_scores(logits, torch.tensor([0, 1]), kind).tolist() == [right, wrong]


def test_the_scaled_logit_has_no_ties_where_the_confidence_has() -> None:
    logits = torch.tensor([[50.0, 0.0], [60.0, 0.0]])
    y = torch.tensor([0, 0])
    confidence = membership_scores(logits, y, "confidence")
    assert confidence[0] == confidence[1] == 1.0
    assert membership_scores(logits, y, "scaled_logit").tolist() == [50.0, 60.0]


def test_unknown_kind() -> None:
    with pytest.raises(ValueError, match=r"^membership_scores: kind must be one of .*got 'margin'"):
        membership_scores(torch.zeros(1, 2), torch.zeros(1).long(), "margin")
