"""Unlearning end to end: score the forget set, perturb, repair."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastunlearn._finetune import exchange_states, prepare_repair, reference_copy
from fastunlearn._loop import (
    Batches,
    ForwardFn,
    LossFn,
    ProgressHook,
    default_forward,
    forked_rng,
    progress_hook,
    trainable_parameters,
)
from fastunlearn.perturb import perturb_
from fastunlearn.receipt import Receipt
from fastunlearn.repair import Repair, RepairOutcome
from fastunlearn.scores import score
from fastunlearn.selection import Selection, select
from fastunlearn.strategies import RandomK, TopK

__all__ = ["Result", "unlearn"]


@dataclass(frozen=True, eq=False)
class Result:
    """What `unlearn` did.

    Attributes:
        model: The unlearned model, the same object that was given.
        receipt: What the perturbation did.
        strategy: The strategy that was used.
        repair: The repair that was asked for, or None.
        selection: The selected parameters of a masked repair, else None.
        history: One dict per repair epoch: epoch, steps, loss, task_loss, divergence (None without
            distillation). Free of times, so that the same seed gives the same history.
        teacher_history: The same of the steps that a perturbed teacher took before it taught.
        stopped: Why the repair ended (``"epochs"``, ``"max_steps"``, ``"patience"``,
            ``"stop_when"``, ``"nothing selected"``), or None without repair.
        timings: Seconds of ``score``, ``perturb`` (with the selection), ``repair`` (with the copy
            of the original model, the trial step and the teacher's own steps) and ``total``.
        epoch_seconds: Seconds of each repair epoch.
    """

    model: nn.Module
    receipt: Receipt
    strategy: TopK | RandomK
    repair: Repair | None
    selection: Selection | None
    history: list[dict[str, Any]]
    teacher_history: list[dict[str, Any]]
    stopped: str | None
    timings: dict[str, float]
    epoch_seconds: list[float]

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the model and the selection as JSON-able values."""
        return {
            "strategy": self.strategy.to_dict(),
            "repair": None if self.repair is None else self.repair.to_dict(),
            "receipt": self.receipt.to_dict(),
            "history": [dict(entry) for entry in self.history],
            "teacher_history": [dict(entry) for entry in self.teacher_history],
            "stopped": self.stopped,
            "timings": dict(self.timings),
            "epoch_seconds": list(self.epoch_seconds),
        }


def unlearn(
    model: nn.Module,
    strategy: TopK | RandomK,
    *,
    forget: Iterable[Any],
    loss_fn: LossFn,
    retain: Iterable[Any] | None = None,
    repair: Repair | None = Repair(),
    scores: Mapping[str, Tensor] | Sequence[Tensor] | None = None,
    seed: int | None = None,
    forward_fn: ForwardFn | None = None,
    score_dtype: torch.dtype = torch.float32,
    keep_seed: bool = False,
    allow_overflow: bool = False,
    progress: bool | ProgressHook = False,
) -> Result:
    """Unlearn a forget set in place: score it, perturb what matters for it, repair the rest.

    The flat index space holds the parameters with ``requires_grad``, in ``named_parameters()``
    order, tied ones once; frozen parameters are neither counted nor changed.

    Before the first write the arguments, the selection and the repair are checked: its optimiser
    and scheduler are built, and the first batch of each loader that it reads goes forward once,
    which leaves parameters, ``.grad``, buffers, training flags and torch's global generators alone.
    A refusal there leaves the model bit-unchanged. What can still raise later, with the parameters
    perturbed and perhaps partly repaired: a loss that diverges; the caller's own code (loaders past
    the first batch, ``forward_fn``, ``loss_fn``, optimiser, scheduler, ``stop_when``, progress
    hook), or what it returns for another batch than the first; a backward; running out of memory.

    The same seed, loaders and starting point give the same bits wherever the model's own kernels
    are deterministic: torch's global generators are seeded from ``seed`` for the whole call (this
    rules dropout, and loaders that shuffle without a generator of their own) and put back
    afterwards. A loader with its own generator, or augmentation by numpy, is the caller's to seed.
    Before the repair begins, each loader that it reads has been opened exactly once whatever the
    strategy: for the scores, or else for its first batch, which moves such a generator on.

    Training flags and ``.grad`` are as before afterwards. Buffers stay as they are without repair
    and with a masked one; a plain repair lets batch-norm statistics follow the retain set. Ctrl-C
    leaves a usable model, with flags and ``.grad`` put back: the original one during scoring, the
    perturbed and partly repaired one later (an interrupted masked repair is still a sparse patch;
    with a perturbed teacher it is the original one, partly repaired, and bit-unchanged where the
    teacher's own steps were stopped or diverged).

    Peak memory on top of the model: one score buffer per parameter while scoring and perturbing;
    a copy of the trainable parameters and the buffers for ``repair.distill > 0``; the optimiser's
    state; for a masked repair see `Repair`. A caller's autocast is supported; gradient scaling is
    not, so prefer bfloat16.

    Args:
        model: Any module, changed in place, on CPU or CUDA.
        strategy: What to select and how to perturb it.
        forget: Loader of the forget set D_u; read once for the scores (not for `RandomK`, the
            ``weight`` score or given ``scores``) and again and again for distillation.
        loss_fn: ``loss_fn(outputs, targets)`` -> 0-dim mean loss over the batch.
        retain: Loader of the retain set D_r; needed for repair and for the ``ratio`` score.
        repair: How to repair, or None for the perturbation alone.
        scores: Final scores instead of computed ones, as for ``perturb_``: by name or in order.
        seed: Seed of the noise, the random selection and torch's generators, in [0, 2^64). Absent:
            drawn from the operating system.
        forward_fn: ``forward_fn(model, batch)`` -> (outputs, targets), for any batch structure.
            It must leave the batch as it is, which goes forward more than once. With distillation
            the outputs must be logits of shape (batch, ..., classes).
        score_dtype: Floating dtype in which scores are accumulated.
        keep_seed: Keep the seed in the receipt. Whoever has it can subtract the noise.
        allow_overflow: Accept weights that the noise pushes to infinity.
        progress: True for a progress bar on stderr, or a hook ``(phase, done, total)``.

    Returns:
        The result; its ``model`` is the one given.

    Raises:
        TypeError: If an argument has the wrong type; loaders must be re-iterable (a `DataLoader`
            or a list of batches).
        ValueError: If ``retain`` is missing, a loader is empty, ``seed`` is out of range, or
            outputs to distil have fewer than 2 classes; also whatever `score` and ``perturb_``
            raise.
        FloatingPointError: If the repair diverges; the model is then beyond use, unless it was the
            teacher that diverged.

    Example:
        >>> import torch
        >>> from fastunlearn.strategies import TopK
        >>> from fastunlearn.unlearn import unlearn
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(4, 3)
        >>> x, y = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
        >>> result = unlearn(model, TopK(0.2, std=0.1), forget=[(x[:2], y[:2])],
        ...                  retain=[(x[2:], y[2:])], loss_fn=torch.nn.functional.cross_entropy,
        ...                  seed=0)
        >>> result.receipt.count, len(result.history), result.stopped
        (3, 1, 'epochs')

    Source:
        Zuo et al., IEEE TKDE 37(4), 2025, as re-implemented by TrajMU, KDD 2026.
    """
    target = list(trainable_parameters(model, "unlearn").items())
    _check_unlearn(strategy, forget, loss_fn, retain, repair, scores, seed)
    seed = secrets.randbits(64) if seed is None else seed
    data: dict[str, Any] = {"forget": Batches(forget, "forget"), "loss_fn": loss_fn}
    data["retain"] = None if retain is None else Batches(retain, "retain")
    data["forward_fn"] = default_forward if forward_fn is None else forward_fn
    clock = _Clock(model)
    with torch.inference_mode(False), _seeded(seed), progress_hook(progress) as hook:
        if isinstance(strategy, TopK) and scores is None:
            how: dict[str, Any] = {"kind": strategy.score, "dtype": score_dtype, "progress": hook}
            how |= {"retain": data["retain"], "forward_fn": data["forward_fn"]}
            scores = score(model, data["forget"], loss_fn, **how)
        clock.lap("score")
        options: dict[str, Any] = {"scores": scores, "seed": seed}
        masked = repair is not None and repair.masked
        selection = select(target, strategy, **options) if masked else None
        clock.lap("perturb")
        reference = None if repair is None or repair.distill == 0 else reference_copy(model)
        start = None
        if repair is not None:
            masks = None if selection is None else selection.masks()
            start = _prepare(model, repair, reference, {**data, "masks": masks})
        clock.lap("repair")
        options |= {"keep_seed": keep_seed, "allow_overflow": allow_overflow}
        receipt = perturb_(target, strategy, **options).check()  # before any repair
        del scores, options  # a model's worth of memory that the repair can use
        clock.lap("perturb")
        lesson, outcome = (None, None) if start is None else start(hook)
        clock.lap("repair")
    return Result(
        model=model,
        receipt=receipt,
        strategy=strategy,
        repair=repair,
        selection=selection,
        history=[] if outcome is None else outcome.history,
        teacher_history=[] if lesson is None else lesson.history,
        stopped=None if outcome is None else outcome.stopped,
        timings={**clock.seconds, "total": sum(clock.seconds.values())},
        epoch_seconds=[] if outcome is None else outcome.seconds,
    )


def _prepare(
    model: nn.Module, repair: Repair, reference: nn.Module | None, data: dict[str, Any]
) -> Callable[[ProgressHook], tuple[RepairOutcome | None, RepairOutcome]]:
    """Get a repair ready, and before it the teacher's own steps where there are any.

    Args:
        model: To be perturbed before the repair is called.
        repair: What to do.
        reference: See `prepare_repair`.
        data: Its other arguments.

    Returns:
        The repair, to be called once; it returns the outcome of the teacher's steps, if any, and
        its own.
    """
    data = {**data, "reference": reference}
    start, taught = prepare_repair(model, repair, **data), repair.of_teacher()
    teach = None if taught is None else prepare_repair(model, taught, **data, trial=False)

    def run(hook: ProgressHook) -> tuple[RepairOutcome | None, RepairOutcome]:
        nonlocal teach
        lesson = None
        try:
            if teach is not None:
                lesson = teach(lambda _, done, total: hook("teacher", done, total))
        finally:  # stopped half-way, a lesson leaves the original model as it was
            teach = None  # its optimiser's state is a multiple of the model
            if repair.teacher == "perturbed":
                assert reference is not None  # such a repair distils
                exchange_states(model, reference)
        return lesson, start(hook)

    return run


class _Clock:
    """Wall time per phase; waits for the model's CUDA devices so that a phase owns its kernels."""

    def __init__(self, model: nn.Module) -> None:
        """Start."""
        self._devices = {p.device for p in model.parameters() if p.is_cuda}
        self.seconds = {"score": 0.0, "perturb": 0.0, "repair": 0.0}
        self._last = self._now()

    def lap(self, phase: str) -> None:
        """Add the time since the last lap to a phase."""
        now = self._now()
        self.seconds[phase] += now - self._last
        self._last = now

    def _now(self) -> float:
        for device in self._devices:
            torch.cuda.synchronize(device)
        return time.perf_counter()


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's generators for the block and put them back; drop autocast's stale weights.

    The generators get a hash of the seed: CUDA's is Philox too, and the same key would make dropout
    masks and noise draw on the same words.
    """
    digest = hashlib.sha256(b"fastunlearn.unlearn:" + str(seed).encode()).digest()
    with forked_rng():
        torch.manual_seed(int.from_bytes(digest[:8], "little"))
        try:
            yield
        finally:
            torch.clear_autocast_cache()


def _check_unlearn(
    strategy: object,
    forget: object,
    loss_fn: object,
    retain: object,
    repair: object,
    scores: object,
    seed: object,
) -> None:
    """Validate what `unlearn` was given, before anything runs."""
    if not isinstance(strategy, (TopK, RandomK)):
        got = type(strategy).__name__
        raise TypeError(f"unlearn: strategy must be a TopK or a RandomK, got {got}")
    if repair is not None and not isinstance(repair, Repair):
        got = type(repair).__name__
        raise TypeError(f"unlearn: repair must be a Repair or None, got {got}")
    if repair is not None and retain is None:
        raise ValueError("unlearn: retain must be a loader for repair (or repair None), got None")
    if isinstance(strategy, RandomK) and scores is not None:
        got = type(scores).__name__
        raise ValueError(f"unlearn: scores must be None for a RandomK, got {got}")
    for name, loader in (("forget", forget), ("retain", retain)):
        if loader is None and name == "retain":
            continue
        if not isinstance(loader, Iterable) or isinstance(loader, Iterator):
            raise TypeError(
                f"unlearn: {name} must be re-iterable (a DataLoader or a list of batches), "
                f"got {type(loader).__name__}"
            )
    if not callable(loss_fn):
        raise TypeError(f"unlearn: loss_fn must be callable, got {type(loss_fn).__name__}")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise TypeError(f"unlearn: seed must be an int, got {type(seed).__name__}")
    if isinstance(seed, int) and not 0 <= seed < 2**64:
        raise ValueError(f"unlearn: seed must be in [0, 2^64), got {seed}")
