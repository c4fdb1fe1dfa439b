"""What stochastic rounding costs, and what it keeps: python -m benchmarks.rounding.

Time of `perturb_` on bfloat16 weights with either rounding, in turns, beside a read of the scores;
and, for noise from far below to above half a unit in the last place, how many selected weights
change and how much of the noise's variance arrives. Writes benchmarks/results/rounding.json.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import fastunlearn as fu
from fastunlearn.strategies import Rounding

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks/results/rounding.json"
_NUMEL, _ROUNDS = 100_000_000, 7
ROUNDINGS: tuple[Rounding, ...] = ("nearest", "stochastic")
_RATIOS = (0.01, 0.1, 0.3, 1.0, 10.0)


def seconds_of(call: Callable[[], object]) -> float:
    """Measure one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def times() -> dict[str, Any]:
    """Medians of calls in turns, in seconds."""
    weight = torch.randn(_NUMEL).to(torch.bfloat16)
    scores = torch.randn(_NUMEL).to(torch.bfloat16)
    calls: dict[str, Callable[[], object]] = {"read": lambda: torch.aminmax(scores)}
    for k in (0.01, 0.5):
        for rounding in ROUNDINGS:
            top_k = fu.TopK(k, std=1e-3, rounding=rounding)
            random_k = fu.RandomK(k, std=1e-3, rounding=rounding)
            name = f"{k:.0%} {rounding}"
            calls[f"top_k {name}"] = lambda s=top_k: fu.perturb_([weight], s, scores=[scores])
            calls[f"random_k {name}"] = lambda s=random_k: fu.perturb_([weight], s)
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(_ROUNDS):
        for name, call in calls.items():
            found[name].append(seconds_of(call))
    return {name: statistics.median(values) for name, values in found.items()}


def kept(ratio: float) -> dict[str, float]:
    """Share of the weights that change and of the variance that arrives.

    Args:
        ratio: standard deviation of the noise, in halves of a unit in the last place.
    """
    n = 1_000_000
    start = torch.full((n,), 1.5, dtype=torch.bfloat16)
    std = ratio * 2.0**-8
    row = {"ratio": ratio}
    for rounding in ROUNDINGS:
        weight = start.clone()
        receipt = fu.perturb_([weight], fu.RandomK(n, std=std, rounding=rounding), seed=0)
        z = torch.ops.fastunlearn.noise(torch.arange(n), torch.tensor([0, 0]), "normal").double()
        moved = (weight.double() - start.double()) / std
        row[f"{rounding} changed"] = 1 - receipt.unchanged / n
        # regression of the change on the noise: 1 where it arrives whole on average
        row[f"{rounding} slope"] = float((moved * z).sum() / (z * z).sum())
    return row


def main() -> None:
    """Measure, and write the results."""
    from fastunlearn.evaluation.runner import environment

    found = {
        "numel": _NUMEL,
        "rounds": _ROUNDS,
        "threads": torch.get_num_threads(),
        "environment": environment(),
        "seconds": times(),
        "kept": [kept(ratio) for ratio in _RATIOS],
    }
    RESULT.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
