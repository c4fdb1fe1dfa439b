"""What is refused, and what is saved."""

from __future__ import annotations

import doctest
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastunlearn.spdgan import SPDGAN, SPDGANConfig

QUICK = SPDGANConfig(max_steps=1, width=4)
X, Y = torch.rand(4, 1, 5, 5), torch.tensor([0, 1, 2, 0])


def linear(classes: int = 3) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(25, classes))


def made(x: Tensor = X, seed: int = 0) -> SPDGAN:
    gan = SPDGAN(QUICK, seed=seed)
    gan.fit([(x, Y)], linear())
    return gan


def with_value(value: float) -> Tensor:
    x = X.clone()
    x[1, 0, 2, 3] = value
    return x


class Sequence(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(
    ("batches", "reference", "error", "message"),
    [
        ([], linear(), ValueError, "forget_loader must yield at least one example, got none"),
        ([(X[:0], Y[:0])], linear(), ValueError, "forget_loader must yield at least one"),
        ([X], linear(), TypeError, r"forget_loader must yield pairs \(x, y\), got Tensor"),
        ([(X, Y, Y)], linear(), TypeError, "forget_loader must yield pairs"),
        ([(X.int(), Y)], linear(), TypeError, "x must be a floating-point tensor, got torch.int32"),
        ([(X[:, 0], Y)], linear(), ValueError, r"x must have shape .* got \(4, 5, 5\)"),
        ([(with_value(float("nan")), Y)], linear(), ValueError, "x must be finite, got 1 NaN"),
        ([(with_value(float("inf")), Y)], linear(), ValueError, "x must be finite, got 1 NaN"),
        ([(with_value(1.5), Y)], linear(), ValueError, r"x must be in \[0, 1\].* got .*1.5\]"),
        ([(with_value(-0.5), Y)], linear(), ValueError, r"x must be in \[0, 1\].* got .*-0.5"),
        ([(X, Y.float())], linear(), TypeError, "labels must be an integer .* got torch.float32"),
        ([(X, [0, 1, 2, 0])], linear(), TypeError, "labels must be an integer .* got list"),
        ([(X, Y[:3])], linear(), ValueError, r"labels must have shape \(4,\), got \(3,\)"),
        ([(X, Y[:, None])], linear(), ValueError, r"labels must have shape \(4,\), got \(4, 1\)"),
        ([(X, Y)], linear(2), ValueError, r"labels must be in \[0, 2\), got 2"),
        ([(X, Y - 1)], linear(), ValueError, r"labels must be in \[0, 3\), got -1"),
        ([(X, Y), (X[..., :4], Y)], linear(), ValueError, r"examples must all .* got \(1, 5, 4\)"),
        ([(X, Y)], Sequence(), ValueError, r"reference_model must give floating logits"),
        ([(X, Y)], [], TypeError, "reference_model must be a torch.nn.Module or several, got none"),
        ([(X, Y)], 3, TypeError, "reference_model must be a torch.nn.Module or several, got int"),
        ([(X, Y)], [linear(), 3], TypeError, "reference_model must hold .* got int"),
        ([(X, Y)], linear().to("meta"), ValueError, "reference_model must have weights, got meta"),
    ],
)
def test_fit_refuses(batches: Any, reference: Any, error: type[Exception], message: str) -> None:
    gan = made()
    before = gan.perturb(X)
    with pytest.raises(error, match=f"SPDGAN.fit: {message}"):
        gan.fit(batches, reference)
    assert torch.equal(gan.perturb(X), before)  # still the fit before


@pytest.mark.parametrize("op", ["perturb", "closeness"])
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (X.int(), TypeError, "x must be a floating-point tensor, got torch.int32"),
        (None, TypeError, "x must be a floating-point tensor, got NoneType"),
        (X[..., :4], ValueError, r"x must have the shape \(N, 1, 5, 5\) of the fit, got"),
        (X.flatten(1), ValueError, r"x must have the shape \(N, 1, 5, 5\) of the fit, got"),
        (with_value(float("nan")), ValueError, "x must be finite"),
        (with_value(2.0), ValueError, r"x must be in \[0, 1\]"),
    ],
)
def test_use_refuses(op: str, x: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"SPDGAN.{op}: {message}"):
        getattr(made(), op)(x)


def test_nothing_fitted(tmp_path: Path) -> None:
    gan = SPDGAN()
    calls: list[Callable[[], Any]] = [
        lambda: gan.perturb(X),
        lambda: gan.closeness(X),
        lambda: gan.save(tmp_path / "gan"),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match="fit must be called first, got an unfitted SPDGAN"):
            call()
    assert not (tmp_path / "gan").exists()


@pytest.mark.parametrize(
    ("config", "seed", "error"),
    [
        ({}, 0, TypeError),
        (QUICK, -1, ValueError),
        (QUICK, 2**64, ValueError),
        (QUICK, 1.0, TypeError),
    ],
)
def test_constructor_refuses(config: Any, seed: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"SPDGAN: (config|seed) must be"):
        SPDGAN(config, seed=seed)


@pytest.mark.parametrize("x", [X, X.flatten(1)], ids=["images", "vectors"])
def test_save_and_load_give_the_same_bits(x: Tensor, tmp_path: Path) -> None:
    gan = made(x, seed=5)
    folder = tmp_path / "new" / "gan"
    gan.save(folder)
    again = SPDGAN.load(folder)
    assert torch.equal(again.perturb(x), gan.perturb(x))
    assert again.closeness(x) == gan.closeness(x)
    assert (again.config, again.seed) == (gan.config, 5)
    made(x, seed=6).save(folder)
    assert len(list(folder.iterdir())) == 2  # the weights before are gone
    assert not torch.equal(SPDGAN.load(folder).perturb(x), gan.perturb(x))


def test_a_save_that_breaks_leaves_the_old_one(tmp_path: Path, monkeypatch: Any) -> None:
    from fastunlearn.spdgan import saved

    gan = made(seed=1)
    gan.save(tmp_path)
    write = saved.write_atomically

    def broken(path: Path, content: bytes) -> None:
        if path.name == "config.json":
            raise OSError("no space")
        write(path, content)

    monkeypatch.setattr(saved, "write_atomically", broken)
    with pytest.raises(OSError, match="no space"):
        made(seed=2).save(tmp_path)
    assert torch.equal(SPDGAN.load(tmp_path).perturb(X), gan.perturb(X))


def change(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def weights(folder: Path) -> Path:
    return next(folder.glob("weights-*.safetensors"))


def rewrite(folder: Path, edit: Callable[[dict[str, Tensor]], Any]) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights(folder))
    edit(tensors)
    save_file(tensors, weights(folder))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "config.json").write_text("{"), "config.json must be JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "must hold an object, got list"),
        (lambda f: change(f, extra=1), "missing or unknown: extra"),
        (
            lambda f: change(f, format="other/1"),
            "must have format fastunlearn.spdgan/1, got 'other",
        ),
        (lambda f: change(f, config={}), "missing or unknown: adversarial"),
        (lambda f: change(f, shape=[1, 5]), r"shape in .* got \[1, 5\]"),
        (lambda f: change(f, shape=[1, 0, 5]), r"shape in .* got \[1, 0, 5\]"),
        (lambda f: change(f, seed="0"), "seed in .* must be an int, got '0'"),
        (lambda f: change(f, weights="../x.safetensors"), "weights in .* must be weights-"),
        (lambda f: change(f, shape=[3, 5, 5]), r"enter.weight in .* must be .*12, 3, 3\), got"),
        (lambda f: change(f, shape=[25]), "missing or unknown: "),
        (lambda f: weights(f).write_bytes(b"rubbish"), "must be safetensors"),
        (lambda f: rewrite(f, lambda t: t.pop("generator.unit")), "unknown: generator.unit"),
        (lambda f: rewrite(f, lambda t: t.update(x=torch.ones(1))), "missing or unknown: x"),
        (
            lambda f: rewrite(f, lambda t: t.update({"generator.unit": torch.ones(()).double()})),
            r"generator.unit in .* must be torch.float32 \(\), got torch.float64",
        ),
    ],
)
def test_load_refuses(tmp_path: Path, spoil: Callable[[Path], Any], message: str) -> None:
    made().save(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=f"SPDGAN.load: .*{message}"):
        SPDGAN.load(tmp_path)


def test_load_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="config.json"):
        SPDGAN.load(tmp_path)


def test_the_package_stays_light() -> None:
    code = (
        "import sys, fastunlearn; assert 'fastunlearn.spdgan' not in sys.modules; "
        "import fastunlearn.spdgan; "
        "assert not {'torchmetrics', 'matplotlib', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))


@pytest.mark.parametrize("module", ["config", "closeness", "model"])
def test_examples_in_the_docstrings_run(module: str) -> None:
    results = doctest.testmod(import_module(f"fastunlearn.spdgan.{module}"))
    assert results.attempted > 0 and results.failed == 0
