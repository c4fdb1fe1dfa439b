"""Compile the kernels for real devices, and what `ptxas` says of each."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
FOLDER = ROOT / "build" / "cuda"
FLAGS = [
    "-O3", "-std=c++17", "-fmad=false", f"-I{CSRC}", "-Xptxas=-v", "-Werror=all-warnings",
    "-Xcompiler=-Wall,-Wextra,-Werror",
]  # fmt: skip
LONGEST_S = 120  # a source that takes longer unrolls more than anybody wants to wait for


class Kernel(NamedTuple):
    """What one kernel takes on one architecture; sizes in bytes."""

    file: str
    name: str
    arch: int
    registers: int
    stack_bytes: int
    spill_bytes: int
    shared_bytes: int


def nvcc() -> str | None:
    return shutil.which("nvcc")


@lru_cache
def toolkit() -> Path:
    """Return the folder of the CUDA toolkit, as nvcc itself finds it."""
    told = subprocess.run(
        ["nvcc", "--dryrun", "-x", "cu", "-c", "/dev/null", "-o", "/dev/null"],
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    return Path(re.search(r"^#\$ TOP=(.+)$", told, re.M)[1].strip())


@lru_cache
def fingerprint() -> str:
    """Return a hash of everything that decides what nvcc makes of the kernels."""
    found = hashlib.sha256(" ".join(FLAGS).encode())
    found.update(subprocess.run(["nvcc", "--version"], capture_output=True, check=True).stdout)
    for layer in ("core", "cuda"):
        for path in sorted((CSRC / layer).iterdir()):
            found.update(path.name.encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]


def compile_one(source: Path, arch: int) -> str:
    """Compile one source for one architecture; returns what was said, kept for the next time.

    Raises:
        AssertionError: an error or a warning.
        TimeoutExpired: it took too long.
    """
    log = FOLDER / f"{source.stem}-sm_{arch}-{fingerprint()}.log"
    if not log.exists():
        command = ["nvcc", *FLAGS, f"-arch=sm_{arch}", "-c", str(source), "-o", "/dev/null"]
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LONGEST_S,
        )
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}"
        FOLDER.mkdir(parents=True, exist_ok=True)
        part = log.with_suffix(".part")
        part.write_text(done.stdout)
        part.rename(log)  # whole, or not there
    return log.read_text()


_ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<arch>\d+)\w?'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


def kernels_in(file: str, log: str) -> list[Kernel]:
    """Read the output of `ptxas -v`.

    Raises:
        AssertionError: it tells of kernels that could not be read.
    """
    found = []
    for match in _ENTRY.finditer(log):
        shared = re.search(r"(\d+) bytes smem", match["rest"])
        found.append(
            Kernel(
                file=file,
                name=match["name"],
                arch=int(match["arch"]),
                registers=int(match["registers"]),
                stack_bytes=int(match["stack"]),
                spill_bytes=int(match["stores"]) + int(match["loads"]),
                shared_bytes=int(shared[1]) if shared else 0,
            )
        )
    assert len(found) == log.count("Compiling entry function"), log
    return found


def compile_all(archs: Sequence[int]) -> list[Kernel]:
    """Compile every source of csrc/cuda for every architecture, two compilers at a time."""
    jobs = [(source, arch) for source in sorted((CSRC / "cuda").glob("*.cu")) for arch in archs]
    with ThreadPoolExecutor(2) as pool:
        logs = list(pool.map(lambda job: compile_one(*job), jobs))
    return [
        kernel
        for (source, _), log in zip(jobs, logs, strict=True)
        for kernel in kernels_in(source.name, log)
    ]


def table(kernels: Iterable[Kernel]) -> str:
    """Return the kernels as text, one a line."""
    rows = [("file", "kernel", "arch", "registers", "stack", "spilled", "shared")]
    for kernel in kernels:
        rows.append((kernel.file, short(kernel.name), *map(str, kernel[2:])))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines) + "\n"


@lru_cache
def short(name: str) -> str:
    """Return the name of a kernel as the source has it, where c++filt is there to tell."""
    if shutil.which("c++filt") is None:
        return name
    told = subprocess.run(["c++filt", name], capture_output=True, text=True, check=True).stdout
    bare = re.sub(r"\(anonymous namespace\)::|fastunlearn::cuda::|^void |\n", "", told)
    return re.sub(r"(?<=[\w>])\(.*", "", bare)  # without parameters
