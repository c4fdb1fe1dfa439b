"""Calls that must be refused: name -> what to call, which error, which words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

import fastunlearn as fu

NAN, INF = float("nan"), float("inf")
BOTH = ("perturb_", "select")
TOP = fu.TopK(3)


@dataclass
class Call:
    """Arguments of a call, and every tensor that must not change."""

    target: Any
    strategy: Any = TOP
    options: dict[str, Any] = field(default_factory=dict)
    watch: list[Tensor] = field(default_factory=list)


@dataclass
class Refusal:
    """A refused call."""

    make: Callable[[torch.dtype], Call]
    error: type[Exception]
    match: str
    operations: tuple[str, ...]


REFUSALS: dict[str, Refusal] = {}


def refusal(error: type[Exception], match: str, operations: tuple[str, ...] = BOTH) -> Any:
    def register(make: Callable[[torch.dtype], Call]) -> Callable[[torch.dtype], Call]:
        REFUSALS[make.__name__] = Refusal(make, error, match, operations)
        return make

    return register


def pair(dtype: torch.dtype) -> dict[str, Tensor]:
    """Two good parameters."""
    return {
        "a": torch.arange(6).reshape(2, 3).to(dtype),
        "b": torch.linspace(-1, 1, 5).to(dtype),
    }


def good(dtype: torch.dtype, strategy: Any = TOP, **changes: Any) -> Call:
    """A good call with some options changed."""
    target = pair(dtype)
    options = {"scores": [torch.ones(2, 3), torch.ones(5)], "seed": 1} | changes
    return Call(target, strategy, options, list(target.values()))


def with_third(third: Any, strategy: Any = TOP) -> Call:
    """Two good parameters, and a bad one after them, scored alike."""
    target = pair(torch.float32) | {"c": third}
    scores = [torch.ones(2, 3), torch.ones(5), torch.ones(4)]
    options = {"seed": 1} if isinstance(strategy, fu.RandomK) else {"seed": 1, "scores": scores}
    watch = [t for t in target.values() if type(t) is Tensor and t.layout == torch.strided]
    watch = [t for t in watch if not (t.is_meta or t.is_quantized or t.is_nested)]
    return Call(target, strategy, options, watch)


# Scores -------------------------------------------------------------------------------------------


@refusal(ValueError, r"scores must not be NaN, got 3 NaN, the first in 'b'")
def nan_scores(dtype: torch.dtype) -> Call:
    return good(dtype, scores=[torch.ones(2, 3), torch.tensor([NAN, 1, NAN, NAN, 2])])


@refusal(ValueError, r"scores must not be NaN, got 1 NaN, the first in 'a'")
def nan_in_float16_score(dtype: torch.dtype) -> Call:
    scores = [torch.full((2, 3), 1.0).half(), torch.ones(5)]
    scores[0][1, 1] = NAN
    return good(dtype, fu.TopK(1), scores=scores)


@refusal(ValueError, r"scores must not be NaN, got 2 NaN, the first in 'a'")
def nan_per_tensor(dtype: torch.dtype) -> Call:
    scores = [torch.full((2, 3), 1.0), torch.ones(5)]
    scores[0][1, 1] = scores[1][4] = NAN
    return good(dtype, fu.TopK(1, scope="tensor"), scores=scores)


@refusal(ValueError, r"scores must not be NaN, got 1 NaN, the first in 'b'")
def nan_weight_as_score(dtype: torch.dtype) -> Call:
    call = good(dtype, fu.TopK(2, score="weight"), scores=None)
    call.target["b"][1] = NAN
    return call


@refusal(ValueError, r"scores must not be NaN, got 1 NaN, the first in 'a'")
def zero_times_infinity(dtype: torch.dtype) -> Call:
    call = good(dtype, fu.TopK(2, score="taylor"), scores=None)
    for weight in call.target.values():
        weight.grad = torch.full_like(weight, INF)
    call.target["b"].add_(3)
    return call


@refusal(ValueError, r"scores\['a'\] must have shape \(2, 3\), got \(3, 2\)")
def score_of_wrong_shape(dtype: torch.dtype) -> Call:
    return good(dtype, scores=[torch.ones(3, 2), torch.ones(5)])


@refusal(ValueError, r"scores\['b'\] must have shape \(5,\), got \(5, 1\)")
def score_that_would_broadcast(dtype: torch.dtype) -> Call:
    return good(dtype, scores={"a": torch.ones(2, 3), "b": torch.ones(5, 1)})


@refusal(TypeError, r"score of 'a' must be a dense floating-point tensor, got .*meta")
def score_on_meta(dtype: torch.dtype) -> Call:
    return good(dtype, scores=[torch.ones(2, 3, device="meta"), torch.ones(5)])


@refusal(TypeError, r"score of 'b' must be a dense floating-point tensor, got .*int64")
def score_of_integers(dtype: torch.dtype) -> Call:
    return good(dtype, scores=[torch.ones(2, 3), torch.ones(5, dtype=torch.int64)])


@refusal(TypeError, r"score of 'b' must be a dense floating-point tensor, got list")
def score_that_is_a_list(dtype: torch.dtype) -> Call:
    return good(dtype, scores=[torch.ones(2, 3), [1.0] * 5])


@refusal(TypeError, r"score of 'b' must be a dense floating-point tensor, got .*sparse_coo")
def sparse_gradient(dtype: torch.dtype) -> Call:
    call = good(dtype, scores=None)
    call.target["a"].grad = torch.ones(2, 3, dtype=dtype)
    call.target["b"].grad = torch.ones(5, dtype=dtype).to_sparse()
    return call


@refusal(ValueError, r"scores must hold every parameter, got none for 'b'")
def score_missing_in_mapping(dtype: torch.dtype) -> Call:
    return good(dtype, scores={"a": torch.ones(2, 3), "c": torch.ones(5)})


@refusal(ValueError, r"scores must be None for RandomK, got")
def scores_for_random_k(dtype: torch.dtype) -> Call:
    return good(dtype, fu.RandomK(3))


@refusal(ValueError, r"scores must be given for score='mas'.*got None")
def data_score_without_scores(dtype: torch.dtype) -> Call:
    return good(dtype, fu.TopK(3, score="mas"), scores=None)


@refusal(ValueError, r"every parameter must have a \.grad, got none for a, b")
def no_gradients(dtype: torch.dtype) -> Call:
    return good(dtype, scores=None)


@refusal(ValueError, r"every parameter must have a \.grad, got none for b;")
def one_gradient_missing(dtype: torch.dtype) -> Call:
    call = good(dtype, scores=None)
    call.target["a"].grad = torch.ones(2, 3, dtype=dtype)
    return call


@refusal(ValueError, r"missing_grad must be 'error' or 'skip', got 'ignore'")
def unknown_missing_grad(dtype: torch.dtype) -> Call:
    return good(dtype, scores=None, missing_grad="ignore")


@refusal(ValueError, r"missing_grad must be 'error' or 'skip', got None")
def unknown_missing_grad_unused(dtype: torch.dtype) -> Call:
    return good(dtype, missing_grad=None)


# K, seed, step, strategy --------------------------------------------------------------------------


@refusal(ValueError, r"k must be at most 11, the number of elements, got 12")
def k_above_n(dtype: torch.dtype) -> Call:
    return good(dtype, fu.TopK(12))


@refusal(ValueError, r"k must be at most 11, the number of elements, got 12")
def random_k_above_n(dtype: torch.dtype) -> Call:
    return good(dtype, fu.RandomK(12), scores=None)


@refusal(ValueError, r"k must be at most 5, the number of elements, got 6")
def k_above_one_tensor(dtype: torch.dtype) -> Call:
    return good(dtype, fu.TopK(6, scope="tensor"))


@refusal(ValueError, r"k must be a fraction that selects at least one element, got 0\.04 of 11")
def fraction_of_nothing(dtype: torch.dtype) -> Call:
    return good(dtype, fu.TopK(0.04))


@refusal(ValueError, r"k must be a fraction that selects at least one element, got 0\.08 of 6")
def fraction_of_nothing_anywhere(dtype: torch.dtype) -> Call:
    return good(dtype, fu.RandomK(0.08, scope="tensor"), scores=None)


# An option of a good call replaced: name -> error, words, option and value.
OPTIONS: dict[str, tuple[type[Exception], str, str, Any]] = {
    "too_few_scores": (
        ValueError,
        "scores must have 2 tensors, got 1",
        "scores",
        [torch.ones(2, 3)],
    ),
    "too_many_scores": (ValueError, "scores must have 2 tensors, got 3", "scores", [0, 0, 0]),
    "seed_negative": (ValueError, r"seed must be in \[0, 2\*\*64\), got -1", "seed", -1),
    "seed_too_great": (ValueError, r"seed must be .* got 18446744073709551616", "seed", 2**64),
    "seed_float": (TypeError, r"seed must be an int, got 1\.0", "seed", 1.0),
    "seed_bool": (TypeError, r"seed must be an int, got True", "seed", True),
    "step_negative": (ValueError, r"step must be in \[0, 2\*\*32\), got -1", "step", -1),
    "step_too_great": (ValueError, r"step must be .* got 4294967296", "step", 2**32),
    "step_none": (TypeError, r"step must be an int, got None", "step", None),
}


def _register_option(name: str) -> None:
    error, match, option, value = OPTIONS[name]
    REFUSALS[name] = Refusal(lambda dtype: good(dtype, **{option: value}), error, match, BOTH)


for _name in OPTIONS:
    _register_option(_name)


@refusal(TypeError, r"strategy must be TopK or RandomK, got 'top_k'")
def strategy_name(dtype: torch.dtype) -> Call:
    return good(dtype, "top_k")


@refusal(TypeError, r"strategy must be TopK or RandomK, got <class")
def strategy_class(dtype: torch.dtype) -> Call:
    return good(dtype, fu.TopK)


# Targets ------------------------------------------------------------------------------------------


@refusal(TypeError, r"target must be a module, a mapping or an iterable of parameters, got Tensor")
def target_tensor(dtype: torch.dtype) -> Call:
    weight = pair(dtype)["a"]
    return Call(weight, watch=[weight])


@refusal(
    TypeError, r"target must be a module, a mapping or an iterable of parameters, got NoneType"
)
def target_none(dtype: torch.dtype) -> Call:
    return Call(None)


@refusal(TypeError, r"parameter 'c' must be a dense floating-point tensor, got NoneType")
def parameter_none(dtype: torch.dtype) -> Call:
    return with_third(None)


@refusal(ValueError, r"parameter names must be unique, got 'a' twice")
def name_twice(dtype: torch.dtype) -> Call:
    weights = list(pair(dtype).values())
    return Call([("a", weights[0]), ("a", weights[1])], watch=weights)


@refusal(TypeError, r"parameter names must be strings, got .*Tensor")
def pairs_of_tensors(dtype: torch.dtype) -> Call:
    weights = list(pair(dtype).values())
    return Call([tuple(weights)], fu.RandomK(2), watch=weights)


@refusal(TypeError, r"parameter names must be strings, got .*int")
def name_that_is_a_number(dtype: torch.dtype) -> Call:
    weights = list(pair(dtype).values())
    return Call(dict(enumerate(weights)), fu.RandomK(2), watch=weights)


@refusal(ValueError, r"parameter 'c' must have distinct memory for each element, got shape \(4,\)")
def expanded(dtype: torch.dtype) -> Call:
    return with_third(torch.zeros(1, dtype=dtype).expand(4))


@refusal(ValueError, r"parameter 'c' must have distinct memory for each element")
def self_overlapping(dtype: torch.dtype) -> Call:
    window = torch.zeros(12, dtype=dtype).as_strided((4, 3), (2, 1))
    return with_third(window, fu.RandomK(3))


@refusal(ValueError, r"parameter 'c' must have distinct memory for each element")
def self_overlapping_by_remainder(dtype: torch.dtype) -> Call:
    return with_third(torch.zeros(40, dtype=dtype).as_strided((4, 4), (3, 2)), fu.RandomK(3))


@refusal(ValueError, r"parameters must not share memory, got 'x' and 'y'")
def overlapping_views(dtype: torch.dtype) -> Call:
    line = torch.ones(9, dtype=dtype)
    target = {"x": line[:5], "b": torch.ones(2), "y": line[4:]}
    return Call(target, fu.RandomK(3), {}, [line])


@refusal(ValueError, r"parameters must not share memory, got 'x' and 'y'")
def detached_twin(dtype: torch.dtype) -> Call:
    line = torch.ones(9, dtype=dtype)
    return Call({"x": line, "y": line.detach()}, fu.RandomK(3), {}, [line])


@refusal(ValueError, r"parameters must not share memory, got 'x' and 'y'")
def overlapping_columns(dtype: torch.dtype) -> Call:
    matrix = torch.ones(6, 8, dtype=dtype)
    target = {"x": matrix[:, :5], "y": matrix[::2, 4:]}
    return Call(target, fu.RandomK(3), {}, [matrix])


@refusal(ValueError, r"parameters must not share memory, got 'x' and 'y'")
def overlapping_other_dtype(dtype: torch.dtype) -> Call:
    other = torch.float16 if dtype == torch.bfloat16 else torch.bfloat16
    line = torch.ones(9, dtype=dtype)
    return Call(
        {"x": line, "y": line.view(torch.uint8)[-4:].view(other)}, fu.RandomK(3), {}, [line]
    )


KINDS: dict[str, Callable[[], Any]] = {
    "int32": lambda: torch.zeros(4, dtype=torch.int32),
    "bool": lambda: torch.zeros(4, dtype=torch.bool),
    "complex64": lambda: torch.zeros(4, dtype=torch.complex64),
    "float8_e4m3fn": lambda: torch.zeros(4, dtype=torch.float8_e4m3fn),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8),
    "sparse_coo": lambda: torch.ones(4).to_sparse(),
    "sparse_csr": lambda: torch.ones(2, 2).to_sparse_csr(),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "jagged": lambda: torch.nested.nested_tensor([torch.ones(2)], layout=torch.jagged),
    "meta": lambda: torch.zeros(4, device="meta"),
    "fake": lambda: FakeTensorMode().from_tensor(torch.zeros(4)),
    "lazily negated": lambda: torch.zeros(4, dtype=torch.complex64).conj().imag,
}


def _register_kind(kind: str) -> None:
    match = rf"parameter 'c' must be a dense floating-point tensor, got .*{kind}"
    REFUSALS[f"kind_{kind}"] = Refusal(
        lambda dtype: with_third(KINDS[kind](), fu.RandomK(3)), TypeError, match, BOTH
    )


for _kind in KINDS:
    _register_kind(_kind)


# Noise and overflow -------------------------------------------------------------------------------


@refusal(
    ValueError,
    r"noise must leave \S+ weights finite, got [1-9]\d* that overflow, [1-9]\d* of them in 'a'",
    ("perturb_",),
)
def overflow(dtype: torch.dtype) -> Call:
    call = good(dtype, fu.TopK(1.0, std=1e308))
    for weight in call.watch:
        weight.fill_(torch.finfo(dtype).max)
    return call


@refusal(ValueError, r"noise must leave torch\.\w+ weights finite, got", ("perturb_",))
def overflow_in_the_last_tensor(dtype: torch.dtype) -> Call:
    call = good(dtype, fu.RandomK(1.0, rel_std=5.0), scores=None)
    call.target["b"] = last = torch.full((40,), 60000.0, dtype=torch.float16)
    call.watch.append(last)
    return call


@refusal(
    ValueError, r"rel_std must meet a finite root mean square, got parameter 'b'", ("perturb_",)
)
def relative_to_infinity(dtype: torch.dtype) -> Call:
    call = good(dtype, fu.TopK(2, rel_std=0.1))
    call.target["b"][2] = INF
    return call


@refusal(
    ValueError, r"rel_std must meet a finite root mean square, got parameter 'a'", ("perturb_",)
)
def relative_to_nan(dtype: torch.dtype) -> Call:
    call = good(dtype, fu.RandomK(2, rel_std=0.1), scores=None)
    call.target["a"][0, 0] = NAN
    return call
