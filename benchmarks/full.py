"""Everything: sizes, patterns, dtypes, models, threads, SIMD levels: `python -m benchmarks --full`.

About 25 minutes on two cores. The file is written after every case, so that a run that is
interrupted leaves what it has measured.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from fastunlearn.bench.cases import FALLBACK, OURS, Case, Probe
from fastunlearn.bench.child import peak_extra_mib, times_under
from fastunlearn.bench.measure import measure
from fastunlearn.bench.models import models
from fastunlearn.bench.patterns import Data
from fastunlearn.bench.quick import picture_or_word
from fastunlearn.bench.results import (
    SIMD_VARIABLE,
    cores,
    environment,
    label,
    machine_kind,
    row,
    simd_levels,
    write,
)
from fastunlearn.bench.table import header, timing_table

FRACTIONS = (0.001, 0.01, 0.1, 0.5)
SECONDS = 1.0  # for each method
TOPK, KTHVALUE, PARTITION = (
    "cat + topk + index_add_",
    "cat + kthvalue + where",
    "abs + np.partition",
)
SALUN = "SalUn: argsort(argsort(cat))"
LARGEST_MODEL = 10**9  # the larger are for GPUs
SPARE = 1.3  # times the buffers: what a case may need in all


@dataclass(frozen=True)
class Step:
    """One case, the methods beside ours and the floors, and what else is measured.

    `threads`: numbers of threads to compare; `simd`: a level to force in a child process;
    `memory`: methods whose peak extra memory is measured too.
    """

    case: Case
    peers: tuple[str, ...] = ()
    memory: tuple[str, ...] = ()
    threads: tuple[int, ...] = ()
    simd: str | None = None


def steps() -> Iterator[Step]:
    """The whole plan."""
    yield from _sizes()
    yield from _values()
    yield from _models()
    large = Data("one tensor", 10**8)
    several = [Case(large, k=k) for k in (0.01, 0.1, 0.5)] + [Case(large, "random_k")]
    counts = tuple(sorted({1 << i for i in range(cores().bit_length())} & set(range(cores()))))
    if cores() > 1:
        yield from (Step(case, threads=(*counts, cores())) for case in several)
    for level in simd_levels():
        yield from (Step(case, simd=level) for case in several)
    yield Step(Case(Data("one tensor", 10**9)))
    yield Step(Case(Data("one tensor", 10**9, dtype="bf16")))


def _sizes() -> Iterator[Step]:
    """One tensor of every size, every K; the slowest idioms not at every K of the largest."""
    for size in (10**4, 10**5, 10**6, 10**7):
        data = Data("20 tensors" if size == 10**4 else "one tensor", size)
        for k in FRACTIONS:
            yield Step(Case(data, k=k), (*Case(data).peers, FALLBACK))
        for k in (0.01, 0.1):
            case = Case(data, "random_k", k)
            yield Step(case, (*case.peers, FALLBACK))
    large = Data("one tensor", 10**8)
    for k in FRACTIONS:
        case = Case(large, k=k)
        peers = case.peers if k == 0.01 else (TOPK, KTHVALUE, PARTITION)
        memory = (OURS, FALLBACK, TOPK, PARTITION) if k in (0.01, 0.5) else (OURS,)
        yield Step(case, (*peers, FALLBACK), memory)
    case = Case(large, "random_k")
    yield Step(case, (*case.peers, FALLBACK), (OURS, *case.peers))
    yield Step(Case(large, "random_k", 0.1))


def _values() -> Iterator[Step]:
    """Hostile values, many small tensors, 16-bit types."""
    for size in (10**6, 10**8):
        peers = (TOPK,) if size < 10**8 else ()
        for values in ("70 % zeros", "all equal", "sorted"):
            for k in (0.01, 0.5):
                yield Step(Case(Data("one tensor", size, values), k=k), peers)
        for values in ("normal", "one layer 1e6 times larger"):
            yield Step(Case(Data("62 tensors", size, values)), peers)
        for dtype in ("bf16", "fp16"):
            for k in (0.01, 0.1, 0.5):
                peers = (TOPK,) if k == 0.01 else ()
                yield Step(Case(Data("one tensor", size, dtype=dtype), k=k), peers)
        yield Step(Case(Data("one tensor", size, "ties", "bf16")))
    for k in (0.01, 0.5):
        yield Step(Case(Data("tensors of 100", 10**6), k=k), (TOPK, KTHVALUE, FALLBACK))


def _models() -> Iterator[Step]:
    for name in models():
        data = Data(name)
        if data.numel > LARGEST_MODEL:
            continue
        small = data.numel < 5 * 10**7
        peers = Case(data).peers if small else (TOPK, SALUN, PARTITION)
        memory = (OURS, TOPK, SALUN) if small else (OURS,)
        yield Step(Case(data), (*peers, FALLBACK) if small else peers, memory)
        random = Case(data, "random_k")
        yield Step(random, random.peers if small else ())


def run(command: str, out: Path | None, shrink: int, console: Console) -> list[dict[str, Any]]:
    """Measure everything; print a table, and write JSON and a picture to the folder `out`."""
    facts, begun = environment(command), time.monotonic()
    console.print(header(facts))
    path = None if out is None else out / f"cpu-{machine_kind()}.json"
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    planned = list(steps())
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("", total=len(planned))
        for step in planned:
            case = step.case.shrunk(shrink)
            progress.update(task, description=label(case))
            if _fits(case):
                rows += _rows(step, case)
            else:
                left_out.append(label(case))
            progress.advance(task)
            if path is not None:
                write(path, "full", facts, rows)
    console.print(timing_table(rows, "Time of one call, and how it compares"))
    if left_out:
        console.print(f"Left out for lack of memory: {'; '.join(left_out)}", highlight=False)
    console.print(f"{len(rows)} rows in {(time.monotonic() - begun) / 60:.1f} minutes")
    if path is not None:
        for written in (path, *picture_or_word(path.with_suffix(".png"), facts, rows, console)):
            console.print(f"Results: {written}", soft_wrap=True)
    return rows


def _fits(case: Case) -> bool:
    """Whether the free memory holds the case; True where the system does not tell."""
    path = Path("/proc/meminfo")
    lines = path.read_text().splitlines() if path.exists() else []
    free = [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable")]
    return not free or case.data.size_bytes * SPARE < free[0]


def _rows(step: Step, case: Case) -> Iterator[dict[str, Any]]:
    methods = (OURS, *case.floors, *step.peers)
    if step.simd is not None:
        probes = [Probe(case, method) for method in methods]
        timings = times_under({SIMD_VARIABLE: step.simd}, probes, SECONDS)
        yield row(case, timings, simd=step.simd)
    elif step.threads:
        probes = [Probe(case, method, count) for method in methods for count in step.threads]
        timings = measure(probes, seconds=SECONDS)
        for count in step.threads:
            own = {probe: t for probe, t in timings.items() if probe.threads == count}
            yield row(case, own, threads=count)
    else:
        timings = measure([Probe(case, method) for method in methods], seconds=SECONDS, least=1)
        yield row(case, timings, {name: peak_extra_mib(Probe(case, name)) for name in step.memory})
