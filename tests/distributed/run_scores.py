"""One rank of `test_scores`: python run_scores.py CASE RANK WORLD STORE."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

import fastunlearn as fu
from fastunlearn import distributed as fud

Batches = list[tuple[Tensor, Tensor]]
KINDS = ("grad", "fisher", "mas", "taylor", "ratio", "weight")
LOSS = nn.functional.mse_loss


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 5), nn.Dropout())


def fsdp(model: nn.Module) -> nn.Module:
    fully_shard(model[0])
    return fully_shard(model)


def tensor_parallel(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})


def both(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    parallelize_module(model, mesh["tp"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    return fully_shard(model, mesh=mesh["dp"])


def sequence_parallel(model: nn.Module) -> nn.Module:
    """A norm whose gradient is a sum over ranks that is not added up yet."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    inner = ColwiseParallel(input_layouts=Shard(1))
    plan = {"0": SequenceParallel(), "1": inner, "2": RowwiseParallel()}
    return parallelize_module(model, mesh, plan)


def of_a_piece(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Each rank brings its piece of the sequence, and gets the whole."""
    return model(batch[0].chunk(dist.get_world_size(), 1)[dist.get_rank()]), batch[1]


def norm() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 10), nn.Linear(10, 5))


# Case: model, how it is spread, and which ranks have data of their own (the others share it).
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], nn.Module], Any]] = {
    "fsdp": (net, fsdp, lambda rank: rank),
    "ddp": (net, DistributedDataParallel, lambda rank: rank),
    "tensor": (net, tensor_parallel, lambda rank: 0),
    "both": (net, both, lambda rank: rank // 2),
    "sequence": (norm, sequence_parallel, lambda rank: 0),
}


def batches(part: int, shift: float = 0.0, shape: tuple[int, ...] = ()) -> Batches:
    """Three batches; those of different parts differ in size, and the last may be empty."""
    source = torch.Generator().manual_seed(part)
    sizes = (2 + part, 3, 4 - part)
    return [
        (
            torch.randn(n, *shape, 6, generator=source) + shift,
            torch.randn(n, *shape, 5, generator=source),
        )
        for n in sizes
    ]


def joined(parts: list[Batches]) -> Batches:
    pairs = zip(*parts, strict=True)
    return [(torch.cat([x for x, _ in p]), torch.cat([y for _, y in p])) for p in pairs]


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def check(case: str, rank: int, world: int) -> None:
    make, spread, part_of = CASES[case]
    model = spread(make())
    shape = (world,) if case == "sequence" else ()
    count = len({part_of(i) for i in range(world)})
    own, other = batches(part_of(rank), 0, shape), batches(part_of(rank), 1, shape)
    every = [[batches(part, shift, shape) for part in range(count)] for shift in (0, 1)]
    held = next(model.parameters())
    held.grad = torch.ones_like(held)
    state = {name: whole(value).clone() for name, value in model.state_dict().items()}
    for kind in KINDS:
        forward = of_a_piece if case == "sequence" else None
        found = fud.score(model, own, LOSS, kind=kind, retain=other, forward_fn=forward)
        wanted = fu.score(make(), joined(every[0]), LOSS, kind=kind, retain=joined(every[1]))
        assert [name.removeprefix("module.") for name in found] == list(wanted)
        for (name, score), parameter in zip(found.items(), model.parameters(), strict=True):
            place = getattr(parameter, "placements", None)
            assert getattr(score, "placements", None) == place, (kind, name)
            single = wanted[name.removeprefix("module.")]
            torch.testing.assert_close(whole(score), single, msg=lambda m: f"{kind} {name} {m}")  # noqa: B023
    assert held is next(model.parameters()) and bool((whole(held.grad) == 1).all())
    assert all(p.grad is None for p in list(model.parameters())[1:]) and model.training
    for name, value in model.state_dict().items():
        assert torch.equal(whole(value), state[name])
    assert fud.perturb_(model, fu.TopK(9), scores=found, seed=1).count == 9


class Ending:
    """A loader that fails in its second batch."""

    def __init__(self, own: Batches, fails: bool) -> None:
        self.own, self.fails = own, fails

    def __iter__(self) -> Iterator[Any]:
        yield self.own[0]
        if self.fails:
            raise OSError("no second batch")
        yield self.own[1]


def check_errors(rank: int, world: int) -> None:
    model, own, last = fsdp(net()), batches(0), rank == world - 1
    parameters = list(model.parameters())

    def failing(out: Tensor, y: Tensor) -> Tensor:
        if last:
            raise KeyError("no loss")
        return LOSS(out, y)

    with pytest.raises(ValueError, match="as many batches on every rank, got 2 on 1 of 2 ranks"):
        fud.score(model, own[:2] if last else own, LOSS)
    with pytest.raises(OSError if last else fud.PeerError):
        fud.score(model, Ending(own, last), LOSS)
    with pytest.raises(KeyError if last else fud.PeerError):
        fud.score(model, own, failing)
    empty = (own[0][0][:0], own[0][1][:0])
    with pytest.raises(ValueError, match="an example in each batch"):
        fud.score(model, [empty if last else own[0]], LOSS)
    with pytest.raises(ValueError, match="at least one example"):
        fud.score(model, [empty], LOSS)
    model.set_requires_gradient_sync(False)
    with pytest.raises(ValueError, match="is their synchronisation off"):
        fud.score(model, own, LOSS)
    model.set_requires_gradient_sync(True)
    hook = parameters[0].register_post_accumulate_grad_hook(lambda p: None)
    with pytest.raises(ValueError, match="no post-accumulate-grad hooks"):
        fud.score(model, own, LOSS)
    hook.remove()
    # each time all shards are shards again
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))


def main() -> None:
    case, rank, world, store = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world,
        timeout=timedelta(seconds=60),
    )  # fmt: skip
    if case == "errors":
        check_errors(rank, world)
    else:
        check(case, rank, world)
    dist.destroy_process_group()
    print("agree")


if __name__ == "__main__":
    main()
