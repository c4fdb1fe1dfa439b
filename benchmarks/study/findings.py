"""What the results say, in sentences: each is made from the figures, or says that they do not."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.study.bar import CRITERIA, closest, missed_words, seeds_met, verdicts
from benchmarks.study.contrast import (
    GAP,
    JS,
    PAIRS,
    Contrast,
    against_again,
    against_original,
    holm,
    judged,
    selections,
    standing,
)
from benchmarks.study.curve import LEAST_GAIN
from benchmarks.study.instrument import failed_seeds, failure_words
from benchmarks.study.load import Found, complete, partial_words, ran
from fastunlearn.report.audit import anchor_failures
from fastunlearn.report.view import View

NOTHING = "No results yet."


def instrument(found: Sequence[Found]) -> list[str]:
    """Return where the instrument works and where it failed."""
    rows = [(one, view) for one, view in ran(found) if one.shifted]
    if not rows:
        return [NOTHING]
    whole = complete(rows)
    works = [one.title for one, view in whole if not anchor_failures(view) and _gains(view)]
    lines = [
        f"The instrument's anchors are in order and its gain is at least {LEAST_GAIN:g} on every "
        f"seed in {len(works)} of {len(whole)} complete shifted cells"
        + (f": {'; '.join(works)}." if works else ".")
    ]
    for one, view in rows:
        failures = anchor_failures(view)
        if failures:
            lines.append(f"The instrument failed in {one.partly}: {'; '.join(failures)}.")
        elif not _gains(view):
            lines.append(f"The anchors are in order in {one.partly}, but {_gain_words(view)}.")
    return lines + partial_words(rows)


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
    for one, view in [*complete(rows), *(row for row in rows if not row[0].complete)]:
        met = [m for m in view.unlearned if seeds_met(verdicts(view, m)) == len(view.seeds)]
        most = [
            m for m in view.unlearned
            if m not in met and 2 * seeds_met(verdicts(view, m)) > len(view.seeds)
        ]  # fmt: skip
        if "recipe" in met and one.complete:
            whole.append(view)
        failed = failure_words(view)
        so_far = "" if one.complete else " so far"
        words = _bar_words(view, met, most, so_far)
        lines.append(f"{one.partly}: {words}" + f" {failed}" * bool(failed))
    head = (
        f"The recipe meets the whole bar on every seed in {len(whole)} of {len(complete(rows))} "
        "complete cells."
    )
    unsure = sum(bool(failed_seeds(view)) for view in whole)
    if unsure:
        head += f" In {unsure} of these the instrument is not shown to work on every seed."
    return [head, *lines, *partial_words(rows)]


def _bar_words(view: View, met: list[str], most: list[str], so_far: str) -> str:
    text = f"met on every seed{so_far} by {_labels(view, met) or 'no method'}"
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
    rows = judged(selections(found))
    lines = [_names(pair[0]) + _verdict(standing(pair)) for pair in _pairs(rows)]
    return [*(lines or [NOTHING]), *partial_words(ran(found))]


def _pairs(rows: Sequence[Contrast]) -> list[list[Contrast]]:
    found = [[row for row in rows if (row.first, row.second) == pair] for pair in PAIRS]
    return [pair for pair in found if pair]


def _names(row: Contrast) -> str:
    return f"{_label(row, row.first)} against {_label(row, row.second)}: "


def _label(row: Contrast, method: str) -> str:
    assert row.found.view is not None  # it was compared
    return row.found.view.label(method)


def _verdict(kept: Sequence[Contrast]) -> str:
    signs, after = {row.better for row in kept}, "after Holm over its figures and cells"
    if not signs:
        return f"no difference stands {after}."
    if signs == {1}:
        return f"in every difference that stands {after} Top-K is better."
    if signs == {-1}:
        return f"in every difference that stands {after} Random-k is better."
    return (
        f"differences stand in both directions {after}: it depends on the cell and on the figure."
    )


def outputs(found: Sequence[Found]) -> list[str]:
    """Return whether unlearning brings a model's outputs nearer to the retrained model's."""
    rows = judged(against_original(found, JS))
    if not rows:
        return [NOTHING, *partial_words(ran(found))]
    kept, cells = holm(rows), _cells(rows)
    some = [one for one in cells if any(r.found is one and r.better > 0 for r in kept)]
    lines = [
        "Jensen-Shannon divergence to the retrained model on the forget set: lower than the "
        "untouched model's for at least one method (after Holm over all methods and cells) in "
        f"{len(some)} of {len(cells)} complete cells."
    ]
    none = [one.name for one in cells if one not in some]
    if none:
        lines.append(f"For no method in: {'; '.join(none)}.")
    for method in dict.fromkeys(row.first for row in rows):
        own = [row for row in rows if row.first == method]
        counts = [sum(row.better == sign for row in own if row in kept) for sign in (1, -1)]
        lines.append(
            f"{_label(own[0], method)}: lower in {counts[0]}, higher in {counts[1]}, not told "
            f"apart in {len(own) - sum(counts)} of {len(own)} cells."
        )
    return lines + partial_words(ran(found))


def _cells(rows: Sequence[Contrast]) -> list[Found]:
    """Return the cells of some differences, each once."""
    return list({id(row.found): row.found for row in rows}.values())


def honest(found: Sequence[Found]) -> list[str]:
    """Return which methods cannot be told from a second retraining by the gap, or are nearer."""
    rows = judged(against_again(found, GAP))
    if not rows:
        return [NOTHING, *partial_words(ran(found))]
    cells, lines = _cells(rows), []
    for one in cells:
        near = [_near_words(row) for row in rows if row.found is one and _near(row)]
        if near:
            lines.append(f"{one.name}: {'; '.join(near)}.")
    head = f"There is such a method in {len(lines)} of {len(cells)} complete cells."
    if lines:
        head += (
            " In brackets the smallest difference that the seeds would have shown: of a smaller "
            "one this says nothing."
        )
    return [head, *lines, *partial_words(ran(found))]


def _near(row: Contrast) -> bool:
    """Whether the first is not told apart from the second, or better.

    Equal differences on all seeds have no interval; a gap that is greater each time is not near.
    """
    return row.stat.mean <= 0.0 if row.stat.interval is None else row.better >= 0


def _near_words(row: Contrast) -> str:
    label, metric = _label(row, row.first), row.figure.metric
    return label if row.effect is None else f"{label} ({metric.quantity(row.effect)})"


def limits(found: Sequence[Found]) -> list[str]:
    """Return the criteria that no method meets, one by one."""
    rows = [(one, view) for one, view in ran(found) if one.shifted]
    if not rows:
        return [NOTHING]
    lines = []
    for one, view in complete(rows):
        each_method = [verdicts(view, method) for method in view.unlearned]
        for place, name in enumerate(CRITERIA):
            if not any(all(v.met[place] for v in each) for each in each_method):
                lines.append(f"{one.title}: no method has {name} on every seed.")
    if not lines:
        lines = [
            "Each criterion of the bar is met by some method, in every complete cell."
            if complete(rows)
            else "No complete cell yet."
        ]
    return lines + partial_words(rows)


def comparisons(found: Sequence[Found]) -> tuple[int, int, int]:
    """Return how many paired differences are counted: by selection, original, retraining."""
    families = selections(found), against_original(found, JS), against_again(found, GAP)
    first, second, third = (len(judged(rows)) for rows in families)
    return first, second, third
