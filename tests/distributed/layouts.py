"""Generated calls whose parameters are spread over ranks, each compared with one process."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor import Shard as On
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

import fastunlearn as fu
from fastunlearn import distributed as fud
from fastunlearn.targets import takes_part

DTYPES = (torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64)
MESHES = {1: [(1,)], 2: [(2,), (1, 2)], 3: [(3,)], 4: [(4,), (2, 2), (4, 1)], 8: [(8,), (2, 4)]}


class Made:
    """A parameter: whole, as this rank holds it, and its box."""

    def __init__(self, whole: Tensor, grad: Tensor, held: Any, box: tuple[slice, ...]) -> None:
        self.whole, self.grad, self.held, self.box = whole, grad, held, box

    @property
    def local(self) -> Tensor:
        if isinstance(self.held, DTensor):
            return self.held.to_local()
        return self.held.tensor if isinstance(self.held, fud.Shard) else self.held


def meshes(world: int) -> list[DeviceMesh]:
    return [DeviceMesh("cpu", torch.arange(world).view(shape)) for shape in MESHES[world]]


def strategy(draw: random.Random, numel: int) -> fu.TopK | fu.RandomK:
    k = draw.choice([0.01, 0.3, 0.9, 1.0, 1, numel // 2])
    k = k if isinstance(k, int) or round(k * numel) else 1
    scale = draw.choice([{"std": 0.1}, {"rel_std": 0.5}])
    rounding = draw.choice(["nearest", "stochastic"])
    mode = draw.choice(["add", "replace", "zero"])
    how = {"mode": mode, "rounding": rounding, **scale}
    if draw.random() < 0.3:
        return fu.RandomK(k, **how)
    scope = draw.choice(["global", "global", "tensor"])
    k = draw.choice([0.3, 1.0]) if scope == "tensor" else k
    score = draw.choice(["grad", "fisher", "taylor", "weight"])
    return fu.TopK(k, score=score, scope=scope, **how)


def made(draw: random.Random, number: int, group: list[DeviceMesh], shapes: Any) -> list[Made]:
    source = torch.Generator().manual_seed(number)
    found = []
    for shape in shapes:
        dtype = draw.choice(DTYPES)
        whole = torch.randn(shape, generator=source).to(dtype)
        grad = torch.randn(shape, generator=source)
        if draw.random() < 0.4:  # ties, at 0 and elsewhere
            grad = (grad * 1.5).round() / 2
        found.append(placed(draw, group, whole, grad.to(dtype)))
    return found


def placed(draw: random.Random, group: list[DeviceMesh], whole: Tensor, grad: Tensor) -> Made:
    """Place a parameter: as a DTensor of any kind, by hand, or on every rank."""
    mesh, kind = draw.choice(group), draw.random()
    dims = [draw.choice([-1, *range(whole.ndim)]) for _ in range(mesh.ndim)]
    if kind < 0.15:
        held = whole.clone()
        held.grad = grad.clone()
        return Made(whole, grad, held, (slice(None),) * whole.ndim)
    if kind < 0.4:
        return by_hand(draw, whole, grad)
    if mesh.ndim == 2 and whole.ndim == 3 and draw.random() < 0.5:
        dims = draw.sample([1, 2], 2)  # boxes that are no equally spaced rows
    if len(set(dims)) < len(dims):
        dims = [draw.choice(range(whole.ndim)), *[-1] * (mesh.ndim - 1)]
    placements = [Replicate() if dim < 0 else On(dim) for dim in dims]
    shape, offset = compute_local_shape_and_global_offset(whole.shape, mesh, placements)
    box = tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))

    def wrap(part: Tensor) -> DTensor:
        local = part[box].clone().contiguous() if math.prod(shape) else part.new_empty(shape)
        how = {"shape": whole.shape, "stride": whole.stride(), "run_check": False}
        return DTensor.from_local(local, mesh, placements, **how)

    held = wrap(whole)
    held.grad = wrap(grad)
    return Made(whole, grad, held, box)


def by_hand(draw: random.Random, whole: Tensor, grad: Tensor) -> Made:
    """Cut one dimension into as many parts as there are ranks, of drawn sizes."""
    world, rank = dist.get_world_size(), dist.get_rank()
    dim = draw.randrange(whole.ndim)
    size = whole.shape[dim]
    ends = sorted(draw.randint(0, size) for _ in range(world - 1))
    start, stop = [0, *ends][rank], [*ends, size][rank]
    box = tuple(slice(start, stop) if d == dim else slice(None) for d in range(whole.ndim))
    offset = tuple(start if d == dim else 0 for d in range(whole.ndim))
    held = fud.Shard(whole[box].clone(), tuple(whole.shape), offset, grad=grad[box].clone())
    return Made(whole, grad, held, box)


def one(number: int, group: list[DeviceMesh]) -> str | None:
    """Run one generated call; returns what differs from one process, or None."""
    draw = random.Random(number)
    shapes = [
        tuple(draw.randint(1, 12) for _ in range(draw.choice([1, 2, 3, 3])))
        for _ in range(draw.randint(1, 4))
    ]
    names = [f"{draw.choice('ab')}.{i}" for i in range(len(shapes))]
    patterns = draw.choice([{}, {}, {"include": ("a.*",)}, {"exclude": ("a.*",)}])
    taken = [name for name in names if takes_part([name], fu.TopK(1, **patterns))]
    if not taken:
        patterns, taken = {}, names
    sizes = dict(zip(names, map(math.prod, shapes), strict=True))
    plan = replace(strategy(draw, sum(sizes[name] for name in taken)), **patterns)
    parameters = dict(zip(names, made(draw, number, group, shapes), strict=True))
    whole = {name: parameter.whole.clone() for name, parameter in parameters.items()}
    for name, tensor in whole.items():
        tensor.grad = parameters[name].grad.clone()
    held = {name: parameter.held for name, parameter in parameters.items()}
    some = {name: parameters[name] for name in taken}
    differs = selected(number, plan, (whole, held), some)
    if differs:
        return differs
    wanted = fu.perturb_(whole, plan, seed=number, step=1)
    found = fud.perturb_(held, plan, seed=number, step=1)
    for name, parameter in parameters.items():
        own, part = parameter.local.contiguous(), whole[name][parameter.box].contiguous()
        if own.numel() and not torch.equal(own.view(torch.uint8), part.view(torch.uint8)):
            return f"call {number}: {name}, {parameter.held}: {plan}"
    for name in ("n", "k", "count", "threshold", "ties", "ties_taken"):
        pair = getattr(found, name), getattr(wanted, name)
        if pair[0] != pair[1]:
            return f"call {number}: {name} {pair}: {plan}"
    return None


def selected(number: int, plan: Any, targets: Any, parameters: dict[str, Made]) -> str | None:
    """Compare what is selected of the parameters that take part, before anything is changed."""
    whole, held = targets
    wanted = fu.select(whole, plan, seed=number, step=1)
    found = fud.select(held, plan, seed=number, step=1)
    if (found.count, found.threshold) != (wanted.count, wanted.threshold):
        return f"call {number}: select: {found.count}, {found.threshold}: {plan}"
    if list(found.counts) != list(parameters):
        return f"call {number}: names: {plan}"
    base, indices = 0, []
    for name, parameter in parameters.items():
        full = wanted.mask(name)
        mask, own = full[parameter.box], found.masks()[name]
        if own.shape != mask.shape or not torch.equal(own, mask):
            return f"call {number}: mask of {name}, {parameter.held}: {plan}"
        if found.counts[name] != int(mask.sum()):
            return f"call {number}: count of {name}"
        flat = torch.arange(base, base + full.numel()).view(full.shape)
        indices.append(flat[parameter.box][mask].flatten())
        base += full.numel()
    if not torch.equal(found.indices(), torch.cat(indices).sort().values):
        return f"call {number}: indices: {plan}"
    return None
