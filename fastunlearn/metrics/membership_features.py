"""What a membership-inference attack sees of each example."""

from __future__ import annotations

import torch
from torch import Tensor

from fastunlearn.metrics.checks import check_logits, check_targets

__all__ = ["MEMBERSHIP_FEATURES", "membership_features"]

MEMBERSHIP_FEATURES = (
    "loss",
    "confidence",
    "entropy",
    "modified_entropy",
    "max_probability",
    "logit_scaled_confidence",
)
"""The columns of :func:`membership_features`, in order."""


def membership_features(logits: Tensor, targets: Tensor) -> Tensor:
    """Return six figures per example that tell members of a training set from others.

    With p = softmax(logits) and the true label y, in nats:

    - ``loss``: -log p_y
    - ``confidence``: p_y
    - ``entropy``: -sum_j p_j log p_j
    - ``modified_entropy``: -(1 - p_y) log p_y - sum_{j != y} p_j log(1 - p_j)
    - ``max_probability``: max_j p_j
    - ``logit_scaled_confidence``: log(p_y / (1 - p_y))

    log(1 - p_j) is taken from the other classes' logits where p_j is large, so that a saturated
    output still gives finite figures.

    Args:
        logits: Shape (N, C) with C >= 2, floating point, not mutated.
        targets: Shape (N,), integer class indices in [0, C), not mutated.

    Returns:
        Shape (N, 6), float64, on the CPU, columns as in :data:`MEMBERSHIP_FEATURES`. Not finite
        where the logits are not.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If a shape does not fit, there is no example or an index is out of range.

    Example:
        >>> features = membership_features(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
        >>> [round(value, 3) for value in features[0].tolist()]
        [0.693, 0.5, 0.693, 0.693, 0.5, 0.0]

    Source:
        L. Song, P. Mittal, Systematic evaluation of privacy risks of machine learning models,
        USENIX Security 2021 (modified entropy); N. Carlini et al., Membership inference attacks
        from first principles, IEEE S&P 2022 (logit-scaled confidence).
    """
    op = "membership_features"
    check_logits(op, "logits", logits, minimum_classes=2)
    if logits.ndim != 2:
        raise ValueError(f"{op}: logits must have shape (N, C), got {tuple(logits.shape)}")
    check_targets(op, "targets", targets, logits)
    log_p = logits.detach().cpu().double().log_softmax(-1)
    index = targets.detach().cpu().long().unsqueeze(-1)
    p = log_p.exp()
    log_rest = _log_complement(log_p)
    loss = -log_p.gather(-1, index).squeeze(-1)
    log_rest_y = log_rest.gather(-1, index).squeeze(-1)
    wrong = torch.ones_like(p).scatter_(-1, index, 0.0)
    modified = log_rest_y.exp() * loss - (wrong * p * log_rest).sum(-1)
    columns = (
        loss,
        (-loss).exp(),
        -(p * log_p).sum(-1),
        modified,
        p.amax(-1),
        -loss - log_rest_y,
    )
    return torch.stack(columns, dim=-1)


def _log_complement(log_p: Tensor) -> Tensor:
    """Return log(1 - p) of log-probabilities (N, C), without cancellation for p near 1."""
    top = log_p.argmax(-1, keepdim=True)
    # Every class but the greatest has p <= 1/2, where log1p(-p) loses nothing.
    others = torch.log1p(-log_p.exp())
    of_top = log_p.scatter(-1, top, -torch.inf).logsumexp(-1, keepdim=True)
    return others.scatter(-1, top, of_top)
