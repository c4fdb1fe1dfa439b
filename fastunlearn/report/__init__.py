"""Report of an evaluation: ``summary.md``, a self-contained ``report.html``, single plots."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastunlearn.report.html import render_html
from fastunlearn.report.plots import PLOTS, save_plot
from fastunlearn.report.summary import render_summary
from fastunlearn.report.view import View

__all__ = ["PLOTS", "save_plot", "write_report"]


def write_report(
    results: Mapping[str, Any], out_dir: str | Path, *, pictures: str | Path | None = None
) -> list[Path]:
    """Write ``summary.md`` and ``report.html``; the same results give the same bytes.

    Args:
        results: Dict of schema ``fastunlearn.results/1``. It is not changed.
        out_dir: Folder for the two files; made where it is missing.
        pictures: Folder with an audit's pictures, `seed-N.png`; the page shows the first seed's.

    Returns:
        The paths written: summary, page.

    Raises:
        ValueError: The schema is another one.
        ImportError: jinja2 or matplotlib is missing. Nothing is written then.

    Example:
        >>> import json
        >>> results = json.load(open("results.json"))  # doctest: +SKIP
        >>> write_report(results, "out")  # doctest: +SKIP
        [PosixPath('out/summary.md'), PosixPath('out/report.html')]
    """
    view = View(results)
    page = render_html(view, None if pictures is None else Path(pictures))
    texts = {"summary.md": render_summary(view), "report.html": page}
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    return [_write(out_dir / name, text) for name, text in texts.items()]


def _write(path: Path, text: str) -> Path:
    """Write a file whole or not at all, so that a reader never sees half a report."""
    draft = path.with_name(path.name + ".tmp")
    draft.write_text(text, encoding="utf-8", newline="\n")
    os.replace(draft, path)
    return path
