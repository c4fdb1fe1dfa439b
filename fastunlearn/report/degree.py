"""The plot of the unlearning degree: the anchors, and the methods below them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastunlearn.report.audit import anchor_degrees
from fastunlearn.report.canvas import Board
from fastunlearn.report.definitions import metric_for
from fastunlearn.report.rows import draw_panels
from fastunlearn.report.view import RETRAIN, View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEGREES = ("unlearning_degree", "unlearning_degree_normalised")


def degree_rows(view: View) -> list[str]:
    """Return the anchors in order, then all other models."""
    return [*view.anchors, *(m for m in view.methods if m not in view.anchors)]


def draw_degree(board: Board) -> Figure:
    """Draw the degree as it is and relative to retraining."""
    titles = ("Degree, points", "Degree, normalised")
    panels = [(title, metric_for(key)) for title, key in zip(titles, DEGREES, strict=True)]
    aims = {"unlearning_degree_normalised": 1.0}
    if retrained := anchor_degrees(board.view).get(RETRAIN):
        aims["unlearning_degree"] = retrained.mean
    rows, first = degree_rows(board.view), len(board.view.anchors)
    return draw_panels(board, rows, panels, first=first, aims=aims)
