"""The whole CUDA backend on a CPU: dispatcher, binding and kernels give the reference's bits.

tests/simt/simt.h says what such a run cannot prove.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from core.configurations import LAYOUTS, OPERATIONS
from core.processes import script
from simt import extension

COUNT, GROUPS = 600, 4
MORE = 20_000

pytestmark = [
    pytest.mark.skipif(
        shutil.which(extension.compiler()[0]) is None, reason="needs a C++ compiler"
    ),
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def library() -> Path:
    return extension.build()


def in_a_process(call: str, timeout: float) -> str:
    text = f"from core import simt_suite; simt_suite.{call}"
    return script(text, 1, timeout=timeout, FASTUNLEARN_BACKEND="reference")


def compare(library: Path, start: int, count: int, timeout: float) -> dict[str, int]:
    """Compare generated calls; returns how many were of which kind and served by the kernels."""
    told = in_a_process(f"generated({str(library)!r}, {start}, {count})", timeout)
    return json.loads(told.splitlines()[-1])


@pytest.mark.parametrize("group", range(GROUPS))
def test_generated_calls(library: Path, group: int) -> None:
    met = compare(library, group * 10_000, COUNT // GROUPS, 300)
    assert met["all"] == COUNT // GROUPS
    assert met["served"] > 0.75 * met["all"], met
    kinds = (*OPERATIONS[:4], *LAYOUTS[:3])
    assert {kind: met.get(kind, 0) for kind in kinds if not met.get(kind)} == {}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_more_generated_calls(library: Path) -> None:
    compare(library, 100_000, MORE, 3500)


def test_committed_vectors(library: Path) -> None:
    in_a_process(f"vectors({str(library)!r})", 300)


@pytest.mark.parametrize("name", ["infinite_scales", "dimensions", "bitmaps", "refused_arguments"])
def test_border_of_the_backend(library: Path, name: str) -> None:
    in_a_process(f"{name}({str(library)!r})", 60)
