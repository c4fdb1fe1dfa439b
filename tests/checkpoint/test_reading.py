"""Reads past the page cache and through it give the bytes of the file."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import fastunlearn as fu
from fastunlearn import checkpoint as ck
from fastunlearn.checkpoint import reading
from fastunlearn.checkpoint.files import Checkpoint
from fastunlearn.checkpoint.reading import LARGE, PAGE, Reader, has_room, open_direct, readers

SIZE = 5 * LARGE + 1234
WAYS = ("cold", "half", "warm", "none")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture(params=WAYS)
def reader(path: Path, request: Any, monkeypatch: Any) -> Iterator[Reader]:
    """Whether the file lies in the page cache: not at all, in part, or whole; or no direct I/O."""
    monkeypatch.setattr(reading, "_PART", LARGE)
    with open(path, "rb") as file, readers() as pool:
        os.fsync(file.fileno())
        if request.param != "warm":
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if request.param == "half":
            os.pread(file.fileno(), 3 * LARGE, 0)
        direct = None if request.param == "none" else open_direct(file.fileno())
        if request.param != "none" and direct is None:
            pytest.skip("this file system takes no direct I/O")
        yield Reader(file.fileno(), direct, pool)
        if direct is not None:
            os.close(direct)


@pytest.mark.parametrize("skew", [0, 1, 64, PAGE - 1])
@pytest.mark.parametrize(
    ("start", "count"),
    [(0, SIZE), (PAGE, 3 * LARGE), (77, 4 * LARGE + 5), (PAGE - 1, LARGE), (5, 100), (0, 0)],
)
def test_the_bytes_of_the_file(
    path: Path, reader: Reader, start: int, count: int, skew: int
) -> None:
    """At the same distance from a page as in the file, and at others."""
    room = memoryview(mmap.mmap(-1, SIZE + 2 * PAGE))
    for begin in (start % PAGE, skew):
        buffer = room[begin : begin + count]
        assert reader.into(start, buffer) == count
        assert buffer == path.read_bytes()[start : start + count]


@pytest.mark.parametrize("beyond", [1, PAGE, 2 * LARGE])
def test_the_end_of_the_file(path: Path, reader: Reader, beyond: int) -> None:
    start = LARGE
    buffer = memoryview(mmap.mmap(-1, SIZE - start + beyond))
    assert reader.into(start, buffer) == SIZE - start
    assert buffer[: SIZE - start] == path.read_bytes()[start:]


class Recorder:
    """`os.preadv` that notes its calls, and may fail."""

    def __init__(self, fails: dict[int, int]) -> None:
        self.fails, self.calls, self.real = fails, [], os.preadv

    def __call__(self, fd: int, buffers: Any, start: int, flags: int = 0) -> int:
        self.calls.append((fd, start, sum(map(len, buffers)), flags))
        if fd in self.fails and flags == 0:
            raise OSError(self.fails[fd], os.strerror(self.fails[fd]))
        return self.real(fd, buffers, start, flags)


def test_a_cold_file_goes_past_the_page_cache(path: Path, monkeypatch: Any) -> None:
    with open(path, "rb") as file, readers() as pool:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        direct = open_direct(file.fileno())
        assert direct is not None
        recorder = Recorder({})
        monkeypatch.setattr(os, "preadv", recorder)
        Reader(file.fileno(), direct, pool).into(0, memoryview(mmap.mmap(-1, SIZE)))
        past = sum(count for fd, _, count, _ in recorder.calls if fd == direct)
        assert past > 4 * LARGE
        os.close(direct)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EIO])
def test_errors_of_direct_reads(path: Path, monkeypatch: Any, code: int) -> None:
    """What the file system cannot do is done the other way; a broken disk is told."""
    with open(path, "rb") as file, readers() as pool:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        direct = open_direct(file.fileno())
        assert direct is not None
        monkeypatch.setattr(os, "preadv", Recorder({direct: code}))
        buffer = memoryview(mmap.mmap(-1, SIZE))
        reader = Reader(file.fileno(), direct, pool)
        if code == errno.EIO:
            with pytest.raises(OSError, match="Input/output error"):
                reader.into(0, buffer)
        else:
            assert reader.into(0, buffer) == SIZE and buffer == path.read_bytes()
        os.close(direct)


def test_an_error_through_the_page_cache_is_told(path: Path, monkeypatch: Any) -> None:
    for code in (errno.EIO, errno.EINVAL):
        with open(path, "rb") as file, readers() as pool:
            monkeypatch.setattr(os, "preadv", Recorder({file.fileno(): code}))
            with pytest.raises(OSError, match=os.strerror(code)):
                Reader(file.fileno(), None, pool).into(0, memoryview(bytearray(9)))
            monkeypatch.undo()


def test_what_is_read_again_goes_through_the_page_cache(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "m.safetensors"
    save_file({"a": torch.zeros(10)}, file)
    assert has_room(1 << 20) and not has_room(1 << 60)
    with Checkpoint(file, again=True) as one, Checkpoint(file) as other:
        assert one.files[0].reader._direct is None
        assert other.files[0].reader._direct is not None


@pytest.mark.parametrize("room", [True, False])
def test_large_tensors_at_odd_places(tmp_path: Path, monkeypatch: Any, room: bool) -> None:
    """Weights and scores whose tensors begin at any distance from a page."""
    monkeypatch.setattr("fastunlearn.checkpoint.files.has_room", lambda size: room)
    draw = torch.Generator().manual_seed(0)
    shapes = {"a": 3_000_001, "b": 7, "c": 5_000_003, "d": 1_000_000}
    tensors = {n: torch.randn(s, generator=draw).to(torch.bfloat16) for n, s in shapes.items()}
    scores = {n: torch.randn(s, generator=draw) for n, s in shapes.items()}
    for name, value in (("m", tensors), ("s", scores)):
        save_file(value, tmp_path / f"{name}.safetensors")
        with open(tmp_path / f"{name}.safetensors", "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    strategy = fu.TopK(0.1, std=0.1)
    out = tmp_path / "o.safetensors"
    found = ck.perturb(
        tmp_path / "m.safetensors", out, strategy, scores=tmp_path / "s.safetensors", seed=3
    )
    wanted = {name: value.clone() for name, value in tensors.items()}
    fu.perturb_(wanted, strategy, scores=scores, seed=3)
    from safetensors.torch import load_file

    loaded = load_file(out)
    assert all(torch.equal(loaded[name], value) for name, value in wanted.items())
    assert ck.verify(out, found).different == ()
