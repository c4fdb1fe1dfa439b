"""What an operation works on: parameters with names, checked once, at the border."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastunlearn.overlap import overlapping_pair, overlaps_itself
from fastunlearn.strategies import Strategy

Target = nn.Module | Mapping[str, Tensor] | Iterable[Tensor | tuple[str, Tensor]]
Scores = Mapping[str, Tensor] | Sequence[Tensor]
MissingGrad = Literal["error", "skip"]

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Parameters:
    """The parameters that take part, in flat-index order.

    Attributes:
        op: name of the calling operation, for messages.
        names: one for each tensor.
        tensors: the parameters themselves, not copies.
    """

    op: str
    names: list[str]
    tensors: list[Tensor]

    @property
    def numel(self) -> int:
        """Size of the flat index space."""
        return sum(tensor.numel() for tensor in self.tensors)

    @property
    def layout(self) -> list[int]:
        """The op argument `layout`: every tensor whole, one after the other."""
        packed: list[int] = []
        base = 0
        for tensor in self.tensors:
            row = max(tensor.numel(), 1)
            packed += (base, row, row)
            base += tensor.numel()
        return packed

    def counts(self, strategy: Strategy) -> list[int]:
        """The op argument `k`: one count, or one for each tensor under the scope "tensor".

        Raises:
            ValueError: a count exceeds the number of elements, or a fraction rounds to nothing.
        """
        sizes = [self.numel]
        if strategy.scope == "tensor":
            sizes = [tensor.numel() for tensor in self.tensors]
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
        ValueError: parameters overlap in memory, or are spread over several devices; or the
            patterns leave none of them.
    """
    found: dict[int, tuple[Any, list[str]]] = {}
    seen: set[str] = set()
    for name, tensor in _named(op, target):
        if name in seen:
            raise ValueError(f"{op}: parameter names must be unique, got {name!r} twice")
        seen.add(name)
        found.setdefault(id(tensor), (tensor, []))[1].append(name)
    kept = [(names[0], tensor) for tensor, names in found.values() if _takes_part(names, strategy)]
    if found and not kept:
        raise ValueError(
            f"{op}: include and exclude must leave at least one parameter, got "
            f"include={list(strategy.include)}, exclude={list(strategy.exclude)}"
        )
    for name, tensor in kept:
        _check_tensor(op, "parameter", name, tensor)
    parameters = Parameters(op, [name for name, _ in kept], [tensor for _, tensor in kept])
    _check_memory(parameters)
    return parameters


def _named(op: str, target: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(target, nn.Module):
        yield from target.named_parameters(remove_duplicate=False)
    elif isinstance(target, Mapping):
        for name, tensor in target.items():
            yield _checked_name(op, name), tensor
    elif isinstance(target, Iterable) and not isinstance(target, (Tensor, str)):
        for number, item in enumerate(target):
            pair = isinstance(item, tuple) and len(item) == 2
            yield (_checked_name(op, item[0]), item[1]) if pair else (str(number), item)
    else:
        raise TypeError(
            f"{op}: target must be a module, a mapping or an iterable of parameters, got "
            f"{type(target).__name__}"
        )


def _checked_name(op: str, name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"{op}: parameter names must be strings, got {type(name).__name__}")
    return name


def _takes_part(names: Sequence[str], strategy: Strategy) -> bool:
    def matches(patterns: Iterable[str]) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)

    return (not strategy.include or matches(strategy.include)) and not matches(strategy.exclude)


def _check_tensor(op: str, role: str, name: str, tensor: Any) -> None:
    def fail(got: str) -> None:
        raise TypeError(f"{op}: {role} {name!r} must be a dense floating-point tensor, got {got}")

    if not isinstance(tensor, Tensor):
        fail(type(tensor).__name__)
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
    if role == "parameter" and tensor.is_inference() and not torch.is_inference_mode_enabled():
        fail("an inference tensor outside of inference mode")


def _check_memory(parameters: Parameters) -> None:
    op, names = parameters.op, parameters.names
    devices = {tensor.device for tensor in parameters.tensors}
    if len(devices) > 1:
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


def with_gradients(parameters: Parameters, missing: MissingGrad) -> tuple[Parameters, list[Tensor]]:
    """Return the parameters and their `.grad`; those without one are refused or left out.

    Raises:
        ValueError: a parameter has no gradient and `missing` is "error"; all are listed.
    """
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
    gradients = {name: tensor.grad for name, tensor in kept}
    chosen = Parameters(op, names, tensors)
    return chosen, match_scores(chosen, gradients)


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
    for name, tensor, value in zip(parameters.names, parameters.tensors, values, strict=True):
        _check_tensor(op, "score of", name, value)
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
