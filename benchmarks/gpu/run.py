"""Measure the plan within a time, and write down what was measured and what was left out, and why.

The file is written after every case, so that a run that is ended leaves what it has measured.
"""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import fastunlearn as fu
from benchmarks.check import judge, table
from benchmarks.gpu import peers
from benchmarks.gpu.measure import bandwidth, kernels, peak_extra_mib, timed
from benchmarks.gpu.plan import BANDWIDTH, Step, bar_cases, bars, steps
from fastunlearn._ops import backend_of
from fastunlearn.bench.cases import OP, OURS, STD, Case, Probe, prepare
from fastunlearn.bench.floors import Run
from fastunlearn.bench.measure import Timing, buffer_sets
from fastunlearn.bench.patterns import Data, make
from fastunlearn.bench.results import environment, label, row, write
from fastunlearn.bench.table import timing_table

PEER_SECONDS = 6.0  # a method that would take longer for one call is left out
CASE_SECONDS = 30.0  # once a case has taken so long, its other methods are left out
PACE_SIZE = 10**7  # from here on the time of a call grows with the size
RUN_SECONDS = 0.25  # of repeated calls of one method
TIMED_SHARE = 0.9  # of the time; the rest is for the profiler, which slows what comes after it
SPARE = 1.1  # times the buffers: what a case needs in any case


class Bench:
    """Cases on one device, until a time.

    Attributes:
        rows: what was measured, in the form of `fastunlearn.bench.results`.
        judged: the bars, as `benchmarks.check` gives them.
        left_out: words of the cases that were not measured, and why.
        broken: words of the cases in which our own call failed, and how.
    """

    def __init__(self, device: torch.device, end: float, bytes_per_ms: float) -> None:
        self.device = device
        self.end = end
        self.bytes_per_ms = bytes_per_ms
        self.rows: list[dict[str, Any]] = []
        self.judged: list[dict[str, Any]] = []
        self.left_out: list[str] = []
        self.broken: list[str] = []
        self.ms: dict[Probe, float] = {}
        self.mib: dict[Probe, float | None] = {}
        self._rows: dict[Case, dict[str, Any]] = {}
        self._pace: dict[str, float] = {}  # method: most seconds for one element, once measured
        self._made: tuple[Data | None, list[list[torch.nn.Parameter]]] = (None, [])

    def measure(self, step: Step) -> None:
        """Measure one case: ours and the floors first, then the peers."""
        case = step.case
        why = self._why_not(case)
        if why is not None:
            self.left_out.append(f"{label(case)}: {why}")
            return
        started = time.monotonic()
        timings: dict[Probe, Timing] = {}
        memory: dict[str, float | None] = {}
        reasons: dict[str, str] = {}
        for method in (OURS, OP, *case.floors, *step.peers):
            spent = time.monotonic() - started
            predicted = self._pace.get(method, 0.0) * case.data.numel
            if predicted > PEER_SECONDS:
                reasons[method] = f"would take about {predicted:.0f} s"
            elif method not in (OURS, OP) and spent > CASE_SECONDS:
                reasons[method] = f"the case had taken {spent:.0f} s"
            else:
                self._try(case, method, timings, memory, reasons)
        if OURS in reasons:
            self.broken.append(f"{label(case)}: {reasons[OURS]}")
        self._note(case, timings, memory, reasons)

    def _why_not(self, case: Case) -> str | None:
        if self.rows and time.monotonic() > self.end:
            return "out of time"
        if self.device.type != "cuda" or self._made[0] == case.data:
            return None
        self._made = (None, [])  # makes room
        self._clean_up()
        free, _ = torch.cuda.mem_get_info(self.device)
        if case.data.size_bytes * SPARE > free:
            return f"needs {case.data.size_bytes * SPARE / 2**30:.0f} GiB"
        return None

    def _sets(self, data: Data) -> list[list[torch.nn.Parameter]]:
        """Buffers of a case; kept for the next case, which often has the same data."""
        if self._made[0] != data:
            self._made = (None, [])
            cache = torch.cuda.get_device_properties(self.device).L2_cache_size if self._gpu else 0
            count = buffer_sets(data, cache)
            self._made = (data, [make(data, seed, self.device) for seed in range(count)])
        return self._made[1]

    @property
    def _gpu(self) -> bool:
        return self.device.type == "cuda"

    def _try(
        self,
        case: Case,
        method: str,
        timings: dict[Probe, Timing],
        memory: dict[str, float | None],
        reasons: dict[str, str],
    ) -> None:
        """Measure a method, or write down why it cannot be."""
        try:
            made = [_call(one, case, method) for one in self._sets(case.data)]
            calls = [call for call in made if call is not None]
            if not calls:
                return
            result, memory[method] = peak_extra_mib(calls[0], self.device)
            _check(case, result)
            timings[Probe(case, method)] = timed(calls, self.device, RUN_SECONDS)
            if case.data.numel >= PACE_SIZE:
                pace = timings[Probe(case, method)].ms / 1e3 / case.data.numel
                self._pace[method] = max(self._pace.get(method, 0.0), pace)
        except ImportError as error:
            reasons[method] = f"{error.name} is not installed"
        except (RuntimeError, ValueError, MemoryError) as error:
            out = isinstance(error, (torch.OutOfMemoryError, MemoryError))
            reasons[method] = "out of memory" if out else _first_line(error)
        if method in reasons:
            self._clean_up()

    def _clean_up(self) -> None:
        gc.collect()
        if self._gpu:
            torch.cuda.empty_cache()

    def _note(
        self,
        case: Case,
        timings: dict[Probe, Timing],
        memory: dict[str, float | None],
        reasons: dict[str, str],
    ) -> None:
        if Probe(case) not in timings:
            self.left_out.append(f"{label(case)}: {reasons.get(OURS, 'not measured')}")
            return
        made = row(case, timings, memory, left_out=reasons, kernels=[])
        if made["floor_bytes"] is not None:
            made["floor_ways_ms"][BANDWIDTH] = made["floor_bytes"] / self.bytes_per_ms
            made["floor_ms"] = min(made["floor_ways_ms"].values())
            made["floor"] = case.floor
        self.rows.append(made)
        self._rows[case] = made
        for method, ms in (*made["ms"].items(), *made["floor_ways_ms"].items()):
            self.ms[Probe(case, method)] = ms
        self.mib.update({Probe(case, method): mib for method, mib in memory.items()})

    def profile(self, case: Case) -> None:
        """Add the kernels of our call to the row of a case, once all is timed."""
        made = self._rows.get(case)
        if made is None:
            return
        why = self._why_not(case)
        try:
            call = None if why else _call(self._sets(case.data)[0], case, OURS)
            if call is not None:
                made["kernels"] = self._kernels(call)
                made["launches"] = sum(kernel["launches"] for kernel in made["kernels"])
        except RuntimeError as error:
            why = _first_line(error)
        if why is not None:
            made["left_out"]["torch.profiler"] = why

    def _kernels(self, call: Run) -> list[dict[str, Any]]:
        if not self._gpu:
            return []
        call()  # finds no memory in the allocator's cache
        return kernels(call)


def _call(parameters: Sequence[torch.nn.Parameter], case: Case, method: str) -> Run | None:
    own = (peers.TOP_K if case.kind == "top_k" else peers.RANDOM_K).get(method)
    if own is None:
        return prepare(parameters, case, method)
    return lambda: own(parameters, case.k, STD)


def _check(case: Case, result: object) -> None:
    """A call that was refused on the device takes no time and must not count."""
    if isinstance(result, fu.Receipt):
        wanted = fu.TopK(case.k).count(case.data.numel)
        if result.count != wanted:
            raise RuntimeError(f"{result.count} selected instead of {wanted}")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:200]


def facts_of(command: str, device: torch.device) -> dict[str, Any]:
    """What the figures depend on."""
    facts = environment(command)
    facts["backend"] = backend_of("topk_perturb_", device)
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        facts |= {
            "gpu": gpu.name,
            "machine": re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()).strip("-"),
            "capability": f"{gpu.major}.{gpu.minor}",
            "multiprocessors": gpu.multi_processor_count,
            "memory_mib": gpu.total_memory >> 20,
            "l2_mib": gpu.L2_cache_size >> 20,
            "cuda": torch.version.cuda,
        }
    return facts


def run(
    out: Path, seconds: float, command: str, device: torch.device, shrink: int, console: Console
) -> Bench:
    """Measure what fits the time; print tables, the bars last, and write JSON to the folder."""
    begun = time.monotonic()
    facts = facts_of(command, device)
    console.print(f"{facts.get('gpu', facts['cpu'])}, torch {facts['torch']}, {facts['backend']}")
    facts["bandwidth_gb_s"] = bandwidth(device, max((1 << 32) // shrink, 1 << 16))
    console.print(f"GB/s: {facts['bandwidth_gb_s']}")
    bench = Bench(
        device, begun + seconds * TIMED_SHARE, max(facts["bandwidth_gb_s"].values()) * 1e6
    )
    path = out / f"gpu-{facts['machine']}.json"
    for step in steps(shrink):
        bench.measure(step)
        bench.judged = [judge(bar, bench.ms, bench.mib) for bar in bars(shrink)]
        write(path, "gpu", facts, bench.rows, bars=bench.judged, left_out=bench.left_out)
    bench.end = begun + seconds
    for case in bar_cases(shrink):
        bench.profile(case)
        write(path, "gpu", facts, bench.rows, bars=bench.judged, left_out=bench.left_out)
    for line in _report(bench):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(timing_table(bench.rows, "Time of one call, and how it compares"))
    console.print(table(bench.judged))
    console.print(f"Results: {path}", soft_wrap=True)
    return bench


def _report(bench: Bench) -> Iterator[str]:
    """What is in no table: what was left out, and the kernels of the first case."""
    yield from (f"Left out: {words}" for words in bench.left_out)
    for made in bench.rows:
        for method, reason in made["left_out"].items():
            yield f"Left out: {made['label']}, {method}: {reason}"
    for made in bench.rows[:1]:
        yield f"Kernels of {made['label']}:"
        for kernel in made["kernels"]:
            yield f"  {kernel['us']:10.1f} us {kernel['launches']:3} x {kernel['name']}"
