"""Renders the self-contained HTML page."""

from __future__ import annotations

from importlib import resources
from typing import Any

from fastunlearn.report.canvas import colour_and_marker, missing
from fastunlearn.report.definitions import FURTHER, LIMITS, MARKS, METHOD, PROMISES, WORDS, Metric
from fastunlearn.report.plots import PLOTS, Plot, alternative_text, plot_svg
from fastunlearn.report.reading import READING_NOTE, bracket, headline, reading
from fastunlearn.report.summary import flatten, footnotes, status_line, tables
from fastunlearn.report.view import RETRAIN, View


def render_html(view: View) -> str:
    """Return the page: one file, styles and plots inside, no request to anywhere.

    Raises:
        ImportError: jinja2 or matplotlib is missing.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise missing("jinja2", error) from error
    source = resources.files("fastunlearn.report").joinpath("template.html")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(source.read_text(encoding="utf-8")).render(**_context(view))
    return page.replace(" %", "\N{NO-BREAK SPACE}%")


def _context(view: View) -> dict[str, Any]:
    shown = tables(view)
    rendered = [_table(view, title, anchor, metrics) for title, anchor, metrics in shown]
    return {
        "name": view.name,
        "complete": view.complete,
        "status": status_line(view),
        "headline": headline(view),
        "findings": reading(view),
        "reading_note": READING_NOTE,
        "tables": [rows for rows in rendered if rows["anchor"] != FURTHER],
        "further": [rows for rows in rendered if rows["anchor"] == FURTHER],
        "notes": footnotes(view),
        "plots": [_figure(view, plot) for plot in PLOTS.values() if plot.available(view)],
        "definitions": [metric for _, _, metrics in shown for metric in metrics],
        "words": WORDS,
        "marks": MARKS,
        "method": METHOD,
        "promises": PROMISES,
        "limits": LIMITS,
        "settings": flatten(dict(view.config)),
        "environment": flatten(dict(view.environment)),
        "sizes": _sizes(view),
    }


def _figure(view: View, plot: Plot) -> dict[str, Any]:
    from markupsafe import Markup

    # The SVG comes from matplotlib, which escapes text itself and draws labels as outlines.
    return {
        "name": plot.name,
        "title": plot.title,
        "caption": plot.caption(view),
        "alternative": alternative_text(view, plot),
        "wide": Markup(plot_svg(view, plot, narrow=False)),
        "narrow": Markup(plot_svg(view, plot, narrow=True)),
    }


def _table(view: View, title: str, anchor: str, metrics: list[Metric]) -> dict[str, Any]:
    rows = [
        {
            "label": view.label(method),
            "colour": colour_and_marker(view, method)[0] or "currentColor",
            "reference": method == RETRAIN,
            "cells": [_cell(view, method, metric) for metric in metrics],
        }
        for method in view.methods
    ]
    return {"title": title, "anchor": anchor, "metrics": metrics, "rows": rows}


def _cell(view: View, method: str, metric: Metric) -> dict[str, str]:
    stat = view.stat(method, metric.key)
    if stat is None:
        return {"title": metric.title, "mean": "undefined", "interval": "", "count": ""}
    return {
        "title": metric.title,
        "mean": metric.quantity(stat.mean),
        "interval": bracket(metric, stat),
        "count": f"n = {stat.n}" if stat.n < len(view.seeds) else "",
    }


def _sizes(view: View) -> list[tuple[str, str]]:
    rows = []
    for run in view.runs:
        sizes = ", ".join(f"{key} {count:,}" for key, count in (run.get("sizes") or {}).items())
        elapsed = run.get("elapsed_seconds")
        time = f"; {elapsed:.1f} s in all" if isinstance(elapsed, (int, float)) else ""
        rows.append((f"seed {run['seed']}", f"{sizes}{time}"))
    return rows
