"""Writes the results as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from fastunlearn.report.audit import audit_findings
from fastunlearn.report.definitions import TABLES, Metric
from fastunlearn.report.prose import (
    AUDIT_METHOD,
    AUDIT_WORDS,
    LIMITS,
    MARKS,
    METHOD,
    PROMISES,
    WORDS,
)
from fastunlearn.report.reading import READING_NOTE, Finding, headline, reading, show
from fastunlearn.report.view import View


def escape_markdown(value: Any) -> str:
    """Return ``value`` on one line with Markdown and HTML signs made harmless."""
    text = " ".join(str(value).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", text)


def flatten(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Return nested settings as (dotted name, text) rows."""
    if isinstance(value, dict) and value:
        return [
            row
            for key, item in value.items()
            for row in flatten(item, f"{prefix}.{key}" if prefix else str(key))
        ]
    if isinstance(value, (list, tuple)) and not any(isinstance(v, dict) for v in value):
        return [(prefix, ", ".join(str(v) for v in value) or "none")]
    return [(prefix, str(value))]


def footnotes(view: View) -> list[str]:
    """Return one sentence per undefined figure: method, figure, reason and seeds."""
    notes = []
    for metric in view.metrics():
        for method in view.methods:
            for reason, seeds in view.reasons(method, metric.key).items():
                where = "all seeds" if len(seeds) == len(view.seeds) else _seeds(seeds)
                notes.append(f"{metric.title}, {view.label(method)}: {reason} ({where}).")
    return notes


def _seeds(seeds: Sequence[int]) -> str:
    return ("seed " if len(seeds) == 1 else "seeds ") + ", ".join(str(seed) for seed in seeds)


def status_line(view: View) -> str:
    """Return how many seeds are done and what the brackets mean."""
    count = len(view.seeds)
    done = f"{count} of {len(view.planned)} planned seeds are done"
    state = "Complete" if view.complete else "INCOMPLETE"
    if count == 0:
        return f"{state}: {done}."
    spread = (
        "One seed, so no interval is given"
        if count == 1
        else "Each figure is the mean over seeds with its 95 % Student-t interval in brackets, cut "
        "to the possible range of the figure"
    )
    return f"{state}: {done} ({_seeds(view.seeds)}). {spread}."


def cell(view: View, method: str, metric: Metric) -> str:
    """Return one table cell: mean, interval and, where seeds are missing, how many count."""
    stat = view.stat(method, metric.key)
    if stat is None:
        return "undefined"
    short = f" (n = {stat.n})" if stat.n < len(view.seeds) else ""
    return show(metric, stat) + short


def tables(view: View) -> list[tuple[str, str, list[Metric]]]:
    """Return (title, anchor, figures) of each table that has at least one figure."""
    found = []
    for group, title, anchor in TABLES:
        metrics = [m for m in view.metrics() if m.group == group and _occurs(view, m)]
        if metrics:
            found.append((title, anchor, metrics))
    return found


def _occurs(view: View, metric: Metric) -> bool:
    return any(
        view.stat(method, metric.key) or view.reasons(method, metric.key) for method in view.methods
    )


def words(view: View) -> tuple[tuple[str, str], ...]:
    """Return the symbols of the formulas with their meaning."""
    return (*WORDS, *(AUDIT_WORDS if view.audits else ()))


def method_lines(view: View) -> tuple[tuple[str, str], ...]:
    """Return what was done, with the origin of each part."""
    return (*METHOD, *(AUDIT_METHOD if view.audits else ()))


def _findings(found: Sequence[Finding]) -> list[str]:
    return [f"- **{escape_markdown(f.lead)}.** {escape_markdown(f.text)}" for f in found]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def _bullets(items: Iterable[str]) -> list[str]:
    return [f"- {escape_markdown(item)}" for item in items]


def _figures(view: View) -> list[str]:
    lines = []
    for title, _, metrics in tables(view):
        lines += [f"## {title}", ""]
        header = ["Method", *(escape_markdown(metric.title) for metric in metrics)]
        rows = [
            [escape_markdown(view.label(method))]
            + [escape_markdown(cell(view, method, metric)) for metric in metrics]
            for method in view.methods
        ]
        lines += [*_table(header, rows), ""]
    notes = footnotes(view)
    return lines + (["Undefined figures:", "", *_bullets(notes), ""] if notes else [])


def render_summary(view: View) -> str:
    """Return the Markdown text of ``summary.md``."""
    lines = [f"# Unlearning report: {escape_markdown(view.name)}", ""]
    lines += [escape_markdown(status_line(view)), ""]
    lines += [*_bullets(headline(view)), ""]
    audit, read = audit_findings(view), reading(view)
    if audit:
        lines += ["## What the instrument is worth on this data", "", *_findings(audit), ""]
    lines += _figures(view)
    if read:
        lines += ["## What the data shows", "", READING_NOTE, "", *_findings(read), ""]
    symbols = "; ".join(f"{word}: {meaning}" for word, meaning in words(view))
    lines += ["## What each figure means", "", escape_markdown(symbols) + ".", ""]
    rows = [
        [escape_markdown(text) for text in (m.title, m.formula, f"[{m.mark}]", m.meaning)]
        for _, _, metrics in tables(view)
        for m in metrics
    ]
    lines += [*_table(("Figure", "Formula", "Origin", "How to read it"), rows), ""]
    lines += [*_bullets(f"{text} [{mark}]" for text, mark in method_lines(view)), ""]
    lines += [*_bullets(f"[{mark}] {text}" for mark, text in MARKS.items()), ""]
    lines += ["## What is promised, and what is not", "", "Promised:", "", *_bullets(PROMISES)]
    lines += ["", "Not promised:", "", *_bullets(LIMITS), ""]
    settings = flatten(dict(view.config)) + flatten(dict(view.environment), "environment")
    lines += ["## Settings", ""]
    lines += _table(("Setting", "Value"), [[escape_markdown(t) for t in row] for row in settings])
    return "\n".join(lines) + "\n"
