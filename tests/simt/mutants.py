"""The CUDA kernels with one barrier taken away, which a test has to notice.

Run as a program, it prints a table of the barriers and of what noticed that they were gone:

    python -m simt.mutants FOLDER        (from `tests`)
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cxx import toolchain

HERE = Path(__file__).resolve().parent
CUDA = toolchain.CSRC / "cuda"
FLAGS = [
    "-DFASTUNLEARN_SIMT", f"-I{HERE}", "-fno-strict-aliasing", "-Wno-unknown-pragmas", "-O1",
    "-x", "c++", "-c",
]  # fmt: skip
SOURCES = sorted(CUDA.glob("*.cu"))
BESIDE = [HERE / "simt.cpp", toolchain.CSRC / "cpu" / "tensor_view.cpp"]
SELECTION = ("bracket", "cut", "settle", "stream", "table", "topk", "write", "screen")
# What the test programs need of the kernels.
NEEDS = {
    "selection_test": [CUDA / f"{name}.cu" for name in SELECTION],
    "schedules_test": SOURCES,
}
SEEDS = 12
# A barrier that also votes becomes the thread's own vote.
# Said of a barrier behind other operations of the warp, at which the lanes meet too: a device
# promises no order of memory there, and no run on the harness can miss the barrier.
MEMORY_ALONE = "// orders memory alone"
BARRIER = re.compile(r"__syncthreads\(\)|__syncwarp\(\w*\)|__syncthreads_(or|and|count)(?=\()")


@dataclass(frozen=True)
class Mutant:
    """A barrier of one file, by where it stands in the text."""

    path: Path
    begin: int
    end: int

    @property
    def name(self) -> str:
        line = self.path.read_text().count("\n", 0, self.begin) + 1
        return f"{self.path.name}:{line}"

    @property
    def orders_memory_alone(self) -> bool:
        return MEMORY_ALONE in self.path.read_text()[self.end :].partition("\n")[0]

    def text(self) -> str:
        """The file without it."""
        whole = self.path.read_text()
        return whole[: self.begin] + whole[self.end :]


def mutants() -> Iterator[Mutant]:
    """Every barrier in the text of the kernels, comments left aside."""
    for path in sorted(CUDA.glob("*.cu*")):
        for found in BARRIER.finditer(path.read_text()):
            before = path.read_text()[: found.start()].rpartition("\n")[2]
            if "//" not in before:
                yield Mutant(path, found.start(), found.end())


class Factory:
    """Builds the test programs, whole or with other text in one file; each object once.

    Args:
        folder: where objects and programs go.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.objects: dict[tuple[Path, str], Path] = {}

    def _compile(self, source: Path, mode: str) -> Path:
        output = self.folder / f"{source.name}-{mode}.o"
        return toolchain.compile_to(output, [*FLAGS, source], mode)

    def parts(self, test: str, mode: str) -> dict[Path, Path]:
        """Return the objects of a test program by their sources."""
        sources = [HERE / f"{test}.cpp", *BESIDE, *NEEDS[test]]
        missing = [source for source in sources if (source, mode) not in self.objects]
        with ThreadPoolExecutor(2) as pool:
            for source, made in zip(
                missing, pool.map(self._compile, missing, [mode] * len(missing)), strict=True
            ):
                self.objects[source, mode] = made
        return {source: self.objects[source, mode] for source in sources}

    def program(self, test: str, mode: str = "plain") -> Path:
        objects = self.parts(test, mode).values()
        return toolchain.compile_to(self.folder / f"{test}-{mode}", list(objects), mode)

    def variant(self, test: str, path: Path, text: str, mode: str = "plain") -> Path:
        """Return the program with other text in one of the files of `csrc/cuda`."""
        parts = self.parts(test, mode)
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        csrc = folder / "csrc"
        shutil.copytree(toolchain.CSRC, csrc)
        (csrc / "cuda" / path.name).write_text(text)
        for source in NEEDS[test]:
            if source == path or f'"cuda/{path.name}"' in source.read_text():
                copy = csrc / "cuda" / source.name
                output = folder / f"{source.name}.o"
                parts[source] = toolchain.compile_to(output, [*FLAGS, copy], mode, csrc)
        return toolchain.compile_to(folder / test, list(parts.values()), mode)


def noticed(factory: Factory, mutant: Mutant) -> str:
    """Return what told that a barrier is gone, or nothing."""
    program = factory.variant("schedules_test", mutant.path, mutant.text())
    try:
        done = toolchain.execute([program, "0", str(SEEDS)])
    except subprocess.TimeoutExpired:
        return "does not end"
    if done.returncode == 0:
        return ""
    told = re.findall(r"simt: .*|^line \d+: .*", done.stdout, re.M) or ["ended by a signal"]
    calls = re.findall(r"^.*, seed \d+$", done.stdout, re.M) or ["before the first call"]
    return f"{calls[-1]}: {told[0]}"


def main(folder: str) -> None:
    factory = Factory(Path(folder))
    for mutant in mutants():
        if mutant.orders_memory_alone:
            continue
        print(f"{mutant.name}\t{noticed(factory, mutant) or 'NOT NOTICED'}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
