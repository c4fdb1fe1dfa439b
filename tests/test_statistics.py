"""Noise and Random-k look random, at sizes where planted defects show.

Seeds are fixed, so nothing here can flake. Each check is a function that also runs on a planted
defect, which it must refuse.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
import torch

from fastunlearn.reference.noise import DISTRIBUTIONS, noise
from fastunlearn.reference.permutation import ROUNDS, Permutation
from fastunlearn.reference.philox import STREAM_PERMUTATION, Rng, philox4x32

stats = pytest.importorskip("scipy.stats")

N = 10_000_000
SEEDS = (1, 2, 3)
UNIFORM = stats.uniform(-math.sqrt(3), 2 * math.sqrt(3))
LAPLACE = stats.laplace(scale=math.sqrt(0.5))
EXACT = {"normal": stats.norm, "uniform": UNIFORM, "laplace": LAPLACE}
# Kurtosis and eighth moment give the sampling error of the moments below.
CENTRAL = {"normal": (3, 15, 105), "uniform": (9 / 5, 27 / 7, 9), "laplace": (6, 90, 2520)}
SIGMAS = 5.0  # per check; about 100 checks in all, each misses with probability 6e-7


@pytest.fixture(scope="module")
def samples() -> dict[tuple[str, int], np.ndarray]:
    index = torch.arange(N)
    return {
        (kind, seed): noise(index, Rng(seed, 0), kind).numpy()
        for kind, seeds in (("normal", SEEDS), ("uniform", SEEDS[:1]), ("laplace", SEEDS[:1]))
        for seed in seeds
    }


def moment_defects(z: np.ndarray, kind: str) -> list[str]:
    """Mean, variance, third and fourth moment further off than SIGMAS standard errors."""
    fourth, sixth, eighth = CENTRAL[kind]
    z = z.astype(np.float64)
    square = z * z
    found = {
        "mean": (z.mean(), 0.0, 1.0),
        "variance": (square.mean(), 1.0, fourth - 1.0),
        "skew": ((square * z).mean(), 0.0, sixth),
        "kurtosis": ((square * square).mean(), fourth, eighth - fourth**2),
    }
    return [
        name
        for name, (value, wanted, variance) in found.items()
        if abs(value - wanted) > SIGMAS * math.sqrt(variance / len(z))
    ]


def distribution_defects(z: np.ndarray, kind: str) -> list[str]:
    """Kolmogorov-Smirnov distance and chi-squared over 1,000 equally likely bins."""
    p = np.sort(EXACT[kind].cdf(z))
    grid = np.arange(len(p) + 1) / len(p)
    distance = max((grid[1:] - p).max(), (p - grid[:-1]).max())
    counts = np.bincount(np.minimum((p * 1000).astype(int), 999), minlength=1000)
    defects = []
    if distance >= 8.5e-4:  # p = 1e-6 at n = 1e7: sqrt(ln(2 / 1e-6) / (2 n))
        defects.append("Kolmogorov-Smirnov")
    if not 1e-6 < stats.chisquare(counts).pvalue < 1 - 1e-6:
        defects.append("chi-squared")
    return defects


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of two samples of known mean 0 and variance 1, in standard errors."""
    return float(np.dot(a.astype(np.float64), b) / math.sqrt(len(a)))


def correlation_defects(z: np.ndarray) -> list[int]:
    """Lags at which neighbours correlate; 4 is the size of a Philox block."""
    return [lag for lag in (1, 2, 3, 4, 8) if abs(correlation(z[:-lag], z[lag:])) > SIGMAS]


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_noise_has_the_right_distribution(kind: str, samples: dict) -> None:
    for seed in SEEDS if kind == "normal" else SEEDS[:1]:
        z = samples[kind, seed]
        assert moment_defects(z, kind) == []
        assert distribution_defects(z, kind) == []
        assert correlation_defects(z) == []


def test_noise_of_two_seeds_and_two_steps_is_independent(samples: dict) -> None:
    first = samples["normal", 1]
    others = [samples["normal", 2], samples["normal", 3]]
    others.append(noise(torch.arange(N), Rng(1, 1), "normal").numpy())
    for other in others:
        assert abs(correlation(first, other)) < SIGMAS


PLANTED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean off by 0.2 %": lambda z: z + 0.002,
    "scale off by 0.2 %": lambda z: z * 1.002,
    "sum of 12 uniforms": lambda z: (
        np.random.default_rng(0).random((12, len(z) // 4), dtype=np.float32).sum(0) - 6
    ),
    "tails cut at 3": lambda z: z.clip(-3, 3),
    "skewed": lambda z: z + 0.002 * (z * z - 1),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_defect_in_the_distribution_is_caught(name: str, samples: dict) -> None:
    bad = PLANTED[name](samples["normal", 1])
    assert moment_defects(bad, "normal") + distribution_defects(bad, "normal")


def test_a_planted_dependence_is_caught(samples: dict) -> None:
    z = samples["normal", 1]
    one_lane = np.repeat(z[::4], 4)  # every lane of a block reads the first word
    assert correlation_defects(one_lane)
    smoothed = (z[1:] + 0.003 * z[:-1]) / math.sqrt(1 + 0.003**2)
    assert correlation_defects(smoothed) == [1]


# Random-k: n = 1000, K = 100, 20,000 trials. A sampler returns one subset a row.

TRIALS = 20_000
Sampler = Callable[[int, int, int], np.ndarray]


def feistel_sampler(n: int, k: int, trials: int) -> np.ndarray:
    """The library's permutation at steps 0..trials-1, all at once through tensors of round keys."""
    permutation = Permutation(n, Rng(5, 0))
    step = torch.arange(trials)
    zero = torch.zeros_like(step)
    permutation.keys = [
        word.unsqueeze(1)
        for j in range(ROUNDS // 4)
        for word in philox4x32(
            torch.stack((zero, zero, zero + STREAM_PERMUTATION + j, step)), (5, 0)
        )
    ]
    x = permutation._feistel(torch.arange(k).expand(trials, k), inverse=False)
    keys, rows = permutation.keys, (x >= n).any(1).nonzero().squeeze(1)
    while rows.numel():
        permutation.keys = [key[rows] for key in keys]
        part = x[rows]
        x[rows] = part = torch.where(part >= n, permutation._feistel(part, inverse=False), part)
        rows = rows[(part >= n).any(1)]
    return x.numpy()


def block_sampler(n: int, k: int, trials: int) -> np.ndarray:
    """Planted: a random run of neighbours. Inclusion is uniform, pairs are not."""
    return (np.random.default_rng(0).integers(n, size=(trials, 1)) + np.arange(k)) % n


def byte_key_sampler(n: int, k: int, trials: int) -> np.ndarray:
    """Planted: good subsets, but only 256 of them."""
    rng = np.random.default_rng(0)
    subsets = np.stack([rng.choice(n, k, replace=False) for _ in range(256)])
    return subsets[np.arange(trials) % 256]


def inclusion_and_pair_p(sampler: Sampler) -> tuple[float, float]:
    """p-values for how often each element, and each of 5,000 pairs, is in the subset."""
    n, k = 1000, 100
    rng = np.random.default_rng(7)
    # half the pairs are near neighbours, half lie anywhere
    place = np.arange(2500)
    near = np.stack((place % n, (place % n + 1 + place // n) % n), axis=1)
    far = np.array([rng.choice(n, 2, replace=False) for _ in range(2500)])
    pairs = np.concatenate((near, far))
    chosen = np.zeros((TRIALS, n), dtype=np.int8)
    np.put_along_axis(chosen, sampler(n, k, TRIALS), 1, axis=1)
    included = chosen.sum(0, dtype=np.int64)
    by_element = np.ascontiguousarray(chosen.T)
    together = np.array([np.count_nonzero(by_element[a] & by_element[b]) for a, b in pairs])
    p = k / n
    # a fixed sum leaves n - 1 degrees of freedom and a covariance of -p (1 - p) / (n - 1)
    statistic = ((included - TRIALS * p) ** 2).sum() * (n - 1) / (TRIALS * p * (1 - p) * n)
    both = p * (k - 1) / (n - 1)
    pair_statistic = ((together - TRIALS * both) ** 2).sum() / (TRIALS * both * (1 - both))
    return (
        float(stats.chi2.sf(statistic, n - 1)),
        float(stats.norm.sf((pair_statistic - len(pairs)) / math.sqrt(2 * len(pairs)))),
    )


def sound(p_values: tuple[float, float]) -> bool:
    """Two-sided: too even is as wrong as too uneven."""
    return all(1e-6 < p < 1 - 1e-6 for p in p_values)


def test_the_batched_sampler_is_the_library_s() -> None:
    rows = feistel_sampler(1000, 100, 4)
    for step, row in enumerate(rows):
        alone = Permutation(1000, Rng(5, step))(torch.arange(100))
        assert np.array_equal(row, alone.numpy())


def test_random_k_includes_elements_and_pairs_uniformly() -> None:
    assert sound(inclusion_and_pair_p(feistel_sampler))


@pytest.mark.parametrize("sampler", [block_sampler, byte_key_sampler])
def test_a_planted_sampler_is_caught(sampler: Sampler) -> None:
    assert not sound(inclusion_and_pair_p(sampler))


@pytest.mark.parametrize(("n", "k"), [(2, 1), (5, 2), (8, 4), (9, 2)])
def test_random_k_is_uniform_over_all_subsets_of_a_tiny_set(n: int, k: int) -> None:
    place = {subset: i for i, subset in enumerate(combinations(range(n), k))}
    drawn = np.sort(feistel_sampler(n, k, 50_000), axis=1)
    counts = np.bincount([place[tuple(row)] for row in drawn.tolist()], minlength=len(place))
    assert 1e-6 < stats.chisquare(counts).pvalue < 1 - 1e-6
