"""Results as a picture: every method's time as a multiple of what memory alone takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastunlearn.bench.cases import FALLBACK, OURS
from fastunlearn.bench.results import times_floor
from fastunlearn.bench.table import header, ratio, short_ms

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]

MOST_PANELS = 6
_COLOURS = {OURS: "#d55e00", FALLBACK: "#f0b48a"}
_PEER, _INK, _MUTED = "#9aa5b1", "#1f2328", "#57606a"
LEAST_SIZE = 10**6  # below, the call itself is the price and not memory
_INCHES_WIDE, _INCHES_PER_BAR, _INCHES_PER_PANEL, _INCHES_AROUND = 10.0, 0.25, 0.45, 1.4
_FLOOR_WORDS = {
    "read": "reading the scores once",
    "update": "reading the scores and updating the weights once",
    "scatter": "K scattered updates",
}


def pictured(rows: Sequence[Row]) -> list[Row]:
    """The rows worth a panel: plain values, a floor, peers; those with most peers first."""
    found: dict[tuple[Any, ...], Row] = {}
    for row in sorted(rows, key=lambda row: row["numel"]):
        plain = row["values"] == "normal" and row["dtype"] == "fp32" and row["numel"] >= LEAST_SIZE
        shown = [name for name in row["ms"] if name in _COLOURS or not name.startswith(OURS)]
        if plain and row["floor_ms"] and len(shown) > 1 and "simd" not in row:
            found[row["kind"], row["layout"], row["k"]] = row  # the largest of its like
    ranked = sorted(found.values(), key=lambda row: (-len(row["ms"]), -row["numel"]))
    return sorted(ranked[:MOST_PANELS], key=lambda row: (row["kind"] != "top_k", -row["numel"]))


def save_picture(path: Path, facts: Mapping[str, Any], rows: Sequence[Row]) -> Path | None:
    """Write the picture as PNG or SVG, by the suffix of the path; the folder is made.

    Args:
        path: where to.
        facts: the environment of the results.
        rows: rows of the results; `pictured` says which are drawn.

    Returns:
        The path, or None where no row can be drawn.

    Raises:
        ModuleNotFoundError: matplotlib is missing.
    """
    chosen = pictured(rows)
    if not chosen:
        return None
    from matplotlib.figure import Figure

    bars = [_bars(row) for row in chosen]
    heights = [len(panel) + 0.2 for panel in bars]
    tall = sum(heights) * _INCHES_PER_BAR + len(bars) * _INCHES_PER_PANEL + _INCHES_AROUND
    figure = Figure(figsize=(_INCHES_WIDE, tall), facecolor="white")
    grid = figure.subplots(len(chosen), 1, sharex=True, squeeze=False, height_ratios=heights)
    axes = list(grid[:, 0])
    for axis, row, panel in zip(axes, chosen, bars, strict=True):
        _draw_panel(axis, row, panel)
    _finish(figure, axes, bars, facts)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return path


def _bars(row: Row) -> list[tuple[str, float, float]]:
    """Name, multiple of the floor and milliseconds of each bar; ours first, then the fastest."""
    drawn = [
        (name, times_floor(row, name) or 0.0, ms)
        for name, ms in row["ms"].items()
        if name in _COLOURS or not name.startswith(OURS)
    ]
    return sorted(drawn, key=lambda bar: (bar[0] != OURS, bar[1]))


def _draw_panel(axis: Axes, row: Row, bars: Sequence[tuple[str, float, float]]) -> None:
    places = range(len(bars))
    # From 1 on, not from the frame: on a log scale a bar's length is its distance from the floor.
    axis.barh(
        places,
        [over - 1 for _, over, _ in bars],
        left=1,
        height=0.72,
        color=[_COLOURS.get(name, _PEER) for name, _, _ in bars],
    )
    for place, (name, over, ms) in zip(places, bars, strict=True):
        axis.annotate(
            f"{ratio(over)}   {short_ms(ms)}",
            (max(over, 1.0), place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=_INK if name == OURS else _MUTED,
            fontweight="bold" if name == OURS else "normal",
        )
    axis.axvline(1, color=_INK, linewidth=1.2)
    axis.set_yticks(places, [name for name, _, _ in bars], fontsize=9)
    axis.get_yticklabels()[0].set_fontweight("bold")
    axis.set_ylim(len(bars) - 0.4, -0.6)
    floor = f"floor: {_FLOOR_WORDS[row['floor']]}, {short_ms(row['floor_ms'])}"
    axis.set_title(row["label"], loc="left", fontsize=10, fontweight="bold", color=_INK)
    axis.set_title(floor, loc="right", fontsize=8.5, color=_MUTED)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", which="minor", length=0)


def _finish(
    figure: Figure,
    axes: Sequence[Axes],
    bars: Sequence[Sequence[tuple[str, float, float]]],
    facts: Mapping[str, Any],
) -> None:
    """Shared scale, headings and margins."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    ratios = [over for panel in bars for _, over, _ in panel]
    last = axes[-1]
    last.set_xscale("log")
    # Room on the right for the words behind the longest bar.
    last.set_xlim(min(0.9, min(ratios) * 0.9), max(10.0, max(ratios)) ** 1.22)
    last.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    last.xaxis.set_minor_formatter(NullFormatter())
    last.set_xlabel("time / memory floor (log scale; left is better)", color=_INK)
    for axis in axes:
        axis.grid(axis="x", which="major", color="#e4e8ec", linewidth=0.8)
        axis.set_axisbelow(True)
    tall = figure.get_figheight()
    figure.text(
        0.02,
        1 - 0.33 / tall,
        "Selecting and perturbing K parameters: time over the memory floor",
        fontsize=13,
        fontweight="bold",
        color=_INK,
    )
    figure.text(0.02, 1 - 0.6 / tall, header(facts), fontsize=9, color=_MUTED)
    figure.tight_layout(rect=(0.01, 0.0, 0.99, 1 - 0.68 / tall), h_pad=1.0)
