"""Perturb the selected parameters in place."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from fastunlearn._ops import Stat, backend_of, ops
from fastunlearn._version import __version__
from fastunlearn.journal import Entry, after_step, before_step, undo
from fastunlearn.receipt import Receipt, TensorReceipt, key_to_score, seed_commitment
from fastunlearn.selection import Call, Tally, refuse_nan, select, tally
from fastunlearn.strategies import Strategy, TopK
from fastunlearn.targets import MissingGrad, Parameters, Scores, Target, resolve, shortcut


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
    a refused call leaves every bit as it was; only an overflow may be found after writing, and is
    then taken back. Under `torch.compile` it breaks the graph; the operations
    `torch.ops.fastunlearn.topk_perturb_` and `randomk_perturb_` compile.

    On a GPU the call returns without waiting for the device. What only the data can tell (NaN
    scores, a weight that would overflow, a root mean square that is not finite) still makes it
    write nothing, but is raised when the receipt is first looked at: `perturb_(...).check()` raises
    it at once. A receipt that nobody looks at tells nobody.

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
    scale = scale_of(call)
    account = Account(call.parameters, scale, _run(call, scale, allow_overflow), allow_overflow)
    if not account.late:
        account.settle()
    return receipt_of(call, account, keep_seed)


def scale_of(call: Call) -> Tensor:
    """Standard deviation of the noise in each tensor: float64, shape (number of tensors,)."""
    tensors = call.parameters.tensors
    if call.strategy.rel_std is None:
        std = cast(float, call.strategy.std)
        scale = shortcut("filled")(len(tensors), std)
        if scale is None:
            scale = torch.full((len(tensors),), std, dtype=torch.float64, device="cpu")
        return scale
    if not tensors:
        return torch.empty(0, dtype=torch.float64, device="cpu")
    scale = ops.rms(tensors) * call.strategy.rel_std
    if not _is_late(scale):
        _refuse_scale(call.parameters.names, scale)
    return scale


def _is_late(result: Tensor) -> bool:
    """Whether to look at a result of an operation means to wait for the device."""
    return result.is_cuda


def _run(call: Call, scale: Tensor, allow_overflow: bool) -> Tensor:
    strategy, parameters = call.strategy, call.parameters
    if not parameters.tensors:
        return torch.zeros(0, len(Stat), dtype=torch.int64, device="cpu")
    drawn = (scale, call.rng, call.k, call.per_tensor)
    written = (strategy.noise, strategy.update, allow_overflow, parameters.layout)
    if isinstance(strategy, TopK):
        ranked = (call.score_kind, strategy.nan)
        tensors = (parameters.tensors, call.scores)
        return _dispatch("topk_perturb_", *tensors, *drawn, *ranked, *written)
    return _dispatch("randomk_perturb_", parameters.tensors, *drawn, *written, parameters.numel)


def _dispatch(name: str, *arguments: Any) -> Tensor:
    stats = shortcut(name)(*arguments)
    return getattr(ops, name)(*arguments) if stats is None else stats


def _refuse_scale(names: Sequence[str], scale: Tensor) -> None:
    if not bool(scale.isfinite().all()):
        first = names[int((~scale.isfinite()).nonzero()[0])]
        raise ValueError(
            f"perturb_: rel_std must meet a finite root mean square, got parameter {first!r} with "
            "a NaN or an infinity"
        )


class Account:
    """What a call leaves to be told of: no tensor of the caller's, and no seed.

    Attributes:
        late: whether scale and statistics lie on a device that may still be at work; otherwise
            `settle` was called.
    """

    def __init__(
        self, parameters: Parameters, scale: Tensor, stats: Tensor, allow_overflow: bool
    ) -> None:
        self.names, self.shapes = parameters.names, parameters.shapes
        self.dtypes = parameters.dtypes
        self.scale, self.stats = scale, stats
        self.allow_overflow = allow_overflow
        self.late = _is_late(stats)
        self.stream = torch.cuda.current_stream(stats.device) if stats.is_cuda else None
        self.total: Tally | None = None

    def settle(self) -> Tally:
        """Read the statistics, once.

        Raises:
            ValueError: the call met something that it refuses, and has written nothing; each time.
        """
        if self.total is not None:
            return self.total
        if self.late:
            # on the stream of the call, which the reader's need not wait for
            with torch.cuda.stream(self.stream) if self.stream else nullcontext():
                self.scale, self.stats = self.scale.cpu(), self.stats.cpu()
            _refuse_scale(self.names, self.scale)
        total = tally(self.stats)
        refuse_nan("perturb_", self.names, self.stats, total)
        if not self.allow_overflow and total.sums[Stat.OVERFLOW]:
            self._refuse_overflow()
        self.total = total
        return total

    def _refuse_overflow(self) -> None:
        counts = self.stats[:, Stat.OVERFLOW].tolist()
        triples = zip(self.names, self.dtypes, counts, strict=True)
        name, dtype, count = next(triple for triple in triples if triple[2])
        raise ValueError(
            f"perturb_: noise must leave {dtype} weights finite, got {sum(counts)} that "
            f"overflow, {count} of them in {name!r}; allow_overflow=True accepts them"
        )

    def entries(self) -> tuple[TensorReceipt, ...]:
        """The receipt's account of each tensor."""
        self.settle()
        described = zip(self.names, self.shapes, self.dtypes, strict=True)
        found = zip(self.scale.tolist(), self.stats.tolist(), strict=True)
        return tuple(
            TensorReceipt(
                name=name,
                shape=shape,
                dtype=str(dtype).removeprefix("torch."),
                selected=row[Stat.SELECTED],
                scale=std,
                threshold=key_to_score(row[Stat.THRESHOLD]),
            )
            for (name, shape, dtype), (std, row) in zip(described, found, strict=True)
        )


def receipt_of(
    call: Call, account: Account, keep_seed: bool, *, count: int | None = None
) -> Receipt:
    """Tell what was done. The receipt keeps no tensor of the call, and the seed only on request.

    Args:
        call, account: what was asked for, and what came of it.
        keep_seed: see `perturb_`.
        count: elements selected; None where the account knows of all.
    """
    parameters = call.parameters
    device = parameters.tensors[0].device if parameters.tensors else torch.device("cpu")
    commitment = seed_commitment(call.seed)
    seed = call.seed if keep_seed else None
    size = (parameters.numel, sum(call.k), count)
    told = (call.strategy, device, size, account, commitment, seed, call.step)
    return Receipt.deferred(functools.partial(_totals, *told), account.entries)


def _totals(
    strategy: Strategy,
    device: torch.device,
    size: tuple[int, int, int | None],
    account: Account,
    commitment: str,
    seed: int | None,
    step: int,
) -> dict[str, Any]:
    first, sums = account.settle()
    top_k = isinstance(strategy, TopK)
    shared = first if strategy.scope == "global" else []
    ties = shared or sums
    return {
        "version": __version__,
        "op": "perturb_",
        "backend": backend_of("topk_perturb_" if top_k else "randomk_perturb_", device),
        "device": str(device),
        "strategy": strategy.to_dict(),
        "n": size[0],
        "k": size[1],
        "count": sums[Stat.SELECTED] if size[2] is None else size[2],
        "threshold": key_to_score(shared[Stat.THRESHOLD]) if shared and top_k else None,
        "ties": ties[Stat.TIES],
        "ties_taken": ties[Stat.TIES_TAKEN],
        "overflow": sums[Stat.OVERFLOW],
        "unchanged": sums[Stat.UNCHANGED],
        "seed_commitment": commitment,
        "seed": seed,
        "step": step,
    }


class Perturber:
    """Perturbs like an optimizer steps: call `step()` after `backward()`.

    Every step uses the same seed and the next step number, so its noise is its own.

    Args:
        target, strategy, seed, allow_overflow, missing_grad, keep_seed: see `perturb_`. An iterator
            is read once.
        journal: keep what each step overwrites, so that `undo` can put it back: K values and one
            bit for each element a step, and the time of a selection more.

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
        journal: bool = False,
    ) -> None:
        iterator = not isinstance(target, (torch.nn.Module, Mapping, Tensor))
        self.target: Target = list(cast(Iterable[Tensor], target)) if iterator else target
        self.strategy = strategy
        self.seed = secrets.randbits(64) if seed is None else seed
        self.steps_done = 0
        self.allow_overflow = allow_overflow
        self.missing_grad: MissingGrad = missing_grad
        self.keep_seed = keep_seed
        self.journal: list[Entry] | None = [] if journal else None

    def step(self, scores: Scores | None = None) -> Receipt:
        """Perturb once; returns the receipt of this step.

        A refused step may be tried again under its number. An interrupt arrives after the writes,
        so then the number counts as used; and so it does on a GPU, where a step may be refused
        after it has returned (see `perturb_`).
        """
        step = self.steps_done
        self.steps_done += 1
        try:
            entry = None if self.journal is None else self._before(scores, step)
            receipt = perturb_(
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
        if self.journal is not None and entry is not None:
            self.journal.append(after_step(entry))
        return receipt

    def undo(self) -> None:
        """Take the last step back: every bit is as before it, and its number is free again.

        Raises:
            RuntimeError: there is no step to undo, or a parameter was written to since, as by an
                optimizer; then nothing is changed.
        """
        if not self.journal:
            raise RuntimeError("undo: there must be a step of a journal=True Perturber, got none")
        self.steps_done = undo(self.journal)

    def _before(self, scores: Scores | None, step: int) -> Entry:
        how: dict[str, Any] = {"scores": scores, "missing_grad": self.missing_grad}
        selection = select(self.target, self.strategy, seed=self.seed, step=step, **how)
        parameters = resolve("perturb_", self.target, self.strategy)
        named = dict(zip(parameters.names, parameters.tensors, strict=True))
        return before_step(step, named, selection)
