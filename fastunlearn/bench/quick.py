"""The benchmark that fits in a minute: `fastunlearn bench`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from fastunlearn.bench.cases import FALLBACK, OURS, Case, Probe
from fastunlearn.bench.measure import measure
from fastunlearn.bench.patterns import Data
from fastunlearn.bench.picture import save_picture
from fastunlearn.bench.results import environment, label, machine_kind, row, write
from fastunlearn.bench.table import header, timing_table

_FAST_PEERS = ("cat + topk + index_add_", "abs + np.partition")
# A case and its peers, in the order of their price.
Planned = tuple[Case, Sequence[str]]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while measuring; `written` holds the files of what was done."""

    def __init__(self, written: list[Path]) -> None:
        super().__init__()
        self.written = written


def plan() -> list[Planned]:
    """Cases from small to large; the largest with the peers alone that end in time."""
    cases = [
        Case(Data("20 tensors", 10**4)),
        Case(Data("one tensor", 10**6)),
        Case(Data("one tensor", 10**6), "random_k"),
        Case(Data("ResNet-18")),
        Case(Data("ResNet-18"), k=0.5),
        Case(Data("one tensor", 10**7), "random_k"),
        Case(Data("one tensor", 10**7, values="70 % zeros"), k=0.5),
        Case(Data("one tensor", 10**7, dtype="bf16")),
    ]
    large = Data("one tensor", 10**8)
    listed: list[Planned] = [(case, (*case.peers, FALLBACK)) for case in cases]
    return [*listed, (Case(large), _FAST_PEERS), (Case(large, "random_k"), ("Bernoulli mask",))]


def run(
    out: Path,
    seconds: float,
    command: str,
    planned: Sequence[Planned] | None = None,
    console: Console | None = None,
) -> list[Path]:
    """Measure what fits the time, print a table, write JSON and a picture.

    Args:
        out: folder for the files; made.
        seconds: time for the measurements; the first case runs in any case.
        command: what the results name as their command.
        planned: cases and peers; None takes `plan()`.
        console: where the table goes.

    Returns:
        The files written. Without matplotlib there is no picture, and a line says so.

    Raises:
        OSError: the folder cannot be written; raised before anything is measured.
        Interrupted: Ctrl-C; what was measured is printed and written.
    """
    out.mkdir(parents=True, exist_ok=True)
    console = console or Console()
    facts = environment(command)
    console.print(header(facts))
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("measuring", total=None)
        rows, left_out, interrupted = _measure(
            plan() if planned is None else planned,
            seconds,
            lambda case: progress.update(task, description=label(case)),
        )
    why = "by Ctrl-C" if interrupted else f"to end in {seconds:g} s"
    written = _report(out, facts, rows, left_out, why, console) if rows else []
    if interrupted:
        raise Interrupted(written)
    return written


def _report(
    out: Path,
    facts: dict[str, Any],
    rows: list[dict[str, Any]],
    left_out: Sequence[str],
    why: str,
    console: Console,
) -> list[Path]:
    """Print the table and what is not in it; write the files."""
    console.print(timing_table(rows, "Time of one call, and how it compares"))
    if left_out:
        console.print(f"Left out, {why}: {'; '.join(left_out)}", highlight=False)
    path = out / f"quick-{machine_kind()}.json"
    written = [write(path, "quick", facts, rows)]
    return written + picture_or_word(path.with_suffix(".png"), facts, rows, console)


def picture_or_word(
    path: Path, facts: dict[str, Any], rows: list[dict[str, Any]], console: Console
) -> list[Path]:
    """Draw the picture; without matplotlib say so in a line instead."""
    try:
        drawn = save_picture(path, facts, rows)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "matplotlib":
            raise
        console.print(
            'No picture, since matplotlib is missing: pip install "fastunlearn[bench]"',
            markup=False,
            highlight=False,
        )
        return []
    return [] if drawn is None else [drawn]


def _measure(
    planned: Sequence[Planned], seconds: float, tell: Callable[[Case], object]
) -> tuple[list[dict[str, Any]], list[str], bool]:
    """Rows of the cases that fit, labels of those left out, whether Ctrl-C ended it."""
    end = time.monotonic() + seconds
    each = seconds / 600  # seconds for one method: about a hundred of them in all
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    price = 5e-8  # seconds per element and method; then the highest seen where size decides
    for i, (case, peers) in enumerate(planned):
        methods = [OURS, *case.floors, *peers]
        work = case.data.numel * len(methods)
        start = time.monotonic()
        if rows and start + each * len(methods) + price * work > end:
            left_out.append(label(case))
            continue
        tell(case)
        try:
            timings = measure([Probe(case, method) for method in methods], seconds=each, least=1)
        except KeyboardInterrupt:
            return rows, left_out + [label(rest) for rest, _ in planned[i:]], True
        rows.append(row(case, timings))
        if case.data.numel >= 10**6:
            price = max(price, (time.monotonic() - start - each * len(methods)) / work)
    return rows, left_out, False
