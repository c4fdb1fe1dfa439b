"""One membership score per example: greater means more likely a member."""

from __future__ import annotations

from torch import Tensor

from fastunlearn.metrics.membership_features import MEMBERSHIP_FEATURES, membership_features

__all__ = ["MEMBERSHIP_SCORES", "membership_scores"]

# The column of `membership_features` and the sign that makes greater mean member.
_COLUMNS = {
    "confidence": ("confidence", 1.0),
    "loss": ("loss", -1.0),
    "entropy": ("entropy", -1.0),
    "modified_entropy": ("modified_entropy", -1.0),
    "scaled_logit": ("logit_scaled_confidence", 1.0),
}

MEMBERSHIP_SCORES = tuple(_COLUMNS)
"""The kinds of :func:`membership_scores`."""


def membership_scores(logits: Tensor, targets: Tensor, kind: str) -> Tensor:
    """Return one score per example that is greater for a likely member of the training set.

    With p = softmax(logits) and the true label y, in nats:

    - ``"confidence"``: p_y
    - ``"loss"``: log p_y, the negative cross-entropy; ranks as ``"confidence"``, without ties at 1
      until p_y is 1 to float64's precision
    - ``"entropy"``: sum_j p_j log p_j, the negative entropy; the only kind that ignores the label
    - ``"modified_entropy"``: (1 - p_y) log p_y + sum_{j != y} p_j log(1 - p_j), negated Mentr
    - ``"scaled_logit"``: log(p_y / (1 - p_y)), the logit of y less the log-sum-exp of the others;
      near normal over models, so the one for :func:`~fastunlearn.metrics.lira_scores`, and the one
      without ties where a model is sure

    A score of one model says nothing about which examples are hard: an easy example scores high
    whether or not it was a member. Compare per example (U-LiRA) for a strong attack.

    Args:
        logits: Shape (N, C) with C >= 2, floating point, not mutated.
        targets: Shape (N,), integer class indices in [0, C), not mutated.
        kind: One of :data:`MEMBERSHIP_SCORES`.

    Returns:
        Shape (N,), float64, on the CPU. Finite for finite logits however large, and not finite
        where the logits are not.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If a shape does not fit, there is no example, an index is out of range or
            ``kind`` is unknown.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[1e4, 0.0], [0.0, 1e4]])
        >>> membership_scores(logits, torch.tensor([0, 0]), "scaled_logit").tolist()
        [10000.0, -10000.0]

    Source:
        L. Song, P. Mittal, Systematic evaluation of privacy risks of machine learning models,
        USENIX Security 2021; N. Carlini et al., Membership inference attacks from first principles,
        IEEE S&P 2022 (scaled logit).
    """
    if kind not in _COLUMNS:
        raise ValueError(
            f"membership_scores: kind must be one of {list(MEMBERSHIP_SCORES)}, got {kind!r}"
        )
    column, sign = _COLUMNS[kind]
    return sign * membership_features(logits, targets)[:, MEMBERSHIP_FEATURES.index(column)]
