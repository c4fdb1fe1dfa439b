"""The search behind the baselines' options: its settings, and what the study takes of it."""

from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import pytest

pytest.importorskip("sklearn")

from benchmarks.study import baselines, cells  # noqa: E402
from benchmarks.study.baselines import RESNET8, ROOT, SEARCHES, SMALL_CNN, chosen, named  # noqa: E402
from fastunlearn.evaluation.methods import METHODS  # noqa: E402
from fastunlearn.evaluation.results import read_results  # noqa: E402
from fastunlearn.report.view import View  # noqa: E402


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """Leave the registry as it was."""
    with mock.patch.dict(METHODS):
        yield


@pytest.mark.parametrize("model", SEARCHES)
def test_the_settings_are_valid_and_named_once(model: str) -> None:
    settings = SEARCHES[model]
    names = [name for _, name, _ in named(settings)]
    assert len(set(names)) == len(names) == sum(map(len, settings.values()))
    methods = baselines.cell(model).config.methods
    for kind, name, options in named(settings):
        assert methods[name].kind == kind
        given = methods[name].options
        assert {key: given[key] for key in options} == options
    assert not set(baselines.SEEDS) & set(cells.SEEDS)


def test_the_study_takes_what_the_rule_takes() -> None:
    found = View(read_results(ROOT / "docs/results/study-baselines.json"))
    assert chosen(found, SMALL_CNN) == {kind: cells.METHODS[kind] for kind in SMALL_CNN}
    found = View(read_results(ROOT / "docs/results/study-baselines-resnet8.json"))
    assert chosen(found, RESNET8) == {kind: cells.RESNET8[kind] for kind in RESNET8}
