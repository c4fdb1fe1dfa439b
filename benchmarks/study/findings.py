"""What the results say, in sentences: each is made from the figures, or says that they do not."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.study.bar import CRITERIA, closest, missed_words, seeds_met, verdicts
from benchmarks.study.contrast import (
    JS,
    PAIRS,
    Contrast,
    against_original,
    selections,
    standing,
)
from benchmarks.study.curve import LEAST_GAIN
from benchmarks.study.load import Found, ran
from fastunlearn.report.audit import anchor_failures
from fastunlearn.report.view import View

NOTHING = "No results yet."


def instrument(found: Sequence[Found]) -> list[str]:
    """Return where the instrument works and where it failed."""
    rows = [(one, view) for one, view in ran(found) if one.shifted]
    if not rows:
        return [NOTHING]
    works = [one.title for one, view in rows if not anchor_failures(view) and _gains(view)]
    lines = [
        f"The instrument's anchors are in order and its gain is at least {LEAST_GAIN:g} on every "
        f"seed in {len(works)} of {len(rows)} shifted cells"
        + (f": {'; '.join(works)}." if works else ".")
    ]
    for one, view in rows:
        failures = anchor_failures(view)
        if failures:
            lines.append(f"The instrument failed in {one.title}: {'; '.join(failures)}.")
        elif not _gains(view):
            lines.append(f"The anchors are in order in {one.title}, but {_gain_words(view)}.")
    return lines


def _gain_values(view: View) -> list[float | None]:
    return [audit["gain"] for audit in view.audits.values()]


def _gains(view: View) -> bool:
    return all(value is not None and value >= LEAST_GAIN for value in _gain_values(view))


def _gain_words(view: View) -> str:
    values = _gain_values(view)
    undefined = sum(value is None for value in values)
    low = sum(value is not None and value < LEAST_GAIN for value in values)
    parts = [
        f"the gain is below {LEAST_GAIN:g} on {low} of {len(values)} seeds" if low else "",
        f"the gain is undefined on {undefined} of {len(values)} seeds, where plain accuracy does "
        "not tell original and retrained model apart at all"
        if undefined
        else "",
    ]
    return " and ".join(part for part in parts if part)


def bar(found: Sequence[Found]) -> list[str]:
    """Return where the recipe and the baselines meet the bar."""
    rows = [(one, view) for one, view in ran(found) if one.shifted and "recipe" in view.methods]
    if not rows:
        return [NOTHING]
    lines, whole = [], []
    for one, view in rows:
        met = [m for m in view.unlearned if seeds_met(verdicts(view, m)) == len(view.seeds)]
        most = [
            m for m in view.unlearned
            if m not in met and 2 * seeds_met(verdicts(view, m)) > len(view.seeds)
        ]  # fmt: skip
        if "recipe" in met:
            whole.append(one)
        lines.append(f"{one.title}: {_bar_words(view, met, most)}")
    head = f"The recipe meets the whole bar on every seed in {len(whole)} of {len(rows)} cells."
    return [head, *lines]


def _bar_words(view: View, met: list[str], most: list[str]) -> str:
    text = f"met on every seed by {_labels(view, met) or 'no method'}"
    if most:
        text += f", on most seeds by {_labels(view, most)}"
    if "recipe" not in met:
        text += f". The recipe misses: {missed_words(verdicts(view, 'recipe'))} seeds"
    if not met:
        best = closest(view, view.unlearned)
        assert best is not None  # the recipe is one of them
        text += f". Closest: {view.label(best)}"
    return text + "."


def _labels(view: View, methods: Sequence[str]) -> str:
    return "; ".join(view.label(method) for method in methods)


def selection_verdicts(found: Sequence[Found]) -> list[str]:
    """Return whether Top-K or Random-k is better, for each pair of rows."""
    rows = selections(found)
    return [_names(pair[0]) + _verdict(standing(pair)) for pair in _pairs(rows)] or [NOTHING]


def _pairs(rows: Sequence[Contrast]) -> list[list[Contrast]]:
    found = [[row for row in rows if (row.first, row.second) == pair] for pair in PAIRS]
    return [pair for pair in found if pair]


def _names(row: Contrast) -> str:
    return f"{_label(row, row.first)} against {_label(row, row.second)}: "


def _label(row: Contrast, method: str) -> str:
    assert row.found.view is not None  # it was compared
    return row.found.view.label(method)


def _verdict(kept: Sequence[Contrast]) -> str:
    signs = {row.better for row in kept}
    if not signs:
        return "no difference stands after Holm's procedure."
    if signs == {1}:
        return "in every difference that stands after Holm's procedure Top-K is better."
    if signs == {-1}:
        return "in every difference that stands after Holm's procedure Random-k is better."
    return "differences stand in both directions: it depends on the cell and on the figure."


def outputs(found: Sequence[Found]) -> list[str]:
    """Return whether unlearning brings a model's outputs nearer to the retrained model's."""
    rows = against_original(found, JS)
    if not rows:
        return [NOTHING]
    kept, cells = standing(rows), ran(found)
    some = [one for one, _ in cells if any(r.found is one and r.better > 0 for r in kept)]
    lines = [
        "Jensen-Shannon divergence to the retrained model on the forget set: lower than the "
        "untouched model's for at least one method (after Holm over the cells) in "
        f"{len(some)} of {len(cells)} cells."
    ]
    none = [one.name for one, _ in cells if one not in some]
    if none:
        lines.append(f"For no method in: {'; '.join(none)}.")
    for method in dict.fromkeys(row.first for row in rows):
        own = [row for row in rows if row.first == method]
        counts = [sum(row.better == sign for row in own if row in kept) for sign in (1, -1)]
        lines.append(
            f"{_label(own[0], method)}: lower in {counts[0]}, higher in {counts[1]}, not told "
            f"apart in {len(own) - sum(counts)} of {len(own)} cells."
        )
    return lines


def honest(found: Sequence[Found]) -> list[str]:
    """Return which methods are as near to the retrained model as a second retraining is."""
    lines, cells = [], 0
    for one, view in ran(found):
        again = view.stat("retrain_again", "average_gap")
        if again is None:
            continue
        cells += 1
        stats = {method: view.stat(method, "average_gap") for method in view.unlearned}
        near = [m for m, stat in stats.items() if stat is not None and stat.mean <= again.mean]
        if near:
            lines.append(f"{one.name}: {_labels(view, near)}.")
    if not cells:
        return [NOTHING]
    return [f"There is such a method in {len(lines)} of {cells} cells.", *lines]


def limits(found: Sequence[Found]) -> list[str]:
    """Return the criteria that no method meets, one by one."""
    rows = [(one, view) for one, view in ran(found) if one.shifted]
    if not rows:
        return [NOTHING]
    lines = []
    for one, view in rows:
        judged = [verdicts(view, method) for method in view.unlearned]
        for place, name in enumerate(CRITERIA):
            if not any(all(v.met[place] for v in each) for each in judged):
                lines.append(f"{one.title}: no method has {name} on every seed.")
    return lines or ["Each criterion of the bar is met by some method, in every cell."]


def comparisons(found: Sequence[Found]) -> tuple[int, int]:
    """Return how many paired differences the document looks at, by family."""
    return len(selections(found)), len(against_original(found, JS))
