"""The bar and the paired differences, against values worked out by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest

pytest.importorskip("sklearn")

from benchmarks.study import sensitivity  # noqa: E402
from benchmarks.study.bar import accuracy_gaps, closest, missed, missed_words, seeds_met, verdicts  # noqa: E402
from benchmarks.study.cells import Cell, cells  # noqa: E402
from benchmarks.study.contrast import (  # noqa: E402
    DEGREE,
    FIGURES,
    Contrast,
    Figure,
    contrast,
    holm,
    standing,
)
from benchmarks.study.load import Found  # noqa: E402
from benchmarks.study.plots import not_dominated  # noqa: E402
from fastunlearn.evaluation.methods import METHODS  # noqa: E402
from fastunlearn.report.view import Stat, View  # noqa: E402

from .synthetic import make_results  # noqa: E402


@pytest.fixture(scope="module")
def cell() -> Iterator[Cell]:
    with mock.patch.dict(METHODS):
        yield next(iter(cells()))


def view_with(cell: Cell, method: str, **values: list[float]) -> View:
    """Return results with these values of a method, seed by seed; accuracies otherwise alike."""
    results = make_results(cell)
    for i, run in enumerate(results["runs"]):
        for name, entry in run["methods"].items():
            if name == method:
                entry["metrics"] |= {key: numbers[i] for key, numbers in values.items()}
    return View({**results, "summary": {}})


@pytest.mark.parametrize(
    ("key", "edge", "beyond"),
    [
        ("unlearning_degree_normalised", 0.8, 0.799),
        ("unlearning_degree_normalised", 1.2, 1.201),
        ("test_accuracy", 0.945, 0.944),  # the retrained model's is 0.955
        ("memory_retention_rate", 0.98, 0.979),
        ("optimizer_step_ratio", 0.30, 0.301),
    ],
)
def test_each_criterion_holds_at_its_edge_and_not_beyond(
    cell: Cell, key: str, edge: float, beyond: float
) -> None:
    view = view_with(cell, "recipe", **{key: [edge, beyond, edge, edge, edge]})
    found = verdicts(view, "recipe")
    assert [all(verdict.met) for verdict in found] == [True, False, True, True, True]
    assert missed(found) == 1 and seeds_met(found) == 4
    assert missed_words(found).endswith(" on 1")


def test_a_better_test_accuracy_is_no_miss(cell: Cell) -> None:
    view = view_with(cell, "recipe", test_accuracy=[0.99] * 5)
    assert missed(verdicts(view, "recipe")) == 0


def test_an_undefined_degree_misses(cell: Cell) -> None:
    view = view_with(cell, "recipe", unlearning_degree_normalised=[None] * 5)  # type: ignore[list-item]
    assert missed(verdicts(view, "recipe")) == 5


def test_the_closest_misses_least_then_has_the_nearest_degree(cell: Cell) -> None:
    levels: dict[str, Any] = {"salun": {"degree": 0.75}, "scrub": {"degree": 1.3}}
    view = View(make_results(cell, levels))
    assert closest(view, ["fine_tune", "salun", "scrub"]) == "salun"
    levels["salun"]["steps"] = 0.5
    assert closest(View(make_results(cell, levels)), ["fine_tune", "salun", "scrub"]) == "scrub"
    assert closest(view, []) is None


def test_test_accuracy_is_judged_by_the_mean_of_the_retrained_models(cell: Cell) -> None:
    view = view_with(cell, "recipe", test_accuracy=[0.95] * 5)
    own = {seed: gap for seed, gap in accuracy_gaps(view, "recipe").items()}
    for seed, first in view.values("retrain", "test_accuracy").items():
        assert own[seed] == pytest.approx(0.95 - first)  # a file without the others
    for run in view.runs:
        run["audit"]["retrained"] = {"shifted": [], "unshifted": [], "test": [0.98, 0.95, 0.95]}
    gaps = accuracy_gaps(view, "recipe")
    assert gaps == pytest.approx(dict.fromkeys(view.seeds, -0.01))
    assert all(verdict.met[1] for verdict in verdicts(view, "recipe"))


def test_a_contrast_is_the_paired_t_test(cell: Cell) -> None:
    # distances of degree* from 1: 0.1, 0.2, 0.3, 0.1, 0.3 against 0.5 throughout
    degrees = [1.1, 0.8, 0.7, 0.9, 1.3]
    view = view_with(cell, "recipe", unlearning_degree_normalised=degrees)
    for run in view.runs:
        run["methods"]["recipe_top_k"]["metrics"]["unlearning_degree_normalised"] = 0.5
    row = contrast(Found(cell, view), view, "recipe", "recipe_top_k", DEGREE)
    assert row is not None
    # differences -0.4 -0.3 -0.2 -0.4 -0.2: mean -0.3, std 0.1; t(0.975, 4) = 2.776
    assert row.stat.mean == pytest.approx(-0.3)
    assert row.stat.interval == pytest.approx((-0.3 - 2.7764 * 0.1 / 5**0.5, -0.3 + 0.12417), 1e-3)
    assert row.better == 1
    # t = -0.3 / (0.1 / sqrt 5) = -6.708; the two-sided p with 4 degrees of freedom
    assert row.p == pytest.approx(0.00257, abs=2e-5)
    # at n = 5 and power 0.8 the effect is 1.6819 standard deviations (paired t test)
    assert row.effect == pytest.approx(0.1 * 1.6819, abs=2e-4)


def test_more_is_better_for_accuracy(cell: Cell) -> None:
    accuracy = next(figure for figure in FIGURES if figure.key == "test_accuracy")
    view = view_with(cell, "recipe", test_accuracy=[0.99] * 5)
    row = contrast(Found(cell, view), view, "recipe", "recipe_top_k", accuracy)
    assert row is not None and row.better == 1


def test_one_seed_tells_nothing_apart(cell: Cell) -> None:
    view = View(make_results(cell, seeds=1))
    row = contrast(Found(cell, view), view, "recipe", "recipe_top_k", DEGREE)
    assert row is not None and (row.better, row.effect, row.p) == (0, None, 1.0)
    assert row.stat.interval is None and not row.judged


@pytest.mark.parametrize("seeds", [2, 5])
def test_equal_differences_tell_nothing_apart(cell: Cell, seeds: int) -> None:
    results = make_results(cell, seeds=seeds)
    for run in results["runs"]:
        for name, degree in (("recipe", 0.9), ("recipe_top_k", 0.5)):
            run["methods"][name]["metrics"]["unlearning_degree_normalised"] = degree
    view = View(results)
    row = contrast(Found(cell, view), view, "recipe", "recipe_top_k", DEGREE)
    assert row is not None and row.stat.mean == pytest.approx(-0.4)
    assert row.stat.interval is None and (row.better, row.p) == (0, 1.0)
    assert holm([row]) == [] and row.judged == (seeds == 5)


def test_two_different_seeds_tell_nothing_apart(cell: Cell) -> None:
    view = View(make_results(cell, seeds=2))
    row = contrast(Found(cell, view), view, "recipe", "recipe_top_k", DEGREE)
    assert row is not None and row.stat.n == 2
    assert (row.stat.interval, row.effect, row.p, row.judged) == (None, None, 1.0, False)


def test_a_verdict_is_held_over_its_figures(cell: Cell) -> None:
    view = View(make_results(cell))
    stat = Stat(0.1, 0.05, 0.15, 5)

    def row(figure: Figure, p: float) -> Contrast:
        return Contrast(Found(cell, view), "a", "b", figure, stat, 0.1, p)

    # the smallest of four must be at most 0.05 / 4
    for p, kept in ((0.012, 1), (0.013, 0)):
        assert len(standing([row(FIGURES[0], p), *(row(f, 0.9) for f in FIGURES[1:])])) == kept


def test_holm_stops_at_the_first_that_fails(cell: Cell) -> None:
    def row(p: float) -> Contrast:
        stat = Stat(0.1, 0.05, 0.15, 5)
        return Contrast(Found(cell, None), "a", "b", DEGREE, stat, 0.1, p)

    # limits in order of p: 0.05/4 = 0.0125, 0.05/3 = 0.0167, 0.05/2 = 0.025, 0.05
    rows = [row(0.04), row(0.001), row(0.03), row(0.016)]
    assert [kept.p for kept in holm(rows)] == [0.001, 0.016]
    assert holm([row(0.0126), row(0.02), row(0.02), row(0.02)]) == []


def test_what_is_beaten_in_both_is_not_on_the_front(cell: Cell) -> None:
    levels = {
        "recipe": {"degree": 1.0, "test": 0.95},
        "recipe_top_k": {"degree": 0.8, "test": 0.94},
        "fine_tune": {"degree": 0.1, "test": 0.98},
        "salun": {"degree": 1.5, "test": 0.96},
    }
    rest = {
        name: {"degree": 0.0, "test": 0.9} for name in cell.config.methods if name not in levels
    }
    view = View(make_results(cell, {**rest, **levels}))
    assert not_dominated(view) == ["recipe", "fine_tune", "salun"]


def test_distances_on_both_sides_of_the_aim_do_not_cancel(cell: Cell) -> None:
    rest = {name: {"degree": 0.0, "test": 0.9} for name in cell.config.methods}
    rest |= {"retrain": {"degree": 1.0}, "salun": {"degree": 0.9, "test": 0.95}}
    results = make_results(cell, rest)
    # mean 1, mean distance 1; the test accuracy is that of nothing else
    for run, degree in zip(results["runs"], (0.0, 2.0, 0.0, 2.0, 1.0), strict=True):
        run["methods"]["scrub"]["metrics"] |= {
            "unlearning_degree_normalised": degree,
            "test_accuracy": 0.94,
        }
    assert not_dominated(View({**results, "summary": {}})) == ["salun"]


def test_the_fewest_criteria_missed_are_of_all_criteria(cell: Cell) -> None:
    with mock.patch.dict(METHODS):
        (one,) = (cell for cell in cells() if cell.name.endswith("sensitivity"))
    view = View(make_results(one, {name: {"degree": 0.3} for name in one.config.methods}))
    with mock.patch.object(sensitivity, "CRITERIA", ("one", "two", "three", "four", "five")):
        assert sensitivity.sentence(view).endswith(": 5 of 25.")
