"""The operations under torch's own checks, under torch.compile, and the objects under pickle."""

from __future__ import annotations

import copy
import pickle
import shutil
from typing import Any

import pytest
import torch
from core import oracle
from torch import Tensor

import fastunlearn as fu
from fastunlearn import _ops

OPS = torch.ops.fastunlearn
CHECKS = (
    "test_schema",
    "test_autograd_registration",
    "test_faketensor",
    "test_aot_dispatch_dynamic",
)
LAYOUT = [0, 6, 6, 6, 4, 4]
BACKENDS = ["eager", "aot_eager"]
if shutil.which("g++") or shutil.which("clang++"):
    BACKENDS.append("inductor")


def tensors(grad: bool = False) -> tuple[list[Tensor], list[Tensor]]:
    weights = [
        torch.arange(6.0).view(2, 3).requires_grad_(grad),
        torch.ones(4, dtype=torch.bfloat16),
    ]
    return weights, [torch.arange(6.0).view(3, 2).t(), torch.arange(4.0)]


def arguments(name: str, grad: bool = False) -> tuple[Any, ...]:
    weights, scores = tensors(grad)
    scale, rng = torch.full((2,), 0.1, dtype=torch.float64), torch.tensor([-5, 3])
    tail = ("normal", "add", False, LAYOUT)
    return {
        "topk_perturb_": (weights, scores, scale, rng, [5], False, "taylor", "error", *tail),
        "topk_select": (weights, scores, [2, 3], True, "grad", "largest", LAYOUT),
        "randomk_perturb_": (weights, scale, rng, [5], False, *tail, 10),
        "randomk_select": (weights, rng, [5], False, LAYOUT, 10),
        "key_histogram": (weights, scores, "grad", "error", [0, 1], [0, 9], 15, 1 << 16),
        "tie_histogram": (weights, scores, "taylor", "error", [0, 0], [0], [0], 0, 10, LAYOUT),
        "noise": (torch.arange(12).view(3, 4), rng, "laplace"),
        "rms": (weights,),
    }[name]


def test_every_operation_is_here() -> None:
    for name in _ops.SCHEMAS:
        assert arguments(name)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", _ops.SCHEMAS)
def test_opcheck(name: str, check: str) -> None:
    for grad in (False, True):
        if grad and name.endswith("_"):
            continue  # opcheck has no no_grad, without which a leaf is not written
        torch.library.opcheck(getattr(OPS, name).default, arguments(name, grad), test_utils=check)


def everything(
    weights: list[Tensor], scores: list[Tensor], scale: Tensor, rng: Tensor
) -> tuple[Any, ...]:
    doubled = [s * 2 for s in scores]
    tail = ("uniform", "add", False, LAYOUT)
    first = OPS.topk_perturb_(weights, doubled, scale, rng, [4], False, "grad", "error", *tail)
    second = OPS.randomk_perturb_(weights, scale, rng, [3], False, *tail, 10)
    picked, third = OPS.topk_select(weights, doubled, [2, 1], True, "taylor", "error", LAYOUT)
    drawn, fourth = OPS.randomk_select(weights, rng, [5], False, LAYOUT, 10)
    z = OPS.noise(torch.arange(5), rng, "normal") + 1
    return first, second, third, fourth, picked, drawn, z, OPS.rms(weights), weights[0] + 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_graph_equals_eager(backend: str) -> None:
    scale, rng = torch.tensor([0.5, 2.0], dtype=torch.float64), torch.tensor([7, 1])
    weights, scores = tensors()
    wanted = everything(weights, scores, scale, rng)
    compiled_weights, scores = tensors()
    torch._dynamo.reset()
    compiled = torch.compile(everything, backend=backend, fullgraph=True)
    with torch.no_grad():
        found = compiled(compiled_weights, scores, scale, rng)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    for one, other in zip(compiled_weights, weights, strict=True):
        assert oracle.raw(one).tolist() == oracle.raw(other).tolist()


def compiled_step(weight: Tensor, fullgraph: bool) -> Tensor:
    def step(x: Tensor) -> Tensor:
        y = x + 1
        fu.perturb_([weight], fu.RandomK(3), seed=1)
        return y * 2

    torch._dynamo.reset()
    return torch.compile(step, backend="eager", fullgraph=fullgraph)(torch.ones(2))


def test_perturb_in_a_full_graph_is_refused() -> None:
    """A full graph cannot hold it: one error, and nothing written."""
    weight = torch.zeros(8)
    with pytest.raises(Exception, match=r"perturb_"):
        compiled_step(weight, fullgraph=True)
    assert not weight.any()


def test_perturb_in_a_broken_graph() -> None:
    """Where graph breaks are allowed: refused with nothing written, or as in eager mode."""
    weight, plain = torch.zeros(8), torch.zeros(8)
    fu.perturb_([plain], fu.RandomK(3), seed=1)
    try:
        assert compiled_step(weight, fullgraph=False).tolist() == [4.0, 4.0]
    except RuntimeError as error:
        assert "outside of torch.compile" in str(error)
        assert not weight.any()
    else:
        assert torch.equal(weight, plain)


@pytest.mark.parametrize("name", _ops.SCHEMAS)
def test_fake_kernels_agree_on_shapes(name: str) -> None:
    real = getattr(OPS, name)(*arguments(name))
    mode = torch._subclasses.FakeTensorMode()
    fakes = [_fake(mode, argument) for argument in arguments(name)]
    with mode:
        assert _shapes(getattr(OPS, name)(*fakes)) == _shapes(real)


def _fake(mode: Any, value: Any) -> Any:
    if isinstance(value, Tensor):
        return mode.from_tensor(value)
    if isinstance(value, list) and value and isinstance(value[0], Tensor):
        return [mode.from_tensor(v) for v in value]
    return value


def _shapes(result: Any) -> Any:
    if isinstance(result, Tensor):
        return tuple(result.shape), result.dtype
    return [_shapes(item) for item in result]


def test_backend_is_named() -> None:
    name = _ops.backend_of("topk_perturb_", torch.device("cpu"))
    assert name in ("cpu", "reference")
    receipt = fu.perturb_([torch.zeros(4)], fu.RandomK(1))
    assert receipt.backend == _ops.backend_of("randomk_perturb_", torch.device("cpu"))


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_copies(again: Any) -> None:
    strategies = [
        fu.TopK(0.25, rel_std=2, score="fisher", nan="largest", include=["a*"], scope="tensor"),
        fu.RandomK(7, std=0, noise="laplace", mode="replace", exclude=("b",)),
    ]
    for strategy in strategies:
        assert again(strategy) == strategy and hash(again(strategy)) == hash(strategy)
    receipt = fu.perturb_([torch.zeros(4)], fu.RandomK(1), keep_seed=True)
    assert again(receipt) == receipt and again(receipt).to_json() == receipt.to_json()
    selection = fu.select([torch.zeros(4)], fu.RandomK(2))
    assert again(selection).indices().tolist() == selection.indices().tolist()
    perturber = fu.Perturber([torch.zeros(4)], fu.RandomK(2), seed=3)
    assert again(perturber).step().step == 0
