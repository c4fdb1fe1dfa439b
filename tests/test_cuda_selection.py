"""The selection on CUDA, and every kernel under many schedules, on the harness of `tests/simt`.

What such a run cannot prove is at the head of `tests/simt/simt.h`.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest
from cxx import toolchain
from simt import mutants
from simt.mutants import BESIDE, CUDA, FLAGS, HERE

SELECTION = [
    CUDA / f"{name}.cu"
    for name in ("bracket", "cut", "settle", "stream", "table", "topk", "write", "screen")
]
CHUNK = 100  # schedules of one process

Build = Callable[[str], Path]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Return the function that builds the test program of the selection in a mode."""
    folder = tmp_path_factory.mktemp("selection")

    @cache
    def program(mode: str) -> Path:
        return link(folder, mode, [HERE / "selection_test.cpp", *BESIDE, *SELECTION])

    return program


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> mutants.Factory:
    need("plain")
    return mutants.Factory(tmp_path_factory.mktemp("schedules"))


def need(mode: str) -> None:
    reason = toolchain.why_not(mode)
    if reason is not None:
        pytest.skip(reason)


def link(folder: Path, mode: str, sources: list[Path]) -> Path:
    """Return a program in a folder of its own for each mode."""
    need(mode)

    def compiled(source: Path) -> Path:
        output = folder / f"{source.name}-{mode}.o"
        return toolchain.compile_to(output, [*FLAGS, source], mode)

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, sources))
    return toolchain.compile_to(folder / f"program-{mode}", objects, mode)


def passed(program: Path, *arguments: str) -> int:
    """Run a program, demand that it ends well, and return how many checks it made."""
    done = toolchain.execute([program, *arguments])
    assert done.returncode == 0, done.stdout
    found = re.search(r"^(\d+) checks, 0 failures$", done.stdout, re.M)
    assert found is not None, done.stdout
    return int(found[1])


def test_every_way_to_a_cut(build: Build) -> None:
    assert passed(build("plain"), "3", "1") > 5000


def test_stages_keep_to_their_memory(build: Build) -> None:
    assert passed(build("address"), "1", "0") > 1000


# One place too many of the room for candidates, of the sample, and of a tile's candidates.
PLANTED = {
    "stream.cu": ("if (at < static_cast", "if (at <= static_cast"),
    "bracket.cu": ("i < count; i += blockDim.x", "i <= count; i += blockDim.x"),
    "settle.cu": ("i < run.count; i += kWarp", "i <= run.count; i += kWarp"),
}


@pytest.mark.parametrize("file", PLANTED)
def test_planted_access_out_of_bounds_is_reported(build: Build, tmp_path: Path, file: str) -> None:
    whole = build("address")
    csrc = tmp_path / "csrc"
    shutil.copytree(toolchain.CSRC, csrc)
    old, new = PLANTED[file]
    source = csrc / "cuda" / file
    text = source.read_text()
    assert text.count(old) == 1, f"{file} must hold this once: {old}"
    source.write_text(text.replace(old, new))
    changed = toolchain.compile_to(tmp_path / "changed.o", [*FLAGS, source], "address", csrc)
    others = [p for p in whole.parent.glob("*-address.o") if p.name != f"{file}-address.o"]
    program = toolchain.compile_to(tmp_path / "program", [*others, changed], "address")
    done = toolchain.execute([program, "1", "0"])
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stdout and file in done.stdout, done.stdout[-4000:]


def test_same_bits_under_shuffled_schedules(factory: mutants.Factory) -> None:
    """Thirteen calls, each with a schedule of its own for each seed: 104 schedules."""
    assert passed(factory.program(), "0", "8") > 10_000


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("first", range(0, 1000, CHUNK))
def test_same_bits_under_a_thousand_schedules(factory: mutants.Factory, first: int) -> None:
    assert passed(factory.program(), str(first), str(first + CHUNK)) > 100_000


def test_every_barrier_is_known() -> None:
    """So that the search in the text finds what there is to find."""
    text = "".join(path.read_text() for path in CUDA.glob("*.cu*"))
    code = re.sub(r"//.*", "", text)
    count = len(re.findall(r"__syncthreads|__syncwarp", code))
    assert count == len(list(mutants.mutants())) > 20


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("mutant", mutants.mutants(), ids=lambda mutant: mutant.name)
def test_missing_barrier_is_noticed(factory: mutants.Factory, mutant: mutants.Mutant) -> None:
    assert mutants.noticed(factory.without(mutant))
