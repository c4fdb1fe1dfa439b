"""The pure-PyTorch fallback beside the usual idioms: time and peak extra memory.

    python -m benchmarks --out benchmarks/results/fallback-<machine>.json

Times are medians of interleaved runs in one process. Peak memory is measured, not computed: each
method runs once in a fresh process, and what counts is how far the peak of the resident set rises
above its size before the call.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from benchmarks import peers

STD = 0.1
MIB = 1 << 20
# name: parameter shapes
MODELS: dict[str, list[tuple[int, ...]]] = {
    "20 tensors, 1e4": [(500,)] * 20,
    "62 tensors, 1e6": [(127, 127)] * 62,
    "one tensor, 1e6": [(10**6,)],
    "one tensor, 1e7": [(10**7,)],
    "one tensor, 1e8": [(10**8,)],
}
FRACTIONS = (0.001, 0.01, 0.1, 0.5)
OURS = "fastunlearn"


def make(shapes: list[tuple[int, ...]], pattern: str) -> list[Tensor]:
    """Parameters with gradients; `pattern` is "normal" or "zeros" (70 % exact zeros)."""
    torch.manual_seed(0)
    parameters = []
    for shape in shapes:
        parameter = torch.nn.Parameter(torch.randn(shape))
        parameter.grad = torch.randn(shape)
        if pattern == "zeros":
            parameter.grad *= torch.rand(shape) > 0.7
        parameters.append(parameter)
    return parameters


def methods(kind: str) -> dict[str, Callable[[list[Tensor], float], object]]:
    """All methods of one kind: ours first."""
    import fastunlearn as fu

    strategy = {"top_k": fu.TopK, "random_k": fu.RandomK}[kind]
    table: dict[str, Callable[[list[Tensor], float], object]] = {
        OURS: lambda parameters, k: fu.perturb_(parameters, strategy(k, std=STD), seed=0)
    }
    for name, peer in (peers.TOP_K if kind == "top_k" else peers.RANDOM_K).items():
        table[name] = lambda parameters, k, peer=peer: peer(parameters, k, STD)
    return table


def times_ms(kind: str, parameters: list[Tensor], k: float) -> dict[str, float]:
    """Median time of each method, interleaved; more repeats where a run is short."""
    table = methods(kind)
    spent: dict[str, list[float]] = {name: [] for name in table}
    budget = time.perf_counter() + 2.0
    while min(map(len, spent.values())) < 3 or (
        time.perf_counter() < budget and len(spent[OURS]) < 50
    ):
        for name, method in table.items():
            start = time.perf_counter()
            method(parameters, k)
            spent[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(values[1:]) for name, values in spent.items()}


def read_floor_ms(parameters: list[Tensor]) -> float:
    """Time to read every gradient once (a sum over each), the floor of any exact Top-K."""
    spent = []
    for _ in range(5):
        start = time.perf_counter()
        for parameter in parameters:
            parameter.grad.sum()
        spent.append((time.perf_counter() - start) * 1e3)
    return statistics.median(spent)


def peak_extra_mib(kind: str, model: str, pattern: str, k: float, method: str) -> float:
    """Measure one method in a fresh process."""
    arguments = [kind, model, pattern, str(k), method]
    command = [sys.executable, "-m", "benchmarks.fallback", "--peak", *arguments]
    environment = dict(os.environ, FASTUNLEARN_BACKEND="reference")
    answer = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return float(answer.stdout)


def print_peak(kind: str, model: str, pattern: str, k: str, method: str) -> None:
    """Child process: warm up on a small model, then print the rise of the peak in MiB."""
    run = methods(kind)[method]
    run(make([(1000,)], pattern), 0.01)
    parameters = make(MODELS[model], pattern)
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to the present size
    before = _peak_kib()
    run(parameters, float(k))
    print((_peak_kib() - before) / 1024)


def _peak_kib() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in status if line.startswith("VmHWM")))


def measure(kind: str, model: str, pattern: str, k: float) -> dict:
    """One row of the result."""
    parameters = make(MODELS[model], pattern)
    numel = sum(parameter.numel() for parameter in parameters)
    row = {
        "kind": kind,
        "model": model,
        "pattern": pattern,
        "numel": numel,
        "tensors": len(parameters),
        "k": k,
        "floor_ms": read_floor_ms(parameters),
        "time_ms": times_ms(kind, parameters, k),
    }
    del parameters
    if numel >= 10**7:
        names = methods(kind)
        row["peak_extra_mib"] = {n: peak_extra_mib(kind, model, pattern, k, n) for n in names}
    return row


def environment() -> dict[str, object]:
    """What the figures were measured on."""
    model = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), ""
    )
    return {
        "cpu": model,
        "threads": torch.get_num_threads(),
        "simd": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "command": "python -m benchmarks",
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def show(rows: list[dict]) -> Table:
    """Times in ms, ratio to ours in brackets, peak extra memory in MiB."""
    table = Table(title="pure-PyTorch fallback beside the idioms")
    for heading in ("case", "K", "method", "ms", "x ours", "peak extra MiB"):
        table.add_column(heading, justify="left" if heading in ("case", "method") else "right")
    for row in rows:
        ours = row["time_ms"][OURS]
        for name, value in row["time_ms"].items():
            peak = row.get("peak_extra_mib", {}).get(name)
            table.add_row(
                f"{row['kind']}, {row['model']}, {row['pattern']}" if name == OURS else "",
                f"{row['k']:g}" if name == OURS else "",
                name,
                f"{value:.3f}",
                f"{value / ours:.2f}",
                "" if peak is None else f"{peak:.0f}",
            )
    return table


def main() -> None:
    """Run all cases, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true", help="leave out the cases of 1e8 elements")
    parser.add_argument("--peak", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print_peak(*options.peak)
        return
    os.environ["FASTUNLEARN_BACKEND"] = "reference"
    names = [name for name in MODELS if not (options.quick and name.endswith("1e8"))]
    large = [name for name in names if name.endswith("1e8")]
    cases = [
        ("top_k", name, "normal", k)
        for name in names
        for k in (FRACTIONS if name not in large else (0.01, 0.1))
    ]
    cases += [("top_k", name, "zeros", 0.5) for name in names if name not in large]
    cases += [("random_k", name, "normal", 0.01) for name in names]
    rows = [measure(*case) for case in track(cases, "measuring")]
    Console(width=120).print(show(rows))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
