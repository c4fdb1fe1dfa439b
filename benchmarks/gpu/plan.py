"""What is measured on a GPU, and the bars: the cases that these need come first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.bars import (
    Bar,
    Mebibytes,
    Microseconds,
    Quantity,
    Ratio,
    memory_probes,
    timed_probes,
)
from benchmarks.gpu.peers import RANDOM_K, TOP_K
from fastunlearn.bench.cases import Case, Probe
from fastunlearn.bench.patterns import Data

BANDWIDTH = "bytes / bandwidth"  # a floor: what the case must move, at the rate measured before
TOPK, KTHVALUE = "cat + topk + index_add_", "cat + kthvalue + where"
SALUN = "SalUn: argsort(argsort(cat))"
TOP_K_PEERS = (TOPK, KTHVALUE, SALUN, *TOP_K)
RANDOM_K_PEERS = ("Bernoulli mask", "randperm[:K]", *RANDOM_K)
FRACTIONS = (0.01, 0.5, 0.1, 0.001)
DTYPES = ("fp32", "bf16")
BILLION, LLAMA = 10**9, "Llama-2-7B"


@dataclass(frozen=True)
class Step:
    """A case and the methods beside ours and the floors."""

    case: Case
    peers: tuple[str, ...] = ()


def _billion(dtype: str, shrink: int) -> Data:
    return Data("one tensor", BILLION, dtype=dtype).shrunk(shrink)


def _llama(shrink: int) -> Data:
    return Data(LLAMA, dtype="bf16").shrunk(shrink)


def steps(shrink: int = 1) -> Iterator[Step]:
    """The plan in its order: the bars, then sizes from small to large, models, ties."""
    for dtype in DTYPES:
        for k in FRACTIONS:
            yield Step(Case(_billion(dtype, shrink), k=k), (TOPK,) if k == 0.01 else ())
    yield Step(Case(_llama(shrink)))
    for size in (10**6, 10**7, 10**8):
        for dtype in DTYPES:
            data = Data("one tensor", size, dtype=dtype).shrunk(shrink)
            for k in FRACTIONS:
                yield Step(Case(data, k=k), TOP_K_PEERS if k in (0.01, 0.5) else ())
            yield Step(Case(data, "random_k"), RANDOM_K_PEERS)
    for data in (Data("ResNet-50"), Data("tensors of 100", 10**6)):
        yield Step(Case(data.shrunk(shrink)), TOP_K_PEERS)
        yield Step(Case(data.shrunk(shrink), "random_k"), RANDOM_K_PEERS)
    for values, dtype in (("70 % zeros", "fp32"), ("all equal", "fp32"), ("ties", "bf16")):
        for k in (0.01, 0.5):
            yield Step(Case(Data("one tensor", 10**8, values, dtype).shrunk(shrink), k=k), (TOPK,))
    yield Step(Case(_llama(shrink), "random_k"))
    for dtype in DTYPES:
        yield Step(Case(_billion(dtype, shrink), "random_k"), RANDOM_K_PEERS)


def over_floor(case: Case) -> Ratio:
    """Ours over the floor of its case."""
    return Ratio(Probe(case), tuple(Probe(case, way) for way in (*case.floors, BANDWIDTH)))


def bars(shrink: int = 1) -> list[Bar]:
    """What has to be reached."""
    found = []
    for dtype in DTYPES:
        case, row = Case(_billion(dtype, shrink)), f"Top-K 1 %, n = 1e9 {dtype}"
        faster = Ratio(Probe(case, TOPK), (Probe(case),))
        found.append(Bar(row, "vs reading the scores", over_floor(case), 1.3, 1.15))
        found.append(Bar(row, f"vs {TOPK}", faster, 20.0, 50.0, True))
    case = Case(_llama(shrink))
    row, quarter = f"Top-K 1 %, {LLAMA} shapes, bf16", case.data.numel / 4 / 2**20
    measured: list[tuple[str, Quantity, float]] = [
        ("time", Microseconds(Probe(case)), 10_000.0),
        ("extra memory, n/4 bytes", Mebibytes(Probe(case)), quarter),
    ]
    found += [Bar(row, what, quantity, limit) for what, quantity, limit in measured]
    for k in sorted(FRACTIONS):
        case = Case(_billion("fp32", shrink), k=k)
        limit, what = case.data.numel / 4 / 2**20 + 64, f"K = {100 * k:g} %, n/4 bytes + 64 MiB"
        row = "extra memory, Top-K, n = 1e9 fp32"
        found.append(Bar(row, what, Mebibytes(Probe(case)), limit, limit / 2))
    return found


def bar_cases(shrink: int = 1) -> list[Case]:
    """The cases that the bars need, in the order of the plan."""
    quantities = [bar.quantity for bar in bars(shrink)]
    needed = {p.case for q in quantities for p in (*timed_probes(q), *memory_probes(q))}
    return [step.case for step in steps(shrink) if step.case in needed]
