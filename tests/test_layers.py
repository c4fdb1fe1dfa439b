"""The layers of the C++ sources and of the Python package, held by reading includes and imports."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CXX_SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}

TORCH = r"(torch|ATen|c10|caffe2)/|pybind11/|Python\.h"
CUDA = r"cuda|cub/|thrust/|cooperative_groups"
# What a folder of csrc/ must not include; "core/..." and the like are paths inside csrc/.
FORBIDDEN_INCLUDES = {
    "core": rf"{TORCH}|(cpu|cuda|binding)/|(?!cuda_(fp16|bf16)\.h)({CUDA})"
    r"|(memory|new|stdexcept|string|vector|map|unordered_map|cstdlib|stdlib\.h)$",
    "cpu": rf"{TORCH}|(cuda|binding)/|{CUDA}",
    "cuda": rf"{TORCH}|(cpu|binding)/",
    "binding": r"ATen/cuda/|torch/csrc/cuda/",  # c10/cuda has what is needed, and changes less
}
# What it must not do, as far as a word can tell: allocate, throw, wait for the device.
FORBIDDEN_CODE = {
    "core": r"\b(throw|new|delete|malloc|calloc|free)\b",
    "cuda": r"\b(throw|new|cuda\w*(Malloc|Free)\w*|cuda\w*Synchronize)\b",
    "binding": r"\bcuda\w*(Synchronize|Memcpy|Malloc)\w*|\.item\b|\bsynchronize\b",
}

# Python: imports go to the same row or a row above, never below.
PYTHON_LAYERS = [
    {"_version", "_extension"},
    {"_ops", "reference"},
    {
        "overlap",
        "targets",
        "strategies",
        "selection",
        "receipt",
        "perturb",
        "divergence",
        "overflow",
        "journal",
    },
    {"_loop", "scores", "repair", "_finetune", "unlearn", "recipes", "passes"},
    {"distributed", "checkpoint"},
    {"metrics", "spdgan", "evaluation", "bench", "trainers"},
    {"report", "cli", "__main__"},
]
RANK = {name: rank for rank, names in enumerate(PYTHON_LAYERS) for name in names}
FACADE = "__init__"  # `import fastunlearn` gives everything up to that row
FACADE_RANK = RANK["recipes"]


def without_comments(text: str) -> str:
    """Blank out comments, keeping the line numbers."""
    return re.sub(
        r"//[^\n]*|/\*.*?\*/", lambda m: re.sub(r"[^\n]", " ", m[0]), text, flags=re.DOTALL
    )


def include_target(spelled: str, file: Path, csrc: Path) -> str:
    """Return an include as spelled from csrc/, so that `../cuda/x.h` cannot hide its layer."""
    beside = (file.parent / spelled).resolve()
    if spelled.startswith(".") and beside.is_relative_to(csrc.resolve()):
        return beside.relative_to(csrc.resolve()).as_posix()
    return spelled


def cxx_violations(csrc: Path) -> list[str]:
    """Return 'file:line: what' for every line below `csrc` that its layer does not allow."""
    found = []
    for file in sorted(p for p in csrc.rglob("*") if p.suffix in CXX_SUFFIXES):
        layer = file.relative_to(csrc).parts[0]
        if layer not in FORBIDDEN_INCLUDES:
            found.append(f"{file.relative_to(csrc)}: {layer} is not a layer of csrc/")
            continue
        for number, line in enumerate(without_comments(file.read_text()).splitlines(), start=1):
            place = f"{file.relative_to(csrc)}:{number}"
            include = re.match(r"\s*#\s*include\s*(.*)", line)
            if include:
                spelled = re.fullmatch(r'[<"](.+)[>"]', include[1].strip())
                if spelled is None:
                    found.append(f"{place}: include of something computed: {include[1].strip()}")
                elif re.match(FORBIDDEN_INCLUDES[layer], include_target(spelled[1], file, csrc)):
                    found.append(f"{place}: {layer} must not include {spelled[1]}")
            elif word := re.search(FORBIDDEN_CODE.get(layer, r"(?!)"), line):
                found.append(f"{place}: {layer} must not use {word[0]}")
    return found


def imported_modules(tree: ast.AST, package: list[str]) -> set[tuple[int, str]]:
    """Return (line, module inside fastunlearn) for every import, function-level ones included.

    Args:
        tree: the parsed file.
        package: the package that holds the file, as ["fastunlearn", ...]; resolves leading dots.
    """
    found = set()
    for node in ast.walk(tree):
        names: list[list[str]] = []
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            names = [[*base, alias.name] for alias in node.names]
        for parts in names:
            if parts[0] != "fastunlearn":
                continue
            inner = parts[1] if len(parts) > 1 else FACADE
            # `from fastunlearn import TopK` names no module, so it is the facade.
            of_facade = isinstance(node, ast.ImportFrom) and len(parts) == 2 and inner not in RANK
            found.add((node.lineno, FACADE if of_facade else inner))
    return found


def python_violations(package: Path) -> list[str]:
    """Return 'file:line: what' for every import in `package` that goes against the table."""
    found = []
    for file in sorted(package.rglob("*.py")):
        inside = file.relative_to(package)
        module = inside.parts[0].removesuffix(".py")
        if module == FACADE:
            continue
        if module not in RANK:
            found.append(f"{inside}: {module} has no row in the layer table")
            continue
        parents = ["fastunlearn", *inside.parts[:-1]]
        for line, target in sorted(imported_modules(ast.parse(file.read_text()), parents)):
            rank = FACADE_RANK if target == FACADE else RANK.get(target)
            if rank is None:
                found.append(f"{inside}:{line}: {target} has no row in the layer table")
            elif rank > RANK[module] or (target == FACADE and RANK[module] <= FACADE_RANK):
                found.append(f"{inside}:{line}: {module} must not import {target}")
    return found


def test_csrc_holds_its_layers() -> None:
    assert any((ROOT / "csrc").rglob("*.h"))
    assert cxx_violations(ROOT / "csrc") == []


def test_package_holds_its_layers() -> None:
    assert (ROOT / "fastunlearn" / "_extension.py").exists()
    assert python_violations(ROOT / "fastunlearn") == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("core/a.h", "#include <torch/extension.h>"),
        ("core/a.h", "#include <ATen/ATen.h>"),
        ("core/a.h", "#  include <c10/util/Half.h>"),
        ("core/a.h", "#include <pybind11/pybind11.h>"),
        ("core/a.h", "#include <cuda_runtime.h>"),
        ("core/a.h", '#include "cpu/select.h"'),
        ("core/a.h", '#include "../cuda/select.h"'),
        ("core/a.h", "#include <vector>"),
        ("core/a.h", "#include TORCH_HEADER"),
        ("core/a.h", "inline int* f() { return new int; }"),
        ("core/a.h", "inline void f() { throw 1; }"),
        ("cpu/a.cpp", "#include <torch/library.h>"),
        ("cpu/a.cpp", "#include <c10/util/Exception.h>"),
        ("cpu/a.cpp", "#include <cuda_fp16.h>"),
        ("cpu/a.cpp", '#include "cuda/select.h"'),
        ("cpu/a.cpp", '#include "binding/checks.h"'),
        ("cuda/a.cu", "#include <ATen/cuda/CUDAContext.h>"),
        ("cuda/a.cu", "#include <c10/cuda/CUDAStream.h>"),
        ("cuda/a.cu", "#include <torch/all.h>"),
        ("cuda/a.cu", '#include "cpu/select.h"'),
        ("cuda/a.cu", "void f() { cudaDeviceSynchronize(); }"),
        ("cuda/a.cu", "void f(void** p) { cudaMallocAsync(p, 1, 0); }"),
        ("binding/a.cpp", "#include <ATen/cuda/CUDAContext.h>"),
        ("binding/a.cpp", "void f(cudaStream_t s) { cudaStreamSynchronize(s); }"),
        ("binding/a.cpp", "bool f(const at::Tensor& x) { return x.item<bool>(); }"),
        ("other/a.h", "#include <array>"),
    ],
)
def test_planted_cxx_violation_is_found(tmp_path: Path, file: str, line: str) -> None:
    path = tmp_path / file
    path.parent.mkdir()
    path.write_text(f"// A header.\n{line}\n")
    assert len(cxx_violations(tmp_path)) == 1, cxx_violations(tmp_path)


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("core/a.h", "#include <cstdint>"),
        ("core/a.h", "#include <cuda_bf16.h>"),
        ("core/a.h", '#include "core/philox.h"'),
        ("core/a.h", "// never #include <torch/all.h>, never throw"),
        ("cpu/a.cpp", "#include <thread>"),
        ("cpu/a.cpp", '#include "../core/philox.h"'),
        ("cuda/a.cu", "#include <cub/cub.cuh>"),
        ("cuda/a.cu", '#include "core/philox.h"'),
        ("binding/a.cpp", "#include <torch/library.h>"),
        ("binding/a.cpp", '#include "cuda/select.h"'),
        ("binding/a.cpp", "#include <c10/cuda/CUDAStream.h>"),
    ],
)
def test_allowed_cxx_line_is_let_through(tmp_path: Path, file: str, line: str) -> None:
    path = tmp_path / file
    path.parent.mkdir()
    path.write_text(f"{line}\n")
    assert cxx_violations(tmp_path) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("reference/topk.py", "from fastunlearn.perturb import perturb_"),
        ("reference/topk.py", "from ..selection import Selection"),
        ("_ops.py", "import fastunlearn.targets"),
        ("perturb.py", "from fastunlearn import unlearn"),
        ("perturb.py", "from . import scores"),
        ("selection.py", "def f():\n    from fastunlearn.metrics import accuracy"),
        ("unlearn.py", "from fastunlearn import TopK"),
        ("unlearn.py", "import fastunlearn as fu"),
        ("metrics/mia.py", "from fastunlearn.report.plots import draw"),
        ("metrics/mia.py", "from ..cli import main"),
        ("evaluation/runner.py", "from fastunlearn import report"),
        ("perturb.py", "from fastunlearn.unheard_of import x"),
        ("unheard_of.py", "import math"),
    ],
)
def test_planted_python_violation_is_found(tmp_path: Path, file: str, line: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"{line}\n")
    assert len(python_violations(tmp_path)) == 1, python_violations(tmp_path)


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("__init__.py", "from fastunlearn.unlearn import unlearn"),
        ("reference/topk.py", "from .philox import words"),
        ("reference/topk.py", "from fastunlearn.reference import keys"),
        ("reference/topk.py", "import torch"),
        ("perturb.py", "from fastunlearn._ops import perturb"),
        ("unlearn.py", "from fastunlearn.scores import score"),
        ("evaluation/runner.py", "from fastunlearn import TopK, unlearn"),
        ("evaluation/runner.py", "import fastunlearn as fu"),
        ("evaluation/runner.py", "from ..metrics import accuracy"),
        ("report/html.py", "from fastunlearn.evaluation import results"),
        ("cli.py", "def f():\n    from fastunlearn.report import write"),
    ],
)
def test_allowed_python_import_is_let_through(tmp_path: Path, file: str, line: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"{line}\n")
    assert python_violations(tmp_path) == []
