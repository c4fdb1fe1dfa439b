"""The histograms of keys and ties: reference against plain numpy, compiled against reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from core.test_backends import compiled
from torch import Tensor

from fastunlearn import _ops
from fastunlearn.reference import ops as reference
from fastunlearn.reference.memory import Layout

OPS = _ops.ops
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def case(number: int) -> dict[str, Any]:
    source = torch.Generator().manual_seed(number)
    draw = np.random.default_rng(number)
    sizes = draw.choice([0, 1, 7, 300, 5000, 70_000], 3)
    weights, scores, layout, base = [], [], [], 0
    for size in sizes:
        weight = torch.randn(int(size), generator=source).to(DTYPES[draw.integers(4)])
        score = torch.randn(int(size), generator=source)
        score = (score * 4).round() / 4 if draw.random() < 0.5 else score
        if size > 4 and draw.random() < 0.3:
            score[3] = torch.inf
        weights.append(weight)
        scores.append(score.to(DTYPES[draw.integers(4)]))
        row = int(draw.integers(1, max(int(size), 1) + 1))
        stride = row + int(draw.integers(0, 9))
        layout += [base, row, stride]
        base += stride * (int(size) // row + 1)
    return {
        "weights": weights,
        "scores": scores,
        "score": ("grad", "fisher", "taylor", "weight")[number % 4],
        "nan": ("error", "largest", "smallest")[number % 3],
        "row": [int(i) for i in draw.integers(0, 2, 3)],
        "layout": layout,
    }


def numpy_keys(made: dict[str, Any], i: int) -> np.ndarray:
    weight = made["weights"][i].to(torch.float32).numpy()
    score = made["scores"][i].to(torch.float32).numpy()
    value = {
        "grad": score, "fisher": score * score, "taylor": weight * score, "weight": weight
    }[made["score"]]  # fmt: skip
    return value.astype(np.float32).view(np.int32).astype(np.int64) & 0x7FFFFFFF


def common(made: dict[str, Any]) -> tuple[Any, ...]:
    return (made["weights"], made["scores"], made["score"], made["nan"], made["row"])


RANGES = [([0, 0], 15, 1 << 16), ([0x3F000000, 0x3E800000], 8, 1 << 12), ([5, 0x3F800000], 0, 64)]


@pytest.mark.parametrize("number", range(12))
@pytest.mark.parametrize("low_shift_bins", RANGES)
def test_keys_are_counted(number: int, low_shift_bins: Any) -> None:
    made, (low, shift, bins) = case(number), low_shift_bins
    found = reference.key_histogram(*common(made), low, shift, bins)
    wanted = np.zeros((2, bins + 1), dtype=np.int64)
    for i, row in enumerate(made["row"]):
        place = (numpy_keys(made, i) - low[row]) >> shift
        wanted[row, :bins] += np.bincount(place[(place >= 0) & (place < bins)], minlength=bins)
    assert found.tolist() == wanted.tolist()
    same(found, OPS.key_histogram(*common(made), low, shift, bins))


def same(one: Tensor, other: Tensor) -> None:
    assert one.dtype == other.dtype and torch.equal(one, other)


@pytest.mark.parametrize("nan", ["error", "largest", "smallest"])
@pytest.mark.parametrize("low_shift_bins", RANGES)
def test_nan_is_counted_or_is_a_number(nan: str, low_shift_bins: Any) -> None:
    low, shift, bins = low_shift_bins
    score = torch.randn(9000)
    score[[5, 4096, 8999]] = torch.nan
    arguments = ([score], [score], "grad", nan, [1], low, shift, bins)
    found = reference.key_histogram(*arguments)
    assert found[:, bins].tolist() == [0, 3 if nan == "error" else 0]
    same(found, OPS.key_histogram(*arguments))


@pytest.mark.parametrize("number", range(12))
def test_ties_are_counted_by_their_index(number: int) -> None:
    made = case(number)
    keys = [numpy_keys(made, i) for i in range(3)]
    some = np.concatenate(keys) if sum(k.size for k in keys) else np.zeros(1, np.int64)
    key = [int(np.bincount(some % 1).size and some[some.size // 2]), -1 if number % 2 else 0]
    for first, shift, bins in (([0, 0], 6, 4096), ([100, 7], 0, 50)):
        wanted = np.zeros((2, bins), dtype=np.int64)
        for i, row in enumerate(made["row"]):
            part = Layout(*made["layout"][3 * i : 3 * i + 3], keys[i].size)
            local = torch.from_numpy(np.nonzero(keys[i] == key[row])[0])
            place = (part.to_global(local).numpy() - first[row]) >> shift
            wanted[row] += np.bincount(place[(place >= 0) & (place < bins)], minlength=bins)
        arguments = (*common(made), key, first, shift, bins, made["layout"])
        found = reference.tie_histogram(*arguments)
        assert found.tolist() == wanted.tolist()
        same(found, OPS.tie_histogram(*arguments))


@compiled
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"row": [0, 2, 0]}, "row must be between 0 and 2"),
        ({"row": [0]}, "row must be 3 numbers"),
        ({"shift": 60}, "shift must be at most 38"),
        ({"bins": 0}, "bins at most"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change: dict[str, Any], words: str) -> None:
    made = {**case(0), "low": [0, 0], "shift": 3, "bins": 9, **change}
    with pytest.raises(ValueError, match=words):
        OPS.key_histogram(*common(made), made["low"], made["shift"], made["bins"])
