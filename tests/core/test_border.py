"""The compiled shortcuts of the border change no result, and leave alone what is unusual."""

from __future__ import annotations

import copy
import dataclasses
import gc
import pickle
import re
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from core.cases import image
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import fastunlearn as fu
from fastunlearn import _extension, perturb, selection, targets
from fastunlearn._ops import Stat
from fastunlearn.receipt import Receipt, TensorReceipt

compiled = pytest.mark.skipif(
    not _extension.available(), reason="the shortcuts belong to the compiled extension"
)


@contextmanager
def the_long_way() -> Iterator[None]:
    """Without shortcuts, as without the extension."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (targets, selection, perturb):
            patch.setattr(module, "shortcut", lambda name: targets._declines)
        yield


def plain(count: int = 3) -> list[nn.Parameter]:
    torch.manual_seed(0)
    found = [nn.Parameter(torch.randn(5, i + 2)) for i in range(count)]
    for parameter in found:
        parameter.grad = torch.randn_like(parameter)
    return found


def model() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 5))
    net(torch.randn(4, 6)).square().sum().backward()
    return net


def tied() -> nn.Module:
    net = model()
    net.add_module("twin", net[0])
    return net


def with_grad(*tensors: Tensor) -> list[Tensor]:
    torch.manual_seed(1)
    for tensor in tensors:
        tensor.grad = torch.randn(tensor.shape).to(tensor.dtype)
    return list(tensors)


TARGETS: dict[str, Callable[[], Any]] = {
    "list": plain,
    "generator": lambda: iter(plain()),
    "pairs": lambda: [(f"w{i}", p) for i, p in enumerate(plain())],
    "mixed items": lambda: [("w", plain()[0]), plain(2)[1]],
    "mapping": lambda: {f"w{i}": p for i, p in enumerate(plain())},
    "module": model,
    "tied module": tied,
    "dtypes": lambda: with_grad(*(torch.zeros(9, dtype=d) for d in targets._DTYPES)),
    "strides": lambda: with_grad(
        torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last), torch.zeros(4, 6).t(),
        torch.zeros(8, 8)[:, ::2], torch.zeros(()),
    ),
    "slices of one buffer": lambda: with_grad(*torch.zeros(6, 9).split(2)),
    "columns of one buffer": lambda: with_grad(*torch.zeros(6, 9).split(3, dim=1)),
    "empty tensor": lambda: with_grad(torch.zeros(0, 3), torch.zeros(4)),
    "nothing": list,
}  # fmt: skip
STRATEGIES = {
    "top_k": fu.TopK(0.3, std=0.5),
    "tensor": fu.TopK(0.5, scope="tensor", score="taylor"),
    "weight": fu.TopK(3, score="weight", rel_std=1),
    "random": fu.RandomK(0.5, std=1, noise="laplace"),
    "patterns": fu.TopK(0.4, exclude=["*bias", "w1"]),
}


def outcome(target: Any, strategy: Any) -> tuple[Any, ...]:
    """What a call gives: receipt and selection, or the error, and every bit of the parameters."""
    if isinstance(target, (nn.Module, dict)):
        held = target
    else:
        held = list(target)
    try:
        selected = fu.select(held, strategy, seed=2**64 - 3)
        counts = selected.counts, selected.threshold, selected.indices().tolist()
        found: Any = (counts, fu.perturb_(held, strategy, seed=2**64 - 3, step=2**32 - 1))
    except (TypeError, ValueError) as error:
        found = (type(error), str(error))
    items = targets._items("test", held)
    return found, [image(item[1] if isinstance(item, tuple) else item) for item in items]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("target", TARGETS)
def test_shortcuts_change_no_result(target: str, strategy: str) -> None:
    found = outcome(TARGETS[target](), STRATEGIES[strategy])
    with the_long_way():
        assert found == outcome(TARGETS[target](), STRATEGIES[strategy])


@pytest.mark.parametrize("target", TARGETS)
def test_shortcuts_describe_as_the_long_way_does(target: str) -> None:
    held = TARGETS[target]()
    held = held if isinstance(held, (nn.Module, dict)) else list(held)
    found = targets.resolve("test", held, fu.TopK(1))
    with the_long_way():
        wanted = targets.resolve("test", held, fu.TopK(1))
    assert list(found.names) == list(wanted.names)
    assert list(map(id, found.tensors)) == list(map(id, wanted.tensors))
    assert found.shapes == wanted.shapes and found.dtypes == wanted.dtypes
    assert (found.layout, found.numel) == (wanted.layout, wanted.numel)


# What the shortcuts vouch for ---------------------------------------------------------------------


@compiled
def test_every_shortcut_is_compiled() -> None:
    """A misspelt or unregistered one would go unseen: the long way gives the same results."""
    sources = (Path(module.__file__).read_text() for module in (targets, selection, perturb))
    names = [n for t in sources for n in re.findall(r'(?:shortcut|_dispatch)\("(\w+)"', t)]
    assert len(names) == len(set(names)) == 8
    assert all(hasattr(_extension.load(), name) for name in names)


@compiled
@pytest.mark.parametrize(
    "target",
    ["list", "generator", "pairs", "mapping", "module", "dtypes", "slices of one buffer"],
)
def test_usual_targets_take_the_shortcut(target: str) -> None:
    items = targets._items("test", TARGETS[target]())
    found = targets._usual("test", items)
    assert found is not None
    assert targets.shortcut("gradients")(found.tensors) is not None


class Sub(Tensor):
    pass


class SubParameter(nn.Parameter):
    pass


def inference() -> Tensor:
    with torch.inference_mode():
        return torch.zeros(3)


def fake() -> Tensor:
    return torch._subclasses.FakeTensorMode().from_tensor(torch.zeros(3))


def freed() -> Tensor:
    tensor = torch.zeros(3)
    tensor.untyped_storage().resize_(0)
    return tensor


ONE = torch.zeros(6)
UNUSUAL: dict[str, Callable[[], list[Any]]] = {
    "no tensor": lambda: [1.0],
    "none": lambda: [None],
    "subclass": lambda: [torch.zeros(3).as_subclass(Sub)],
    "parameter subclass": lambda: [SubParameter(torch.zeros(3))],
    "meta": lambda: [torch.zeros(3, device="meta")],
    "fake": lambda: [fake()],
    "inference": lambda: [inference()],
    "integers": lambda: [torch.zeros(3, dtype=torch.int64)],
    "complex": lambda: [torch.zeros(3, dtype=torch.complex64)],
    "float8": lambda: [torch.zeros(3).to(torch.float8_e5m2)],
    "sparse": lambda: [torch.zeros(3).to_sparse()],
    "negated view": lambda: [torch.zeros(3, dtype=torch.complex64).conj().imag],
    "dense negated view": lambda: [torch._neg_view(torch.zeros(3))],
    "gaps": lambda: [torch.zeros(6)[::2]],
    "expanded": lambda: [torch.zeros(1).expand(3)],
    "empty": lambda: [torch.zeros(0)],
    "freed": lambda: [freed()],
    "twice": lambda: [ONE, ONE],
    "overlap": lambda: [ONE[:4], ONE[3:]],
    "inside": lambda: [ONE, ONE[2:3]],
    "last of many": lambda: [*plain(5), plain(1)[0].detach()[:, ::2]],
    "name twice": lambda: [("a", torch.zeros(2)), ("a", torch.zeros(3))],
    "name no string": lambda: [(1, torch.zeros(2))],
    "mixed items": lambda: [("a", torch.zeros(2)), torch.zeros(2)],
    "triple": lambda: [("a", torch.zeros(2), 1)],
}


@compiled
@pytest.mark.parametrize("kind", UNUSUAL)
def test_survey_vouches_for_nothing_unusual(kind: str) -> None:
    items = UNUSUAL[kind]()
    vouched = [targets.shortcut("survey")(list_) is not None for list_ in (items, plain(1) + items)]
    assert vouched == [False, False]  # no tensor in sight: one of them cannot be printed


@compiled
def test_survey_of_mapped_tensors() -> None:
    """A tensor under vmap has the very class Tensor and no memory."""
    seen = []

    def look(x: Tensor) -> Tensor:
        seen.append(targets.shortcut("survey")([x]))
        return x

    torch.vmap(look)(torch.zeros(2, 3))
    assert seen == [None]


@compiled
def test_survey_takes_inference_tensors_in_inference_mode() -> None:
    with torch.inference_mode():
        assert targets.shortcut("survey")([torch.zeros(3)]) is not None


SCORES: dict[str, Tensor] = {
    "shape": torch.zeros(6),
    "transposed": torch.zeros(3, 2),
    "device": torch.zeros(2, 3, device="meta"),
    "dtype": torch.zeros(2, 3, dtype=torch.int32),
    "sparse": torch.zeros(2, 3).to_sparse(),
    "subclass": torch.zeros(2, 3).as_subclass(Sub),
}


@compiled
@pytest.mark.parametrize("kind", SCORES)
def test_scores_that_do_not_fit(kind: str) -> None:
    weights = [torch.zeros(4), torch.zeros(2, 3)]
    fit, gradients = targets.shortcut("fit"), targets.shortcut("gradients")
    good = [torch.zeros(4), torch.zeros(3, 2, dtype=torch.bfloat16).t()]
    assert fit(weights, good) and not fit(weights, good[:1])
    assert not fit(weights, [good[0], SCORES[kind]])
    weights[0].grad = good[0]
    assert gradients(weights) is None
    weights[1].grad = torch.zeros(2, 3)
    assert [id(g) for g in gradients(weights)] == [id(w.grad) for w in weights]
    if kind in ("sparse", "subclass"):  # torch refuses the others itself
        weights[1].grad = SCORES[kind]
        assert gradients(weights) is None


@compiled
@pytest.mark.parametrize("kind", ["subclass", "parameter subclass", "negated view"])
def test_operations_of_unusual_tensors_are_left_to_torch(kind: str) -> None:
    """A class of its own may want to see the call."""
    odd = [torch.zeros(3), *UNUSUAL[kind]()]
    usual = [torch.zeros(3), torch.zeros(3)]
    scale, rng = torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.int64)
    tail = ("normal", "add", False, [0, 3, 3, 3, 3, 3])
    top_k, random_k = targets.shortcut("topk_perturb_"), targets.shortcut("randomk_perturb_")
    for weights, scores in ((odd, usual), (usual, odd)):
        assert top_k(weights, scores, scale, rng, [2], False, "grad", "error", *tail) is None
    assert random_k(odd, scale, rng, [2], False, *tail, 6) is None
    assert not any(tensor.any() for tensor in odd + usual)
    assert random_k(usual, scale, rng, [2], False, *tail, 6).shape == (2, len(Stat))


def test_function_mode_sees_the_operation() -> None:
    class Watch(TorchFunctionMode):
        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.add(str(function))
            return function(*args, **(kwargs or {}))

    for strategy in (fu.TopK(2), fu.RandomK(2)):
        seen: set[str] = set()
        with Watch():
            fu.perturb_(plain(), strategy)
        assert any("perturb_" in name for name in seen), seen


def test_changed_parameters_are_looked_at_again() -> None:
    first, second = plain(2)
    stepper = fu.Perturber([first, second], fu.TopK(1.0))
    assert stepper.step().n == 25
    first.data = torch.zeros(1)
    first.grad = torch.ones(1)
    assert [entry.shape for entry in stepper.step().tensors] == [(1,), (5, 3)]
    second.grad = None
    with pytest.raises(ValueError, match=r"must have a \.grad, got none for 1"):
        stepper.step()
    second.data = first.data.expand(4)
    second.grad = torch.ones(4)
    with pytest.raises(ValueError, match="parameter '1' must have distinct memory"):
        stepper.step()


# The receipt, whose fields are computed late ------------------------------------------------------


def late() -> Receipt:
    return fu.perturb_(plain(), fu.TopK(4), seed=11, step=2)


def early() -> Receipt:
    found = late()
    names = [field.name for field in dataclasses.fields(Receipt)]
    return Receipt(**{name: getattr(found, name) for name in names})


USES: dict[str, Callable[[Receipt], Any]] = {
    "equality": lambda r: r,
    "repr": repr,
    "dict": lambda r: r.to_dict(),
    "json": lambda r: r.to_json(),
    "asdict": dataclasses.asdict,
    "pickle": lambda r: pickle.loads(pickle.dumps(r)),
    "copy": copy.copy,
    "deep copy": copy.deepcopy,
    "replace": lambda r: dataclasses.replace(r, k=1),
    "count": lambda r: r.count,
    "tensors": lambda r: r.tensors,
    "names": lambda r: hasattr(r, "nonsense"),
}


@pytest.mark.parametrize("use", USES)
def test_late_receipt_is_a_receipt(use: str) -> None:
    found = USES[use](late())
    assert found == USES[use](early())
    assert type(found) is type(USES[use](early()))


def test_late_fields_are_frozen_and_of_their_types() -> None:
    receipt = late()
    with pytest.raises(dataclasses.FrozenInstanceError):
        receipt.tensors = ()  # type: ignore[misc]
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        receipt.nonsense  # type: ignore[attr-defined]  # noqa: B018
    assert receipt.count == 4
    assert type(receipt.tensors) is tuple and type(receipt.tensors[0]) is TensorReceipt
    assert type(receipt.tensors[0].shape) is tuple
    assert set(vars(receipt)) == {field.name for field in dataclasses.fields(Receipt)}
    assert set(pickle.loads(pickle.dumps(late())).__dict__) == set(vars(receipt))


def test_receipt_tells_of_the_call_not_of_later() -> None:
    (weight,) = plain(1)
    receipt = fu.perturb_([weight], fu.TopK(2))
    weight.data = torch.zeros(3, dtype=torch.float64)
    assert (receipt.tensors[0].shape, receipt.tensors[0].dtype) == ((5, 2), "float32")


def integers_behind(receipt: Receipt) -> list[int]:
    """Every integer that an object holds, however deep, code and classes aside."""
    found, seen, new = [], set(), [receipt]
    while new:
        found += [held for held in new if isinstance(held, int)]
        seen.update(map(id, new))
        kinds = (type, types.FunctionType, types.ModuleType)
        new = [o for o in gc.get_referents(*new) if id(o) not in seen and not isinstance(o, kinds)]
    return found


def test_unread_receipt_keeps_neither_tensors_nor_seed() -> None:
    weights = plain()
    gone = [weakref.ref(tensor) for w in weights for tensor in (w, w.grad)]
    seed = 0x5EED_5EED_5EED_5EED
    receipt = fu.perturb_(weights, fu.TopK(4), seed=seed)
    del weights
    gc.collect()
    assert [ref() for ref in gone] == [None] * 6
    assert seed in integers_behind(fu.perturb_(plain(), fu.TopK(4), seed=seed, keep_seed=True))
    assert seed not in integers_behind(receipt)
    assert receipt.count == 4 and receipt.seed is None
