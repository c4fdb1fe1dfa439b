"""Run calls on one backend or the other and compare what they leave."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from core.configurations import Configuration, Entry, configuration
from core.oracle import Place, whole
from core.worlds import Outcome, View, World, first_difference, row_major, run
from torch import Tensor

from fastunlearn import _extension, _ops
from fastunlearn.reference import ops as reference

OPS = torch.ops.fastunlearn
COMPILED = _ops.backend_of("topk_perturb_", torch.device("cpu")) == "cpu"
compiled = pytest.mark.skipif(not COMPILED, reason="needs the compiled kernels")
_INFO = _extension.build_info()
LEVELS = [x for x in _INFO["simd_compiled"] if x in _INFO["simd_runtime"]] if COMPILED else []


@contextmanager
def simd(level: str) -> Iterator[None]:
    """Use the kernels of one SIMD level inside the block."""
    module = _extension.load()
    assert module is not None
    before = module.get_simd()
    module.set_simd(level)
    try:
        yield
    finally:
        module.set_simd(before)


@contextmanager
def flushing(wanted: bool) -> Iterator[None]:
    """Let the calling thread flush denormal numbers inside the block, where it can."""
    if wanted:
        torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def check(made: Configuration, world: World, threads: tuple[int, ...] = ()) -> Outcome:
    """Compare each SIMD level with the reference.

    Args:
        made: the call.
        world: its memory; not touched.
        threads: numbers of threads to try with each level; by default one, of the call's choice.

    Returns:
        What the reference did.
    """
    torch.set_num_threads(1)
    wanted = run(reference, made, world.copy())
    for number, level in enumerate(LEVELS):
        for count in threads or ((made.threads + number - 1) % 8 + 1,):
            torch.set_num_threads(count)
            with simd(level), flushing(made.flush):
                found = run(OPS, made, world.copy())
            difference = first_difference(wanted, found)
            assert difference is None, f"{level}, {count} threads: {difference}\n{made}"
    torch.set_num_threads(1)
    return wanted


_PLAIN: dict[str, Any] = {
    "alias": None, "layout": "whole", "per_tensor": False, "score": "grad", "nan": "error",
    "scores_are_weights": False, "noise": "normal", "update": "add", "allow_overflow": False,
    "seed": 7, "step": 0, "threads": 2, "flush": False,
}  # fmt: skip


def _entry(weight: Tensor, score: Tensor, place: Place, scale: float) -> Entry:
    return Entry(
        shape=tuple(weight.shape),
        weight=weight.dtype,
        weight_strides="contiguous",
        weight_values="given",
        score=score.dtype,
        score_strides="given",
        score_values="given",
        magnitude=1.0,
        scale=scale,
        place=place,
    )


def _world(weights: Sequence[Tensor], scores: Sequence[Tensor]) -> World:
    world = World([w.view(-1) for w in weights], [], [])
    owners = {w.data_ptr(): i for i, w in enumerate(weights) if w.numel()}
    for i, weight in enumerate(weights):
        world.weight_views.append(View(i, weight.dtype, weight.shape, row_major(weight.shape), 0))
    for score in scores:
        owner = owners.get(score.untyped_storage().data_ptr(), len(world.buffers))
        if owner == len(world.buffers):
            world.buffers.append(score.view(-1))
        view = View(owner, score.dtype, score.shape, score.stride(), score.storage_offset())
        world.score_views.append(view)
    return world


def call(
    operation: str,
    weights: Sequence[Tensor],
    scores: Sequence[Tensor],
    k: Sequence[int],
    scale: float = 0.1,
    **fields: Any,
) -> tuple[Configuration, World]:
    """A call of whole contiguous tensors, and its memory.

    Args:
        operation: name of the operation.
        weights: contiguous; not touched.
        scores: shaped like the weights; may lie in the memory of one of them.
        k: one count, or one for each tensor where the field `per_tensor` is set.
        scale: of the noise in all tensors.
        fields: other fields of the configuration.
    """
    made = dataclasses.replace(
        configuration(0),
        operation=operation,
        entries=tuple(
            _entry(weight, score, place, scale)
            for weight, score, place in zip(weights, scores or weights, whole(weights), strict=True)
        ),
        total=sum(w.numel() for w in weights),
        k=tuple(k),
        **{**_PLAIN, **fields},
    )
    return made, _world(weights, scores)
