"""The repair loop: what `Repair` describes, carried out on a model."""

from __future__ import annotations

import copy
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastunlearn._loop import (
    Batches,
    ForwardFn,
    LossFn,
    ProgressHook,
    checked_loss,
    length_of,
    preserved,
    preserved_buffers,
    preserved_mode,
    set_mode,
    trainable_parameters,
)
from fastunlearn.divergence import jeffreys, jensen_shannon
from fastunlearn.repair import Repair, RepairOutcome

__all__ = ["cycle", "exchange_states", "prepare_repair", "reference_copy"]

_DIVERGENCES = {"js": jensen_shannon, "jeffreys": jeffreys}


def reference_copy(model: nn.Module) -> nn.Module:
    """Return a frozen copy of the model in evaluation mode; frozen parameters are shared.

    Sharing is safe since nothing here writes to a parameter without ``requires_grad``, and leaves
    an adapter-tuned model with a copy of its adapters only.
    """
    shared: dict[int, Any] = {id(p): p for p in model.parameters() if not p.requires_grad}
    return copy.deepcopy(model, shared).eval().requires_grad_(False)


@torch.no_grad()
def exchange_states(model: nn.Module, reference: nn.Module) -> None:
    """Exchange what a model and its `reference_copy` do not share, buffers included.

    Parameters keep their identity; buffers change hands, since one that the model has made or
    resized meanwhile has no counterpart to be copied to. Peak memory: a copy of the largest
    parameter.
    """
    others = dict(reference.named_parameters())
    for name, parameter in trainable_parameters(model, "repair").items():
        before = parameter.clone()
        parameter.copy_(others[name])
        others[name].copy_(before)
    for own, other in zip(model.modules(), reference.modules(), strict=True):
        own._buffers, other._buffers = other._buffers, own._buffers


def prepare_repair(
    model: nn.Module,
    repair: Repair,
    *,
    retain: Batches,
    forget: Batches | None,
    reference: nn.Module | None,
    masks: Mapping[str, Tensor] | None,
    loss_fn: LossFn,
    forward_fn: ForwardFn,
    trial: bool = True,
) -> Callable[[ProgressHook], RepairOutcome]:
    """Get ready to fine-tune a model in place as a `Repair` says; call it before the perturbation.

    Builds the optimiser and tries one batch of each loader that the repair reads, forward alone.
    Parameters, ``.grad``, buffers, training flags and torch's generators are as before afterwards,
    also after an exception.

    Args:
        model: The model, perturbed or about to be.
        repair: What to do.
        retain: Batches of the retain set.
        forget: Batches of the forget set; unused where ``repair.distill`` is 0.
        reference: w0 from `reference_copy`, made before the perturbation; needed for distillation.
            For a perturbed teacher its state and the model's are exchanged before the repair is
            called (`exchange_states`).
        masks: Name -> bool mask, True where selected, shaped like the parameter; needed for
            ``repair.masked``. Nothing is selected in a parameter without a mask. Outside of the
            masks the model and ``reference`` must agree.
        loss_fn: ``loss_fn(outputs, targets)`` -> 0-dim mean loss.
        forward_fn: ``forward_fn(model, batch)`` -> (outputs, targets).
        trial: Whether to try the batches; the loaders' first ones can be had once.

    Returns:
        The repair itself, to be called once with a hook that gets ``("repair", steps, total)``
        after every step. It returns the history, the seconds per epoch, and why it stopped; it
        raises FloatingPointError if an epoch's mean loss is not finite. Training flags and
        ``.grad`` are as before afterwards, also after an exception or Ctrl-C.

    Raises:
        TypeError, ValueError: If a loader is empty, or loss, outputs or optimiser are unusable.
    """
    trainable = trainable_parameters(model, "repair")
    guard = None
    if repair.masked:
        assert masks is not None
        originals = trainable if reference is None else dict(reference.named_parameters())
        guard = _Guard(trainable, masks, originals, copied=reference is None)
        trainable = {n: p for n, p in trainable.items() if n in masks and bool(masks[n].any())}
        if not trainable:
            return lambda hook: RepairOutcome(stopped="nothing selected")
    if repair.distill == 0:
        reference = forget = None
    with torch.inference_mode(False), torch.enable_grad(), _preserved_gradients(model):
        run = _Run(model, repair, list(trainable.values()), loss_fn, forward_fn, reference, guard)
        if trial:
            run.try_out(retain, forget)
    return functools.partial(_run_repair, run, retain, forget)


def _run_repair(
    run: _Run, retain: Batches, forget: Batches | None, hook: ProgressHook
) -> RepairOutcome:
    """Run the epochs in training mode, and put back what is not the repair's to change."""
    with ExitStack() as stack:
        contexts = (torch.inference_mode(False), torch.enable_grad(), preserved_mode(run.model))
        for context in (*contexts, _preserved_gradients(run.model)):
            stack.enter_context(context)
        if run.repair.masked:
            stack.enter_context(preserved_buffers(run.model))
        _set_repair_mode(run.model, run.repair)
        return _epochs(run, retain, forget, hook)


def _epochs(
    run: _Run, retain: Batches, forget: Batches | None, hook: ProgressHook
) -> RepairOutcome:
    """Run epochs until one of the stop rules holds."""
    repair, outcome = run.repair, RepairOutcome()
    forget_batches = None if forget is None else cycle(forget, "repair: forget")
    length = length_of(retain)
    bounds = (repair.max_steps, None if length is None else length * repair.epochs)
    total = min((bound for bound in bounds if bound is not None), default=None)
    best, stale = math.inf, 0
    for epoch in range(1, repair.epochs + 1):
        start = time.perf_counter()
        for batch in retain:
            run.step(batch, None if forget_batches is None else next(forget_batches))
            hook("repair", run.steps, total)
            if run.steps == repair.max_steps:
                break
        entry = run.entry(epoch)
        outcome.history.append(entry)
        outcome.seconds.append(time.perf_counter() - start)
        stale = 0 if entry["loss"] < best - repair.min_delta else stale + 1
        best = min(best, entry["loss"])
        stopped = _stop_reason(repair, run.steps, stale, entry)
        if stopped is not None:
            return RepairOutcome(outcome.history, outcome.seconds, stopped)
    return outcome


def _stop_reason(repair: Repair, steps: int, stale: int, entry: dict[str, Any]) -> str | None:
    """Return why to stop after this epoch, or None."""
    if steps == repair.max_steps:
        return "max_steps"
    if repair.stop_when is not None and repair.stop_when(dict(entry)):
        return "stop_when"
    if repair.patience is not None and stale >= repair.patience:
        return "patience"
    return None


class _Run:
    """The moving parts of one repair: model, optimiser, scheduler, and the sums of an epoch."""

    def __init__(
        self,
        model: nn.Module,
        repair: Repair,
        parameters: list[nn.Parameter],
        loss_fn: LossFn,
        forward_fn: ForwardFn,
        reference: nn.Module | None,
        guard: _Guard | None,
    ) -> None:
        """Build the optimiser over ``parameters``, and its scheduler."""
        self.model, self.repair, self.parameters = model, repair, parameters
        self.loss_fn, self.forward_fn = loss_fn, forward_fn
        self.reference, self.guard = reference, guard
        self.steps = 0
        self._sums: list[Tensor] = []
        self._summed = 0
        self.optimizer = _built_optimizer(repair, parameters)
        self.scheduler = None if repair.scheduler is None else repair.scheduler(self.optimizer)

    def try_out(self, retain: Batches, forget: Batches | None) -> None:
        """Refuse what no step could work with, by the forward half of one."""
        with ExitStack() as stack:
            stack.enter_context(preserved(self.model, train=True))
            _set_repair_mode(self.model, self.repair)
            self._task(retain.first())
            if self.reference is not None:
                assert forget is not None
                stack.enter_context(preserved_buffers(self.reference))
                set_mode(self.model, train=False)
                self._divergence(self.reference, forget.first())

    def step(self, retain_batch: Any, forget_batch: Any) -> None:
        """Take one optimiser step; the losses are kept on the device, without a sync."""
        losses: list[Tensor] = []

        def closure() -> Tensor:
            with torch.enable_grad():
                terms = self._backward(retain_batch, forget_batch)
            if not losses:  # optimisers with a line search call again; the first is the loss here
                losses.extend(terms)
            return terms[0] + self.repair.distill * terms[1] if len(terms) == 2 else terms[0]

        with nullcontext() if self.guard is None else self.guard.around_step():
            # The stubs ask for a float; a tensor spares the sync and is what optimisers expect.
            self.optimizer.step(cast(Any, closure))
        if self.scheduler is not None:
            self.scheduler.step()
        self.steps += 1
        self._summed += 1
        wide = [x.to(torch.promote_types(x.dtype, torch.float32)) for x in losses]
        self._sums = [a + b for a, b in zip(self._sums, wide, strict=True)] if self._sums else wide

    def entry(self, epoch: int) -> dict[str, Any]:
        """Return the history entry of the epoch that ends here and start the next sums."""
        if not self._sums:
            raise ValueError("repair: retain must yield at least one batch, got none")
        means = [value.item() / self._summed for value in self._sums]
        self._sums, self._summed = [], 0
        task, divergence = means if len(means) == 2 else (means[0], None)
        loss = task + self.repair.distill * (divergence or 0.0)
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"repair: loss must be finite, got {loss} in epoch {epoch}; lower the learning rate"
            )
        return {
            "epoch": epoch,
            "steps": self.steps,
            "loss": loss,
            "task_loss": task,
            "divergence": divergence,
        }

    def _backward(self, retain_batch: Any, forget_batch: Any) -> list[Tensor]:
        """Fill the gradients and return the detached terms.

        Each term goes backward before the next goes forward: one graph alive at a time, and a
        checkpointed block is recomputed in the mode that it ran in.
        """
        # Under a caller's autocast the 16-bit copies of the weights outlive the step they served.
        torch.clear_autocast_cache()
        # Not the optimiser's zero_grad: it may hold fewer parameters, and the gradients of the
        # others are the caller's tensors until they are let go of.
        for parameter in self.parameters:
            parameter.grad = None
        task = self._task(retain_batch)
        task.backward(inputs=self.parameters)
        terms = [task.detach()]
        if self.reference is not None:
            with preserved_mode(self.model):
                set_mode(self.model, train=False)
                divergence = self._divergence(self.reference, forget_batch)
                (self.repair.distill * divergence).backward(inputs=self.parameters)
            terms.append(divergence.detach())
        if self.guard is not None:
            self.guard.clear_gradients()
        if self.repair.clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.repair.clip_grad_norm)
        return terms

    def _task(self, batch: Any) -> Tensor:
        """Return the task loss on a retain batch."""
        return checked_loss(self.loss_fn(*self.forward_fn(self.model, batch)), "repair")

    def _divergence(self, reference: nn.Module, batch: Any) -> Tensor:
        """Return the divergence between the model's outputs and the teacher's on a forget batch."""
        with torch.no_grad():
            taught = self.forward_fn(reference, batch)[0]
        outputs = self.forward_fn(self.model, batch)[0]
        if not isinstance(outputs, Tensor):
            got = type(outputs).__name__
            raise TypeError(f"repair: outputs must be a tensor of logits to distil, got {got}")
        if outputs.ndim < 2 or outputs.shape[-1] < 2:
            raise ValueError(
                "repair: outputs must have shape (batch, ..., classes) with at least 2 classes "
                f"to distil, got {tuple(outputs.shape)}; pass distill=0"
            )
        return _DIVERGENCES[self.repair.divergence](outputs, taught, reduction="mean")


class _Guard:
    """Keeps the unselected elements of partly selected tensors as they were, bit for bit.

    Clearing the gradient alone is not enough: weight decay moves a parameter without a gradient.
    Putting the bits back alone is not enough either: moments would carry gradients of elements that
    do not take part.
    """

    def __init__(
        self,
        parameters: dict[str, nn.Parameter],
        masks: Mapping[str, Tensor],
        originals: Mapping[str, Tensor],
        *,
        copied: bool,
    ) -> None:
        """Note the elements to keep; ``copied``: clone their tensors out of ``originals``."""
        self._kept: list[tuple[nn.Parameter, Tensor, Tensor]] = []
        for name, parameter in parameters.items():
            if name not in masks:
                continue
            frozen = ~masks[name].to(parameter.device)
            if bool(frozen.any()) and not bool(frozen.all()):
                saved = originals[name].detach()
                self._kept.append((parameter, frozen, saved.clone() if copied else saved))

    @torch.no_grad()
    def clear_gradients(self) -> None:
        """Set the gradient of every unselected element to 0, also where it is NaN."""
        for parameter, frozen, _ in self._kept:
            gradient = parameter.grad
            if gradient is not None and gradient.is_sparse:
                parameter.grad = gradient = gradient.coalesce()
                rows = frozen[tuple(gradient.indices())]
                gradient.values().masked_fill_(rows, 0)
            elif gradient is not None:
                gradient.masked_fill_(frozen, 0)

    @contextmanager
    def around_step(self) -> Iterator[None]:
        """Put the unselected bits back after a step, also when it was interrupted."""
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, frozen, saved in self._kept:
                    torch.where(frozen, saved, parameter, out=parameter)


def _set_repair_mode(model: nn.Module, repair: Repair) -> None:
    """Set training mode, but keep fixed statistics for layers that must not learn new ones.

    A perturbed teacher is one such reason: with the task term on batch statistics and the
    divergence on stored ones, a model can please both by being two models.
    """
    set_mode(model, train=True)
    fixed = repair.masked or repair.teacher == "perturbed"
    for module in model.modules():
        if getattr(module, "running_mean", None) is not None:
            own = list(module.parameters(recurse=False))
            if fixed or (own and not any(p.requires_grad for p in own)):
                module.training = False


def _built_optimizer(repair: Repair, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Call the factory and check that it optimises nothing but what it was given."""
    optimizer = repair.optimizer(parameters)
    if not isinstance(optimizer, torch.optim.Optimizer):
        got = type(optimizer).__name__
        raise TypeError(f"repair: optimizer must return a torch.optim.Optimizer, got {got}")
    given = {id(p) for p in parameters}
    extra = sum(id(p) not in given for group in optimizer.param_groups for p in group["params"])
    if extra:
        raise ValueError(
            "repair: optimizer must be built over the parameters it is given, "
            f"got {extra} other parameters"
        )
    return optimizer


@contextmanager
def _preserved_gradients(model: nn.Module) -> Iterator[None]:
    """Put every ``.grad`` back after the block, which may replace but not write into it."""
    saved = [(p, p.grad) for p in model.parameters()]
    try:
        yield
    finally:
        for parameter, gradient in saved:
            parameter.grad = gradient


def cycle(loader: Iterable[Any], name: str) -> Iterator[Any]:
    """Yield the batches of a loader again and again; the error of an empty one calls it `name`."""
    while True:
        empty = True
        for batch in loader:
            empty = False
            yield batch
        if empty:
            raise ValueError(f"{name} must yield at least one batch, got none")
