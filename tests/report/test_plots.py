"""The plots: colours, limits, grouping of tensors, files."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from report.synthetic import make_audit, make_results, resnet_tensors

from fastunlearn.report import PLOTS, save_plot
from fastunlearn.report.canvas import PRINT, STYLES, Board, colour_and_marker, drawing
from fastunlearn.report.definitions import metric_for
from fastunlearn.report.plots import plot_svg
from fastunlearn.report.rows import draw_accuracy, limits, log_ticks, off_scale
from fastunlearn.report.tradeoff import near_methods
from fastunlearn.report.view import Stat, View
from fastunlearn.report.where import draw_selection, grouped, shares


def luminance(colour: str) -> float:
    """Return the relative luminance of WCAG 2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    """Return the contrast ratio of WCAG 2."""
    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_colours_are_distinct_and_legible_on_both_backgrounds() -> None:
    extra = {f"extra{i}": f"Extra {i}" for i in range(5)}
    view = View(make_results(1, extra=extra))
    styles = [colour_and_marker(view, method) for method in view.methods]
    assert len(set(styles)) == len(STYLES) + 5
    assert len({marker for _, marker in styles}) == len(styles)
    for colour, _ in styles:
        for background in ("#ffffff", "#14171c"):
            assert colour is None or contrast(colour, background) >= 3, (colour, background)


def test_labels_sit_at_the_rows_they_name() -> None:
    view = View(make_results(3, extra={"salun": "Saliency unlearning"}))
    with drawing(PRINT):
        figure = draw_accuracy(Board(view, 9.6, PRINT))
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == [view.label(method) for method in view.methods]
    printed = [t.get_text() for t in figure.axes[1].texts]
    metric = metric_for("retain_accuracy")
    assert printed == [metric.number(view.stat(m, metric.key).mean) for m in view.methods]


def test_far_method_goes_to_the_edge_and_not_off_the_plot() -> None:
    view = View(make_results(3))
    assert off_scale(view, view.methods, "forget_accuracy") == ["gradient_ascent"]
    assert off_scale(view, view.methods, "mia_auc") == []
    assert set(view.methods) - set(near_methods(view)) == {"gradient_ascent"}


def test_limits_hold_points_and_cap_intervals() -> None:
    metric = metric_for("forget_accuracy")
    low, high = limits([0.90, 0.95], [Stat(0.92, 0.0, 1.9, 2)], metric)
    assert 0.80 < low < 0.90 and 0.95 < high < 1.02
    low, high = limits([0.5, 0.5], [], metric)
    assert low < 0.5 < high


def test_log_ticks() -> None:
    assert log_ticks(0.015, 1.5) == pytest.approx([0.02, 0.05, 0.1, 0.2, 0.5, 1.0])
    assert log_ticks(1e-5, 10) == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1, 10])


@pytest.mark.parametrize(("deep", "count"), [(False, 4), (True, len(resnet_tensors()))])
def test_selection_rows_do_not_overlap(deep: bool, count: int) -> None:
    view = View(make_results(2, deep=deep))
    with drawing(PRINT):
        figure = draw_selection(Board(view, 9.6, PRINT))
        figure.draw_without_rendering()
        axes = figure.axes[0]
        boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert len(boxes) == count
    spans = sorted((box.y0, box.y1) for box in boxes)
    # A gap of a quarter of the height of the text, so that rows are told apart at a glance.
    gap = 0.25 * max(top - bottom for bottom, top in spans)
    assert all(low[1] + gap <= high[0] for low, high in zip(spans, spans[1:], strict=False))


def test_shares_are_means_over_seeds() -> None:
    results = make_results(2)
    for run, selected in zip(results["runs"], (4, 8), strict=True):
        run["methods"]["top_k"]["selected"]["tensors"][1]["selected"] = selected
    assert shares(View(results))["top_k"]["conv1.bias"] == (16, pytest.approx(37.5))


def test_many_tensors_are_merged_by_module_and_nothing_is_lost() -> None:
    rows = [
        {"name": f"block.{i}.{part}", "numel": i + 1, "selected": 1.0}
        for i in range(50)
        for part in ("weight", "bias")
    ]
    merged = grouped(rows)
    assert [row["name"] for row in merged] == [f"block.{i}" for i in range(50)]
    flat = grouped([{"name": f"p{i}", "numel": i + 1, "selected": 1.0} for i in range(100)])
    assert len(flat) == 64 and flat[-1]["name"] == "37 smaller tensors"
    for before, after in ((rows, merged), (flat, flat)):
        assert sum(r["numel"] for r in before) == sum(r["numel"] for r in after)
    assert sum(r["selected"] for r in flat) == 100


@pytest.mark.parametrize("name", PLOTS)
def test_save_plot(name: str, tmp_path: Path) -> None:
    path = save_plot(make_audit(2), name, tmp_path / f"{name}.png")
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG") and len(data) > 5_000


def test_save_plot_as_svg_has_print_colours(tmp_path: Path) -> None:
    text = save_plot(make_results(2), "time", str(tmp_path / "time.svg")).read_text()
    assert PRINT.ink in text and "currentColor" not in text


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("pie", "a.png", "name must be one of degree, accuracy"),
        ("time", "a.gif", r"a \.png or \.svg"),
    ],
)
def test_save_plot_refuses(name: str, file: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        save_plot(make_results(1), name, tmp_path / file)


def test_plot_without_data_is_refused(tmp_path: Path) -> None:
    results = make_results(1)
    for entry in results["runs"][0]["methods"].values():
        entry["selected"] = None
    with pytest.raises(ValueError, match="must hold figures for 'selection', got none"):
        save_plot(results, "selection", tmp_path / "a.png")


def test_caller_settings_do_not_leak_in_or_out() -> None:
    import matplotlib

    view = View(make_results(2))
    expected = plot_svg(view, PLOTS["time"], narrow=True)
    with matplotlib.rc_context({"font.size": 31.0, "axes.grid": True, "lines.linewidth": 9.0}):
        assert plot_svg(view, PLOTS["time"], narrow=True) == expected
        assert matplotlib.rcParams["font.size"] == 31.0
        assert matplotlib.rcParams["svg.hashsalt"] is None


def test_svg_is_for_use_inside_a_page() -> None:
    svg = plot_svg(View(make_results(2)), PLOTS["membership"], narrow=False)
    assert svg.startswith("<svg") and "xmlns" not in svg and "<style" not in svg
    assert set(re.findall(r'id="(\w+-\w)-', svg)) == {"membership-w"}


def test_pyplot_and_heavy_packages_stay_unloaded() -> None:
    code = (
        "import sys, fastunlearn.report as r; from report.synthetic import make_results; "
        "assert not {'matplotlib', 'jinja2'} & set(sys.modules), 'import'; "
        "import fastunlearn.report.plots as p; from fastunlearn.report.view import View; "
        "p.plot_svg(View(make_results(1)), p.PLOTS['time'], True); "
        "assert 'matplotlib.pyplot' not in sys.modules, 'pyplot'"
    )
    root = Path(__file__).resolve().parents[2]
    paths = f"import sys; sys.path[:0] = [{str(root)!r}, {str(root / 'tests')!r}]; "
    done = subprocess.run([sys.executable, "-c", paths + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
