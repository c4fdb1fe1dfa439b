"""The C++ core without Python and torch: stand-alone programs, plain and under sanitizers."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from cxx import toolchain
from cxx.toolchain import Workshop

from fastunlearn.reference.noise import DISTRIBUTIONS
from fastunlearn.reference.permutation import Permutation
from fastunlearn.reference.philox import Rng

DATA = Path(__file__).parent / "data"
CORE = ["known_answers", "half", "keys", "segment", "permutation"]
THREADED = ["pool", "selection"]
HARDSHIPS = ["faults", "races"]
# Ordered in advance, in the order of the tests; the slow tests order theirs when they run.
BUILDS = [
    *((name, "plain") for name in ("known_answers", "half")),
    *((name, "address") for name in (*CORE, "kernels", *THREADED, *HARDSHIPS)),
    *((name, "thread") for name in THREADED),
]


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    """Start to build every program at once; each test waits for its own."""
    found = Workshop(tmp_path_factory.mktemp("cxx"))
    for name, mode in BUILDS:
        if toolchain.why_not(mode) is None:
            found.order(name, mode)
    yield found
    found.pool.shutdown(cancel_futures=True)


def need(mode: str) -> None:
    """Skip the test, with the reason, where programs of a mode cannot be built and run."""
    reason = toolchain.why_not(mode)
    if reason is not None:
        pytest.skip(reason)


def check(workshop: Workshop, name: str, mode: str, *arguments: str | Path) -> int:
    """Run a program, demand that it ends well, and return how many checks it made."""
    need(mode)
    done = toolchain.run(workshop.program(name, mode), mode, *arguments)
    assert done.returncode == 0, done.stdout
    count = re.search(r"^(\d+) checks, 0 failures$", done.stdout, re.MULTILINE)
    assert count is not None, done.stdout
    return int(count[1])


def line(kind: str, numbers: Iterable[int]) -> str:
    numbers = list(numbers)
    return " ".join([kind, str(len(numbers)), *(f"{number:x}" for number in numbers)])


def image_lines() -> Iterator[str]:
    """Images that the reference computes, in domains too large for the committed vectors."""
    rng = Rng(2**63 + 12345, 9)
    for n in (2**31 + 1, 2**32 - 1, 2**40 + 12345, 2**61 + 3, 2**62):
        base = n // 3
        x = torch.tensor([0, 1, 2, n // 2, n - 2, n - 1])
        for place, image in zip(x.tolist(), Permutation(n, rng, base)(x).tolist(), strict=True):
            yield line("image", [n, rng.seed, rng.step, base, place, image])


def noise_lines() -> Iterator[str]:
    """Noise that the reference computes, of more words than the committed vectors hold.

    Among them are those whose tail probability has the mantissa at which the logarithm changes its
    exponent.
    """
    edge = torch.tensor([(0xB504F3 << shift) + d for shift in range(1, 8) for d in (-1, 0, 1)])
    generator = torch.Generator().manual_seed(2)
    random = torch.randint(1 << 32, (1 << 13,), generator=generator)
    words = torch.cat((edge, (1 << 32) - 1 - edge, random))
    columns = [DISTRIBUTIONS[name](words) for name in ("normal", "uniform", "laplace")]
    bits = [column.view(torch.int32).long() & 0xFFFFFFFF for column in columns]
    for row in torch.stack((words, *bits), dim=1).tolist():
        yield line("noise", row)


@pytest.fixture(scope="session")
def known_answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lines = []
    for case in json.loads((DATA / "philox.json").read_text()):
        lines.append(line("philox", [*case["counter"], *case["key"], *case["words"]]))
    with (DATA / "noise.csv").open() as file:
        for row in csv.DictReader(file):
            bits = [int(row[name], 16) for name in ("normal", "uniform", "laplace")]
            lines.append(line("noise", [int(row["word"]), *bits]))
    for case in json.loads((DATA / "randomk.json").read_text()):
        head = [case[name] for name in ("n", "k", "seed", "step", "base")]
        lines.append(line("randomk", [*head, *case["subset"]]))
    path = tmp_path_factory.mktemp("answers") / "known_answers.txt"
    path.write_text("\n".join([*lines, *image_lines(), *noise_lines()]) + "\n")
    return path


def fp32_to_narrow() -> torch.Tensor:
    """Every fp16 and bf16 number, every midpoint of neighbours, the fp32 numbers beside, and more.

    Returns:
        fp32 tensor of shape (m,).
    """
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    found = [torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0])]
    for dtype in (torch.float16, torch.bfloat16):
        wide = every.view(dtype).double()
        wide = wide[wide.isfinite()].sort().values
        # The last number has a neighbour too, in rounding: the one that overflows to infinity.
        beyond = 2 * wide[-1:] - wide[-2:-1]
        wide = torch.cat((-beyond, wide, beyond))
        middle = (wide[1:] + wide[:-1]) / 2
        found += [wide.float(), middle.float()]
    edges = torch.cat(found)
    bits = edges.view(torch.int32)
    random = torch.randint(-(2**31), 2**31, (1 << 18,), generator=torch.Generator().manual_seed(1))
    patterns = torch.cat((bits, bits - 1, bits + 1, random.to(torch.int32)))
    return patterns.view(torch.float32)


@pytest.fixture(scope="session")
def conversions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    tables = [every.view(dtype).float().numpy() for dtype in (torch.float16, torch.bfloat16)]
    values = fp32_to_narrow()
    record = np.dtype([("fp32", "<f4"), ("fp16", "<i2"), ("bf16", "<i2")])
    records = np.empty(values.numel(), dtype=record)
    records["fp32"] = values.numpy()
    for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        narrow = values.to(dtype).masked_fill_(values.isnan(), torch.nan)
        records[name] = narrow.view(torch.int16).numpy()
    path = tmp_path_factory.mktemp("half") / "conversions.bin"
    path.write_bytes(b"".join(part.tobytes() for part in (*tables, records)))
    return path


both = pytest.mark.parametrize("mode", ["plain", "address"])
# Where the tests of the extension, which is built that way, say the same.
slow_plain = pytest.param("plain", marks=pytest.mark.slow)


@both
def test_known_answers(workshop: Workshop, known_answers: Path, mode: str) -> None:
    words = len(known_answers.read_text().splitlines())
    assert words > 4688 + 259 + 27 + (1 << 13)
    assert check(workshop, "known_answers", mode, known_answers) > 3 * words


@both
def test_half_conversions(workshop: Workshop, conversions: Path, mode: str) -> None:
    assert check(workshop, "half", mode, conversions) > 2 * (1 << 20)


@pytest.mark.parametrize("mode", ["address", slow_plain])
@pytest.mark.parametrize("name", ["keys", "segment", "permutation"])
def test_properties(workshop: Workshop, name: str, mode: str) -> None:
    assert check(workshop, name, mode) > 100_000


@pytest.mark.parametrize("mode", ["address", slow_plain])
def test_kernels_of_every_level(workshop: Workshop, mode: str) -> None:
    assert check(workshop, "kernels", mode) > 1_000_000


@pytest.mark.parametrize("mode", ["address", "thread", slow_plain])
def test_pool(workshop: Workshop, mode: str) -> None:
    # A sanitizer that watches threads cannot follow a fork.
    assert check(workshop, "pool", mode, *([] if mode == "thread" else ["fork"])) > 1500


# Number of small requests, of middle ones, and thread counts for these.
SELECTIONS = {
    "address": [80, 1, 3],
    "thread": [0, 3, 4],
    "plain": [2000, 60, 1, 2, 3, 5, 8],
}


@pytest.mark.parametrize("mode", ["address", "thread", slow_plain])
def test_selection(workshop: Workshop, mode: str) -> None:
    assert check(workshop, "selection", mode, *map(str, SELECTIONS[mode])) > 500


@pytest.mark.parametrize("mode", ["address", slow_plain])
def test_calls_that_run_out_of_memory(workshop: Workshop, mode: str) -> None:
    assert check(workshop, "faults", mode) > 500


@pytest.mark.parametrize("mode", ["address", slow_plain])
def test_scores_that_change_during_a_call(workshop: Workshop, mode: str) -> None:
    assert check(workshop, "races", mode) > 10


@pytest.mark.parametrize("flag", ["-ffast-math", "-Ofast", "-ffinite-math-only"])
def test_inexact_arithmetic_does_not_compile(flag: str) -> None:
    need("plain")
    header = toolchain.CSRC / "core" / "platform.h"
    command = [*toolchain.compiler(), "-x", "c++", "-fsyntax-only", header]
    assert toolchain.execute(command).returncode == 0
    done = toolchain.execute([*command, flag])
    assert done.returncode != 0 and "results are exact to the bit" in done.stdout


def test_every_instruction_set_of_a_level_is_asked_for() -> None:
    """A machine may lack one that usually comes with the others."""
    asked = (toolchain.CSRC / "core" / "simd.h").read_text()
    for level in ("avx2", "avx512"):
        source = (toolchain.CSRC / "cpu" / f"kernels_{level}.cpp").read_text()
        names = re.findall(r'#pragma GCC target\("(.+)"\)', source)[0].split(",")
        missing = [n for n in names if f'"{n}"' not in asked and f"bit_{n.upper()}" not in asked]
        assert missing == []


class Planted(NamedTuple):
    """One error in a source file of csrc/cpu, and the sanitizer that has to tell it."""

    program: str
    mode: str
    file: str
    old: str
    new: str
    report: str


PLANTED = {
    "packed bits written past the end": Planted(
        "selection",
        "address",
        "topk.cpp",
        "for (int i = 0; i < (chunk.count + 7) / 8; ++i) {",
        "for (int i = 0; i <= (chunk.count + 7) / 8; ++i) {",
        "heap-buffer-overflow",
    ),
    "one counter for all workers": Planted(
        "selection",
        "thread",
        "topk.cpp",
        "counts[number] = chosen.count;",
        "counts[0] += chosen.count;",
        "data race",
    ),
    "end of a job told without release": Planted(
        "pool",
        "thread",
        "pool.cpp",
        "busy_.fetch_sub(1, std::memory_order_release);",
        "busy_.fetch_sub(1, std::memory_order_relaxed);",
        "data race",
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_error_is_reported(workshop: Workshop, tmp_path: Path, name: str) -> None:
    """The sanitized runs above can fail: each sanitizer tells an error of its kind."""
    error = PLANTED[name]
    need(error.mode)
    program = workshop.variant(
        error.program, error.mode, error.file, error.old, error.new, tmp_path
    )
    arguments = [str(x) for x in SELECTIONS[error.mode]] if error.program == "selection" else []
    done = toolchain.run(program, error.mode, *arguments, stop_at_first=True)
    assert done.returncode != 0
    assert error.report in done.stdout, done.stdout[-2000:]


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no CUDA compiler: nvcc was not found")
def test_headers_compile_for_the_device_alone(tmp_path: Path) -> None:
    """Warnings are errors; in the assembly every float operation rounds once, to nearest."""
    strict = ["-Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra,-Werror"]
    keep: list[str | Path] = ["--keep", "--keep-dir", tmp_path]
    source = toolchain.HERE / "device_headers.cu"
    output = tmp_path / "device_headers.o"
    files: list[str | Path] = [f"-I{toolchain.CSRC}", "-c", source, "-o", output]
    options = ["-arch=sm_90", "-std=c++17", *strict, *keep, *files]
    done = toolchain.execute(["nvcc", *options])
    assert done.returncode == 0, done.stdout
    # Without -fmad=false on the command line: the headers must not depend on it.
    assembly = (tmp_path / "device_headers.ptx").read_text()
    operations = re.findall(r"^\s+((?:add|sub|mul|div|fma|mad|sqrt)\S*\.f32)", assembly, re.M)
    assert {op.split(".")[0] for op in operations} == {"add", "sub", "mul", "div", "sqrt"}
    assert {op.split(".", 1)[1] for op in operations} == {"rn.f32"}
