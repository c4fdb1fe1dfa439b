"""A membership-inference attack on an unlearned model: is the forget set like unseen data?"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from fastunlearn.metrics.attack import (
    area_under_curve,
    balance,
    bootstrap_interval,
    canonical_order,
    out_of_fold_scores,
)
from fastunlearn.metrics.membership_features import MEMBERSHIP_FEATURES, membership_features
from fastunlearn.metrics.undefined import Undefined, undefined_reason

__all__ = ["MembershipResult", "attack_on_features", "membership_attack"]

_LOSS = MEMBERSHIP_FEATURES.index("loss")


@dataclass(frozen=True)
class MembershipResult:
    """What the attack of :func:`membership_attack` achieved.

    Attributes:
        auc: Area under the ROC curve of the out-of-fold scores, forget examples being positive.
        auc_low: Lower end of the 95 % bootstrap interval of ``auc``.
        auc_high: Upper end of that interval.
        accuracy: Balanced accuracy of the out-of-fold decisions at probability 0.5.
        loss_auc: AUC of the loss alone, low loss meaning member, without training: below 0.5 the
            forget examples have a *higher* loss than unseen ones.
        n_per_side: Number of examples used on each side after balancing.
        n_forget: Number of forget examples given.
        n_unseen: Number of unseen examples given.
        folds: Number of cross-validation folds.
        seed: Seed of the subsampling, the folds and the bootstrap.
    """

    auc: float
    auc_low: float
    auc_high: float
    accuracy: float
    loss_auc: float
    n_per_side: int
    n_forget: int
    n_unseen: int
    folds: int
    seed: int

    @property
    def undefined_reason(self) -> str | None:
        """Why there is no result, or None where there is one."""
        return undefined_reason(self.auc)

    def to_dict(self) -> dict[str, float | int | str | None]:
        """Return the fields for JSON: None where undefined, and ``undefined`` for the reason."""
        fields = {
            name: None if isinstance(value, float) and undefined_reason(value) else value
            for name, value in asdict(self).items()
        }
        return {**fields, "undefined": self.undefined_reason}


def membership_attack(
    forget_logits: Tensor,
    forget_targets: Tensor,
    unseen_logits: Tensor,
    unseen_targets: Tensor,
    *,
    match_labels: bool = True,
    folds: int = 5,
    seed: int = 0,
) -> MembershipResult:
    """Attack a model: tell its forget examples from examples it has never seen.

    A standardised logistic regression on :func:`membership_features` of one model's outputs, scored
    by stratified cross-validation: no example is scored by a classifier that was fitted on it. Both
    sides are cut to the same size first. An AUC of 0.5 means that this attack cannot tell the
    forget set from unseen data; towards 1 the forget set is recognisable, either as remembered or
    (``loss_auc`` below 0.5) as conspicuously forgotten. Chance results lean slightly below 0.5, so
    the lower end of the interval is the one to compare with 0.5. [ours]

    What it cannot show: a weak attack that fails is no proof of forgetting. This one sees a single
    model's outputs and trains no shadow models, so per-example attacks are stronger. It measures
    any difference of the two sets, so unseen data must come from the forget set's distribution:
    the same classes (``match_labels``), preprocessing and, for a mislabelled forget set, the same
    labelling. The interval covers the sampling of the examples scored, not the attack's training
    nor the model's seed; at a perfect AUC it has no width.

    Args:
        forget_logits: Shape (N, C), C >= 2, the attacked model on the forget set. Not mutated.
        forget_targets: Shape (N,), integer class indices, not mutated.
        unseen_logits: Shape (M, C), the same model on data outside the training set: never the
            retain set, which the model has seen as well. Not mutated.
        unseen_targets: Shape (M,), integer class indices, not mutated.
        match_labels: Take as many unseen as forget examples from each class, so that the attack
            cannot win by the class mix (forgetting one class); else balance the totals only.
        folds: Number of folds, >= 2.
        seed: Seed in [0, 2^32). The result depends on the seed and the set of examples, not on
            their order.

    Returns:
        The result; its figures are :class:`Undefined` where an output is not finite or fewer than
        ``folds`` examples remain on each side.

    Raises:
        ImportError: If scikit-learn is missing.
        TypeError: If a dtype does not fit.
        ValueError: If a side is empty, a shape does not fit, or ``folds`` or ``seed`` is out of
            range.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> targets = torch.arange(100) % 2
        >>> unseen = torch.randn(100, 2, generator=generator)
        >>> memorised = 8.0 * torch.nn.functional.one_hot(targets, 2).float()
        >>> result = membership_attack(memorised, targets, unseen, targets)
        >>> result.auc > 0.99, result.n_per_side
        (True, 100)

    Source:
        Features: see :func:`membership_features`. Forget against unseen data, as in M. Kurmanji et
        al., SCRUB, NeurIPS 2023.
    """
    forget = membership_features(forget_logits, forget_targets)
    unseen = membership_features(unseen_logits, unseen_targets)
    if forget_logits.shape[-1] != unseen_logits.shape[-1]:
        raise ValueError(
            f"membership_attack: unseen_logits must have {forget_logits.shape[-1]} classes, "
            f"got {unseen_logits.shape[-1]}"
        )
    labels = (forget_targets, unseen_targets) if match_labels else None
    return attack_on_features(forget, unseen, labels, folds=folds, seed=seed)


def attack_on_features(
    forget: Tensor,
    unseen: Tensor,
    labels: tuple[Tensor, Tensor] | None,
    *,
    folds: int = 5,
    seed: int = 0,
) -> MembershipResult:
    """Run the attack of :func:`membership_attack` on features that are already there.

    Args:
        forget: Shape (N, F), floating point, what the attack sees of the forget examples; the
            first column is the loss. Not mutated.
        unseen: Shape (M, F), the same of unseen examples. Not mutated.
        labels: Class indices of both sides, shapes (N,) and (M,), to be matched; or None.
        folds: Number of folds, >= 2.
        seed: Seed in [0, 2^32).

    Returns:
        As :func:`membership_attack`; no example on a side counts as too few.

    Raises:
        ImportError: If scikit-learn is missing.
        ValueError: If ``folds`` or ``seed`` is out of range.
    """
    op = "membership_attack"
    if isinstance(folds, bool) or not isinstance(folds, int) or folds < 2:
        raise ValueError(f"{op}: folds must be an integer >= 2, got {folds!r}")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"{op}: seed must be an integer in [0, 2^32), got {seed!r}")
    sizes = (len(forget), len(unseen))
    infinite = int((~torch.cat([forget, unseen]).isfinite().all(-1)).sum())
    if infinite:
        reason = f"{infinite} of {sum(sizes)} examples have an output that is not finite"
        return _undefined_result(reason, 0, sizes, folds, seed)
    sides = [
        canonical_order(features, None if labels is None else labels[side])
        for side, features in enumerate((forget, unseen))
    ]
    members, others = balance(*sides, seed=seed)
    if len(members) < folds:
        reason = f"only {len(members)} examples on each side for {folds} folds"
        return _undefined_result(reason, len(members), sizes, folds, seed)
    scores, other_scores = out_of_fold_scores(members, others, folds=folds, seed=seed)
    low, high = bootstrap_interval(scores, other_scores, seed=seed)
    return MembershipResult(
        auc=area_under_curve(scores, other_scores),
        auc_low=low,
        auc_high=high,
        accuracy=float(((scores > 0).mean() + (other_scores <= 0).mean()) / 2),
        loss_auc=area_under_curve(-members[:, _LOSS], -others[:, _LOSS]),
        n_per_side=len(members),
        n_forget=sizes[0],
        n_unseen=sizes[1],
        folds=folds,
        seed=seed,
    )


def _undefined_result(
    reason: str, n_per_side: int, sizes: tuple[int, int], folds: int, seed: int
) -> MembershipResult:
    """Return a result whose five figures are undefined for the same reason."""
    nothing = Undefined(reason)
    return MembershipResult(
        auc=nothing,
        auc_low=nothing,
        auc_high=nothing,
        accuracy=nothing,
        loss_auc=nothing,
        n_per_side=n_per_side,
        n_forget=sizes[0],
        n_unseen=sizes[1],
        folds=folds,
        seed=seed,
    )
