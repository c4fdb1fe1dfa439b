"""The plots of a report by name, with their captions and text alternatives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastunlearn.report.canvas import (
    NARROW_INCHES,
    PAGE,
    PRINT,
    WIDE_INCHES,
    Board,
    drawing,
    save_figure,
    short,
    to_svg,
)
from fastunlearn.report.definitions import metric_for
from fastunlearn.report.degree import DEGREES, degree_rows, draw_degree
from fastunlearn.report.reading import show
from fastunlearn.report.rows import (
    ACCURACIES,
    draw_accuracy,
    draw_membership,
    draw_time,
    off_scale,
    timed,
)
from fastunlearn.report.tradeoff import X, Y, draw_tradeoff, near_methods, placed
from fastunlearn.report.view import View
from fastunlearn.report.where import draw_selection, overall_share, shares

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Plot:
    """One plot: title, drawing, caption and text alternative."""

    name: str
    title: str
    draw: Callable[[Board], Figure]
    caption: Callable[[View], str]
    alternative: Callable[[View], str]
    available: Callable[[View], bool]


def _spread(view: View) -> str:
    if len(view.seeds) < 2:
        return "One seed, so there are no interval bars."
    return (
        "Bars are 95 % intervals of the mean, thin strokes are single seeds; a bar that leaves "
        "the frame is cut."
    )


def _row_words(view: View, methods: list[str], key: str) -> str:
    metric = metric_for(key)
    rows = (f"{view.label(m)} {show(metric, view.stat(m, key))}" for m in methods)
    return f"{metric.title}: {', '.join(rows)}."


def _far_words(view: View, methods: list[str], keys: tuple[str, ...]) -> str:
    far = {m: None for key in keys for m in off_scale(view, methods, key)}
    return f"Off the scale, at the arrow: {', '.join(view.label(m) for m in far)}. " if far else ""


def _degree_caption(view: View) -> str:
    return (
        "Above the line the anchors, of which it is known how much they have forgotten: look for a "
        "staircase from the original model at 0 to the retrained one at the dashed line, which is "
        "the mean of all retrained models. Below it "
        "the methods: good is on the dashed line, farther left less is forgotten, farther right "
        f"more. {_far_words(view, degree_rows(view), DEGREES)}{_spread(view)}"
    )


def _accuracy_caption(view: View) -> str:
    arrow = _far_words(view, list(view.methods), ACCURACIES)
    return (
        "Look for methods that lie on the dashed line, the mean of the retrained model, in all "
        "three panels. On the forget data, left of the line means more forgotten than by "
        "retraining. Each panel has a scale of its own, which does not start at 0; the printed "
        f"number is the mean. {arrow}{_spread(view)}"
    )


def _tradeoff_caption(view: View) -> str:
    text = (
        "Good is the place where the dashed lines cross: the retrained model. Farther left, less "
        "is forgotten than by retraining; farther right, more. Lower, more accuracy on the "
        "kept data is lost. Doing nothing lies at 0 and 1: the original model."
    )
    if len(near_methods(view)) < len(placed(view)):
        text += " The close-up leaves out methods that lie far off."
    missing = [view.label(m) for m in view.methods if m not in placed(view)]
    if missing:
        text += f" Not drawn, because a figure is undefined: {', '.join(missing)}."
    if len(view.seeds) < 2:
        return f"{text} {_spread(view)}"
    return f"{text} Small marks are single seeds, large ones means with 95 % intervals."


def _time_caption(view: View) -> str:
    return (
        "Time of each method divided by the time of retraining: left of the dashed line is faster "
        f"than retraining. Training the original model is not counted. {_spread(view)}"
    )


def _selection_caption(view: View) -> str:
    return (
        "One row per tensor, in network order. The dashed line is an even share "
        f"({overall_share(view):.3g} % of every tensor). A mark to its right means that the method "
        "draws more from that tensor than its size explains; Random-k should stay near the line, "
        "except in tensors so small that one parameter is a large share. Means over seeds. Where "
        "the axis has a log scale, its part next to 0 is linear."
    )


def _membership_caption(view: View) -> str:
    return (
        "Look for methods at the dashed line, the mean of the retrained model, which never saw the "
        "data to forget. To the right of it, the attack tells this data from unseen data better "
        "than there. The dotted line at 0.5 is chance. Slightly below 0.5 is chance as well: where "
        "there is nothing to find, cross-validation makes the figure lean downwards. "
        f"{_spread(view)}"
    )


def _selection_words(view: View) -> str:
    parts = []
    for method, rows in shares(view).items():
        first = sorted(rows.items(), key=lambda item: -item[1][1])[:3]
        named = ", ".join(f"{short(name, 40)} {share:.3g} %" for name, (_, share) in first)
        parts.append(f"{view.label(method)} draws the largest shares from {named}")
    return "; ".join(parts) + "."


AUDIT_PLOT = "degree"
PLOTS: dict[str, Plot] = {
    plot.name: plot
    for plot in (
        Plot(
            AUDIT_PLOT,
            "Unlearning degree",
            draw_degree,
            _degree_caption,
            lambda view: " ".join(_row_words(view, degree_rows(view), key) for key in DEGREES),
            lambda view: bool(view.audits),
        ),
        Plot(
            "accuracy",
            "Accuracy on forget, retain and test data",
            draw_accuracy,
            _accuracy_caption,
            lambda view: " ".join(_row_words(view, list(view.methods), k) for k in ACCURACIES),
            lambda view: bool(view.methods),
        ),
        Plot(
            "tradeoff",
            "Forgetting against retention",
            draw_tradeoff,
            _tradeoff_caption,
            lambda view: " ".join(_row_words(view, placed(view), k.key) for k in (X, Y)),
            lambda view: bool(placed(view)),
        ),
        Plot(
            "time",
            "Time against retraining",
            draw_time,
            _time_caption,
            lambda view: _row_words(view, timed(view), "run_time_ratio"),
            lambda view: bool(timed(view)),
        ),
        Plot(
            "selection",
            "Where in the network the selected parameters lie",
            draw_selection,
            _selection_caption,
            _selection_words,
            lambda view: bool(shares(view)),
        ),
        Plot(
            "membership",
            "Membership inference",
            draw_membership,
            _membership_caption,
            lambda view: _row_words(view, list(view.methods), "mia_auc"),
            lambda view: bool(view.methods),
        ),
    )
}


def plot_svg(view: View, plot: Plot, narrow: bool) -> str:
    """Return a plot as an SVG element in page colours."""
    with drawing(PAGE):
        board = Board(view, NARROW_INCHES if narrow else WIDE_INCHES, PAGE)
        return to_svg(plot.draw(board), f"{plot.name}-{'n' if narrow else 'w'}")


def alternative_text(view: View, plot: Plot) -> str:
    """Return what the plot shows, in words and numbers."""
    return f"{plot.title}, plot. {plot.alternative(view)}"


def save_plot(results: Mapping[str, Any], name: str, path: str | Path) -> Path:
    """Write one plot of a report to a file, on a white ground.

    Args:
        results: Dict of schema ``fastunlearn.results/1``.
        name: One of ``PLOTS``: degree (audits only), accuracy, tradeoff, time, selection,
            membership.
        path: A ``.png`` or ``.svg`` file. Its folder must exist.

    Returns:
        The path written.

    Raises:
        ValueError: The schema, the name or the suffix is another one, or the results have nothing
            to draw in this plot.
        ImportError: matplotlib is missing.

    Example:
        >>> import json
        >>> results = json.load(open("results.json"))  # doctest: +SKIP
        >>> save_plot(results, "tradeoff", "docs/tradeoff.png")  # doctest: +SKIP
    """
    path = Path(path)
    if name not in PLOTS:
        raise ValueError(f"save_plot: name must be one of {', '.join(PLOTS)}, got {name!r}")
    if path.suffix not in (".png", ".svg"):
        raise ValueError(f"save_plot: path must be a .png or .svg file, got {path.name!r}")
    view, plot = View(results), PLOTS[name]
    if not plot.available(view):
        raise ValueError(f"save_plot: results must hold figures for {name!r}, got none")
    with drawing(PRINT):
        save_figure(plot.draw(Board(view, WIDE_INCHES, PRINT)), path)
    return path
