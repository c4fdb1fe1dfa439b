"""Bad input is refused by one clear error before anything is written; odd input is handled."""

from __future__ import annotations

import itertools
import json
import math
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from core import oracle
from core.cases import DTYPES, STRIDES, generator, image, numbers, place
from core.refusals import REFUSALS, Call, good, pair
from torch import Tensor, nn

import fastunlearn as fu

NAN, INF = float("nan"), float("inf")
CASES = [
    pytest.param(name, operation, dtype, id=f"{name}-{operation}-{str(dtype)[6:]}")
    for (name, refusal), dtype in itertools.product(REFUSALS.items(), DTYPES)
    for operation in refusal.operations
]


class Unchanged:
    """Check on leaving that tensors kept every bit and their version counters."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self.tensors = tensors

    def state(self) -> list[tuple[bytes, int]]:
        return [(image(tensor), tensor._version) for tensor in self.tensors]

    def __enter__(self) -> None:
        self.before = self.state()

    def __exit__(self, *error: object) -> None:
        assert self.state() == self.before


def call(operation: str, made: Call) -> Any:
    return getattr(fu, operation)(made.target, made.strategy, **made.options)


@pytest.mark.parametrize(("name", "operation", "dtype"), CASES)
def test_refused_whole(name: str, operation: str, dtype: torch.dtype) -> None:
    refusal = REFUSALS[name]
    made = refusal.make(dtype)
    with Unchanged(made.watch), pytest.raises(refusal.error, match=refusal.match) as caught:
        call(operation, made)
    assert type(caught.value) is refusal.error
    form = rf"({operation}|TopK|RandomK): .+ must .+, got .+"
    assert re.fullmatch(form, str(caught.value)), str(caught.value)


FIELDS = [
    ({"k": True}, TypeError, "k must be an int .* got True"),
    ({"k": "3"}, TypeError, "k must be an int .* got '3'"),
    ({"k": None}, TypeError, "k must be an int .* got None"),
    ({"k": torch.tensor(3)}, TypeError, r"k must be an int .* got tensor\(3\)"),
    ({"k": -1}, ValueError, "k must be a count >= 0, got -1"),
    ({"k": 0.0}, ValueError, r"k must be a fraction in \(0, 1\], got 0\.0"),
    ({"k": -0.5}, ValueError, r"k must be a fraction in \(0, 1\], got -0\.5"),
    ({"k": 1.0000001}, ValueError, r"k must be a fraction in \(0, 1\], got 1\.0000001"),
    ({"k": NAN}, ValueError, r"k must be a fraction in \(0, 1\], got nan"),
    ({"k": INF}, ValueError, r"k must be a fraction in \(0, 1\], got inf"),
    ({"k": 1, "std": -0.1}, ValueError, r"std must be finite and >= 0, got -0\.1"),
    ({"k": 1, "std": NAN}, ValueError, "std must be finite and >= 0, got nan"),
    ({"k": 1, "std": INF}, ValueError, "std must be finite and >= 0, got inf"),
    ({"k": 1, "std": 10**400}, ValueError, "std must be finite and >= 0, got 1000"),
    ({"k": 1, "std": "1"}, TypeError, "std must be a number, got '1'"),
    ({"k": 1, "std": True}, TypeError, "std must be a number, got True"),
    ({"k": 1, "rel_std": -1}, ValueError, "rel_std must be finite and >= 0, got -1"),
    ({"k": 1, "rel_std": NAN}, ValueError, "rel_std must be finite and >= 0, got nan"),
    ({"k": 1, "rel_std": False}, TypeError, "rel_std must be a number, got False"),
    ({"k": 1, "std": 0.1, "rel_std": 0.1}, ValueError, "rel_std must be None where std is given"),
    ({"k": 1, "noise": "cauchy"}, ValueError, "noise must be one of 'normal', .* got 'cauchy'"),
    ({"k": 1, "mode": "mul"}, ValueError, "mode must be one of 'add', .* got 'mul'"),
    ({"k": 1, "rounding": "up"}, ValueError, "rounding must be one of 'nearest', .* got 'up'"),
    ({"k": 1, "scope": "layer"}, ValueError, "scope must be one of 'global', .* got 'layer'"),
    ({"k": 1, "include": "a"}, TypeError, "include must be a sequence of strings, got 'a'"),
    ({"k": 1, "exclude": [1]}, TypeError, r"exclude must be a sequence of strings, got \[1\]"),
]


@pytest.mark.parametrize("strategy", [fu.TopK, fu.RandomK])
@pytest.mark.parametrize(("fields", "error", "match"), FIELDS, ids=lambda v: str(v)[:40])
def test_strategy_refuses(strategy: Any, fields: dict, error: type, match: str) -> None:
    with pytest.raises(error, match=rf"^{strategy.__name__}: {match}") as caught:
        strategy(**fields)
    assert type(caught.value) is error


@pytest.mark.parametrize("value", ["hessian", None, "GRAD"])
def test_topk_refuses_unknown_names(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^TopK: score must be one of .*'grad'.* got"):
        fu.TopK(1, score=value)
    with pytest.raises(ValueError, match=r"^TopK: nan must be one of 'error', .* got"):
        fu.TopK(1, nan=value)


# What is accepted ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "strategy",
    [fu.TopK(0), fu.RandomK(0), fu.TopK(0, scope="tensor"), fu.RandomK(0, scope="tensor")],
    ids=lambda s: f"{s.name}-{s.scope}",
)
def test_zero_k_changes_nothing(strategy: Any, dtype: torch.dtype) -> None:
    made = good(dtype, strategy)
    options = {} if isinstance(strategy, fu.RandomK) else {"scores": made.options["scores"]}
    before = [image(w) for w in made.watch]
    receipt = fu.perturb_(made.target, strategy, **options)
    assert [image(w) for w in made.watch] == before
    assert (receipt.k, receipt.count, receipt.ties, receipt.threshold) == (0, 0, 0, None)
    selection = fu.select(made.target, strategy, **options)
    assert selection.count == 0 and selection.indices().tolist() == []


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensor_scope_with_zero_in_small_tensors(dtype: torch.dtype) -> None:
    target = {"a": torch.zeros(3, dtype=dtype), "b": torch.zeros(40, dtype=dtype)}
    scores = [torch.ones(3), torch.arange(40.0)]
    receipt = fu.perturb_(target, fu.TopK(0.1, scope="tensor"), scores=scores)
    assert [t.selected for t in receipt.tensors] == [0, 4]
    assert [t.threshold for t in receipt.tensors] == [None, 36.0]
    assert not target["a"].any()


@pytest.mark.parametrize(
    "target", [[], {}, nn.Identity(), iter(())], ids=lambda t: type(t).__name__
)
@pytest.mark.parametrize("strategy", [fu.TopK(0.5), fu.RandomK(0.5), fu.TopK(0), fu.RandomK(0)])
def test_empty_target(target: Any, strategy: Any) -> None:
    receipt = fu.perturb_(target, strategy)
    assert (receipt.n, receipt.count, receipt.tensors) == (0, 0, ())
    assert fu.select([], strategy).indices().tolist() == []


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_empty_tensors_among_others(scope: Any, dtype: torch.dtype) -> None:
    weights = [torch.zeros(s, dtype=dtype) for s in ((0,), (2, 0, 3), (), (0, 5), (4,), (0,))]
    scores = [torch.ones(w.shape) for w in weights]
    receipt = fu.perturb_(weights, fu.TopK(1.0, scope=scope), scores=scores)
    assert [t.selected for t in receipt.tensors] == [0, 0, 1, 0, 4, 0]
    assert all(bool((w != 0).all()) for w in weights)
    receipt = fu.perturb_(weights, fu.RandomK(1.0, scope=scope, rel_std=1.0))
    assert receipt.count == receipt.n == 5


@pytest.mark.parametrize("payload", [0x7F800001, 0x7FC00000, 0x7FFFFFFF])
@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_nan_is_refused_even_where_nothing_is_selected(payload: int, scope: Any) -> None:
    odd = torch.tensor([payload], dtype=torch.int32).view(torch.float32)
    weights = {"a": torch.ones(100), "b": torch.ones(2)}
    scores = {"a": torch.ones(100), "b": torch.cat((odd, torch.tensor([INF])))}
    # under the scope "tensor" 1 % of b is nothing
    strategy = fu.TopK(0 if scope == "global" else 0.01, scope=scope)
    with pytest.raises(ValueError, match="must not be NaN, got 1 NaN, the first in 'b'"):
        fu.perturb_(weights, strategy, scores=scores)
    assert all(bool((weight == 1).all()) for weight in weights.values())
    scores["b"][0] = INF  # an infinity alone is no reason to refuse, and is not taken
    assert fu.select(weights, strategy, scores=scores).counts["b"] == 0


@pytest.mark.parametrize(("nan", "wanted"), [("largest", [1, 3]), ("smallest", [0, 1])])
def test_nan_policies(nan: Any, wanted: list[int]) -> None:
    scores = [torch.tensor([-1.0, INF, 0.0, NAN])]
    selection = fu.select([torch.zeros(4)], fu.TopK(2, nan=nan), scores=scores)
    assert selection.indices().tolist() == wanted
    receipt = fu.perturb_([torch.zeros(4)], fu.TopK(1, nan="largest"), scores=scores)
    assert json.loads(receipt.to_json())["threshold"] == "nan"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_infinity_zero_and_denormals_in_order(dtype: torch.dtype) -> None:
    tiny = float(torch.finfo(dtype).smallest_normal) if dtype != torch.float64 else 2.0**-126
    values = [0.0, -tiny / 2, -0.0, tiny / 4, -INF, 1.0, INF, tiny / 2]
    scores = [torch.tensor(values, dtype=dtype)]
    order = [4, 6, 5, 1, 7, 3, 0, 2]
    for k in range(9):
        if k:
            found = fu.select([torch.zeros(8)], fu.TopK(k), scores=scores).indices()
            assert found.tolist() == sorted(order[:k])


def denormal_inputs() -> list[tuple[str, Tensor, Tensor]]:
    draw, found = generator(5), []
    for dtype, kind in itertools.product(DTYPES, ("grad", "fisher", "taylor", "weight")):
        size = 1e-41 if kind == "grad" else 3e-20
        weight = numbers("normal", (300,), torch.float64, draw).mul(1e-39).to(dtype)
        found.append(
            (kind, weight, numbers("normal", (300,), torch.float64, draw).mul(size).to(dtype))
        )
    return found


def denormal_run(inputs: list[tuple[str, Tensor, Tensor]]) -> list[bytes]:
    found = []
    for kind, weight, score in inputs:
        copy = weight.clone()
        copy.grad = score
        receipt = fu.perturb_([copy], fu.TopK(50, std=1e-40, score=kind), seed=9)
        relative = fu.perturb_([copy], fu.RandomK(50, rel_std=0.5), seed=9)
        found += [oracle.raw(copy).tobytes()]
        found += [receipt.to_json().encode(), relative.to_json().encode()]
    return found


def test_flush_denormal_mode_changes_nothing() -> None:
    inputs = denormal_inputs()
    plain = denormal_run(inputs)
    if not torch.set_flush_denormal(True):
        pytest.skip("this machine cannot flush denormals")
    try:
        flushed = denormal_run(inputs)
        assert float(torch.tensor(2.0**-126) * 0.5) == 0.0, "the caller's mode must come back"
    finally:
        torch.set_flush_denormal(False)
    assert flushed == plain


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16], ids=str)
def test_overflow_allowed_and_counted(dtype: torch.dtype) -> None:
    weights = [torch.full((200,), torch.finfo(dtype).max, dtype=dtype)]
    weights[0][:10] = INF
    strategy = fu.RandomK(1.0, std=float(torch.finfo(dtype).max) / 8)
    receipt = fu.perturb_(weights, strategy, seed=0, allow_overflow=True)
    infinite = int(weights[0].isinf().sum())
    assert receipt.overflow == infinite - 10 and 50 < infinite < 190


@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides_write_only_their_elements(dtype: torch.dtype, strides: str) -> None:
    values = numbers("normal", (2, 3, 2, 3), dtype, generator(1))
    weight, buffer = place(values, strides)
    plain = values.clone()
    fu.perturb_([weight], fu.TopK(9, score="weight"), seed=2)
    fu.perturb_([plain], fu.TopK(9, score="weight"), seed=2)
    assert torch.equal(weight, plain) and int((weight != values).sum()) == 9
    weight.copy_(values)
    assert bool((buffer == place(values, strides)[1]).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_disjoint_views_of_one_buffer(dtype: torch.dtype) -> None:
    matrix = torch.zeros(6, 8, dtype=dtype)
    target = {
        "left": matrix[:, :3], "even": matrix[::2, 3:6], "odd": matrix[1::2, 3:6],
        "right": matrix.t()[6:],
    }  # fmt: skip
    receipt = fu.perturb_(target, fu.RandomK(1.0))
    assert receipt.count == 48 and bool((matrix != 0).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tied_parameters_count_once(dtype: torch.dtype) -> None:
    first, second = (torch.ones(5, dtype=dtype) for _ in range(2))
    twin = {"a": first, "b": second, "c": first}
    scores = {"a": torch.arange(5.0), "b": torch.zeros(5), "c": torch.full((5,), 9.0)}
    receipt = fu.perturb_(twin, fu.TopK(2), scores=scores, seed=0)
    assert receipt.n == 10 and [t.name for t in receipt.tensors] == ["a", "b"]
    assert first.ne(1).tolist() == [False] * 3 + [True] * 2 and second.eq(1).all()
    layer = nn.Linear(4, 4, bias=False)
    tied = nn.Sequential(layer, nn.Tanh(), layer)
    assert fu.perturb_(tied, fu.RandomK(1.0)).n == 16


@pytest.mark.parametrize("score_dtype", DTYPES, ids=str)
def test_mixed_dtypes_in_one_call(score_dtype: torch.dtype) -> None:
    weights = [torch.zeros(4, dtype=dtype) for dtype in DTYPES]
    scores = [torch.tensor([1.0, 5, 2, 4]).to(score_dtype) for _ in weights]
    receipt = fu.perturb_(weights, fu.TopK(6), scores=scores, seed=1)
    assert [t.selected for t in receipt.tensors] == [2, 2, 1, 1]
    assert (receipt.ties, receipt.ties_taken, receipt.threshold) == (4, 2, 4.0)


def test_missing_gradients_skipped() -> None:
    weights = pair(torch.float32)
    weights["b"].grad = torch.ones(5)
    receipt = fu.perturb_(weights, fu.TopK(2), missing_grad="skip")
    assert [t.name for t in receipt.tensors] == ["b"] and receipt.n == 5
    assert fu.perturb_({"a": weights["a"]}, fu.TopK(0.5), missing_grad="skip").n == 0


PATTERNS: list[tuple[dict[str, Any], list[str]]] = [
    ({"include": ["0.*"]}, ["0.weight", "0.bias"]),
    ({"exclude": ["*.bias"]}, ["0.weight", "2.weight"]),
    ({"include": ["0.*", "2.*"], "exclude": ["2.*", "0.bias"]}, ["0.weight"]),
    ({"include": ["?.[bw]*"]}, ["0.weight", "0.bias", "2.weight", "2.bias"]),
]


@pytest.mark.parametrize(("patterns", "names"), PATTERNS)
def test_patterns(patterns: dict[str, Any], names: list[str]) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    receipt = fu.perturb_(model, fu.RandomK(0.9, **patterns))
    assert [t.name for t in receipt.tensors] == names
    kept = {n: torch.ones_like(p) for n, p in model.named_parameters() if n in names}
    assert fu.select(model, fu.TopK(0.9, **patterns), scores=kept).count == receipt.count


@pytest.mark.parametrize(
    "patterns", [{"include": ["0"]}, {"include": ["0.WEIGHT"]}, {"exclude": ["*"]}]
)
def test_patterns_that_leave_nothing(patterns: dict[str, Any]) -> None:
    model = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="include and exclude must leave at least one parameter"):
        fu.perturb_(model, fu.RandomK(0.9, **patterns))


def test_patterns_see_every_name_of_a_tied_parameter() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    included = fu.perturb_(model, fu.RandomK(2, include=["1.*"]))
    assert [t.name for t in included.tensors] == ["0.weight"]
    with pytest.raises(ValueError, match="must leave at least one"):
        fu.perturb_(model, fu.RandomK(2, exclude=["1.*"]))


TARGETS: dict[str, Callable[[nn.Module], Any]] = {
    "module": lambda m: m,
    "named": lambda m: m.named_parameters(),
    "parameters": lambda m: m.parameters(),
    "generator": lambda m: (p for p in m.parameters()),
    "list": lambda m: list(m.parameters()),
    "dict": lambda m: dict(m.named_parameters()),
    "pairs": lambda m: list(m.named_parameters()),
}


@pytest.mark.parametrize("kind", TARGETS)
def test_every_kind_of_target(kind: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    model(torch.ones(2, 5)).sum().backward()
    receipt = fu.perturb_(TARGETS[kind](model), fu.TopK(7), seed=4)
    assert receipt.n == 39 and receipt.count == 7
    values = torch.cat([p.detach().flatten() for p in model.parameters()])
    torch.manual_seed(0)
    other = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    other(torch.ones(2, 5)).sum().backward()
    fu.perturb_(other, fu.TopK(7), seed=4)
    assert torch.equal(values, torch.cat([p.detach().flatten() for p in other.parameters()]))


def test_scores_by_name_in_any_order() -> None:
    given = {"b": torch.arange(5.0), "z": torch.ones(1), "a": torch.full((2, 3), 2.5)}
    by_name = fu.select(pair(torch.float32), fu.TopK(4), scores=given).indices()
    in_order = fu.select(pair(torch.float32), fu.TopK(4), scores=[given["a"], given["b"]]).indices()
    assert by_name.tolist() == in_order.tolist() == [0, 1, 9, 10]


def test_seed_absent() -> None:
    weights = [torch.zeros(50), torch.zeros(50)]
    receipts = [fu.perturb_([w], fu.RandomK(1.0)) for w in weights]
    assert not torch.equal(*weights)
    assert [r.seed for r in receipts] == [None, None]
    assert receipts[0].seed_commitment != receipts[1].seed_commitment
    kept = fu.perturb_([torch.zeros(50)], fu.RandomK(1.0), keep_seed=True)
    again = torch.zeros(50)
    assert isinstance(kept.seed, int) and 0 <= kept.seed < 2**64
    receipt = fu.perturb_([again], fu.RandomK(1.0), seed=kept.seed)
    assert receipt.seed_commitment == kept.seed_commitment and receipt.seed is None
    assert str(kept.seed) not in receipt.to_json()


def test_call_from_another_thread() -> None:
    found: list[Any] = []
    weight, plain = torch.zeros(64), torch.zeros(64)
    work = threading.Thread(
        target=lambda: found.append(fu.perturb_([weight], fu.RandomK(9), seed=1))
    )
    work.start()
    work.join(60)
    fu.perturb_([plain], fu.RandomK(9), seed=1)
    assert found[0].count == 9 and torch.equal(weight, plain)


def test_scores_may_share_memory_with_the_weights() -> None:
    weight = torch.arange(10.0)
    fu.perturb_([weight], fu.TopK(3, std=50.0), scores=[weight.view(10)], seed=1)
    assert weight.ne(torch.arange(10.0)).tolist() == [False] * 7 + [True] * 3
    assert math.isfinite(float(weight.sum()))
