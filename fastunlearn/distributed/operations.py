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
from fastunlearn.distributed.counting import Counter, root_mean_squares
from fastunlearn.distributed.cut import Share, find_share
from fastunlearn.distributed.shards import Sharded, layout_of, sharded, views_of
from fastunlearn.overflow import cannot_overflow
from fastunlearn.perturb import Account, receipt_of
from fastunlearn.receipt import Receipt
from fastunlearn.reference import ops as reference
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
    device = device_of(target)
    together = Together("perturb_", group, device)
    run = Run(together, strategy, step, allow_overflow)
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


def device_of(target: Any) -> torch.device:
    """Where the counts are sent from: that of the first parameter."""
    if isinstance(target, nn.Module):
        first = next(target.parameters(), None)
    else:
        first = next(iter(target.values() if isinstance(target, Mapping) else target), None)
        first = first[1] if isinstance(first, tuple) and len(first) == 2 else first
        first = getattr(first, "tensor", first)
    on_gpu = isinstance(first, Tensor) and first.is_cuda
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


class Run:
    """One call: the plan, the counts, and the write.

    Attributes:
        shards: what `plan` has found here.
        k: the op argument `k` of the whole.
        kind: what the operations make of stored scores.
    """

    def __init__(
        self, together: Together, strategy: Strategy, step: int, allow_overflow: bool
    ) -> None:
        self.together, self.op, self.strategy = together, together.op, strategy
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
                "seed": None if seed is None else check_range(self.op, "seed", seed, 64),
                "step": check_range(self.op, "step", self.step, 32),
                "allow_overflow": self.allow_overflow,
                "given_scores": scores is not None,
            }
            return plan, sum(piece.view.numel() for piece in shards.pieces if piece.owned)

        owned, drawn = self.together.plan(make)
        assert shards is not None  # else the plan has raised
        self.shards, self.seed = shards, drawn if seed is None else seed
        if owned != shards.numel:
            raise ValueError(
                f"{self.op}: shards must own every element once, got {owned} of {shards.numel}"
            )
        self.k = self._parameters(shards).counts(self.strategy)

    def _shards(self, target: Any, scores: Any) -> Sharded:
        strategy, scored = self.strategy, isinstance(self.strategy, TopK)
        if not isinstance(strategy, (TopK, RandomK)):
            raise TypeError(f"{self.op}: strategy must be TopK or RandomK, got {strategy!r}")
        if isinstance(strategy, TopK):
            if scores is None and strategy.score in ("mas", "ratio"):
                raise ValueError(
                    f"{self.op}: scores must be given for {strategy.score!r}, got None"
                )
            scored = scores is not None or strategy.score != "weight"
        elif scores is not None:
            raise ValueError(f"{self.op}: scores must be None for RandomK, got {type(scores)}")
        shards = sharded(
            self.op, target, strategy, self.together.rank, scored=scored, scores=scores
        )
        names = [shards.names[piece.parameter] for piece in shards.pieces]
        check_memory(Parameters.of(self.op, names, views_of(shards)))
        self.kind = ""
        if isinstance(strategy, TopK):
            self.kind = "grad" if scores is not None else strategy.score
        elif self.per_tensor:
            _check_whole(self.op, shards)
        return shards

    def _parameters(self, shards: Sharded) -> Parameters:
        """The parameters as a whole, with this rank's views in place of their tensors."""
        described = (shards.names, views_of(shards), shards.shapes, shards.dtypes)
        return Parameters(self.op, *described, layout_of(shards), shards.numel)

    def top_k(self) -> Tensor:
        """Find the cut with all ranks, and write this rank's share of it."""
        share, here = self.share()
        ranked = (here, self.per_tensor, self.kind, cast(TopK, self.strategy).nan)
        scores = [piece.score for piece in self.shards.pieces]
        stats = self._write("topk_perturb_", (scores,), ranked, ())
        shared = (share.key, share.ties, share.ties_taken)
        for stat, values in zip((Stat.THRESHOLD, Stat.TIES, Stat.TIES_TAKEN), shared, strict=True):
            stats[:, stat] = values
        return stats

    def share(self) -> tuple[Share, list[int]]:
        """Find the cut with all ranks; also the op argument `k` that gives this rank's part."""
        nan = cast(TopK, self.strategy).nan
        counter = Counter(self.together, self.shards, self.kind, nan, self.per_tensor)
        share = find_share(counter, torch.tensor(self.k), counter.problem, self.shards.numel)
        return share, share.here.tolist() if self.per_tensor else [int(share.here.sum())]

    @property
    def k_of_pieces(self) -> list[int]:
        """The op argument `k` of Random-k."""
        if self.per_tensor:
            return [self.k[piece.parameter] for piece in self.shards.pieces]
        return self.k

    def random_k(self) -> Tensor:
        """Write what Random-k selects here; nothing needs to be counted."""
        k = self.k_of_pieces
        return self._write("randomk_perturb_", (), (k, self.per_tensor), (self.shards.numel,))

    def _write(self, name: str, scores: Any, ranked: Any, total: Any) -> Tensor:
        """Write once all ranks agree; statistics of each parameter, of what this rank has of it."""
        strategy, shards = self.strategy, self.shards
        views, layout = views_of(shards), layout_of(shards)
        self.scale = self._scale()
        drawn = (self.scale[[piece.parameter for piece in shards.pieces]], self.rng(), *ranked)
        how = (strategy.noise, strategy.update)
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
                f"{self.op}: noise must leave weights finite, got {found} that overflow on all "
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
        scale = root_mean_squares(self.together, self.shards) * self.strategy.rel_std
        if not bool(scale.isfinite().all()):
            first = self.shards.names[int((~scale.isfinite()).nonzero()[0])]
            raise ValueError(
                f"{self.op}: rel_std must meet a finite root mean square, got parameter {first!r} "
                "with a NaN or an infinity"
            )
        return scale

    def rng(self) -> Tensor:
        """The op argument `rng`."""
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


def _check_whole(op: str, shards: Sharded) -> None:
    """Refuse cut parameters."""
    for piece in shards.pieces:
        name, size = shards.names[piece.parameter], math.prod(shards.shapes[piece.parameter])
        if piece.view.numel() != size:
            raise ValueError(
                f"{op}: RandomK(scope='tensor') must have whole parameters, got a shard of {name!r}"
            )
