"""The Markdown summary, the statistics and the plain-words reading."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
from report.conftest import Written
from report.synthetic import make_results
from scipy import stats

from fastunlearn.report.definitions import METRICS, metric_for
from fastunlearn.report.reading import reading
from fastunlearn.report.summary import escape_markdown, flatten, render_summary
from fastunlearn.report.view import View, interval_of, student_quantile


def findings(results: dict[str, Any]) -> dict[str, str]:
    """Return the reading by its leads."""
    return {finding.lead: finding.text for finding in reading(View(results))}


def set_metric(results: dict[str, Any], method: str, metric: str, values: list[float]) -> None:
    """Replace one figure of one method in every run, and drop the stored summary."""
    for run, value in zip(results["runs"], values, strict=True):
        run["methods"][method]["metrics"][metric] = value
    results["summary"] = {}


def test_tables_hold_the_numbers_of_the_input(plain: Written) -> None:
    rows = [line.replace("\\", "") for line in plain.summary.splitlines() if line.startswith("| ")]
    for method, metrics in plain.results["summary"].items():
        label = plain.results["runs"][0]["methods"][method]["label"]
        cells = [c for row in rows if row.startswith(f"| {label} |") for c in row.split(" | ")[1:]]
        for metric in METRICS:
            row = metrics[metric.key]
            low, high = (metric.number(metric.clip(row[end])) for end in ("ci_low", "ci_high"))
            cell = f"{metric.quantity(row['mean'])} [{low}, {high}]"
            assert any(found.strip(" |") == cell for found in cells), (method, metric.key)


def test_stored_summary_is_shown_and_not_recomputed() -> None:
    results = make_results(3)
    results["summary"]["top_k"]["forget_accuracy"] = {
        "mean": 0.12345,
        "std": 0.01,
        "ci_low": 0.1111,
        "ci_high": 0.2222,
        "n": 3,
    }
    assert r"12.3 % \[11.1, 22.2\]" in render_summary(View(results))


def test_partly_defined_figure_says_how_many_seeds_count() -> None:
    results = make_results(3)
    results["runs"][1]["methods"]["top_k"]["metrics"]["mia_auc"] = None
    results["runs"][1]["methods"]["top_k"]["undefined"]["mia_auc"] = "too few examples"
    results["summary"] = {}
    summary = render_summary(View(results))
    assert "(n = 2)" in summary
    assert "Membership inference AUC, Top-K: too few examples (seed 1)." in summary


@pytest.mark.parametrize("df", [1, 2, 3, 4, 9, 10, 29, 200])
def test_student_quantile(df: int) -> None:
    # Both sides are exact but for bisection and rounding in float64.
    assert student_quantile(df) == pytest.approx(stats.t.ppf(0.975, df), rel=1e-12)


def test_interval_agrees_with_scipy() -> None:
    values = [random.Random(7).gauss(3, 1) for _ in range(5)] + [4.0]
    found = interval_of(values)
    low, high = stats.t.interval(
        0.95, len(values) - 1, loc=sum(values) / 6, scale=stats.sem(values)
    )
    assert found is not None and found.interval == pytest.approx((low, high), rel=1e-12)
    assert interval_of([]) is None
    assert interval_of([2.0]) is not None and interval_of([2.0]).interval is None


def test_paired_difference_sees_what_unpaired_intervals_hide() -> None:
    results = make_results(5)
    base = [0.80, 0.85, 0.90, 0.95, 0.99]
    set_metric(results, "random_k", "test_accuracy", base)
    set_metric(
        results, "top_k", "test_accuracy", [v - d for v, d in zip(base, _JITTER, strict=True)]
    )
    view = View(results)
    top, rand = view.stat("top_k", "test_accuracy"), view.stat("random_k", "test_accuracy")
    assert top.high > rand.low
    apart, alike = findings(results)["Top-K minus Random-k"].split("Not told apart:")
    assert "test accuracy -1.0" in apart and "test accuracy" not in alike


_JITTER = (0.010, 0.011, 0.009, 0.010, 0.010)


def test_equal_methods_are_not_told_apart() -> None:
    results = make_results(4)
    for run in results["runs"]:
        run["methods"]["random_k"] = copy.deepcopy(run["methods"]["top_k"])
        run["methods"]["random_k"]["label"] = "Random-k"
    assert "Told apart: nothing." in findings(results)["Top-K minus Random-k"]


def test_reading_follows_the_data() -> None:
    results = make_results(4)
    set_metric(results, "top_k", "average_gap", [0.50, 0.51, 0.49, 0.50])
    set_metric(results, "fine_tune", "average_gap", [0.001, 0.002, 0.001, 0.002])
    text = findings(results)
    assert text["Nearness to retraining"].startswith(
        "By average gap, smallest mean first: Fine-tuning"
    )
    against = text["Against doing nothing, by average gap"]
    nearer, farther = against.split("farther from retraining:")
    assert "Fine-tuning" in nearer and "Top-K" not in nearer and "Top-K" in farther


@pytest.mark.parametrize(
    ("original", "words"),
    [
        ([0.98, 0.99, 1.00], "is more accurate than the retrained one"),
        ([0.95, 0.94, 0.96], "cannot be told apart"),
        ([0.50, 0.51, 0.49], "is less accurate than the retrained one"),
    ],
)
def test_how_much_there_is_to_forget(original: list[float], words: str) -> None:
    results = make_results(3)
    set_metric(results, "original", "forget_accuracy", original)
    set_metric(results, "retrain", "forget_accuracy", [0.94, 0.95, 0.96])
    assert words in findings(results)["How much there is to forget"]


def test_one_seed_judges_nothing() -> None:
    text = findings(make_results(1))
    assert "no difference below can be told from chance" in text["One seed"]
    joined = " ".join(text.values())
    assert "Told apart" not in joined and "Above chance" not in joined
    assert "was lost by" not in joined and "Nearer to retraining:" not in joined


def test_attack_is_compared_seed_by_seed_with_the_retrained_model() -> None:
    results = make_results(3)
    # each seed moves both alike; all lie below 0.5 and yet Top-K is above the retrained model
    set_metric(results, "retrain", "mia_auc", [0.40, 0.45, 0.35])
    set_metric(results, "top_k", "mia_auc", [0.45, 0.50, 0.401])
    set_metric(results, "random_k", "mia_auc", [0.45, 0.40, 0.36])
    text = findings(results)["Membership inference AUC, against the retrained model"]
    above, alike = text.split("not told apart for")
    assert above.startswith("Above for") and "Top-K" in above and "Random-k" not in above
    assert "Random-k" in alike and "saw 398 examples per side" in alike
    # half-width of (0.05, 0.05, 0.051): t(0.975, 2) / sqrt(3) * 0.000577 = 0.0014
    assert "half the width of the paired 95 % interval, is 0.001 to 0." in text


def test_a_second_retrained_model_is_the_floor() -> None:
    results = make_results(3)
    set_metric(results, "retrain_again", "average_gap", [0.0123, 0.0123, 0.0123])
    text = findings(results)
    floor = text["What two honest retrainings differ by"]
    assert "average gap 1.23 points" in floor and "nearer than this" in floor
    assert "Jensen-Shannon" in floor and "average gap without the attack" in floor
    assert "Retrained again" in text["Nearness to retraining"]
    assert "Retrained again" not in text["Against doing nothing, by average gap"]
    for run in results["runs"]:
        del run["methods"]["retrain_again"]
    assert "Not even a second retrained" in findings(results)["Nearness to retraining"]


def test_rows_keep_the_order_of_the_configuration() -> None:
    results = make_results(1)
    for run in results["runs"]:
        methods = run["methods"]
        run["methods"] = {name: methods[name] for name in ("fine_tune", "top_k", "retrain")}
        run["methods"] |= {"salun": methods["random_k"], "original": methods["original"]}
        run["methods"]["random_k"] = methods["random_k"]
    expected = ("original", "retrain", "fine_tune", "top_k", "salun", "random_k")
    assert View(results).methods == expected


def test_intervals_are_cut_to_the_possible_range() -> None:
    results = make_results(2)
    set_metric(results, "top_k", "retain_accuracy", [0.990, 1.0])
    set_metric(results, "top_k", "average_gap", [0.0, 0.01])
    view = View(results)
    assert view.stat("top_k", "retain_accuracy").high == 1.0
    assert view.stat("top_k", "average_gap").low == 0.0
    assert view.paired("top_k", "retrain", "retain_accuracy").low < -0.05, "a difference is not cut"
    assert "100.0\\]" in render_summary(view) and "cut to the possible range" in render_summary(
        view
    )


def test_unknown_method_and_figure_appear() -> None:
    results = make_results(3, extra={"salun": "Saliency unlearning"})
    for run in results["runs"]:
        for entry in run["methods"].values():
            entry["metrics"]["relearn_steps"] = 12.5
    summary = render_summary(View(results))
    assert summary.count("| Saliency unlearning |") == 3
    assert "relearn steps" in summary and "12.5000" in summary


def test_mislabelled_data_is_explained() -> None:
    results = make_results(2)
    results["config"]["scenario"] = {"kind": "mislabelled", "fraction": 0.05}
    summary = render_summary(View(results))
    assert "mislabelled examples, 5 %" in summary and "wrong labels" in summary
    results["config"]["scenario"] = {"kind": "class", "class": 3}
    assert "all of class 3" in render_summary(View(results))


def test_numbers_have_no_negative_zero() -> None:
    metric = metric_for("average_gap")
    assert metric.number(-1e-9) == "0.00" and metric.number(-0.0123) == "-1.23"


def test_escape_markdown() -> None:
    assert escape_markdown("a|b\n<i>*c*_") == r"a\|b &lt;i&gt;\*c\*\_"


def test_flatten() -> None:
    value = {"a": {"b": [1, 2], "c": []}, "d": None, "e": [{"f": 1}]}
    assert flatten(value) == [
        ("a.b", "1, 2"),
        ("a.c", "none"),
        ("d", "None"),
        ("e", "[{'f': 1}]"),
    ]
