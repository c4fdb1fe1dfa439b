"""The operations of the CUDA backend built to run on a CPU: one library, registered under CPU.

A process that loads it must not have the compiled CPU kernels: FASTUNLEARN_BACKEND=reference.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
FOLDER = ROOT / "build" / "simt"

FLAGS = [
    "-std=c++17", "-O1", "-fPIC", "-ffp-contract=off", "-fno-strict-aliasing", "-Wall", "-Wextra",
    "-Werror", "-Wno-unknown-pragmas", "-DFASTUNLEARN_SIMT", f"-I{HERE}", f"-I{CSRC}",
]  # fmt: skip


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX") or "c++")


def build() -> Path:
    """Return the library, built from what has changed since the last time.

    Raises:
        AssertionError: the compiler's words.
    """
    binding = [CSRC / "binding" / name for name in ("device_ops.cpp", "ops_checks.cpp")]  # slowest
    sources = [*binding, *sorted((CSRC / "cuda").glob("*.cu")), HERE / "simt.cpp"]
    FOLDER.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(_compiled, sources))
    library = FOLDER / f"simt_ops-{_digest(path.name.encode() for path in objects)}.so"
    if not library.exists():
        libraries = Path(torch.__file__).parent / "lib"
        options = ["-shared", f"-L{libraries}", f"-Wl,-rpath,{libraries}"]
        _make(library, [*options, *map(str, objects), "-lc10", "-ltorch_cpu"])
    return library


def _compiled(source: Path) -> Path:
    """The object of a source, named by the content of all that it may include."""
    options = [*FLAGS, *_torch_options(source), "-c", "-x", "c++", str(source)]
    folders = [HERE, *(CSRC / name for name in ("core", "cuda", "binding"))]
    headers = (path for folder in folders for path in sorted(folder.glob("*.*h")))
    contents = (path.read_bytes() for path in (source, *headers))
    key = _digest([" ".join(options).encode(), torch.__version__.encode(), *contents])
    target = FOLDER / f"{source.stem}-{key}.o"
    if not target.exists():
        for old in FOLDER.glob(f"{source.stem}-{'?' * len(key)}.o"):
            old.unlink()
        _make(target, options)
    return target


def _torch_options(source: Path) -> list[str]:
    if source.parent.name != "binding":
        return []
    include = Path(torch.__file__).parent / "include"
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"
    return [abi, "-isystem", str(include), "-isystem", str(include / "torch/csrc/api/include")]


def _digest(parts: Iterable[bytes]) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(hashlib.sha256(part).digest())
    return found.hexdigest()[:16]


def _make(target: Path, arguments: list[str]) -> None:
    """Compile or link; the target is whole, or not there."""
    part = target.with_suffix(f".{os.getpid()}")
    command = [*compiler(), *arguments, "-o", str(part)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}"
    part.rename(target)
