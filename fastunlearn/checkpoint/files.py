"""A checkpoint on disk: a safetensors file, or a folder of them with an index."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from fastunlearn.checkpoint.header import (
    DTYPES,
    Entry,
    FormatError,
    Header,
    parse_json,
    read_header,
)
from fastunlearn.checkpoint.reading import Reader, has_room, open_direct, readers

INDEX = ".safetensors.index.json"
SUFFIX = ".safetensors"
_MOST_INDEX_BYTES = 1 << 26
_PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")


class File(NamedTuple):
    """An open safetensors file.

    Attributes:
        name: inside the checkpoint's folder.
        reader: of its bytes.
        status: size and times when it was opened.
    """

    name: str
    reader: Reader
    header: Header
    status: tuple[int, int]


class Stored(NamedTuple):
    """A tensor, and the number of the file that has it."""

    file: int
    entry: Entry


class Checkpoint:
    """The tensors of a checkpoint, open for reading until closed.

    Files are read (see `reading`), never mapped: what is read is bounded by the buffers of whoever
    reads, and an error of the disk is an OSError.

    Args:
        path: a safetensors file, or a folder with one file of that kind, or with an index
            `*.safetensors.index.json`.
        again: whether it will be read more than once. Then it goes through the page cache, if
            memory has room for it; else past it.

    Attributes:
        path: as given. folder: whether it is one. index: name of its index, or None.
        files: those that hold the tensors.
        tensors: by name, sorted. This is the order of their flat indices; it does not depend on how
            the tensors are spread over files.

    Raises:
        FormatError: a file is not as it must be, or the index does not fit the files.
        OSError: a file cannot be read.
    """

    def __init__(self, path: str | Path, *, again: bool = False) -> None:
        self.path = Path(path)
        self.folder = self.path.is_dir()
        self.index: str | None = None
        self.files: list[File] = []
        with ExitStack() as stack:
            self._stack = stack
            self._pool = stack.enter_context(readers())
            weight_map = self._look_around()
            names = sorted(set(weight_map.values())) if weight_map else [self._only_file()]
            size = sum((self.parent / name).stat().st_size for name in names) if again else 0
            cached = again and has_room(size)
            for name in names:
                self.files.append(self._open(name, cached))
            self.tensors = self._merge(weight_map)
            self._stack = stack.pop_all()

    @property
    def parent(self) -> Path:
        """Folder of the files."""
        return self.path if self.folder else self.path.parent

    def close(self) -> None:
        """Close the files."""
        self._stack.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def in_file_order(self) -> Iterator[tuple[int, str, Entry]]:
        """Yield file number, name and entry of every tensor, in the order of their bytes."""
        for number, file in enumerate(self.files):
            for name, entry in file.header.entries.items():
                yield number, name, entry

    def itemsize(self, name: str) -> int:
        """Bytes of an element of a tensor; 1 where its dtype is one that nothing is done to."""
        dtype = self.tensors[name].entry.dtype
        return DTYPES[dtype].itemsize if dtype in DTYPES else 1

    def read_into(self, file: int, start: int, buffer: memoryview) -> None:
        """Fill a buffer with the bytes of a file from `start` on.

        Raises:
            FormatError: the file has become shorter.
        """
        if self.files[file].reader.into(start, buffer) < len(buffer):
            raise FormatError(f"{self._name(file)} must stay as it is, got a shorter file")

    def check_unchanged(self) -> None:
        """Refuse files that were written to since they were opened.

        Raises:
            FormatError: one was.
        """
        for number, file in enumerate(self.files):
            if _status(file.reader.fd) != file.status:
                raise FormatError(f"{self._name(number)} must stay as it is, got a changed file")

    def _name(self, file: int) -> Path:
        return self.parent / self.files[file].name

    def _look_around(self) -> dict[str, str]:
        """Find and read the index of a folder; empty where there is none."""
        if not self.folder:
            return {}
        found = sorted(entry.name for entry in self.path.iterdir() if entry.name.endswith(INDEX))
        if len(found) > 1:
            raise FormatError(f"{self.path} must have one index, got {', '.join(found)}")
        if not found:
            return {}
        self.index = found[0]
        path = self.path / self.index
        if path.stat().st_size > _MOST_INDEX_BYTES:
            raise FormatError(f"{path} must have at most {_MOST_INDEX_BYTES} bytes, got more")
        weight_map = parse_json(path, path.read_bytes()).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise FormatError(f"{path} must have a weight_map with tensors, got none")
        for name in weight_map.values():
            if not isinstance(name, str) or not _is_plain(name):
                raise FormatError(f"{path} must name files beside it, got {name!r}")
        return weight_map

    def _only_file(self) -> str:
        if not self.folder:
            return self.path.name
        found = sorted(entry.name for entry in self.path.iterdir() if entry.name.endswith(SUFFIX))
        if len(found) != 1:
            got = ", ".join(found) or "none"
            raise FormatError(f"{self.path} must have an index or one {SUFFIX} file, got {got}")
        return found[0]

    def _open(self, name: str, cached: bool) -> File:
        path = self.parent / name
        if path.suffix in _PICKLES:
            raise FormatError(f"{path} must be a {SUFFIX} file, got a pickle, which can run code")
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._stack.callback(os.close, fd)
        direct = None if cached else open_direct(fd)
        if direct is not None:
            self._stack.callback(os.close, direct)
        return File(name, Reader(fd, direct, self._pool), read_header(path, fd), _status(fd))

    def _merge(self, weight_map: dict[str, str]) -> dict[str, Stored]:
        tensors: dict[str, Stored] = {}
        for number, name, entry in self.in_file_order():
            if name in tensors:
                both = self.files[tensors[name].file].name, self.files[number].name
                raise FormatError(f"{self.path}: tensor {name!r} must lie in one file, got {both}")
            tensors[name] = Stored(number, entry)
        if weight_map and weight_map != {n: self.files[t.file].name for n, t in tensors.items()}:
            raise FormatError(
                f"{self.path / str(self.index)} must name the tensors of the files and no others"
            )
        return dict(sorted(tensors.items()))


def _status(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_size, found.st_mtime_ns


def _is_plain(name: str) -> bool:
    """Whether a name is that of a file in the folder itself."""
    return name == os.path.basename(name) and name not in ("", ".", "..") and "\0" not in name
