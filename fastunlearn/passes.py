"""Top-K by gradients that are never stored: two backward passes instead of one."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
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
from fastunlearn.reference.memory import CHUNK, Piece
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

    Beside the parameters and the activations it holds one gradient at a time (and a copy of a piece
    of it), two bits for each parameter, and two bytes for each element of the bin, which are less
    than a hundredth of them unless many gradients are equal. It takes the time of two backward
    passes: `perturb_` is faster where gradients fit. Freeze parameters that do not take part, or
    theirs are stored.

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
    place, above = place_of(first.total, call.k[0])
    marks = _Marks(call, place)
    with marks.watching():
        backward()
    marks.check(first)
    return marks.write(call.k[0] - above, allow_overflow, keep_seed)


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


def place_of(total: Tensor, k: int) -> tuple[int, int]:
    """Return the bin that holds the K-th greatest key, and the number of keys in bins above it.

    Args:
        total: counts by bin, int64, shape (bins,).
        k: at most their sum.
    """
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


class _Marked(NamedTuple):
    """What the second pass keeps of one parameter.

    Attributes:
        above, reached: its elements in bins above that of the cut, and also those in it: packed
            bits, see `Selection.packed`.
        lower: the lower bits of the keys of those in it, in logical order: int16.
    """

    above: Tensor
    reached: Tensor
    lower: Tensor


class _Marks(_Counts):
    """The second pass: marks what lies in the bin of the cut or above it, and then writes.

    Args:
        call: what was asked for.
        place: the bin of the cut.
    """

    def __init__(self, call: Call, place: int) -> None:
        super().__init__(call)
        self.place = place
        self.fine = torch.zeros(1 << _SHIFT, dtype=torch.int64)
        nothing = torch.empty(0)
        self.marked = [_Marked(nothing, nothing, nothing)] * len(self.tensors)

    def _take(self, at: int, weight: Tensor, gradient: Tensor) -> Tensor:
        found = super()._take(at, weight, gradient)
        kind, nan = self.call.score_kind, self._nan
        row = max(weight.numel(), 1)

        def packed(first: int) -> Tensor:
            ranked = ([weight], [gradient], [int(found[first:].sum())], False, kind, nan)
            return ops.topk_select(*ranked, [0, row, row])[0][0]

        source = KeySource([weight], [gradient], kind, nan)
        lower = [torch.empty(0, dtype=torch.int16, device=weight.device)]
        for start in range(0, weight.numel() if found[self.place] else 0, CHUNK):
            keys = source.piece(Piece(0, start, min(start + CHUNK, weight.numel())))
            kept = keys[keys >> _SHIFT == self.place]
            lower.append((kept & ((1 << _SHIFT) - 1)).to(torch.int16))
        self.marked[at] = _Marked(packed(self.place + 1), packed(self.place), torch.cat(lower))
        counts = torch.bincount(self.marked[at].lower.int(), minlength=1 << _SHIFT)
        self.fine += counts.cpu()
        return found

    def write(self, need: int, allow_overflow: bool, keep_seed: bool) -> Receipt:
        """Settle the cut and perturb, parameter by parameter.

        Args:
            need: number of elements to take from the bin of the cut.
            allow_overflow, keep_seed: see `perturb_`.
        """
        call, parameters = self.call, self.call.parameters
        low, above = place_of(self.fine, need)
        key, ties, taken = (self.place << _SHIFT) + low, int(self.fine[low]), need - above
        if not call.k[0]:
            key, ties, taken = -1, 0, 0
        scale = scale_of(call)
        if not (allow_overflow or cannot_overflow(parameters.tensors, scale, self.strategy.mode)):
            count = sum(int(found[0]) for found in self._each(low, taken, scale, check=True))
            if count:
                raise ValueError(
                    f"{_OP}: noise must leave weights finite, got {count} that overflow; "
                    "allow_overflow=True accepts them"
                )
        rows = [found[0] for found in self._each(low, taken, scale, check=False)]
        stats = torch.stack(rows) if rows else torch.zeros(0, len(Stat), dtype=torch.int64)
        shared = (key, ties, taken)
        for stat, value in zip((Stat.THRESHOLD, Stat.TIES, Stat.TIES_TAKEN), shared, strict=True):
            stats[:, stat] = value
        account = Account(parameters, scale.cpu(), stats, True)
        account.settle()
        return receipt_of(call, account, keep_seed)

    def _each(self, low: int, taken: int, scale: Tensor, *, check: bool) -> Iterator[Tensor]:
        """Perturb each parameter, or count what would overflow; one result for each.

        Args:
            low: lower bits of the threshold's key.
            taken: how many elements that have this key are taken, lowest flat index first.
            scale: standard deviation of the noise in each parameter.
            check: count alone.
        """
        for at, marked in enumerate(self.marked):
            if not self.call.k[0]:
                yield torch.zeros(1, 1 if check else len(Stat), dtype=torch.int64)
                continue
            tied = marked.lower == low
            first = tied.cumsum(0) <= taken
            chosen = unpacked(marked.above, self.tensors[at].shape)
            bin_of_cut = unpacked(marked.reached, chosen.shape) & ~chosen
            chosen[bin_of_cut] = (marked.lower > low) | (tied & first)
            del bin_of_cut, first
            taken -= min(taken, int(tied.sum()))
            yield self._apply(at, chosen, scale, check).cpu()

    @torch.no_grad()
    def _apply(self, at: int, chosen: Tensor, scale: Tensor, check: bool) -> Tensor:
        """Perturb the chosen elements of one parameter, or count those that would overflow."""
        weight, count = self.tensors[at].detach(), int(chosen.sum())
        if not count:
            return torch.zeros(1, 1 if check else len(Stat), dtype=torch.int64)
        drawn = (scale[at : at + 1], self.call.rng, [count], False)
        how = ("grad", "error", self.strategy.noise, self.strategy.update)
        layout = list(self.call.parameters.layout[3 * at : 3 * at + 3])
        # marks in 16 bits are scores like any others: the greatest are the chosen ones
        call = ([weight], [chosen.to(torch.bfloat16)], *drawn, *how)
        if check:
            return reference.topk_perturb_overflow(*call, layout)
        return ops.topk_perturb_(*call, True, layout)
