"""The harness that runs CUDA sources on a CPU: its operations, its schedules, and what it reports.

A kernel that passes under the harness has met the rules of the execution model under the schedules
that were tried. What that does not say is at the head of `tests/simt/simt.h`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from cxx import toolchain

HERE = Path(__file__).resolve().parent / "simt"
FLAGS = ["-DFASTUNLEARN_SIMT", f"-I{HERE}", "-fno-strict-aliasing", "-x", "c++", "-c"]

Build = Callable[..., Path]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Return the function that builds a program: (name of a source, mode, harness's macro, ...)."""
    folder = tmp_path_factory.mktemp("simt")

    @cache
    def compiled(source: str, mode: str, macros: tuple[str, ...]) -> Path:
        output = folder / "-".join([source, mode, *macros, "o"])
        return toolchain.compile_to(output, [*FLAGS, *macros, HERE / source], mode)

    @cache
    def program(name: str, mode: str, planted: str = "", portable: str = "") -> Path:
        reason = toolchain.why_not(mode)
        if reason is not None:
            pytest.skip(reason)
        executor = compiled("simt.cpp", mode, (portable,) if portable else ())
        kernels = compiled(f"{name}.cu", mode, (planted,) if planted else ())
        output = folder / f"{name}-{mode}{planted}{portable}"
        return toolchain.compile_to(output, [kernels, executor], mode)

    return program


def ended_well(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout
    return done.stdout


def wrong_results(program: Path, schedules: int) -> dict[str, int]:
    """Return how many of the schedules gave a wrong result, by kernel."""
    text = ended_well(toolchain.execute([program, str(schedules)]))
    return {name: int(count) for name, count in re.findall(r"^(\w+): (\d+) wrong$", text, re.M)}


@pytest.mark.parametrize(
    ("mode", "portable"), [("plain", ""), ("plain", "-DSIMT_UCONTEXT"), ("address", "")]
)
def test_operations_give_what_a_device_gives(build: Build, mode: str, portable: str) -> None:
    program = build("operations", mode, portable=portable)
    for resident in ("1", "3"):
        done = toolchain.execute([program], SIMT_SEED=resident, SIMT_RESIDENT=resident)
        assert re.search(r"^2346 checks, 0 failures$", ended_well(done), re.M)


def test_block_algorithms_under_every_schedule(build: Build) -> None:
    assert wrong_results(build("schedules", "plain"), 1000) == {"reduction": 0, "scan": 0}


def test_missing_barrier_is_caught(build: Build) -> None:
    wrong = wrong_results(build("schedules", "plain", planted="-DWITHOUT_BARRIER"), 1000)
    assert wrong["reduction"] > 900 and wrong["scan"] > 900, wrong


LINE = r"\S*faults\.cu:\d+"
MASK = "with mask 0xffffffff"
# What the harness has to say. Where several threads are at fault, the first of them is named.
REPORTS = {
    "divergent": rf"block \d, thread 40, __syncthreads at {LINE}: thread 0 stands at another "
    rf"barrier, __syncthreads at {LINE}",
    "left_out": rf"block 0, thread \d+, __ballot_sync at {LINE} with mask 0xffff0000: the mask "
    "leaves out the caller",
    "absent": rf"block 0, thread 0, __shfl_down_sync at {LINE} {MASK}: waits for lane 7, which "
    rf"waits in __syncthreads at {LINE}",
    "ended": rf"block 0, thread 0, __any_sync at {LINE} {MASK}: waits for lane 7, which has ended",
    "mixed": rf"block 0, thread 0, __any_sync at {LINE} {MASK}: waits for lane 16, which waits in "
    rf"__all_sync at {LINE} {MASK}",
    "masks": rf"block 0, thread \d+, __any_sync at {LINE} with mask 0xfffffffe: ",
    "beyond": rf"block 0, thread 64, __syncwarp at {LINE} {MASK}: waits for lane 16, which does "
    "not exist",
    "width": rf"block 0, thread \d+, __shfl_sync at {LINE} {MASK}: the width must be a power of "
    "two up to 32",
    "trap": rf"block \d, thread 5, __trap at {LINE}: stops the kernel",
    "spin": r"block 0, thread \d+: took turns without end",
}


@pytest.mark.parametrize("name", REPORTS)
def test_fault_is_reported(build: Build, name: str) -> None:
    done = toolchain.execute([build("faults", "plain"), name], SIMT_SEED="5")
    assert done.returncode == 1, done.stdout
    again = r".*\(launch 1 with SIMT_SEED=5\)$"
    assert re.match(f"simt: {REPORTS[name]}{again}", done.stdout, re.M), done.stdout


@pytest.mark.parametrize(
    ("name", "report"),
    [
        ("overrun", "heap-buffer-overflow"),
        ("bounds", "index 64 out of bounds"),
        ("misaligned", "misaligned address"),
        ("absent", "waits for lane 7"),
    ],
)
def test_sanitizers_see_into_threads(build: Build, name: str, report: str) -> None:
    done = toolchain.execute([build("faults", "address"), name])
    assert done.returncode != 0
    assert report in done.stdout, done.stdout[-2000:]
    assert "stack-" not in done.stdout


def result(build: Build, name: str, **env: str) -> list[int]:
    """Return the words that a kernel of `faults.cu` without a fault wrote."""
    text = ended_well(toolchain.execute([build("faults", "plain"), name], **env))
    return [int(word, 16) for word in text.split()]


def test_shared_arrays_begin_with_poison(build: Build) -> None:
    assert result(build, "poison") == [0xA5A5A5A5] * 4


def test_seed_decides_the_schedule(build: Build) -> None:
    first, again, other = (result(build, "order", SIMT_SEED=seed) for seed in "112")
    assert first == again != other


def test_blocks_take_turns_where_asked(build: Build) -> None:
    assert result(build, "count", SIMT_RESIDENT="1")[0] == 8
    assert result(build, "count", SIMT_RESIDENT="4")[0] < 8


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no CUDA compiler: nvcc was not found")
def test_operations_compile_for_the_device(tmp_path: Path) -> None:
    compile_for_device(tmp_path, "-c")


@pytest.mark.cuda
def test_operations_give_the_same_on_a_device(tmp_path: Path) -> None:
    done = toolchain.execute([compile_for_device(tmp_path)])
    assert re.search(r"^2346 checks, 0 failures$", ended_well(done), re.M)


def compile_for_device(folder: Path, *options: str) -> Path:
    """Compile the operations with nvcc, every warning an error; return the program or object."""
    strict = ["-arch=sm_90", "-std=c++17", "-Werror", "all-warnings"]
    include = [f"-I{toolchain.CSRC}", f"-I{toolchain.HERE}"]
    output = folder / "operations"
    command = ["nvcc", *strict, *include, *options, HERE / "operations.cu", "-o", output]
    ended_well(toolchain.execute(command))
    return output
