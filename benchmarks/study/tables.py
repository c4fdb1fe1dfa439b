"""The tables of the document, each a list of Markdown lines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.study.bar import CRITERIA, Verdict, closest, missed, seeds_met, verdicts
from benchmarks.study.contrast import FIGURES, PAIRS, Contrast, judged, standing
from benchmarks.study.instrument import MARK, failed_seeds, failure_words
from benchmarks.study.load import Found
from fastunlearn.report.audit import gain
from fastunlearn.report.definitions import metric_for
from fastunlearn.report.reading import bracket
from fastunlearn.report.view import AGAIN, View, finite

SHIFTED = (
    "unlearning_degree",
    "unlearning_degree_normalised",
    "retain_accuracy",
    "test_accuracy",
    "memory_retention_rate",
    "average_gap",
    "optimizer_step_ratio",
    "run_time_ratio",
)
SHIFTED_MORE = (
    "unlearning_accuracy",
    "unshifted_forget_accuracy",
    "mia_auc",
    "js_to_retrained",
)
PLAIN = (
    "unlearning_accuracy",
    "retain_accuracy",
    "test_accuracy",
    "mia_auc",
    "average_gap",
    "js_to_retrained",
    "run_time_ratio",
)
_HEADS = {
    "unlearning_degree": "degree",
    "unlearning_degree_normalised": "degree*",
    "js_to_retrained": "JS to retrained",
    "unshifted_forget_accuracy": "accuracy on unshifted D_u",
}


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a Markdown table, with the empty line that must follow."""
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows), ""]


def folded(title: str, lines: Sequence[str]) -> list[str]:
    """Return lines that a reader unfolds."""
    return ["<details>", f"<summary>{title}</summary>", "", *lines, "</details>", ""]


def head(key: str) -> str:
    """Return a column's head: the figure and its unit."""
    metric = metric_for(key)
    title = _HEADS.get(key, metric.title.lower().replace("auc", "AUC"))
    return f"{title}, {metric.unit}" if metric.unit else title


def figure(view: View, method: str, key: str) -> str:
    """Return mean, interval and, where seeds are missing, how many count."""
    metric, stat = metric_for(key), view.stat(method, key)
    if stat is None:
        return "undefined"
    few = f"(n = {stat.n})" if stat.n < len(view.seeds) else ""
    return " ".join(part for part in (metric.number(stat.mean), bracket(metric, stat), few) if part)


def methods_table(view: View, keys: Sequence[str]) -> list[str]:
    """Return one row for each method."""
    rows = [[view.label(m), *(figure(view, m, key) for key in keys)] for m in view.methods]
    return table(["method", *map(head, keys)], rows)


def cells_table(found: Sequence[Found]) -> list[str]:
    """Return what is run, with the sizes of the sets."""
    rows = []
    for one in found:
        sizes = ["", ""]
        if one.view is not None and one.view.runs:
            all_sizes = [run["sizes"] for run in one.view.runs]
            sizes = [_span([s[key] for s in all_sizes]) for key in ("forget", "retain")]
        rows.append([f"`{one.cell.name}`", one.state, *sizes])
    return table(["cell", "state", "forget set", "retain set"], rows)


def _span(sizes: Sequence[int]) -> str:
    low, high = min(sizes), max(sizes)
    return str(low) if low == high else f"{low} to {high}"


def instrument_row(one: Found, view: View) -> list[str]:
    """Return what the instrument is worth in a shifted cell."""
    own, audits = gain(view), list(view.audits.values())
    assert own is not None  # a shifted cell is an audit
    degree = metric_for("unlearning_degree")
    defined = [value for value in own.seeds.values() if value is not None]
    reach = f"{min(defined):.1f} to {max(defined):.1f}" if defined else "undefined"
    lost = len(own.seeds) - len(defined)
    order = sum(audit["anchors"]["in_order"] for audit in audits)
    near = {
        key: [v for a in audits if (v := finite(a["closeness"].get(key))) is not None]
        for key in ("linf", "psnr")
    }
    return [
        one.title,
        degree.number(own.shifted.mean),
        degree.number(own.plain.mean),
        "undefined" if own.value is None else f"{own.value:.1f}",
        reach + (f" (undefined on {lost})" if lost and defined else ""),
        f"{max(near['linf']):.2f}" if near["linf"] else "undefined",
        f"{min(near['psnr']):.1f}" if near["psnr"] else "undefined",
        f"{order} of {len(audits)}",
    ]


INSTRUMENT_HEAD = (
    "cell",
    "spread on G(D_u), points",
    "spread on D_u, points",
    "gain, of the mean spreads",
    "gain, seed by seed",
    "largest mean L-inf shift",
    "smallest PSNR, dB",
    "seeds with anchors in order",
)


def bar_tables(one: Found, view: View) -> list[str]:
    """Return the recipe seed by seed against the bar, beside the closest baseline."""
    best, failed = closest(view, one.baselines()), failure_words(view)
    lines = [] if one.complete else [f"Partial ({one.seeds_done}).", ""]
    lines += [failed, ""] if failed else []
    for lead, method in (("Recipe", "recipe"), ("Closest baseline", best)):
        if method is None or method not in view.methods:
            lines += [f"{lead}: no such row in this cell.", ""]
            continue
        rows = verdicts(view, method)
        summary = (
            f"{lead}: {view.label(method)}. Everything met on {seeds_met(rows)} of {len(rows)} "
            f"seeds; {missed(rows)} of {len(CRITERIA) * len(rows)} criteria missed."
        )
        body = [_verdict_row(row, row.seed in failed_seeds(view)) for row in rows]
        lines += [summary, "", *table(["seed", *CRITERIA, "all"], body)]
    return lines + _again_words(view)


def _again_words(view: View) -> list[str]:
    """Return how one more honest retraining does by the same yardstick."""
    if AGAIN not in view.methods:
        return []
    rows = verdicts(view, AGAIN)
    degrees = ["undefined" if row.degree is None else f"{row.degree:.2f}" for row in rows]
    return [
        f"{view.label(AGAIN)}, a retrained model that the yardstick does not hold, has degree* "
        f"{', '.join(degrees)}: inside the bounds on {sum(row.met[0] for row in rows)} of "
        f"{len(rows)} seeds.",
        "",
    ]


def _verdict_row(verdict: Verdict, failed: bool) -> list[str]:
    forms = ("{:.2f}", "{:+.1f} points", "{:.3f}", "{:.2f}")
    gap = None if verdict.test_gap is None else 100.0 * verdict.test_gap
    values = (verdict.degree, gap, verdict.retention, verdict.steps)
    cells = [
        f"{'undefined' if value is None else form.format(value)}: {_yes(met)}"
        for form, value, met in zip(forms, values, verdict.met, strict=True)
    ]
    seed = f"{verdict.seed} {MARK}" if failed else str(verdict.seed)
    return [seed, *cells, _yes(all(verdict.met))]


def _yes(met: bool) -> str:
    return "yes" if met else "**no**"


def selection_table(rows: Sequence[Contrast]) -> list[str]:
    """Return in how many cells Top-K or Random-k is better, by pair of rows and figure.

    Cells that lack seeds are left out.
    """
    rows = judged(rows)
    kept, body = standing(rows), []
    for first, second in PAIRS:
        for figure_ in FIGURES:
            own = [r for r in rows if (r.first, r.second, r.figure) == (first, second, figure_)]
            if own:
                pair = " / ".join(_labels(own[0]))
                body.append([pair, figure_.title, str(len(own)), *_counts(own, kept)])
    head_ = ("rows", "figure", "cells", "Top-K better", "Random-k better", "not told apart")
    return table(head_, body)


def _counts(rows: Sequence[Contrast], kept: Sequence[Contrast]) -> list[str]:
    better = {sign: [row for row in rows if row.better == sign] for sign in (1, -1, 0)}
    cells = [
        f"{len(better[sign])} (after Holm {sum(row in kept for row in better[sign])})"
        for sign in (1, -1)
    ]
    return [*cells, str(len(better[0]))]


def _labels(row: Contrast) -> tuple[str, str]:
    view = row.found.view
    assert view is not None  # it was compared
    return view.label(row.first), view.label(row.second)


def contrast_table(rows: Sequence[Contrast]) -> list[str]:
    """Return paired differences with what the seeds could have shown."""
    kept = standing(rows)
    return table(
        ("cell", "difference of", "in", "mean [95 %]", "smallest detectable", "better", "Holm"),
        [[*_contrast_row(row), "stands" if row in kept else ""] for row in rows],
    )


def _contrast_row(row: Contrast) -> list[str]:
    metric, (first, second) = row.figure.metric, _labels(row)
    return [
        row.found.name if row.found.complete else f"{row.found.name}, {row.found.seeds_done}",
        f"{first} − {second}",
        f"{row.figure.title}, {metric.unit}".rstrip(", "),
        f"{metric.number(row.stat.mean)} {bracket(metric, row.stat)}".rstrip(),
        "" if row.effect is None else metric.number(row.effect),
        {1: first, -1: second, 0: "not told apart"}[row.better],
    ]
