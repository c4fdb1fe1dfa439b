"""Results as JSON: what was measured, on what, and how."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastunlearn import _extension
from fastunlearn._ops import backend_of
from fastunlearn._version import __version__
from fastunlearn.bench.cases import KIND_NAMES, OURS, Case, Probe
from fastunlearn.bench.floors import FLOORS
from fastunlearn.bench.measure import Timing, last_level_cache_bytes
from fastunlearn.bench.patterns import DTYPES

SCHEMA = "fastunlearn.bench/1"
SIMD_VARIABLE = "FASTUNLEARN_SIMD"


def simd_levels() -> list[str]:
    """SIMD levels that both the build and this CPU have, ascending; empty without an extension."""
    info = _extension.build_info()
    if not info["extension"] or backend_of("topk_perturb_", torch.device("cpu")) == "reference":
        return []
    return [level for level in info["simd_compiled"] if level in info["simd_runtime"]]


def simd_level() -> str:
    """The level in use, or "reference" where the fallback serves."""
    module = _extension.load()
    return module.get_simd() if module is not None and simd_levels() else "reference"


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
    """Model name of the CPU as the system tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    told = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return next(told, platform.processor() or platform.machine())


def machine_kind() -> str:
    """Name of the kind of machine for file names, as in "amd-epyc-2core"."""
    return re.sub(r"[^a-z0-9]+", "-", cpu_name().lower()).strip("-") + f"-{cores()}core"


def _commit() -> str | None:
    """The git commit of this source tree; an installed package has none."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()


def environment(command: str) -> dict[str, Any]:
    """What the figures depend on."""
    build = _extension.build_info()
    return {
        "cpu": cpu_name(),
        "machine": machine_kind(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "last_level_cache_mib": last_level_cache_bytes() >> 20,
        "backend": backend_of("topk_perturb_", torch.device("cpu")),
        "simd": simd_level(),
        "compiler": build.get("compiler"),
        "fastunlearn": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "command": command,
        "commit": _commit(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def size_name(n: int) -> str:
    """`1e8`, `11.7 M`, `620`."""
    if n >= 1000 and n == 10 ** (len(str(n)) - 1):
        return f"1e{len(str(n)) - 1}"
    return f"{n / 1e6:.3g} M" if n >= 10**6 else str(n)


def label(case: Case) -> str:
    """The case in words."""
    data = case.data
    values = [] if data.values == "normal" else [data.values]
    parts = [KIND_NAMES[case.kind] + f" {100 * case.k:g} %", data.layout, size_name(data.numel)]
    return ", ".join([*parts, data.dtype, *values])


def row(
    case: Case,
    timings: Mapping[Probe, Timing],
    memory: Mapping[str, float | None] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """One row of the results; times in ms, by method.

    Args:
        case: what was measured.
        timings: as `measure` gives them; those of other cases are left out.
        memory: peak extra memory in MiB, by method.
        more: further fields, as `threads` or `simd`.
    """
    own = {probe.method: timing for probe, timing in timings.items() if probe.case == case}
    ways = {name: own.pop(name).ms for name in FLOORS[case.floor] if name in own}
    data = case.data
    factor = {"read": 1, "update": 3}.get(case.floor)
    size = data.numel * DTYPES[data.dtype].itemsize
    return {
        "label": label(case),
        "kind": case.kind,
        "k": case.k,
        "layout": data.layout,
        "values": data.values,
        "dtype": data.dtype,
        "numel": data.numel,
        "tensors": len(data.shapes),
        "floor": case.floor if ways else None,
        "floor_ms": min(ways.values(), default=None),
        "floor_ways_ms": ways,
        "floor_bytes": None if factor is None else factor * size,
        "ms": {name: timing.ms for name, timing in own.items()},
        "quartiles_ms": {name: [t.low_ms, t.high_ms] for name, t in own.items()},
        "runs": {name: timing.runs for name, timing in own.items()},
        "peak_extra_mib": dict(memory or {}),
        **more,
    }


def times_floor(row: Mapping[str, Any], method: str = OURS) -> float | None:
    """Time of a method as a multiple of the floor of its row."""
    if row["floor_ms"] is None or method not in row["ms"]:
        return None
    return row["ms"][method] / row["floor_ms"]


def write(
    path: Path, kind: str, facts: Mapping[str, Any], rows: Sequence[Any], **more: Any
) -> Path:
    """Write results, and more beside them; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    body = {"schema": SCHEMA, "kind": kind, "environment": dict(facts), "rows": list(rows), **more}
    path.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    return path
