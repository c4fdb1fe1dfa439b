"""A checkpoint perturbed on disk: the bits of the same tensors perturbed in memory."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint import made
from safetensors.torch import save_file

import fastunlearn as fu
from fastunlearn import checkpoint as ck
from fastunlearn.checkpoint import ranking, stream
from fastunlearn.checkpoint.files import Checkpoint
from fastunlearn.checkpoint.ranking import Ranking

STRATEGIES = [
    fu.TopK(0.01, std=0.1),
    fu.TopK(0.3, rel_std=0.5, mode="replace"),
    fu.TopK(1.0, noise="laplace"),
    fu.TopK(0),
    fu.TopK(1),
    fu.TopK(0.2, scope="tensor", mode="zero"),
    fu.TopK(0.2, scope="tensor", include=["layer.*"], exclude=["*.3"]),
    fu.TopK(0.1, score="weight"),
    fu.RandomK(0.05, std=0.1),
    fu.RandomK(0.7, rel_std=0.5, mode="replace"),
    fu.RandomK(0.3, scope="tensor", noise="uniform"),
    fu.TopK(0.5, std=1e-3, rounding="stochastic"),
    fu.RandomK(0.5, std=1e-3, rounding="stochastic"),
]
FILES = [0, 1, 3]


# Elements between cuts: tensors in one slice, and in many; but Random-k in each takes whole ones.
CALLS = [
    (strategy, segment)
    for strategy in STRATEGIES
    for segment in (1 << 22, 64)
    if not (isinstance(strategy, fu.RandomK) and strategy.scope == "tensor" and segment == 64)
]


def needs_scores(strategy: fu.TopK | fu.RandomK) -> bool:
    return isinstance(strategy, fu.TopK) and strategy.score != "weight"


@pytest.mark.parametrize(("strategy", "segment"), CALLS, ids=str)
@pytest.mark.parametrize("files", FILES)
def test_bits_and_receipt_are_those_in_memory(
    tmp_path: Path, monkeypatch: Any, strategy: Any, segment: int, files: int
) -> None:
    monkeypatch.setattr(stream, "SEGMENT", segment)
    tensors = made.weights()
    scores = made.scores_of(tensors) if needs_scores(strategy) else None
    source = made.save(tensors, tmp_path / "model.safetensors", files)
    ranked = None if scores is None else made.save(scores, tmp_path / "scores.safetensors", 2)
    if strategy.include:
        chosen = {n: t for n, t in tensors.items() if n.startswith("layer") and n != "layer.3"}
    else:
        chosen = tensors
    wanted, receipt = made.expected(chosen, strategy, scores)
    out = tmp_path / "out.safetensors"
    found = ck.perturb(source, out, strategy, scores=ranked, seed=made.SEED, memory=64 * segment)
    assert made.same(made.load(out), {**tensors, **wanted})
    told, in_memory = found.perturbation, receipt.to_dict()
    assert {**told, "strategy": None} == {**in_memory, "strategy": None}
    assert ck.CheckpointReceipt.read(tmp_path / "out.safetensors.receipt.json") == found
    if files:
        assert (out / "config.json").exists() and made.contents(out).keys() == made.contents(
            source
        ).keys()


def test_headers_are_kept(tmp_path: Path) -> None:
    tensors = made.weights()
    save_file(tensors, tmp_path / "m.safetensors", {"format": "pt", "note": "kept"})
    ck.perturb(tmp_path / "m.safetensors", tmp_path / "o.safetensors", fu.RandomK(3))
    pair = [(tmp_path / f"{name}.safetensors").read_bytes() for name in "mo"]
    start = 8 + int.from_bytes(pair[0][:8], "little")
    assert pair[0][:start] == pair[1][:start] and pair[0] != pair[1]


def test_unaligned_tensors(tmp_path: Path) -> None:
    """The format allows any order of tensors; an odd one first makes the next ones unaligned."""
    values = torch.arange(6, dtype=torch.float32)
    data = b"\1\0\1" + values.numpy().tobytes()
    header = {
        "odd": {"dtype": "BOOL", "shape": [3], "data_offsets": [0, 3]},
        "w": {"dtype": "F32", "shape": [6], "data_offsets": [3, 27]},
    }
    text = json.dumps(header).encode()
    (tmp_path / "m.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    strategy = fu.TopK(3, score="weight")
    ck.perturb(tmp_path / "m.safetensors", tmp_path / "o.safetensors", strategy, seed=made.SEED)
    wanted, _ = made.expected({"w": values}, strategy, None)
    written = (tmp_path / "o.safetensors").read_bytes()
    assert written[-27:] == b"\1\0\1" + wanted["w"].numpy().tobytes()


def test_runs_are_bounded_and_cover_the_files(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(stream, "SEGMENT", 64)
    made.save(made.weights(size=40), tmp_path / "m", 3)
    with Checkpoint(tmp_path / "m") as checkpoint:
        runs = list(stream.runs(checkpoint, 1000))
        assert all(run.stop - run.start <= 1000 for run in runs)
        for number, file in enumerate(checkpoint.files):
            own = sorted((run for run in runs if run.file == number), key=lambda run: run.start)
            edges = [file.header.data_start, *(run.stop for run in own)]
            assert [run.start for run in own] == edges[:-1] and edges[-1] == file.status[0]


@pytest.mark.parametrize(
    ("dtype", "sampled_from", "passes"),
    [
        (torch.float32, 1 << 28, 2),
        (torch.float32, 1, 1),
        (torch.float16, 1 << 28, 2),
        (torch.bfloat16, 1, 1),
        (torch.bfloat16, 1 << 28, 1),
    ],
)
def test_passes_over_the_scores(
    tmp_path: Path, monkeypatch: Any, dtype: torch.dtype, sampled_from: int, passes: int
) -> None:
    tensors = {f"w{i}": torch.randn(400, 100 + i) for i in range(5)}
    scores = {name: score.to(dtype) for name, score in made.scores_of(tensors, decimals=6).items()}
    source = made.save(tensors, tmp_path / "m.safetensors")
    ranked = made.save(scores, tmp_path / "s.safetensors")
    count, counted = Ranking._count, []
    monkeypatch.setattr(ranking, "_SAMPLED_FROM", sampled_from)
    monkeypatch.setattr(Ranking, "_count", lambda *call: counted.append(1) or count(*call))
    for strategy in (fu.TopK(0.01), fu.TopK(0.5), fu.TopK(40_000)):
        counted.clear()
        wanted, _ = made.expected(tensors, strategy, scores)
        out = tmp_path / "o.safetensors"
        ck.perturb(source, out, strategy, scores=ranked, seed=made.SEED, overwrite=True)
        assert made.same(made.load(out), wanted) and len(counted) == passes


@pytest.mark.parametrize("low", [0, (1 << 31) - 1 - (1 << 20)])
def test_a_bracket_that_misses(tmp_path: Path, monkeypatch: Any, low: int) -> None:
    tensors = made.weights()
    scores = made.scores_of(tensors)
    source = made.save(tensors, tmp_path / "m.safetensors")
    ranked = made.save(scores, tmp_path / "s.safetensors")
    monkeypatch.setattr(Ranking, "_bracket", lambda *_: low)
    wanted, _ = made.expected(tensors, fu.TopK(0.3), scores)
    out = tmp_path / "o.safetensors"
    ck.perturb(source, out, fu.TopK(0.3), scores=ranked, seed=made.SEED)
    assert made.same(made.load(out), wanted)


@pytest.mark.parametrize("step", [0, 3])
def test_step_and_defaults(tmp_path: Path, step: int) -> None:
    tensors = made.weights()
    source = made.save(tensors, tmp_path / "m.safetensors")
    out = tmp_path / "o.safetensors"
    ck.perturb(source, out, fu.RandomK(50), seed=made.SEED, step=step)
    wanted, _ = made.expected(tensors, fu.RandomK(50), None, step=step)
    assert made.same(made.load(out), wanted)


def test_seed_is_drawn_and_not_kept(tmp_path: Path) -> None:
    source = made.save(made.weights(), tmp_path / "m.safetensors")
    told = [
        ck.perturb(source, tmp_path / f"{i}.safetensors", fu.RandomK(5)).perturbation
        for i in range(2)
    ]
    assert told[0]["seed_commitment"] != told[1]["seed_commitment"]
    assert told[0]["seed"] is None


# --- refusals: one error, nothing written ---------------------------------------------------------


def refused(tmp_path: Path, *arguments: Any, **options: Any) -> str:
    """Call `perturb`; return its error, after checking that the folder is as it was."""
    before = made.contents(tmp_path)
    with pytest.raises((TypeError, ValueError, OSError)) as error:
        ck.perturb(*arguments, **options)
    assert made.contents(tmp_path) == before
    assert not list(tmp_path.glob(".*"))
    return str(error.value)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return made.save(made.weights(), tmp_path / "m.safetensors")


@pytest.mark.parametrize("k", [fu.TopK(5), fu.TopK(0.5, scope="tensor"), fu.TopK(0)])
def test_nan_scores(tmp_path: Path, source: Path, k: fu.TopK) -> None:
    scores = made.scores_of(made.weights())
    scores["layer.2"][3, 4] = torch.nan
    ranked = made.save(scores, tmp_path / "s.safetensors")
    options = {"scores": ranked, "seed": made.SEED}
    assert "got 1 NaN" in refused(tmp_path, source, tmp_path / "o.safetensors", k, **options)


def test_nan_scores_by_choice(tmp_path: Path, source: Path) -> None:
    scores = made.scores_of(made.weights())
    scores["layer.2"][3, 4] = torch.nan
    ranked = made.save(scores, tmp_path / "s.safetensors")
    strategy = fu.TopK(5, nan="largest")
    wanted, _ = made.expected(made.weights(), strategy, scores)
    out = tmp_path / "o.safetensors"
    ck.perturb(source, out, strategy, scores=ranked, seed=made.SEED)
    assert made.same(made.load(out), wanted)


def test_overflow(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3), "h": torch.full((50,), 65000.0).half()}
    source = made.save(tensors, tmp_path / "m.safetensors")
    out, strategy = tmp_path / "o.safetensors", fu.RandomK(1.0, std=1e4)
    error = refused(tmp_path, source, out, strategy, seed=made.SEED)
    assert "weights finite" in error and "'h'" in error
    ck.perturb(source, out, strategy, seed=made.SEED, allow_overflow=True)
    wanted, _ = made.expected(tensors, strategy, None, allow_overflow=True)
    assert made.same(made.load(out), wanted)


def test_infinite_root_mean_square(tmp_path: Path) -> None:
    source = made.save({"a": torch.tensor([1.0, torch.inf])}, tmp_path / "m.safetensors")
    strategy = fu.RandomK(1, rel_std=1.0)
    assert "'a'" in refused(tmp_path, source, tmp_path / "o.safetensors", strategy)


def test_scores_that_do_not_fit(tmp_path: Path, source: Path) -> None:
    out, strategy = tmp_path / "o.safetensors", fu.TopK(5)
    assert "must be given" in refused(tmp_path, source, out, strategy)
    scores = made.scores_of(made.weights())
    absent = {n: s for n, s in scores.items() if n not in ("scalar", "layer.1")}
    few = made.save(absent, tmp_path / "few.safetensors")
    error = refused(tmp_path, source, out, strategy, scores=few)
    assert "'layer.1'" not in error and "layer.1, scalar" in error
    wrong = made.save({**scores, "scalar": torch.ones(2)}, tmp_path / "wrong.safetensors")
    assert "shape ()" in refused(tmp_path, source, out, strategy, scores=wrong)
    whole = made.save({**scores, "scalar": torch.tensor(1)}, tmp_path / "int.safetensors")
    assert "I64" in refused(tmp_path, source, out, strategy, scores=whole)
    assert "RandomK" in refused(tmp_path, source, out, fu.RandomK(5), scores=few)
    ck.perturb(source, out, strategy, scores=few, seed=made.SEED, missing_scores="skip")
    wanted, _ = made.expected(made.weights(), strategy, absent)
    assert made.same(made.load(out), wanted)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"strategy": "top_k"}, "must be TopK or RandomK"),
        ({"strategy": fu.RandomK(10**6)}, "at most"),
        ({"strategy": fu.RandomK(5, include=["x"])}, "must have a tensor that takes part"),
        ({"seed": -1}, "seed must be"),
        ({"step": 1 << 32}, "step must be"),
        ({"memory": 1 << 20}, "memory must be at least"),
        ({"missing_scores": "no"}, "missing_scores must be"),
    ],
    ids=str,
)
def test_arguments(tmp_path: Path, source: Path, change: Any, words: str) -> None:
    arguments = {"source": source, "out": tmp_path / "o.safetensors", "strategy": fu.RandomK(5)}
    assert words in refused(tmp_path, **{**arguments, **change})


def test_8_bit_floats_are_refused_unless_excluded(tmp_path: Path) -> None:
    tensors = {"q": torch.zeros(4).to(torch.float8_e4m3fn), "w": torch.ones(4)}
    source = made.save(tensors, tmp_path / "m.safetensors")
    out = tmp_path / "o.safetensors"
    assert "exclude it" in refused(tmp_path, source, out, fu.RandomK(1))
    ck.perturb(source, out, fu.RandomK(1, exclude=["q"]), seed=made.SEED)
    assert made.load(out)["q"].view(torch.uint8).equal(tensors["q"].view(torch.uint8))


def test_random_k_in_each_tensor_takes_whole_ones(
    tmp_path: Path, source: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(stream, "SEGMENT", 64)
    strategy = fu.RandomK(0.5, scope="tensor")
    assert "64 elements" in refused(tmp_path, source, tmp_path / "o.safetensors", strategy)


# --- where it goes --------------------------------------------------------------------------------


def test_what_is_there_stays_without_overwrite(tmp_path: Path, source: Path) -> None:
    (tmp_path / "o.safetensors").write_text("mine")
    assert "must not exist" in refused(tmp_path, source, tmp_path / "o.safetensors", fu.RandomK(1))
    assert "got a folder" in refused(tmp_path, source, tmp_path, fu.RandomK(1), overwrite=True)


@pytest.mark.parametrize("files", [0, 2])
def test_in_place(tmp_path: Path, files: int) -> None:
    tensors = made.weights()
    place = made.save(tensors, tmp_path / "m.safetensors", files)
    inside = place / "config.json" if files else place
    os.chmod(inside, 0o640)
    ck.perturb(place, place, fu.RandomK(50), seed=made.SEED, overwrite=True)
    wanted, _ = made.expected(tensors, fu.RandomK(50), None)
    assert made.same(made.load(place), wanted)
    if not files:
        assert stat.S_IMODE(place.stat().st_mode) == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "m.safetensors",
        "m.safetensors.receipt.json",
    ]


def test_a_folder_is_replaced_only_where_nothing_else_is_lost(tmp_path: Path) -> None:
    place = made.save(made.weights(), tmp_path / "m", 2)
    (place / "pytorch_model.bin").write_text("the same weights, in another format")
    error = refused(tmp_path, place, place, fu.RandomK(1), overwrite=True)
    assert "pytorch_model.bin" in error
    ck.perturb(place, tmp_path / "o", fu.RandomK(1))
    assert not (tmp_path / "o/pytorch_model.bin").exists()


def test_a_source_that_is_written_to_meanwhile(
    tmp_path: Path, source: Path, monkeypatch: Any
) -> None:
    end = Checkpoint.check_unchanged

    def check(self: Checkpoint) -> None:
        os.utime(source, (1, 1))
        end(self)

    monkeypatch.setattr(Checkpoint, "check_unchanged", check)
    assert "changed file" in refused(tmp_path, source, tmp_path / "o.safetensors", fu.RandomK(1))


def test_links_lead_to_what_is_read_and_are_never_written_through(tmp_path: Path) -> None:
    target = made.save(made.weights(), tmp_path / "target.safetensors")
    before = target.read_bytes()
    os.symlink(target, tmp_path / "m.safetensors")
    os.symlink(target, tmp_path / "o.safetensors")
    out = tmp_path / "o.safetensors"
    ck.perturb(tmp_path / "m.safetensors", out, fu.RandomK(9), overwrite=True)
    assert target.read_bytes() == before and not out.is_symlink()


# --- verify ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [fu.TopK(0.1), fu.RandomK(0.2, rel_std=1.0)], ids=str)
def test_verify(tmp_path: Path, source: Path, strategy: Any) -> None:
    scores = None
    if isinstance(strategy, fu.TopK):
        scores = made.save(made.scores_of(made.weights()), tmp_path / "s.safetensors")
    out = tmp_path / "o.safetensors"
    receipt = ck.perturb(source, out, strategy, scores=scores, seed=made.SEED)
    again = {"source": source, "scores": scores, "seed": made.SEED}
    assert ck.verify(out, receipt) == ck.Verification((), False)
    assert ck.verify(out, receipt, **again) == ck.Verification((), True)
    with pytest.raises(ValueError, match="seed must be"):
        ck.verify(out, receipt, **{**again, "seed": 8})
    with pytest.raises(ValueError, match="source must be given"):
        ck.verify(out, receipt, seed=7)
    with pytest.raises(ValueError, match="source must have the digest"):
        ck.verify(out, receipt, **{**again, "source": out})

    data = bytearray(out.read_bytes())
    data[-1] ^= 1
    out.write_bytes(data)
    last = max(made.load(out), key=lambda name: Checkpoint(out).tensors[name].entry.stop)
    for given in ({}, again):
        assert ck.verify(out, receipt, **given).different == (last,)


def test_a_receipt_is_read_strictly(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "o.safetensors"
    ck.perturb(source, out, fu.RandomK(1))
    path = tmp_path / "o.safetensors.receipt.json"
    good = json.loads(path.read_text())
    for bad in ({**good, "schema": "x"}, {**good, "more": 1}, {**good, "tensors": []}, []):
        path.write_text(json.dumps(bad))
        with pytest.raises(ck.FormatError):
            ck.verify(out, path)


def test_the_digest_does_not_depend_on_files(tmp_path: Path) -> None:
    tensors = made.weights()
    found = set()
    for files in FILES:
        path = made.save(tensors, tmp_path / f"{files}.safetensors", files)
        with Checkpoint(path) as checkpoint:
            found.add(stream.digest_of(checkpoint, 1 << 20).total())
    assert len(found) == 1
