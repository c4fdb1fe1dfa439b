"""U-LiRA on shadow models: each is attacked in turn with the others as its shadow models."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fastunlearn.evaluation.shadow import PoolScores
from fastunlearn.metrics import Interval, ThresholdResult, Undefined, lira_scores, threshold_attack
from fastunlearn.metrics.lira import Variance
from fastunlearn.metrics.scores_input import Array

_RESAMPLES = 1000
# Normal quantiles of a two-sided test of 5 % and of a power of 80 %.
_DEVIATIONS = 1.959964 + 0.841621


@dataclass(frozen=True)
class ShadowReport:
    """How well U-LiRA finds the members of a pool, and what it could have found.

    Args:
        auc: mean area under the ROC curve over the attacked models, the figure to compare with 0.5.
            Its 95 % interval comes from a bootstrap over the examples, each with its ratios in all
            models: the models share their shadow models, so that an interval over models would be
            too narrow by a third where there is nothing to find. Where there is nothing to find, it
            holds 0.5 in about 90 % of runs of 8 models with 80 examples, and 95 % of larger ones.
            [ours]
        pooled: the attack on all (model, example) pairs together, whose ratios are comparable. Its
            rates at low false-positive rates have enough non-members to be resolved. Its intervals
            take the pairs as independent, and are too narrow for that reason.
        auc_per_model: the areas behind `auc`.
        detectable: the smallest distance of the mean area from 0.5 that this run would have shown
            (two-sided 5 %, power 80 %), from the standard error of `auc`, taken as no less than
            what chance gives.
        n_models: number of models attacked.
        n_shadows_per_side: shadow models behind each side of each ratio; the attack's strength.
        n_examples: examples in the pool, half of them members of each model.
        variance: how the variances were estimated, see `lira_scores`.
    """

    auc: Interval
    pooled: ThresholdResult
    auc_per_model: tuple[float, ...]
    detectable: float
    n_models: int
    n_shadows_per_side: int
    n_examples: int
    variance: Variance


def attack_pool(
    scores: PoolScores,
    *,
    when: Literal["original", "unlearned"] = "unlearned",
    variance: Variance = "fixed",
    seed: int = 0,
) -> ShadowReport:
    """Attack every shadow model with all pairs but its own as shadow models.

    Members are the examples of the pool that the attacked model was trained on (and, for the forget
    pool, has unlearned), non-members the rest of the pool. Read the result for `unlearned` between
    two others: `original` shows what this attack finds where nothing was unlearned, and the same
    plan with retraining as its method shows what it finds where there is nothing to find.

    Args:
        scores: one pool of `shadow_scores`.
        when: attack the models before or after unlearning.
        variance: as `lira_scores`.
        seed: of the bootstraps.

    Returns:
        The report; its areas are undefined where a score is not finite.
    """
    outputs: Tensor = getattr(scores, when)
    n_models, n_examples = outputs.shape
    ratios = torch.stack([_ratios(scores.members, outputs, t, variance) for t in range(n_models)])
    members = scores.members
    pooled = threshold_attack(ratios[members], ratios[~members], seed=seed)
    areas, auc, error = _mean_area(ratios.numpy(), members.numpy(), seed)
    n_members = n_examples // 2
    by_chance = math.sqrt((n_examples + 1) / (12 * n_members * (n_examples - n_members)))
    # Each pair of models is compared twice, once from each end: half as many independent pairs.
    by_chance *= math.sqrt(2 / n_models)
    return ShadowReport(
        auc=auc,
        pooled=pooled,
        auc_per_model=areas,
        detectable=_DEVIATIONS * max(by_chance, error),
        n_models=n_models,
        n_shadows_per_side=n_models // 2 - 1,
        n_examples=n_examples,
        variance=variance,
    )


def _ratios(members: Tensor, outputs: Tensor, target: int, variance: Variance) -> Tensor:
    """Return the log-likelihood ratios of all examples in one model, shape (N,)."""
    others = torch.ones(len(outputs), dtype=torch.bool)
    pair = target // 2 * 2
    others[pair : pair + 2] = False
    return lira_scores(
        outputs[others],
        outputs[others],
        outputs[target],
        unlearned_mask=members[others],
        held_out_mask=~members[others],
        variance=variance,
    )


def _mean_area(
    ratios: Array, members: np.ndarray, seed: int
) -> tuple[tuple[float, ...], Interval, float]:
    """Return the area of each model, their mean with its interval, and its standard error.

    Args:
        ratios: shape (S, N).
        members: bool, shape (S, N).
        seed: of the resampling of examples.
    """
    n_models, n = ratios.shape
    if not np.isfinite(ratios).all():
        nothing = Undefined(f"{int((~np.isfinite(ratios)).sum())} ratios are not finite")
        return (nothing,) * n_models, Interval(nothing, nothing, nothing, n), 0.0
    generator = np.random.default_rng(seed)
    # The first row is the sample itself.
    counts = np.concatenate(
        [np.ones((1, n)), generator.multinomial(n, np.full(n, 1 / n), size=_RESAMPLES)]
    )
    areas = np.stack([_weighted_areas(*rows, counts) for rows in zip(ratios, members, strict=True)])
    means = areas[:, 1:].mean(0)
    low, high = np.quantile(means, [0.025, 0.975])
    auc = Interval(float(areas[:, 0].mean()), float(low), float(high), n)
    return tuple(areas[:, 0].tolist()), auc, float(means.std())


def _weighted_areas(ratios: Array, members: np.ndarray, counts: Array) -> Array:
    """Return the area under the ROC curve for each row of weights, shape (B,).

    Args:
        ratios: shape (N,).
        members: bool, shape (N,).
        counts: weight of each example, shape (B, N); both sides weigh more than 0 in each row.
    """
    order = np.argsort(ratios, kind="stable")
    ranked = ratios[order]
    weights = counts[:, order]
    positive, negative = weights * members[order], weights * ~members[order]
    # Non-members below the group of equal ratios, and those below its end.
    below = np.concatenate([np.zeros((len(counts), 1)), np.cumsum(negative, 1)], 1)
    starts, ends = (np.searchsorted(ranked, ranked, side) for side in ("left", "right"))
    wins = (positive * (below[:, starts] + below[:, ends])).sum(1) / 2
    return wins / (positive.sum(1) * negative.sum(1))
