"""Faults of single ranks: python run_faults.py FOLDER FAULTS. Prints one JSON line for each fault.

Every fault is a group of its own, of forked processes: one rank is killed, hangs, raises or asks
for something else at a drawn collective, and every other rank tells what it met.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import fastunlearn as fu
from fastunlearn import distributed as fud
from fastunlearn.distributed import agree

TIMEOUT = 2.0
KINDS = ("kill", "hang", "raise", "plan", "nan", "overflow", "grad")


def shard(rank: int, world: int, kind: str, bad: bool) -> fud.Shard:
    source = torch.Generator().manual_seed(rank)
    tensor = torch.randn(50, 4, generator=source)
    grad = torch.randn(50, 4, generator=source).round()  # ties, so that all collectives are met
    if bad and kind == "nan":
        grad[3, 1] = torch.nan
    if bad and kind == "overflow":
        tensor.fill_(3.4e38)
    given = None if bad and kind == "grad" else grad
    return fud.Shard(tensor, (50 * world, 4), (50 * rank, 0), grad=given)


def fault_at(kind: str, place: int) -> None:
    """Break this rank at its collective of that number."""
    met = 0
    for name in ("all_gather", "all_reduce"):
        real = getattr(dist, name)

        def broken(*args: Any, real: Any = real, **options: Any) -> Any:
            nonlocal met
            met += 1
            if met == place:
                if kind == "kill":
                    os._exit(9)
                if kind == "hang":
                    time.sleep(600)
                raise RuntimeError("injected")
            return real(*args, **options)

        setattr(agree.dist, name, broken)


def rank_main(rank: int, fault: dict[str, Any], store: Path, out: Path) -> None:
    bad, kind, world = rank == fault["rank"], fault["kind"], fault["world"]
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world,
        timeout=timedelta(seconds=TIMEOUT),
    )  # fmt: skip
    own = shard(rank, world, kind, bad)
    before = own.tensor.clone()
    if bad and kind in ("kill", "hang", "raise"):
        fault_at(kind, fault["place"])
    seed = 1 if bad and kind == "plan" else 0
    scale = 3e38 if kind == "overflow" else 0.1
    started, said = time.monotonic(), "wrote"
    try:
        fud.perturb_([own], fu.TopK(0.5, std=scale), seed=seed)
    except Exception as error:
        said = type(error).__name__
    told = {
        "rank": rank,
        "said": said,
        "seconds": time.monotonic() - started,
        "unchanged": torch.equal(own.tensor, before),
    }
    out.with_suffix(f".{rank}").write_text(json.dumps(told))


def run(number: int, folder: Path) -> dict[str, Any]:
    draw = random.Random(number)
    world = draw.choice([2, 3, 4])
    fault = {
        "kind": KINDS[number % len(KINDS)],
        "world": world,
        "rank": draw.randrange(world),
        "place": draw.randint(1, 7),
    }
    store, out = folder / f"store{number}", folder / f"out{number}"
    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            try:
                rank_main(rank, fault, store, out)
            finally:
                os._exit(0)
        children.append(child)
    deadline = time.monotonic() + TIMEOUT + 30.0
    waiting = {rank: child for rank, child in enumerate(children)}
    while waiting and time.monotonic() < deadline:
        for rank, child in list(waiting.items()):
            if os.waitpid(child, os.WNOHANG)[0]:
                del waiting[rank]
        if set(waiting) == {fault["rank"]} and fault["kind"] == "hang":
            break
        time.sleep(0.01)
    for child in waiting.values():
        os.kill(child, 9)
        os.waitpid(child, 0)
    found = [json.loads(p.read_text()) for p in sorted(folder.glob(f"out{number}.*"))]
    return {**fault, "ranks": found}


def main() -> None:
    torch.set_num_threads(1)
    folder, faults = Path(sys.argv[1]), int(sys.argv[2])
    for number in range(faults):
        print(json.dumps(run(number, folder)), flush=True)


if __name__ == "__main__":
    main()
