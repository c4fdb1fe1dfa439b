"""Sparse patches between checkpoints: make, apply, revert."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastunlearn.checkpoint.files import Checkpoint
from fastunlearn.checkpoint.patch_file import Bytes, Patch, PatchWriter
from fastunlearn.checkpoint.perturb import DEFAULT_MEMORY
from fastunlearn.checkpoint.rewrite import Copy, Sinks, rewrite
from fastunlearn.checkpoint.stream import Digest, Piece, Run

Place = str | Path
_SHARES = 6  # runs that are in memory at once


@dataclass(frozen=True)
class PatchInfo:
    """What a patch is.

    Attributes:
        before, after: digests of the checkpoints that it leads from and to.
        tensors, changed: numbers of tensors and of elements that change.
        bytes: size of the file.
    """

    before: str
    after: str
    tensors: int
    changed: int
    bytes: int


def make_patch(
    before: Place,
    after: Place,
    out: Place,
    *,
    overwrite: bool = False,
    memory: int = DEFAULT_MEMORY,
) -> PatchInfo:
    """Write what differs between two checkpoints as a sparse patch.

    Args:
        before, after: checkpoints with tensors of the same names, shapes and dtypes; they may be
            spread over files differently.
        out: where the patch goes.
        overwrite: whether it may be there already.
        memory: bytes that buffers may take.

    Returns:
        What `patch_info` tells of it.

    Raises:
        ValueError: the tensors are not the same.
        FormatError, OSError: as for `fastunlearn.checkpoint.perturb`.
    """
    with ExitStack() as stack:
        one, other = (stack.enter_context(Checkpoint(path)) for path in (before, after))
        _check_same(one, other)
        writer = stack.enter_context(PatchWriter(Path(out), one, overwrite))

        def read(run: Run) -> list[Bytes]:
            found = []
            for part in run.slices:
                raw = np.empty(part.stop - part.at, dtype=np.uint8)
                file, entry = other.tensors[part.name]
                other.read_into(file, entry.start + part.at - part.entry.start, raw.data)
                found.append(raw)
            return found

        def change(piece: Piece, changed: list[Bytes]) -> None:
            for part, raw in zip(piece.run.slices, changed, strict=True):
                piece.raw(part).numpy()[:] = raw

        digests = rewrite(one, memory // _SHARES, Sinks([writer]), read, change)
        other.check_unchanged()
        writer.commit(*(digest.total() for digest in digests))
    return patch_info(out)


def apply_patch(
    patch: Place,
    source: Place,
    out: Place,
    *,
    overwrite: bool = False,
    memory: int = DEFAULT_MEMORY,
) -> None:
    """Turn the checkpoint that a patch was made from into the one that it leads to, bit for bit.

    Args:
        patch: of `make_patch` or `fastunlearn.checkpoint.perturb`.
        source: the checkpoint before.
        out: where the result goes.
        overwrite: whether it may be there already. It may be the source itself.
        memory: bytes that buffers may take.

    Raises:
        ValueError: the source is not the one that the patch was made from; nothing is written.
        FormatError, OSError: as for `fastunlearn.checkpoint.perturb`.
    """
    _follow(patch, source, out, overwrite, memory, ("before", "after"))


def revert_patch(
    patch: Place,
    source: Place,
    out: Place,
    *,
    overwrite: bool = False,
    memory: int = DEFAULT_MEMORY,
) -> None:
    """Take back what `apply_patch` did; arguments and errors as there."""
    _follow(patch, source, out, overwrite, memory, ("after", "before"))


def patch_info(patch: Place) -> PatchInfo:
    """Tell what a patch is."""
    with Patch(patch) as found:
        size = found.file_bytes
        return PatchInfo(found.before, found.after, len(found.tensors), found.changed, size)


def _follow(
    patch: Place, source: Place, out: Place, overwrite: bool, memory: int, way: tuple[str, str]
) -> None:
    with ExitStack() as stack:
        found = stack.enter_context(Patch(patch))
        checkpoint = stack.enter_context(Checkpoint(source))
        found.check_fits(checkpoint)
        copy = stack.enter_context(Copy(checkpoint, Path(out), overwrite))

        def change(piece: Piece, _: None) -> None:
            for part in piece.run.slices:
                found.xor_into(part, piece.raw(part).numpy())

        digests = rewrite(checkpoint, memory // _SHARES, copy, lambda run: None, change)
        for role, name, digest in zip(("source", "result"), way, digests, strict=True):
            _check_digest(f"the {role}'s", getattr(found, name), digest)
        copy.commit()


def _check_digest(whose: str, wanted: str, digest: Digest) -> None:
    got = digest.total()
    if got != wanted:
        raise ValueError(f"patch: {whose} digest must be {wanted}, got {got}")


def _check_same(one: Checkpoint, other: Checkpoint) -> None:
    kinds = [
        {name: (stored.entry.dtype, stored.entry.shape) for name, stored in c.tensors.items()}
        for c in (one, other)
    ]
    for name in sorted(set(kinds[0]) | set(kinds[1])):
        pair = kinds[0].get(name), kinds[1].get(name)
        if pair[0] != pair[1]:
            raise ValueError(f"patch: tensor {name!r} must be the same in both, got {pair}")
