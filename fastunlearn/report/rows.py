"""Plots with one row per method: accuracy, membership inference, time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from fastunlearn.report.canvas import Board, short
from fastunlearn.report.definitions import Metric, metric_for
from fastunlearn.report.view import ORIGINAL, RETRAIN, Stat, View

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACCURACIES = ("forget_accuracy", "retain_accuracy", "test_accuracy")
_LOG_SPREAD = 20.0
_ROW_INCHES = 0.3


def limits(
    points: Sequence[float], stats: Sequence[Stat], metric: Metric, anchors: Sequence[float] = ()
) -> tuple[float, float]:
    """Return axis limits in stored units.

    They hold all points and anchors, and intervals as far as these reach no farther than the
    points spread: with two seeds an interval can be twelve times as wide as the data.
    """
    low, high = min([*points, *anchors]), max([*points, *anchors])
    reach = max(high - low, 0.02 * max(abs(low), abs(high), 1e-9))
    for stat in stats:
        if stat.interval is not None:
            low = min(low, max(stat.interval[0], low - reach))
            high = max(high, min(stat.interval[1], high + reach))
    floor, ceiling = metric.bounds
    low = low if floor is None else max(low, floor)
    high = high if ceiling is None else min(high, ceiling)
    pad = 0.07 * max(high - low, reach)
    return low - pad, high + pad


def off_scale(view: View, methods: Sequence[str], key: str) -> list[str]:
    """Return at most two methods so far off that the others could not be told apart beside them.

    The farthest from the middle mean goes while the means without it spread over less than a
    quarter of their spread with it.
    """
    means = {m: stat.mean for m in methods if (stat := view.stat(m, key))}
    dropped: list[str] = []
    while len(means) > 3 and len(dropped) < 2:
        centre = sorted(means.values())[len(means) // 2]
        far = max(means, key=lambda m: abs(means[m] - centre))
        rest = [value for m, value in means.items() if m != far]
        if 4 * (max(rest) - min(rest)) >= max(means.values()) - min(means.values()):
            break
        dropped.append(far)
        del means[far]
    return dropped


def _points(view: View, methods: Sequence[str], key: str) -> list[float]:
    found = [value for m in methods for value in view.values(m, key).values()]
    return found + [stat.mean for m in methods if (stat := view.stat(m, key))]


def _draw_rows(board: Board, axes: Axes, methods: Sequence[str], metric: Metric) -> None:
    """Draw seeds, interval, mean and the printed mean of each method, first method on top."""
    for row, method in enumerate(methods):
        stat = board.view.stat(method, metric.key)
        if stat is None:
            _write(axes, 0.02, row, "undefined", board.paint.muted)
            continue
        _write(axes, 1.015, row, metric.number(stat.mean), board.paint.ink)
        low, high = axes.get_xlim()
        if low <= stat.mean * metric.scale <= high:
            _draw_row(board, axes, row, method, metric)
        else:
            side = (0.015, "<") if stat.mean * metric.scale < low else (0.985, ">")
            colour = board.style(method)[0]
            place = axes.get_yaxis_transform()
            axes.plot([side[0]], [row], side[1], color=colour, markersize=6, transform=place)


def _draw_row(board: Board, axes: Axes, row: int, method: str, metric: Metric) -> None:
    colour, marker = board.style(method)
    stat = board.view.stat(method, metric.key)
    assert stat is not None  # `_draw_rows` draws only defined figures
    values = [v * metric.scale for v in board.view.values(method, metric.key).values()]
    if stat.interval is not None:
        ends = [end * metric.scale for end in stat.interval]
        axes.plot(ends, [row, row], color=colour, linewidth=2.2, solid_capstyle="butt")
        axes.plot(values, [row + 0.3] * len(values), "|", color=colour, markersize=4)
    axes.plot(
        [stat.mean * metric.scale],
        [row],
        marker,
        color=colour,
        markersize=7,
        markeredgecolor=board.paint.paper,
        markeredgewidth=0.8,
    )


def _write(axes: Axes, x: float, row: int, text: str, colour: str) -> None:
    axes.annotate(
        text,
        (x, row),
        xycoords=axes.get_yaxis_transform(),
        va="center",
        fontsize=8.5,
        color=colour,
        annotation_clip=False,
    )


def _frame_rows(board: Board, axes: Axes, methods: Sequence[str], labels: bool) -> None:
    axes.set_ylim(len(methods) - 0.45, -0.55)
    axes.set_yticks(range(len(methods)))
    axes.set_yticklabels([short(board.view.label(m)) for m in methods] if labels else [])
    axes.spines["left"].set_visible(False)
    board.quiet(axes)


def _set_limits(axes: Axes, span: tuple[float, float], metric: Metric) -> None:
    axes.set_xlim(span[0] * metric.scale, span[1] * metric.scale)
    axes.locator_params(axis="x", nbins=5)


def _mark(axes: Axes, value: float, colour: str) -> None:
    axes.axvline(value, color=colour, linewidth=1.0, linestyle=(0, (4, 3)), zorder=0.9)


def draw_accuracy(board: Board) -> Figure:
    """Draw accuracy on forget, retain and test data per method, with the retrained mean marked."""
    panels = [(f"{metric_for(key).title}, %", metric_for(key)) for key in ACCURACIES]
    return draw_panels(board, board.view.methods, panels)


def draw_panels(
    board: Board,
    methods: Sequence[str],
    panels: Sequence[tuple[str, Metric]],
    *,
    first: int = 0,
    aims: Mapping[str, float] = MappingProxyType({}),
) -> Figure:
    """Draw a panel for each figure and a row for each method, with the aim marked.

    Args:
        board: What is drawn from and on.
        methods: The rows, from the top.
        panels: Titles and figures, side by side, or below each other on a narrow board.
        first: Rows above a thin line that sets them apart; 0 draws none.
        aims: By figure, what is marked; the mean of the retrained model where nothing is given.
    """
    view, count = board.view, len(panels)
    height = _ROW_INCHES * len(methods) + 0.75
    figure = board.figure((height + 0.15) * count if board.narrow else height)
    grid = figure.subplots(
        count if board.narrow else 1, 1 if board.narrow else count, squeeze=False
    )
    for index, (axes, (title, metric)) in enumerate(zip(grid.flat, panels, strict=True)):
        shown = [m for m in methods if m not in off_scale(view, methods, metric.key)]
        points = _points(view, shown, metric.key)
        stats = [stat for m in shown if (stat := view.stat(m, metric.key))]
        axes.set_title(title)
        _frame_rows(board, axes, methods, labels=board.narrow or index == 0)
        if points:
            _set_limits(axes, limits(points, stats, metric), metric)
        reference = view.stat(RETRAIN, metric.key)
        aim = aims.get(metric.key, None if reference is None else reference.mean)
        if aim is not None:
            _mark(axes, aim * metric.scale, board.paint.ink)
        if first:
            axes.axhline(first - 0.5, color=board.paint.muted, linewidth=0.8)
        _draw_rows(board, axes, methods, metric)
    return figure


def draw_membership(board: Board) -> Figure:
    """Draw the attack's AUC per method, with the retrained mean and chance marked."""
    view, metric = board.view, metric_for("mia_auc")
    figure = board.figure(_ROW_INCHES * len(view.methods) + 0.75)
    axes = figure.subplots()
    points = _points(view, view.methods, metric.key)
    stats = [stat for m in view.methods if (stat := view.stat(m, metric.key))]
    _frame_rows(board, axes, view.methods, labels=True)
    if points:
        _set_limits(axes, limits(points, stats, metric, anchors=(0.5,)), metric)
    words = "" if board.narrow else ", dashed: retrained, dotted: chance"
    axes.set_title("Membership inference AUC" + words)
    axes.axvline(0.5, color=board.paint.muted, linewidth=1.0, linestyle=":", zorder=0.9)
    reference = view.stat(RETRAIN, metric.key)
    if reference is not None:
        _mark(axes, reference.mean, board.paint.ink)
    _draw_rows(board, axes, view.methods, metric)
    return figure


def timed(view: View) -> list[str]:
    """Return the methods of the time plot: all but the original, which unlearns nothing."""
    return [m for m in view.methods if m != ORIGINAL]


def draw_time(board: Board) -> Figure:
    """Draw the run-time ratio per method, with retraining marked at 1."""
    view, metric = board.view, metric_for("run_time_ratio")
    methods = timed(view)
    figure = board.figure(_ROW_INCHES * len(methods) + 0.75)
    axes = figure.subplots()
    points = [p for p in _points(view, methods, metric.key) if p > 0]
    _frame_rows(board, axes, methods, labels=True)
    if points and max([*points, 1.0]) / min(points) > _LOG_SPREAD:
        axes.set_xscale("log")
        axes.set_xlim(min(points) / 1.4, max([*points, 1.0]) * 1.4)
        axes.set_xticks(log_ticks(*axes.get_xlim()))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        title = "Run-time ratio, log scale"
    else:
        stats = [stat for m in methods if (stat := view.stat(m, metric.key))]
        span = limits([*points, 0.0], stats, metric, anchors=(1.0,))
        _set_limits(axes, (0.0, span[1]), metric)
        title = "Run-time ratio"
    axes.set_title(title)
    _mark(axes, 1.0, board.paint.ink)
    _draw_rows(board, axes, methods, metric)
    return figure


def log_ticks(low: float, high: float) -> list[float]:
    """Return round numbers between ``low`` and ``high`` for a logarithmic axis."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(powers) <= 4 else (1,)
    return [t for p in powers for step in steps if low <= (t := step * 10.0**p) <= high]
