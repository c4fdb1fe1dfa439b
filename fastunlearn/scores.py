"""Saliency scores: how much each parameter matters for the data in a loader.

``score`` streams over a loader and leaves the model exactly as it found it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastunlearn._loop import (
    ForwardFn,
    LossFn,
    ProgressHook,
    checked_loss,
    default_forward,
    example_count,
    length_of,
    preserved,
    progress_hook,
    trainable_parameters,
)

__all__ = ["SCORE_KINDS", "ForwardFn", "LossFn", "ProgressHook", "default_forward", "score"]


@dataclass(frozen=True)
class Rule:
    """How one kind of score is accumulated over batches.

    Attributes:
        uses_loss: Differentiate the loss; otherwise the mean squared norm of the outputs.
        by_example: Weight a batch by its number of examples; otherwise every batch counts once.
        term: What one batch's gradient contributes.
        finish: Turns (buffer, parameter) into the score, in place in the buffer.
    """

    uses_loss: bool
    by_example: bool
    term: Callable[[Tensor], Tensor]
    finish: Callable[[Tensor, Tensor], Tensor]


_RULES = {
    "grad": Rule(True, True, lambda g: g, lambda buffer, w: buffer.abs_()),
    "fisher": Rule(True, False, torch.square, lambda buffer, w: buffer),
    "mas": Rule(False, True, torch.abs, lambda buffer, w: buffer),
    "taylor": Rule(
        True, True, lambda g: g, lambda buffer, w: buffer.mul_(w.to(buffer.dtype)).abs_()
    ),
}
SCORE_KINDS = (*_RULES, "ratio", "weight")


def score(
    model: nn.Module,
    loader: Iterable[Any] | None,
    loss_fn: LossFn | None,
    *,
    kind: str = "grad",
    retain: Iterable[Any] | None = None,
    dtype: torch.dtype = torch.float32,
    forward_fn: ForwardFn | None = None,
    train_mode: bool = False,
    eps: float = 1e-8,
    progress: bool | ProgressHook = False,
) -> dict[str, Tensor]:
    """Score every trainable parameter by its importance for the examples of a loader.

    With N examples in the loader, B_b of them in batch b, g_b the gradient of batch b's mean loss
    and g = sum_b (B_b / N) g_b, the gradient of the mean loss over the whole loader:

    - ``grad`` [paper]: ``|g|``, whatever the batch size (up to rounding)
    - ``fisher`` [peer]: mean over batches of g_b^2, each batch counting once; the batch size
      matters, and with one example per batch this is the empirical Fisher diagonal
    - ``mas`` [ours]: ``sum_b (B_b / N) |h_b|``, h_b the gradient of the batch mean of the sum of
      an example's squared outputs; needs no labels and no ``loss_fn``; with one example per batch
      this is the Memory Aware Synapses importance
    - ``taylor`` [ours]: ``|w * g|``
    - ``ratio`` [ours]: fisher(loader) / (fisher(retain) + eps)
    - ``weight`` [ours]: ``|w|``; reads no data

    Parameters are not changed, and ``.grad`` is not touched, not even where it is None. Training
    flags, buffers (batch-norm statistics too), ``requires_grad`` flags and torch's global CPU and
    CUDA generators are as before afterwards, also after an exception. Since the generator is put
    back, a loader that shuffles with it will repeat its order in the next pass. Hooks on modules
    and tensors do fire.

    Peak memory on top of the model: one score buffer per trainable parameter in ``dtype`` (two for
    ``ratio``), the activations and gradients of one batch, and a copy of the buffers. Accumulation
    happens in ``dtype``: 16-bit buffers drop small contributions when there are many batches, and
    float16 underflows for ``fisher`` and ``ratio``. Works under autocast. NaN scores are returned
    as they are; ``perturb_`` refuses them. Deterministic wherever the model's own backward is.

    Args:
        model: Any module. Its parameters with ``requires_grad`` are scored, tied ones once.
        loader: Iterable of batches, read once (``ratio``: and ``retain`` once). Unused by
            ``weight``, where it may be None.
        loss_fn: ``loss_fn(outputs, targets)`` -> 0-dim mean loss over the batch. Unused by ``mas``
            and ``weight``, where it may be None.
        kind: One of ``SCORE_KINDS``.
        retain: Loader of the retain set; ``ratio`` alone needs it.
        dtype: Floating dtype of the scores.
        forward_fn: ``forward_fn(model, batch)`` -> (outputs, targets). The number of examples is
            the first dimension of the first tensor in the outputs, else in the targets. Default:
            `default_forward`.
        train_mode: Run the model in training mode (dropout on, batch statistics) instead of
            evaluation mode. Recurrent layers run without dropout in evaluation mode.
        eps: Floor of the denominator of ``ratio``, positive.
        progress: True for a progress bar on stderr, or a hook ``(phase, done, total)``.

    Returns:
        Name -> score, in ``named_parameters()`` order; same shape and device as the parameter,
        dtype ``dtype``, no graph, >= 0. Parameters that the loss never touches score 0.

    Raises:
        TypeError: If ``dtype`` is not floating, a parameter is complex, a needed loader or
            ``loss_fn`` is None, or outputs and loss are not what is described above.
        ValueError: If ``kind`` is unknown, ``eps`` is not positive and finite, nothing is
            trainable, a loader yields no example, or the loss has no graph.

    Example:
        >>> import torch
        >>> from fastunlearn.scores import score
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> x, y = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.zeros(2, 1)
        >>> score(model, [(x, y)], lambda out, y: (out - y).mean())
        {'weight': tensor([[2., 3.]])}

    Source:
        Zuo et al., IEEE TKDE 37(4), 2025 (``grad``); TrajMU, KDD 2026 (``fisher``). After Aljundi
        et al., ECCV 2018 (``mas``) and Foster et al., AAAI 2024 (``ratio``).
    """
    how: dict[str, Any] = {"forward_fn": forward_fn, "train_mode": train_mode, "eps": eps}
    how |= {"kind": kind, "retain": retain, "dtype": dtype, "progress": progress}
    return scored(Accumulation, model, loader, loss_fn, **how)


def scored(
    accumulation: Callable[..., Accumulation],
    model: nn.Module,
    loader: Iterable[Any] | None,
    loss_fn: LossFn | None,
    *,
    kind: str,
    retain: Iterable[Any] | None,
    dtype: torch.dtype,
    forward_fn: ForwardFn | None,
    train_mode: bool,
    eps: float,
    progress: bool | ProgressHook,
) -> dict[str, Tensor]:
    """Do what `score` says, with the gradients that an `Accumulation` or its like takes."""
    parameters = trainable_parameters(model, "score")
    _check_score(loader, loss_fn, kind, retain, dtype, eps)
    if kind == "weight":
        with torch.inference_mode(False), torch.no_grad():
            return {name: p.abs().to(dtype) for name, p in parameters.items()}
    forward = default_forward if forward_fn is None else forward_fn
    with progress_hook(progress) as hook, preserved(model, train=train_mode):
        rule = _RULES["fisher" if kind == "ratio" else kind]
        run = accumulation(model, parameters, rule, loss_fn, forward, dtype, hook)
        scores = run.over(loader, "loader", "score")
        if kind == "ratio":
            _divide(scores, run.over(retain, "retain", "score (retain)"), eps)
    return scores


@dataclass(frozen=True)
class Accumulation:
    """One scoring run: what stays the same for every loader it streams over."""

    model: nn.Module
    parameters: dict[str, nn.Parameter]
    rule: Rule
    loss_fn: LossFn | None
    forward: ForwardFn
    dtype: torch.dtype
    hook: ProgressHook

    def over(self, loader: Iterable[Any] | None, name: str, phase: str) -> dict[str, Tensor]:
        """Stream over a loader and return the finished scores; the names are for messages."""
        assert loader is not None  # _check_score has refused it
        buffers = [torch.zeros_like(p, dtype=self.dtype) for p in self.parameters.values()]
        total, seen, batches = length_of(loader), 0, 0
        for batch in self.batches(loader, name):
            count, gradients = self.gradients(batch)
            if count == 0:  # the mean loss of nothing is NaN and says nothing
                continue
            seen, batches = seen + count, batches + 1
            share = count / seen if self.rule.by_example else 1 / batches
            self._add(buffers, gradients, share)
            self.hook(phase, batches, total)
        if seen == 0:
            raise ValueError(f"score: {name} must yield at least one example, got none")
        with torch.no_grad():
            pairs = zip(self.parameters.items(), buffers, strict=True)
            return {name: self.rule.finish(buffer, p) for (name, p), buffer in pairs}

    def batches(self, loader: Iterable[Any], name: str) -> Iterable[Any]:
        """Give the batches of a loader; the name is for messages."""
        return loader

    def gradients(self, batch: Any) -> tuple[int, Sequence[Tensor | None]]:
        """Return the number of examples of a batch and its gradient per parameter."""
        count, objective = self.objective(*self.forward(self.model, batch))
        if objective is None:
            return 0, ()
        wanted = list(self.parameters.values())
        return count, torch.autograd.grad(objective, wanted, allow_unused=True)

    def objective(self, outputs: Any, targets: Any) -> tuple[int, Tensor | None]:
        """Return the number of examples of a batch and what to differentiate, if there are any."""
        count = example_count(outputs, targets, "score")
        if count == 0:
            return 0, None
        if self.rule.uses_loss:
            assert self.loss_fn is not None  # _check_score has refused it
            return count, checked_loss(self.loss_fn(outputs, targets), "score")
        return count, checked_loss(_mean_squared_norm(outputs, count), "score")

    def _add(self, buffers: list[Tensor], gradients: Sequence[Tensor | None], share: float) -> None:
        """Fold one batch into the running means; ``share`` is its part of all seen so far.

        A running mean keeps a 16-bit buffer from overflowing, makes a single batch exact, and,
        unlike ``lerp``, keeps an infinite gradient infinite instead of turning it into NaN.
        """
        with torch.no_grad():
            for buffer, gradient in zip(buffers, gradients, strict=True):
                buffer.mul_(1 - share)
                if gradient is None:
                    continue
                wide = torch.promote_types(gradient.dtype, self.dtype)
                buffer.add_(self.rule.term(gradient.to(wide)), alpha=share)


def _mean_squared_norm(outputs: Any, count: int) -> Tensor:
    """Return sum(F(x)^2) / count over a batch, in at least float32 (float16 would overflow)."""
    if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
        got = outputs.dtype if isinstance(outputs, Tensor) else type(outputs).__name__
        raise TypeError(f"score: outputs must be a floating-point tensor for 'mas', got {got}")
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32)).square().sum() / count


@torch.no_grad()
def _divide(forget: dict[str, Tensor], retain: dict[str, Tensor], eps: float) -> None:
    """Replace forget by forget / (retain + eps); float16 alone would round eps to 0."""
    for name, buffer in forget.items():
        wide = torch.promote_types(buffer.dtype, torch.float32)
        buffer.copy_(buffer.to(wide).div_(retain.pop(name).to(wide).add_(eps)))


def _check_score(
    loader: object, loss_fn: object, kind: str, retain: object, dtype: object, eps: float
) -> None:
    """Validate what `score` was given, before anything runs."""
    if kind not in SCORE_KINDS:
        raise ValueError(f"score: kind must be one of {', '.join(SCORE_KINDS)}, got {kind!r}")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"score: dtype must be a floating-point dtype, got {dtype}")
    if isinstance(eps, bool) or not isinstance(eps, (int, float)):
        raise TypeError(f"score: eps must be a number, got {type(eps).__name__}")
    if not (eps > 0 and math.isfinite(eps)):
        raise ValueError(f"score: eps must be positive and finite, got {eps}")
    if kind == "weight":
        return
    if not isinstance(loader, Iterable):
        raise TypeError(f"score: loader must be iterable, got {type(loader).__name__}")
    if kind != "mas" and not callable(loss_fn):
        raise TypeError(f"score: loss_fn must be callable, got {type(loss_fn).__name__}")
    if kind == "ratio" and not isinstance(retain, Iterable):
        raise TypeError(
            f"score: retain must be a loader for kind 'ratio', got {type(retain).__name__}"
        )
