"""Metrics of machine unlearning: pure functions, and torchmetrics classes on them.

The functions need torch and numpy alone; :func:`membership_attack` also scikit-learn when called,
and intervals, :func:`threshold_attack` among them, scipy.
The classes need torchmetrics, which is imported when the first of them is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastunlearn.divergence import jeffreys, jensen_shannon
from fastunlearn.metrics.distance import parameter_distance, parameter_distance_relative
from fastunlearn.metrics.epsilon import epsilon_score, example_epsilons, forgetting_quality
from fastunlearn.metrics.functional import (
    AVERAGE_GAP_METRICS,
    accuracy,
    average_gap,
    forgetting_rate,
    forgetting_rate_normalised,
    js_divergence,
    memory_retention_rate,
    memory_retention_rate_normalised,
    run_time_ratio,
    unlearning_accuracy,
    unlearning_degree,
    unlearning_degree_normalised,
)
from fastunlearn.metrics.intervals import (
    Interval,
    mean_interval,
    paired_difference,
    proportion_interval,
    smallest_detectable_auc,
    smallest_detectable_effect,
)
from fastunlearn.metrics.lira import lira_scores
from fastunlearn.metrics.membership import MembershipResult, membership_attack
from fastunlearn.metrics.membership_features import MEMBERSHIP_FEATURES, membership_features
from fastunlearn.metrics.membership_scores import MEMBERSHIP_SCORES, membership_scores
from fastunlearn.metrics.relearning import RelearnResult, relearn_steps
from fastunlearn.metrics.similarity import layer_similarity, linear_cka
from fastunlearn.metrics.threshold_attack import RateAtFPR, ThresholdResult, threshold_attack
from fastunlearn.metrics.undefined import Undefined, undefined_reason

if TYPE_CHECKING:
    from fastunlearn.metrics.classes import (
        ForgettingRate,
        JensenShannonToRetrained,
        MembershipInferenceAttack,
        MemoryRetentionRate,
        NormalisedForgettingRate,
        NormalisedMemoryRetentionRate,
        NormalisedUnlearningDegree,
        UnlearningAccuracy,
        UnlearningDegree,
    )

__all__ = [
    "AVERAGE_GAP_METRICS",
    "MEMBERSHIP_FEATURES",
    "MEMBERSHIP_SCORES",
    "ForgettingRate",
    "Interval",
    "JensenShannonToRetrained",
    "MembershipInferenceAttack",
    "MembershipResult",
    "MemoryRetentionRate",
    "NormalisedForgettingRate",
    "NormalisedMemoryRetentionRate",
    "NormalisedUnlearningDegree",
    "RateAtFPR",
    "RelearnResult",
    "ThresholdResult",
    "Undefined",
    "UnlearningAccuracy",
    "UnlearningDegree",
    "accuracy",
    "average_gap",
    "epsilon_score",
    "example_epsilons",
    "forgetting_quality",
    "forgetting_rate",
    "forgetting_rate_normalised",
    "jeffreys",
    "jensen_shannon",
    "js_divergence",
    "layer_similarity",
    "linear_cka",
    "lira_scores",
    "mean_interval",
    "membership_attack",
    "membership_features",
    "membership_scores",
    "memory_retention_rate",
    "memory_retention_rate_normalised",
    "paired_difference",
    "parameter_distance",
    "parameter_distance_relative",
    "proportion_interval",
    "relearn_steps",
    "run_time_ratio",
    "smallest_detectable_auc",
    "smallest_detectable_effect",
    "threshold_attack",
    "undefined_reason",
    "unlearning_accuracy",
    "unlearning_degree",
    "unlearning_degree_normalised",
]

_CLASSES = (
    "ForgettingRate",
    "JensenShannonToRetrained",
    "MembershipInferenceAttack",
    "MemoryRetentionRate",
    "NormalisedForgettingRate",
    "NormalisedMemoryRetentionRate",
    "NormalisedUnlearningDegree",
    "UnlearningAccuracy",
    "UnlearningDegree",
)


def __getattr__(name: str) -> Any:
    if name not in _CLASSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        import_module("torchmetrics")
    except ImportError as error:
        raise ImportError(
            f'{name}: torchmetrics must be installed: pip install "fastunlearn[eval]"'
        ) from error
    return getattr(import_module("fastunlearn.metrics.classes"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
