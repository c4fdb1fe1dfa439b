"""The header of a safetensors file, read strictly and before anything else of the file.

Source of the format: huggingface.co/docs/safetensors. A file is the size of the header (8 bytes,
little-endian), the header (JSON, padded with spaces at will), and the tensors, without a gap.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch

MAX_HEADER_BYTES = 1 << 25  # about 250,000 tensors; what parsing needs is bounded by it
_SIZE_BYTES = 8
_MOST = (1 << 63) - 1

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}  # those that can be perturbed
_BITS = {
    **{"BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64},
    **{"I64": 64, "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "C64": 64},
    **{"F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8},
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
}


KNOWN = frozenset(_BITS)  # every dtype of the format


class FormatError(ValueError):
    """A file that is not what it must be; the message names the file and the place in it."""


class Entry(NamedTuple):
    """One tensor of a file.

    Attributes:
        dtype: the format's name for it.
        shape: as stored, row-major.
        start, stop: its bytes in the file.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class Header(NamedTuple):
    """What a file says of itself.

    Attributes:
        entries: by name, in the order of their bytes.
        metadata: the texts under `__metadata__`.
        data_start: where the tensors begin.
    """

    entries: dict[str, Entry]
    metadata: dict[str, str]
    data_start: int


def read_header(path: Path, fd: int) -> Header:
    """Read and check the header of an open file.

    Raises:
        FormatError: the file is no safetensors file, or a hostile one.
    """
    size = os.fstat(fd).st_size
    start = os.pread(fd, _SIZE_BYTES, 0)
    length = int.from_bytes(start, "little")
    if len(start) < _SIZE_BYTES or length > size - _SIZE_BYTES:
        raise FormatError(
            f"{path} must be a safetensors file, got {size} bytes that end before its header does"
        )
    if length > MAX_HEADER_BYTES:
        raise FormatError(
            f"{path}: the header must have at most {MAX_HEADER_BYTES} bytes, got {length}"
        )
    return parse_header(path, os.pread(fd, length, _SIZE_BYTES), size)


def parse_header(path: Path, text: bytes, size: int) -> Header:
    """Check a header.

    Args:
        path: of its file, for messages.
        text: the JSON.
        size: of the whole file in bytes.

    Raises:
        FormatError: it is not JSON of the format's schema, names something twice, or its tensors do
            not fill the rest of the file without gap or overlap.
    """
    if not text.startswith(b"{"):
        raise FormatError(f"{path}: the header must begin with '{{', got {text[:1]!r}")
    found = parse_json(path, text)
    metadata = found.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise FormatError(f"{path}: __metadata__ must hold texts, got something else")
    data_start = _SIZE_BYTES + len(text)
    entries = [(name, _entry(path, name, value, data_start)) for name, value in found.items()]
    entries.sort(key=lambda pair: (pair[1].start, pair[1].stop))
    at = data_start
    for name, entry in entries:
        if entry.start != at:
            raise FormatError(
                f"{path}: tensor {name!r} must begin where the one before it ends, byte {at}, got "
                f"{entry.start}"
            )
        at = entry.stop
    if at != size:
        raise FormatError(f"{path}: the tensors must end with the file, byte {size}, got {at}")
    return Header(dict(entries), metadata, data_start)


def parse_json(path: Path, text: bytes) -> dict[str, Any]:
    """Parse a JSON object in which no name comes twice.

    Raises:
        FormatError: it is something else.
    """
    try:
        found = json.loads(text.decode("utf-8"), object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:  # RecursionError: brackets in brackets
        raise FormatError(f"{path} must hold a JSON object, got: {error}") from error
    if not isinstance(found, dict):
        raise FormatError(f"{path} must hold a JSON object, got {type(found).__name__}")
    return found


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{double!r} twice")
    return found


def _entry(path: Path, name: str, value: Any, data_start: int) -> Entry:
    def fail(expected: str, got: Any) -> FormatError:
        return FormatError(f"{path}: tensor {name!r} must have {expected}, got {got!r:.200}")

    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise fail("dtype, shape and data_offsets", value)
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise fail("a dtype of the format", dtype)
    if not _are_sizes(shape):
        raise fail("a shape of sizes >= 0", shape)
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise fail("two data_offsets, the first not above the second", offsets)
    bits = _BITS[dtype]
    for size in shape:  # step by step, so that many sizes make no giant number
        bits *= size
        if bits > 8 * _MOST:
            raise fail("a size below 2**63 bytes", shape)
    if bits != 8 * (offsets[1] - offsets[0]):
        raise fail(f"{bits} bits for {dtype} {tuple(shape)}", offsets)
    return Entry(dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n <= _MOST for n in value)
