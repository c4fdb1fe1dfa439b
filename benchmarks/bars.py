"""The bars for CPUs: what has to be reached, as one table.

A ratio is of medians from one interleaved run; bars with the same `run` are measured together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from fastunlearn.bench.cases import FALLBACK, OP, OURS, STEP, Case, Probe
from fastunlearn.bench.patterns import Data


@dataclass(frozen=True)
class Ratio:
    """Time of one probe over the least time of others."""

    over: Probe
    under: tuple[Probe, ...]
    unit = "x"


@dataclass(frozen=True)
class Microseconds:
    """Time of one probe."""

    probe: Probe
    unit = " us"


@dataclass(frozen=True)
class Mebibytes:
    """Peak extra memory of one probe."""

    probe: Probe
    unit = " MiB"


@dataclass(frozen=True)
class MemoryRatio:
    """Peak extra memory of one probe over that of another."""

    over: Probe
    under: Probe
    unit = "x"


Quantity = Ratio | Microseconds | Mebibytes | MemoryRatio


@dataclass(frozen=True)
class Bar:
    """One line of the check.

    Args:
        row: the row of the table of bars that it belongs to.
        what: what of that row.
        quantity: what is measured.
        limit: the bar; None for a figure that is reported beside the others.
        beyond: the mark beyond the bar.
        at_least: whether the bar is a least value, not a greatest.
        run: bars of one run are measured together.
        or_else: another quantity and the most it may be, for the bar to hold all the same.
    """

    row: str
    what: str
    quantity: Quantity
    limit: float | None
    beyond: float | None = None
    at_least: bool = False
    run: str = "memory"
    or_else: tuple[Quantity, float] | None = None


LARGE = Data("one tensor", 10**8)
LAYERS = Data("62 tensors", 10**8)
TOPK, PARTITION = "cat + topk + index_add_", "abs + np.partition"
SALUN = "SalUn: argsort(argsort(cat))"


def over_floor(case: Case, threads: int | None = None) -> Ratio:
    """Ours over the floor of its case."""
    floors = tuple(Probe(case, way, threads) for way in case.floors)
    return Ratio(Probe(case, OURS, threads), floors)


def over_ours(case: Case, method: str) -> Ratio:
    """How many times faster ours is than a method."""
    return Ratio(Probe(case, method), (Probe(case),))


def _top_k() -> Iterator[Bar]:
    case, run = Case(LARGE), "Top-K 1 %"
    yield Bar("CPU Top-K 1 %, n = 1e8 fp32", "vs read floor", over_floor(case), 2.0, 1.3, run=run)
    for method, limit in ((TOPK, 100.0), (PARTITION, 10.0)):
        ratio = over_ours(case, method)
        yield Bar("CPU Top-K 1 %, n = 1e8 fp32", f"vs {method}", ratio, limit, 2 * limit, True, run)
    for k in (0.1, 0.5):
        ratio, what = over_floor(Case(LARGE, k=k)), f"K = {100 * k:g} %, vs update floor"
        yield Bar("CPU Top-K 10 % and 50 %, n = 1e8 fp32", what, ratio, 2.5, 1.5, run="Top-K large")
    case, row = Case(Data("ResNet-18")), "ResNet-18 list (62 tensors), Top-K 1 %"
    for method, limit in ((SALUN, 500.0), (TOPK, 60.0)):
        ratio = over_ours(case, method)
        yield Bar(row, f"vs {method}", ratio, limit, 2 * limit, True, "ResNet-18")


def _random_k() -> Iterator[Bar]:
    case = Case(LARGE, "random_k")
    for method, limit in (("randperm[:K]", 150.0), ("Bernoulli mask", 60.0)):
        ratio = over_ours(case, method)
        yield Bar(
            "Random-k 1 %, n = 1e8", f"vs {method}", ratio, limit, 2 * limit, True, "Random-k"
        )


def _memory(shrink: int) -> Iterator[Bar]:
    for k in (0.01, 0.1, 0.5):
        case = Case(LARGE, k=k)
        limit = case.shrunk(shrink).data.numel / 4 / 2**20 + 64
        row, what = "extra memory, Top-K, n = 1e8", f"K = {100 * k:g} %, n/4 bytes + 64 MiB"
        yield Bar(row, what, Mebibytes(Probe(case)), limit, limit / 2)


def _overhead() -> Iterator[Bar]:
    case = Case(Data("20 tensors", 10**4))
    row, run = "call overhead, 10 k parameters in 20 tensors", "call overhead"
    yield Bar(row, "perturb_", Microseconds(Probe(case)), 60.0, 30.0, run=run)
    yield Bar(row, "Perturber.step", Microseconds(Probe(case, STEP)), None, run=run)
    yield Bar(row, "op alone", Microseconds(Probe(case, OP)), None, run=run)


def _threads() -> Iterator[Bar]:
    case, row, run = Case(LARGE), "1 -> 2 threads at n = 1e8", "Top-K 1 %"
    ratio = Ratio(Probe(case, OURS, 1), (Probe(case, OURS, 2),))
    yield Bar(
        row,
        "or at the memory floor (1.3x)",
        ratio,
        1.7,
        at_least=True,
        run=run,
        or_else=(over_floor(case, 2), 1.3),
    )
    for way in case.floors:
        ratio = Ratio(Probe(case, way, 1), (Probe(case, way, 2),))
        yield Bar(row, f"the floor itself, {way}", ratio, None, run=run)


def _adversarial() -> Iterator[Bar]:
    cases = [(replace(LARGE, values="70 % zeros"), 0.5, "fp32")]
    cases += [(replace(LARGE, values=v), k, "fp32") for v in ("all equal", "sorted") for k in _KS]
    cases += [(replace(LAYERS, values="one layer 1e6 times larger"), 0.01, "layers")]
    cases += [(replace(LARGE, values="ties", dtype="bf16"), 0.01, "bf16")]
    for data, k, name in cases:
        random = Probe(Case(replace(data, values="normal"), k=k))
        words = "a million ties at the threshold" if data.values == "ties" else data.values
        yield Bar(
            "adversarial values, n = 1e8, vs random values",
            f"{words}, {data.dtype}, K = {100 * k:g} %",
            Ratio(Probe(Case(data, k=k)), (random,)),
            2.0,
            run=f"adversarial, {name}",
        )


_KS = (0.01, 0.5)


def _fallback() -> Iterator[Bar]:
    row = "pure-PyTorch fallback vs the topk idiom"
    small = [Data("20 tensors", 10**4), Data("one tensor", 10**6)]
    timed = [(Case(data), f"fallback, {data.size}") for data in small]
    timed += [(Case(Data("one tensor", 10**7), k=0.5), "fallback, 1e7")]
    timed += [(Case(Data("ResNet-18")), "ResNet-18"), (Case(LARGE), "Top-K 1 %")]
    for case, run in timed:
        ratio = Ratio(Probe(case, TOPK), (Probe(case, FALLBACK),))
        what = f"times faster, {case.data.layout}, n = {case.data.numel}, K = {100 * case.k:g} %"
        yield Bar(row, what, ratio, 1.0, at_least=True, run=run)
    for case in (Case(Data("ResNet-18")), Case(LARGE)):
        memory = MemoryRatio(Probe(case, FALLBACK), Probe(case, TOPK))
        yield Bar(row, f"extra memory, {case.data.layout}, n = {case.data.numel}", memory, 1.0)


def bars(cores: int, shrink: int = 1) -> list[Bar]:
    """All bars that a machine of so many cores can be held to, sizes divided by `shrink`."""
    parts = [_top_k(), _random_k(), _memory(shrink), _overhead()]
    parts += [_threads()] if cores > 1 else []
    found = [bar for part in [*parts, _adversarial(), _fallback()] for bar in part]
    return [_map_probes(bar, lambda probe: _shrunk(probe, shrink)) for bar in found]


def _shrunk(probe: Probe, shrink: int) -> Probe:
    return replace(probe, case=probe.case.shrunk(shrink))


def _map_quantity(quantity: Quantity, change: Callable[[Probe], Probe]) -> Quantity:
    if isinstance(quantity, Ratio):
        return Ratio(change(quantity.over), tuple(map(change, quantity.under)))
    if isinstance(quantity, MemoryRatio):
        return MemoryRatio(change(quantity.over), change(quantity.under))
    return replace(quantity, probe=change(quantity.probe))


def _map_probes(bar: Bar, change: Callable[[Probe], Probe]) -> Bar:
    other = bar.or_else and (_map_quantity(bar.or_else[0], change), bar.or_else[1])
    return replace(bar, quantity=_map_quantity(bar.quantity, change), or_else=other)


def quantities(bar: Bar) -> list[Quantity]:
    """All that the bar needs measured."""
    return [bar.quantity, *([bar.or_else[0]] if bar.or_else else [])]


def timed_probes(quantity: Quantity) -> list[Probe]:
    """Probes whose time the quantity needs."""
    if isinstance(quantity, Ratio):
        return [quantity.over, *quantity.under]
    return [quantity.probe] if isinstance(quantity, Microseconds) else []


def memory_probes(quantity: Quantity) -> list[Probe]:
    """Probes whose memory the quantity needs."""
    if isinstance(quantity, MemoryRatio):
        return [quantity.over, quantity.under]
    return [quantity.probe] if isinstance(quantity, Mebibytes) else []


def value_of(
    quantity: Quantity, ms: Mapping[Probe, float], mib: Mapping[Probe, float | None]
) -> float | None:
    """The measured quantity; None where the machine could not tell."""
    if isinstance(quantity, Ratio):
        under = [ms[probe] for probe in quantity.under if probe in ms]
        return ms[quantity.over] / min(under) if under and quantity.over in ms else None
    if isinstance(quantity, Microseconds):
        return ms[quantity.probe] * 1e3 if quantity.probe in ms else None
    if isinstance(quantity, Mebibytes):
        return mib.get(quantity.probe)
    ours, other = mib[quantity.over], mib[quantity.under]
    return None if ours is None or other is None else ours / max(other, 1e-9)
