"""Parameter distance: values, streaming, refusals."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fastunlearn.metrics import (
    parameter_distance,
    parameter_distance_relative,
    undefined_reason,
)


def two_models() -> tuple[nn.Module, nn.Module]:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 3))
    return model, copy.deepcopy(model)


def test_hand_computed_over_two_tensors() -> None:
    a = {"w": torch.tensor([[1.0, 2.0]]), "b": torch.tensor([3.0])}
    b = {"b": torch.tensor([1.0]), "w": torch.tensor([[0.0, 4.0]])}
    assert parameter_distance(a, b) == 3.0  # sqrt(1 + 4 + 4), the mapping's order being free
    assert parameter_distance(a, b, p=1) == 5.0
    assert parameter_distance(a, b, p=math.inf) == 2.0
    assert parameter_distance(a, b, p=3) == pytest.approx(17 ** (1 / 3))
    assert parameter_distance_relative(a, b) == pytest.approx(3.0 / math.sqrt(14.0))
    assert parameter_distance_relative(a, b, p=1) == pytest.approx(5.0 / 6.0)


def test_modules_count_parameters_and_not_buffers() -> None:
    a, b = two_models()
    with torch.no_grad():
        b[1].running_mean.add_(100.0)
        b[3].weight[1, 1] += 0.5
        b[1].bias[0] -= 1.0
    # 0.5 and 1 are exact; the weight's own rounding is 2^-25 of its size below 1.
    assert parameter_distance(a, b) == pytest.approx(math.sqrt(1.25), abs=2**-23)
    assert parameter_distance(a, a) == 0.0
    snapshot = {name: p.detach().clone() for name, p in a.named_parameters()}
    assert parameter_distance(snapshot, b) == parameter_distance(a, b)


def test_neither_model_nor_gradients_are_touched() -> None:
    a, b = (model.double() for model in two_models())
    before = copy.deepcopy(a.state_dict())
    parameter_distance_relative(a, b)
    assert all(torch.equal(before[name], value) for name, value in a.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in a.parameters())


def test_sums_in_float64() -> None:
    # In float16 the square of 300 overflows, and 1 + 2^-11 rounds to 1.
    a, b = torch.full((4,), 300.0).half(), torch.zeros(4).half()
    assert parameter_distance({"w": a}, {"w": b}) == 600.0
    fine = torch.tensor([1.0 + 2**-30], dtype=torch.float64)
    assert parameter_distance({"w": fine}, {"w": torch.ones(1).half()}) == 2**-30


def test_a_tied_parameter_counts_once() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    moved = copy.deepcopy(model)
    with torch.no_grad():
        moved[0].weight.zero_(), model[0].weight.fill_(1.0)
    assert parameter_distance(model, moved) == 2.0


def test_strided_0_dim_and_empty_tensors() -> None:
    a = {"t": torch.arange(6.0).reshape(2, 3).T, "s": torch.tensor(2.0), "e": torch.empty(0)}
    b = {"t": torch.zeros(3, 2), "s": torch.tensor(0.0), "e": torch.empty(0)}
    assert parameter_distance(a, b, p=1) == 17.0
    assert parameter_distance(a, b, p=math.inf) == 5.0
    assert parameter_distance({"e": torch.empty(0)}, {"e": torch.empty(0)}) == 0.0


@given(
    st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=12),
    st.integers(0, 12),
    st.sampled_from([1.0, 1.5, 2.0, math.inf]),
)
def test_splitting_over_tensors_changes_nothing(values: list[float], cut: int, p: float) -> None:
    whole = torch.tensor(values)
    split = {"a": whole[:cut], "b": whole[cut:]}
    zeros = {name: torch.zeros_like(part) for name, part in split.items()}
    expected = float(torch.linalg.vector_norm(whole.double(), p))
    # A dozen float64 roundings.
    assert parameter_distance(split, zeros, p) == pytest.approx(expected, rel=1e-14)


def test_relative_distance_to_nothing_is_undefined() -> None:
    zeros = {"w": torch.zeros(2)}
    value = parameter_distance_relative(zeros, {"w": torch.ones(2)})
    assert undefined_reason(value) == "all parameters of the original model are 0"


def test_nan_stays_visible() -> None:
    value = parameter_distance({"w": torch.tensor([math.nan])}, {"w": torch.zeros(1)})
    assert undefined_reason(value) is not None


@pytest.mark.parametrize(
    ("a", "b", "p", "error", "message"),
    [
        (
            {"w": torch.zeros(2)},
            {"v": torch.zeros(2)},
            2,
            ValueError,
            "names of model_a, got 2 names in one of them only, first 'v'",
        ),
        (
            {"w": torch.zeros(2)},
            {"w": torch.zeros(2, 1)},
            2,
            ValueError,
            r"model_b\['w'\] must have shape \(2,\), got \(2, 1\)",
        ),
        ({}, {}, 2, ValueError, "model_a must have at least one parameter"),
        ({"w": torch.zeros(2).int()}, {}, 2, TypeError, r"model_a\['w'\] .* got torch.int32"),
        ({"w": 1.0}, {}, 2, TypeError, r"model_a\['w'\] .* got float"),
        ([torch.zeros(2)], {}, 2, TypeError, "model_a must be a module or a mapping, got list"),
        ({"w": torch.zeros(2)}, {"w": torch.zeros(2)}, 0.5, ValueError, "p must be >= 1, got 0.5"),
        ({"w": torch.zeros(2)}, {"w": torch.zeros(2)}, math.nan, ValueError, "p must be >= 1"),
        ({"w": torch.zeros(2)}, {"w": torch.zeros(2)}, "2", TypeError, "p must be a real number"),
    ],
)
def test_refusals(a, b, p, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^parameter_distance: .*{message}"):
        parameter_distance(a, b, p)
