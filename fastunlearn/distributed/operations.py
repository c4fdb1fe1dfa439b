"""`perturb_` over parameters that are spread over processes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastunlearn._ops import Stat, ops
from fastunlearn._version import __version__
from fastunlearn.distributed.agree import Together
from fastunlearn.distributed.cut import find_share
from fastunlearn.distributed.shards import Sharded, sharded
from fastunlearn.overflow import cannot_overflow
from fastunlearn.perturb import Account, receipt_of
from fastunlearn.receipt import Receipt
from fastunlearn.reference import ops as reference
from fastunlearn.reference import rms
from fastunlearn.reference.keys import INFINITY
from fastunlearn.selection import Call, check_range
from fastunlearn.strategies import RandomK, Strategy, TopK
from fastunlearn.targets import Parameters, Scores, check_memory


def perturb_(
    target: Any,
    strategy: Strategy,
    *,
    scores: Scores | None = None,
    seed: int | None = None,
    step: int = 0,
    allow_overflow: bool = False,
    keep_seed: bool = False,
    group: dist.ProcessGroup | None = None,
) -> Receipt:
    """Perturb parameters that are spread over the ranks of a process group, in place.

    Every rank of the group calls it, with its own shards of the same parameters. Each bit is what
    one process with the whole parameters would have written. No rank holds more than its own shards
    and a few MiB of counts. Four collectives of at most 512 KiB each for Top-K; three more where
    the ties at the threshold must be split; two more for `rel_std`; two for Random-k.

    All or nothing over all ranks: plans are compared first, and nothing is written before every
    rank has said that it can. A rank that is dead or hangs makes the others raise after the group's
    timeout, see `torch.distributed.init_process_group`.

    Args:
        target: module, mapping, or iterable of tensors or of (name, tensor) pairs. A DTensor may be
            sharded in any way, evenly or not, over a mesh of any number of dimensions; a `Shard` is
            a part with a given place; a plain tensor is one that every rank holds alike.
        strategy: `TopK` or `RandomK`; with the scope "tensor" `RandomK` takes whole parameters
            alone.
        scores, seed, step, allow_overflow, keep_seed: see `fastunlearn.perturb_`; a seed of None is
            drawn by the first rank for all.
        group: of the ranks that hold the parameters; None for the default one.

    Returns:
        A receipt whose totals are those of the whole, and whose tensors are this rank's.

    Raises:
        PlanError: the ranks were asked for different things.
        PeerError: another rank has raised an error of its own.
        TypeError, ValueError: as for `fastunlearn.perturb_`.
    """
    if not isinstance(target, (nn.Module, Mapping)):
        target = list(target)
    device = _device(target)
    together = Together("perturb_", group, device)
    run = _Run(together, strategy, step, allow_overflow)
    run.plan(target, scores, seed)
    stats = run.top_k() if isinstance(strategy, TopK) else run.random_k()
    return run.receipt(stats, keep_seed)


class Perturber:
    """Perturbs like an optimizer steps, on every rank: see `fastunlearn.Perturber`.

    Args:
        target, strategy, seed, allow_overflow, keep_seed, group: see `perturb_`. Give the same seed
            on all ranks, or None for one that is drawn anew at each step.
    """

    def __init__(
        self,
        target: Any,
        strategy: Strategy,
        *,
        seed: int | None = None,
        allow_overflow: bool = False,
        keep_seed: bool = False,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        kept = isinstance(target, (nn.Module, Mapping))
        self.target = target if kept else list(cast(Iterable[Any], target))
        self.strategy, self.seed, self.group = strategy, seed, group
        self.allow_overflow, self.keep_seed = allow_overflow, keep_seed
        self.steps_done = 0

    def step(self, scores: Scores | None = None) -> Receipt:
        """Perturb once; returns the receipt of this step. A refused step may be tried again."""
        receipt = perturb_(
            self.target,
            self.strategy,
            scores=scores,
            seed=self.seed,
            step=self.steps_done,
            allow_overflow=self.allow_overflow,
            keep_seed=self.keep_seed,
            group=self.group,
        )
        self.steps_done += 1
        return receipt


def _device(target: Any) -> torch.device:
    """Where the counts are sent from: that of the first parameter."""
    if isinstance(target, nn.Module):
        first = next(target.parameters(), None)
    else:
        first = next(iter(target.values() if isinstance(target, Mapping) else target), None)
        first = first[1] if isinstance(first, tuple) and len(first) == 2 else first
        first = getattr(first, "tensor", first)
    on_gpu = isinstance(first, Tensor) and first.is_cuda
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


class _Run:
    """One call: the plan, the counts, and the write."""

    def __init__(
        self, together: Together, strategy: Strategy, step: int, allow_overflow: bool
    ) -> None:
        self.together, self.strategy = together, strategy
        self.step, self.allow_overflow = step, allow_overflow
        self.per_tensor = getattr(strategy, "scope", None) == "tensor"

    def plan(self, target: Any, scores: Any, seed: int | None) -> None:
        """Describe the shards and compare the plans of all ranks."""
        shards: Sharded | None = None

        def make() -> tuple[dict[str, Any], int]:
            nonlocal shards
            shards = self._shards(target, scores)
            plan = {
                "version": __version__,
                "strategy": self.strategy.to_dict(),
                "names": shards.names,
                "shapes": shards.shapes,
                "dtypes": [str(dtype) for dtype in shards.dtypes],
                "placements": shards.placements,
                "seed": None if seed is None else check_range("perturb_", "seed", seed, 64),
                "step": check_range("perturb_", "step", self.step, 32),
                "allow_overflow": self.allow_overflow,
                "given_scores": scores is not None,
            }
            return plan, sum(piece.view.numel() for piece in shards.pieces if piece.owned)

        owned, drawn = self.together.plan(make)
        assert shards is not None  # else the plan has raised
        self.shards, self.seed = shards, drawn if seed is None else seed
        if owned != shards.numel:
            raise ValueError(
                f"perturb_: shards must own every element once, got {owned} of {shards.numel}"
            )
        self.k = self._parameters(shards).counts(self.strategy)

    def _shards(self, target: Any, scores: Any) -> Sharded:
        strategy, scored = self.strategy, isinstance(self.strategy, TopK)
        if not isinstance(strategy, (TopK, RandomK)):
            raise TypeError(f"perturb_: strategy must be TopK or RandomK, got {strategy!r}")
        if strategy.include or strategy.exclude:
            raise ValueError("perturb_: include and exclude must be empty for shards; filter them")
        if isinstance(strategy, TopK):
            if scores is None and strategy.score in ("mas", "ratio"):
                raise ValueError(f"perturb_: scores must be given for {strategy.score!r}, got None")
            scored = scores is not None or strategy.score != "weight"
        elif scores is not None:
            raise ValueError(f"perturb_: scores must be None for RandomK, got {type(scores)}")
        shards = sharded("perturb_", target, self.together.rank, scored=scored, scores=scores)
        names = [shards.names[piece.parameter] for piece in shards.pieces]
        check_memory(Parameters.of("perturb_", names, _views(shards)))
        self.kind = ""
        if isinstance(strategy, TopK):
            self.kind = "grad" if scores is not None else strategy.score
        elif self.per_tensor:
            _check_whole(shards)
        return shards

    def _parameters(self, shards: Sharded) -> Parameters:
        """The parameters as a whole, with this rank's views in place of their tensors."""
        described = (shards.names, _views(shards), shards.shapes, shards.dtypes)
        return Parameters("perturb_", *described, _layout(shards), shards.numel)

    def top_k(self) -> Tensor:
        """Find the cut with all ranks, and write this rank's share of it."""
        strategy = cast(TopK, self.strategy)
        counter = _Counter(self.together, self.shards, self.kind, strategy.nan, self.per_tensor)
        share = find_share(counter, torch.tensor(self.k), counter.problem, self.shards.numel)
        here = share.here.tolist() if self.per_tensor else [int(share.here.sum())]
        ranked = (here, self.per_tensor, self.kind, strategy.nan)
        stats = self._write("topk_perturb_", (counter.scores,), ranked, ())
        shared = (share.key, share.ties, share.ties_taken)
        for stat, values in zip((Stat.THRESHOLD, Stat.TIES, Stat.TIES_TAKEN), shared, strict=True):
            stats[:, stat] = values
        return stats

    def random_k(self) -> Tensor:
        """Write what Random-k selects here; nothing needs to be counted."""
        k = [self.k[piece.parameter] for piece in self.shards.pieces] if self.per_tensor else self.k
        return self._write("randomk_perturb_", (), (k, self.per_tensor), (self.shards.numel,))

    def _write(self, name: str, scores: Any, ranked: Any, total: Any) -> Tensor:
        """Write once all ranks agree; statistics of each parameter, of what this rank has of it."""
        strategy, shards = self.strategy, self.shards
        views, layout = _views(shards), _layout(shards)
        self.scale = self._scale()
        drawn = (self.scale[[piece.parameter for piece in shards.pieces]], self._rng(), *ranked)
        how = (strategy.noise, strategy.mode)
        writes = bool(views) and (self.per_tensor or ranked[0] != [0] or name != "topk_perturb_")

        def overflowing() -> Tensor:
            count = 0
            if (
                writes
                and not self.allow_overflow
                and not cannot_overflow(views, drawn[0], strategy.mode)
            ):
                planned = (views, *scores, *drawn, *how, layout, *total)
                count = int(getattr(reference, f"{name}overflow")(*planned).sum())
            return torch.tensor([count])

        found = int(self.together.sum((1,), overflowing))
        if found:
            raise ValueError(
                f"perturb_: noise must leave weights finite, got {found} that overflow on all "
                "ranks together; allow_overflow=True accepts them"
            )
        stats = torch.zeros(len(shards.names), len(Stat), dtype=torch.int64)
        if writes:
            with torch.no_grad():
                call = (views, *scores, *drawn, *how, True, layout, *total)
                own = getattr(ops, name)(*call).cpu()
            stats.index_add_(0, torch.tensor([piece.parameter for piece in shards.pieces]), own)
        return stats

    def _scale(self) -> Tensor:
        """Standard deviation of the noise in each parameter: float64."""
        if self.strategy.rel_std is None:
            std = cast(float, self.strategy.std)
            return torch.full((len(self.shards.names),), std, dtype=torch.float64)
        scale = _rms(self.together, self.shards) * self.strategy.rel_std
        if not bool(scale.isfinite().all()):
            first = self.shards.names[int((~scale.isfinite()).nonzero()[0])]
            raise ValueError(
                f"perturb_: rel_std must meet a finite root mean square, got parameter {first!r} "
                "with a NaN or an infinity"
            )
        return scale

    def _rng(self) -> Tensor:
        seed = self.seed - (1 << 64) if self.seed >> 63 else self.seed
        return torch.tensor([seed, self.step])

    def receipt(self, stats: Tensor, keep_seed: bool) -> Receipt:
        """Tell what was done: totals of the whole, tensors of this rank."""
        call = Call(
            self.strategy,
            self._parameters(self.shards),
            [],
            self.kind,
            self.k,
            self.seed,
            self.step,
        )
        account = Account(call.parameters, self.scale, stats, True)
        return receipt_of(call, account, keep_seed, count=sum(self.k))


class _Counter:
    """Counts keys and ties of this rank, and sums them over all ranks."""

    def __init__(
        self, together: Together, shards: Sharded, kind: str, nan: str, per_tensor: bool
    ) -> None:
        self.together, self.kind, self.nan = together, kind, nan
        self.views, self.layout = _views(shards), _layout(shards)
        self.scores = [piece.score for piece in shards.pieces]
        self.owned = torch.tensor([piece.owned for piece in shards.pieces], dtype=torch.bool)
        owner = torch.tensor([piece.parameter for piece in shards.pieces], dtype=torch.int64)
        self.problems = len(shards.names) if per_tensor else 1
        # Parts: each piece where tensors are problems of their own, else what this rank counts for
        # all, and what it has beside.
        self.problem = owner if per_tensor else torch.zeros(2, dtype=torch.int64)
        self.counted = self.owned if per_tensor else torch.tensor([True, False])
        self.row = list(range(len(owner))) if per_tensor else (~self.owned).int().tolist()
        self.checked = nan != "error"

    def keys(self, low: Tensor, shift: int, bins: int) -> tuple[Tensor, Tensor]:
        """See `cut.Counts`; refuses NaN on all ranks."""
        own = torch.zeros(len(self.problem), bins + 1, dtype=torch.int64)

        def count() -> Tensor:
            if self.views:
                at = low[self.problem].tolist()
                ranked = (self.views, self.scores, self.kind, self.nan)
                own.copy_(ops.key_histogram(*ranked, self.row, at, shift, bins))
            return self._counted(own)

        total = self.together.sum((self.problems, bins + 1), count).cpu()
        refused = int(total[:, bins].sum())
        if refused:
            raise ValueError(
                f"perturb_: scores must not be NaN, got {refused} NaN on all ranks together; "
                "nan='largest' or nan='smallest' accepts them"
            )
        return own[:, :bins], total[:, :bins]

    def ties(self, key: Tensor, first: Tensor, shift: int, bins: int) -> tuple[Tensor, Tensor]:
        """See `cut.Counts`."""
        own = torch.zeros(len(self.problem), bins, dtype=torch.int64)

        def count() -> Tensor:
            if self.views:
                ranked = (self.views, self.scores, self.kind, self.nan, self.row)
                at = (key[self.problem].tolist(), first[self.problem].tolist())
                own.copy_(ops.tie_histogram(*ranked, *at, shift, bins, self.layout))
            return self._counted(own)

        return own, self.together.sum((self.problems, bins), count).cpu()

    def _counted(self, own: Tensor) -> Tensor:
        """Add up by problem what this rank counts for all."""
        total = torch.zeros(self.problems, own.shape[1], dtype=torch.int64)
        return total.index_add_(0, self.problem[self.counted], own[self.counted])


def _views(shards: Sharded) -> list[Tensor]:
    return [piece.view for piece in shards.pieces]


def _layout(shards: Sharded) -> list[int]:
    return [number for piece in shards.pieces for number in piece.layout]


def _check_whole(shards: Sharded) -> None:
    """Refuse cut parameters."""
    for piece in shards.pieces:
        name, size = shards.names[piece.parameter], math.prod(shards.shapes[piece.parameter])
        if piece.view.numel() != size:
            raise ValueError(
                f"perturb_: RandomK(scope='tensor') must have whole parameters, got a shard of "
                f"{name!r}"
            )


def _rms(together: Together, shards: Sharded) -> Tensor:
    """Root mean square of each whole parameter: float64. The same bits as that of one process."""
    count = len(shards.names)
    owned = [piece for piece in shards.pieces if piece.owned]

    def greatest() -> Tensor:
        found = [0] * count
        for piece in owned:
            found[piece.parameter] = max(found[piece.parameter], rms.greatest_bits(piece.view))
        return torch.tensor(found)

    bits = together.greatest((count,), greatest).tolist()
    top = [rms.key_to_float(value) for value in bits]
    usual = [0 < value < INFINITY for value in bits]

    def sums() -> Tensor:
        found = torch.zeros(count, 2, dtype=torch.int64)
        for piece in owned:
            at = piece.parameter
            if usual[at]:
                shift = rms.shift_of(top[at])
                found[at] += torch.tensor(rms.square_sums(piece.view, shift))
        return found

    halves = together.sum((count, 2), sums).tolist()
    found = top
    for at, ((high, low), shape) in enumerate(zip(halves, shards.shapes, strict=True)):
        if usual[at]:
            found[at] = rms.root(high, low, math.prod(shape), rms.shift_of(top[at]))
    return torch.tensor(found, dtype=torch.float64)
