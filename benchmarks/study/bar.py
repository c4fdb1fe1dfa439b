"""The recipe's bar: four criteria on every seed [ours]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastunlearn.report.view import RETRAIN, View

DEGREE = (0.8, 1.2)
TEST_LOSS = 0.01
RETENTION = 0.98
STEPS = 0.30
CRITERIA = (
    f"degree* in [{DEGREE[0]:g}, {DEGREE[1]:g}]",
    f"test accuracy at most {100 * TEST_LOSS:g} point below the retrained model's",
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
        test_gap: test accuracy minus that of the retrained model.
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


def verdicts(view: View, method: str) -> list[Verdict]:
    """Return how a method does on each seed of a shifted cell."""
    degree, kept, steps = (view.values(method, key) for key in _KEYS)
    own, aim = view.values(method, "test_accuracy"), view.values(RETRAIN, "test_accuracy")
    gaps = {seed: own[seed] - aim[seed] for seed in own if seed in aim}
    return [
        Verdict(seed, degree.get(seed), gaps.get(seed), kept.get(seed), steps.get(seed))
        for seed in view.seeds
    ]


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

    The fewest criteria missed over the seeds, then the smallest |mean degree* - 1|.
    """

    def rank(method: str) -> tuple[int, float]:
        degree = view.stat(method, _KEYS[0])
        distance = float("inf") if degree is None else abs(degree.mean - 1.0)
        return missed(verdicts(view, method)), distance

    return min(methods, key=rank, default=None)
