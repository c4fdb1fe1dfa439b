"""What the repair tests share: a small model, data, masks and optimisers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastunlearn._finetune import prepare_repair, reference_copy
from fastunlearn._loop import Batches, default_forward
from fastunlearn.repair import Repair, RepairOutcome
from fastunlearn.strategies import RandomK, TopK
from fastunlearn.unlearn import Result, unlearn

SGD = functools.partial(torch.optim.SGD, lr=0.1)
STILL = functools.partial(torch.optim.SGD, lr=0.0)


def network() -> nn.Sequential:
    """Return a small network with a convolution, batch norm and dropout."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2)]
    return nn.Sequential(*layers, nn.Linear(64, 3))


def batches(count: int, seed: int, size: int = 6) -> list[tuple[Tensor, Tensor]]:
    """Return batches of 6x6 images with labels."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, 1, 6, 6, generator=generator), torch.arange(size) % 3)
        for _ in range(count)
    ]


RETAIN, FORGET = batches(3, 1), batches(2, 2)


def half_masks(model: nn.Module) -> dict[str, Tensor]:
    """Select every second element, none of the first tensor and all of the last."""
    masks = {
        name: (torch.arange(p.numel()) % 2 == 0).view_as(p) for name, p in model.named_parameters()
    }
    names = list(masks)
    masks[names[0]] = torch.zeros_like(masks[names[0]])
    masks[names[-1]] = torch.ones_like(masks[names[-1]])
    return masks


def perturbed(model: nn.Module) -> dict[str, Tensor]:
    """Move the selected elements of a model and return the masks."""
    masks = half_masks(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.where(masks[name], 0.1, 0.0))
    return masks


def repaired(
    model: nn.Module, repair: Repair, masks: dict[str, Tensor] | None = None, **changes: Any
) -> RepairOutcome:
    """Run a repair with this file's loaders; w0 defaults to a copy of the model as it is."""
    arguments: dict[str, Any] = {
        "retain": RETAIN,
        "forget": FORGET,
        "reference": reference_copy(model) if repair.distill else None,
        "masks": masks,
        "loss_fn": F.cross_entropy,
        "forward_fn": default_forward,
        "hook": lambda phase, done, total: None,
    }
    arguments |= changes
    for name in ("retain", "forget"):
        if arguments[name] is not None:
            arguments[name] = Batches(arguments[name], name)
    hook = arguments.pop("hook")
    return prepare_repair(model, repair, **arguments)(hook)


def copies(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of all parameters and buffers."""
    return {name: value.clone() for name, value in model.state_dict().items()}


STRATEGIES = [TopK(0.1, std=0.1), TopK(7, std=0.1, score="fisher"), RandomK(0.1, std=0.1)]


def run(model: nn.Module, strategy: TopK | RandomK = STRATEGIES[0], **changes: Any) -> Result:
    """Unlearn with this file's loaders, seed 0."""
    arguments = {"forget": FORGET, "retain": RETAIN, "loss_fn": F.cross_entropy, "seed": 0}
    return unlearn(model, strategy, **{**arguments, **changes})


def changed(model: nn.Module, before: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return, by name, which elements of parameters and buffers differ."""
    return {name: value != before[name] for name, value in model.state_dict().items()}


def same(left: nn.Module, right: nn.Module) -> bool:
    """Tell whether two models hold the same values."""
    return not any(bool(diff.any()) for diff in changed(left, copies(right)).values())


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1),
    "nesterov": functools.partial(
        torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True
    ),
    "adam": functools.partial(torch.optim.Adam, lr=0.01, weight_decay=0.1),
    "adamw": functools.partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
    "adamw_foreach": functools.partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1, foreach=True),
    "rmsprop": functools.partial(torch.optim.RMSprop, lr=0.01, momentum=0.9, weight_decay=0.1),
    "adagrad": functools.partial(torch.optim.Adagrad, lr=0.1, weight_decay=0.1),
    "lbfgs": functools.partial(torch.optim.LBFGS, lr=0.1, max_iter=3),
}
