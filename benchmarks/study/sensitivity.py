"""Cells that try a grid of settings: rows named `{top_k|random_k}_{k}_{rel_std}`."""

from __future__ import annotations

import re
import statistics
from dataclasses import dataclass

from benchmarks.study.bar import CRITERIA, missed, seeds_met, verdicts
from benchmarks.study.contrast import DEGREE, Contrast, contrast, holm
from benchmarks.study.load import Found
from fastunlearn.report.view import View

KINDS = {"top_k": "Top-K", "random_k": "Random-k"}
_NAME = re.compile(rf"({'|'.join(KINDS)})_([0-9.]+)_([0-9.]+)")


@dataclass(frozen=True)
class Setting:
    """A row of the grid: which selection, how many, how much noise relative to the weights."""

    method: str
    kind: str
    k: float
    scale: float

    @property
    def words(self) -> str:
        """The setting as a reader sees it."""
        return f"{KINDS[self.kind]} K = {100 * self.k:g} %, scale {self.scale:g}"


def grid(view: View) -> list[Setting]:
    """Return the settings of a cell."""
    matches = [(m, _NAME.fullmatch(m)) for m in view.methods]
    return [Setting(m, f[1], float(f[2]), float(f[3])) for m, f in matches if f is not None]


def selections(found: Found) -> list[str]:
    """Return at which K Top-K or Random-k comes nearer to degree* = 1, at the same scales."""
    view = found.view
    assert view is not None  # the grid was run
    method = {(s.kind, s.k, s.scale): s.method for s in grid(view)}
    rows: dict[float, list[Contrast]] = {}
    for kind, k, scale in method:
        other = method.get(("random_k", k, scale))
        if kind != "top_k" or other is None:
            continue
        row = contrast(found, view, method["top_k", k, scale], other, DEGREE)
        if row is not None:
            rows.setdefault(k, []).append(row)
    kept = holm([row for own in rows.values() for row in own])
    lines = []
    for k, own in rows.items():
        better = [sum(row.better == sign for row in own if row in kept) for sign in (1, -1)]
        mean = statistics.fmean(row.stat.mean for row in own)
        lines.append(
            f"- K = {100 * k:g} %: Top-K nearer at {better[0]}, Random-k at {better[1]}, not told "
            f"apart at {len(own) - sum(better)} of {len(own)} scales; Top-K's distance less "
            f"Random-k's is {mean:+.2f} in the mean."
        )
    return lines


def sentence(view: View) -> str:
    """Return which settings meet the bar; of how many seeds, where not all are run."""
    if view.planned and len(view.seeds) < len(view.planned):
        lead = f"Partial ({len(view.seeds)} of {len(view.planned)} seeds): "
        return lead + _sentence(view)
    return _sentence(view)


def _sentence(view: View) -> str:
    settings = grid(view)
    found = {s: verdicts(view, s.method) for s in settings}
    whole = [s.words for s in settings if seeds_met(found[s]) == len(view.seeds)]
    if whole:
        return f"The bar is met on every seed by: {'; '.join(whole)}."
    some = [s for s in settings if seeds_met(found[s])]
    if some:
        parts = (f"{s.words} ({seeds_met(found[s])} of {len(view.seeds)})" for s in some)
        return f"No setting meets the bar on every seed; on some seeds: {'; '.join(parts)}."
    best = min(settings, key=lambda s: missed(found[s]), default=None)
    if best is None:
        return "The cell has no such rows."
    return (
        f"No setting meets the bar on any seed; the fewest criteria missed are those of "
        f"{best.words}: {missed(found[best])} of {len(CRITERIA) * len(view.seeds)}."
    )
