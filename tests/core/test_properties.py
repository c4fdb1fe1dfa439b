"""Generated cases against the independent oracle: the same set, the same bits, nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from core import oracle
from core.cases import DTYPES, POOLS, SHAPES, STRIDES, Group, expect, expected_memory, generator
from core.cases import numbers as draw_numbers
from core.cases import place as draw_place
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import fastunlearn as fu
from fastunlearn.reference import keys as reference_keys
from fastunlearn.reference import memory, ops, randomk, topk


def examples(count: int) -> settings:
    """The same cases in every run, and none remembered between runs."""
    return settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )


SEEDS = st.one_of(st.sampled_from((0, 1, 2**32, 2**63, 2**64 - 1)), st.integers(0, 2**64 - 1))
STEPS = st.sampled_from((0, 1, 2**31, 2**32 - 1))


@dataclass
class Case:
    """One generated call."""

    group: Group
    strategy: Any
    kind: str  # which score the key comes from
    given: bool  # scores= rather than .grad
    seed: int
    step: int
    ks: list[int]

    @property
    def per_tensor(self) -> bool:
        return self.strategy.scope == "tensor"

    @property
    def scale(self) -> list[float]:
        if self.strategy.rel_std is None:
            return [self.strategy.std] * len(self.group.weights)
        return [oracle.rms(w) * self.strategy.rel_std for w in self.group.weights]

    def arguments(self) -> dict[str, Any]:
        scores = self.group.scores if self.given else None
        return {"scores": scores, "seed": self.seed, "step": self.step}

    def keys(self) -> list[list[int]]:
        nan = "smallest" if self.strategy.nan == "smallest" else "largest"
        pairs = zip(self.group.weights, self.group.scores, strict=True)
        return [oracle.keys(w, s, self.kind, nan) for w, s in pairs]

    def picks(self) -> tuple[list[oracle.Pick], list[tuple[int, int, int]]]:
        """Selected elements, and for each tensor its threshold key, ties and ties taken."""
        weights = self.group.weights
        places = oracle.whole(weights)
        if isinstance(self.strategy, fu.RandomK):
            rng = (self.seed, self.step)
            sizes = [w.numel() for w in weights]
            picks = oracle.random_k(places, sizes, self.ks, self.per_tensor, self.group.numel, rng)
            return picks, [(-1, 0, 0)] * len(weights)
        keys, picks, cuts = self.keys(), [], []
        for members, k in zip(oracle.problems(weights, self.per_tensor), self.ks, strict=True):
            found, cut = oracle.top_k(keys, places, members, k)
            picks += found
            cuts += [cut] * len(members)
        return picks, cuts


@st.composite
def groups(draw: Any, kind: str = "grad", given_scores: bool = True) -> Group:
    group = Group()
    values = generator(draw(st.integers(0, 2**32)))
    shapes = draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=5))
    pool, weight_pool = draw(st.sampled_from(POOLS)), draw(st.sampled_from(POOLS))
    strides = draw(st.tuples(*[st.sampled_from(STRIDES)] * 2))
    nan = draw(st.booleans())
    for shape in shapes:
        dtype, other = (DTYPES[i] for i in values.integers(0, 4, 2))
        weight, buffer = draw_place(draw_numbers(weight_pool, shape, dtype, values), strides[0])
        score = draw_numbers(pool, shape, other if given_scores else dtype, values)
        if nan and kind != "weight" and score.numel():
            score.view(-1)[int(values.integers(score.numel()))] = float("nan")
        score, _ = draw_place(score, strides[1])
        if not given_scores:
            weight.grad = score
        group.add(weight, weight if kind == "weight" else score, buffer)
    return group


def counts(strategy: Any, group: Group) -> list[int]:
    sizes = [group.numel]
    if strategy.scope == "tensor":
        sizes = [w.numel() for w in group.weights]
    return [k if isinstance(k := strategy.k, int) else round(k * n) for n in sizes]


@st.composite
def cases(draw: Any, random: bool = False) -> Case:
    kind = (
        "grad" if random else draw(st.sampled_from(("given", "grad", "fisher", "taylor", "weight")))
    )
    is_given = kind == "given"
    kind = "grad" if is_given else kind
    group = draw(groups(kind, is_given))
    scope = draw(st.sampled_from(("global", "tensor")))
    sizes = [w.numel() for w in group.weights]
    most = group.numel if scope == "global" else min(sizes)
    options: dict[str, Any] = {
        "k": draw(st.one_of(st.integers(0, most), st.just(most), st.floats(0.01, 1.0))),
        "noise": draw(st.sampled_from(("normal", "uniform", "laplace"))),
        "mode": draw(st.sampled_from(("add", "add", "replace", "zero"))),
        "scope": scope,
        "rounding": draw(st.sampled_from(("nearest", "stochastic"))),
    }
    relative = draw(st.booleans()) and all(bool(w.isfinite().all()) for w in group.weights)
    relative = relative and all(w.dtype != torch.float64 for w in group.weights)
    options["rel_std" if relative else "std"] = draw(st.sampled_from((0.0, 0.1, 1.0, 1e-6, 300.0)))
    if random:
        strategy: Any = fu.RandomK(**options)
    else:
        nan = draw(st.sampled_from(("largest", "smallest")))
        strategy = fu.TopK(score="grad" if is_given else kind, nan=nan, **options)
    ks = counts(strategy, group)
    assume(isinstance(strategy.k, int) or any(ks) or not group.numel)
    return Case(group, strategy, kind, is_given, draw(SEEDS), draw(STEPS), ks)


def check_perturb(case: Case) -> None:
    group, strategy = case.group, case.strategy
    picks, cuts = case.picks()
    places = oracle.whole(group.weights)
    rng, scale = (case.seed, case.step), case.scale
    outcomes = expect(group, picks, places, scale, rng, strategy.noise, strategy.update)
    wanted, before = expected_memory(group, outcomes), group.memory()
    scores = [oracle.raw(s) for s in group.scores] if case.kind != "weight" else []
    overflow = sum(outcome.overflow for outcome in outcomes)
    if overflow:
        with pytest.raises(ValueError, match="overflow"):
            fu.perturb_(group.weights, strategy, **case.arguments())
        assert group.memory() == before
    receipt = fu.perturb_(
        group.weights, strategy, allow_overflow=overflow > 0, keep_seed=True, **case.arguments()
    )
    assert group.memory() == wanted
    for score, bits in zip(group.scores, scores, strict=False):
        assert np.array_equal(oracle.raw(score), bits)
    assert [t.selected for t in receipt.tensors] == [o.selected for o in outcomes]
    assert [t.scale for t in receipt.tensors] == scale
    assert receipt.count == len(picks) and receipt.k == sum(case.ks) and receipt.n == group.numel
    assert receipt.overflow == overflow
    assert receipt.unchanged == sum(outcome.unchanged for outcome in outcomes)
    ties = cuts if case.per_tensor else cuts[:1]
    assert receipt.ties == sum(cut[1] for cut in ties)
    assert receipt.ties_taken == sum(cut[2] for cut in ties)
    assert (receipt.seed, receipt.step) == rng


def check_select(case: Case) -> None:
    group = case.group
    before = group.memory()
    picks, cuts = case.picks()
    selection = fu.select(group.weights, case.strategy, **case.arguments())
    assert group.memory() == before
    masks, packed, places = selection.masks(), selection.packed(), oracle.whole(group.weights)
    assert list(masks) == list(packed) == [str(i) for i in range(len(group.weights))]
    for number, weight in enumerate(group.weights):
        mask = np.zeros(weight.numel(), bool)
        mask[[local for tensor, local in picks if tensor == number]] = True
        found = masks[str(number)]
        assert found.dtype == torch.bool and found.shape == weight.shape
        assert np.array_equal(found.reshape(-1).numpy(), mask)
        assert np.array_equal(packed[str(number)].numpy(), np.packbits(mask, bitorder="little"))
        assert selection.counts[str(number)] == int(mask.sum())
    indices = selection.indices()
    assert indices.dtype == torch.int64
    assert indices.tolist() == sorted(places[tensor].index(local) for tensor, local in picks)
    assert selection.count == len(picks)
    thresholds = [threshold_of(cut[0]) for cut in cuts]
    if isinstance(case.strategy, fu.RandomK):
        assert selection.threshold is None
    elif case.per_tensor:
        assert same(selection.threshold, tuple(thresholds))
    else:
        assert same(selection.threshold, thresholds[0])


def threshold_of(key: int) -> float | None:
    return float(np.uint32(key).view(np.float32)) if 0 <= key <= 0x7FFFFFFF else None


def same(found: Any, wanted: Any) -> bool:
    """Equality in which NaN (the threshold of nan="largest") equals itself."""
    return repr(found) == repr(wanted)


@examples(1000)
@given(cases())
def test_topk_perturb_writes_the_oracles_bits(case: Case) -> None:
    check_perturb(case)


@examples(600)
@given(cases())
def test_topk_select_finds_the_oracles_set(case: Case) -> None:
    check_select(case)


@examples(150)
@given(cases(random=True))
def test_randomk_perturb_writes_the_oracles_bits(case: Case) -> None:
    check_perturb(case)


@examples(150)
@given(cases(random=True))
def test_randomk_select_finds_the_oracles_set(case: Case) -> None:
    check_select(case)


@pytest.fixture(params=["radix", "bracketed", "chunks"])
def large(request: Any, monkeypatch: Any) -> str:
    """Make the reference take its paths for large inputs on small ones."""
    monkeypatch.setattr(memory, "CHUNK", 8)
    monkeypatch.setattr(randomk, "CHUNK", 8)
    if request.param != "chunks":
        monkeypatch.setattr(topk, "_SMALL", 0)
    if request.param == "radix":
        monkeypatch.setattr(topk, "_bracketed", lambda *_: None)
    elif request.param == "bracketed":
        monkeypatch.setattr(topk, "_SAMPLE", 48)
        monkeypatch.setattr(topk, "_SAMPLE_SHIFT", 0)
        monkeypatch.setattr(topk, "_LOG_INVERSE_MISS", 0.3)
    return request.param


def rng_of(case: Case) -> torch.Tensor:
    return torch.tensor([case.seed - 2**64 * (case.seed >> 63), case.step])


def layout_of(places: list[oracle.Place]) -> list[int]:
    return [x for p in places for x in (p.base, p.row_len, p.row_stride)]


@examples(120)
@given(case=cases())
def test_large_paths_of_topk(large: str, case: Case) -> None:
    picks, cuts = case.picks()
    weights, places = case.group.weights, oracle.whole(case.group.weights)
    nan = case.strategy.nan
    arguments = (weights, case.group.scores, case.ks, case.per_tensor, case.kind, nan)
    packed, stats = ops.topk_select(*arguments, layout_of(places))
    check_packed(case, packed, picks)
    assert [tuple(row[1:4]) for row in stats.tolist()] == cuts
    check_reference_perturb(case, picks, topk=True)


@examples(40)
@given(case=cases(random=True))
def test_large_paths_of_randomk(large: str, case: Case) -> None:
    picks, _ = case.picks()
    weights, places = case.group.weights, oracle.whole(case.group.weights)
    arguments = (weights, rng_of(case), case.ks, case.per_tensor)
    packed, _ = ops.randomk_select(*arguments, layout_of(places), case.group.numel)
    check_packed(case, packed, picks)
    check_reference_perturb(case, picks, topk=False)


def check_packed(case: Case, packed: list[torch.Tensor], picks: list[oracle.Pick]) -> None:
    for number, weight in enumerate(case.group.weights):
        mask = np.zeros(weight.numel(), bool)
        mask[[local for tensor, local in picks if tensor == number]] = True
        assert np.array_equal(packed[number].numpy(), np.packbits(mask, bitorder="little"))


def check_reference_perturb(case: Case, picks: list[oracle.Pick], *, topk: bool) -> None:
    group, strategy = case.group, case.strategy
    places = oracle.whole(group.weights)
    rng = (case.seed, case.step)
    outcomes = expect(group, picks, places, case.scale, rng, strategy.noise, strategy.update)
    wanted = expected_memory(group, outcomes)
    scale = torch.tensor(case.scale, dtype=torch.float64)
    common = (scale, rng_of(case), case.ks, case.per_tensor)
    tail = (strategy.noise, strategy.update, True, layout_of(places))
    if topk:
        head = (group.weights, group.scores)
        stats = ops.topk_perturb_(*head, *common, case.kind, strategy.nan, *tail)
    else:
        stats = ops.randomk_perturb_(group.weights, *common, *tail, group.numel)
    assert group.memory() == wanted
    assert stats[:, ops.Stat.SELECTED].tolist() == [o.selected for o in outcomes]
    assert stats[:, ops.Stat.UNCHANGED].tolist() == [o.unchanged for o in outcomes]


def test_bracket_meets_every_branch(monkeypatch: Any) -> None:
    """The small sample hits, and misses, both bounds: else the forced paths would prove little."""
    monkeypatch.setattr(memory, "CHUNK", 64)
    monkeypatch.setattr(topk, "_SAMPLE", 48)
    monkeypatch.setattr(topk, "_SAMPLE_SHIFT", 0)
    monkeypatch.setattr(topk, "_LOG_INVERSE_MISS", 0.3)
    met = set()
    values = generator(0)
    for levels in (2, 5, 400):
        scores = [torch.tensor(values.integers(0, levels, 400), dtype=torch.float32)]
        keys = reference_keys.KeySource(scores, scores, "grad", "error")
        ordered = sorted(scores[0].view(torch.int32).tolist(), reverse=True)
        for k in range(1, 401, 7):
            found = topk._bracketed(keys, [400], [0], k, 400)
            met.add("missed" if found is None else "found")
            exact = topk._radix(keys, [400], [0], k)
            assert found in (None, exact)
            key = ordered[k - 1]
            assert exact == (key, sum(o > key for o in ordered), ordered.count(key))
    assert met == {"found", "missed"}
