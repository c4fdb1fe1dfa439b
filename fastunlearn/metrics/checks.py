"""Input checks that the metrics share; each raises before anything is computed."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

_INTEGER_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def check_performance(op: str, name: str, value: float, upper: float = math.inf) -> float:
    """Return ``value`` as a float if it is a finite number in [0, upper].

    Raises:
        TypeError: If it is not a real number (a bool is none).
        ValueError: If it is outside the range, infinite or NaN.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{op}: {name} must be a real number, got {type(value).__name__}")
    number = float(value)
    if not math.isfinite(number) or not 0.0 <= number <= upper:
        expected = "a finite number >= 0" if upper == math.inf else f"in [0, {upper:g}]"
        raise ValueError(f"{op}: {name} must be {expected}, got {number}")
    return number


def check_logits(op: str, name: str, logits: Tensor, minimum_classes: int = 1) -> None:
    """Raise unless ``logits`` is a floating-point tensor of shape (..., C), C >= minimum_classes.

    Raises:
        TypeError: If it is not a floating-point tensor.
        ValueError: If it has too few classes or no example.
    """
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        got = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise TypeError(f"{op}: {name} must be a floating-point tensor, got {got}")
    shape = tuple(logits.shape)
    if len(shape) < 2 or shape[-1] < minimum_classes:
        expected = f"shape (..., C) with C >= {minimum_classes}"
        raise ValueError(f"{op}: {name} must have {expected}, got {shape}")
    if logits.numel() == 0:
        raise ValueError(f"{op}: {name} must hold at least one example, got shape {shape}")


def check_targets(op: str, name: str, targets: Tensor, logits: Tensor) -> None:
    """Raise unless ``targets`` holds one class index for each row of ``logits``.

    Raises:
        TypeError: If it is not an integer tensor.
        ValueError: If its shape differs from the leading shape of ``logits``, or an index is
            outside [0, C).
    """
    if not isinstance(targets, Tensor) or targets.dtype not in _INTEGER_DTYPES:
        got = targets.dtype if isinstance(targets, Tensor) else type(targets).__name__
        raise TypeError(f"{op}: {name} must be an integer tensor of class indices, got {got}")
    if targets.shape != logits.shape[:-1]:
        expected, got_shape = tuple(logits.shape[:-1]), tuple(targets.shape)
        raise ValueError(f"{op}: {name} must have shape {expected}, got {got_shape}")
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= logits.shape[-1]:
        got_index = low if low < 0 else high
        raise ValueError(f"{op}: {name} must be in [0, {logits.shape[-1]}), got {got_index}")
