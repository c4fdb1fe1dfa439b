"""What an operation works on: parameters with names, checked once, at the border."""

from __future__ import annotations

import fnmatch
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from fastunlearn import _extension
from fastunlearn._ops import backend_of
from fastunlearn.overlap import overlapping_pair, overlaps_itself
from fastunlearn.strategies import Strategy

Target = nn.Module | Mapping[str, Tensor] | Iterable[Tensor | tuple[str, Tensor]]
Scores = Mapping[str, Tensor] | Sequence[Tensor]
MissingGrad = Literal["error", "skip"]

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _declines(*_: Any) -> None:
    """The shortcut that is not there."""


@functools.cache
def shortcut(name: str) -> Callable[..., Any]:
    """Find a shortcut of the compiled border (csrc/binding/border.cpp).

    Returns:
        A function that gives None, or False, where it does not vouch for its arguments, as it
        always does without the extension. The caller then goes the long way, which decides.
    """
    return getattr(_extension.load(), name, _declines)


class Parameters(NamedTuple):
    """The parameters that take part, in flat-index order.

    Attributes:
        op: name of the calling operation, for messages.
        names, shapes, dtypes: one for each tensor.
        tensors: the parameters themselves, not copies.
        layout: the op argument `layout`: every tensor whole, one after the other.
        numel: size of the flat index space.
    """

    op: str
    names: Sequence[str]
    tensors: list[Tensor]
    shapes: list[tuple[int, ...]]
    dtypes: list[torch.dtype]
    layout: list[int]
    numel: int

    @staticmethod
    def of(op: str, names: Sequence[str], tensors: list[Tensor]) -> Parameters:
        """Describe tensors that are known to be valid."""
        layout: list[int] = []
        base = 0
        for tensor in tensors:
            row = max(tensor.numel(), 1)
            layout += (base, row, row)
            base += tensor.numel()
        shapes = [tuple(tensor.shape) for tensor in tensors]
        return Parameters(op, names, tensors, shapes, [t.dtype for t in tensors], layout, base)

    def counts(self, strategy: Strategy) -> list[int]:
        """The op argument `k`: one count, or one for each tensor under the scope "tensor".

        Raises:
            ValueError: a count exceeds the number of elements, or a fraction rounds to nothing.
        """
        sizes = [self.numel]
        if strategy.scope == "tensor":
            sizes = [math.prod(shape) for shape in self.shapes]
        counts = [strategy.count(size) for size in sizes]
        for size, count in zip(sizes, counts, strict=True):
            if count > size:
                raise ValueError(
                    f"{self.op}: k must be at most {size}, the number of elements, got {count}"
                )
        if isinstance(strategy.k, float) and self.numel and not any(counts):
            raise ValueError(
                f"{self.op}: k must be a fraction that selects at least one element, got "
                f"{strategy.k!r} of {max(sizes)}"
            )
        return counts


def resolve(op: str, target: Target, strategy: Strategy) -> Parameters:
    """Name, filter and check the parameters of a target.

    A parameter that appears more than once (tied weights) counts once, at its first place and
    under its first name; it takes part if any of its names is included and none is excluded.

    Args:
        op: name of the calling operation, for messages.
        target: a module, a mapping, or an iterable of tensors or of (name, tensor) pairs.
        strategy: gives the include and exclude patterns.

    Raises:
        TypeError: the target holds something else than dense floating-point tensors.
        ValueError: parameters overlap in memory, or are spread over devices that do not work
            together; or the patterns leave none of them.
    """
    items = _items(op, target)
    if not (strategy.include or strategy.exclude) and (plain := _usual(op, items)):
        return plain
    kept = _kept(op, items, strategy)
    if plain := _usual(op, kept):
        return plain
    for name, tensor in kept:
        check_tensor(op, "parameter", name, tensor)
    parameters = Parameters.of(op, [name for name, _ in kept], [tensor for _, tensor in kept])
    check_memory(parameters)
    return parameters


def kept(op: str, target: Any, strategy: Strategy) -> list[tuple[str, Any]]:
    """Name and filter what a target holds, as `resolve` does, whatever it is."""
    return _kept(op, _items(op, target), strategy)


def _items(op: str, target: Any) -> list[Any]:
    """What the target holds: tensors, or pairs of a name and a tensor."""
    if isinstance(target, (list, tuple)):  # first, since the tests below are slow to say no
        return list(target)
    if isinstance(target, nn.Module):
        return list(target.named_parameters(remove_duplicate=False))
    if isinstance(target, Mapping):
        return list(target.items())
    if isinstance(target, Iterable) and not isinstance(target, (Tensor, str)):
        return list(target)
    raise TypeError(
        f"{op}: target must be a module, a mapping or an iterable of parameters, got "
        f"{type(target).__name__}"
    )


def _usual(op: str, items: list[Any]) -> Parameters | None:
    """The parameters, where they are many of the usual kind: named apart, disjoint, on one device.

    Everything that `resolve` checks is checked; None says that something is unusual, not wrong.
    """
    found = shortcut("survey")(items)
    if found is None:
        return None
    return Parameters(op, found[0] or _numbers(len(items)), *found[1:])


@functools.lru_cache(maxsize=16)
def _numbers(count: int) -> tuple[str, ...]:
    """Names of parameters that were given none."""
    return tuple(map(str, range(count)))


def _kept(op: str, items: list[Any], strategy: Strategy) -> list[tuple[str, Any]]:
    """The parameters that the patterns let take part, each once, under its first name."""
    found: dict[int, tuple[Any, list[str]]] = {}
    seen: set[str] = set()
    for name, tensor in _named(op, items):
        if name in seen:
            raise ValueError(f"{op}: parameter names must be unique, got {name!r} twice")
        seen.add(name)
        found.setdefault(id(tensor), (tensor, []))[1].append(name)
    kept = [(names[0], tensor) for tensor, names in found.values() if takes_part(names, strategy)]
    if found and not kept:
        raise ValueError(
            f"{op}: include and exclude must leave at least one parameter, got "
            f"include={list(strategy.include)}, exclude={list(strategy.exclude)}"
        )
    return kept


def _named(op: str, items: list[Any]) -> Iterator[tuple[str, Any]]:
    for number, item in enumerate(items):
        pair = isinstance(item, tuple) and len(item) == 2
        yield (_checked_name(op, item[0]), item[1]) if pair else (str(number), item)


def _checked_name(op: str, name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"{op}: parameter names must be strings, got {type(name).__name__}")
    return name


def takes_part(names: Sequence[str], strategy: Strategy) -> bool:
    """Whether the strategy's patterns let a parameter of these names take part."""

    def matches(patterns: Iterable[str]) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)

    return (not strategy.include or matches(strategy.include)) and not matches(strategy.exclude)


def check_tensor(op: str, role: str, name: str, tensor: Any) -> None:
    """Refuse what is not a dense floating-point tensor that holds data."""

    def fail(got: str) -> None:
        raise TypeError(f"{op}: {role} {name!r} must be a dense floating-point tensor, got {got}")

    if not isinstance(tensor, Tensor):
        fail(type(tensor).__name__)
    if hasattr(tensor, "placements"):  # without an import of what few need
        fail("a DTensor; fastunlearn.distributed takes those")
    if tensor.is_nested:
        fail(f"a nested tensor of layout {tensor.layout}")
    if tensor.is_quantized:
        fail(f"a quantized tensor of {tensor.dtype}")
    if tensor.layout != torch.strided:
        fail(f"a tensor of layout {tensor.layout}")
    if tensor.dtype not in _DTYPES:
        fail(f"a tensor of {tensor.dtype}")
    if tensor.is_meta or isinstance(tensor, torch._subclasses.FakeTensor):
        fail("a meta or fake tensor, which holds no data")
    if role == "parameter" and tensor.is_neg():
        fail("a lazily negated view")  # of the imaginary part of a conjugate, say
    if role == "parameter" and tensor.is_inference() and not torch.is_inference_mode_enabled():
        fail("an inference tensor outside of inference mode")


def check_memory(parameters: Parameters) -> None:
    """Refuse parameters on devices that do not work together, and elements that share memory."""
    op, names = parameters.op, parameters.names
    devices = {tensor.device for tensor in parameters.tensors}
    if not work_together(devices):
        found = ", ".join(sorted(map(str, devices)))
        raise ValueError(f"{op}: parameters must lie on one device, got {found}")
    for name, tensor in zip(names, parameters.tensors, strict=True):
        if overlaps_itself(tensor):
            raise ValueError(
                f"{op}: parameter {name!r} must have distinct memory for each element, got shape "
                f"{tuple(tensor.shape)} with strides {tensor.stride()}"
            )
    pair = overlapping_pair(parameters.tensors)
    if pair:
        first, second = (names[i] for i in pair)
        raise ValueError(f"{op}: parameters must not share memory, got {first!r} and {second!r}")


def work_together(devices: Set[torch.device]) -> bool:
    """Return whether one call may take parameters on all of these: several GPUs, or one device."""
    return len(devices) <= 1 or {backend_of("topk_perturb_", d) for d in devices} == {"cuda"}


def with_gradients(parameters: Parameters, missing: MissingGrad) -> tuple[Parameters, list[Tensor]]:
    """Return the parameters and their `.grad`; those without one are refused or left out.

    Raises:
        ValueError: a parameter has no gradient and `missing` is "error"; all are listed.
    """
    gradients = shortcut("gradients")(parameters.tensors)
    if gradients is not None:
        return parameters, gradients
    op = parameters.op
    pairs = list(zip(parameters.names, parameters.tensors, strict=True))
    absent = [name for name, tensor in pairs if tensor.grad is None]
    if absent and missing == "error":
        raise ValueError(
            f"{op}: every parameter must have a .grad, got none for {', '.join(absent)}; call "
            "backward first, give scores=, or set missing_grad='skip'"
        )
    kept = [(name, tensor) for name, tensor in pairs if tensor.grad is not None]
    names, tensors = [name for name, _ in kept], [tensor for _, tensor in kept]
    chosen = Parameters.of(op, names, tensors)
    return chosen, match_scores(chosen, {name: tensor.grad for name, tensor in kept})


def match_scores(parameters: Parameters, scores: Mapping[str, Any] | Sequence[Any]) -> list[Tensor]:
    """Put given scores into the order of the parameters and check them against these.

    Args:
        parameters: the parameters that take part.
        scores: by name (others than the parameters' are ignored), or one for each parameter.

    Raises:
        TypeError: a score is not a dense floating-point tensor.
        ValueError: scores are missing, or differ from their parameter in shape or device.
    """
    op = parameters.op
    if isinstance(scores, Mapping):
        absent = [name for name in parameters.names if name not in scores]
        if absent:
            raise ValueError(f"{op}: scores must hold every parameter, got none for {absent[0]!r}")
        values = [scores[name] for name in parameters.names]
    else:
        values = list(scores)
        if len(values) != len(parameters.names):
            raise ValueError(
                f"{op}: scores must have {len(parameters.names)} tensors, got {len(values)}"
            )
    if shortcut("fit")(parameters.tensors, values):
        return values
    for name, tensor, value in zip(parameters.names, parameters.tensors, values, strict=True):
        check_tensor(op, "score of", name, value)
        for attribute in ("shape", "device"):
            wanted, found = getattr(tensor, attribute), getattr(value, attribute)
            if wanted != found:
                raise ValueError(
                    f"{op}: scores[{name!r}] must have {attribute} {_plain(wanted)}, got "
                    f"{_plain(found)}"
                )
    return values


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, torch.Size) else value
