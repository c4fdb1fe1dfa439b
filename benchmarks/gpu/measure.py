"""Time, memory, kernels and bandwidth on a device.

On the CPU, where the tests try the machinery, a wall clock stands in for events.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from typing import Any

import torch

from fastunlearn.bench.measure import Timing

Run = Callable[[], object]

LEAST_RUNS, MOST_RUNS = 3, 100
WARM_UP_SECONDS = 0.05  # a device that was idle takes this long to raise its clocks


def elapsed_ms(call: Run, device: torch.device) -> float:
    """Time of one call, from an idle device until its last kernel has ended."""
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return (time.perf_counter() - start) * 1e3
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def timed(calls: Sequence[Run], device: torch.device, seconds: float) -> Timing:
    """Median of repeated calls, which take turns so that none finds its data in a cache."""
    wanted = int(seconds * 1e3 / max(_warm_up(calls[0], device), 1e-3))
    runs = min(max(wanted, LEAST_RUNS), MOST_RUNS)
    spent = sorted(elapsed_ms(call, device) for call in islice(cycle(calls), runs))
    quarter = runs // 4
    return Timing(statistics.median(spent), spent[quarter], spent[-1 - quarter], runs)


def _warm_up(call: Run, device: torch.device) -> float:
    """Repeat a call, at least once; returns how many ms the last one took."""
    end = time.perf_counter() + WARM_UP_SECONDS
    while True:
        spent = elapsed_ms(call, device)
        if time.perf_counter() >= end:
            return spent


def peak_extra_mib(call: Run, device: torch.device) -> tuple[object, float | None]:
    """What one call returns, and by how much it raises the peak of the allocator."""
    if device.type != "cuda":
        return call(), None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = call()
    torch.cuda.synchronize(device)
    return result, (torch.cuda.max_memory_allocated(device) - before) / 2**20


def kernels(call: Run) -> list[dict[str, Any]]:
    """Name, launches and microseconds of every kernel (copy, fill) of one call, longest first."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        call()
        torch.cuda.synchronize()
    found = [
        {"name": _short(event.key), "launches": event.count, "us": event.self_device_time_total}
        for event in profile.key_averages()
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]
    return sorted(found, key=lambda kernel: -kernel["us"])


def _short(name: str) -> str:
    """A kernel's name without the types of its arguments."""
    plain = name.replace("(anonymous namespace)::", "").removeprefix("void ")
    return re.sub(r"\(.*", "", plain)[:120]


def bandwidth(device: torch.device, size_bytes: int = 1 << 32) -> dict[str, float]:
    """GB/s of a copy (bytes read and written), and of the fastest of several reads."""
    source = torch.ones(size_bytes // 4, device=device)
    target = torch.empty_like(source)
    ways: dict[str, Run] = {
        "sum": source.sum,
        "amax": source.amax,
        "norm": lambda: torch.linalg.vector_norm(source, float("inf")),
    }
    reads = [timed([way], device, 0.2).ms for way in ways.values()]
    copy = timed([lambda: target.copy_(source)], device, 0.2).ms
    return {"copy": 2 * size_bytes / copy / 1e6, "read": size_bytes / min(reads) / 1e6}
