"""Perturb a checkpoint without its model, in memory that its size does not change."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from fastunlearn import _extension
from fastunlearn._ops import Stat, ops
from fastunlearn.checkpoint import stream
from fastunlearn.checkpoint.files import Checkpoint
from fastunlearn.checkpoint.header import DTYPES
from fastunlearn.checkpoint.ranking import Ranking, check_scores
from fastunlearn.checkpoint.receipt import CheckpointReceipt
from fastunlearn.checkpoint.rewrite import Sink, rewrite
from fastunlearn.checkpoint.stream import Digest, Piece, Ring, Run, Slice, read_slice, read_slices
from fastunlearn.perturb import Account, receipt_of
from fastunlearn.reference import rms
from fastunlearn.selection import Call, check_range
from fastunlearn.strategies import RandomK, Strategy, TopK
from fastunlearn.targets import MissingGrad, Parameters, takes_part

DEFAULT_MEMORY = 512 << 20
_SHARES = 8  # three runs of weights, two of scores, and what the operations need


class Request(NamedTuple):
    """What is asked for, apart from where it goes.

    Attributes:
        strategy, seed, step, allow_overflow: see `fastunlearn.perturb_`.
        missing_scores: "error", or "skip" to leave out tensors that the scores lack.
        memory: bytes that buffers may take.
    """

    strategy: Strategy
    seed: int
    step: int
    allow_overflow: bool
    missing_scores: MissingGrad
    memory: int

    @staticmethod
    def make(
        strategy: Strategy,
        seed: int | None,
        step: int,
        allow_overflow: bool,
        missing_scores: MissingGrad,
        memory: int,
    ) -> Request:
        """Check the arguments of a call."""
        if not isinstance(strategy, (TopK, RandomK)):
            raise TypeError(f"perturb: strategy must be TopK or RandomK, got {strategy!r}")
        if missing_scores not in ("error", "skip"):
            raise ValueError(
                f"perturb: missing_scores must be 'error' or 'skip', got {missing_scores!r}"
            )
        check_range("perturb", "memory", memory, 63)
        least = _SHARES * 8 * stream.SEGMENT
        if memory < least:
            raise ValueError(f"perturb: memory must be at least {least} bytes, got {memory}")
        seed = secrets.randbits(64) if seed is None else check_range("perturb", "seed", seed, 64)
        check_range("perturb", "step", step, 32)
        return Request(strategy, seed, step, allow_overflow, missing_scores, memory)

    @property
    def most_bytes(self) -> int:
        """Of a run."""
        return self.memory // _SHARES


def transform(
    source: Checkpoint, scores: Checkpoint | None, request: Request, sink: Sink
) -> CheckpointReceipt:
    """Compute a perturbed checkpoint, and hand its runs to a sink.

    Raises:
        TypeError, ValueError: as for `fastunlearn.perturb_`. What was handed over by then is void.
    """
    _extension.warn_once()
    work = _Work(source, scores, request, _names(source, scores, request))
    digests = rewrite(source, work.run_bytes, sink, work.read, work.change)
    if scores is not None:
        scores.check_unchanged()
    return work.receipt(*digests)


def _names(source: Checkpoint, scores: Checkpoint | None, request: Request) -> list[str]:
    """The tensors that take part, in the order of their flat indices."""
    strategy = request.strategy
    chosen = [name for name in source.tensors if takes_part([name], strategy)]
    names = [n for n in chosen if source.tensors[n].entry.dtype.startswith(("F", "BF"))]
    for name in names:
        dtype = source.tensors[name].entry.dtype
        if dtype not in DTYPES:
            raise TypeError(
                f"perturb: tensor {name!r} must be one of {', '.join(DTYPES)}, got {dtype}; "
                "exclude it"
            )
    if not names:
        raise ValueError(f"perturb: {source.path} must have a tensor that takes part, got none")
    if not isinstance(strategy, TopK) or (scores is None and strategy.score == "weight"):
        if scores is not None:
            raise ValueError("perturb: scores must be None for RandomK, got a checkpoint")
        return names
    if scores is None:
        raise ValueError(f"perturb: scores must be given for {strategy.score!r}, got None")
    absent = [name for name in names if name not in scores.tensors]
    if absent and request.missing_scores == "error":
        raise ValueError(
            f"perturb: scores must hold every tensor that takes part, got none for "
            f"{', '.join(absent[:5])}{' ...' if len(absent) > 5 else ''}; exclude them, or set "
            "missing_scores='skip'"
        )
    names = [name for name in names if name in scores.tensors]
    check_scores(scores, source, names)
    return names


class _Work:
    """One call: what was found out, and what is still to be done."""

    def __init__(
        self, source: Checkpoint, scores: Checkpoint | None, request: Request, names: list[str]
    ) -> None:
        self.source, self.request, self.names = source, request, names
        self.number = {name: i for i, name in enumerate(names)}
        entries = [source.tensors[name].entry for name in names]
        self.dtypes = [DTYPES[entry.dtype] for entry in entries]
        base: dict[str, int] = {}
        numel = 0
        for name, entry in zip(names, entries, strict=True):
            base[name] = numel
            numel += entry.numel
        shapes = [entry.shape for entry in entries]
        self.parameters = Parameters("perturb", names, [], shapes, self.dtypes, [], numel)
        strategy = request.strategy
        self.per_tensor = strategy.scope == "tensor"
        self.k = self.parameters.counts(strategy)
        self.scale = self._scale()
        self.stats = torch.zeros(len(names), len(Stat), dtype=torch.int64)
        self.top_k = isinstance(strategy, TopK)
        self.given = scores
        self.base = base
        # so that neither a run nor its scores need more than there is
        wider = [scores.itemsize(n) / source.itemsize(n) for n in names] if scores else []
        self.run_bytes = int(request.most_bytes / max([1.0, *wider]))
        self.ring = Ring(2, request.most_bytes)
        nan = strategy.nan if isinstance(strategy, TopK) else "error"
        self.ranking = Ranking(scores or source, names, nan, request.most_bytes)
        if self.top_k:
            self.ranking.find(self.k, self.per_tensor)
        elif self.per_tensor:
            self._check_whole()

    def read(self, run: Run) -> list[Tensor]:
        """Read the scores of a run's slices."""
        if self.given is None:
            return []
        return read_slices(self.given, self._parts(run), self.ring)

    def _parts(self, run: Run) -> list[Slice]:
        return [part for part in run.slices if part.name in self.number and part.numel]

    def change(self, piece: Piece, values: list[Tensor]) -> None:
        """Perturb a run in memory.

        Raises:
            ValueError: a weight would overflow.
        """
        parts = self._parts(piece.run)
        views = [piece.elements(part) for part in parts]
        values = values if self.given is not None else views
        call: list[Any] = []
        if self.top_k:
            k = self.ranking.take(parts, values)
            taken = [i for i, own in enumerate(k) if own]
            parts, views = [parts[i] for i in taken], [views[i] for i in taken]
            values = [values[i] for i in taken]
            nan = cast(TopK, self.request.strategy).nan
            kind = "weight" if self.given is None else "grad"
            call = [[k[i] for i in taken], True, kind, nan]
        else:
            k = [self.k[self.number[part.name]] for part in parts] if self.per_tensor else self.k
            call = [k, self.per_tensor]
        if parts:
            self._write(piece, parts, views, values, call)

    def _write(
        self, piece: Piece, parts: list[Slice], views: list[Tensor], values: Any, call: list[Any]
    ) -> None:
        strategy, numbers = self.request.strategy, [self.number[part.name] for part in parts]
        head = (views, values) if self.top_k else (views,)
        drawn = (self.scale[numbers], self._rng(), *call)
        how = (strategy.noise, strategy.update, self.request.allow_overflow)
        layout: list[int] = []
        for part in parts:
            layout += (self.base[part.name] + part.first, part.numel, part.numel)
        if self.top_k:
            stats = ops.topk_perturb_(*head, *drawn, *how, layout)
        else:
            stats = ops.randomk_perturb_(*head, *drawn, *how, layout, self.parameters.numel)
        overflow = int(stats[:, Stat.OVERFLOW].sum())
        if overflow and not self.request.allow_overflow:
            first = parts[int(stats[:, Stat.OVERFLOW].nonzero()[0])].name
            raise ValueError(
                f"perturb: noise must leave weights finite, got {overflow} that overflow, the "
                f"first in {first!r}; allow_overflow=True accepts them"
            )
        self.stats.index_add_(0, torch.tensor(numbers), stats)
        for part, view in zip(parts, views, strict=True):
            raw, new = piece.raw(part), view.view(torch.uint8)
            if raw.data_ptr() != new.data_ptr():  # it lay unaligned
                raw.copy_(new)

    def receipt(self, before: Digest, after: Digest) -> CheckpointReceipt:
        """Tell what was done."""
        for i, name in enumerate(self.names if self.top_k else ()):
            cut = self.ranking.cut(name)
            row = {Stat.THRESHOLD: cut.key, Stat.TIES: cut.ties, Stat.TIES_TAKEN: cut.ties_taken}
            for stat, value in row.items():
                self.stats[i, stat] = value
        if not self.top_k:
            self.stats[:, Stat.THRESHOLD] = -1
        request = self.request
        call = Call(request.strategy, self.parameters, [], "", self.k, request.seed, request.step)
        account = Account(self.parameters, self.scale, self.stats, request.allow_overflow)
        return CheckpointReceipt(
            perturbation=receipt_of(call, account, keep_seed=False).to_dict(),
            source=before.total(),
            scores=None if self.given is None else self.ranking.digest.total(),
            result=after.total(),
            missing_scores=request.missing_scores,
            allow_overflow=request.allow_overflow,
            tensors=dict(sorted(after.tensors.items())),
        )

    def _rng(self) -> Tensor:
        seed = self.request.seed
        return torch.tensor([seed - (1 << 64) if seed >> 63 else seed, self.request.step])

    def _check_whole(self) -> None:
        for name in self.names:
            numel = self.source.tensors[name].entry.numel
            if numel > stream.SEGMENT:
                raise ValueError(
                    "perturb: RandomK(scope='tensor') must have tensors of at most "
                    f"{stream.SEGMENT} elements, got {numel} in {name!r}"
                )

    def _scale(self) -> Tensor:
        """Standard deviation of the noise in each tensor: float64."""
        strategy = self.request.strategy
        if strategy.rel_std is None:
            std = cast(float, strategy.std)
            return torch.full((len(self.names),), std, dtype=torch.float64)
        found = [self._rms(name) * strategy.rel_std for name in self.names]
        for name, scale in zip(self.names, found, strict=True):
            if not math.isfinite(scale):
                raise ValueError(
                    f"perturb: rel_std must meet a finite root mean square, got tensor {name!r} "
                    "with a NaN or an infinity"
                )
        return torch.tensor(found, dtype=torch.float64)

    def _rms(self, name: str) -> float:
        """Root mean square of a tensor; the same bits as that of the whole tensor."""
        numel = self.source.tensors[name].entry.numel
        if numel <= stream.SEGMENT:
            return float(ops.rms([read_slice(self.source, name, 0, numel)]))
        bits = max(rms.greatest_bits(part) for part in self._segments(name, numel))
        greatest = rms.key_to_float(bits)
        if not 0.0 < greatest < math.inf:
            return greatest
        shift = rms.shift_of(greatest)
        sums = [rms.square_sums(part, shift) for part in self._segments(name, numel)]
        high, low = (sum(column) for column in zip(*sums, strict=True))
        return rms.root(high, low, numel, shift)

    def _segments(self, name: str, numel: int) -> Iterator[Tensor]:
        for first in range(0, numel, stream.SEGMENT):
            yield read_slice(self.source, name, first, min(stream.SEGMENT, numel - first))
