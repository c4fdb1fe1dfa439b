"""Repair: the fine-tuning after a perturbation, on request of the selected parameters alone."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Repair", "RepairOutcome", "default_optimizer"]

_DIVERGENCES = ("js", "jeffreys")
_TEACHERS = ("original", "perturbed")
_FACTORIES = ("optimizer", "teacher_optimizer", "scheduler", "teacher_scheduler", "stop_when")


def default_optimizer(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    """Return SGD with learning rate 0.01 and momentum 0.9, no weight decay."""
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


@dataclass(frozen=True)
class Repair:
    """How to repair a perturbed model: fine-tune on the retain set, taught on the forget set.

    Each step minimises

        task_loss(retain batch) + distill * divergence(w(x) || teacher(x)), x from a forget batch

    ``teacher="original"``: w begins at the perturbed weights and is held near the original model w0
    [paper via peer]. ``teacher="perturbed"``: w begins at the original weights and is drawn towards
    the perturbed model on the forget set, and there alone [ours]; the perturbation says what is to
    be forgotten, the repair writes it into the model, and what the noise broke elsewhere never
    reaches it. With ``teacher_steps`` the perturbed model first learns from the retain set alone
    for so many steps, with an optimiser of its own: it then teaches what a model that knows the
    retain set would say of the forget set, not what a broken one says [ours].

    ``distill=0`` is plain fine-tuning on the retain set [ours]: no teacher is kept and the forget
    set is not read. An epoch is one pass over the retain loader; the forget loader is started anew
    whenever it ends.

    The task term runs in training mode; the divergence compares both models in evaluation mode, so
    that it is 0 where they agree and forget batches never enter batch-norm statistics.
    Normalisation layers with running statistics stay in evaluation mode where their own parameters
    are all frozen, and always with a perturbed teacher: on batch statistics for one term and stored
    ones for the other, a model learns to be two (a ResNet-8 then kept the teacher's outputs for all
    its data).

    ``masked=True`` updates the selected parameters alone [ours]. Every unselected element, and
    every buffer, is bit-unchanged afterwards whatever the optimiser does (momentum, coupled or
    decoupled weight decay): its gradient is cleared before the step and its old bits are put back
    after it. Tensors with nothing selected are not handed to the optimiser at all, and
    normalisation layers use their stored statistics. So the whole change to the model is a sparse
    patch. Cost: one bool per element of the partly selected tensors, and a copy of those tensors
    where ``distill=0`` (else the teacher serves).

    Attributes:
        epochs: Passes over the retain loader, >= 1.
        distill: Weight lambda of the divergence term, >= 0.
        divergence: ``"js"``, the true Jensen-Shannon divergence, or ``"jeffreys"``, the symmetric
            KL of the peer's code. In nats, over the last dimension of the outputs, mean over all
            the other dimensions.
        teacher: ``"original"`` or ``"perturbed"``, see above; the latter needs ``distill > 0``.
        teacher_steps: Optimiser steps on the task term that a perturbed teacher takes before it
            teaches, >= 0, not counted in ``epochs`` and ``max_steps``. Normalisation layers follow
            the retain set meanwhile, and the teacher keeps the statistics (``masked``: no buffer
            changes).
        teacher_optimizer: Factory of the optimiser of these steps; None: ``optimizer``.
            ``clip_grad_norm`` applies to it too, ``scheduler`` does not.
        masked: Update the selected parameters alone.
        optimizer: Factory, ``optimizer(parameters)`` -> torch optimiser over these or some of
            them. Called before the perturbation, so an optimiser that copies weights when it is
            built copies the original ones. It is stepped with a closure, so LBFGS works too.
        scheduler: Optional factory, ``scheduler(optimizer)`` -> scheduler, called right after
            ``optimizer``; stepped without arguments after every optimiser step.
        max_steps: Optional bound on the number of optimiser steps over all epochs.
        clip_grad_norm: Optional bound on the total gradient norm, after masking.
        patience: Optional; stop after this many epochs in a row whose mean loss has not come down
            by more than ``min_delta``. The last weights are kept, not the best.
        min_delta: See ``patience``; >= 0.
        stop_when: Optional ``stop_when(entry)`` -> bool, called with each epoch's history entry.
        teacher_scheduler: Optional factory of a scheduler for ``teacher_optimizer``, used as
            ``scheduler`` is.

    Raises:
        TypeError, ValueError: If a field is not what is described above.

    Example:
        >>> import functools, torch
        >>> from fastunlearn.repair import Repair
        >>> adam = functools.partial(torch.optim.AdamW, lr=1e-3)
        >>> Repair(epochs=2, masked=True, optimizer=adam).to_dict()["optimizer"]
        'torch.optim.adamw.AdamW(lr=0.001)'

    Source:
        Zuo et al., IEEE TKDE 37(4), 2025, as re-implemented by TrajMU, KDD 2026. A teacher that
        knows less is the idea of Chundawat et al., "Can Bad Teaching Induce Forgetting?", AAAI
        2023; theirs is a randomly initialised network.
    """

    epochs: int = 1
    distill: float = 0.1
    divergence: str = "js"
    teacher: str = "original"
    teacher_steps: int = 0
    teacher_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None
    masked: bool = False
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] = default_optimizer
    scheduler: Callable[[torch.optim.Optimizer], Any] | None = None
    max_steps: int | None = None
    clip_grad_norm: float | None = None
    patience: int | None = None
    min_delta: float = 0.0
    stop_when: Callable[[dict[str, Any]], bool] | None = None
    teacher_scheduler: Callable[[torch.optim.Optimizer], Any] | None = None

    def __post_init__(self) -> None:
        """Validate every field."""
        _check_integer("epochs", self.epochs)
        for name in ("max_steps", "patience"):
            if getattr(self, name) is not None:
                _check_integer(name, getattr(self, name))
        for name in ("distill", "min_delta"):
            check_number("Repair", name, getattr(self, name), zero=True)
        if self.clip_grad_norm is not None:
            check_number("Repair", "clip_grad_norm", self.clip_grad_norm, zero=False)
        if self.divergence not in _DIVERGENCES:
            raise ValueError(
                f"Repair: divergence must be 'js' or 'jeffreys', got {self.divergence!r}"
            )
        if self.teacher not in _TEACHERS:
            raise ValueError(
                f"Repair: teacher must be 'original' or 'perturbed', got {self.teacher!r}"
            )
        if self.teacher == "perturbed" and self.distill == 0:
            raise ValueError("Repair: distill must be > 0 with teacher='perturbed', got 0")
        _check_integer("teacher_steps", self.teacher_steps, least=0)
        if self.teacher_steps and self.teacher != "perturbed":
            raise ValueError(
                "Repair: teacher_steps must be 0 unless teacher='perturbed', "
                f"got {self.teacher_steps}"
            )
        if not isinstance(self.masked, bool):
            raise TypeError(f"Repair: masked must be a bool, got {type(self.masked).__name__}")
        for name in _FACTORIES:
            value = getattr(self, name)
            if not callable(value) and not (value is None and name != "optimizer"):
                raise TypeError(f"Repair: {name} must be callable, got {type(value).__name__}")

    def of_teacher(self) -> Repair | None:
        """Return the repair that a perturbed teacher gets before it teaches, or None."""
        if self.teacher_steps == 0:
            return None
        return replace(
            self,
            epochs=self.teacher_steps,
            max_steps=self.teacher_steps,
            distill=0.0,
            teacher="original",
            teacher_steps=0,
            optimizer=self.teacher_optimizer or self.optimizer,
            teacher_optimizer=None,
            scheduler=self.teacher_scheduler,
            teacher_scheduler=None,
            patience=None,
            stop_when=None,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able description; callables become their qualified names."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: _describe(v) if callable(v) else v for k, v in values.items()}


@dataclass(frozen=True)
class RepairOutcome:
    """What a repair did.

    Attributes:
        history: One dict per epoch: epoch (from 1), steps (in all so far), loss, task_loss,
            divergence (None where ``distill=0``); means over the epoch's steps, in nats where the
            task loss is. Loss = task_loss + distill * divergence.
        seconds: Duration of each epoch.
        stopped: ``"epochs"``, ``"max_steps"``, ``"patience"``, ``"stop_when"``, or
            ``"nothing selected"`` for a masked repair of an empty selection.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    stopped: str = "epochs"


def _describe(value: Any) -> str:
    """Return a callable's qualified name, with the arguments of a ``functools.partial``."""
    if isinstance(value, functools.partial):
        arguments = [repr(a) for a in value.args]
        arguments += [f"{key}={item!r}" for key, item in value.keywords.items()]
        return f"{_describe(value.func)}({', '.join(arguments)})"
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def _check_integer(name: str, value: object, *, least: int = 1) -> None:
    """Raise unless the value is an int of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"Repair: {name} must be an int >= {least}, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"Repair: {name} must be >= {least}, got {value}")


def check_number(op: str, name: str, value: object, *, zero: bool) -> None:
    """Raise unless the value is a finite number, positive (``zero``: or 0)."""
    expected = "a finite number >= 0" if zero else "a finite number > 0"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{op}: {name} must be {expected}, got {type(value).__name__}")
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise ValueError(f"{op}: {name} must be {expected}, got {value}")
