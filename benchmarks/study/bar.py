"""The recipe's bar: four criteria on every seed [ours]."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from fastunlearn.report.view import RETRAIN, View

DEGREE = (0.8, 1.2)
TEST_LOSS = 0.01
RETENTION = 0.98
STEPS = 0.30
CRITERIA = (
    f"degree* in [{DEGREE[0]:g}, {DEGREE[1]:g}]",
    f"test accuracy at most {100 * TEST_LOSS:g} point below the retrained models'",
    f"memory retention rate at least {RETENTION:g}",
    f"step ratio at most {STEPS:g}",
)
_ROUNDING = 1e-9  # accuracies are counts over counts: a difference of just one point may miss it
_KEYS = ("unlearning_degree_normalised", "memory_retention_rate", "optimizer_step_ratio")


@dataclass(frozen=True)
class Verdict:
    """One method on one seed of a shifted cell; None where a figure is undefined.

    Args:
        seed: the seed.
        degree: normalised unlearning degree.
        test_gap: test accuracy minus the mean of the retrained models.
        retention: memory retention rate.
        steps: optimiser steps over those of retraining.
    """

    seed: int
    degree: float | None
    test_gap: float | None
    retention: float | None
    steps: float | None

    @property
    def met(self) -> tuple[bool, bool, bool, bool]:
        """Whether each of `CRITERIA` is met; an undefined figure meets none."""
        degree, gap, kept, steps = self.degree, self.test_gap, self.retention, self.steps
        return (
            degree is not None and DEGREE[0] - _ROUNDING <= degree <= DEGREE[1] + _ROUNDING,
            gap is not None and gap >= -TEST_LOSS - _ROUNDING,
            kept is not None and kept >= RETENTION - _ROUNDING,
            steps is not None and steps <= STEPS + _ROUNDING,
        )


def accuracy_gaps(view: View, method: str) -> dict[int, float]:
    """Return a method's test accuracy less the mean of the retrained models, by seed.

    They are those that degree* is relative to; the row `retrain` alone in files without them.
    """
    own, first = view.values(method, "test_accuracy"), view.values(RETRAIN, "test_accuracy")
    aims = {
        seed: statistics.fmean(view.audits.get(seed, {}).get("retrained", {}).get("test", [one]))
        for seed, one in first.items()
    }
    return {seed: own[seed] - aims[seed] for seed in own if seed in aims}


def verdicts(view: View, method: str) -> list[Verdict]:
    """Return how a method does on each seed of a shifted cell."""
    degree, kept, steps = (view.values(method, key) for key in _KEYS)
    gaps = accuracy_gaps(view, method)
    return [
        Verdict(seed, degree.get(seed), gaps.get(seed), kept.get(seed), steps.get(seed))
        for seed in view.seeds
    ]


def shortfall(found: Sequence[Verdict]) -> float:
    """Return by how much the criteria are missed: the sum over criteria and seeds [ours].

    Each in widths of its own margin: 0.2 of degree*, 1 point of test accuracy, 0.02 of retention,
    0.3 of the step ratio; an undefined figure counts as 10.
    """
    middle, width = sum(DEGREE) / 2, (DEGREE[1] - DEGREE[0]) / 2

    def beyond(value: float | None, allowed: float, margin: float) -> float:
        return 10.0 if value is None else max(0.0, value - allowed - _ROUNDING) / margin

    return sum(
        beyond(None if v.degree is None else abs(v.degree - middle), width, width)
        + beyond(None if v.test_gap is None else -v.test_gap, TEST_LOSS, TEST_LOSS)
        + beyond(None if v.retention is None else 1 - v.retention, 1 - RETENTION, 1 - RETENTION)
        + beyond(v.steps, STEPS, STEPS)
        for v in found
    )


def missed(found: Sequence[Verdict]) -> int:
    """Return how many criteria are missed, over all seeds."""
    return sum(not met for verdict in found for met in verdict.met)


def seeds_met(found: Sequence[Verdict]) -> int:
    """Return on how many seeds every criterion is met."""
    return sum(all(verdict.met) for verdict in found)


def missed_words(found: Sequence[Verdict]) -> str:
    """Return which criteria are missed, each with the number of seeds."""
    counts = [sum(not verdict.met[i] for verdict in found) for i in range(len(CRITERIA))]
    parts = [f"{name} on {n}" for name, n in zip(CRITERIA, counts, strict=True) if n]
    return ", ".join(parts) or "none"


def closest(view: View, methods: Sequence[str]) -> str | None:
    """Return the method that comes closest to the bar; None without methods.

    Most seeds with everything met, then the smallest `shortfall`. The number of criteria missed
    would favour a method that does nothing: it misses one.
    """

    def rank(method: str) -> tuple[int, float]:
        found = verdicts(view, method)
        return -seeds_met(found), shortfall(found)

    return min(methods, key=rank, default=None)
