"""Time methods side by side: interleaved, medians, from memory rather than from a cache."""

from __future__ import annotations

import functools
import gc
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from fastunlearn.bench.cases import Case, Probe, prepare
from fastunlearn.bench.floors import Run
from fastunlearn.bench.patterns import Data, make
from fastunlearn.bench.steadiness import Steadiness

LEAST_RUNS, MOST_RUNS = 3, 200
LONG_SECONDS = 3.0  # beside this, what a first call does more is nothing
CACHE_MULTIPLE, MOST_SETS = 4, 64
_OVERHEAD_BYTES = 1 << 20
_SMALL = 10_000


@dataclass(frozen=True)
class Timing:
    """Milliseconds: median, lower and upper quartile, number of runs."""

    ms: float
    low_ms: float
    high_ms: float
    runs: int


def measure(
    probes: Sequence[Probe],
    *,
    seconds: float = 1.0,
    least: int = LEAST_RUNS,
    steadiness: Steadiness | None = None,
) -> dict[Probe, Timing]:
    """Time all probes in one interleaved run.

    Args:
        probes: what to time; those with the same data share its buffers.
        seconds: about how long each probe may take.
        least: runs of a probe that is slower than that. The first call warms up and is not
            counted, unless it takes `LONG_SECONDS`.
        steadiness: takes a note before every round.

    Returns:
        The timing of each probe; one that cannot serve its case is left out.
    """
    bench = _Bench(probes)
    spent: dict[Probe, list[float]] = {}
    wanted: dict[Probe, int] = {}
    with _no_collector():
        for probe in bench.calls:
            first = bench.run(probe)
            counted = first >= LONG_SECONDS
            spent[probe] = [first] if counted else []
            runs = min(max(int(seconds / max(first, 1e-9)), least), MOST_RUNS)
            wanted[probe] = max(runs - counted, 0)
        rounds = max(wanted.values(), default=0)
        for i in range(rounds):
            if steadiness is not None:
                steadiness.note()
            # Each probe's runs are spread evenly over all rounds, so that drift meets all alike.
            for probe, runs in wanted.items():
                if (i + 1) * runs // rounds > i * runs // rounds:
                    spent[probe].append(bench.run(probe))
    return {probe: _timing(values) for probe, values in spent.items()}


def _timing(seconds: list[float]) -> Timing:
    ordered = sorted(value * 1e3 for value in seconds)
    quarter = len(ordered) // 4
    low, high = ordered[quarter], ordered[-1 - quarter]
    return Timing(statistics.median(ordered), low, high, len(ordered))


class _Bench:
    """Buffers of all probes, and their calls on each set of buffers."""

    def __init__(self, probes: Sequence[Probe]) -> None:
        self.turn: dict[Data, int] = {}
        self.calls: dict[Probe, list[Run]] = {}
        sets = {
            data: [make(data, seed) for seed in range(buffer_sets(data))]
            for data in {probe.case.data: None for probe in probes}
        }
        for probe in probes:
            case = probe.case
            warm_up(case.kind, case.data.dtype, probe.method)
            calls = [prepare(one, case, probe.method) for one in sets[case.data]]
            served = [call for call in calls if call is not None]
            if served:
                self.calls[probe] = served

    def run(self, probe: Probe) -> float:
        """Seconds of one call, on the buffers that were left alone for the longest time."""
        data, calls = probe.case.data, self.calls[probe]
        turn = self.turn[data] = self.turn.get(data, 0) + 1
        call = calls[turn % len(calls)]
        with _threads(probe.threads):
            start = time.perf_counter()
            call()
            return time.perf_counter() - start


@functools.cache
def warm_up(kind: str, dtype: str, method: str) -> None:
    """Call a method on little data once: imports, thread pools, dispatch caches."""
    case = Case(Data("one tensor", _SMALL, dtype=dtype), kind)
    run = prepare(make(case.data), case, method)
    if run is not None:
        run()


def buffer_sets(data: Data, cache_bytes: int | None = None) -> int:
    """Number of buffer sets that together exceed a cache (the CPU's last) several times over.

    One where the data is so small that the call itself is measured, as in a loop over one model.
    """
    if data.size_bytes < _OVERHEAD_BYTES:
        return 1
    cache_bytes = last_level_cache_bytes() if cache_bytes is None else cache_bytes
    return min(max(-(-CACHE_MULTIPLE * cache_bytes // data.size_bytes), 1), MOST_SETS)


def last_level_cache_bytes() -> int:
    """Size of the largest cache of the first core; 32 MiB where the system does not tell."""
    sizes = [32 << 20]
    found = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    told = [path.read_text().strip() for path in found]
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    sizes = [int(size[:-1]) * units[size[-1]] for size in told if size[-1:] in units] or sizes
    return max(sizes)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    if count is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _no_collector() -> Iterator[None]:
    """A collection amid a timed call would be counted as its work."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
