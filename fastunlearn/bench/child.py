"""Measure in a fresh process: peak memory, or times under other environment variables.

The child reads a task as JSON from its argument and prints the answer as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastunlearn.bench.cases import Case, Probe, prepare
from fastunlearn.bench.measure import Timing, measure, warm_up
from fastunlearn.bench.patterns import Data, make

_CLEAR_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def peak_extra_mib(probe: Probe) -> float | None:
    """Measure how far one call raises the peak of the resident set, in MiB.

    Returns:
        None where the system does not tell (it takes Linux's /proc).
    """
    answer = _ask({"task": "memory", "probes": [asdict(probe)]}, {})
    return None if answer is None else float(answer)


def times_under(
    environment: Mapping[str, str], probes: Sequence[Probe], seconds: float
) -> dict[Probe, Timing]:
    """Do what `measure` does in a process with further environment variables."""
    task = {"task": "time", "probes": [asdict(probe) for probe in probes], "seconds": seconds}
    answer = _ask(task, environment)
    return {
        probe: Timing(**timing)
        for probe, timing in zip(probes, answer, strict=True)
        if timing is not None
    }


def _ask(task: Mapping[str, Any], environment: Mapping[str, str]) -> Any:
    command = [sys.executable, "-m", "fastunlearn.bench.child", json.dumps(task)]
    answer = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **environment}
    )
    return json.loads(answer.stdout)


def _memory(probe: Probe) -> float | None:
    """Warm up on little data, set the peak back to the present size, call once."""
    if not _CLEAR_REFS.exists():
        return None
    case = probe.case
    warm_up(case.kind, case.data.dtype, probe.method)
    run = prepare(make(case.data), case, probe.method)
    if run is None:
        return None
    _CLEAR_REFS.write_text("5")
    before = _peak_kib()
    run()
    return (_peak_kib() - before) / 1024


def _peak_kib() -> int:
    lines = _STATUS.read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def _probe(fields: dict[str, Any]) -> Probe:
    case = fields["case"]
    return Probe(**{**fields, "case": Case(**{**case, "data": Data(**case["data"])})})


def main() -> None:
    """Child process."""
    task = json.loads(sys.argv[1])
    probes = [_probe(fields) for fields in task["probes"]]
    if task["task"] == "memory":
        answer: Any = _memory(probes[0])
    else:
        timings = measure(probes, seconds=task["seconds"])
        answer = [asdict(timings[probe]) if probe in timings else None for probe in probes]
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
