"""Metrics of machine unlearning: pure functions, and torchmetrics classes on them.

The functions need torch and numpy alone (:func:`membership_attack` also scikit-learn when called).
The classes need torchmetrics, which is imported when the first of them is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastunlearn.divergence import jeffreys, jensen_shannon
from fastunlearn.metrics.distance import parameter_distance, parameter_distance_relative
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
from fastunlearn.metrics.membership import MembershipResult, membership_attack
from fastunlearn.metrics.membership_features import MEMBERSHIP_FEATURES, membership_features
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
    "ForgettingRate",
    "JensenShannonToRetrained",
    "MembershipInferenceAttack",
    "MembershipResult",
    "MemoryRetentionRate",
    "NormalisedForgettingRate",
    "NormalisedMemoryRetentionRate",
    "NormalisedUnlearningDegree",
    "Undefined",
    "UnlearningAccuracy",
    "UnlearningDegree",
    "accuracy",
    "average_gap",
    "forgetting_rate",
    "forgetting_rate_normalised",
    "jeffreys",
    "jensen_shannon",
    "js_divergence",
    "membership_attack",
    "membership_features",
    "memory_retention_rate",
    "memory_retention_rate_normalised",
    "parameter_distance",
    "parameter_distance_relative",
    "run_time_ratio",
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
