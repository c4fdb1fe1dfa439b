"""Sparse patches: bit-exact both ways, refused on the wrong base, small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint import made
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import fastunlearn as fu
from fastunlearn import checkpoint as ck
from fastunlearn.checkpoint import stream
from fastunlearn.checkpoint.patch_file import decode_gaps, encode_gaps


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A checkpoint, what became of it, and the patch between them."""
    paths = {name: tmp_path / f"{name}.safetensors" for name in ("before", "after", "patch")}
    made.save(made.weights(), paths["before"])
    ck.perturb(
        paths["before"], paths["after"], fu.RandomK(0.2), seed=made.SEED, patch=paths["patch"]
    )
    return paths


@pytest.mark.parametrize("segment", [1 << 22, 64])
@pytest.mark.parametrize("number", [0, 3])
def test_both_ways(tmp_path: Path, monkeypatch: Any, segment: int, number: int) -> None:
    monkeypatch.setattr(stream, "SEGMENT", segment)
    before = made.save(made.weights(), tmp_path / "before", number)
    after, patch = tmp_path / "after", tmp_path / "patch"
    options: Any = {"memory": 64 * segment}
    told = ck.perturb(before, after, fu.RandomK(0.2), patch=patch, **options).perturbation
    about = ck.patch_info(patch)
    assert about.changed == told["count"] - told["unchanged"]
    ck.apply_patch(patch, before, tmp_path / "again", **options)
    assert made.contents(tmp_path / "again") == made.contents(after)
    ck.revert_patch(patch, after, tmp_path / "back", **options)
    assert made.contents(tmp_path / "back") == made.contents(before)
    if number == 0:
        assert (tmp_path / "again").read_bytes() == after.read_bytes()
        assert (tmp_path / "back").read_bytes() == before.read_bytes()
    ck.make_patch(before, after, tmp_path / "made", **options)
    assert (tmp_path / "made").read_bytes() == patch.read_bytes()


def test_in_place(files: dict[str, Path]) -> None:
    before = files["before"].read_bytes()
    ck.apply_patch(files["patch"], files["before"], files["before"], overwrite=True)
    assert files["before"].read_bytes() == files["after"].read_bytes()
    ck.revert_patch(files["patch"], files["before"], files["before"], overwrite=True)
    assert files["before"].read_bytes() == before


def test_every_dtype_and_another_sharding(tmp_path: Path) -> None:
    before, after = made.weights(0), made.weights(1)
    after["ids"] = after["ids"] + 1
    after["flags"] = ~after["flags"]
    one = made.save(before, tmp_path / "one", 2)
    other = made.save(after, tmp_path / "other", 3)
    about = ck.make_patch(one, other, tmp_path / "patch")
    assert about.tensors == 8  # neither the empty one nor the scalar differs
    ck.apply_patch(tmp_path / "patch", one, tmp_path / "out")
    assert made.same(made.load(tmp_path / "out"), after)


def test_nothing_changes(tmp_path: Path, files: dict[str, Path]) -> None:
    about = ck.make_patch(files["before"], files["before"], tmp_path / "none")
    assert (about.changed, about.tensors) == (0, 0) and about.before == about.after
    ck.apply_patch(tmp_path / "none", files["before"], tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == files["before"].read_bytes()


def refused(folder: Path, call: Any, *arguments: Any) -> str:
    before = made.contents(folder)
    with pytest.raises((ValueError, OSError)) as error:
        call(*arguments)
    assert made.contents(folder) == before
    return str(error.value)


def test_a_wrong_base_is_refused(tmp_path: Path, files: dict[str, Path]) -> None:
    out = tmp_path / "out"
    patch, before, after = files["patch"], files["before"], files["after"]
    assert "source's digest" in refused(tmp_path, ck.apply_patch, patch, after, out)
    assert "source's digest" in refused(tmp_path, ck.revert_patch, patch, before, out)
    data = bytearray(before.read_bytes())
    data[-1] ^= 1  # a tensor that the patch does not touch
    before.write_bytes(data)
    assert "source's digest" in refused(tmp_path, ck.apply_patch, patch, before, out)
    fewer = {n: t for n, t in made.weights().items() if n != "layer.0"}
    other = made.save(fewer, tmp_path / "other.safetensors")
    assert "'layer.0'" in refused(tmp_path, ck.apply_patch, patch, other, out)
    assert "'layer.0'" in refused(tmp_path, ck.make_patch, other, after, out)


def changed(path: Path, **tensors: Any) -> None:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    metadata.update(tensors.pop("metadata", {}))
    save_file({**load_file(path), **tensors}, path, metadata)


def test_a_broken_patch_is_refused(tmp_path: Path, files: dict[str, Path]) -> None:
    patch, good = files["patch"], files["patch"].read_bytes()
    tensors = load_file(patch)
    segments, gaps, xor = (tensors[name] for name in ("segments", "gaps", "xor"))

    def row(column: int, value: int) -> torch.Tensor:
        found = segments.clone()
        found[0, column] = value
        return found

    broken: list[dict[str, Any]] = [
        {"metadata": {"format": "another"}},
        {"metadata": {"before": "0" * 64}},
        {"metadata": {"after": "0" * 64}},
        {"segments": segments[:-1].clone()},
        {"segments": segments.flatten()},
        {"segments": segments[[0, 0, *range(2, len(segments))]].clone()},
        *({"segments": row(0, value)} for value in (-1, 99)),
        *({"segments": row(1, value)} for value in (-1, 5, 1 << 22)),
        *({"segments": row(2, value)} for value in (0, -1, 1 << 40, int(segments[0, 2]) - 1)),
        *({"segments": row(3, value)} for value in (-1, 1 << 40)),
        {"gaps": torch.full_like(gaps, 0x80)},
        {"gaps": torch.full_like(gaps, 0x7F)},
        {"xor": xor ^ 1},
        {"xor": xor[:-1].clone()},
        {"tensors": torch.frombuffer(bytearray(b"[1]"), dtype=torch.uint8)},
        {"tensors": torch.frombuffer(bytearray(b"{}"), dtype=torch.uint8)},
        {"tensors": torch.frombuffer(bytearray(b'[["x","F32",[1]]]'), dtype=torch.uint8)},
        {"more": torch.ones(1)},
    ]
    for change in broken:
        patch.write_bytes(good)
        changed(patch, **change)
        refused(tmp_path, ck.apply_patch, patch, files["before"], tmp_path / "out")
    patch.write_bytes(good)
    changed(patch)  # the helper itself breaks nothing
    ck.apply_patch(patch, files["before"], tmp_path / "out")


def test_any_checkpoint_is_no_patch(tmp_path: Path, files: dict[str, Path]) -> None:
    out = tmp_path / "out"
    assert "must be a patch" in refused(
        tmp_path, ck.apply_patch, files["before"], files["before"], out
    )


def test_size_at_one_percent_of_bf16(tmp_path: Path) -> None:
    tensors = {f"layer.{i}": torch.randn(1000, 1000).bfloat16() for i in range(4)}
    before = made.save(tensors, tmp_path / "m.safetensors")
    scores = made.save(made.scores_of(tensors, decimals=6), tmp_path / "s.safetensors")
    patch = tmp_path / "p"
    ck.perturb(before, tmp_path / "o", fu.TopK(0.01, std=1.0), scores=scores, patch=patch)
    assert ck.patch_info(patch).changed > 39_000
    assert patch.stat().st_size <= 0.018 * before.stat().st_size


@given(st.lists(st.integers(0, (1 << 22) - 1), unique=True, max_size=50))
def test_gaps(places: list[int]) -> None:
    index = np.array(sorted(places), dtype=np.int64)
    encoded = encode_gaps(index)
    assert decode_gaps(encoded, len(index), 1 << 22).tolist() == index.tolist()
    for size in {0, 1, len(encoded) - 1} & set(range(len(encoded))):
        with pytest.raises(ValueError):
            decode_gaps(encoded[:size], len(index), 1 << 22)


def test_gaps_are_checked() -> None:
    for encoded, count, numel in (
        ([5], 1, 5),
        ([0x80, 0x80, 0x80, 0x80, 0], 1, 1 << 22),
        ([0, 0x80], 1, 9),
        ([0], 0, 9),
        ([], 1, 9),
    ):
        with pytest.raises(ValueError):
            decode_gaps(np.array(encoded, dtype=np.uint8), count, numel)
    assert decode_gaps(np.array([0xFF, 0x01], dtype=np.uint8), 1, 256).tolist() == [255]
