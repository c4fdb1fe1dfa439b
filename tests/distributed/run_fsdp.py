"""One rank of `test_fsdp`: FSDP2 over tensor parallel, 2 x 2: python run_fsdp.py RANK STORE."""

from __future__ import annotations

import copy
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import fastunlearn as fu
from fastunlearn import distributed as fud


def main() -> None:
    rank, store = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=4,
        timeout=timedelta(seconds=60),
    )  # fmt: skip
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 4))
    whole = copy.deepcopy(net)
    parallelize_module(net, mesh["tp"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    fully_shard(net, mesh=mesh["dp"])
    x = torch.randn(5, 6)
    net(x).sum().backward()
    # Sums in another order round otherwise: the one process gets the very gradients of the shards.
    for own, other in zip(net.parameters(), whole.parameters(), strict=True):
        other.grad = own.grad.full_tensor().clone()
    before = copy.deepcopy(whole)
    stepper = fud.Perturber(net, fu.TopK(0.2, rel_std=0.5), seed=3)
    single = fu.Perturber(whole, fu.TopK(0.2, rel_std=0.5), seed=3)
    for _ in range(2):
        found, wanted = stepper.step(), single.step()
        assert (found.count, found.threshold) == (wanted.count, wanted.threshold)
    pairs = list(zip(net.named_parameters(), whole.parameters(), strict=True))
    assert all(torch.equal(own.full_tensor(), other) for (_, own), other in pairs)
    assert any("Strided" in str(own.placements) for (_, own), _ in pairs)
    changed = sum(
        int((a != b).sum()) for a, b in zip(whole.parameters(), before.parameters(), strict=True)
    )
    assert changed == found.count > 0
    dist.destroy_process_group()
    print("equal")


if __name__ == "__main__":
    main()
