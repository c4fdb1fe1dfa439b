"""Unlearn in shards: python -m examples.authors_fsdp [--small] [--out FILE].

The GPT of `examples.authors` under FSDP2, on 2 and on 4 processes, and in one process without it:
the gradient of the forget set, the perturbation, and some steps of repair. All end with the same
bits. Every process is given the same batches, so that their gradients have the same bits too: the
mean of 2 or 4 equal numbers is exact. (With batches of their own, sums round by their order, and
what is the same for any number of processes is the perturbation for a given gradient.)
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.fsdp import fully_shard
from transformers.utils import logging

import fastunlearn as fu
from examples.gpt import SMALL, Data, Size, batch_of, make_data, make_model
from fastunlearn import distributed as fud

STRATEGIES = {
    "top_k": fu.TopK(0.01, rel_std=1.0),
    "random_k": fu.recipes.RECOMMENDED.strategy,
}
REPAIR_STEPS = 4


def unlearn(model: nn.Module, strategy: Any, data: Data, batch: int, seed: int) -> dict[str, Any]:
    """Score, perturb and repair in place; the same lines with and without FSDP."""
    model.eval()
    for start in range(0, len(data.forget), batch):
        model(**batch_of(data.forget[start : start + batch])).loss.backward()
    perturb_ = fud.perturb_ if dist.is_initialized() else fu.perturb_
    start_time = time.perf_counter()
    receipt = perturb_(model, strategy, seed=seed)
    seconds = time.perf_counter() - start_time
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(REPAIR_STEPS):
        optimizer.zero_grad()
        model(**batch_of(data.retain[step * batch : (step + 1) * batch])).loss.backward()
        optimizer.step()
    return {"count": receipt.count, "n": receipt.n, "seconds": seconds}


def digest(model: nn.Module) -> str:
    """Return the SHA-256 of all parameters, gathered where they are shards."""
    found = hashlib.sha256()
    for parameter in model.parameters():
        whole = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
        found.update(whole.detach().contiguous().numpy().tobytes())
    return found.hexdigest()


def run_rank(rank: int, world: int, folder: str, size: Size, seed: int) -> None:
    """Run one process of `world`; the first writes what came of it."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    if world > 1:
        store = f"file://{folder}/store-{world}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    data = make_data(size, seed)
    found = {}
    for name, strategy in STRATEGIES.items():
        model = make_model(size, seed)
        if world > 1:
            for block in model.transformer.h:
                fully_shard(block)
            fully_shard(model)
        local = sum(getattr(p, "to_local", lambda p=p: p)().numel() for p in model.parameters())
        found[name] = {"of_first_rank": local, **unlearn(model, strategy, data, size.batch, seed)}
        found[name]["sha256"] = digest(model)
    if rank == 0:
        Path(folder, f"{world}.json").write_text(json.dumps(found))
    if world > 1:
        dist.destroy_process_group()


def run(size: Size, seed: int) -> dict[str, Any]:
    """Run 1, 2 and 4 processes; returns what came of each, by their number."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for world in (1, 2, 4):
            mp.spawn(run_rank, (world, folder, size, seed), nprocs=world)
            found[str(world)] = json.loads(Path(folder, f"{world}.json").read_text())
    return found


def main() -> int:
    """Run the example and print its table; exit code 1 where a bit differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="A size for tests.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="Write the figures there, as JSON.")
    options = parser.parse_args()
    found = run(SMALL if options.small else Size(), options.seed)
    print(f"{'':10}{'processes':>10}{'of the first':>14}{'selected':>10}  SHA-256")
    for name in STRATEGIES:
        for world, rows in found.items():
            row = rows[name]
            print(f"{name:10}{world:>10}{row['of_first_rank']:>14,}{row['count']:>10,}"
                  f"  {row['sha256'][:16]}")  # fmt: skip
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        facts = {"seed": options.seed, "torch": torch.__version__}
        options.out.write_text(json.dumps({**facts, "processes": found}, indent=1) + "\n")
    same = all(len({rows[name]["sha256"] for rows in found.values()}) == 1 for name in STRATEGIES)
    print("All the same bits." if same else "The bits differ.")
    return 0 if same else 1


if __name__ == "__main__":
    raise SystemExit(main())
