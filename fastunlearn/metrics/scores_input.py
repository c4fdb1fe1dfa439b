"""Border checks of score tensors and numbers that the attacks share."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import Tensor

Array = npt.NDArray[np.float64]


def score_array(op: str, name: str, scores: Tensor, ndim: int = 1) -> Array:
    """Return floating-point scores as a float64 array on the CPU, or raise.

    Args:
        op: Name of the operation, for messages.
        name: Name of the argument.
        scores: A floating-point tensor with ``ndim`` dimensions and at least one element.
        ndim: Number of dimensions.

    Raises:
        TypeError: If it is not a floating-point tensor.
        ValueError: If it has another number of dimensions or no element.
    """
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        got = scores.dtype if isinstance(scores, Tensor) else type(scores).__name__
        raise TypeError(f"{op}: {name} must be a floating-point tensor, got {got}")
    if scores.ndim != ndim or scores.numel() == 0:
        raise ValueError(
            f"{op}: {name} must have {ndim} dimension(s) and at least one element, "
            f"got shape {tuple(scores.shape)}"
        )
    return scores.detach().cpu().double().numpy()


def check_count(op: str, name: str, value: int, least: int) -> int:
    """Return ``value`` if it is an integer >= least, or raise ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{op}: {name} must be an integer >= {least}, got {value!r}")
    return value


def check_between(op: str, name: str, value: float, low: float, high: float) -> float:
    """Return ``value`` if it lies strictly between two numbers, or raise ValueError."""
    if not low < value < high:
        raise ValueError(f"{op}: {name} must be in ({low:g}, {high:g}), got {value}")
    return float(value)
