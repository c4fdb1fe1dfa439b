"""Every backend reproduces the committed known-answer vectors, which it took no part in making."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from core import oracle
from core.backends import LEVELS, OPS, simd

from fastunlearn.reference import ops as reference
from fastunlearn.reference.noise import DISTRIBUTIONS
from fastunlearn.reference.permutation import Permutation
from fastunlearn.reference.philox import Rng, philox4x32
from fastunlearn.reference.randomk import subset

DATA = Path(__file__).parent / "data"
KINDS = ["normal", "uniform", "laplace"]


@pytest.fixture(params=["reference", *LEVELS])
def operations(request: Any) -> Iterator[Any]:
    """The operations of one backend: the reference, or the compiled kernels of one SIMD level."""
    with nullcontext() if request.param == "reference" else simd(request.param):
        yield reference if request.param == "reference" else OPS


@pytest.fixture(scope="module")
def noise_vectors() -> dict[str, list[str]]:
    with (DATA / "noise.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {name: [row[name] for row in rows] for name in rows[0]}


@pytest.fixture(scope="module")
def words(noise_vectors: dict[str, list[str]]) -> torch.Tensor:
    return torch.tensor([int(word) for word in noise_vectors["word"]])


@pytest.fixture(scope="module")
def indices(words: torch.Tensor) -> torch.Tensor:
    """For each word a flat index that owns it under seed 0 and step 0, found by search."""
    with (DATA / "noise_indices.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["word"]) for row in rows] == words.tolist()
    return torch.tensor([int(row["index"]) for row in rows])


def test_philox_known_answers() -> None:
    cases = json.loads((DATA / "philox.json").read_text())
    assert sum(case["source"] == "Random123" for case in cases) == 3
    for case in cases:
        counter = torch.tensor(case["counter"]).unsqueeze(1)
        assert philox4x32(counter, tuple(case["key"])).flatten().tolist() == case["words"]


@pytest.mark.parametrize("kind", KINDS)
def test_noise_bits(kind: str, noise_vectors: dict[str, list[str]], words: torch.Tensor) -> None:
    assert len(words) >= 4096
    bits = DISTRIBUTIONS[kind](words).view(torch.int32)
    assert torch.equal(bits, expected_noise(kind, noise_vectors))


def expected_noise(kind: str, noise_vectors: dict[str, list[str]]) -> torch.Tensor:
    """The committed bits, int32 of shape (number of words,)."""
    bits = [int(text, 16) for text in noise_vectors[kind]]
    return torch.tensor([value - (value >> 31 << 32) for value in bits], dtype=torch.int32)


def test_indices_own_their_words(indices: torch.Tensor, words: torch.Tensor) -> None:
    for index, word in zip(indices.tolist(), words.tolist(), strict=True):
        assert oracle.block(index >> 2, 0, 0, 0)[index & 3] == word
    assert int((indices >= 1 << 34).sum()) > 50  # both halves of the block number are in use


@pytest.mark.parametrize("kind", KINDS)
def test_noise_of_the_operations(
    operations: Any, kind: str, noise_vectors: dict[str, list[str]], indices: torch.Tensor
) -> None:
    expected = expected_noise(kind, noise_vectors)
    rng = torch.tensor([0, 0])
    assert torch.equal(operations.noise(indices, rng, kind).view(torch.int32), expected)
    order = indices.argsort()
    found = operations.noise(indices[order], rng, kind).view(torch.int32)
    assert torch.equal(found, expected[order])


@pytest.mark.parametrize("rule", ["topk", "randomk"])
@pytest.mark.parametrize("kind", KINDS)
def test_noise_that_the_operations_write(
    operations: Any,
    kind: str,
    rule: str,
    noise_vectors: dict[str, list[str]],
    indices: torch.Tensor,
) -> None:
    """Tensors that are replaced as a whole: compiled Top-K goes element by element in such small
    ones, Random-k, where it may overflow, makes the noise of a whole row at once."""
    if operations is reference or "simt" in LEVELS:  # each takes long for many tensors
        indices, noise_vectors = indices[::100], {kind: noise_vectors[kind][::100]}
    count, row = len(indices), 40
    places = torch.arange(count) * 7 % row
    weights = list(torch.zeros(count, row).unbind())
    bases = (indices - places).clamp(min=0)
    assert int(bases.sort().values.diff().min()) >= row
    layout = torch.stack((bases, *[torch.full((count,), row)] * 2), dim=1).flatten().tolist()
    change = (torch.ones(count, dtype=torch.float64), torch.tensor([0, 0]), [row] * count, True)
    tail = (kind, "replace", True, layout)
    if rule == "topk":
        operations.topk_perturb_(weights, weights, *change, "weight", "error", *tail)
    else:
        operations.randomk_perturb_(weights, *change, *tail, count * row)
    found = torch.stack(weights)[torch.arange(count), indices - bases].view(torch.int32)
    assert torch.equal(found, expected_noise(kind, noise_vectors))


# Under seed 0 and step 0 these own words whose q is one of the seven fp32 numbers around the split
# between the centre and the tail of the normal, on either side of the median.
AT_THE_SPLIT = [
    45352118, 26246024, 17338932, 122496618, 25186377, 29172995, 61394962,
    21612375, 17141009, 40326713, 94853447, 1854289, 16239744, 4373855,
]  # fmt: skip


def test_normal_at_the_split_of_its_branches(operations: Any) -> None:
    expected = torch.from_numpy(oracle.noise(AT_THE_SPLIT, 0, 0, "normal"))
    found = operations.noise(torch.tensor(AT_THE_SPLIT), torch.tensor([0, 0]), "normal")
    assert torch.equal(found.view(torch.int32), expected.view(torch.int32))


# Bounds are the greatest errors over all 2^32 words (see the exhaustive test), rounded up.
@pytest.mark.parametrize(("kind", "bound"), [("normal", 1.7e-6), ("laplace", 1.4e-6)])
def test_committed_bits_are_accurate(
    kind: str, bound: float, noise_vectors: dict[str, list[str]]
) -> None:
    signed = expected_noise(kind, noise_vectors)
    exact = torch.tensor([float(x) for x in noise_vectors[f"{kind}_exact"]], dtype=torch.float64)
    assert (signed.view(torch.float32).double() - exact).abs().max() < bound


@pytest.mark.parametrize("kind", KINDS)
def test_noise_is_antisymmetric(kind: str, words: torch.Tensor) -> None:
    distribution = DISTRIBUTIONS[kind]
    mirrored = distribution(0xFFFFFFFF - words)
    assert torch.equal(distribution(words).view(torch.int32), (-mirrored).view(torch.int32))


@pytest.mark.parametrize("kind", KINDS)
def test_noise_never_decreases(kind: str, words: torch.Tensor) -> None:
    # Neighbouring words may swap by the last rounding; distinct ones 2^-20 apart may not.
    z = DISTRIBUTIONS[kind](words[::8])
    assert (z.diff() >= -2e-6).all()


def test_randomk_known_answers() -> None:
    for case in json.loads((DATA / "randomk.json").read_text()):
        rng = Rng(case["seed"], case["step"])
        found = torch.cat(list(subset(case["n"], case["k"], rng, case["base"])))
        assert found.tolist() == case["subset"], case


def shards_around(subset: list[int], n: int) -> list[tuple[int, int]]:
    """First index and size of a shard around each element, none of which overlap."""
    found, end = [], 0
    for index in subset:
        start = max(index - 2, end)
        end = min(index + 3, n)
        found.append((start, end - start))
    return found


def test_randomk_of_the_operations(operations: Any) -> None:
    """Domains of each tensor at its base; beyond what fits into memory, shards of the whole."""
    for case in json.loads((DATA / "randomk.json").read_text()):
        n, base, subset = case["n"], case["base"], case["subset"]
        shards = [(base, n)] if n <= 65_537 else shards_around(subset, n)
        weights = [torch.zeros(size) for _, size in shards]
        layout = [x for start, size in shards for x in (start, size, size)]
        rng = torch.tensor([case["seed"] - (case["seed"] >> 63 << 64), case["step"]])
        for per_tensor in {base > 0, n <= 65_537}:
            arguments = (weights, rng, [case["k"]], per_tensor, layout, n)
            packed, stats = operations.randomk_select(*arguments)
            found = [
                start + local
                for (start, _), bits in zip(shards, packed, strict=True)
                for local in np.flatnonzero(np.unpackbits(bits.numpy(), bitorder="little")).tolist()
            ]
            assert found == subset, case
            assert int(stats[:, 0].sum()) == case["k"]


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 65, 1000, 4097])
def test_permutation_is_a_bijection_with_inverse(n: int) -> None:
    everything = torch.arange(n)
    for seed in range(5):
        permutation = Permutation(n, Rng(seed, 0))
        image = permutation(everything)
        assert torch.equal(image.sort().values, everything)
        assert torch.equal(permutation.inverse(image), everything)


def test_noise_op_addresses_words_by_index_alone(operations: Any) -> None:
    rng = torch.tensor([-1, 5])  # the greatest seed, as two's complement
    index = torch.cat((torch.arange(250), torch.tensor([2**31, 2**34 + 1, 2**40 + 3])))
    together = operations.noise(index, rng, "normal")
    shuffled = torch.randperm(len(index), generator=torch.Generator().manual_seed(0))
    assert torch.equal(operations.noise(index[shuffled], rng, "normal"), together[shuffled])
    alone = torch.cat([operations.noise(i.view(1), rng, "normal") for i in index])
    assert torch.equal(alone, together)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_normal_is_accurate_everywhere() -> None:
    """Every word above the median (the other half mirrors it) against scipy in float64."""
    special = pytest.importorskip("scipy.special")
    worst = 0.0
    step = 1 << 22
    for start in range(1 << 31, 1 << 32, step):
        word = torch.arange(start, start + step)
        tail = ((1 << 32) - 0.5 - word.double().numpy()) * 2.0**-32
        error = DISTRIBUTIONS["normal"](word).double().numpy() + special.ndtri(tail)
        worst = max(worst, float(abs(error).max()))
    assert worst < 1.7e-6
