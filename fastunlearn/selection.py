"""Select parameters without changing them."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from fastunlearn import _extension
from fastunlearn._ops import Stat, ops
from fastunlearn.receipt import key_to_score
from fastunlearn.strategies import Strategy, TopK
from fastunlearn.targets import (
    MissingGrad,
    Parameters,
    Scores,
    Target,
    match_scores,
    resolve,
    shortcut,
    with_gradients,
)


@dataclass(frozen=True)
class Selection:
    """A set of parameters, held as one bit for each element.

    Attributes:
        strategy: what was asked for.
        count: number of elements selected.
        counts: the same for each parameter, by name.
        threshold: smallest selected score (fp32). Under the scope "tensor" a tuple, one for each
            parameter, None where nothing is selected. None for Random-k and for K = 0.
    """

    strategy: Strategy
    count: int
    counts: dict[str, int]
    threshold: float | tuple[float | None, ...] | None
    _packed: dict[str, Tensor] = field(repr=False)
    _shapes: dict[str, torch.Size] = field(repr=False)

    def packed(self) -> dict[str, Tensor]:
        """One bit for each element, in logical row-major order, least significant bit first.

        Returns:
            For each parameter a uint8 tensor of shape (ceil(numel / 8),), as
            `numpy.packbits(mask, bitorder="little")` gives it. Unused bits are 0.
        """
        return dict(self._packed)

    def masks(self) -> dict[str, Tensor]:
        """For each parameter a bool tensor of its shape, True where selected."""
        return {name: self.mask(name) for name in self._packed}

    def mask(self, name: str) -> Tensor:
        """The mask of one parameter; so a caller need not hold all masks at once."""
        return unpacked(self._packed[name], self._shapes[name])

    def indices(self) -> Tensor:
        """Flat indices of the selected elements: int64, shape (count,), ascending."""
        base = 0
        found = [torch.empty(0, dtype=torch.int64, device="cpu")]
        for name, shape in self._shapes.items():
            local = self.mask(name).flatten().nonzero().squeeze(1)
            found.append(local.cpu() + base)
            base += shape.numel()
        return torch.cat(found)


def unpacked(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """The bool tensor of a shape whose elements are packed bits, see `Selection.packed`."""
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    bits = torch.bitwise_right_shift(packed.unsqueeze(1), shifts).bitwise_and_(1)
    return bits.flatten()[: math.prod(shape)].to(torch.bool).view(tuple(shape))


@_disable_dynamo
def select(
    target: Target,
    strategy: Strategy,
    *,
    scores: Scores | None = None,
    seed: int | None = None,
    step: int = 0,
    missing_grad: MissingGrad = "error",
) -> Selection:
    """Select the parameters that `perturb_` would change under the same arguments.

    Args:
        target: module, mapping, or iterable of parameters or of (name, parameter) pairs. fp32,
            fp64, bf16 or fp16; any strides; read only.
        strategy: `TopK` or `RandomK`.
        scores: final scores by name or in order, shaped like the parameters, any floating dtype;
            None takes each parameter's `.grad`. Not allowed for Random-k.
        seed: for Random-k, in [0, 2**64); None draws one from the operating system.
        step: for Random-k, in [0, 2**32): each step has a subset of its own.
        missing_grad: "error", or "skip" to leave out parameters without a gradient.

    Returns:
        The selection: exactly K elements. Ties go to the lowest flat index; the set is the same
        for every backend, thread count and split into tensors.

    Raises:
        TypeError, ValueError: as for `perturb_`.

    On a GPU it waits for the device, since it returns the counts.

    Example:
        >>> import torch
        >>> p = torch.nn.Parameter(torch.zeros(4))
        >>> p.grad = torch.tensor([0.5, -2.0, 2.0, 0.0])
        >>> selection = select([p], TopK(1))
        >>> selection.indices().tolist(), selection.threshold
        ([1], 2.0)

    `torch.topk(x.abs(), k)` is faster for a single small tensor, where its tie rule will do.
    """
    call = Call.prepare("select", target, strategy, scores, seed, step, missing_grad)
    parameters = call.parameters
    packed, found = _run_select(call)
    stats = found.cpu()
    refuse_nan(parameters.op, parameters.names, stats, tally(stats))
    counts = stats[:, Stat.SELECTED].tolist()
    return Selection(
        strategy=strategy,
        count=sum(counts),
        counts=dict(zip(parameters.names, counts, strict=True)),
        threshold=_threshold(strategy, stats[:, Stat.THRESHOLD].tolist()),
        _packed=dict(zip(parameters.names, packed, strict=True)),
        _shapes={n: t.shape for n, t in zip(parameters.names, parameters.tensors, strict=True)},
    )


def _run_select(call: Call) -> tuple[Sequence[Tensor], Tensor]:
    parameters = call.parameters
    if not parameters.tensors:
        return [], torch.zeros(0, len(Stat), dtype=torch.int64, device="cpu")
    if isinstance(call.strategy, TopK):
        return ops.topk_select(
            parameters.tensors,
            call.scores,
            call.k,
            call.per_tensor,
            call.score_kind,
            call.strategy.nan,
            parameters.layout,
        )
    return ops.randomk_select(
        parameters.tensors,
        call.rng,
        call.k,
        call.per_tensor,
        parameters.layout,
        parameters.numel,
    )


def _threshold(strategy: Strategy, keys: Sequence[int]) -> float | tuple[float | None, ...] | None:
    if not isinstance(strategy, TopK) or not keys:
        return None
    if strategy.scope == "tensor":
        return tuple(map(key_to_score, keys))
    return key_to_score(keys[0])


class Tally(NamedTuple):
    """Statistics of a whole call.

    Attributes:
        first: those of the first tensor, which are those of every tensor in the columns that tell
            of the selection problem where all share one; empty where there is no tensor.
        sums: over all tensors.
    """

    first: list[int]
    sums: list[int]


def tally(stats: Tensor) -> Tally:
    """Sum up the statistics of an operation, int64, shape (number of tensors, len(Stat))."""
    found = shortcut("tally")(stats)
    if found is not None:
        return Tally(*found)
    rows = stats.tolist()
    return Tally(rows[0] if rows else [], [sum(row[stat] for row in rows) for stat in Stat])


def refuse_nan(op: str, names: Sequence[str], stats: Tensor, total: Tally) -> None:
    """Raise if the operation met a NaN score that the strategy refuses."""
    if total.sums[Stat.NAN]:
        counts = stats[:, Stat.NAN].tolist()
        first = next(name for name, count in zip(names, counts, strict=True) if count)
        raise ValueError(
            f"{op}: scores must not be NaN, got {sum(counts)} NaN, the first in {first!r}; "
            "nan='largest' or nan='smallest' accepts them"
        )


class Call(NamedTuple):
    """A validated call of `select` or `perturb_`, in the terms of the operations."""

    strategy: Strategy
    parameters: Parameters
    scores: list[Tensor]
    score_kind: str
    k: list[int]
    seed: int
    step: int

    @staticmethod
    def prepare(
        op: str,
        target: Target,
        strategy: Strategy,
        scores: Scores | None,
        seed: int | None,
        step: int,
        missing_grad: MissingGrad,
    ) -> Call:
        """Check every argument and look up the scores."""
        if not isinstance(strategy, Strategy) or type(strategy) is Strategy:
            raise TypeError(f"{op}: strategy must be TopK or RandomK, got {strategy!r}")
        if missing_grad not in ("error", "skip"):
            raise ValueError(f"{op}: missing_grad must be 'error' or 'skip', got {missing_grad!r}")
        _extension.warn_once()
        parameters = resolve(op, target, strategy)
        parameters, found, kind = _look_up_scores(parameters, strategy, scores, missing_grad)
        return Call(
            strategy,
            parameters,
            found,
            kind,
            parameters.counts(strategy),
            check_range(op, "seed", secrets.randbits(64) if seed is None else seed, 64),
            check_range(op, "step", step, 32),
        )

    @property
    def per_tensor(self) -> bool:
        """Whether each tensor is a selection problem of its own."""
        return self.strategy.scope == "tensor"

    @property
    def rng(self) -> Tensor:
        """The op argument `rng`: seed and step, int64, the seed as two's complement."""
        pair = shortcut("rng_pair")(self.seed, self.step)
        if pair is not None:
            return pair
        seed = self.seed - (1 << 64) if self.seed >> 63 else self.seed
        return torch.tensor([seed, self.step], device="cpu")


def _look_up_scores(
    parameters: Parameters, strategy: Strategy, scores: Scores | None, missing_grad: MissingGrad
) -> tuple[Parameters, list[Tensor], str]:
    """The parameters that take part, their stored scores, and what the operation makes of these."""
    op = parameters.op
    if not isinstance(strategy, TopK):
        if scores is not None:
            raise ValueError(f"{op}: scores must be None for RandomK, got {type(scores)}")
        return parameters, [], ""
    if scores is not None:
        return parameters, match_scores(parameters, scores), "grad"
    if strategy.score == "weight":
        return parameters, parameters.tensors, "weight"
    if strategy.score in ("mas", "ratio"):
        raise ValueError(
            f"{op}: scores must be given for score={strategy.score!r} (see fastunlearn.score), "
            "got None"
        )
    return *with_gradients(parameters, missing_grad), strategy.score


def check_range(op: str, name: str, value: Any, bits: int) -> int:
    """Return an int of so many bits, or raise."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{op}: {name} must be an int, got {value!r}")
    if not 0 <= value < 1 << bits:
        raise ValueError(f"{op}: {name} must be in [0, 2**{bits}), got {value}")
    return value
