"""pytest-benchmark cases: `pytest benchmarks --benchmark-only`.

For comparing two commits on one machine (`--benchmark-compare`); the bars are checked by
`python -m benchmarks --check`.
"""

from __future__ import annotations

from itertools import cycle

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fastunlearn.bench.cases import OP, OURS, STEP, Case, prepare
from fastunlearn.bench.measure import buffer_sets
from fastunlearn.bench.patterns import Data, make
from fastunlearn.bench.results import label

SMALL, MIDDLE, LARGE = (
    Data("20 tensors", 10**4),
    Data("one tensor", 10**6),
    Data("one tensor", 10**7),
)
CASES = [
    *(Case(data, kind) for data in (SMALL, MIDDLE, LARGE) for kind in ("top_k", "random_k")),
    *(Case(LARGE, k=k) for k in (0.001, 0.1, 0.5)),
    Case(Data("ResNet-18")),
    Case(Data("tensors of 100", 10**6)),
    *(Case(Data("one tensor", 10**7, dtype=dtype)) for dtype in ("bf16", "fp16")),
    *(Case(Data("one tensor", 10**7, values)) for values in ("70 % zeros", "all equal", "sorted")),
]


def time(benchmark: BenchmarkFixture, case: Case, method: str) -> None:
    """Time a method on buffers that take turns, as in `fastunlearn.bench.measure`."""
    sets = [make(case.data, seed) for seed in range(buffer_sets(case.data))]
    calls = cycle([call for one in sets if (call := prepare(one, case, method)) is not None])
    benchmark.group = label(case)
    benchmark(lambda: next(calls)())


@pytest.mark.parametrize("case", CASES, ids=label)
def test_ours(benchmark: BenchmarkFixture, case: Case) -> None:
    time(benchmark, case, OURS)


@pytest.mark.parametrize("method", [OP, STEP])
def test_call_overhead(benchmark: BenchmarkFixture, method: str) -> None:
    time(benchmark, Case(SMALL), method)


@pytest.mark.parametrize("case", [Case(MIDDLE), Case(MIDDLE, k=0.5)], ids=label)
@pytest.mark.parametrize("peer", Case(MIDDLE).peers)
def test_top_k_peers(benchmark: BenchmarkFixture, case: Case, peer: str) -> None:
    time(benchmark, case, peer)


@pytest.mark.parametrize("peer", Case(MIDDLE, "random_k").peers)
def test_random_k_peers(benchmark: BenchmarkFixture, peer: str) -> None:
    time(benchmark, Case(MIDDLE, "random_k"), peer)


@pytest.mark.parametrize("floor", [f for k in (0.01, 0.5) for f in Case(MIDDLE, k=k).floors])
def test_floors(benchmark: BenchmarkFixture, floor: str) -> None:
    if prepare(make(MIDDLE), Case(MIDDLE), floor) is None:
        pytest.skip("the extension does not have it")
    time(benchmark, Case(MIDDLE), floor)
