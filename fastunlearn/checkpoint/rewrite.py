"""One pass over a checkpoint that changes it on the way to somewhere else."""

from __future__ import annotations

import stat
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor

from fastunlearn.checkpoint import stream
from fastunlearn.checkpoint.files import Checkpoint
from fastunlearn.checkpoint.output import Output, write_all, write_large
from fastunlearn.checkpoint.stream import Digest, Piece, Ring, Run, ahead, runs

T = TypeVar("T")
_COPIED_BYTES = 1 << 24
# Other weights of the model. They hold what is to be forgotten, so they do not go along.
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack", ".gguf")


class Sink(Protocol):
    """What becomes of the changed bytes."""

    @property
    def wants_before(self) -> bool:
        """Whether the bytes as they were are wanted."""
        ...

    def take(self, run: Run, before: Tensor | None, after: Tensor) -> None:
        """Take a run: its bytes as they were (where wanted) and as they are, uint8."""
        ...


class Sinks:
    """A sink that hands everything on to others; to none, where the digests are all one wants."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self.sinks = sinks

    @property
    def wants_before(self) -> bool:
        """See `Sink`."""
        return any(sink.wants_before for sink in self.sinks)

    def take(self, run: Run, before: Tensor | None, after: Tensor) -> None:
        """See `Sink`."""
        for sink in self.sinks:
            sink.take(run, before, after)


class Copy:
    """A sink that writes a checkpoint with the same files and headers as the source has.

    Use it as a context manager; `commit` brings the copy to its place.

    Args:
        source: what is read.
        out: a file or a folder, as the source is. A folder also gets the source's index and its
            other files, but no weights in other formats and no folders.
        overwrite: see `Output`.
    """

    wants_before = False

    def __init__(self, source: Checkpoint, out: Path, overwrite: bool) -> None:
        self.source = source
        mode = stat.S_IMODE(_status(source, 0).st_mode)
        names = None
        others: list[Path] = []
        if source.folder:
            others = [path for path in sorted(source.path.iterdir()) if _goes_along(path)]
            names = [*(file.name for file in source.files), *(path.name for path in others)]
        elif out.is_file():
            mode = stat.S_IMODE(out.stat().st_mode)
        with ExitStack() as stack:
            output = Output(out, names=names, mode=mode, overwrite=overwrite)
            self.output = stack.enter_context(output)
            self.fds = [self.output.file(file.name) for file in source.files]
            self.direct = [self.output.direct(file.name) for file in source.files]
            for number in range(len(source.files)):
                self._copy_header(number)
            for path in others:
                self.output.copy(path)
            self._stack = stack.pop_all()

    def __enter__(self) -> Copy:
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def take(self, run: Run, before: Tensor | None, after: Tensor) -> None:
        """Write a run to its place."""
        write_large(self.fds[run.file], self.direct[run.file], after.numpy(), run.start)

    def commit(self) -> None:
        """Bring the copy to its place."""
        self.output.commit()

    def _copy_header(self, number: int) -> None:
        stop = self.source.files[number].header.data_start
        for start in range(0, stop, _COPIED_BYTES):
            buffer = bytearray(min(_COPIED_BYTES, stop - start))
            self.source.read_into(number, start, memoryview(buffer))
            write_all(self.fds[number], memoryview(buffer), start)


def rewrite(
    source: Checkpoint,
    most_bytes: int,
    sink: Sink,
    read: Callable[[Run], T],
    change: Callable[[Piece, T], None],
) -> tuple[Digest, Digest]:
    """Read a checkpoint run by run, change it in memory, and hand it to a sink.

    While a run is changed, the next one is read, the one before is handed over, and digests are
    computed, in threads of their own.

    Args:
        source: what to read.
        most_bytes: of a run.
        sink: for the changed bytes.
        read: reads what else is needed for a run.
        change: changes a run in place.

    Returns:
        Digests of the tensors as they were and as they have become.

    Raises:
        FormatError: the source was written to meanwhile.
    """
    before, after = Digest(), Digest()
    ring = Ring(3, max(most_bytes, 8 * stream.SEGMENT))  # one read, one changed, one handed over

    with (
        ThreadPoolExecutor(1, "fastunlearn-write") as writer,
        ThreadPoolExecutor(1, "fastunlearn-before") as reads,
        ThreadPoolExecutor(1, "fastunlearn-after") as writes,
    ):

        def begin(run: Run) -> tuple[Piece, Future[None], T]:
            piece = Piece(source, run, ring)
            return piece, reads.submit(before.add_all, piece), read(run)

        jobs = ((lambda run=run: begin(run)) for run in runs(source, most_bytes))
        waiting: list[Future[None]] = []
        for piece, hashed, beside in ahead(jobs):
            hashed.result()
            old = piece.bytes.clone() if sink.wants_before else None
            change(piece, beside)
            for future in waiting:
                future.result()
            waiting = [
                writes.submit(after.add_all, piece),
                writer.submit(sink.take, piece.run, old, piece.bytes),
            ]
        for future in waiting:
            future.result()
    source.check_unchanged()
    return before, after


def _status(source: Checkpoint, file: int) -> Any:
    return (source.parent / source.files[file].name).stat()


def _goes_along(path: Path) -> bool:
    """Whether a file of the source's folder is copied as it is."""
    return path.is_file() and not path.name.startswith(".") and path.suffix not in _WEIGHTS
