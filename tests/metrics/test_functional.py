"""Accuracy, rates, gaps and their undefined values."""

from __future__ import annotations

import copy
import json
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastunlearn import metrics
from fastunlearn.metrics import Undefined, undefined_reason

PERFORMANCE = st.floats(0.0, 1.0)
POSITIVE = st.floats(1e-3, 1.0)


def test_accuracy_hand_computed() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [1.0, 1.0, 0.0], [0.0, 0.0, 5.0]])
    # The third row is a tie, which goes to class 0.
    assert metrics.accuracy(logits, torch.tensor([0, 1, 0, 1])) == 0.75
    assert metrics.accuracy(logits, torch.tensor([0, 1, 1, 1])) == 0.5


def test_accuracy_over_more_dimensions_and_small_integers() -> None:
    logits = torch.eye(3).expand(2, 3, 3)
    targets = torch.tensor([[0, 1, 2], [0, 0, 0]], dtype=torch.uint8)
    assert metrics.accuracy(logits, targets) == 4 / 6


def test_accuracy_gives_a_diverged_model_no_credit() -> None:
    logits = torch.full((4, 3), math.nan)
    assert metrics.accuracy(logits, torch.zeros(4, dtype=torch.long)) == 0.0
    logits = torch.tensor([[math.inf, math.nan]])
    assert metrics.accuracy(logits, torch.tensor([0])) == 0.0


@pytest.mark.parametrize(
    ("logits", "targets", "error", "message"),
    [
        (torch.zeros(0, 3), torch.zeros(0).long(), ValueError, "at least one example"),
        (torch.zeros(3), torch.zeros(1).long(), ValueError, r"shape \(..., C\)"),
        (
            torch.zeros(2, 3),
            torch.zeros(3).long(),
            ValueError,
            r"targets must have shape \(2,\), got \(3,\)",
        ),
        (torch.zeros(2, 3), torch.zeros(2), TypeError, "integer .* got torch.float32"),
        (torch.zeros(2, 3), torch.zeros(2).bool(), TypeError, "integer .* got torch.bool"),
        (torch.zeros(2, 3), [0, 1], TypeError, "integer .* got list"),
        (torch.zeros(2, 3).int(), torch.zeros(2).long(), TypeError, "got torch.int32"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), ValueError, r"in \[0, 3\), got 3"),
        (torch.zeros(2, 3), torch.tensor([0, -100]), ValueError, r"in \[0, 3\), got -100"),
    ],
)
def test_accuracy_refusals(logits, targets, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^accuracy: .*{message}"):
        metrics.accuracy(logits, targets)


def test_rates_hand_computed() -> None:
    assert metrics.forgetting_rate(original=0.5, unlearned=0.375) == 0.25
    assert metrics.forgetting_rate(original=0.5, unlearned=0.75) == -0.5
    assert metrics.forgetting_rate_normalised(original=1, unlearned=0.25, retrained=0.5) == 1.5
    assert metrics.forgetting_rate_normalised(original=0.5, unlearned=0.25, retrained=0.75) == -1
    assert metrics.memory_retention_rate(original=0.5, unlearned=0.375) == 0.75
    assert metrics.memory_retention_rate_normalised(unlearned=0.75, retrained=0.5) == 1.5
    assert metrics.unlearning_accuracy(0.375) == 0.625
    assert metrics.unlearning_degree(original=0.75, unlearned=0.25) == 0.5
    assert metrics.unlearning_degree(original=0.25, unlearned=0.75) == -0.5
    assert metrics.unlearning_degree_normalised(original=1, unlearned=0.25, retrained=0.5) == 1.5
    assert metrics.unlearning_degree_normalised(original=0.5, unlearned=0.25, retrained=0.75) == -1
    assert metrics.run_time_ratio(unlearning_seconds=1.5, retraining_seconds=6.0) == 0.25


@given(POSITIVE, PERFORMANCE)
def test_forgetting_and_retention_add_up_to_one(original: float, unlearned: float) -> None:
    forgot = metrics.forgetting_rate(original, unlearned)
    kept = metrics.memory_retention_rate(original, unlearned)
    assert forgot <= 1.0 and kept >= 0.0
    # Two roundings of a quotient up to 1 / 1e-3.
    assert forgot + kept == pytest.approx(1.0, abs=1e3 * 2**-51)


@given(PERFORMANCE, PERFORMANCE)
def test_normalised_forgetting_has_its_anchors(original: float, retrained: float) -> None:
    at_retrained = metrics.forgetting_rate_normalised(original, retrained, retrained)
    at_original = metrics.forgetting_rate_normalised(original, original, retrained)
    if original == retrained:
        assert undefined_reason(at_retrained) and undefined_reason(at_original)
    else:
        assert (at_retrained, at_original) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (metrics.forgetting_rate(0.0, 0.5), "original model's performance on the forget set is 0"),
        (metrics.forgetting_rate_normalised(0.7, 0.5, 0.7), "perform equally on the forget set"),
        (metrics.unlearning_degree_normalised(0.7, 0.5, 0.7), "equally on the shifted forget set"),
        (metrics.memory_retention_rate(0, 0), "original model's performance on the kept data is 0"),
        (metrics.memory_retention_rate_normalised(0.5, 0.0), "retrained model's performance"),
        (metrics.run_time_ratio(1.0, 0.0), "retraining time is 0"),
    ],
)
def test_zero_denominator_is_nan_with_a_reason(value: float, reason: str) -> None:
    assert isinstance(value, float) and math.isnan(value)
    assert reason in (undefined_reason(value) or "")


def test_undefined_is_a_float_that_survives_copies() -> None:
    value = Undefined("no data")
    for twin in (copy.copy(value), copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
        assert isinstance(twin, Undefined) and math.isnan(twin) and twin.reason == "no data"
    assert json.dumps(value) == "NaN" and f"{value:.2f}" == "nan"
    assert repr(value) == "Undefined('no data')"
    assert type(value + 1) is float


def test_undefined_reason_of_other_floats() -> None:
    assert undefined_reason(0.0) is None
    assert undefined_reason(math.inf) is None
    assert "NaN" in (undefined_reason(math.nan) or "")


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf, True, "0.5", None])
@pytest.mark.parametrize(
    ("function", "names"),
    [
        (metrics.forgetting_rate, ("original", "unlearned")),
        (metrics.forgetting_rate_normalised, ("original", "unlearned", "retrained")),
        (metrics.unlearning_degree, ("original", "unlearned")),
        (metrics.unlearning_degree_normalised, ("original", "unlearned", "retrained")),
        (metrics.memory_retention_rate, ("original", "unlearned")),
        (metrics.memory_retention_rate_normalised, ("unlearned", "retrained")),
        (metrics.run_time_ratio, ("unlearning_seconds", "retraining_seconds")),
        (metrics.unlearning_accuracy, ("unlearned",)),
    ],
)
def test_rates_refuse_what_is_no_performance(function, names: tuple[str, ...], bad) -> None:
    for name in names:
        arguments = {**dict.fromkeys(names, 0.5), name: bad}
        error = ValueError if type(bad) is float else TypeError
        with pytest.raises(error, match=f"^{function.__name__}: {name} must be .*, got "):
            function(**arguments)


def test_unlearning_accuracy_refuses_percent() -> None:
    with pytest.raises(ValueError, match=r"unlearned must be in \[0, 1\], got 37.5"):
        metrics.unlearning_accuracy(37.5)


def test_numpy_scalars_are_numbers() -> None:
    assert metrics.forgetting_rate(np.float32(0.5), np.float64(0.25)) == 0.5


def test_js_divergence_is_the_mean_without_a_graph() -> None:
    p, q = torch.zeros(2, 3, 4, requires_grad=True), torch.randn(2, 3, 4)
    value = metrics.js_divergence(p, q)
    assert not value.requires_grad
    torch.testing.assert_close(value, metrics.jensen_shannon(p, q, "none").mean().detach())


def gap_metrics(**changes: float | None) -> dict[str, float | None]:
    names = ("unlearning_accuracy", "retain_accuracy", "test_accuracy", "mia_auc")
    return {**dict.fromkeys(names, 0.5), "other": None, **changes}


def test_average_gap_hand_computed() -> None:
    unlearned = gap_metrics(unlearning_accuracy=0.25, retain_accuracy=1.0, mia_auc=0.625)
    # |0.25| + |0.5| + 0 + |0.125| over 4; a gap below and one above must not cancel.
    assert metrics.average_gap(unlearned, gap_metrics()) == 0.875 / 4
    assert metrics.average_gap(gap_metrics(), unlearned) == 0.875 / 4
    assert metrics.average_gap(unlearned, unlearned) == 0.0


@pytest.mark.parametrize("missing", [None, math.nan, Undefined("no data")])
def test_average_gap_of_an_undefined_metric_is_undefined(missing: float | None) -> None:
    value = metrics.average_gap(gap_metrics(), gap_metrics(mia_auc=missing))
    assert undefined_reason(value) == "mia_auc of the retrained model is undefined"


def test_average_gap_refusals() -> None:
    without = {k: v for k, v in gap_metrics().items() if k != "test_accuracy"}
    with pytest.raises(ValueError, match="^average_gap: unlearned must contain 'test_accuracy'"):
        metrics.average_gap(without, gap_metrics())
    with pytest.raises(ValueError, match=r"retrained\['mia_auc'\] must be a finite number"):
        metrics.average_gap(gap_metrics(), gap_metrics(mia_auc=-1.0))
