"""One rank of `test_layouts`: python run_layouts.py RANK WORLD STORE FIRST CALLS."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parent))
import layouts  # noqa: E402


def main() -> int:
    rank, world, store, first, calls = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=int(rank), world_size=int(world),
        timeout=timedelta(seconds=60),
    )  # fmt: skip
    group = layouts.meshes(int(world))
    wrong = [layouts.one(n, group) for n in range(int(first), int(first) + int(calls))]
    dist.destroy_process_group()
    print("\n".join(text for text in wrong if text) or f"{calls} calls agree")
    return int(any(wrong))


if __name__ == "__main__":
    sys.exit(main())
