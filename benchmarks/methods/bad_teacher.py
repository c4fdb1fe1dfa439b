"""Bad teacher: imitate an untrained model on the forget set and the original on the retain set."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.methods._common import (
    Batches,
    TrainingOptions,
    descend,
    kl_divergence,
    logits,
    make_optimizer,
    require,
    running,
)
from fastunlearn._finetune import reference_copy
from fastunlearn._loop import LossFn, forked_rng


@dataclass(frozen=True)
class BadTeacherOptions(TrainingOptions):
    """Options of `bad_teacher`. The paper's: 1 epoch, Adam with lr 1e-4, batches of 256.

    Args:
        retain_fraction: share of the retain set's batches that are read, the first ones of a pass,
            rounded up; in (0, 1]. 0.3 is the paper's.
    """

    retain_fraction: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "retain_fraction", 0.0 < self.retain_fraction <= 1.0, "in (0, 1]")


def bad_teacher(
    model: nn.Module,
    forget: Batches,
    retain: Batches,
    loss_fn: LossFn,
    options: BadTeacherOptions,
    *,
    seed: int,
) -> None:
    """Minimise KL(bad teacher || model) on D_u and KL(original || model) on D_r [paper].

    The bad (incompetent) teacher is the same network with fresh weights, drawn from the seed. Both
    teachers run in evaluation mode, the model in training mode, as in the authors' code. A pass
    takes every forget batch and a part of the retain batches once, evenly mixed; a batch is of one
    set [ours; the authors mix examples]. Temperature 1, as in the paper. Labels are not used.

    Args:
        model, forget, retain, seed: see `Core`; both loaders must have a length. The model gives
            logits of shape (B, C).
        loss_fn: unused.
        options: see `BadTeacherOptions`.

    Raises:
        TypeError: a module with weights of its own cannot draw fresh ones.

    Source:
        Chundawat, Tarun, Mandal, Kankanhalli, "Can Bad Teaching Induce Forgetting? Unlearning in
        Deep Networks Using an Incompetent Teacher", AAAI 2023.
    """
    good, bad = reference_copy(model), incompetent_teacher(model, seed)
    with running(model, seed, train=True):
        optimizer = make_optimizer(model, options)
        for _ in range(options.epochs):
            for is_forget, batch in mixed(forget, retain, options.retain_fraction):
                target = logits(bad if is_forget else good, batch)
                descend(optimizer, kl_divergence(target, logits(model, batch)))


def incompetent_teacher(model: nn.Module, seed: int) -> nn.Module:
    """Return a frozen copy in evaluation mode with fresh weights and statistics.

    Every module draws its own by `reset_parameters()`, as when it was made.

    Raises:
        TypeError: a module holds parameters and has no `reset_parameters`.
    """
    teacher = copy.deepcopy(model).eval().requires_grad_(False)
    with forked_rng():
        torch.manual_seed(seed)
        for name, module in teacher.named_modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
            elif next(module.parameters(recurse=False), None) is not None:
                raise TypeError(
                    f"bad_teacher: {name or 'model'} must have reset_parameters() for its own "
                    f"parameters, got {type(module).__name__}"
                )
    return teacher


def mixed(forget: Any, retain: Any, retain_fraction: float) -> Iterator[tuple[bool, Any]]:
    """Yield every forget batch and the first retain batches once, evenly mixed.

    Yields:
        Whether the batch is of the forget set, and the batch.
    """
    counts = {True: len(forget), False: math.ceil(retain_fraction * len(retain))}
    places = [((i + 0.5) / n, kind) for kind, n in counts.items() for i in range(n)]
    batches = {True: iter(forget), False: iter(retain)}
    for _, kind in sorted(places):
        yield kind, next(batches[kind])
