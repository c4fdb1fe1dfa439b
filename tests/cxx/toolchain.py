"""Compile and run the stand-alone C++ test programs, plain or under a sanitizer."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"

FLAGS = ["-std=c++17", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-pthread", "-g1"]
# Sanitized programs run for seconds: to optimise them in full would cost more than it saves.
MODES = {
    "plain": ["-O2"],
    "address": ["-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-O1", "-fsanitize=thread"],
}
# The sources of csrc/cpu that a program needs; those without an entry need none.
KERNELS = ["kernels_portable", "kernels_avx2", "kernels_avx512"]
EVERYTHING = sorted(path.stem for path in (CSRC / "cpu").glob("*.cpp"))
NEEDS = {
    "kernels": KERNELS,
    "pool": ["pool"],
    **dict.fromkeys(("selection", "faults", "races"), EVERYTHING),
}
TIMEOUT_S = 150


def compiler() -> list[str]:
    """Return the C++ compiler as a command; `CXX` may hold flags too."""
    return shlex.split(os.environ.get("CXX") or "c++")


def execute(command: Sequence[str | Path], **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and return it with its output, stderr joined to stdout."""
    return subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=TIMEOUT_S,
    )


def compile_to(output: Path, arguments: Sequence[str | Path], mode: str, csrc: Path = CSRC) -> Path:
    """Compile (or link) the arguments to `output`; fail with the compiler's words."""
    include = [f"-I{csrc}", f"-I{HERE}"]
    command = [*compiler(), *FLAGS, *MODES[mode], *include, *arguments, "-o", output]
    done = execute(command)
    assert done.returncode == 0, f"{shlex.join(str(part) for part in command)}\n{done.stdout}"
    return output


class Workshop:
    """Builds programs in the background, two compilers at a time, each object once.

    Args:
        folder: where objects and programs go.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pool = ThreadPoolExecutor(2)
        self.objects: dict[tuple[Path, str], Future[Path]] = {}
        self.programs: dict[tuple[str, str], Path] = {}

    def order(self, name: str, mode: str) -> list[Future[Path]]:
        """Start to compile what `tests/cxx/<name>.cpp` needs in a mode, unless that was done."""
        sources = [HERE / f"{name}.cpp"]
        sources += [CSRC / "cpu" / f"{stem}.cpp" for stem in NEEDS.get(name, [])]
        for source in sources:
            if (source, mode) not in self.objects:
                output = self.folder / f"{source.stem}-{source.parent.name}-{mode}.o"
                job = self.pool.submit(compile_to, output, ["-c", source], mode)
                self.objects[source, mode] = job
        return [self.objects[source, mode] for source in sources]

    def program(self, name: str, mode: str) -> Path:
        """Return the program, linked."""
        if (name, mode) not in self.programs:
            parts = [part.result() for part in self.order(name, mode)]
            output = self.folder / f"{name}-{mode}"
            self.programs[name, mode] = compile_to(output, parts, mode)
        return self.programs[name, mode]

    def variant(self, name: str, mode: str, file: str, old: str, new: str, folder: Path) -> Path:
        """Return the program with one text replaced in one source file of `csrc/cpu`.

        The text has to be there exactly once. Only that source file is compiled anew, so a header
        cannot be changed this way.
        """
        csrc = folder / "csrc"
        shutil.copytree(CSRC, csrc)
        source = csrc / "cpu" / file
        text = source.read_text()
        assert text.count(old) == 1, f"{file} must hold this once, got {text.count(old)}: {old}"
        source.write_text(text.replace(old, new))
        parts = [part.result() for part in self.order(name, mode)]
        others = [part for part in parts if not part.name.startswith(f"{source.stem}-cpu-")]
        assert len(others) == len(parts) - 1
        changed = compile_to(folder / "changed.o", ["-c", source], mode, csrc)
        return compile_to(folder / name, [*others, changed], mode)


def run(
    program: Path, mode: str, *arguments: str | Path, stop_at_first: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run a program under the launcher that its mode needs here.

    A data race does not end a program by itself; `stop_at_first` makes it.
    """
    env = {"TSAN_OPTIONS": "halt_on_error=1"} if stop_at_first else {}
    return execute([*_probe(mode)[1], program, *arguments], **env)


@lru_cache
def why_not(mode: str) -> str | None:
    """Return why programs of a mode cannot be built and run here, None where they can."""
    if shutil.which(compiler()[0]) is None:
        return f"no C++ compiler: {compiler()[0]!r} was not found"
    return _probe(mode)[0]


@lru_cache
def _probe(mode: str) -> tuple[str | None, list[str]]:
    """Build and run a two-thread program; return what went wrong, and the launcher it needs.

    ThreadSanitizer wants its shadow memory at fixed places. Where the kernel shuffles addresses too
    far for that, `setarch -R` turns the shuffling off.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "probe.cpp"), Path(folder, "probe")
        source.write_text(
            "#include <thread>\n"
            "int main() { int x = 1; std::thread([&] { x = 0; }).join(); return x; }\n"
        )
        built = execute([*compiler(), *FLAGS, *MODES[mode], source, "-o", program])
        if built.returncode != 0:
            return f"the compiler cannot build for {mode}: {built.stdout[-300:]}", []
        for launcher in ([], ["setarch", "-R"]):
            if launcher and shutil.which(launcher[0]) is None:
                continue
            done = execute([*launcher, program])
            if done.returncode == 0:
                return None, launcher
        return f"programs built for {mode} do not run: {done.stdout[-300:]}", []
