"""The CUDA code compiles for every architecture, without warnings; loops over all do not spill."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import cuda_code
import pytest
import torch

ARCHS = (75, 80, 86, 89, 90, 100, 120)
# Kernels that read or write everything: what they spill, every element pays for.
STREAMING = ("screen.cu", "stream.cu", "write.cu")

pytestmark = [
    pytest.mark.skipif(cuda_code.nvcc() is None, reason="no CUDA compiler: nvcc was not found"),
    pytest.mark.timeout(900),
]


def test_kernels_compile() -> None:
    kernels = cuda_code.compile_all(ARCHS)
    told = cuda_code.table(kernels)
    cuda_code.FOLDER.mkdir(parents=True, exist_ok=True)
    (cuda_code.FOLDER / "kernels.txt").write_text(told)
    assert {kernel.arch for kernel in kernels} == set(ARCHS)
    spilling = [k for k in kernels if k.spill_bytes and k.file in STREAMING]
    assert not spilling, f"spilling: {cuda_code.table(spilling)}\nall:\n{told}"


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("__global__ void f(int* x) { int unused; *x = 1; }", "unused"),
        ("__global__ void f(int* x, unsigned n) { if (n >= 0) *x = 1; }", "pointless"),
    ],
)
def test_a_warning_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, message: str
) -> None:
    monkeypatch.setattr(cuda_code, "FOLDER", tmp_path)
    source = tmp_path / "broken.cu"
    source.write_text(f"namespace {{\n{broken}\n}}\nvoid g(int* x) {{ (void)x; (void)f; }}\n")
    with pytest.raises(AssertionError, match=message):
        cuda_code.compile_one(source, 90)


def test_a_spill_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that may have 24 registers for 64 values."""
    monkeypatch.setattr(cuda_code, "FOLDER", tmp_path)
    monkeypatch.setattr(cuda_code, "FLAGS", [*cuda_code.FLAGS, "-maxrregcount=24"])
    source = tmp_path / "spilling.cu"
    source.write_text(
        "__global__ void greedy(float* x) {\n"
        "  float v[64];\n"
        "  for (int i = 0; i < 64; ++i) v[i] = x[i * 32 + threadIdx.x];\n"
        "  __syncthreads();\n"
        "  for (int i = 0; i < 64; ++i) x[i * 32 + threadIdx.x] = v[i] * v[63 - i];\n"
        "}\n"
    )
    (kernel,) = cuda_code.kernels_in("spilling.cu", cuda_code.compile_one(source, 90))
    assert kernel.spill_bytes > 0 and kernel.registers <= 24
    assert "greedy" in cuda_code.table([kernel])


def test_binding_compiles_against_torch(tmp_path: Path) -> None:
    """Syntax and types alone: a torch without CUDA lacks its libraries and a generated header."""
    macros = tmp_path / "c10" / "cuda" / "impl" / "cuda_cmake_macros.h"
    macros.parent.mkdir(parents=True)
    macros.write_text("#pragma once\n#define C10_CUDA_BUILD_SHARED_LIBS\n")
    include = Path(torch.__file__).parent / "include"
    system = [include, include / "torch/csrc/api/include", cuda_code.toolkit() / "include"]
    if not (include / "c10" / "cuda" / "impl" / "cuda_cmake_macros.h").exists():
        system.append(tmp_path)
    options = ["-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror"]
    options += [f"-I{cuda_code.CSRC}"]
    for path in system:
        options += ["-isystem", str(path)]
    for name in ("device_ops.cpp", "devices.cpp"):
        done = subprocess.run(
            [*compiler(), *options, str(cuda_code.CSRC / "binding" / name)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, done.stdout


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX") or "c++")
