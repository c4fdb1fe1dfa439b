"""Perturb the selected parameters in place."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from typing import cast

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from fastunlearn._ops import Stat, backend_of, ops
from fastunlearn._version import __version__
from fastunlearn.receipt import Receipt, TensorReceipt, key_to_score, seed_commitment
from fastunlearn.selection import Call, threshold_of
from fastunlearn.strategies import Strategy, TopK
from fastunlearn.targets import MissingGrad, Parameters, Scores, Target


@_disable_dynamo
def perturb_(
    target: Target,
    strategy: Strategy,
    *,
    scores: Scores | None = None,
    seed: int | None = None,
    step: int = 0,
    allow_overflow: bool = False,
    missing_grad: MissingGrad = "error",
    keep_seed: bool = False,
) -> Receipt:
    """Add noise to the K parameters that the strategy selects, in place [paper].

    `w <- w + sigma * z` for the selected parameters alone; no other bit changes. All or nothing:
    whatever the call refuses, it refuses before the first write. Under `torch.compile` it breaks
    the graph; `torch.ops.fastunlearn.topk_perturb_` and `randomk_perturb_` compile.

    Args:
        target: module, mapping, or iterable of parameters or of (name, parameter) pairs. fp32,
            fp64, bf16 or fp16, mixed as you like; any strides; mutated. Tied parameters count once.
        strategy: `TopK` or `RandomK`.
        scores: final scores by name or in order, shaped like the parameters, any floating dtype,
            not mutated; None takes each parameter's `.grad`. Not allowed for Random-k.
        seed: in [0, 2**64); None draws one from the operating system.
        step: in [0, 2**32): with the same seed each step has noise (and, for Random-k, a subset)
            of its own.
        allow_overflow: whether a finite weight may become infinite.
        missing_grad: "error", or "skip" to leave out parameters without a gradient.
        keep_seed: write the seed into the receipt. Whoever has it can subtract the noise.

    Returns:
        What was done. The same inputs and seed give the same bits on every backend, for every
        number of threads, and however the same elements are split into tensors.

    Raises:
        TypeError: a parameter or score is not a dense floating-point tensor.
        ValueError: anything else that is out of its range: K, NaN scores, a missing gradient, a
            shape, memory shared between elements, a finite weight that would overflow.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(100, 10)
        >>> model(torch.randn(4, 100)).sum().backward()
        >>> receipt = perturb_(model, TopK(0.01, std=0.1), seed=0)
        >>> receipt.count, receipt.n
        (10, 1010)
    """
    call = Call.prepare("perturb_", target, strategy, scores, seed, step, missing_grad)
    scale = _scale(call)
    stats = _run(call, scale, allow_overflow)
    call.refuse_nan(stats)
    if not allow_overflow:
        _refuse_overflow(call.parameters, stats)
    return _receipt(call, scale, stats, keep_seed)


def _scale(call: Call) -> Tensor:
    """Standard deviation of the noise in each tensor: float64, shape (number of tensors,)."""
    tensors = call.parameters.tensors
    if call.strategy.rel_std is None:
        std = cast(float, call.strategy.std)
        return torch.full((len(tensors),), std, dtype=torch.float64, device="cpu")
    if not tensors:
        return torch.empty(0, dtype=torch.float64, device="cpu")
    scale = ops.rms(tensors) * call.strategy.rel_std
    if not bool(scale.isfinite().all()):
        first = call.parameters.names[int((~scale.isfinite()).nonzero()[0])]
        raise ValueError(
            f"perturb_: rel_std must meet a finite root mean square, got parameter {first!r} with "
            "a NaN or an infinity"
        )
    return scale


def _run(call: Call, scale: Tensor, allow_overflow: bool) -> Tensor:
    strategy, parameters = call.strategy, call.parameters
    if not parameters.tensors:
        return torch.zeros(0, len(Stat), dtype=torch.int64, device="cpu")
    drawn = (scale, call.rng, call.k, call.per_tensor)
    written = (strategy.noise, strategy.mode, allow_overflow, parameters.layout)
    if isinstance(strategy, TopK):
        ranked = (call.score_kind, strategy.nan)
        return ops.topk_perturb_(parameters.tensors, call.scores, *drawn, *ranked, *written)
    return ops.randomk_perturb_(parameters.tensors, *drawn, *written, parameters.numel)


def _refuse_overflow(parameters: Parameters, stats: Tensor) -> None:
    counts = stats[:, Stat.OVERFLOW].tolist()
    if any(counts):
        pairs = zip(parameters.names, parameters.tensors, counts, strict=True)
        name, tensor, count = next(pair for pair in pairs if pair[2])
        raise ValueError(
            f"perturb_: noise must leave {tensor.dtype} weights finite, got {sum(counts)} that "
            f"overflow, {count} of them in {name!r}; allow_overflow=True accepts them"
        )


def _receipt(call: Call, scale: Tensor, stats: Tensor, keep_seed: bool) -> Receipt:
    parameters = call.parameters
    rows, scales = stats.tolist(), scale.tolist()
    kind = "topk_perturb_" if isinstance(call.strategy, TopK) else "randomk_perturb_"
    device = parameters.tensors[0].device if parameters.tensors else torch.device("cpu")
    ties = [(row[Stat.TIES], row[Stat.TIES_TAKEN]) for row in rows]
    ties = ties if call.per_tensor else ties[:1]
    threshold = threshold_of(call.strategy, stats)
    return Receipt(
        version=__version__,
        op="perturb_",
        backend=backend_of(kind, device),
        device=str(device),
        strategy=call.strategy.to_dict(),
        n=parameters.numel,
        k=sum(call.k),
        count=sum(row[Stat.SELECTED] for row in rows),
        threshold=None if isinstance(threshold, tuple) else threshold,
        ties=sum(total for total, _ in ties),
        ties_taken=sum(taken for _, taken in ties),
        overflow=sum(row[Stat.OVERFLOW] for row in rows),
        unchanged=sum(row[Stat.UNCHANGED] for row in rows),
        tensors=tuple(
            TensorReceipt(
                name=name,
                shape=tuple(tensor.shape),
                dtype=str(tensor.dtype).removeprefix("torch."),
                selected=row[Stat.SELECTED],
                scale=std,
                threshold=key_to_score(row[Stat.THRESHOLD]),
            )
            for name, tensor, row, std in zip(
                parameters.names, parameters.tensors, rows, scales, strict=True
            )
        ),
        seed_commitment=seed_commitment(call.seed),
        seed=call.seed if keep_seed else None,
        step=call.step,
    )


class Perturber:
    """Perturbs like an optimizer steps: call `step()` after `backward()`.

    Every step uses the same seed and the next step number, so its noise is its own.

    Args:
        target, strategy, seed, allow_overflow, missing_grad, keep_seed: see `perturb_`. An iterator
            is read once.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(8, 8)
        >>> perturber = Perturber(model.parameters(), TopK(4), seed=1)
        >>> for _ in range(2):
        ...     model.zero_grad()
        ...     model(torch.ones(1, 8)).sum().backward()
        ...     receipt = perturber.step()
        >>> receipt.step, receipt.count
        (1, 4)
    """

    def __init__(
        self,
        target: Target,
        strategy: Strategy,
        *,
        seed: int | None = None,
        allow_overflow: bool = False,
        missing_grad: MissingGrad = "error",
        keep_seed: bool = False,
    ) -> None:
        iterator = not isinstance(target, (torch.nn.Module, Mapping, Tensor))
        self.target: Target = list(cast(Iterable[Tensor], target)) if iterator else target
        self.strategy = strategy
        self.seed = secrets.randbits(64) if seed is None else seed
        self.steps_done = 0
        self.allow_overflow = allow_overflow
        self.missing_grad: MissingGrad = missing_grad
        self.keep_seed = keep_seed

    def step(self, scores: Scores | None = None) -> Receipt:
        """Perturb once; returns the receipt of this step.

        A refused step may be tried again under its number. An interrupt arrives after the writes,
        so then the number counts as used.
        """
        step = self.steps_done
        self.steps_done += 1
        try:
            return perturb_(
                self.target,
                self.strategy,
                scores=scores,
                seed=self.seed,
                step=step,
                allow_overflow=self.allow_overflow,
                missing_grad=self.missing_grad,
                keep_seed=self.keep_seed,
            )
        except (TypeError, ValueError):
            self.steps_done = step
            raise
