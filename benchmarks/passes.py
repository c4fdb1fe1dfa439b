"""Peak memory and time of one and of two backward passes: python -m benchmarks.passes.

A stack of linear layers of width 2048 and a small batch, so that gradients are most of what a
backward pass needs. Writes benchmarks/results/passes.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fastunlearn as fu
from fastunlearn.passes import perturb_by_passes_

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks/results/passes.json"
_WIDTH, _LAYERS, _BATCH = 2048, 24, 16
WAYS = ("one", "two")


def peak_bytes() -> int:
    """Return the greatest resident memory of this process since it was last set back."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def run(way: str, k: float) -> dict[str, float]:
    """Measure one way in this process."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(_LAYERS):
        layers += [nn.Linear(_WIDTH, _WIDTH), nn.ReLU()]
    model, x = nn.Sequential(*layers), torch.randn(_BATCH, _WIDTH)
    with torch.no_grad():
        model(x)  # what a forward pass sets up is not what is measured

    def backward() -> None:
        model(x).square().sum().backward()

    Path("/proc/self/clear_refs").write_text("5")  # sets the greatest resident memory back
    before, start = peak_bytes(), time.perf_counter()
    if way == "one":
        backward()
        fu.perturb_(model, fu.TopK(k), seed=0)
    else:
        perturb_by_passes_(model, fu.TopK(k), backward, seed=0)
    seconds = time.perf_counter() - start
    numel = sum(p.numel() for p in model.parameters())
    return {
        "numel": numel,
        "extra_bytes": peak_bytes() - before,
        "seconds": seconds,
        "checksum": float(sum(p.double().sum() for p in model.parameters())),
    }


def main() -> None:
    """Measure every way in a process of its own and write the results."""
    found: dict[str, Any] = {}
    for k in (0.01, 0.5):
        rows = {}
        for way in WAYS:
            command = [sys.executable, "-m", "benchmarks.passes", way, str(k)]
            answer = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
            rows[way] = json.loads(answer.stdout)
            print(k, way, rows[way])
        assert rows["one"]["checksum"] == rows["two"]["checksum"]
        found[str(k)] = rows
    from fastunlearn.evaluation.runner import environment

    facts = {"layers": _LAYERS, "width": _WIDTH, "batch": _BATCH, "environment": environment()}
    RESULT.write_text(json.dumps({**facts, "k": found}, indent=1) + "\n")
    print(f"wrote {RESULT}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(run(sys.argv[1], float(sys.argv[2]))))
    else:
        main()
