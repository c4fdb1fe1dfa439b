"""The CUDA kernels on a CPU, under the harness of `tests/simt`; it says what that cannot prove."""

from __future__ import annotations

import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cxx import toolchain

HERE = Path(__file__).resolve().parent / "simt"
CUDA = toolchain.CSRC / "cuda"
# Sanitized kernels without any optimisation would run for too long: the last level counts.
FLAGS = ["-DFASTUNLEARN_SIMT", f"-I{HERE}", "-fno-strict-aliasing", "-O1"]
FLAGS += ["-Wno-unknown-pragmas", "-x", "c++", "-c"]
WRITING = [CUDA / f"{name}.cu" for name in ("table", "screen", "write", "randomk", "noise", "rms")]
BESIDE = [HERE / "write_test.cpp", HERE / "simt.cpp", toolchain.CSRC / "cpu" / "tensor_view.cpp"]


def build(folder: Path, mode: str) -> Path:
    """Return the test program of the kernels that write."""
    reason = toolchain.why_not(mode)
    if reason is not None:
        pytest.skip(reason)

    def compiled(source: Path) -> Path:
        return toolchain.compile_to(folder / f"{source.name}.o", [*FLAGS, source], mode)

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, [*BESIDE, *WRITING]))
    return toolchain.compile_to(folder / "write_test", objects, mode)


@pytest.mark.parametrize(
    ("mode", "rounds"), [pytest.param("plain", 4, marks=pytest.mark.slow), ("address", 1)]
)
def test_kernels_that_write(tmp_path: Path, mode: str, rounds: int) -> None:
    done = toolchain.execute([build(tmp_path, mode), str(rounds)])
    assert done.returncode == 0, done.stdout
    assert re.search(r"^\d{5,} checks, 0 failures$", done.stdout, re.M), done.stdout


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no CUDA compiler: nvcc was not found")
def test_writes_need_no_local_memory(tmp_path: Path) -> None:
    strict = ["-arch=sm_90", "-std=c++17", "-O3", "-Werror=all-warnings", "-Xptxas", "-v"]
    output = tmp_path / "write.o"
    command = ["nvcc", *strict, f"-I{toolchain.CSRC}", "-c", CUDA / "write.cu", "-o", output]
    done = toolchain.execute(command)
    assert done.returncode == 0, done.stdout
    found = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill", done.stdout)
    assert found and set(found) == {("0", "0")}, done.stdout
