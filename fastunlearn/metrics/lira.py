"""U-LiRA: a likelihood-ratio membership attack per example, by shadow models."""

from __future__ import annotations

from typing import Literal

import numpy as np
from torch import Tensor
from torch import bool as bool_dtype
from torch import from_numpy as tensor_of

from fastunlearn.metrics.scores_input import Array, score_array

__all__ = ["lira_scores"]

Variance = Literal["per_example", "fixed"]

# A deviation of 1e-6 in logits: below what float32 models can tell apart, so that shadow models
# that agree to the bit give a great but finite ratio.
_LEAST_VARIANCE = 1e-12


def lira_scores(
    unlearned: Tensor,
    held_out: Tensor,
    target: Tensor,
    *,
    unlearned_mask: Tensor | None = None,
    held_out_mask: Tensor | None = None,
    variance: Variance = "per_example",
) -> Tensor:
    """Return each example's log-likelihood ratio "was in the training set" : "never was".

    log N(t; m_u, v_u) - log N(t; m_h, v_h), the online form: t is the example's scaled logit in the
    attacked model; m and v are mean and variance of its scaled logits over the shadow models that
    have unlearned it (u) and over those that have never seen it (h).

    What a reader must know:

    - Both kinds of shadow model must have gone through what the attacked model went through. For an
      unlearned target, held-out scores come from *unlearned* models that never saw the example;
      with plainly retrained models instead, any change by unlearning as such counts as membership.
    - The attacked model must not be among the shadow models, nor may the number of shadow models
      per side depend on whether the example is a member: the noise of the estimates would give it
      away. :class:`~fastunlearn.evaluation.shadow.ShadowPlan` takes care of both.
    - The same form attacks retained examples: give the shadow models that kept the example as
      ``unlearned``.
    - Few shadow models make a weak attack, and a weak attack that fails shows nothing. Below about
      30 per side take ``variance="fixed"``.

    Args:
        unlearned: Shape (S, N), floating point, scaled logits of N examples in S shadow models (see
            :func:`~fastunlearn.metrics.membership_scores`). Not mutated.
        held_out: Shape (R, N), likewise. May be the same tensor with another mask. Not mutated.
        target: Shape (N,), scaled logits in the attacked model. Not mutated.
        unlearned_mask: Bool, shape (S, N): where ``unlearned`` holds a value that counts, the model
            having unlearned this example; None for everywhere.
        held_out_mask: Bool, shape (R, N), likewise for models that never saw the example.
        variance: ``"per_example"`` estimates one for each example and side, unbiased, and needs two
            models there; ``"fixed"`` pools the deviations from each example's own mean over all
            examples, one for each side [ours: Carlini et al. pool the raw scores].

    Returns:
        Shape (N,), float64, on the CPU, greater means member; natural logarithm. NaN for an example
        with too few shadow models on a side, or with a value that is not finite.

    Raises:
        TypeError: If a score tensor is not floating point, or a mask not bool.
        ValueError: If a shape does not fit or ``variance`` is unknown.

    Example:
        >>> import torch
        >>> unlearned = torch.tensor([[3.0], [5.0]])
        >>> held_out = torch.tensor([[-1.0], [1.0]])
        >>> lira_scores(unlearned, held_out, torch.tensor([3.0])).tolist()
        [2.0]

    Source:
        N. Carlini et al., Membership inference attacks from first principles, IEEE S&P 2022; for
        unlearning: M. Kurmanji et al., Towards unbounded machine unlearning, NeurIPS 2023; J. Hayes
        et al., Inexact unlearning needs more careful evaluations to avoid a false sense of privacy,
        2024 (per example).
    """
    op = "lira_scores"
    if variance not in ("per_example", "fixed"):
        raise ValueError(f"{op}: variance must be 'per_example' or 'fixed', got {variance!r}")
    scores = score_array(op, "target", target)
    likelihoods = []
    for name, values, mask in (
        ("unlearned", unlearned, unlearned_mask),
        ("held_out", held_out, held_out_mask),
    ):
        rows = score_array(op, name, values, ndim=2)
        if rows.shape[1] != len(scores):
            raise ValueError(
                f"{op}: {name} must have shape (models, {len(scores)}), got {rows.shape}"
            )
        counts = _mask_array(op, f"{name}_mask", mask, values)
        likelihoods.append(_log_likelihood(scores, rows, counts, variance))
    return tensor_of(likelihoods[0] - likelihoods[1])


def _mask_array(op: str, name: str, mask: Tensor | None, values: Tensor) -> Array:
    """Return a checked mask as an array of 0.0 and 1.0; None counts everywhere."""
    if mask is None:
        return np.ones(tuple(values.shape))
    if not isinstance(mask, Tensor) or mask.dtype != bool_dtype:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{op}: {name} must be a bool tensor, got {got}")
    if mask.shape != values.shape:
        raise ValueError(
            f"{op}: {name} must have shape {tuple(values.shape)}, got {tuple(mask.shape)}"
        )
    return mask.cpu().double().numpy()


def _log_likelihood(scores: Array, rows: Array, counts: Array, variance: Variance) -> Array:
    """Return log N(score; mean, variance) + log(2 pi) / 2, shape (N,), of the rows that count."""
    n = counts.sum(0)
    values = np.where(counts > 0, rows, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = values.sum(0) / n
        squares = (counts * (values - mean) ** 2).sum(0)
        if variance == "per_example":
            spread = np.where(n >= 2, squares / (n - 1), np.nan)
        else:
            # An example with one model has no deviation and costs no degree of freedom.
            usable = (n >= 1) & np.isfinite(squares)
            spread = np.asarray(squares[usable].sum() / (n[usable] - 1).sum())
        spread = np.maximum(spread, _LEAST_VARIANCE)
        return -0.5 * (np.log(spread) + (scores - mean) ** 2 / spread)
