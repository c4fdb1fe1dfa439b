"""What is timed: a case, and the methods that can do it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import fastunlearn as fu
from fastunlearn._ops import ops
from fastunlearn.bench.floors import FLOORS, Run, floor_of
from fastunlearn.bench.patterns import Data
from fastunlearn.bench.peers import RANDOM_K, TOP_K
from fastunlearn.reference import ops as reference
from fastunlearn.selection import Call

STD = 0.1
OURS, OP, STEP = "fastunlearn", "fastunlearn, op alone", "fastunlearn, Perturber.step"
FALLBACK = "fastunlearn, pure PyTorch"
OWN = (OURS, OP, STEP, FALLBACK)
_STRATEGIES: dict[str, Any] = {"top_k": fu.TopK, "random_k": fu.RandomK}
KIND_NAMES = {"top_k": "Top-K", "random_k": "Random-k"}


@dataclass(frozen=True)
class Case:
    """One selection and perturbation: `kind` is "top_k" or "random_k", k a fraction."""

    data: Data
    kind: str = "top_k"
    k: float = 0.01

    @property
    def floor(self) -> str:
        """Name of the floor it is set against."""
        return floor_of(self.kind, self.k)

    @property
    def floors(self) -> tuple[str, ...]:
        """The ways to measure that floor, as methods."""
        return tuple(FLOORS[self.floor])

    @property
    def peers(self) -> tuple[str, ...]:
        """The idioms of its kind, as methods."""
        return tuple(TOP_K if self.kind == "top_k" else RANDOM_K)

    def shrunk(self, factor: int) -> Case:
        """The same with fewer elements."""
        return replace(self, data=self.data.shrunk(factor))


@dataclass(frozen=True)
class Probe:
    """One method on one case, with a number of threads (None: as the process has it)."""

    case: Case
    method: str = OURS
    threads: int | None = None


def _op_arguments(parameters: Sequence[Tensor], case: Case) -> tuple[Any, ...]:
    """Arguments of `topk_perturb_` or `randomk_perturb_`, as `fu.perturb_` makes them."""
    strategy = _STRATEGIES[case.kind](case.k, std=STD)
    call = Call.prepare("bench", list(parameters), strategy, None, 0, 0, "error")
    tensors, layout = call.parameters.tensors, call.parameters.layout
    drawn = (torch.full((len(tensors),), STD, dtype=torch.float64), call.rng, call.k, False)
    written = ("normal", "add", False, layout)
    if case.kind == "top_k":
        return (tensors, call.scores, *drawn, "grad", "error", *written)
    return (tensors, *drawn, *written, call.parameters.numel)


def _own(parameters: Sequence[Tensor], case: Case, method: str) -> Run:
    strategy = _STRATEGIES[case.kind](case.k, std=STD)
    listed = list(parameters)
    if method == OURS:
        return lambda: fu.perturb_(listed, strategy, seed=0)
    if method == STEP:
        return fu.Perturber(listed, strategy, seed=0).step
    arguments = _op_arguments(parameters, case)
    name = "topk_perturb_" if case.kind == "top_k" else "randomk_perturb_"
    op: Callable[..., Any] = getattr(ops if method == OP else reference, name)
    return lambda: op(*arguments)


def prepare(parameters: Sequence[Tensor], case: Case, method: str) -> Run | None:
    """Return the call to be timed, or None where the method cannot serve the case.

    Raises:
        KeyError: there is no such method for this kind of case.
    """
    if method in OWN:
        return _own(parameters, case, method)
    ways = {name: way for floor in FLOORS.values() for name, way in floor.items()}
    if method in ways:
        return ways[method](parameters, case.k)
    peer = (TOP_K if case.kind == "top_k" else RANDOM_K)[method]
    return lambda: peer(parameters, case.k, STD)
