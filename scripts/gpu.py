"""Run the stages that need a GPU, each under a time limit, and write down what they found.

`scripts/gpu.sh` is the way to call it. A stage that fails or runs out of time does not stop the
later ones; the exit status is 1 then. What a stage found comes from the JUnit report of its tests,
from the summary line of a sanitizer, and from lines `figures: {...}` that it prints.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import IO, Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
TOTAL_SECONDS = 540.0  # of all stages together
LEAST_SECONDS = 10.0  # with less left a stage is not begun
SPARE_SECONDS = 20.0  # of a stage's time that a program told to end in {seconds} keeps for the end
PASSED, FAILED, TIMED_OUT = "passed", "failed", "timed out"
NO_TIME, NOT_RUN = "no time left", "not run"
ERRORS = "errors found"  # by a sanitizer


@dataclass(frozen=True)
class Stage:
    """A command and its limit.

    Args:
        command: {out} stands for the folder of the results, {report} for where a JUnit report is
            looked for, {seconds} for the time that the program may plan with.
        seconds: after which it is killed with everything it has started.
        wants: a figure without which it has done nothing, whatever its exit status.
        environment: further variables.
        kept: seconds of the total that the stages before it leave to it.
    """

    command: tuple[str, ...]
    seconds: float
    wants: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    kept: float = 0.0


def _pytest(seconds: float, *files: str) -> Stage:
    options = ("-q", "-m", "cuda", "-p", "no:cacheprovider", "--junitxml={report}")
    paths = [f"tests/gpu/test_{name}.py" for name in files]
    return Stage((sys.executable, "-m", "pytest", *options, *paths), seconds, "tests")


def _sanitizer(tool: str, *options: str) -> Stage:
    # Every tensor an allocation of its own: a block of the caching allocator hides an access
    # beyond a tensor's end, and counts as initialised from its last use.
    command = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "9", "--print-limit", "20")
    command += options
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return Stage(command + _pytest(0, "tour").command, 75, ERRORS, environment)


_PIP = ("-m", "pip", "--disable-pip-version-check", "install", "--no-build-isolation", "--no-deps")
STAGES: dict[str, Stage] = {
    "build": Stage(
        (sys.executable, *_PIP, "-e", "."), 240, environment={"FASTUNLEARN_REQUIRE_EXT": "1"}
    ),
    "tests": _pytest(150, "operations", "behaviour"),
    "hashes": _pytest(90, "hashes"),
    "repeat": _pytest(45, "repeat"),
    "graph": _pytest(45, "graph"),
    # Calls that libraries let fail on purpose are no faults; ours are checked where they are made.
    "memcheck": _sanitizer("memcheck", "--report-api-errors", "no"),
    **{tool: _sanitizer(tool) for tool in ("racecheck", "initcheck", "synccheck")},
    "bench": Stage(
        (sys.executable, "-m", "benchmarks.gpu", "--out", "{out}", "--seconds", "{seconds}"),
        260,
        "rows",
        kept=150,
    ),
}
GROUPS = {"sanitizer": ("memcheck", "racecheck", "initcheck", "synccheck")}

# The lowest major versions of what builds and tests.
TOOLS = {"pip": 1, "setuptools": 77, "ninja": 1, "pytest": 8, "pytest-timeout": 1}
MACHINE_SECONDS = 60.0  # to load torch and to find the GPU

# In a process of its own, so that this one holds no memory of the GPU.
MACHINE = """
import json, os, platform, subprocess, sys
import torch
if not torch.cuda.is_available():
    sys.exit(f"there is no GPU here: torch {torch.__version__} sees none")
gpu = torch.cuda.get_device_properties(0)
def ask(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:
        return None
print(json.dumps({
    "gpu": gpu.name,
    "gpus": torch.cuda.device_count(),
    "capability": f"{gpu.major}.{gpu.minor}",
    "multiprocessors": gpu.multi_processor_count,
    "memory_mib": gpu.total_memory >> 20,
    "l2_mib": gpu.L2_cache_size >> 20,
    "driver": ask("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
    "nvcc": (ask("nvcc", "--version") or "").splitlines()[-1:],
    "torch": torch.__version__,
    "cuda": torch.version.cuda,
    "python": platform.python_version(),
    "cores": len(os.sched_getaffinity(0)),
    "commit": ask("git", "describe", "--always", "--dirty", "--abbrev=12"),
}))
"""


def machine() -> dict[str, Any]:
    """What the stages run on.

    Raises:
        LookupError: there is no GPU that torch can use; the words say why.
    """
    command = [sys.executable, "-c", MACHINE]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=MACHINE_SECONDS)
    except subprocess.TimeoutExpired:
        raise LookupError(f"torch found no GPU within {MACHINE_SECONDS:g} s") from None
    if answer.returncode:
        raise LookupError((answer.stderr.strip().splitlines() or ["no answer"])[-1])
    return json.loads(answer.stdout)


def installed(name: str) -> str | None:
    """The version of a package, None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def tools() -> dict[str, str | None]:
    """The versions of what builds and tests.

    Raises:
        LookupError: one is missing or too old, which would cost a stage its time.
    """
    found = {name: installed(name) for name in TOOLS}
    for name, least in TOOLS.items():
        version = found[name]
        if version is None or int(version.split(".")[0]) < least:
            raise LookupError(f"{name} >= {least} is needed, got {version}")
    return found


def run_stage(stage: Stage, seconds: float, out: Path, log: IO[str]) -> dict[str, Any]:
    """Run one stage for at most so many seconds; returns what gpu.json says of it."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch, "report.xml")
        planned = max(seconds - SPARE_SECONDS, seconds / 2)
        given = {"{out}": str(out), "{report}": str(report), "{seconds}": f"{planned:.0f}"}
        command = [_filled(part, given) for part in stage.command]
        start = time.monotonic()
        exit_code, lines = _run(command, {**os.environ, **stage.environment}, seconds, log)
        spent = time.monotonic() - start
        figures = _figures(lines) | _counts(report)
    return {
        "status": TIMED_OUT if exit_code is None else _status(stage, exit_code, figures),
        "exit": exit_code,
        "seconds": round(spent, 2),
        "limit": seconds,
        "command": " ".join(command),
        "figures": figures,
    }


def _filled(part: str, given: Mapping[str, str]) -> str:
    for name, value in given.items():
        part = part.replace(name, value)
    return part


def _status(stage: Stage, exit_code: int, figures: Mapping[str, Any]) -> str:
    idle = stage.wants is not None and stage.wants not in figures
    skipped = "tests" in figures and figures["tests"] == figures["skipped"]
    return FAILED if exit_code or idle or skipped or figures.get(ERRORS) else PASSED


def _run(
    command: Sequence[str], environment: Mapping[str, str], seconds: float, log: IO[str]
) -> tuple[int | None, list[str]]:
    """Exit status, None where time ran out, and the lines printed."""
    lines: list[str] = []
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
            cwd=ROOT,
            start_new_session=True,  # so that what it starts can be ended with it
        )
    except OSError as error:
        _say(f"{command[0]}: {error.strerror}\n", log)
        return 127, lines
    assert process.stdout is not None
    reader = threading.Thread(target=_copy, args=(process.stdout, lines, log), daemon=True)
    reader.start()
    try:
        exit_code: int | None = process.wait(seconds)
    except subprocess.TimeoutExpired:
        exit_code = None
    finally:
        _end_group(process)
    reader.join(5)
    return exit_code, lines


def _end_group(process: subprocess.Popen[str]) -> None:
    """End the process and all of its group: a child left over would hold the GPU."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _copy(source: IO[str], lines: list[str], log: IO[str]) -> None:
    for line in source:
        lines.append(line)
        _say(line, log)


def _say(text: str, log: IO[str]) -> None:
    for target in (sys.stdout, log):
        target.write(text)
        target.flush()


def _figures(lines: Sequence[str]) -> dict[str, Any]:
    """Figures in the output: those that a program names, and the errors that a sanitizer counts."""
    found: dict[str, Any] = {}
    for line in lines:
        if line.startswith("figures: "):
            found.update(json.loads(line.removeprefix("figures: ")))
        summary = re.search(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (errors?|hazards?)", line)
        if summary:
            found[ERRORS] = found.get(ERRORS, 0) + int(summary[1])  # one for each process
    return found


def _counts(report: Path) -> dict[str, Any]:
    """Counts of a JUnit report, and the properties that its tests have recorded."""
    if not report.exists():
        return {}
    root = ElementTree.parse(report).getroot()
    suites = list(root.iter("testsuite"))
    names = ("tests", "failures", "errors", "skipped")
    found: dict[str, Any] = {n: sum(int(s.get(n, 0)) for s in suites) for n in names}
    for item in root.iter("property"):
        value = item.get("value", "")
        found[str(item.get("name"))] = int(value) if value.isdigit() else value
    return found


def run_stages(
    stages: Mapping[str, Stage], out: Path, facts: Mapping[str, Any], total: float = TOTAL_SECONDS
) -> bool:
    """Run stages in order; gpu.json is complete after each. Returns whether all have passed."""
    out.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    kept = sum(stage.kept for stage in stages.values())
    results: dict[str, dict[str, Any]] = {name: {"status": NOT_RUN} for name in stages}
    with (out / "gpu.log").open("w", encoding="utf-8") as log:
        _write(out, facts, results)
        for name, stage in stages.items():
            kept -= stage.kept
            seconds = min(stage.seconds, total - kept - (time.monotonic() - begun))
            _say(f"\n=== {name}, at most {seconds:.0f} s\n", log)
            if seconds < min(LEAST_SECONDS, stage.seconds):
                results[name] = {"status": NO_TIME}
            else:
                results[name] = run_stage(stage, seconds, out, log)
            _write(out, facts, results)
        _say(f"\n{_summary(results)}", log)
    return all(result["status"] == PASSED for result in results.values())


def _write(out: Path, facts: Mapping[str, Any], results: Mapping[str, Any]) -> None:
    body = {
        "schema": "fastunlearn.gpu/1",
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": dict(facts),
        "passed": all(result["status"] == PASSED for result in results.values()),
        "stages": results,
    }
    (out / "gpu.json").write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")


def _summary(results: Mapping[str, dict[str, Any]]) -> str:
    lines = []
    for name, result in results.items():
        figures = ", ".join(f"{value} {key}" for key, value in result.get("figures", {}).items())
        spent = f"{result['seconds']:.1f} s" if "seconds" in result else ""
        lines.append(f"{name:10} {result['status']:12} {spent:>8}  {figures}".rstrip() + "\n")
    return "".join(lines)


def chosen(names: Sequence[str]) -> dict[str, Stage]:
    """The stages of these names, in the order of `STAGES`; all of them where no name is given.

    Raises:
        KeyError: there is no such stage.
    """
    wanted = {stage for name in names for stage in GROUPS.get(name, (name,))}
    if unknown := sorted(wanted - set(STAGES)):
        raise KeyError(unknown[0])
    return {name: stage for name, stage in STAGES.items() if not wanted or name in wanted}


def main() -> int:
    """Run what the command line names; returns the exit status."""
    parser = argparse.ArgumentParser(prog="scripts/gpu.sh", description="Stages that need a GPU")
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=", ".join((*STAGES, *GROUPS)))
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json and gpu.log")
    options = parser.parse_args()
    try:
        stages = chosen(options.stages)
        facts = machine() | {"tools": tools()}
    except KeyError as error:
        parser.error(f"no stage {error.args[0]!r}; there are {', '.join((*STAGES, *GROUPS))}")
    except LookupError as error:
        print(f"gpu: nothing was run: {error}", file=sys.stderr)
        return 2
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", facts["capability"])
    os.environ.setdefault("MAX_JOBS", str(facts["cores"]))
    os.environ["PYTHONUNBUFFERED"] = "1"  # so that what is killed has told what it did
    return 0 if run_stages(stages, options.out.resolve(), facts) else 1


if __name__ == "__main__":
    sys.exit(main())
