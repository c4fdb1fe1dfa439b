"""Time and memory of perturbing a large checkpoint on disk, beside a copy of its file.

python -m benchmarks.checkpoint FOLDER [--gib 12] [--dtype bf16]

Writes benchmarks/results/large-checkpoint-GIB-DTYPE.json. FOLDER needs room for four such files.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results"
DTYPES = {"bf16": ("BF16", 2), "fp32": ("F32", 4)}
_TENSORS_A_GIB = 8
_CHUNK = 1 << 26


def make(path: Path, gib: float, dtype: str, seed: int) -> None:
    """Write a checkpoint of random weights, uniform in their bits: magnitudes 2^-15 to 1."""
    name, size = DTYPES[dtype]
    count = max(1, round(gib * _TENSORS_A_GIB))
    each = int(gib * (1 << 30)) // count // 8192 * 8192
    shape = [each // 1024 // size, 1024]
    header = {
        f"layers.{i:04}.weight": {
            "dtype": name, "shape": shape, "data_offsets": [i * each, (i + 1) * each]
        }
        for i in range(count)
    }  # fmt: skip
    text = json.dumps(header).encode()
    draw = np.random.default_rng(seed)
    kind = np.uint16 if size == 2 else np.uint32
    bits = 16 if size == 4 else 0
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for start in range(0, each * count, _CHUNK):
            values = np.frombuffer(draw.bytes(min(_CHUNK, each * count - start)), dtype=kind)
            # sign, four bits of the exponent and the mantissa at random; the rest of the exponent
            # such that all are below 1
            kept = kind(0x87FF) << kind(bits) | kind((1 << bits) - 1)
            file.write(((values & kept) | kind(0x3800) << kind(bits)).data)
        file.flush()
        os.fsync(file.fileno())


def timed(command: list[str]) -> dict[str, float]:
    """Run a command; seconds and greatest resident memory of the whole process in bytes.

    What this process itself has resident is the least that can be told: a child begins as its copy.
    """
    start = time.monotonic()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command[:4]} ended with {status}")
    return {"seconds": time.monotonic() - start, "peak_bytes": usage.ru_maxrss * 1024.0}


def copy(source: Path, out: Path) -> dict[str, float]:
    """Copy a file as `cp` does, and bring it to the disk."""
    start = time.monotonic()
    shutil.copyfile(source, out)
    fd = os.open(out, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    seconds = time.monotonic() - start
    out.unlink()
    return {"seconds": seconds}


def forget_caches(*paths: Path) -> None:
    """Let files be read from the disk again."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """Copy and perturb in turn."""
    source, scores, out = (folder / f"{name}.safetensors" for name in ("model", "scores", "out"))
    seed = folder / "seed"
    perturb = [
        sys.executable, "-m", "fastunlearn", "perturb", str(source), "--out", str(out),
        "--seed-file", str(seed), "--std", "0.1", "--overwrite",
    ]  # fmt: skip
    runs = {
        "top_k": ["--k", "0.01", "--scores", str(scores)],
        "random_k": ["--k", "0.01", "--strategy", "random_k"],
    }
    found: dict[str, Any] = {"rounds": []}
    for _ in range(rounds):
        forget_caches(source)
        row: dict[str, Any] = {"copy": copy(source, out)}
        for name, options in runs.items():
            forget_caches(source, scores)
            row[name] = timed([*perturb, *options])
            out.unlink()
        found["rounds"].append(row)
        print(json.dumps(row))
    return found


def main() -> None:
    """Make the files, measure, and write the results."""
    parser = argparse.ArgumentParser("python -m benchmarks.checkpoint", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gib", type=float, default=12)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(("model", "scores")):
        path = options.folder / f"{name}.safetensors"
        if path.exists() and abs(path.stat().st_size / 2**30 - options.gib) < 0.01:
            continue  # of an earlier run: they are always the same
        make(options.folder / f"{name}.safetensors", options.gib, options.dtype, seed)
    from fastunlearn.evaluation.runner import environment

    found = {
        "gib": options.gib,
        "dtype": options.dtype,
        "environment": environment(),
        **measure(options.folder, options.rounds),
    }
    path = RESULTS / f"large-checkpoint-{options.gib:g}-{options.dtype}.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
