"""Time, traffic and memory of a call on shards: python -m benchmarks.sharded [--million 100].

One flat parameter in fp32, cut evenly over 1, 2 and 4 processes of this machine (gloo, one thread
each), beside `fastunlearn.perturb_` in one process with one thread. Writes
benchmarks/results/sharded.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import fastunlearn as fu
from fastunlearn import distributed as fud
from fastunlearn.distributed import operations

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks/results/sharded.json"
STRATEGIES = {"top_k": fu.TopK(0.01, std=0.1), "random_k": fu.RandomK(0.01, std=0.1)}
_ROUNDS = 5


class Watched(operations.Together):
    """Remembers the last call's collectives."""

    last: Watched

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        Watched.last = self


def peak_bytes() -> int:
    """Return the greatest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run_rank(rank: int, world: int, folder: str, numel: int) -> None:
    """Time one process of `world`; 0 stands for one process without shards."""
    torch.set_num_threads(1)
    count = max(world, 1)
    if world:
        store = f"file://{folder}/store-{world}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
        operations.Together = Watched
    each = numel // count
    draw = torch.Generator().manual_seed(rank)
    weight, grad = (torch.randn(each, generator=draw) for _ in range(2))
    if world:
        target: Any = {"w": fud.Shard(weight, (each * count,), (each * rank,), grad)}
    else:
        weight.grad = grad
        target = {"w": weight}
    perturb = fud.perturb_ if world else fu.perturb_
    found: dict[str, Any] = {}
    for name, strategy in STRATEGIES.items():
        times = []
        for step in range(_ROUNDS):
            if world:
                dist.barrier()
            before, start = peak_bytes(), time.perf_counter()
            perturb(target, strategy, seed=1, step=step)
            times.append(time.perf_counter() - start)
            if step == 0:
                extra = peak_bytes() - before
        found[name] = {"seconds": min(times), "extra_bytes": extra}
        if world:
            found[name] |= {"collectives": Watched.last.calls, "sent_bytes": Watched.last.bytes}
    times = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        torch.aminmax(grad)
        times.append(time.perf_counter() - start)
    found["read_floor_seconds"] = min(times)
    if rank == 0:
        Path(folder, f"{world}.json").write_text(json.dumps(found))
    if world:
        dist.destroy_process_group()


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser("python -m benchmarks.sharded", description=__doc__)
    parser.add_argument("--million", type=int, default=100)
    options = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for world in (0, 1, 2, 4):
            mp.spawn(run_rank, (world, folder, options.million * 10**6), nprocs=max(world, 1))
            found[str(world)] = json.loads(Path(folder, f"{world}.json").read_text())
            print(world, found[str(world)])
    from fastunlearn.evaluation.runner import environment

    facts = {"numel": options.million * 10**6, "environment": environment()}
    RESULT.write_text(json.dumps({**facts, "processes": found}, indent=1) + "\n")
    print(f"wrote {RESULT}")


if __name__ == "__main__":
    main()
