"""Large index spaces: in pieces at far offsets, and for real (9 GB of memory, some minutes)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from core import oracle
from core.backends import call, check, compiled
from core.configurations import Configuration
from torch import Tensor

import fastunlearn as fu
from fastunlearn._ops import ops
from fastunlearn.reference import ops as reference
from fastunlearn.reference.permutation import Permutation
from fastunlearn.reference.philox import Rng

N = 2**31 + 9
PLACES = [3, 2**31 - 1, 2**31, N - 1]
BILLION = 10**9


def moved(made: Configuration, places: list[oracle.Place]) -> Configuration:
    """The same call with its tensors at other places of the index space."""
    entries = zip(made.entries, places, strict=True)
    return dataclasses.replace(
        made, entries=tuple(dataclasses.replace(entry, place=place) for entry, place in entries)
    )


@compiled
@pytest.mark.parametrize("border", [2**31, 2**32, 2**34, 2**40])
@pytest.mark.parametrize("operation", ["topk_perturb_", "topk_select"])
def test_pieces_across_a_border(operation: str, border: int) -> None:
    """Rows of two pieces that interleave, and a whole tensor before them, all across the border."""
    draw = torch.Generator().manual_seed(border % 7)
    sizes = [150_001, 140_000, 70_007]
    weights = [torch.randn(n, generator=draw).to(torch.float16) for n in sizes]
    scores = [torch.randn(n, generator=draw).mul(100).round() for n in sizes]
    places = [
        oracle.Place(border - 1000 * 100 + 3, 700, 1100),
        oracle.Place(border - 1000 * 100 + 703, 400, 1100),
        oracle.Place(border - 400_000, sizes[2], sizes[2]),
    ]
    made, world = call(operation, weights, scores, [sum(sizes) // 5], threads=3)
    check(moved(made, places), world)


@compiled
@pytest.mark.parametrize("before", [1, 17, 30_002, 30_003])
@pytest.mark.parametrize("border", [2**32, 2**34, 3 * 2**34, 2**40])
def test_dense_rows_across_a_border(border: int, before: int) -> None:
    """Noise made for many elements in a row: the block number carries into its high half.

    A call that may overflow keeps no old values of so few elements, and then goes row by row.
    """
    weight, scores = torch.ones(70_007), torch.arange(70_007.0) % 100
    place = oracle.Place(border - before, 70_007, 70_007)
    for operation, given in (("topk_perturb_", [scores]), ("randomk_perturb_", [])):
        made, world = call(
            operation, [weight], given, [50_000], per_tensor=True, allow_overflow=True
        )
        check(moved(made, [place]), world)


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


def parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    yield from zip(*(tensor.split(1 << 24) for tensor in tensors), strict=True)


def check_noise(weight: Tensor, places: Tensor, std: float, seed: int) -> None:
    """Bits of a weight that was 0, against the noise of the reference."""
    z = reference.noise(places, torch.tensor([seed, 0]), "normal")
    expected = (z * torch.tensor(std, dtype=torch.float32)).to(weight.dtype)
    assert torch.equal(weight[places], expected)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_topk_of_a_billion(dtype: torch.dtype) -> None:
    """Every element is checked by plain torch: zero weights become nonzero where selected."""
    torch.set_num_threads(2)
    scores = torch.empty(BILLION, dtype=dtype).normal_(generator=torch.Generator().manual_seed(1))
    weight = torch.zeros(BILLION, dtype=dtype)
    receipt = fu.perturb_([weight], fu.TopK(0.01, std=0.1), scores=[scores], seed=3)
    k = BILLION // 100
    assert (receipt.n, receipt.k, receipt.count, receipt.overflow) == (BILLION, k, k, 0)
    threshold = receipt.threshold
    above = sum(int((part.abs() > threshold).sum()) for (part,) in parts(scores))
    ties = sum(int((part.abs() == threshold).sum()) for (part,) in parts(scores))
    assert above < k <= above + ties
    assert (receipt.ties, receipt.ties_taken) == (ties, k - above)
    left = k - above  # ties still to be taken, lowest index first
    start = 0
    for values, changed in parts(scores, weight):
        size = values.abs()
        selected = size > threshold
        equal = (size == threshold).nonzero().squeeze(1)[: max(left, 0)]
        selected[equal] = True
        left -= equal.numel()
        assert torch.equal(changed != 0, selected), f"elements from {start}"
        check_noise(weight, selected.nonzero().squeeze(1)[::1000] + start, 0.1, 3)
        start += values.numel()
    assert left == 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("k", [10**7, 3 * 10**8])
def test_randomk_of_a_billion(k: int) -> None:
    torch.set_num_threads(2)
    weight = torch.zeros(BILLION, dtype=torch.bfloat16)
    receipt = fu.perturb_([weight], fu.RandomK(k, std=0.1), seed=4)
    assert receipt.count == k
    assert sum(int(torch.count_nonzero(part)) for (part,) in parts(weight)) == k
    images = Permutation(BILLION, Rng(4, 0))(torch.arange(0, k, k // 100_000))
    assert bool((weight[images] != 0).all())
    check_noise(weight, images, 0.1, 4)
