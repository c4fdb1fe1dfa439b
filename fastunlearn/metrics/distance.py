"""Distance between the parameters of two models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Real

import torch
from torch import Tensor, nn

from fastunlearn.metrics.undefined import Undefined

__all__ = ["parameter_distance", "parameter_distance_relative"]

Parameters = nn.Module | Mapping[str, Tensor]


def parameter_distance(model_a: Parameters, model_b: Parameters, p: float = 2.0) -> float:
    """Return the p-norm of the difference of two models' parameters. [field]

    (sum_i |a_i - b_i|^p)^(1/p) over all named parameters; buffers such as batch-norm statistics do
    not count, tied parameters count once. Works tensor by tensor in float64, so the extra memory is
    two float64 copies of the largest tensor; nothing is concatenated.

    Args:
        model_a: A module, or a mapping from name to floating-point tensor such as
            ``{n: w.detach().clone() for n, w in model.named_parameters()}``. Not mutated.
        model_b: The same names and shapes, on any device.
        p: The order of the norm, >= 1; ``math.inf`` gives the greatest absolute difference.

    Returns:
        A number >= 0; NaN where a parameter is NaN.

    Raises:
        TypeError: If an argument is neither module nor mapping, or a tensor is not floating point.
        ValueError: If names or shapes differ, there is no parameter, or ``p`` is below 1.

    Example:
        >>> a = {"weight": torch.tensor([3.0, 0.0])}
        >>> b = {"weight": torch.tensor([0.0, 4.0])}
        >>> parameter_distance(a, b), parameter_distance(a, b, p=1)
        (5.0, 7.0)
    """
    op = "parameter_distance"
    order = _check_order(op, p)
    tensors_a, tensors_b = _named(op, "model_a", model_a), _named(op, "model_b", model_b)
    _check_same(op, tensors_a, tensors_b)
    # The p-norm of the tensors' p-norms is the p-norm of all their elements.
    return _norm((_difference(a, tensors_b[name]) for name, a in tensors_a.items()), order)


def parameter_distance_relative(original: Parameters, model: Parameters, p: float = 2.0) -> float:
    """Return the distance of a model from the original, relative to the original's norm.

    ||w - w0||_p / ||w0||_p. [ours]

    Args:
        original: The original model w0, as in :func:`parameter_distance`. Not mutated.
        model: The other model, the same names and shapes.
        p: The order of the norm, >= 1 or ``math.inf``.

    Returns:
        A number >= 0, or :class:`Undefined` where all original parameters are 0.

    Raises:
        TypeError: As :func:`parameter_distance`.
        ValueError: As :func:`parameter_distance`.

    Example:
        >>> before = {"weight": torch.tensor([3.0, 4.0])}
        >>> parameter_distance_relative(before, {"weight": torch.tensor([3.0, 3.0])})
        0.2
    """
    distance = parameter_distance(original, model, p)
    tensors = _named("parameter_distance_relative", "original", original)
    norm = _norm((tensor.detach().double() for tensor in tensors.values()), p)
    if norm == 0.0:
        return Undefined("all parameters of the original model are 0")
    return distance / norm


def _check_order(op: str, p: float) -> float:
    """Return the norm's order as a float."""
    if isinstance(p, bool) or not isinstance(p, Real):
        raise TypeError(f"{op}: p must be a real number, got {type(p).__name__}")
    if not float(p) >= 1.0:
        raise ValueError(f"{op}: p must be >= 1, got {p}")
    return float(p)


def _named(op: str, name: str, model: Parameters) -> dict[str, Tensor]:
    """Return the model's parameters by name, checked to be floating point and not empty."""
    if isinstance(model, nn.Module):
        tensors: dict[str, Tensor] = dict(model.named_parameters())
    elif isinstance(model, Mapping):
        tensors = dict(model)
    else:
        raise TypeError(f"{op}: {name} must be a module or a mapping, got {type(model).__name__}")
    if not tensors:
        raise ValueError(f"{op}: {name} must have at least one parameter, got none")
    for key, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"{op}: {name}[{key!r}] must be a floating-point tensor, got {got}")
    return tensors


def _check_same(op: str, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
    """Raise unless both have the same names and, for each name, the same shape."""
    if a.keys() != b.keys():
        differing = sorted(a.keys() ^ b.keys())
        raise ValueError(
            f"{op}: model_b must have the parameter names of model_a, "
            f"got {len(differing)} names in one of them only, first {differing[0]!r}"
        )
    for name, tensor in a.items():
        if b[name].shape != tensor.shape:
            expected, got = tuple(tensor.shape), tuple(b[name].shape)
            raise ValueError(f"{op}: model_b[{name!r}] must have shape {expected}, got {got}")


def _difference(a: Tensor, b: Tensor) -> Tensor:
    """Return a - b in float64 on the device of ``a``."""
    return a.detach().double() - b.detach().to(a.device)


def _norm(tensors: Iterable[Tensor], p: float) -> float:
    """Return the p-norm over all elements of all tensors, holding one of them at a time."""
    norms = [float(torch.linalg.vector_norm(t, p)) for t in tensors if t.numel()]
    if not norms:
        return 0.0
    return float(torch.linalg.vector_norm(torch.tensor(norms, dtype=torch.float64), p))
