"""Cells that try a grid of settings: rows named `{top_k|random_k}_{k}_{rel_std}`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from benchmarks.study.bar import CRITERIA, missed, seeds_met, verdicts
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
