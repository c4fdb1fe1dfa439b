"""The file of a sparse patch: which elements of a checkpoint change, and how.

A safetensors file with four tensors:

- `gaps` (U8): of each segment, the elements between one changed element and the next, LEB128;
- `xor` (U8): of each changed element, its bits before XOR its bits after, in its own width;
- `segments` (I64, shape (n, 4)): number of the tensor, first element, number of changed elements
  and bytes of gaps of each segment;
- `tensors` (U8): JSON, `[name, dtype, shape]` of each tensor that changes;

and in its metadata the format and the digests of the checkpoints before and after. One XOR serves
both directions.
"""

from __future__ import annotations

import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fastunlearn.checkpoint import stream
from fastunlearn.checkpoint.files import Checkpoint
from fastunlearn.checkpoint.header import DTYPES, KNOWN, FormatError, parse_json
from fastunlearn.checkpoint.output import Output, write_all
from fastunlearn.checkpoint.stream import Run, Slice

FORMAT = "fastunlearn.patch/1"
_TENSORS = ("gaps", "xor", "segments", "tensors")
_COLUMNS = 4
_GROUP = 7  # bits that a byte of LEB128 carries
_MOST_GROUPS = 4  # a gap is below stream.SEGMENT
_UNITS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_COPIED_BYTES = 1 << 24
_MOST_NAMES_BYTES = 1 << 26

Bytes = npt.NDArray[np.uint8]
Index = npt.NDArray[np.int64]


def unit_of(dtype: str) -> Any:
    """The integers as which elements of a dtype are compared; bytes, where a slice counts those."""
    return _UNITS[DTYPES[dtype].itemsize] if dtype in DTYPES else np.uint8


def encode_gaps(index: Index) -> Bytes:
    """Encode ascending indices as LEB128 of the number of elements between them."""
    gaps = np.diff(index, prepend=-1) - 1
    sizes = np.ones_like(gaps)
    for i in range(1, _MOST_GROUPS):
        sizes += gaps >= 1 << _GROUP * i
    starts = np.cumsum(sizes) - sizes
    found = np.empty(int(sizes.sum()), dtype=np.uint8)
    for i in range(_MOST_GROUPS):
        here = sizes > i
        more = (sizes[here] > i + 1).astype(np.int64) << _GROUP
        found[starts[here] + i] = gaps[here] >> _GROUP * i & 0x7F | more
    return found


def decode_gaps(encoded: Bytes, count: int, numel: int) -> Index:
    """Decode what `encode_gaps` gave.

    Raises:
        ValueError: it is not `count` ascending indices below `numel`.
    """
    ends = np.flatnonzero(encoded < 1 << _GROUP)
    if len(ends) != count or (len(encoded) > 0 and (not count or ends[-1] != len(encoded) - 1)):
        raise ValueError(f"{count} whole gaps, got {len(ends)} in {len(encoded)} bytes")
    if not count:
        return np.zeros(0, dtype=np.int64)
    starts = np.concatenate(([0], ends[:-1] + 1))
    sizes = ends - starts + 1
    if int(sizes.max()) > _MOST_GROUPS:
        raise ValueError(f"gaps of at most {_MOST_GROUPS} bytes, got {int(sizes.max())}")
    place = np.arange(len(encoded)) - np.repeat(starts, sizes)
    gaps = np.add.reduceat((encoded & 0x7F).astype(np.int64) << _GROUP * place, starts)
    index = np.cumsum(gaps + 1) - 1
    if int(index[-1]) >= numel:
        raise ValueError(f"indices below {numel}, got {int(index[-1])}")
    return index


class PatchWriter:
    """A sink that writes a patch.

    Use it as a context manager; `commit` brings the patch to its place.

    Args:
        path: where the patch goes.
        source: the checkpoint before.
        overwrite: whether something may be there.

    Attributes:
        changed: number of elements that change so far.
    """

    wants_before = True

    def __init__(self, path: Path, source: Checkpoint, overwrite: bool) -> None:
        self.source = source
        self.numbers: dict[str, int] = {}
        self.segments: list[tuple[int, int, int, int]] = []
        self.changed = 0
        with ExitStack() as stack:
            output = Output(path, names=None, mode=0o644, overwrite=overwrite)
            self.output = stack.enter_context(output)
            # their sizes must be known before their places in the patch are
            self.gaps, self.xor = (
                stack.enter_context(tempfile.TemporaryFile(dir=path.parent)) for _ in range(2)
            )
            self._stack = stack.pop_all()

    def __enter__(self) -> PatchWriter:
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def take(self, run: Run, before: Tensor | None, after: Tensor) -> None:
        """See `rewrite.Sink`."""
        assert before is not None
        for part in run.slices:
            place = slice(part.at - run.start, part.stop - run.start)
            self.add(part, before[place].numpy(), after[place].numpy())

    def add(self, part: Slice, before: Bytes, after: Bytes) -> None:
        """Add what changes in a slice."""
        if np.array_equal(before, after):
            return
        unit = unit_of(part.entry.dtype)
        xor = before.view(unit) ^ after.view(unit)
        index = np.flatnonzero(xor)
        gaps = encode_gaps(index)
        number = self.numbers.setdefault(part.name, len(self.numbers))
        self.segments.append((number, part.first, len(index), len(gaps)))
        self.changed += len(index)
        self.gaps.write(gaps.data)
        self.xor.write(xor[index].view(np.uint8).data)

    def commit(self, before: str, after: str) -> None:
        """Write the patch to its place.

        Args:
            before, after: digests of the checkpoints.
        """
        entries = [self.source.tensors[name].entry for name in self.numbers]
        listed = [[n, e.dtype, e.shape] for n, e in zip(self.numbers, entries, strict=True)]
        segments = np.array(self.segments, dtype="<i8").reshape(-1, _COLUMNS)
        names = json.dumps(listed).encode()
        sizes = (self.gaps.tell(), self.xor.tell(), segments.nbytes, len(names))
        shapes = ([sizes[0]], [sizes[1]], list(segments.shape), [sizes[3]])
        header: dict[str, Any] = {
            "__metadata__": {"format": FORMAT, "before": before, "after": after}
        }
        at = 0
        # in the order of the bytes: that of widths, as others like it
        for i in (2, 0, 1, 3):
            dtype = "I64" if i == 2 else "U8"
            offsets = [at, at + sizes[i]]
            header[_TENSORS[i]] = {"dtype": dtype, "shape": shapes[i], "data_offsets": offsets}
            at += sizes[i]
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        fd = self.output.file("")
        start = 0
        for data in (len(text).to_bytes(8, "little") + text, segments.tobytes()):
            write_all(fd, memoryview(data), start)
            start += len(data)
        for part in (self.gaps, self.xor):
            start = _append(fd, start, part)
        write_all(fd, memoryview(names), start)
        self.output.commit()


def _append(fd: int, start: int, part: IO[bytes]) -> int:
    """Copy a file to another from byte `start` on; returns where it ends there."""
    part.seek(0)
    while data := part.read(_COPIED_BYTES):
        write_all(fd, memoryview(data), start)
        start += len(data)
    return start


class Patch:
    """A patch, open for reading until closed.

    Attributes:
        before, after: digests of the checkpoints that it leads from and to.
        tensors: dtype and shape of the tensors that change, by name.
        changed: number of elements that change.

    Raises:
        FormatError: the file is no patch, or not a consistent one.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.file = Checkpoint(path)
        try:
            self._read()
        except BaseException:
            self.file.close()
            raise

    def __enter__(self) -> Patch:
        return self

    def __exit__(self, *error: Any) -> None:
        self.file.close()

    @property
    def file_bytes(self) -> int:
        """Size of the file."""
        return self.file.files[0].status[0]

    def xor_into(self, part: Slice, raw: Bytes) -> None:
        """Change a slice, its bytes given, in place. The same again takes it back."""
        place = self._places.get((part.name, part.first))
        if place is None:
            return
        count, gaps_at, gaps_bytes, xor_at = place
        unit = unit_of(part.entry.dtype)
        try:
            index = decode_gaps(self._bytes("gaps", gaps_at, gaps_bytes), count, part.numel)
        except ValueError as error:
            where = f"{self.path}: a segment of {part.name!r}"
            raise FormatError(f"{where} must have {error}") from error
        xor = self._bytes("xor", xor_at, count * unit().itemsize).view(unit)
        raw.view(unit)[index] ^= xor

    def check_fits(self, source: Checkpoint) -> None:
        """Refuse a checkpoint that lacks what the patch changes."""
        for name, (dtype, shape) in self.tensors.items():
            entry = source.tensors[name].entry if name in source.tensors else None
            if entry is None or (entry.dtype, entry.shape) != (dtype, shape):
                got = "none" if entry is None else f"{entry.dtype} {entry.shape}"
                raise ValueError(
                    f"patch: {source.path} must have a tensor {name!r}, {dtype} {shape}, got {got}"
                )

    def _read(self) -> None:
        about = self.file.files[0].header.metadata if self.file.files else {}
        kinds = {name: stored.entry.dtype for name, stored in self.file.tensors.items()}
        wanted = dict(zip(_TENSORS, ("U8", "U8", "I64", "U8"), strict=True))
        if about.get("format") != FORMAT or kinds != wanted:
            raise FormatError(f"{self.path} must be a patch of format {FORMAT}, got another file")
        self.before, self.after = about.get("before", ""), about.get("after", "")
        self.tensors = self._names()
        shape = self.file.tensors["segments"].entry.shape
        if len(shape) != 2 or shape[1] != _COLUMNS:
            raise FormatError(f"{self.path}: segments must have shape (n, 4), got {shape}")
        stored = self._bytes("segments", 0, 8 * shape[0] * _COLUMNS)
        self._place(stored.view("<i8").reshape(shape))

    def _names(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        size = self.file.tensors["tensors"].entry.numel
        if size > _MOST_NAMES_BYTES:
            raise FormatError(f"{self.path}: tensors must have fewer bytes, got {size}")
        text = b'{"tensors":' + self._bytes("tensors", 0, size).tobytes() + b"}"
        found: dict[str, tuple[str, tuple[int, ...]]] = {}
        listed = parse_json(self.path, text)["tensors"]
        for item in listed if isinstance(listed, list) else [listed]:
            kinds = list(map(type, item)) if isinstance(item, list) else []
            name, dtype, shape = item if kinds == [str, str, list] else ("", "", [])
            if dtype not in KNOWN or name in found:
                raise FormatError(f"{self.path}: tensors must list names, got {item!r:.200}")
            found[name] = (dtype, tuple(shape))
        return found

    def _place(self, segments: npt.NDArray[np.int64]) -> None:
        """Find where the bytes of each segment are."""
        names, gaps_at, xor_at = list(self.tensors), 0, 0
        sizes = [self.file.tensors[name].entry.numel for name in ("gaps", "xor")]
        self._places: dict[tuple[str, int], tuple[int, int, int, int]] = {}
        for number, first, count, gaps_bytes in segments.tolist():
            usual = 0 <= number < len(names) and first % stream.SEGMENT == 0
            if not (usual and 0 < count <= min(gaps_bytes, stream.SEGMENT)):
                raise FormatError(f"{self.path}: segments must be of the format, got another row")
            key = (names[number], first)
            if key in self._places or gaps_bytes > _MOST_GROUPS * count:
                raise FormatError(f"{self.path}: segments must come once, got {key} again")
            self._places[key] = (count, gaps_at, gaps_bytes, xor_at)
            gaps_at += gaps_bytes
            xor_at += count * unit_of(self.tensors[key[0]][0])().itemsize
        if [gaps_at, xor_at] != sizes:
            raise FormatError(
                f"{self.path}: segments must use {sizes} bytes, got {[gaps_at, xor_at]}"
            )
        self.changed = sum(place[0] for place in self._places.values())

    def _bytes(self, name: str, start: int, size: int) -> Bytes:
        found = np.empty(size, dtype=np.uint8)
        self.file.read_into(0, self.file.tensors[name].entry.start + start, found.data)
        return found
