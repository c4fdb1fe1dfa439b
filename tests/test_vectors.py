"""The reference reproduces the committed known-answer vectors, which it took no part in making."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from fastunlearn._ops import ops
from fastunlearn.reference.noise import DISTRIBUTIONS
from fastunlearn.reference.permutation import Permutation
from fastunlearn.reference.philox import Rng, philox4x32
from fastunlearn.reference.randomk import subset

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def noise_vectors() -> dict[str, list[str]]:
    with (DATA / "noise.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {name: [row[name] for row in rows] for name in rows[0]}


@pytest.fixture(scope="module")
def words(noise_vectors: dict[str, list[str]]) -> torch.Tensor:
    return torch.tensor([int(word) for word in noise_vectors["word"]])


def test_philox_known_answers() -> None:
    cases = json.loads((DATA / "philox.json").read_text())
    assert sum(case["source"] == "Random123" for case in cases) == 3
    for case in cases:
        counter = torch.tensor(case["counter"]).unsqueeze(1)
        assert philox4x32(counter, tuple(case["key"])).flatten().tolist() == case["words"]


@pytest.mark.parametrize("kind", ["normal", "uniform", "laplace"])
def test_noise_bits(kind: str, noise_vectors: dict[str, list[str]], words: torch.Tensor) -> None:
    assert len(words) >= 4096
    expected = torch.tensor([int(bits, 16) for bits in noise_vectors[kind]])
    bits = DISTRIBUTIONS[kind](words).view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    assert torch.equal(bits, expected)


# Bounds are the greatest errors over all 2^32 words (see the exhaustive test), rounded up.
@pytest.mark.parametrize(("kind", "bound"), [("normal", 1.7e-6), ("laplace", 1.4e-6)])
def test_committed_bits_are_accurate(
    kind: str, bound: float, noise_vectors: dict[str, list[str]]
) -> None:
    bits = [int(text, 16) for text in noise_vectors[kind]]
    signed = torch.tensor([value - (value >> 31 << 32) for value in bits], dtype=torch.int32)
    exact = torch.tensor([float(x) for x in noise_vectors[f"{kind}_exact"]], dtype=torch.float64)
    assert (signed.view(torch.float32).double() - exact).abs().max() < bound


@pytest.mark.parametrize("kind", ["normal", "uniform", "laplace"])
def test_noise_is_antisymmetric(kind: str, words: torch.Tensor) -> None:
    distribution = DISTRIBUTIONS[kind]
    mirrored = distribution(0xFFFFFFFF - words)
    assert torch.equal(distribution(words).view(torch.int32), (-mirrored).view(torch.int32))


@pytest.mark.parametrize("kind", ["normal", "uniform", "laplace"])
def test_noise_never_decreases(kind: str, words: torch.Tensor) -> None:
    # Neighbouring words may swap by the last rounding; distinct ones 2^-20 apart may not.
    z = DISTRIBUTIONS[kind](words[::8])
    assert (z.diff() >= -2e-6).all()


def test_randomk_known_answers() -> None:
    for case in json.loads((DATA / "randomk.json").read_text()):
        rng = Rng(case["seed"], case["step"])
        found = torch.cat(list(subset(case["n"], case["k"], rng, case["base"])))
        assert found.tolist() == case["subset"], case


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 65, 1000, 4097])
def test_permutation_is_a_bijection_with_inverse(n: int) -> None:
    everything = torch.arange(n)
    for seed in range(5):
        permutation = Permutation(n, Rng(seed, 0))
        image = permutation(everything)
        assert torch.equal(image.sort().values, everything)
        assert torch.equal(permutation.inverse(image), everything)


def test_noise_op_addresses_words_by_index_alone() -> None:
    rng = torch.tensor([-1, 5])  # the greatest seed, as two's complement
    index = torch.cat((torch.arange(1000), torch.tensor([2**31, 2**34 + 1, 2**40 + 3])))
    together = ops.noise(index, rng, "normal")
    shuffled = torch.randperm(len(index), generator=torch.Generator().manual_seed(0))
    assert torch.equal(ops.noise(index[shuffled], rng, "normal"), together[shuffled])
    alone = torch.cat([ops.noise(i.view(1), rng, "normal") for i in index])
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
