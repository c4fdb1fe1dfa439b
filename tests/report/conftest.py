"""Pages that several tests read: rendering is slow, so each is rendered once."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
from report.synthetic import make_audit, make_results

from fastunlearn.report import write_report

EVIL = '<script>alert("x")</script> | `code` & co'
# A label that plots draw: markup, and what a formula parser would choke on.
EVIL_LABEL = "<b>$\\frac{1$</b>"


class Written(NamedTuple):
    """A results dict and the two texts written from it."""

    results: dict[str, Any]
    summary: str
    page: str
    paths: list[Path]


def written(results: dict[str, Any], folder: Path, pictures: Path | None = None) -> Written:
    """Write the report of ``results`` and read it back."""
    paths = write_report(results, folder, pictures=pictures)
    summary, page = (path.read_text(encoding="utf-8") for path in paths)
    return Written(results, summary, page.replace("\N{NO-BREAK SPACE}", " "), paths)


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Five seeds, six methods, four tensors, nothing undefined."""
    return written(make_results(), tmp_path_factory.mktemp("plain") / "new" / "folder")


@pytest.fixture(scope="session")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """One seed of three, an unknown method, undefined figures, hostile names."""
    results = make_results(
        1,
        name=EVIL,
        complete=False,
        extra={"salun": EVIL_LABEL},
        undefined=(
            ("top_k", "forgetting_rate_normalised", "retraining changes nothing <b>here</b>"),
            ("random_k", "forgetting_rate", "the original gets nothing right"),
        ),
    )
    results["config"]["dataset"] = {"name": EVIL}
    return written(results, tmp_path_factory.mktemp("odd"))


@pytest.fixture(scope="session")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """An audit of three seeds whose anchors are in order, with a picture of seed 1 alone."""
    folder = tmp_path_factory.mktemp("audited")
    (folder / "pictures").mkdir()
    (folder / "pictures" / "seed-1.png").write_bytes(b"\x89PNG picture")
    return written(make_audit(), folder, folder / "pictures")
