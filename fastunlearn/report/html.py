"""Renders the self-contained HTML page."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from pathlib import Path
from typing import Any

from fastunlearn.report.audit import audit_findings, failure_sentence
from fastunlearn.report.canvas import colour_and_marker, missing
from fastunlearn.report.definitions import FURTHER, Metric
from fastunlearn.report.plots import AUDIT_PLOT, PLOTS, Plot, alternative_text, plot_svg
from fastunlearn.report.prose import LIMITS, MARKS, PROMISES
from fastunlearn.report.reading import READING_NOTE, bracket, headline, reading
from fastunlearn.report.summary import (
    flatten,
    footnotes,
    method_lines,
    status_line,
    tables,
    words,
)
from fastunlearn.report.view import RETRAIN, View


def render_html(view: View, pictures: Path | None = None) -> str:
    """Return the page: one file, styles, plots and script inside, no request to anywhere.

    Args:
        view: The results.
        pictures: Folder with what SPD-GAN did, `seed-N.png`; None or a missing file shows none.

    Raises:
        ImportError: jinja2 or matplotlib is missing.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise missing("jinja2", error) from error
    folder = resources.files("fastunlearn.report")
    source = folder.joinpath("template.html")
    script = folder.joinpath("sort.js").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(source.read_text(encoding="utf-8")).render(
        **_context(view), **_script(script), picture=_picture(view, pictures)
    )
    return page.replace(" %", "\N{NO-BREAK SPACE}%")


def _context(view: View) -> dict[str, Any]:
    shown = tables(view)
    rendered = [_table(view, title, anchor, metrics) for title, anchor, metrics in shown]
    return {
        "name": view.name,
        "complete": view.complete,
        "status": status_line(view),
        "failure": failure_sentence(view),
        "audit": audit_findings(view),
        "headline": headline(view),
        "findings": reading(view),
        "reading_note": READING_NOTE,
        "tables": [rows for rows in rendered if rows["anchor"] != FURTHER],
        "further": [rows for rows in rendered if rows["anchor"] == FURTHER],
        "notes": footnotes(view),
        **_plots(view),
        "definitions": [metric for _, _, metrics in shown for metric in metrics],
        "words": words(view),
        "marks": MARKS,
        "method": method_lines(view),
        "promises": PROMISES,
        "limits": LIMITS,
        "settings": flatten(dict(view.config)),
        "environment": flatten(dict(view.environment)),
        "sizes": _sizes(view),
    }


def _script(text: str) -> dict[str, Any]:
    """Return the script and the hash by which the page allows it and no other."""
    from markupsafe import Markup

    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return {"script": Markup(text), "script_hash": digest}


def _picture(view: View, folder: Path | None) -> dict[str, Any] | None:
    """Return the picture of the first seed that has one."""
    if folder is None:
        return None
    for seed in view.audits:
        path = folder / f"seed-{seed}.png"
        if path.is_file():
            return {"seed": seed, "data": base64.b64encode(path.read_bytes()).decode()}
    return None


def _plots(view: View) -> dict[str, Any]:
    """Return the plots that have data: an audit's own, which stands with its words, and others."""
    drawn = [_figure(view, plot) for plot in PLOTS.values() if plot.available(view)]
    return {
        "audit_plots": [plot for plot in drawn if plot["name"] == AUDIT_PLOT],
        "plots": [plot for plot in drawn if plot["name"] != AUDIT_PLOT],
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
        blank = dict.fromkeys(("value", "interval", "count"), "")
        return {"title": metric.title, "mean": "undefined", **blank}
    return {
        "title": metric.title,
        "value": repr(stat.mean),
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
