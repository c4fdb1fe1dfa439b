"""The package's face: examples, lazy imports, missing extras."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from fastunlearn import metrics

MODULES = [
    "fastunlearn.divergence",
    "fastunlearn.metrics.attack",
    "fastunlearn.metrics.attack_metric",
    "fastunlearn.metrics.classes",
    "fastunlearn.metrics.distance",
    "fastunlearn.metrics.epsilon",
    "fastunlearn.metrics.functional",
    "fastunlearn.metrics.intervals",
    "fastunlearn.metrics.lira",
    "fastunlearn.metrics.membership",
    "fastunlearn.metrics.membership_features",
    "fastunlearn.metrics.membership_scores",
    "fastunlearn.metrics.relearning",
    "fastunlearn.metrics.similarity",
    "fastunlearn.metrics.threshold_attack",
    "fastunlearn.metrics.undefined",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted > 0 and results.failed == 0


@pytest.mark.parametrize("name", metrics.__all__)
def test_public_names_exist_and_functions_have_an_example(name: str) -> None:
    value = getattr(metrics, name)
    if callable(value) and not dataclasses.is_dataclass(value):
        assert "Example:" in (value.__doc__ or "")


def test_import_is_light() -> None:
    code = (
        "import sys, fastunlearn.metrics as m\n"
        "m.forgetting_rate(1.0, 0.5)\n"
        "heavy = {'torchmetrics', 'sklearn', 'scipy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "m.ForgettingRate\n"
        "assert 'torchmetrics' in sys.modules\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_missing_torchmetrics_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    message = r'^ForgettingRate: torchmetrics .* pip install "fastunlearn\[eval\]"'
    with pytest.raises(ImportError, match=message):
        from fastunlearn.metrics import ForgettingRate  # noqa: F401


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'FR'"):
        metrics.FR  # noqa: B018
    assert "ForgettingRate" in dir(metrics)
