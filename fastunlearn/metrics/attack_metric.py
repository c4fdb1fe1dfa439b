"""The torchmetrics class of the membership-inference attack."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from fastunlearn.metrics.membership import MembershipResult, attack_on_features
from fastunlearn.metrics.membership_features import MEMBERSHIP_FEATURES, membership_features
from fastunlearn.metrics.metric_base import UnlearningMetric

__all__ = ["MembershipInferenceAttack"]


class MembershipInferenceAttack(UnlearningMetric):
    """AUC of an attack that tells forget examples from unseen ones.

    See :func:`~fastunlearn.metrics.membership_attack`, also for what it cannot show. ``compute``
    gives the AUC; ``result`` the whole :class:`~fastunlearn.metrics.MembershipResult` with its
    interval. Use ``update`` rather than ``forward``, which would run an attack on each batch.

    Args:
        match_labels: Balance each class, not the totals only.
        folds: Number of cross-validation folds, >= 2.
        seed: Seed of the subsampling, the folds and the bootstrap.
        **kwargs: Keywords of :class:`torchmetrics.Metric`.

    Example:
        >>> metric = MembershipInferenceAttack(folds=2)
        >>> targets = torch.arange(8) % 2
        >>> sure = 9.0 * torch.nn.functional.one_hot(targets, 2).float()
        >>> metric.update(sure, targets, is_forget=True)
        >>> metric.update(torch.zeros(8, 2), targets, is_forget=False)
        >>> metric.compute(), metric.result.n_per_side
        (tensor(1.), 8)
    """

    higher_is_better = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    rows: list[Tensor]

    def __init__(
        self, match_labels: bool = True, folds: int = 5, seed: int = 0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.match_labels, self.folds, self.seed = match_labels, folds, seed
        self.result: MembershipResult | None = None
        self.add_state("rows", [], dist_reduce_fx="cat")

    def reset(self) -> None:
        """Return to the state before the first update."""
        super().reset()
        self.result = None

    def update(self, unlearned: Tensor, targets: Tensor, is_forget: bool | Tensor) -> None:
        """Add one batch of forget or unseen examples, or of both.

        Args:
            unlearned: Logits of the unlearned model, shape (N, C).
            targets: Class indices, shape (N,).
            is_forget: Whether the examples are from the forget set: one bool, or a bool tensor of
                shape (N,).
        """
        features = membership_features(unlearned, targets)
        sides = torch.as_tensor(is_forget, device="cpu")
        if sides.dtype != torch.bool or sides.shape not in ((), targets.shape):
            raise ValueError(
                "MembershipInferenceAttack.update: is_forget must be a bool or a bool tensor of "
                f"shape {tuple(targets.shape)}, got {sides.dtype} of shape {tuple(sides.shape)}"
            )
        columns = (targets.cpu(), sides.expand(targets.shape))
        rows = torch.cat([features, torch.stack([c.double() for c in columns], -1)], -1)
        self.rows.append(rows.to(self.device))

    def compute(self) -> Tensor:
        """Return the AUC over all examples so far: 0-dim, NaN where undefined."""
        # Between processes the list has become one tensor, so ask for its length, not its truth.
        rows = (dim_zero_cat(self.rows) if len(self.rows) else self._no_rows()).cpu()
        features, labels, is_forget = rows[:, :-2], rows[:, -2].long(), rows[:, -1].bool()
        self.result = attack_on_features(
            features[is_forget],
            features[~is_forget],
            (labels[is_forget], labels[~is_forget]) if self.match_labels else None,
            folds=self.folds,
            seed=self.seed,
        )
        return self._as_tensor(self.result.auc)

    def _no_rows(self) -> Tensor:
        """Return a state of no example, in the shape and dtype of the others."""
        width = len(MEMBERSHIP_FEATURES) + 2
        return torch.empty(0, width, dtype=torch.float64, device=self.device)

    def _sync_dist(self, *args: Any, **kwargs: Any) -> None:
        """Gather over processes, also where this one has seen no example."""
        # torchmetrics would send a 1-D float32 stand-in, which does not match the others' rows.
        if len(self.rows) == 0:
            self.rows = [self._no_rows()]
        super()._sync_dist(*args, **kwargs)
