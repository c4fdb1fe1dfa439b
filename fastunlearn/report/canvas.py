"""Figures without global state: palette, page-coloured SVG, PNG."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fastunlearn.report.view import View

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HINT = 'pip install "fastunlearn[eval]"'
WIDE_INCHES, NARROW_INCHES, NARROW = 9.6, 4.0, 6.0

# Mid-tones: each has a contrast of at least 3 to 1 against both page backgrounds, and the shapes
# tell them apart without colour. The retrained reference takes the colour of the text.
STYLES: dict[str, tuple[str | None, str]] = {
    "original": ("#868d97", "s"),
    "retrain": (None, "D"),
    "retrain_again": ("#7f8f2a", "d"),
    "top_k": ("#d55e00", "o"),
    "random_k": ("#1f83c4", "^"),
    "fine_tune": ("#009e73", "v"),
    "gradient_ascent": ("#bf6495", "X"),
}
_PARTLY = (("#868d97", "8"), ("#868d97", ">"), ("#868d97", "H"))
_EXTRA = (("#a67c00", "P"), ("#7a6fd0", "p"), ("#9a6b4f", "h"), ("#2f9aa8", "*"), ("#c0504d", "<"))


@dataclass(frozen=True)
class Paint:
    """Colours of everything that is not a method."""

    ink: str
    muted: str
    grid: str
    paper: str


PRINT = Paint("#1b1f24", "#5b636d", "#d9dde2", "#ffffff")
# Stand-ins that `to_svg` turns into colours of the page, so that one drawing serves a light and a
# dark background.
PAGE = Paint("#010203", "#040506", "#070809", "#0a0b0c")
_PAGE_COLOURS = {
    PAGE.ink: "currentColor",
    PAGE.muted: "var(--muted)",
    PAGE.grid: "var(--grid)",
    PAGE.paper: "var(--paper)",
}


def colour_and_marker(view: View, method: str) -> tuple[str | None, str]:
    """Return colour (None: that of the text) and marker of ``method``, the same everywhere."""
    if method in STYLES:
        return STYLES[method]
    partly = [name for name in view.anchors if name not in STYLES]
    if method in partly:
        return _PARTLY[partly.index(method) % len(_PARTLY)]
    others = [name for name in view.methods if name not in STYLES and name not in partly]
    return _EXTRA[others.index(method) % len(_EXTRA)]


@dataclass(frozen=True)
class Board:
    """What a plot is drawn from and on.

    Args:
        view: The results.
        width: Width of the figure in inches; below ``NARROW`` plots stack their panels.
        paint: Colours of text, axes and grid.
    """

    view: View
    width: float
    paint: Paint

    @property
    def narrow(self) -> bool:
        """Whether the figure is meant for a phone."""
        return self.width < NARROW

    def style(self, method: str) -> tuple[str, str]:
        """Return colour and marker of ``method``."""
        colour, marker = colour_and_marker(self.view, method)
        return colour or self.paint.ink, marker

    def figure(self, height: float) -> Figure:
        """Return a transparent figure of this width and the given height in inches."""
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine

        layout = ConstrainedLayoutEngine(h_pad=0.1 if self.narrow else 0.04)
        figure = Figure(figsize=(self.width, height), layout=layout)
        figure.patch.set_alpha(0.0)
        return figure

    def quiet(self, axes: Axes, grid: Literal["x", "y", "both"] = "x") -> None:
        """Give the axes a light grid and no tick marks."""
        axes.patch.set_alpha(0.0)
        axes.grid(True, axis=grid)
        axes.tick_params(length=0)


def _settings(paint: Paint) -> Any:
    return {
        "font.family": ["DejaVu Sans"],
        "font.size": 9.0,
        "text.color": paint.ink,
        "text.parse_math": False,
        "axes.edgecolor": paint.muted,
        "axes.labelcolor": paint.ink,
        "axes.linewidth": 0.8,
        "axes.titlesize": 9.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "xtick.color": paint.muted,
        "xtick.labelcolor": paint.ink,
        "ytick.color": paint.muted,
        "ytick.labelcolor": paint.ink,
        "grid.color": paint.grid,
        "grid.linewidth": 0.8,
        "svg.fonttype": "path",
        "svg.hashsalt": "fastunlearn",
    }


def missing(package: str, error: ImportError) -> ImportError:
    """Return the error that names the optional dependency and how to get it."""
    return ImportError(f"write_report: {package} must be installed, got {error}; {HINT}")


@contextmanager
def drawing(paint: Paint) -> Iterator[None]:
    """Hold the report's matplotlib settings for the block and restore the caller's after it."""
    try:
        from matplotlib import rc_context, style
    except ImportError as error:
        raise missing("matplotlib", error) from error
    with rc_context():
        style.use("default")
        with rc_context(_settings(paint)):
            yield


def short(text: str, length: int = 26) -> str:
    """Return ``text`` cut to ``length`` signs, so that a long name cannot fill a plot."""
    return text if len(text) <= length else text[: length - 1] + "…"


def _settle(figure: Figure) -> None:
    """Lay the figure out once; left to `savefig`, a second whole drawing would be made for it."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
    figure.set_layout_engine(None)


def to_svg(figure: Figure, prefix: str) -> str:
    """Return the figure as an SVG element for use inside a page.

    Drops the XML head, the metadata, the namespaces (HTML needs none) and the style rule, which
    would hold for the whole page; gives every id a prefix
    of its own, and replaces the stand-in colours by those of the page.
    """
    _settle(figure)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.S)
    text = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", text)
    text = text.replace("xlink:href", "href")
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'href="#', f'href="#{prefix}-', text)
    text = re.sub(r"url\(#", f"url(#{prefix}-", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    for stand_in, colour in _PAGE_COLOURS.items():
        text = text.replace(stand_in, colour)
    return text


def save_figure(figure: Figure, path: Path) -> None:
    """Write the figure on a white ground; the suffix of ``path`` says the format."""
    _settle(figure)
    metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    figure.savefig(path, dpi=160, facecolor=PRINT.paper, metadata=metadata)
