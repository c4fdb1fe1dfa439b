"""Differentiable divergences between the softmax outputs of two models.

They serve as the distillation term of the repair phase and as a metric, so they live below both.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Reduction", "jeffreys", "jensen_shannon"]

Reduction = Literal["batchmean", "mean", "none"]

_LN2 = math.log(2.0)


def jensen_shannon(
    logits_p: Tensor, logits_q: Tensor, reduction: Reduction = "batchmean"
) -> Tensor:
    r"""Return the Jensen-Shannon divergence of two softmax outputs, in nats.

    JS(p, q) = (KL(p || m) + KL(q || m)) / 2 with the mixture m = (p + q) / 2. It lies in [0, ln 2]
    up to one rounding, is exactly 0 for equal logits, and swapping the arguments changes no bit.

    Both gradients are finite wherever the logits are, and exactly 0 at p = q. A logit of -inf (a
    masked class) stands for probability 0 and is allowed as long as each row has a finite logit;
    NaN gives NaN. Deterministic on one device.

    Args:
        logits_p: Shape (..., C), floating point, not mutated. The last dimension holds the classes.
        logits_q: Same shape and device as ``logits_p``, not mutated.
        reduction: ``"batchmean"`` divides the sum by the size of the first dimension, ``"mean"``
            by the number of distributions (all leading dimensions), ``"none"`` keeps one value per
            distribution. For logits of shape (N, C) the first two are the same.

    Returns:
        A 0-dim tensor, or shape (...) for ``"none"``; float64 for float64 input, else float32.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If shapes differ, there is no class, the mean of nothing is asked for, or
            ``reduction`` is unknown.

    Example:
        >>> p = torch.tensor([[0.0, 0.0]])
        >>> jensen_shannon(p, p).item()
        0.0
        >>> sure, opposite = torch.tensor([[50.0, -50.0]]), torch.tensor([[-50.0, 50.0]])
        >>> round(jensen_shannon(sure, opposite).item(), 4)  # ln 2
        0.6931

    Source:
        J. Lin, Divergence measures based on the Shannon entropy, IEEE Trans. Inf. Theory 37(1),
        1991. Used as the repair term by TrajMU (KDD 2026) [peer], there as a symmetric KL.
    """
    log_p, log_q = _log_probabilities("jensen_shannon", logits_p, logits_q, reduction)
    # A class masked in both outputs would give inf - inf; the lowest finite number makes it 0.
    lowest = torch.finfo(log_p.dtype).min
    log_p, log_q = log_p.clamp_min(lowest), log_q.clamp_min(lowest)
    p, q = log_p.exp(), log_q.exp()
    gap = (log_q - log_p).abs()
    # log(m / max(p, q)) without forming m: expm1 and log1p keep it exact for p = q, where
    # log((p + q) / 2) would lose the whole divergence to rounding.
    log_mixture = torch.log1p(torch.expm1(-gap) / 2)
    terms = -0.5 * (torch.minimum(p, q) * gap + (p + q) * log_mixture)
    # The exact sum lies in [0, ln 2]; what is outside is rounding.
    return _reduce(terms.sum(-1).clamp(0.0, _LN2), reduction)


def jeffreys(logits_p: Tensor, logits_q: Tensor, reduction: Reduction = "batchmean") -> Tensor:
    """Return the Jeffreys divergence KL(p || q) + KL(q || p) of two softmax outputs, in nats.

    It is the sum of both directions, not their mean. Unlike Jensen-Shannon it has no upper bound,
    and it is infinite where one output gives a class probability 0 (a logit of -inf) and the other
    does not; there the gradient is not usable. Exactly 0 for equal logits and exactly symmetric.

    Args:
        logits_p: Shape (..., C), floating point, not mutated. The last dimension holds the classes.
        logits_q: Same shape and device as ``logits_p``, not mutated.
        reduction: As in :func:`jensen_shannon`.

    Returns:
        A 0-dim tensor, or shape (...) for ``"none"``; float64 for float64 input, else float32.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: As :func:`jensen_shannon`.

    Example:
        >>> p, q = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.1, 0.9]]).log()
        >>> round(jeffreys(p, q).item(), 4)  # 2 * 0.8 * ln 9
        3.5156

    Source:
        H. Jeffreys, An invariant form for the prior probability in estimation problems, Proc. R.
        Soc. A 186, 1946.
    """
    log_p, log_q = _log_probabilities("jeffreys", logits_p, logits_q, reduction)
    p, q = log_p.exp(), log_q.exp()
    both_zero = log_p.isneginf() & log_q.isneginf()
    difference = (log_p - log_q).masked_fill(both_zero, 0.0)
    return _reduce(((p - q) * difference).sum(-1), reduction)


def _log_probabilities(
    op: str, logits_p: Tensor, logits_q: Tensor, reduction: str
) -> tuple[Tensor, Tensor]:
    """Validate two logit tensors and return their log-probabilities in at least float32."""
    for name, value in (("logits_p", logits_p), ("logits_q", logits_q)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{op}: {name} must be a floating-point tensor, got {got}")
    shape = tuple(logits_p.shape)
    if logits_q.shape != logits_p.shape:
        raise ValueError(f"{op}: logits_q must have shape {shape}, got {tuple(logits_q.shape)}")
    if not shape or shape[-1] == 0:
        raise ValueError(f"{op}: logits_p must have shape (..., C) with C >= 1, got {shape}")
    if reduction not in ("batchmean", "mean", "none"):
        raise ValueError(
            f"{op}: reduction must be 'batchmean', 'mean' or 'none', got {reduction!r}"
        )
    if logits_p.numel() == 0 and reduction != "none":
        raise ValueError(f"{op}: logits_p must hold at least one example, got shape {shape}")
    dtype = torch.promote_types(logits_p.dtype, logits_q.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    return logits_p.log_softmax(-1, dtype=dtype), logits_q.log_softmax(-1, dtype=dtype)


def _reduce(values: Tensor, reduction: str) -> Tensor:
    """Reduce one divergence per distribution as ``reduction`` says."""
    if reduction == "none":
        return values
    if reduction == "mean" or values.ndim == 0:
        return values.mean()
    return values.sum() / values.shape[0]
