"""Top-K by gradients that are never stored: two backward passes instead of one."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from fastunlearn import _extension
from fastunlearn._loop import forked_rng
from fastunlearn._ops import Stat, ops
from fastunlearn.overflow import cannot_overflow
from fastunlearn.perturb import Account, receipt_of, scale_of
from fastunlearn.receipt import Receipt
from fastunlearn.reference import ops as reference
from fastunlearn.reference.keys import KeySource
from fastunlearn.reference.memory import Piece
from fastunlearn.selection import Call, check_range, unpacked
from fastunlearn.strategies import TopK
from fastunlearn.targets import Target, resolve

__all__ = ["perturb_by_passes_"]

_OP = "perturb_by_passes_"
_SHIFT, _BINS = 15, 1 << 16  # the upper 16 bits of a key


def perturb_by_passes_(
    target: Target,
    strategy: TopK,
    backward: Callable[[], object],
    *,
    seed: int | None = None,
    step: int = 0,
    allow_overflow: bool = False,
    keep_seed: bool = False,
) -> Receipt:
    """Perturb by the gradient that `backward` gives, without ever holding all of it, in place.

    Gives the bits of `backward()` and then `fastunlearn.perturb_`. Each gradient is counted and
    dropped as soon as it is there (`Tensor.register_post_accumulate_grad_hook`): the first pass
    finds the bin of the upper 16 key bits that holds the cut, the second marks what lies above it
    and keeps the elements in this bin, which then decide the cut to the bit. All or nothing: both
    passes are compared, and nothing is written before they are over.

    Beside the parameters and the activations it holds one gradient at a time (and a copy of the
    largest in 32 bits), one bit for each parameter, and 12 bytes for each element of the bin, which
    are less than a hundredth of them unless many gradients are equal. It takes the time of two
    backward passes: `perturb_` is faster where gradients fit. Freeze parameters that do not take
    part, or theirs are stored.

    The random state is put back between the passes, so dropout draws the same masks. What else
    changes with a forward pass changes twice, such as batch-norm statistics in training mode.

    Args:
        target: module, mapping, or iterable of parameters or of (name, parameter) pairs, each a
            leaf that requires a gradient, has none yet, and gets one; on the CPU or on one GPU.
        strategy: Top-K of the scope "global" with the score "grad", "fisher" or "taylor".
        backward: runs forward and backward of one batch, and does the same each time. It is called
            twice, and must call `backward` of a tensor once.
        seed, step, allow_overflow, keep_seed: see `perturb_`.

    Raises:
        TypeError: the target holds something that is no dense floating-point tensor.
        ValueError: the passes differ, a parameter got no gradient, or more than one; a NaN score;
            or whatever `perturb_` refuses. Nothing was written.

    Example:
        >>> import torch
        >>> from fastunlearn.passes import perturb_by_passes_
        >>> from fastunlearn.strategies import TopK
        >>> model, x = torch.nn.Linear(100, 10), torch.randn(4, 100)
        >>> receipt = perturb_by_passes_(
        ...     model, TopK(0.01), lambda: model(x).square().mean().backward(), seed=0)
        >>> receipt.count, model.weight.grad
        (10, None)
    """
    call = _prepare(target, strategy, seed, step)
    first = _Counts(call)
    with forked_rng(), first.watching():
        backward()
    first.check(None)
    place, above = _bin_of(first.total, call.k[0])
    marks = _Marks(call, place)
    with marks.watching():
        backward()
    marks.check(first)
    return marks.write(above, allow_overflow, keep_seed)


def _prepare(target: Target, strategy: TopK, seed: int | None, step: int) -> Call:
    if not isinstance(strategy, TopK):
        raise TypeError(f"{_OP}: strategy must be a TopK, got {strategy!r}")
    if strategy.scope != "global":
        raise ValueError(f"{_OP}: strategy must have the scope 'global', got {strategy.scope!r}")
    if strategy.score not in ("grad", "fisher", "taylor"):
        raise ValueError(
            f"{_OP}: strategy must have the score grad, fisher or taylor, got {strategy.score!r}"
        )
    if not isinstance(target, (torch.nn.Module, Mapping, Tensor)):
        target = list(target)
    _extension.warn_once()
    parameters = resolve(_OP, target, strategy)
    for name, tensor in zip(parameters.names, parameters.tensors, strict=True):
        if not (tensor.is_leaf and tensor.requires_grad):
            raise ValueError(f"{_OP}: parameter {name!r} must be a leaf that requires a gradient")
        if tensor.grad is not None:
            raise ValueError(f"{_OP}: parameter {name!r} must have no .grad yet; clear it first")
    seed = check_range(_OP, "seed", secrets.randbits(64) if seed is None else seed, 64)
    counts = parameters.counts(strategy)
    return Call(
        strategy, parameters, [], strategy.score, counts, seed, check_range(_OP, "step", step, 32)
    )


def _bin_of(total: Tensor, k: int) -> tuple[int, int]:
    """Return the bin that holds the K-th greatest key, and the number of keys in bins above it."""
    upper = total.flip(0).cumsum(0).flip(0) - total
    place = int((upper < max(k, 1)).int().argmax())  # the lowest such bin
    return place, int(upper[place])


class _Counts:
    """The first pass: a histogram of keys.

    Attributes:
        total: int64, shape (_BINS,), on the CPU.
        refused: number of NaN scores met by each parameter, where they are an error.
        met: how often each parameter got a gradient.
    """

    def __init__(self, call: Call) -> None:
        self.call, self.strategy = call, call.strategy
        self.tensors = call.parameters.tensors
        self.total = torch.zeros(_BINS, dtype=torch.int64)
        self.refused = [0] * len(self.tensors)
        self.met = [0] * len(self.tensors)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Take each gradient as it comes."""
        hooks = [
            tensor.register_post_accumulate_grad_hook(lambda tensor, at=at: self._meet(at, tensor))
            for at, tensor in enumerate(self.tensors)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for tensor in self.tensors:
                tensor.grad = None

    @torch.no_grad()
    def _meet(self, at: int, tensor: Tensor) -> None:
        gradient, tensor.grad = tensor.grad, None
        assert gradient is not None  # or the hook would not have been called
        self.met[at] += 1
        self._take(at, tensor.detach(), gradient)

    def _take(self, at: int, weight: Tensor, gradient: Tensor) -> Tensor:
        """Count the keys of one parameter; returns its own histogram."""
        ranked = ([weight], [gradient], self.call.score_kind, self._nan, [0], [0])
        found = ops.key_histogram(*ranked, _SHIFT, _BINS)[0].cpu()
        self.total += found[:_BINS]
        self.refused[at] += int(found[_BINS])
        return found[:_BINS]

    @property
    def _nan(self) -> str:
        assert isinstance(self.strategy, TopK)
        return self.strategy.nan

    def check(self, before: _Counts | None) -> None:
        """Refuse what was met, and what is not as in the pass before."""
        names = self.call.parameters.names
        absent = [name for name, count in zip(names, self.met, strict=True) if not count]
        if absent:
            raise ValueError(
                f"{_OP}: every parameter must get a gradient, got none for {', '.join(absent)}"
            )
        if max(self.met, default=0) > 1:
            raise ValueError(f"{_OP}: backward must run one backward pass, got {max(self.met)}")
        if any(self.refused):
            first = next(n for n, count in zip(names, self.refused, strict=True) if count)
            raise ValueError(
                f"{_OP}: scores must not be NaN, got {sum(self.refused)} NaN, the first in "
                f"{first!r}; nan='largest' or nan='smallest' accepts them"
            )
        if before is not None and not torch.equal(self.total, before.total):
            raise ValueError(
                f"{_OP}: backward must give the same gradients in both passes, got others"
            )


class _Candidates(NamedTuple):
    """Elements of one parameter in the bin of the cut: local numbers and keys, ascending."""

    local: Tensor
    keys: Tensor


class _Marks(_Counts):
    """The second pass: marks what lies in the bin of the cut or above it, and then writes.

    Args:
        call: what was asked for.
        place: the bin of the cut.
    """

    def __init__(self, call: Call, place: int) -> None:
        super().__init__(call)
        self.place = place
        self.packed: list[Tensor] = [torch.empty(0)] * len(self.tensors)
        self.counts = [0] * len(self.tensors)
        self.candidates = [_Candidates(torch.empty(0), torch.empty(0))] * len(self.tensors)

    def _take(self, at: int, weight: Tensor, gradient: Tensor) -> Tensor:
        found = super()._take(at, weight, gradient)
        kind, nan = self.call.score_kind, self._nan
        self.counts[at] = int(found[self.place :].sum())
        row = max(weight.numel(), 1)
        ranked = ([weight], [gradient], [self.counts[at]], False, kind, nan, [0, row, row])
        self.packed[at] = ops.topk_select(*ranked)[0][0]
        source = KeySource([weight], [gradient], kind, nan)
        local, keys = [], []
        for start in range(0, weight.numel(), 1 << 20):
            piece = Piece(0, start, min(start + (1 << 20), weight.numel()))
            own = source.piece(piece)
            hits = (own >> _SHIFT == self.place).nonzero().squeeze(1)
            local.append((hits + start).cpu())
            keys.append(own[hits].cpu())
        empty = torch.empty(0, dtype=torch.int64)
        self.candidates[at] = _Candidates(
            torch.cat([empty, *local]), torch.cat([empty.int(), *keys])
        )
        return found

    def write(self, above: int, allow_overflow: bool, keep_seed: bool) -> Receipt:
        """Settle the cut and perturb, parameter by parameter."""
        call, parameters = self.call, self.call.parameters
        key, ties, taken = self._settle(call.k[0] - above)
        scale = scale_of(call)
        if not allow_overflow and not cannot_overflow(parameters.tensors, scale, self._mode):
            count = sum(int(self._apply(at, scale, check=True).sum()) for at in self._all)
            if count:
                raise ValueError(
                    f"{_OP}: noise must leave weights finite, got {count} that overflow; "
                    "allow_overflow=True accepts them"
                )
        stats = torch.zeros(len(parameters.names), len(Stat), dtype=torch.int64)
        for at in self._all:
            stats[at] = self._apply(at, scale, check=False)[0].cpu()
        for stat, value in zip((Stat.THRESHOLD, Stat.TIES, Stat.TIES_TAKEN), (key, ties, taken),
                               strict=True):  # fmt: skip
            stats[:, stat] = value
        account = Account(parameters, scale.cpu(), stats, True)
        account.settle()
        return receipt_of(call, account, keep_seed)

    @property
    def _all(self) -> Sequence[int]:
        return range(len(self.tensors))

    @property
    def _mode(self) -> str:
        return self.strategy.mode

    def _settle(self, need: int) -> tuple[int, int, int]:
        """Unmark the candidates that are not among the greatest `need`.

        Returns:
            Key of the threshold (-1 where nothing is selected), number of elements that have it,
            and how many of these are taken.
        """
        k = self.call.k[0]
        sizes = [len(found.keys) for found in self.candidates]
        keys = torch.cat([torch.empty(0, dtype=torch.int32), *(c.keys for c in self.candidates)])
        # stable: those with one key stay in the order of their flat indices
        order = keys.sort(descending=True, stable=True).indices if k else torch.empty(0).long()
        out = torch.ones(len(keys), dtype=torch.bool)
        out[order[:need]] = False
        for at, (found, drop) in enumerate(zip(self.candidates, out.split(sizes), strict=True)):
            local = found.local[drop].to(self.packed[at].device)
            bit = torch.bitwise_left_shift(torch.ones_like(local), local & 7).to(torch.uint8)
            self.packed[at].index_add_(0, local >> 3, bit.neg())  # each is set: takes it back
            self.counts[at] -= len(local)
        if not k:
            return -1, 0, 0
        key = int(keys[order[need - 1]])
        at_cut = keys == key
        return key, int(at_cut.sum()), int((at_cut & ~out).sum())

    @torch.no_grad()
    def _apply(self, at: int, scale: Tensor, *, check: bool) -> Tensor:
        """Perturb the marked elements of one parameter, or count those that would overflow."""
        weight, parameters = self.tensors[at].detach(), self.call.parameters
        if not self.counts[at]:
            return torch.zeros(1, 1 if check else len(Stat), dtype=torch.int64)
        marks = unpacked(self.packed[at], weight.shape).to(torch.bfloat16)
        chosen = ([weight], [marks], scale[at : at + 1], self.call.rng, [self.counts[at]], False)
        how = ("grad", "error", self.strategy.noise, self._mode)
        layout = list(parameters.layout[3 * at : 3 * at + 3])
        if check:
            return reference.topk_perturb_overflow(*chosen, *how, layout)
        return ops.topk_perturb_(*chosen, *how, True, layout)
