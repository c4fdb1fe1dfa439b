"""Walks over a checkpoint in pieces of bounded size, while the next piece is being read."""

from __future__ import annotations

import hashlib
import itertools
import json
import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from fastunlearn.checkpoint.files import Checkpoint
from fastunlearn.checkpoint.header import DTYPES, Entry
from fastunlearn.checkpoint.reading import LARGE, PAGE

SEGMENT = 1 << 22  # elements; tensors are cut at multiples of it
_ALIGNMENT = 64  # of the elements of a slice

T = TypeVar("T")


class Slice(NamedTuple):
    """Consecutive elements of a tensor.

    Attributes:
        name, entry: of the tensor.
        first, numel: its elements; bytes, where the dtype is one that nothing is done to.
        at, stop: their bytes in the file.
    """

    name: str
    entry: Entry
    first: int
    numel: int
    at: int
    stop: int


class Run(NamedTuple):
    """Consecutive bytes of one file: slices without a gap between them."""

    file: int
    start: int
    stop: int
    slices: list[Slice]


def runs(checkpoint: Checkpoint, most_bytes: int, names: set[str] | None = None) -> Iterator[Run]:
    """Cut a checkpoint into runs, in the order of the tensors' names.

    That is the order of flat indices, and mostly that of the bytes too: those who write checkpoints
    sort them by dtype and name.

    Args:
        checkpoint: to be walked.
        most_bytes: of a run; a single slice may have more.
        names: of the tensors that are wanted; None for all.
    """
    found: list[Slice] = []
    last = -1
    for name, (file, entry) in checkpoint.tensors.items():
        if names is not None and name not in names:
            continue
        for part in _slices(name, entry):
            fits = found and last == file and found[-1].stop == part.at
            if found and not (fits and part.stop - found[0].at <= most_bytes):
                yield Run(last, found[0].at, found[-1].stop, found)
                found = []
            found.append(part)
            last = file
    if found:
        yield Run(last, found[0].at, found[-1].stop, found)


def _slices(name: str, entry: Entry) -> Iterator[Slice]:
    size = DTYPES[entry.dtype].itemsize if entry.dtype in DTYPES else 1
    count = (entry.stop - entry.start) // size
    for first in range(0, count, SEGMENT):
        here = min(SEGMENT, count - first)
        at = entry.start + first * size
        yield Slice(name, entry, first, here, at, at + here * size)
    if count == 0:
        yield Slice(name, entry, 0, 0, entry.start, entry.stop)


class Ring:
    """Buffers that are used in turn, so that the kernel need not find new pages for each run.

    Args:
        count: of buffers. One is used again when so many others have been.
        most_bytes: of each.
    """

    def __init__(self, count: int, most_bytes: int) -> None:
        # room for what lies at the same distance from a page as in its file: two pages for each
        self._size = most_bytes + 2 * PAGE * (1 + most_bytes // LARGE)
        self._buffers = itertools.cycle(
            [torch.frombuffer(mmap.mmap(-1, self._size), dtype=torch.uint8) for _ in range(count)]
        )

    def next(self, size: int, skew: int = 0) -> Tensor:
        """Return uint8 of shape (size,) that begins `skew` bytes after the begin of a page.

        New memory where that is more than a buffer has, as for very many very small tensors.
        """
        if skew + size > self._size:
            return torch.empty(size, dtype=torch.uint8)
        return next(self._buffers)[skew : skew + size]


class Piece:
    """The bytes of a run in memory.

    Args:
        checkpoint: that the run is of; it is read from.
        run: what to read.
        ring: gives the memory.

    Attributes:
        run: as given.
        bytes: uint8, shape (stop - start,).
    """

    def __init__(self, checkpoint: Checkpoint, run: Run, ring: Ring) -> None:
        self.run = run
        # what is aligned in the file is aligned here
        self.bytes = ring.next(run.stop - run.start, run.start % PAGE)
        checkpoint.read_into(run.file, run.start, memory(self.bytes))

    def raw(self, part: Slice) -> Tensor:
        """The bytes of a slice; a view."""
        return self.bytes[part.at - self.run.start : part.stop - self.run.start]

    def elements(self, part: Slice) -> Tensor:
        """The elements of a slice, shape (numel,): a view, or a copy where it lies unaligned."""
        raw, dtype = self.raw(part), DTYPES[part.entry.dtype]
        if raw.data_ptr() % dtype.itemsize:
            raw = raw.clone()
        return raw.view(dtype)


def memory(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous uint8 tensor."""
    return tensor.numpy().data


def read_slice(
    checkpoint: Checkpoint, name: str, first: int, count: int, into: Tensor | None = None
) -> Tensor:
    """Read elements first .. first + count of a tensor; shape (count,).

    Args:
        into: uint8 memory for them, at least as much as they need; None for new memory.
    """
    file, entry = checkpoint.tensors[name]
    dtype = DTYPES[entry.dtype]
    size = count * dtype.itemsize
    raw = torch.empty(size, dtype=torch.uint8) if into is None else into[:size]
    checkpoint.read_into(file, entry.start + first * dtype.itemsize, memory(raw))
    return raw.view(dtype)


def read_slices(checkpoint: Checkpoint, parts: Sequence[Slice], ring: Ring) -> list[Tensor]:
    """Read from one checkpoint the elements of slices of another."""
    begins, end = [], 0
    for part in parts:
        itemsize, entry = checkpoint.itemsize(part.name), checkpoint.tensors[part.name].entry
        large = part.numel * itemsize >= LARGE
        # what is aligned in the file is aligned here, if it is read past the page cache
        skew = (entry.start + part.first * itemsize) % PAGE if large else 0
        begins.append(_up(end, PAGE if large else _ALIGNMENT) + skew)
        end = begins[-1] + part.numel * itemsize
    room = ring.next(end)
    return [
        read_slice(checkpoint, part.name, part.first, part.numel, room[begin:])
        for part, begin in zip(parts, begins, strict=True)
    ]


def _up(place: int, alignment: int) -> int:
    return -(-place // alignment) * alignment


def ahead(jobs: Iterable[Callable[[], T]]) -> Iterator[T]:
    """Yield the result of each job, while the next one runs in a thread of its own."""
    with ThreadPoolExecutor(1, "fastunlearn-read") as pool:
        waiting: Future[T] | None = None
        try:
            for job in jobs:
                coming = pool.submit(job)
                if waiting is not None:
                    yield waiting.result()
                waiting = coming
            if waiting is not None:
                yield waiting.result()
        finally:
            pool.shutdown(cancel_futures=True)


class Digest:
    """SHA-256 of every tensor, and of them all together.

    The digest of a checkpoint is the SHA-256 of the lines of JSON `[name, dtype, shape, SHA-256 of
    the bytes]`, by name. So it depends neither on how tensors are spread over files, nor on
    metadata.
    """

    def __init__(self) -> None:
        self._open: dict[str, tuple[Entry, hashlib._Hash]] = {}
        self.tensors: dict[str, str] = {}
        self._lines: dict[str, str] = {}

    def add(self, part: Slice, raw: Tensor) -> None:
        """Take in a slice; those of one tensor in their order."""
        if part.first == 0:
            self._open[part.name] = (part.entry, hashlib.sha256())
        entry, found = self._open[part.name]
        found.update(memory(raw))
        if part.stop == entry.stop:
            del self._open[part.name]
            self.tensors[part.name] = found.hexdigest()
            line = [part.name, entry.dtype, entry.shape, found.hexdigest()]
            self._lines[part.name] = json.dumps(line) + "\n"

    def add_all(self, piece: Piece) -> None:
        """Take in the slices of a run, but those of tensors that were taken in before."""
        for part in piece.run.slices:
            if part.name not in self.tensors:
                self.add(part, piece.raw(part))

    def total(self) -> str:
        """The digest of what was taken in."""
        found = hashlib.sha256()
        for name in sorted(self._lines):
            found.update(self._lines[name].encode())
        return found.hexdigest()


def digest_of(checkpoint: Checkpoint, most_bytes: int) -> Digest:
    """Read a whole checkpoint for its digest."""
    digest = Digest()
    ring = Ring(2, max(most_bytes, 8 * SEGMENT))
    for piece in ahead(_reader(checkpoint, run, ring) for run in runs(checkpoint, most_bytes)):
        digest.add_all(piece)
    return digest


def _reader(checkpoint: Checkpoint, run: Run, ring: Ring) -> Callable[[], Piece]:
    return lambda: Piece(checkpoint, run, ring)
