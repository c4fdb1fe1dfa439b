"""The challenge's epsilon score: hand-worked cases, a naive oracle, bins."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastunlearn.metrics import (
    epsilon_score,
    example_epsilons,
    forgetting_quality,
    undefined_reason,
)


def naive(unlearned: list[float], retrained: list[float], delta: float) -> float:
    """The epsilon of one example, attack by attack."""
    best = 0.0
    for threshold in {*unlearned, *retrained}:
        missed = sum(u <= threshold for u in unlearned) / len(unlearned)
        alarms = sum(r > threshold for r in retrained) / len(retrained)
        for a, b in ((alarms, missed), (1 - alarms, 1 - missed)):
            if a == 0 and b == 0:
                return math.inf
            if a == 0 or b == 0:
                continue
            for x, y in ((a, b), (b, a)):
                if 1 - delta - x > 0:
                    best = max(best, math.log(1 - delta - x) - math.log(y))
    return best


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).unsqueeze(-1)


@pytest.mark.parametrize(
    ("unlearned", "retrained", "expected"),
    [
        # Threshold 2: one of four missed, one false alarm of four: log(0.75) - log(0.25).
        ((1, 3, 4, 5), (0, 1.5, 2, 6), math.log(3)),
        # The same with the sides exchanged: unlearned models score lower.
        ((0, 1.5, 2, 6), (1, 3, 4, 5), math.log(3)),
        # Threshold 2: half missed, one false alarm of four: log(0.5) - log(0.25) beats
        # log(0.75) - log(0.5); threshold 1: half missed, half false alarms: 0.
        ((0, 0, 3, 3), (0, 0, 1, 3), math.log(2)),
        ((1, 2, 3), (1, 2, 3), math.log(1)),
        ((4, 5, 6), (1, 2, 3), math.inf),
        ((1, 2, 3), (4, 5, 6), math.inf),
        # One overlap, and an attack without false alarms: left out by the convention.
        ((3, 4), (1, 3.5), 0.0),
        # All the same: no threshold errs less than another.
        ((1, 1), (1, 1), 0.0),
    ],
)
def test_by_hand(unlearned, retrained, expected: float) -> None:
    found = float(example_epsilons(column(*unlearned), column(*retrained)))
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("delta", [0.0, 0.05])
@pytest.mark.parametrize(("m", "r"), [(1, 1), (2, 3), (9, 9), (20, 15)])
def test_against_the_naive_loop(m: int, r: int, delta: float) -> None:
    generator = np.random.default_rng(m + r)
    shift = generator.normal(scale=2.0, size=60)
    unlearned = (generator.normal(size=(m, 60)) + shift).round(1)  # ties
    retrained = generator.normal(size=(r, 60)).round(1)
    found = example_epsilons(torch.tensor(unlearned), torch.tensor(retrained), delta=delta)
    expected = [naive(list(u), list(v), delta) for u, v in zip(unlearned.T, retrained.T)]  # noqa: B905
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


def test_the_greatest_finite_value() -> None:
    # One missed and one false alarm of 100 each: log(0.99) - log(0.01) = log(99).
    unlearned, retrained = torch.full((100, 1), 9.0), torch.zeros(100, 1)
    unlearned[0], retrained[0] = 0.0, 9.0
    assert float(example_epsilons(unlearned, retrained)) == pytest.approx(math.log(99), abs=1e-12)


def test_bins() -> None:
    values = [0.0, 0.49, 0.5, 0.99, 1.0, 5.99, 6.0, 100.0, math.inf]
    bins = [1, 1, 2, 2, 3, 12, 13, 13, 13]
    for value, number in zip(values, bins, strict=True):
        assert forgetting_quality(torch.tensor([value])) == 2.0 / 2**number
    expected = sum(2.0 / 2**n for n in bins) / len(bins)
    assert forgetting_quality(torch.tensor(values)) == pytest.approx(expected, abs=1e-15)


def test_score() -> None:
    accuracies = dict(retain=0.9, retain_retrained=1.0, test=0.6, test_retrained=0.8)
    found = epsilon_score(torch.tensor([0.0, math.inf]), **accuracies)
    assert found == pytest.approx((1 + 2**-12) / 2 * 0.9 * 0.75, abs=1e-15)


def test_what_is_undefined() -> None:
    epsilons = example_epsilons(torch.tensor([[1.0, math.nan]]), torch.tensor([[0.0, 0.0]]))
    assert epsilons.tolist()[0] == math.inf and math.isnan(epsilons[1])
    assert undefined_reason(forgetting_quality(epsilons)) == "1 of 2 epsilons are NaN"
    accuracies = dict(retain=1.0, retain_retrained=1.0, test=1.0, test_retrained=1.0)
    assert undefined_reason(epsilon_score(epsilons, **accuracies)) == "1 of 2 epsilons are NaN"
    broken = epsilon_score(torch.zeros(1), **(accuracies | {"test_retrained": 0.0}))
    assert undefined_reason(broken) == "an accuracy of the retrained models is 0"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: example_epsilons(torch.zeros(2, 3), torch.zeros(2, 4)), "retrained must have"),
        (lambda: example_epsilons(torch.zeros(2), torch.zeros(2, 4)), "unlearned must have 2"),
        (lambda: example_epsilons(torch.zeros(2, 1), torch.zeros(2, 1), delta=1.0), "delta must"),
        (lambda: forgetting_quality(torch.tensor([-0.1])), "epsilons must be >= 0"),
    ],
)
def test_refusals(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
