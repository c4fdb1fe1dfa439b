"""Paired differences between methods over the seeds, and what many of them together show."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.study.load import Found, ran
from fastunlearn.metrics import smallest_detectable_effect
from fastunlearn.report.definitions import Metric, metric_for
from fastunlearn.report.view import AGAIN, ORIGINAL, Stat, View, interval_of

LEVEL = 0.05
LEAST_SEEDS = 3
"""Of fewer differences no interval is given: two that happen to be alike would tell anything."""
_ALIKE = 1e-12  # rounding of differences that are equal
PAIRS = (("recipe_top_k", "recipe"), ("top_k", "random_k"))


@dataclass(frozen=True)
class Figure:
    """A figure that two methods are compared by.

    Args:
        key: of the results file.
        title: what is compared.
        lower: whether less is better.
        aim: compare distances to this value; None compares the figure itself.
    """

    key: str
    title: str
    lower: bool = True
    aim: float | None = None

    @property
    def lead(self) -> str:
        """The title at the begin of a sentence."""
        return self.title[0].upper() + self.title[1:]

    @property
    def metric(self) -> Metric:
        """The figure's unit and digits; a difference of shares is in points."""
        metric = metric_for(self.key)
        return dataclasses.replace(metric, unit="points") if metric.unit == "%" else metric

    def value(self, stored: float) -> float:
        """Return what is compared."""
        return stored if self.aim is None else abs(stored - self.aim)


DEGREE = Figure("unlearning_degree_normalised", "distance of degree* from 1", aim=1.0)
JS = Figure("js_to_retrained", "Jensen-Shannon divergence to retrained")
GAP = Figure("average_gap_without_attack", "average gap without the attack")
FIGURES = (
    DEGREE,
    Figure("average_gap", "average gap"),
    JS,
    Figure("test_accuracy", "test accuracy", lower=False),
)


@dataclass(frozen=True)
class Contrast:
    """First minus second over the seeds of a cell.

    Args:
        found: the cell.
        first, second: the methods.
        figure: what is compared.
        stat: mean difference with its 95 % Student-t interval; without one where there are fewer
            than `LEAST_SEEDS` differences, or all are equal: their spread says nothing then.
        effect: the smallest true difference that so many seeds would have shown with probability
            0.8; None without an interval.
        p: two-sided p value of the paired t test; 1 without an interval.
    """

    found: Found
    first: str
    second: str
    figure: Figure
    stat: Stat
    effect: float | None
    p: float

    @property
    def better(self) -> int:
        """1 where the first is better, -1 where the second is, 0 where the seeds do not tell."""
        return -self.stat.sign() if self.figure.lower else self.stat.sign()

    @property
    def judged(self) -> bool:
        """Whether it counts: the cell is complete, and there are at least `LEAST_SEEDS` seeds."""
        return self.found.complete and self.stat.n >= LEAST_SEEDS


def contrast(found: Found, view: View, first: str, second: str, figure: Figure) -> Contrast | None:
    """Compare two methods by a figure; None where no seed has both."""
    a, b = view.values(first, figure.key), view.values(second, figure.key)
    values = [figure.value(a[seed]) - figure.value(b[seed]) for seed in a if seed in b]
    stat = interval_of(values)
    if stat is None:
        return None
    std = math.sqrt(math.fsum((v - stat.mean) ** 2 for v in values) / max(stat.n - 1, 1))
    if stat.n < LEAST_SEEDS or std <= _ALIKE:
        bare = Stat(stat.mean, None, None, stat.n)
        return Contrast(found, first, second, figure, bare, None, 1.0)
    effect = std * _unit_effect(stat.n)
    return Contrast(found, first, second, figure, stat, effect, _p_value(stat, std))


@functools.cache
def _unit_effect(n: int) -> float:
    return smallest_detectable_effect(1.0, n)


def _p_value(stat: Stat, std: float) -> float:
    from scipy.stats import t

    return float(2.0 * t.sf(abs(stat.mean) / (std / math.sqrt(stat.n)), stat.n - 1))


def selections(found: Iterable[Found]) -> list[Contrast]:
    """Return Top-K against Random-k, for both pairs of rows in every cell that has them."""
    made = []
    for one, view in ran(found):
        for first, second in PAIRS:
            for figure in FIGURES:
                row = contrast(one, view, first, second, figure)
                if row is not None:
                    made.append(row)
    return made


def against_original(found: Iterable[Found], figure: Figure) -> list[Contrast]:
    """Return every method against the untouched model, in every cell."""
    return _against(found, ORIGINAL, figure)


def against_again(found: Iterable[Found], figure: Figure) -> list[Contrast]:
    """Return every method against the second retraining, in every cell that has it."""
    return _against(found, AGAIN, figure)


def _against(found: Iterable[Found], second: str, figure: Figure) -> list[Contrast]:
    rows = (
        contrast(one, view, method, second, figure)
        for one, view in ran(found)
        for method in view.unlearned
    )
    return [row for row in rows if row is not None]


def judged(rows: Iterable[Contrast]) -> list[Contrast]:
    """Return the differences that are counted; the others are shown and prove nothing."""
    return [row for row in rows if row.judged]


def standing(rows: Sequence[Contrast]) -> list[Contrast]:
    """Return the counted differences that stand when all behind one verdict are taken together.

    A family is two methods, over all figures and cells; in each the error of any false difference
    is held at 5 % by Holm's procedure.
    """
    families: dict[tuple[str, str], list[Contrast]] = {}
    for row in judged(rows):
        families.setdefault((row.first, row.second), []).append(row)
    return [row for family in families.values() for row in holm(family)]


def holm(rows: Sequence[Contrast]) -> list[Contrast]:
    """Return the differences of one family that stand, in the given order.

    Source:
        S. Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of
        Statistics 1979.
    """
    ranked = sorted(rows, key=lambda row: row.p)
    tests = enumerate(ranked)
    failed = (place for place, row in tests if row.p > LEVEL / (len(rows) - place))
    kept = ranked[: next(failed, len(ranked))]
    return [row for row in rows if row in kept]
