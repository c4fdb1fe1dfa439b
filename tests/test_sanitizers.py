"""The extension itself under AddressSanitizer and UndefinedBehaviorSanitizer, run by pytest.

The sources are copied and built apart, so that the extension in use stays as it is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cxx import toolchain

ROOT = Path(__file__).resolve().parents[1]
COPIED = ["csrc", "fastunlearn", "tests", "setup.py", "pyproject.toml", "README.md", "LICENSE"]
IGNORED = shutil.ignore_patterns("__pycache__", "_C*")
# Left out: what starts processes of its own or compiles, and what is only large. The sanitizer
# makes these slow or alters what they look at, and they reach no other code of the extension.
SELECTED = "not large and not compile and not fork and not process and not opcheck"
TEST_FILES = ["test_api.py", "test_backends.py", "test_hostile.py", "test_layouts.py"]
REPORT = "ERROR: AddressSanitizer"
UNDEFINED = "runtime error: "

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def compiler_script(folder: Path) -> Path:
    """Write a compiler that adds the sanitizers: `CXX` may hold one path and no flags here."""
    path = folder / "g++"
    flags = " ".join(["-O1", *(flag for flag in toolchain.MODES["address"] if flag != "-O0")])
    path.write_text(f'#!/bin/sh\nexec {" ".join(toolchain.compiler())} "$@" {flags}\n')
    path.chmod(0o755)
    return path


def build(folder: Path) -> None:
    """Build the extension of a copy in place; only what has changed since the last build."""
    compiler = compiler_script(folder)
    done = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"],
        cwd=folder,
        env={
            **os.environ,
            "CXX": str(compiler),
            "FASTUNLEARN_REQUIRE_EXT": "1",
            "FASTUNLEARN_WERROR": "0",  # the sanitizers make gcc warn of what it cannot follow
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]


def runtime_library(name: str) -> str:
    """Return the path of a library that belongs to the compiler."""
    done = toolchain.execute([*toolchain.compiler(), f"-print-file-name={name}"])
    return done.stdout.strip()


def run_python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a copy, with the sanitizer's library loaded before everything else.

    Python and torch leave memory behind on purpose, so leaks are not looked for.
    """
    libraries = [runtime_library("libasan.so"), runtime_library("libstdc++.so.6")]
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={
            **os.environ,
            "ASAN_OPTIONS": "detect_leaks=0",
            "LD_PRELOAD": " ".join(libraries),
            "PYTHONPATH": str(folder),
            "OMP_NUM_THREADS": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the repository whose extension was built with the sanitizers."""
    reason = toolchain.why_not("address")
    if reason is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("sanitized")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=IGNORED)
        else:
            shutil.copy(source, folder / name)
    build(folder)
    return folder


def test_core_tests_bring_no_report(sanitized: Path) -> None:
    files = [f"tests/core/{name}" for name in TEST_FILES]
    done = run_python(sanitized, "-m", "pytest", "-q", "-k", SELECTED, *files)
    assert REPORT not in done.stdout and UNDEFINED not in done.stdout, done.stdout[-6000:]
    assert done.returncode == 0, done.stdout[-6000:]
    where = run_python(sanitized, "-c", "import fastunlearn._C as c; print(c.__file__)")
    assert str(sanitized) in where.stdout, where.stdout


SELECT = """
import torch
import fastunlearn as fu
p = torch.nn.Parameter(torch.ones(64))
p.grad = torch.arange(64.0)
print(fu.select([p], fu.TopK(8)).count)
"""


def test_planted_write_past_the_end_is_reported(sanitized: Path) -> None:
    """Runs last in this file: the copy holds the error afterwards."""
    assert run_python(sanitized, "-c", SELECT).stdout.strip() == "8"
    source = sanitized / "csrc" / "cpu" / "topk.cpp"
    text = source.read_text()
    old = "for (int i = 0; i < (chunk.count + 7) / 8; ++i) {"
    assert text.count(old) == 1
    # Far enough to leave what the allocator of torch rounds the size of a tensor up to.
    source.write_text(text.replace(old, old.replace("/ 8;", "/ 8 + 64;")))
    build(sanitized)
    done = run_python(sanitized, "-c", SELECT)
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stdout, done.stdout[-4000:]
