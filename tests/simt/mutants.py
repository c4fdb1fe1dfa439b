"""The CUDA kernels with one barrier taken away, which a test has to notice.

Run as a program, it prints a table of the barriers and of what noticed that they were gone:

    python -m simt.mutants FOLDER        (from `tests`)
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
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
PROGRAM = HERE / "schedules_test.cpp"
SEEDS = 12
# A barrier that also votes becomes the thread's own vote.
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

    def text(self) -> str:
        """The file without it."""
        whole = self.path.read_text()
        return whole[: self.begin] + whole[self.end :]

    def sources(self) -> list[Path]:
        """What has to be compiled anew."""
        if self.path in SOURCES:
            return [self.path]
        return [path for path in SOURCES if f'"cuda/{self.path.name}"' in path.read_text()]


def mutants() -> Iterator[Mutant]:
    """Every barrier in the text of the kernels, comments left aside."""
    for path in sorted(CUDA.glob("*.cu*")):
        for found in BARRIER.finditer(path.read_text()):
            before = path.read_text()[: found.start()].rpartition("\n")[2]
            if "//" not in before:
                yield Mutant(path, found.start(), found.end())


class Factory:
    """Builds the test program whole, or with one barrier less.

    Args:
        folder: where objects and programs go.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with ThreadPoolExecutor(2) as pool:
            built = pool.map(self._compiled, [PROGRAM, *BESIDE, *SOURCES])
            self.objects = dict(zip([PROGRAM, *BESIDE, *SOURCES], built, strict=True))

    def _compiled(self, source: Path) -> Path:
        return toolchain.compile_to(self.folder / f"{source.name}.o", [*FLAGS, source], "plain")

    def program(self, name: str = "whole", changed: dict[Path, Path] | None = None) -> Path:
        objects = list({**self.objects, **(changed or {})}.values())
        return toolchain.compile_to(self.folder / name, objects, "plain")

    def without(self, mutant: Mutant) -> Path:
        """Return the program without a barrier."""
        name = mutant.name.replace(":", "-")
        csrc = self.folder / f"{name}-csrc"
        shutil.copytree(toolchain.CSRC, csrc)
        (csrc / "cuda" / mutant.path.name).write_text(mutant.text())
        changed = {}
        for source in mutant.sources():
            output = self.folder / f"{name}-{source.name}.o"
            copy = csrc / "cuda" / source.name
            changed[source] = toolchain.compile_to(output, [*FLAGS, copy], "plain", csrc)
        return self.program(name, changed)


def noticed(program: Path) -> str:
    """Return what told that a program is wrong, or nothing."""
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
    assert not noticed(factory.program())
    for mutant in mutants():
        print(f"{mutant.name}\t{noticed(factory.without(mutant)) or 'NOT NOTICED'}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
