"""Every name that a strategy accepts is served, so that adding one cannot be left half done."""

from __future__ import annotations

import itertools
from typing import get_args

import torch

from fastunlearn import _ops, strategies
from fastunlearn.reference import ops as reference
from fastunlearn.reference.keys import SCORES
from fastunlearn.reference.noise import DISTRIBUTIONS
from fastunlearn.scores import score

NEED_DATA = {"mas", "ratio"}  # served by `score`, which runs the model


def test_every_noise_is_served() -> None:
    assert set(get_args(strategies.Noise)) == set(DISTRIBUTIONS)


def test_every_score_is_served() -> None:
    assert set(get_args(strategies.Score)) == set(SCORES) | NEED_DATA
    model = torch.nn.Linear(2, 2)
    data = [(torch.ones(1, 2), torch.tensor([1]))]
    for kind in get_args(strategies.Score):
        retain = data if kind == "ratio" else None
        found = score(model, data, torch.nn.functional.cross_entropy, kind=kind, retain=retain)
        assert set(found) == {"weight", "bias"}


def test_every_mode_is_served() -> None:
    for mode, rounding in itertools.product(
        get_args(strategies.Mode), get_args(strategies.Rounding)
    ):
        weight = torch.ones(3)
        strategy = strategies.RandomK(3, mode=mode, rounding=rounding)
        _ops.ops.randomk_perturb_(
            [weight],
            torch.full((1,), 0.1, dtype=torch.float64),
            torch.tensor([0, 0]),
            [3],
            False,
            strategy.noise,
            strategy.update,
            False,
            [0, 3, 3],
            3,
        )
        assert not torch.equal(weight, torch.ones(3))


def test_every_operation_has_a_schema_a_fake_and_a_reference_kernel() -> None:
    assert set(_ops.SCHEMAS) == set(_ops._FAKES)
    for name in _ops.SCHEMAS:
        assert callable(getattr(reference, name))
        assert torch._C._dispatch_has_kernel_for_dispatch_key(
            f"fastunlearn::{name}", "CompositeExplicitAutograd"
        )
