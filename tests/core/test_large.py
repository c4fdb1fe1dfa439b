"""More than 2^31 elements in one tensor, for real: 9 GB of memory and some minutes."""

from __future__ import annotations

import pytest
import torch

import fastunlearn as fu
from fastunlearn._ops import ops

N = 2**31 + 9
PLACES = [3, 2**31 - 1, 2**31, N - 1]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_more_than_2_to_the_31_elements() -> None:
    torch.set_num_threads(2)
    weight = torch.zeros(N, dtype=torch.bfloat16)
    scores = torch.zeros(N, dtype=torch.bfloat16)
    scores[PLACES] = torch.tensor([1.0, -2.0, 3.0, -4.0], dtype=torch.bfloat16)
    strategy = fu.TopK(4, std=1.0)
    receipt = fu.perturb_([weight], strategy, scores=[scores], seed=5)
    assert (receipt.n, receipt.count, receipt.threshold) == (N, 4, 1.0)
    noise = ops.noise(torch.tensor(PLACES), torch.tensor([5, 0]), "normal")
    assert torch.equal(weight[PLACES], noise.to(torch.bfloat16))
    assert int(torch.count_nonzero(weight)) == 4

    # one tie more than there are other scores: the lowest index, and the last element stays in
    assert fu.select([weight], fu.TopK(5), scores=[scores]).indices().tolist() == [0, *PLACES]

    weight.zero_()
    receipt = fu.perturb_([weight], fu.RandomK(1000, std=1.0), seed=5)
    assert int(torch.count_nonzero(weight)) == receipt.count == 1000
