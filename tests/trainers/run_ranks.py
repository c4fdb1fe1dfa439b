"""One rank of `test_stepper`: replicas under DDP, then shards: python run_ranks.py RANK STORE."""

from __future__ import annotations

import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import fastunlearn as fu
from fastunlearn.trainers.stepper import Stepper


def main() -> None:
    rank, store = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2,
        timeout=timedelta(seconds=60),
    )  # fmt: skip
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Linear(6, 4))
    stepper = Stepper("test", fu.TopK(5, std=1.0), None, 1, True)
    for step in range(1, 3):
        model.zero_grad()
        model(torch.randn(3, 6) + rank).sum().backward()  # other data on each rank
        stepper.after_step(model.module, step)
    own = torch.cat([p.detach().flatten() for p in model.parameters()])
    both = [torch.empty_like(own) for _ in range(2)]
    dist.all_gather(both, own)
    assert torch.equal(*both)
    assert stepper.receipts[1].count == 5 and stepper.receipts[0].seed == stepper.receipts[1].seed

    torch.manual_seed(1)
    net, whole = nn.Linear(6, 4), nn.Linear(6, 4)
    whole.load_state_dict(net.state_dict())
    fully_shard(net)
    x = torch.randn(3, 6)
    net(x).sum().backward()
    whole(x).sum().backward()
    found = Stepper("test", fu.TopK(5, std=1.0), 7, 1, False).perturb(net, 0)
    fu.perturb_(whole, fu.TopK(5, std=1.0), seed=7)
    assert found.n == 28
    pairs = zip(net.parameters(), whole.parameters(), strict=True)
    assert all(torch.equal(shard.full_tensor(), full) for shard, full in pairs)
    dist.destroy_process_group()
    print("alike")


if __name__ == "__main__":
    main()
