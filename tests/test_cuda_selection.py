"""The selection on CUDA, and every kernel under many schedules, on the harness of `tests/simt`.

What such a run cannot prove is at the head of `tests/simt/simt.h`.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cxx import toolchain
from simt import mutants
from simt.mutants import CUDA, Factory, Mutant

CHUNK = 100  # schedules of one process


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Factory:
    for mode in ("plain", "address"):
        reason = toolchain.why_not(mode)
        if reason is not None:
            pytest.skip(reason)
    return Factory(tmp_path_factory.mktemp("kernels"))


def passed(program: Path, *arguments: str) -> int:
    """Run a program, demand that it ends well, and return how many checks it made."""
    done = toolchain.execute([program, *arguments])
    assert done.returncode == 0, done.stdout
    found = re.search(r"^(\d+) checks, 0 failures$", done.stdout, re.M)
    assert found is not None, done.stdout
    return int(found[1])


def test_every_way_to_a_cut(factory: Factory) -> None:
    assert passed(factory.program("selection_test"), "1", "1") > 5000


def test_stages_keep_to_their_memory(factory: Factory) -> None:
    assert passed(factory.program("selection_test", "address"), "1", "0") > 1000


# One place too many of the room for candidates, of the sample, and of a tile's candidates.
PLANTED = {
    "stream.cu": ("if (at < static_cast", "if (at <= static_cast"),
    "bracket.cu": ("i < count; i += blockDim.x", "i <= count; i += blockDim.x"),
    "settle.cu": ("i < run.count; i += kWarp", "i <= run.count; i += kWarp"),
}


@pytest.mark.parametrize(
    "file",
    [pytest.param(file, marks=[pytest.mark.slow] * (i > 0)) for i, file in enumerate(PLANTED)],
)
def test_planted_access_out_of_bounds_is_reported(factory: Factory, file: str) -> None:
    old, new = PLANTED[file]
    text = (CUDA / file).read_text()
    assert text.count(old) == 1, f"{file} must hold this once: {old}"
    program = factory.variant("selection_test", CUDA / file, text.replace(old, new), "address")
    done = toolchain.execute([program, "1", "0"])
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stdout and file in done.stdout, done.stdout[-4000:]


def test_same_bits_under_shuffled_schedules(factory: Factory) -> None:
    """Thirteen calls, each with a schedule of its own for each seed: 104 schedules."""
    assert passed(factory.program("schedules_test"), "0", "8") > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 1000, CHUNK))
def test_same_bits_under_a_thousand_schedules(factory: Factory, first: int) -> None:
    program = factory.program("schedules_test")
    assert passed(program, str(first), str(first + CHUNK)) > 100_000


def test_every_barrier_is_known() -> None:
    """The search in the text finds what there is to find."""
    code = re.sub(r"//.*", "", "".join(path.read_text() for path in CUDA.glob("*.cu*")))
    count = len(re.findall(r"__syncthreads|__syncwarp", code))
    found = list(mutants.mutants())
    assert count == len(found) > 20
    assert sum(mutant.orders_memory_alone for mutant in found) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "mutant",
    [mutant for mutant in mutants.mutants() if not mutant.orders_memory_alone],
    ids=lambda mutant: mutant.name,
)
def test_missing_barrier_is_noticed(factory: Factory, mutant: Mutant) -> None:
    assert mutants.noticed(factory, mutant)
