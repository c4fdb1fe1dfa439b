"""The plot of where in the network the selected parameters lie."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastunlearn.report.canvas import Board, short
from fastunlearn.report.rows import log_ticks
from fastunlearn.report.view import View

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_ROWS = 64
_LOG_SPREAD = 12.0


def grouped(rows: list[dict[str, Any]], limit: int = MAX_ROWS) -> list[dict[str, Any]]:
    """Merge tensors by the modules they belong to until at most ``limit`` rows are left.

    The last part of the longest dotted names goes first. Where names have no parts left to drop,
    the largest tensors stay and the others become one row.
    """
    names = {row["name"]: row["name"] for row in rows}
    while len(set(names.values())) > limit:
        depth = max(name.count(".") for name in names.values())
        if depth == 0:
            break
        names = {
            full: name.rsplit(".", 1)[0] if name.count(".") == depth else name
            for full, name in names.items()
        }
    merged: dict[str, dict[str, Any]] = {}
    for row in rows:
        name = names[row["name"]]
        entry = merged.setdefault(name, {"name": name, "numel": 0, "selected": 0.0})
        entry["numel"] += row["numel"]
        entry["selected"] += row["selected"]
    return _largest(list(merged.values()), limit)


def _largest(rows: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    if len(rows) <= limit:
        return rows
    kept = {row["name"] for row in sorted(rows, key=lambda r: -r["numel"])[: limit - 1]}
    rest = [row for row in rows if row["name"] not in kept]
    other = {
        "name": f"{len(rest)} smaller tensors",
        "numel": sum(row["numel"] for row in rest),
        "selected": sum(row["selected"] for row in rest),
    }
    return [row for row in rows if row["name"] in kept] + [other]


def shares(view: View) -> dict[str, dict[str, tuple[int, float]]]:
    """Return per method and row: size, and percent of it that is selected (mean over seeds)."""
    return {
        method: {
            row["name"]: (row["numel"], 100.0 * row["selected"] / row["numel"])
            for row in grouped(rows)
            if row["numel"]
        }
        for method, rows in view.selections().items()
    }


def overall_share(view: View) -> float:
    """Return percent of all parameters that the first selecting method selects."""
    rows = next(iter(view.selections().values()), [])
    total = sum(row["numel"] for row in rows)
    return 100.0 * sum(row["selected"] for row in rows) / total if total else 0.0


def count_words(count: int) -> str:
    """Return a count as a short text: 144, 7.8 k, 1.2 M."""
    for size, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {sign}"
    return str(count)


def draw_selection(board: Board) -> Figure:
    """Draw one row per tensor in network order: percent selected, and its size beside it."""
    table = shares(board.view)
    names = list(dict.fromkeys(name for rows in table.values() for name in rows))
    row_inches = 0.34 if len(names) <= 12 else 0.19
    figure = board.figure(max(1, len(names)) * row_inches + 1.25)
    ratios = {"width_ratios": [3.4, 1.0]}
    if board.narrow:
        main, side = figure.subplots(), None
    else:
        main, side = figure.subplots(1, 2, sharey=True, gridspec_kw=ratios)
    sizes = {name: rows[name][0] for rows in table.values() for name in rows}
    _rows(board, main, names, sizes, len(names) > 12)
    _shares(board, main, table, names)
    if side is not None:
        _sizes(board, side, names, sizes)
    return figure


def _rows(board: Board, axes: Axes, names: list[str], sizes: dict[str, int], many: bool) -> None:
    length = 22 if board.narrow else 34
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_yticks(range(len(names)))
    labels = [
        f"{short(name, length)} ({count_words(sizes[name])})" if board.narrow else short(name, 34)
        for name in names
    ]
    axes.set_yticklabels(labels, fontsize=7.5 if many else 9.0)
    axes.spines["left"].set_visible(False)
    board.quiet(axes)


def _shares(
    board: Board, axes: Axes, table: dict[str, dict[str, tuple[int, float]]], names: list[str]
) -> None:
    even = overall_share(board.view)
    top = max((share for rows in table.values() for _, share in rows.values()), default=0.0)
    logarithmic = even > 0 and top / even > _LOG_SPREAD
    if logarithmic:
        axes.set_xscale("symlog", linthresh=even / 4, linscale=0.5)
        axes.set_xticks([0.0, *log_ticks(even / 4, top * 1.12)])
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
    axes.set_xlim(-0.04 * (even if logarithmic else top or 1.0), (top or 1.0) * 1.12)
    for row, name in enumerate(names):
        ends = [rows[name][1] for rows in table.values() if name in rows]
        axes.plot([min(ends), max(ends)], [row, row], color=board.paint.grid, linewidth=1.8)
    for method, rows in table.items():
        colour, marker = board.style(method)
        axes.plot(
            [rows[name][1] for name in names if name in rows],
            [row for row, name in enumerate(names) if name in rows],
            marker,
            color=colour,
            markersize=6 if len(names) <= 12 else 4.6,
            label=short(board.view.label(method)),
            clip_on=False,
        )
    axes.axvline(even, color=board.paint.ink, linewidth=1.0, linestyle=(0, (4, 3)), zorder=0.9)
    words = "% of tensor selected" if board.narrow else "Percent of the tensor that is selected"
    axes.set_xlabel(words + (", log scale" if logarithmic else ""))
    if table:
        axes.figure.legend(loc="outside upper left", ncols=3, frameon=False, handletextpad=0.2)


def _sizes(board: Board, axes: Axes, names: list[str], sizes: dict[str, int]) -> None:
    axes.barh(range(len(names)), [sizes[n] for n in names], height=0.5, color=board.paint.muted)
    axes.set_xscale("log")
    axes.set_xlim(0.8, 30 * max(sizes.values(), default=1))
    axes.xaxis.set_major_locator(_no_ticks())
    axes.minorticks_off()
    axes.spines["bottom"].set_visible(False)
    axes.patch.set_alpha(0.0)
    axes.tick_params(length=0, labelleft=False)
    for row, name in enumerate(names):
        axes.annotate(
            " " + count_words(sizes[name]),
            (sizes[name], row),
            va="center",
            fontsize=9.0 if len(names) <= 12 else 7.5,
        )
    axes.set_xlabel("Size, log scale")
    axes.spines["left"].set_visible(False)


def _no_ticks() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()
