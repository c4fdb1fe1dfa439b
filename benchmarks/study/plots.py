"""The pictures of the document."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.study.bar import DEGREE, TEST_LOSS, accuracy_gaps, seeds_met, verdicts
from benchmarks.study.contrast import DEGREE as DISTANCE
from benchmarks.study.sensitivity import KINDS, Setting, grid
from fastunlearn.report.canvas import PRINT, drawing, save_figure
from fastunlearn.report.definitions import metric_for
from fastunlearn.report.rows import limits
from fastunlearn.report.view import Stat, View, interval_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH = 9.6
_COLOURS = ("#d55e00", "#1f83c4", "#009e73", "#bf6495", "#a67c00", "#7a6fd0", "#4d565f")
_MARKERS = ("o", "^", "s", "v", "D", "P", "X", "p", "h", "*", "<", ">", "d")
_CLOSE = 0.05
_FREE = metric_for("unlearning_degree_normalised")  # without bounds


def pareto_points(view: View) -> dict[str, tuple[Stat, Stat]]:
    """Return degree* and test accuracy minus the retrained models' (points), by method."""
    points = {}
    for method in (*view.unlearned, *view.again):
        degree = view.stat(method, "unlearning_degree_normalised")
        gap = interval_of([100.0 * value for value in accuracy_gaps(view, method).values()])
        if degree is not None and gap is not None:
            points[method] = (degree, gap)
    return points


def not_dominated(view: View) -> list[str]:
    """Return the methods that no other beats in both |degree* - 1| and test accuracy.

    By the means over the seeds, of the distance itself: seeds at 0 and 2 must not cancel. Retrained
    models are left out.
    """
    found = {
        m: (_distance(view, m), -gap.mean)
        for m, (_, gap) in pareto_points(view).items()
        if m in view.unlearned
    }
    return [m for m, own in found.items() if not any(_beats(v, own) for v in found.values())]


def _distance(view: View, method: str) -> float:
    values = view.values(method, DISTANCE.key).values()
    return math.fsum(map(DISTANCE.value, values)) / len(values)


def _beats(other: tuple[float, float], own: tuple[float, float]) -> bool:
    return other != own and all(a <= b for a, b in zip(other, own, strict=True))


def draw_pareto(view: View, path: Path) -> None:
    """Write the picture of forgetting against test accuracy; a close-up beside it if needed."""
    from matplotlib.figure import Figure

    points, best = pareto_points(view), not_dominated(view)
    near = [m for m, (_, gap) in points.items() if abs(gap.mean) <= 100.0 * _CLOSE]
    panels = [("All methods", list(points))]
    if 0 < len(near) < len(points):
        panels.append((f"Within {100 * _CLOSE:g} points of the retrained model", near))
    with drawing(PRINT):
        figure = Figure(figsize=(_WIDTH, 5.2), layout="constrained")
        for axes, (title, methods) in zip(
            figure.subplots(1, len(panels), squeeze=False).flat, panels, strict=True
        ):
            axes.set_title(title)
            _pareto_panel(axes, {m: points[m] for m in methods}, list(points), best)
        _pareto_legend(figure, view, list(points), best)
        save_figure(figure, path)


def _style(place: int) -> dict[str, Any]:
    return {"color": _COLOURS[place % len(_COLOURS)], "marker": _MARKERS[place % len(_MARKERS)]}


def _pareto_panel(
    axes: Axes, points: dict[str, tuple[Stat, Stat]], order: list[str], best: list[str]
) -> None:
    axes.axvspan(*DEGREE, color=PRINT.grid, alpha=0.5, linewidth=0)
    axes.axhline(-100.0 * TEST_LOSS, color=PRINT.muted, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.plot([1.0], [0.0], "+", color=PRINT.ink, markersize=13, markeredgewidth=1.4)
    for method, (x, y) in points.items():
        style = _style(order.index(method))
        x_reach = (
            None if x.interval is None else [[x.mean - x.interval[0]], [x.interval[1] - x.mean]]
        )
        y_reach = (
            None if y.interval is None else [[y.mean - y.interval[0]], [y.interval[1] - y.mean]]
        )
        edge = PRINT.ink if method in best else PRINT.paper
        axes.errorbar(
            [x.mean], [y.mean], y_reach, x_reach, markersize=9, markeredgecolor=edge,
            markeredgewidth=1.8 if method in best else 0.8, elinewidth=1.1, zorder=3, **style,
        )  # fmt: skip
    xs, ys = zip(*points.values(), strict=True)
    axes.set_xlim(*limits([x.mean for x in xs], xs, _FREE, [0.0, *DEGREE]))
    axes.set_ylim(*limits([y.mean for y in ys], ys, _FREE, [-100.0 * TEST_LOSS, 0.0]))
    axes.set_xlabel("degree* (1 = forgets as much as retraining)")
    axes.set_ylabel("test accuracy minus retrained, points")
    axes.grid(True)


def _pareto_legend(figure: Figure, view: View, order: list[str], best: list[str]) -> None:
    from matplotlib.lines import Line2D

    handles = []
    for place, method in enumerate(order):
        edge = PRINT.ink if method in best else PRINT.paper
        wide = 1.8 if method in best else 0.8
        handles.append(
            Line2D([], [], linestyle="", markersize=8, label=view.label(method),
                   markeredgecolor=edge, markeredgewidth=wide, **_style(place))
        )  # fmt: skip
    handles.append(
        Line2D([], [], linestyle="", marker="+", color=PRINT.ink, markersize=11, label="Retrained")
    )
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)


def draw_heat_map(view: View, path: Path) -> None:
    """Write degree* and the gap in test accuracy over K and noise scale, for both selections."""
    from matplotlib.figure import Figure

    settings, points = grid(view), pareto_points(view)
    kinds = [kind for kind in KINDS if any(s.kind == kind for s in settings)]
    with drawing(PRINT):
        figure = Figure(figsize=(_WIDTH, 3.2 * len(kinds)), layout="constrained")
        panels = figure.subplots(len(kinds), 2, squeeze=False)
        for row, kind in zip(panels, kinds, strict=True):
            own = [s for s in settings if s.kind == kind and s.method in points]
            met = [s for s in own if seeds_met(verdicts(view, s.method)) == len(view.seeds)]
            degrees = {s: points[s.method][0].mean for s in own}
            gaps = {s: points[s.method][1].mean for s in own}
            # centred at the aim: white is as retraining does
            _heat_panel(row[0], degrees, f"{KINDS[kind]}: degree*", 1.0, 1.0, "{:.2f}", met)
            title = f"{KINDS[kind]}: test accuracy minus retrained, points"
            _heat_panel(row[1], gaps, title, 0.0, 5.0, "{:+.1f}", met)
        save_figure(figure, path)


def _heat_panel(
    axes: Axes,
    values: dict[Setting, float],
    title: str,
    centre: float,
    reach: float,
    form: str,
    met: list[Setting],
) -> None:
    from matplotlib.patches import Rectangle

    ks, scales = (sorted({getattr(s, n) for s in values}) for n in ("k", "scale"))
    image = [[math.nan] * len(scales) for _ in ks]
    for setting, value in values.items():
        i, j = ks.index(setting.k), scales.index(setting.scale)
        image[i][j] = value
        dark = abs(value - centre) > 0.7 * reach
        colour = PRINT.paper if dark else PRINT.ink
        axes.text(
            j,
            i,
            form.format(round(value, 2) + 0.0),
            ha="center",
            va="center",
            fontsize=8.5,
            color=colour,
        )
        if setting in met:
            box = Rectangle((j - 0.47, i - 0.46), 0.94, 0.92, fill=False, linewidth=2.2)
            box.set_edgecolor(PRINT.ink)
            axes.add_patch(box)
    axes.imshow(image, cmap="RdBu", vmin=centre - reach, vmax=centre + reach, aspect="auto")
    axes.set_title(title)
    axes.set_xticks(range(len(scales)), [f"{scale:g}" for scale in scales])
    axes.set_yticks(range(len(ks)), [f"{100 * k:g} %" for k in ks])
    axes.set_xlabel("noise scale, of the tensor's root mean square")
    axes.set_ylabel("K")
    axes.tick_params(length=0)


def draw_curve(rows: Sequence[dict[str, Any]], least: float, path: Path) -> None:
    """Write the instrument's gain against the size of the shift, a dot for each seed."""
    from matplotlib.figure import Figure

    kept = [row for row in rows if row["gain"] is not None]
    with drawing(PRINT):
        figure = Figure(figsize=(_WIDTH, 3.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.axhline(least, color=PRINT.muted, linewidth=0.9, linestyle=(0, (4, 3)))
        left.plot([r["epsilon"] for r in kept], [r["gain"] for r in kept], "o", color=_COLOURS[0],
                  alpha=0.7)  # fmt: skip
        left.set_ylabel("gain over plain accuracy")
        for place, (key, label) in enumerate((("spread", "shifted"), ("plain_spread", "plain"))):
            right.plot([r["epsilon"] for r in rows], [100.0 * r[key] for r in rows], alpha=0.7,
                       linestyle="", label=label, **_style(place))  # fmt: skip
        right.set_ylabel("original minus retrained, points")
        right.legend(frameon=False)
        for axes in (left, right):
            axes.set_xlabel("greatest shift of a pixel (epsilon)")
            axes.set_ylim(bottom=0.0)
            axes.grid(True)
        save_figure(figure, path)
