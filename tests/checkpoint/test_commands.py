"""`fastunlearn perturb | verify | patch`: exit codes, one-line errors, what is written."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
from checkpoint import made
from typer.testing import CliRunner

import fastunlearn as fu
from fastunlearn.cli import app


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def place(tmp_path: Path) -> Path:
    made.save(made.weights(), tmp_path / "m.safetensors")
    made.save(made.scores_of(made.weights()), tmp_path / "s.safetensors")
    (tmp_path / "seed").write_text(f"{made.SEED}\n")
    return tmp_path


def perturb(place: Path, *more: object) -> Any:
    return invoke(
        "perturb", place / "m.safetensors", "--out", place / "o.safetensors",
        "--seed-file", place / "seed", *more,
    )  # fmt: skip


def test_perturb_verify_and_patch(place: Path) -> None:
    scores = ("--scores", place / "s.safetensors")
    done = perturb(place, "--k", "0.1", "--std", "0.2", *scores, "--patch", place / "p")
    assert done.exit_code == 0 and "Selected 209 of 2,089" in done.stdout
    strategy = fu.TopK(0.1, std=0.2)
    wanted, _ = made.expected(made.weights(), strategy, made.scores_of(made.weights()))
    assert made.same(made.load(place / "o.safetensors"), wanted)

    receipt = ("--receipt", place / "o.safetensors.receipt.json")
    done = invoke("verify", place / "o.safetensors", *receipt)
    assert done.exit_code == 0 and "digests" in done.stdout
    again = ("--source", place / "m.safetensors", *scores, "--seed-file", place / "seed")
    done = invoke("verify", place / "o.safetensors", *receipt, *again)
    assert done.exit_code == 0 and "computed again" in done.stdout
    done = invoke("verify", place / "m.safetensors", *receipt)
    assert done.exit_code == 1 and "tensors are not" in done.stdout

    back = place / "b.safetensors"
    done = invoke("patch", "revert", place / "p", place / "o.safetensors", "--out", back)
    assert done.exit_code == 0
    assert back.read_bytes() == (place / "m.safetensors").read_bytes()
    done = invoke("patch", "apply", place / "p", back, "--out", back, "--overwrite")
    assert back.read_bytes() == (place / "o.safetensors").read_bytes()
    made_again = ("patch", "make", place / "m.safetensors", back, "--out", place / "q")
    done = invoke(*made_again)
    assert done.exit_code == 0 and (place / "q").read_bytes() == (place / "p").read_bytes()
    assert invoke("patch", "info", place / "q").stdout == done.stdout


def test_options_reach_the_strategy(place: Path) -> None:
    done = perturb(
        place, "--strategy", "random_k", "--k", "20", "--rel-std", "0.5", "--noise", "uniform",
        "--mode", "replace", "--rounding", "stochastic", "--include", "layer.*",
        "--exclude", "layer.3", "--step", "2",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    fields: dict[str, Any] = {"rel_std": 0.5, "noise": "uniform", "mode": "replace"}
    fields["rounding"] = "stochastic"
    names = [f"layer.{i}" for i in (0, 1, 2, 4, 5)]
    tensors = {name: made.weights()[name] for name in names}
    wanted, _ = made.expected(tensors, fu.RandomK(20, **fields), None, step=2)
    assert made.same(made.load(place / "o.safetensors"), {**made.weights(), **wanted})


def test_a_missing_seed_is_made_for_its_owner(place: Path) -> None:
    (place / "seed").unlink()
    assert perturb(place, "--strategy", "random_k", "--k", "20").exit_code == 0
    assert stat.S_IMODE((place / "seed").stat().st_mode) == 0o600
    assert 0 <= int((place / "seed").read_text()) < 1 << 64
    lost = ("verify", place / "m.safetensors", "--receipt", place / "o.safetensors.receipt.json")
    done = invoke(*lost, "--source", place / "m.safetensors", "--seed-file", place / "no")
    assert done.exit_code == 2 and not (place / "no").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--k", "1.5"], "fraction in (0, 1]"),
        (["--k", "x"], "--k must be a number"),
        (["--k", "0.1", "--mode", "no"], "mode must be one of"),
        (["--k", "0.1"], "scores must be given"),
        (["--k", "0.1", "--score", "weight", "--memory", "1"], "memory must be at least"),
        (["--k", "0.1", "--scores", "/nowhere.safetensors"], "No such file"),
    ],
)
def test_errors_are_one_line(place: Path, more: list[str], words: str) -> None:
    done = perturb(place, *more)
    assert done.exit_code == 2 and words in done.stderr
    assert done.stderr.startswith("fastunlearn: ") and done.stderr.count("\n") == 1
    assert not (place / "o.safetensors").exists()


def test_seed_files_are_checked(place: Path) -> None:
    (place / "seed").write_text("secret")
    done = perturb(place, "--k", "0.1", "--score", "weight")
    assert done.exit_code == 2 and "decimal number" in done.stderr
    (place / "seed").write_text(str(1 << 64))
    done = perturb(place, "--k", "0.1", "--score", "weight")
    assert done.exit_code == 2 and "seed must be in" in done.stderr
