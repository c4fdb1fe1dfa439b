"""The masks of SalUn's idiom and those of `fastunlearn.select`, and the bench that times both."""

from __future__ import annotations

import pytest
import torch

from benchmarks.methods import masking
from fastunlearn.bench import measure
from fastunlearn.bench.patterns import Data, make
from fastunlearn.bench.peers import TOP_K

SMALL = Data("20 tensors", 2000)


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("data", [SMALL, Data("62 tensors", 6200)], ids=["20", "62"])
def test_both_mark_the_same_elements_where_none_are_equal(data: Data, fraction: float) -> None:
    assert masking.differing(data, fraction) == 0


def test_a_difference_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    real = masking.rank_masks

    def off_by_one(parameters, fraction):
        masks = real(parameters, fraction)
        masks[0].view(-1)[0] ^= 1
        return masks

    monkeypatch.setattr(masking, "rank_masks", off_by_one)
    assert masking.differing(SMALL, 0.1) == 1
    with pytest.raises(ValueError, match="at most 2\\^24 elements"):
        masking.differing(Data("one tensor", 1 << 25), 0.1)


def test_the_idiom_marks_the_greatest_by_hand() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(2, 2)), torch.nn.Parameter(torch.zeros(2))]
    parameters[0].grad = torch.tensor([[0.5, -4.0], [1.0, 0.1]])
    parameters[1].grad = torch.tensor([-2.0, 3.0])
    expected = [[[0, 1], [0, 0]], [1, 1]]
    assert [m.tolist() for m in masking.rank_masks(parameters, 0.5)] == expected
    assert [m.int().tolist() for m in masking.selected_masks(parameters, 0.5)] == expected


def test_with_ties_the_count_is_right_all_the_same() -> None:
    parameters = make(Data("20 tensors", 2000, "all equal"))
    masks = masking.selected_masks(parameters, 0.25)
    assert sum(int(m.sum()) for m in masks) == 500
    assert torch.cat([m.flatten() for m in masks])[:500].all()  # the lowest index first


def test_both_are_timed_and_the_bench_forgets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "MOST_SETS", 2)
    before = dict(TOP_K)
    found = masking.timings(SMALL, 0.5, seconds=0.01)
    assert set(found) == {masking.IDIOM, masking.OURS}
    assert all(t.ms > 0.0 and t.runs >= 3 for t in found.values())
    assert before == TOP_K
