"""The plot of forgetting against retention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastunlearn.report.canvas import Board, short
from fastunlearn.report.definitions import metric_for
from fastunlearn.report.rows import limits
from fastunlearn.report.view import RETRAIN, Stat, View

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

X, Y = metric_for("forgetting_rate"), metric_for("memory_retention_rate")
_FAR = 4.0


def placed(view: View) -> list[str]:
    """Return the methods whose two figures are both defined."""
    return [m for m in view.methods if view.stat(m, X.key) and view.stat(m, Y.key)]


def near_methods(view: View) -> list[str]:
    """Return the methods of the close-up; all of them where none lies far off.

    Far means more than four times as far from the retrained model as the middle method: one
    method that collapses would otherwise press all others into a corner.
    """
    methods = placed(view)
    centre = _mean(view, RETRAIN if RETRAIN in methods else methods[0]) if methods else (0.0, 0.0)
    honest = (RETRAIN, *view.again)
    distances = {m: math.dist(_mean(view, m), centre) for m in methods if m not in honest}
    if not distances:
        return methods
    middle = sorted(distances.values())[len(distances) // 2]
    return [m for m in methods if distances.get(m, 0.0) <= _FAR * middle]


def _mean(view: View, method: str) -> tuple[float, float]:
    x, y = view.stat(method, X.key), view.stat(method, Y.key)
    assert x is not None and y is not None  # `placed` keeps only such methods
    return x.mean, y.mean


def draw_tradeoff(board: Board) -> Figure:
    """Draw every seed and the means, forgetting to the right and retention upwards."""
    everything, near = placed(board.view), near_methods(board.view)
    panels = [("All methods", everything)]
    if len(near) < len(everything):
        panels.append(("Close-up around the retrained model", near))
    count = len(panels)
    rows, columns = (count, 1) if board.narrow else (1, count)
    figure = board.figure(3.5 * rows + (1.0 if board.narrow else 0.55))
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, (title, methods) in zip(grid.flat, panels, strict=True):
        _panel(board, axes, methods, title if count > 1 else "")
    if everything:
        _legend(board, figure, everything)
    return figure


def _panel(board: Board, axes: Axes, methods: Sequence[str], title: str) -> None:
    axes.set_title(title)
    axes.set_xlabel("Forgetting rate")
    axes.set_ylabel("Memory retention rate")
    board.quiet(axes, "both")
    for method in methods:
        _draw_method(board, axes, method)
    if methods:
        axes.set_xlim(*_span(board.view, methods, X.key))
        axes.set_ylim(*_span(board.view, methods, Y.key))
    axes.locator_params(nbins=6)
    if RETRAIN in methods:
        x, y = _mean(board.view, RETRAIN)
        axes.axvline(x, color=board.paint.ink, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0.9)
        axes.axhline(y, color=board.paint.ink, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0.9)


def _span(view: View, methods: Sequence[str], key: str) -> tuple[float, float]:
    points = [v for m in methods for v in view.values(m, key).values()]
    stats = [stat for m in methods if (stat := view.stat(m, key))]
    return limits([*points, *(s.mean for s in stats)], stats, metric_for(key))


def _draw_method(board: Board, axes: Axes, method: str) -> None:
    colour, marker = board.style(method)
    xs, ys = board.view.values(method, X.key), board.view.values(method, Y.key)
    seeds = [seed for seed in xs if seed in ys]
    axes.plot(
        [xs[s] for s in seeds],
        [ys[s] for s in seeds],
        marker,
        color=colour,
        markersize=3.6,
        alpha=0.55,
        markeredgewidth=0,
    )
    x, y = board.view.stat(method, X.key), board.view.stat(method, Y.key)
    assert x is not None and y is not None  # `placed` keeps only such methods
    _bars(axes, x, y, colour)
    axes.plot(
        [x.mean],
        [y.mean],
        marker,
        color=colour,
        markersize=9,
        markeredgecolor=board.paint.paper,
        markeredgewidth=0.9,
        zorder=3,
    )


def _bars(axes: Axes, x: Stat, y: Stat, colour: str) -> None:
    if x.interval is not None:
        axes.plot(x.interval, [y.mean, y.mean], color=colour, linewidth=1.6)
    if y.interval is not None:
        axes.plot([x.mean, x.mean], y.interval, color=colour, linewidth=1.6)


def _legend(board: Board, figure: Figure, methods: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    handles = []
    for method in methods:
        colour, marker = board.style(method)
        label = short(board.view.label(method))
        handles.append(
            Line2D([], [], linestyle="", marker=marker, color=colour, label=label, markersize=7)
        )
    columns = 2 if board.narrow else min(len(handles), 6)
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        handletextpad=0.2,
        columnspacing=1.4,
    )
