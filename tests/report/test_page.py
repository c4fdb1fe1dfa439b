"""The HTML page: self-contained, complete, escaped, deterministic."""

from __future__ import annotations

import base64
import hashlib
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report.conftest import EVIL, EVIL_LABEL, Written
from report.synthetic import make_results

from fastunlearn.report import PLOTS, write_report
from fastunlearn.report.definitions import METRICS

VOID = {"meta", "link", "br", "use", "img"}


class Elements(HTMLParser):
    """Collects elements and text, and checks that every element is closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module", params=["plain", "odd", "audited"])
def report(request: pytest.FixtureRequest) -> Written:
    """Return each page in turn."""
    return request.getfixturevalue(request.param)


def test_page_asks_for_nothing_outside(report: Written) -> None:
    page = Elements(report.page)
    assert not page.open
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"iframe", "object", "embed", "audio", "video", "base"}
    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            target = attributes.get(name)
            assert target is None or target.startswith(("#", "data:")), (tag, name, target)
    assert not re.search(r"https?://|@import|url\((?!#)", report.page)


def test_page_runs_its_own_script_and_no_other(report: Written) -> None:
    (script,) = re.findall(r"<script>(.*?)</script>", report.page, flags=re.S)
    assert report.page.count("<script") == 1 and "innerHTML" not in script
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', report.page)
    assert policy is not None and f"script-src 'sha256-{digest}'" in policy[1]
    assert policy[1].startswith("default-src 'none'")


def test_every_figure_can_be_sorted_by(report: Written) -> None:
    cells = [a for tag, a in Elements(report.page).elements if tag == "td" and "data-title" in a]
    assert cells and all(a["data-value"] == "" or float(a["data-value"]) is not None for a in cells)
    known = [a for a in cells if a["data-title"] == "Test accuracy"]
    rows = report.results["runs"][0]["methods"]
    assert len(known) == len(rows) and all(0.5 < float(a["data-value"]) < 1.1 for a in known)


def test_page_links_and_ids_fit(report: Written) -> None:
    page = Elements(report.page)
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    targets = {a["href"] for _, a in page.elements if (a.get("href") or "").startswith("#")}
    targets |= set(re.findall(r"url\((#[^)]*)\)", report.page))
    assert {target[1:] for target in targets} <= set(ids)


def test_page_shows_every_figure(plain: Written) -> None:
    text = Elements(plain.page).text
    for method, metrics in plain.results["summary"].items():
        assert plain.results["runs"][0]["methods"][method]["label"] in text
        for metric in METRICS:
            row = metrics[metric.key]
            low, high = (metric.number(metric.clip(row[end])) for end in ("ci_low", "ci_high"))
            assert f"{metric.quantity(row['mean'])} [{low}, {high}]" in text
            assert metric.title in text


def test_every_plot_has_text_alternative_and_caption(plain: Written) -> None:
    page = Elements(plain.page)
    labels = [a["aria-label"] for _, a in page.elements if a.get("role") == "img"]
    count = len(PLOTS) - 1  # the degree is of audits alone
    assert len(labels) == 2 * count
    assert all(label and re.search(r"\d", label) for label in labels)
    assert sum(tag == "figcaption" for tag, _ in page.elements) == count
    assert sum(tag == "svg" for tag, _ in page.elements) == 2 * count


def test_plots_take_the_colours_of_the_page(plain: Written) -> None:
    assert "prefers-color-scheme: dark" in plain.page
    for stand_in in ("#010203", "#040506", "#070809", "#0a0b0c"):
        assert stand_in not in plain.page
    assert "stroke: currentColor" in plain.page and "var(--grid)" in plain.page


def test_names_are_escaped(odd: Written) -> None:
    assert "<script>alert" not in odd.page and "<b>" not in odd.page
    assert EVIL in Elements(odd.page).text and EVIL_LABEL in Elements(odd.page).text
    assert "<script" not in odd.summary and "<b>" not in odd.summary


def test_one_incomplete_seed_is_said(odd: Written) -> None:
    text = Elements(odd.page).text
    assert "This run is incomplete" in text
    assert "1 of 3 planned seeds are done (seed 0)" in text
    assert "One seed, so no interval is given" in text
    assert 'class="interval"' not in odd.page


def test_undefined_figures_keep_their_reason(odd: Written) -> None:
    text = Elements(odd.page).text
    assert "Forgetting rate, Random-k: the original gets nothing right (all seeds)." in text
    assert "retraining changes nothing <b>here</b> (all seeds)." in text
    assert "Not drawn, because a figure is undefined: Random-k." in text
    assert text.count(" undefined ") >= 2


def test_complete_run_has_no_warning(plain: Written) -> None:
    assert 'class="warn"' not in plain.page and "undefined" not in Elements(plain.page).text


def test_same_results_give_the_same_bytes(plain: Written, tmp_path: Path) -> None:
    again = write_report(make_results(), tmp_path)
    for first, second in zip(plain.paths, again, strict=True):
        assert first.read_bytes() == second.read_bytes()
    assert plain.results == make_results()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "summary.md"]


@pytest.mark.parametrize("word", ["passed", "FR", "MRR", "certified unlearning", "guarantee"])
def test_words_that_a_report_must_not_use(report: Written, word: str) -> None:
    for text in (Elements(report.page).text, report.summary):
        assert not re.search(rf"\b{word}\b", text)


def test_limits_are_stated(report: Written) -> None:
    for text in (Elements(report.page).text, report.summary):
        for limit in ("No differential privacy", "No certified removal", "No proof of erasure"):
            assert limit in text


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_missing_package_is_named(
    package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'{package} .*pip install "fastunlearn\[eval\]"'):
        write_report(make_results(1), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_run_yet(tmp_path: Path) -> None:
    results = make_results(1) | {"runs": [], "summary": {}, "complete": False}
    summary, page = (p.read_text(encoding="utf-8") for p in write_report(results, tmp_path))
    assert "No seed is finished yet" in summary and "No seed is finished yet" in page


def test_other_schema_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be 'fastunlearn.results/1', got 'other/9'"):
        write_report(make_results(1) | {"schema": "other/9"}, tmp_path)
