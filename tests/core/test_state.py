"""Autograd, modes and faults: what a call leaves behind when the world around it is unkind."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from core import oracle
from core.cases import image
from core.processes import script
from torch import Tensor, nn

import fastunlearn as fu
from fastunlearn.reference import memory, update
from fastunlearn.reference import ops as reference


def fresh(count: int = 2) -> tuple[list[Tensor], list[Tensor]]:
    weights = [torch.arange(8.0) + 10 * i for i in range(count)]
    return weights, [torch.arange(8.0).flip(0) for _ in weights]


def wanted(strategy: Any = None) -> list[bytes]:
    weights, scores = fresh()
    fu.perturb_(weights, strategy or fu.TopK(9, std=0.1), scores=scores, seed=6)
    return [image(w) for w in weights]


# Autograd -----------------------------------------------------------------------------------------


def test_version_bump_makes_a_stale_backward_raise() -> None:
    for strategy in (fu.TopK(2), fu.RandomK(2)):
        leaf = nn.Parameter(torch.ones(6))
        leaf.grad = torch.ones(6)
        loss = (leaf * leaf).sum()
        before = leaf._version
        fu.perturb_([leaf], strategy)
        assert leaf._version > before and leaf.is_leaf and leaf.requires_grad
        assert leaf.grad_fn is None
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_select_bumps_no_version() -> None:
    weights, scores = fresh()
    versions = [t._version for t in weights + scores]
    fu.select(weights, fu.TopK(3), scores=scores)
    fu.select(weights, fu.RandomK(3))
    fu.perturb_(weights, fu.RandomK(3))
    assert [t._version for t in scores] == versions[2:]


def test_scores_with_a_graph() -> None:
    weights, scores = fresh()
    graph = [s.clone().requires_grad_() * 1 for s in scores]
    fu.perturb_(weights, fu.TopK(9, std=0.1), scores=graph, seed=6)
    assert [image(w) for w in weights] == wanted()
    assert not any(w.requires_grad for w in weights)


# Modes --------------------------------------------------------------------------------------------


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


MODES: dict[str, Callable[[], Any]] = {
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "inference": torch.inference_mode,
    "autocast_bf16": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "autocast_fp16": lambda: torch.autocast("cpu", dtype=torch.float16),
    "deterministic": deterministic,
    "default_float64": lambda: default_dtype(torch.float64),
    "default_float16": lambda: default_dtype(torch.float16),
    "default_device_meta": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("mode", MODES)
def test_modes_do_not_matter(mode: str) -> None:
    weights, scores = fresh()
    relative = fu.RandomK(5, rel_std=0.5, noise="laplace")
    plain, _ = fresh()
    fu.perturb_(plain, relative, seed=2)
    again, _ = fresh()
    try:
        with MODES[mode]():
            fu.perturb_(weights, fu.TopK(9, std=0.1), scores=scores, seed=6)
            indices = fu.select(weights, fu.TopK(4), scores=scores).indices().tolist()
            fu.perturb_(again, relative, seed=2)
        assert float(torch.tensor(2.0**-126) * 0.5) != 0.0, "denormals must still count"
    finally:
        torch.set_flush_denormal(False)
    assert [image(w) for w in weights] == wanted()
    assert [image(w) for w in again] == [image(w) for w in plain]
    assert indices == [0, 1, 8, 9]


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16], ids=str)
def test_flush_mode_under_another_default_dtype(default: torch.dtype) -> None:
    leaf = nn.Parameter(torch.zeros(3))
    leaf.grad = torch.tensor([1e-22, 2e-22, 3e-22])
    if not torch.set_flush_denormal(True):
        pytest.skip("this machine cannot flush denormals")
    try:
        with default_dtype(default):
            found = fu.select([leaf], fu.TopK(1, score="fisher")).indices().tolist()
    finally:
        torch.set_flush_denormal(False)
    assert found == [2]


def test_inference_tensors() -> None:
    """Inside inference mode they work; outside nothing may be written, or all of it."""
    with torch.inference_mode():
        weights, scores = fresh()
        fu.perturb_(weights, fu.TopK(9, std=0.1), scores=scores, seed=6)
        assert [image(w) for w in weights] == wanted()
    normal, scores = fresh()
    mixed = [normal[0], weights[1]]
    before = [image(w) for w in mixed]
    try:
        fu.perturb_(mixed, fu.TopK(9, std=0.1), scores=scores, seed=6)
    except (RuntimeError, ValueError, TypeError):
        assert [image(w) for w in mixed] == before
    else:
        assert [image(w) for w in mixed] != before


def test_negative_bit() -> None:
    """A view with the lazy negation of `conj().imag`: right, or refused whole."""
    source = torch.zeros(8, dtype=torch.complex64)
    view = source.conj().imag
    assert view.is_neg()
    try:
        fu.perturb_([view], fu.RandomK(8, std=1.0), seed=1)
    except (RuntimeError, TypeError):
        assert not source.abs().any()
    else:
        plain = torch.zeros(8)
        fu.perturb_([plain], fu.RandomK(8, std=1.0), seed=1)
        assert torch.equal(view, plain)


# Faults -------------------------------------------------------------------------------------------


def direct(weights: list[Tensor], scores: list[Tensor]) -> Tensor:
    """The reference kernel itself: the faults below are planted in it."""
    return reference.topk_perturb_(
        weights, scores, torch.full((2,), 0.1, dtype=torch.float64), torch.tensor([6, 0]), [9],
        False, "grad", "error", "normal", "add", False, [0, 8, 8, 8, 8, 8],
    )  # fmt: skip


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize(
    ("module", "name"),
    [(memory, "read_slice"), (memory, "locate"), (update, "noise"), (update, "_updated")],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_out_of_memory_before_the_first_write(
    monkeypatch: Any, module: Any, name: str, number: int
) -> None:
    calls = []
    real = getattr(module, name)

    def failing(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == number:
            raise MemoryError
        return real(*arguments)

    monkeypatch.setattr(module, name, failing)
    weights, scores = fresh()
    before = [(image(w), w._version) for w in weights]
    monkeypatch.setattr(memory, "CHUNK", 8)
    with pytest.raises(MemoryError):
        direct(weights, scores)
    assert [(image(w), w._version) for w in weights] == before


def test_commit_allocates_nothing_of_its_own(monkeypatch: Any) -> None:
    """Offsets of strided weights belong to the plan: in the commit they could fail."""
    line = torch.zeros(2, 16)
    weights, scores = [line[0, ::2], line[1, ::2]], fresh()[1]
    plan_done = []
    real_offsets, real_deferred = memory._offsets, update._interrupt_deferred

    def deferred() -> Any:
        plan_done.append(True)
        return real_deferred()

    def offsets(*arguments: Any) -> Tensor:
        if plan_done:
            raise MemoryError
        return real_offsets(*arguments)

    monkeypatch.setattr(update, "_interrupt_deferred", deferred)
    monkeypatch.setattr(memory, "_offsets", offsets)
    direct(weights, scores)
    assert plan_done and bool(line.any())


@pytest.fixture
def keyboard() -> Iterator[Any]:
    """Python's own handler of Ctrl-C: a job in the background starts with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [1, 2])
def test_interrupt_during_the_commit(monkeypatch: Any, keyboard: Any, number: int) -> None:
    real, calls = memory.write, []

    def interrupted(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == number:
            signal.raise_signal(signal.SIGINT)
        real(*arguments)

    monkeypatch.setattr(memory, "write", interrupted)
    weights, scores = fresh()
    versions = [w._version for w in weights]
    with pytest.raises(KeyboardInterrupt):
        direct(weights, scores)
    assert len(calls) == 2
    assert [image(w) for w in weights] == wanted()
    assert all(w._version > v for w, v in zip(weights, versions, strict=True))
    assert signal.getsignal(signal.SIGINT) is keyboard


def test_interrupt_while_planning_writes_nothing(monkeypatch: Any, keyboard: Any) -> None:
    real = update._updated

    def interrupted(*arguments: Any) -> Tensor:
        signal.raise_signal(signal.SIGINT)
        return real(*arguments)

    monkeypatch.setattr(update, "_updated", interrupted)
    weights, scores = fresh()
    before = [image(w) for w in weights]
    with pytest.raises(KeyboardInterrupt):
        direct(weights, scores)
    assert [image(w) for w in weights] == before


FLUSH = """
    import torch
    torch.set_num_threads(2)
    if torch.set_flush_denormal(True):
        (torch.ones(400_000) * 2).sum()  # the pool's threads inherit the mode
        torch.set_flush_denormal(False)
    import fastunlearn as fu
    leaf = torch.nn.Parameter(torch.zeros(400_000))
    leaf.grad = torch.linspace(1e-22, 1e-20, 400_000)
    many = fu.select([leaf], fu.TopK(1000, score="fisher")).indices()
    torch.set_num_threads(1)
    one = fu.select([leaf], fu.TopK(1000, score="fisher")).indices()
    assert torch.equal(many, one)
"""


def test_pool_threads_that_flush_denormals() -> None:
    script(FLUSH, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_nan_weights_have_one_bit_pattern(dtype: torch.dtype) -> None:
    """A NaN weight stays NaN; which NaN must not depend on its place in the list."""
    weight = torch.full((1003,), float("nan"), dtype=dtype)
    fu.perturb_([weight], fu.RandomK(1.0), seed=1)
    assert len(set(oracle.raw(weight).tolist())) == 1


HUGE: dict[str, Callable[[], Tensor]] = {
    "expanded": lambda: torch.zeros(1).expand(2**45),
    "window": lambda: torch.zeros(2**12).as_strided((2**11, 2**34), (1, 0)),
    "sliding": lambda: torch.zeros(2**21).as_strided((2**20, 2**20), (1, 1)),
}


@pytest.mark.parametrize("kind", HUGE)
def test_huge_overlap_is_found_without_listing_it(kind: str) -> None:
    with pytest.raises(ValueError, match="must have distinct memory for each element"):
        fu.select([HUGE[kind]()], fu.RandomK(1))
