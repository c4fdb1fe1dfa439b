"""What a report says of an audit."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import pytest
from report.conftest import Written, written
from report.synthetic import make_audit, make_results

from fastunlearn.report import save_plot
from fastunlearn.report.audit import anchor_failures, audit_findings, failure_sentence, gain
from fastunlearn.report.canvas import PRINT, Board, drawing
from fastunlearn.report.degree import degree_rows, draw_degree
from fastunlearn.report.view import View


def found(results: dict[str, Any]) -> dict[str, str]:
    return {finding.lead: finding.text for finding in audit_findings(View(results))}


def test_gain_is_the_ratio_of_the_means() -> None:
    results = make_audit(3)
    for run, shifted, plain in zip(results["runs"], (0.5, 0.6, 0.7), (0.05, 0.1, 0.0), strict=True):
        run["audit"]["spread"] |= {"shifted": shifted, "plain": plain, "unshifted": -0.1}
    results["runs"][2]["audit"]["gain"] = None
    own = gain(View(results))
    assert own is not None and own.value == pytest.approx(0.6 / 0.05)
    assert own.seeds[2] is None and own.shifted.mean == pytest.approx(0.6)
    unshifted = gain(View(results), "unshifted")
    assert unshifted is not None and unshifted.value is None
    text = found(results)["Gain over plain accuracy"]
    assert "60.0 points" in text and "5.0 points" in text and "12.0 times as far" in text
    assert "undefined)" in text and "the gain is undefined" in text
    assert "cannot be told from 0" in text, "the interval of 5 points holds 0"
    assert "told from 0" not in found(make_audit(3))["Gain over plain accuracy"]


def test_no_plain_spread_is_said() -> None:
    results = make_audit(2)
    for run in results["runs"]:
        run["audit"]["spread"]["plain"] = 0.0
    text = found(results)["Gain over plain accuracy"]
    assert "Plain accuracy does not tell them apart at all, so the gain is undefined" in text


def test_anchors_in_order_are_said_with_their_degrees() -> None:
    results = make_audit(3)
    assert failure_sentence(View(results)) is None
    text = found(results)["Anchors"]
    assert text.startswith("In order on every seed and in the mean. Degrees: Original 0.0 points")
    assert text.index("50 % kept") < text.index("10 % kept") < text.index("Retrained 66")


def test_the_pair_out_of_order_is_named_by_seed_and_in_the_mean(tmp_path: Path) -> None:
    results = make_audit(3, levels={"partly_retrained_0.1": (0.2, 0.95)})
    pair = "Retrained, 10 % kept lies above Retrained"
    assert anchor_failures(View(results)) == [f"{pair} (seed 0, seed 1, seed 2, mean over seeds)"]
    sentence = failure_sentence(View(results))
    assert sentence is not None and sentence.startswith("The instrument failed on this data")
    assert sentence in found(results)["Anchors"]


def test_one_seed_out_of_order_fails_the_instrument() -> None:
    results = make_audit(3)
    wrong = [["original", "partly_retrained_0.5"]]
    results["runs"][1]["audit"]["anchors"] |= {"in_order": False, "out_of_order": wrong}
    assert anchor_failures(View(results)) == ["Original lies above Retrained, 50 % kept (seed 1)"]


def test_equal_ends_are_named() -> None:
    results = make_audit(2, levels={"retrain": (0.99, 0.95)})
    words = "Original lies not below Retrained (mean over seeds)"
    assert words in anchor_failures(View(results))


def test_closeness_and_references_are_means_over_seeds() -> None:
    results = make_audit(2)
    results["runs"][0]["audit"]["closeness"]["psnr"] = 16.5
    texts = found(results)
    assert "signal-to-noise ratio 16.0 dB" in texts["How slight the shift is"]
    assert "0.30 of the range" in texts["How slight the shift is"]
    assert "discriminator" not in texts["How slight the shift is"], "null is left out"
    assert "95.0 % of it right before the shift and 30.0 %" in texts["How hard the shifted data is"]


def test_without_an_audit_nothing_is_said_of_one(plain: Written) -> None:
    assert audit_findings(View(plain.results)) == [] and gain(View(plain.results)) is None
    for text in (plain.page, plain.summary):
        assert "SPD-GAN" not in text and "nlearning degree" not in text and "G(D" not in text
    with pytest.raises(ValueError, match="must hold figures for 'degree', got none"):
        save_plot(make_results(1), "degree", "a.png")


def test_anchors_take_no_part_in_the_comparison_of_methods() -> None:
    view = View(make_audit(2))
    assert view.anchors == (
        "original", "partly_retrained_0.5", "partly_retrained_0.1", "retrain",
    )  # fmt: skip
    assert not set(view.unlearned) & {*view.anchors, "retrain_again"}
    rows = degree_rows(view)
    assert tuple(rows[:4]) == view.anchors and sorted(rows) == sorted(view.methods)


def test_page_and_summary_hold_the_audit(audited: Written) -> None:
    for text in (audited.page, audited.summary):
        for word in ("What the instrument is worth", "Unlearning degree, normalised", "In order"):
            assert word in text
        assert "The instrument failed" not in text
    assert 'id="plot-degree"' in audited.page and "shifted these examples" in audited.page


def test_page_shows_the_first_picture_there_is(audited: Written, plain: Written) -> None:
    (data,) = re.findall(r'<img [^>]*src="data:image/png;base64,([^"]*)"', audited.page)
    assert base64.b64decode(data) == b"\x89PNG picture"
    assert "Examples of seed 1" in audited.page and "<img" not in plain.page


def test_a_failure_is_a_warning_at_the_top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastunlearn.report.html.PLOTS", {})  # drawing takes long
    results = make_audit(2, levels={"partly_retrained_0.1": (0.2, 0.95)})
    page = written(results, tmp_path).page
    assert page.index('class="warn"') < page.index("The instrument failed") < page.index("<nav")


def test_degree_plot_sets_the_anchors_apart() -> None:
    view = View(make_audit(3))
    with drawing(PRINT):
        figure = draw_degree(Board(view, 9.6, PRINT))
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "Degree, points", "Degree, normalised",
    ]  # fmt: skip
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[0] == "Original" and labels[3] == "Retrained" and len(labels) == 9
    line = [ln for ln in figure.axes[0].lines if list(ln.get_ydata()) == [3.5, 3.5]]
    assert len(line) == 1


def test_several_retrained_models_are_told_and_their_mean_is_the_aim() -> None:
    results = make_audit(3)
    assert "Retrained models" not in found(results)  # one alone, or a file from before
    for run in results["runs"]:
        audit = run["audit"]
        audit["retrained"] = {"shifted": [0.30, 0.41], "unshifted": [0.95, 0.95]}
        audit["anchors"]["degrees"][-1] = 0.625
    said = found(results)
    assert "Retrained, mean of all, 62.5 points" in said["Anchors"]
    assert "seed 2: 30.0, 41.0." in said["Retrained models"]
    with drawing(PRINT):
        figure = draw_degree(Board(View(results), 9.6, PRINT))
    aims = [
        [ln.get_xdata()[0] for ln in axes.lines if list(ln.get_ydata()) == [0, 1]]
        for axes in figure.axes
    ]
    assert [pytest.approx(x[0]) for x in aims] == [62.5, 1.0]
