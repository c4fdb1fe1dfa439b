"""The strict reading of safetensors headers and indices, against the format's own library too."""

from __future__ import annotations

import json
import os
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from checkpoint import made
from safetensors.torch import save, save_file

from fastunlearn.checkpoint import FormatError, header
from fastunlearn.checkpoint.files import Checkpoint

WHERE = Path("x.safetensors")


def parts(data: bytes) -> tuple[bytes, int]:
    """Header text of a file, and the file's size."""
    return data[8 : 8 + int.from_bytes(data[:8], "little")], len(data)


def file_of(text: bytes, data: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text + data


def accepts(data: bytes) -> bool:
    text, size = parts(data)
    try:
        header.parse_header(WHERE, text, size)
    except FormatError:
        return False
    return True


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    tensors = made.weights()
    data = save(tensors, {"note": "x"})
    found = header.parse_header(WHERE, *parts(data))
    assert found.metadata == {"note": "x"} and found.entries.keys() == tensors.keys()
    for name, entry in found.entries.items():
        raw = tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes()
        assert entry.shape == tuple(tensors[name].shape) and entry.numel == tensors[name].numel()
        assert data[entry.start : entry.stop] == raw


@pytest.mark.parametrize("name", ["F8_E4M3", "F8_E5M2", "C64", "U16", "I8", "F4", "F6_E2M3"])
def test_dtypes_that_stay_as_they_are(name: str) -> None:
    bits = {"C64": 64, "U16": 16, "F4": 4, "F6_E2M3": 6}.get(name, 8)
    entry = {"dtype": name, "shape": [8], "data_offsets": [0, bits]}
    assert accepts(file_of(json.dumps({"a": entry}).encode(), bytes(bits)))


def usual(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}


HOSTILE = {
    "no JSON": b"{",
    "no object": b"[1]",
    "a space first": b' {"a": 1}',
    "empty": b"",
    "no UTF-8": b'{"\xff": 1}',
    "brackets": b'{"a":' + b"[" * 100_000,
    "a giant number": b'{"a":' + b"9" * 100_000 + b"}",
    "a name twice": b'{"a":' + json.dumps(usual()).encode() + b',"a":{}}',
    "a field twice": b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
    "metadata of numbers": {"__metadata__": {"a": 1}, "a": usual()},
    "metadata of a list": {"__metadata__": [], "a": usual()},
    "no entry": {"a": 1},
    "a field missing": {"a": {"dtype": "F32", "shape": [2]}},
    "a field more": {"a": usual(more=1)},
    "a dtype unknown": {"a": usual(dtype="F33")},
    "a dtype of a list": {"a": usual(dtype=["F32"])},
    "a negative size": {"a": usual(shape=[-2])},
    "a size of true": {"a": usual(shape=[True, 2])},
    "a size of 2.0": {"a": usual(shape=[2.0])},
    "sizes that overflow": {"a": usual(shape=[1 << 62, 1 << 62, 0])},
    "many sizes": {"a": usual(shape=[2] * 5000)},
    "too few bytes": {"a": usual(shape=[3])},
    "three offsets": {"a": usual(data_offsets=[0, 8, 8])},
    "offsets that go back": {"a": usual(data_offsets=[8, 0])},
    "offsets of texts": {"a": usual(data_offsets=["0", "8"])},
    "a hole at the start": {"a": usual(shape=[1], data_offsets=[4, 8])},
    "a hole at the end": {"a": usual(shape=[1], data_offsets=[0, 4])},
    "beyond the end": {"a": usual(shape=[4], data_offsets=[0, 16])},
    "an overlap": {"a": usual(), "b": usual(shape=[1], data_offsets=[4, 8])},
    "the same bytes": {"a": usual(), "b": usual()},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers(name: str) -> None:
    text = HOSTILE[name]
    text = text if isinstance(text, bytes) else json.dumps(text).encode()
    assert accepts(file_of(json.dumps({"a": usual()}).encode(), bytes(8)))
    with pytest.raises(FormatError, match="x.safetensors"):
        header.parse_header(WHERE, text, 8 + len(text) + 8)


@pytest.mark.parametrize(
    "data",
    [b"", b"\x10", b"\xff" * 8, (100).to_bytes(8, "little") + b"{}", b"PK\3\4" + bytes(20)],
    ids=["empty", "short", "huge", "cut", "zip"],
)
def test_files_that_are_none(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(data)
    with pytest.raises(FormatError):
        Checkpoint(path)


def test_a_giant_header_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    size = header.MAX_HEADER_BYTES + 1
    with open(path, "wb") as file:
        file.write(size.to_bytes(8, "little"))
        file.truncate(size + 8)
    tracemalloc.start()
    with pytest.raises(FormatError, match="at most"):
        Checkpoint(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def mutated(draw: random.Random, data: bytes) -> bytes:
    """Change a file's header a little, or much."""
    text, size = parts(data)
    found = bytearray(text)
    for _ in range(draw.choice([1, 1, 1, 2, 5])):
        place = draw.randrange(len(found))
        kind = draw.random()
        if kind < 0.3:
            found[place] = draw.choice(b'0123456789{}[]",:-.eE \\tFBI')
        elif kind < 0.4:
            found[place] = draw.randrange(256)
        elif kind < 0.6:
            del found[place : place + draw.choice([1, 1, 4, 40])]
        elif kind < 0.8:
            found[place:place] = draw.choice([b"0", b"9", b"[", b'"a":', b'{"a":1},', b" ", b"1e1"])
        else:
            stop = place + draw.randrange(1, 80)
            found[place:place] = found[place:stop]
        if not found:
            found = bytearray(b"{")
    return file_of(bytes(found), data[size - (size - 8 - len(text)) :])


def agree(count: int, seed: int) -> int:
    """Compare with the format's own library; returns how many mutations both accept."""
    draw = random.Random(seed)
    originals = [save(made.weights(size=3), {"a": "b"}), save({"a": torch.ones(2)}), save({})]
    both = 0
    for _ in range(count):
        data = mutated(draw, draw.choice(originals))
        if not accepts(data):
            continue
        safetensors.deserialize(data)  # what is accepted here must be accepted there
        both += 1
    return both


def test_mutated_headers_are_refused_or_sound() -> None:
    assert agree(20_000, seed=0) > 100


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_million_mutated_headers() -> None:
    tracemalloc.start()
    assert agree(1_000_000, seed=1) > 5000
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


# --- folders --------------------------------------------------------------------------------------


def broken(path: Path, change: Any) -> str:
    index = path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    change(content["weight_map"])
    index.write_text(json.dumps(content))
    with pytest.raises((FormatError, OSError)) as error:
        Checkpoint(path)
    return str(error.value)


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/x.safetensors", "..", "", "a/b.safetensors", "a\0b", 3]
)
def test_an_index_that_leaves_its_folder(tmp_path: Path, name: Any) -> None:
    save_file({"ids": torch.ones(1)}, tmp_path / "secret.safetensors")
    path = made.save(made.weights(), tmp_path / "m", 2)
    assert "beside it" in broken(path, lambda files: files.update(ids=name))


def test_an_index_that_does_not_fit(tmp_path: Path) -> None:
    path = made.save(made.weights(), tmp_path / "m", 2)
    files = sorted(file.name for file in path.glob("*.safetensors"))
    before = made.contents(path)
    for change in (
        lambda names: names.pop("ids"),
        lambda names: names.update(more=files[0]),
        lambda names: names.update(ids=files[names["ids"] == files[0]]),
    ):
        (path / "model.safetensors.index.json").write_bytes(before["model.safetensors.index.json"])
        assert "must name the tensors" in broken(path, change)
    assert "pickle" in broken(path, lambda names: names.update(ids="pytorch_model.bin"))
    assert "No such file" in broken(path, lambda names: names.update(ids="x.safetensors"))


def test_a_tensor_in_two_files(tmp_path: Path) -> None:
    path = made.save(made.weights(), tmp_path / "m", 2)
    for file in path.glob("*.safetensors"):
        save_file({"ids": torch.ones(1)}, file)
    with pytest.raises(FormatError, match="one file"):
        Checkpoint(path)


def test_folders_without_an_index(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="got none"):
        Checkpoint(tmp_path)
    made.save(made.weights(), tmp_path / "a.safetensors")
    with Checkpoint(tmp_path) as checkpoint:
        assert checkpoint.tensors.keys() == made.weights().keys()
    made.save(made.weights(), tmp_path / "b.safetensors")
    with pytest.raises(FormatError, match=r"a\.safetensors, b\.safetensors"):
        Checkpoint(tmp_path)
    for name in "ab":
        (tmp_path / f"{name}.safetensors.index.json").write_text("{}")
    with pytest.raises(FormatError, match="one index"):
        Checkpoint(tmp_path)


def test_files_are_closed(tmp_path: Path) -> None:
    path = made.save(made.weights(), tmp_path / "m", 3)
    before = len(os.listdir("/proc/self/fd"))
    with Checkpoint(path):
        assert len(os.listdir("/proc/self/fd")) - before in (3, 6)  # direct I/O, or none
    (path / "model-00003-of-00003.safetensors").write_bytes(b"")
    with pytest.raises(FormatError):
        Checkpoint(path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_that_is_cut_off(tmp_path: Path) -> None:
    path = made.save(made.weights(), tmp_path / "m.safetensors")
    with Checkpoint(path) as checkpoint:
        os.truncate(path, path.stat().st_size - 8)
        with pytest.raises(FormatError, match="shorter"):
            checkpoint.read_into(0, path.stat().st_size - 8, memoryview(bytearray(32)))
