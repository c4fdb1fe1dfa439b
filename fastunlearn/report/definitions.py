"""What each reported figure means: title, formula, origin, unit and number format."""

from __future__ import annotations

from dataclasses import dataclass

AUDIT, FORGET, NEAR, MORE = "audit", "forget", "near", "more"


@dataclass(frozen=True)
class Metric:
    """One figure of a results file.

    Args:
        key: Name in the results file.
        title: Name that a reader sees.
        formula: Definition in plain Unicode.
        mark: Origin, one of ``prose.MARKS``.
        meaning: One sentence on how to read it.
        group: Table the figure belongs to.
        scale: Factor from the stored number to the printed one.
        decimals: Digits printed after the point.
        unit: Printed unit, "" for a pure number.
        bounds: Least and greatest possible stored value; None where unbounded.
    """

    key: str
    title: str
    formula: str
    mark: str
    meaning: str
    group: str
    scale: float = 1.0
    decimals: int = 3
    unit: str = ""
    bounds: tuple[float | None, float | None] = (None, None)

    def number(self, value: float) -> str:
        """Return ``value`` scaled and rounded, without its unit."""
        text = f"{value * self.scale:.{self.decimals}f}"
        return text[1:] if text.startswith("-") and not text.strip("-0.") else text

    def clip(self, value: float) -> float:
        """Return ``value``, or the bound that it lies beyond."""
        low, high = self.bounds
        value = value if low is None else max(low, value)
        return value if high is None else min(high, value)

    def quantity(self, value: float) -> str:
        """Return ``value`` scaled and rounded, with its unit."""
        return f"{self.number(value)} {self.unit}".rstrip()


_UNIT = (0.0, 1.0)
_POSITIVE = (0.0, None)


def _percent(key: str, title: str, formula: str, mark: str, meaning: str, group: str) -> Metric:
    return Metric(key, title, formula, mark, meaning, group, 100.0, 1, "%", _UNIT)


METRICS: tuple[Metric, ...] = (
    _percent(
        "forget_accuracy",
        "Forget accuracy",
        "P(w₁, Dᵤ)",
        "field",
        "Accuracy on the data to forget. Good is what the retrained model has, not zero: a model "
        "that generalises still gets much of the data right without ever having seen it.",
        FORGET,
    ),
    _percent(
        "retain_accuracy",
        "Retain accuracy",
        "P(w₁, Dᵣ)",
        "field",
        "Accuracy on the training data that is kept. Higher is better.",
        FORGET,
    ),
    _percent(
        "test_accuracy",
        "Test accuracy",
        "P(w₁, Dₜ)",
        "field",
        "Accuracy on data that no model was trained on. Higher is better.",
        FORGET,
    ),
    Metric(
        "forgetting_rate",
        "Forgetting rate",
        "(P(w₀, Dᵤ) − P(w₁, Dᵤ)) / P(w₀, Dᵤ)",
        "paper; formula ours",
        "Share of the original forget accuracy that is gone. Good is what the retrained model has.",
        FORGET,
    ),
    Metric(
        "forgetting_rate_normalised",
        "Forgetting rate, normalised",
        "(P(w₀, Dᵤ) − P(w₁, Dᵤ)) / (P(w₀, Dᵤ) − P(w*, Dᵤ))",
        "ours",
        "1 means as much forgotten as by retraining, more than 1 means over-forgetting. Undefined "
        "where retraining changes nothing, and unsteady where it changes little.",
        FORGET,
        decimals=2,
    ),
    Metric(
        "memory_retention_rate",
        "Memory retention rate",
        "P(w₁, Dᵣ) / P(w₀, Dᵣ)",
        "paper; formula ours",
        "Share of the original retain accuracy that is left. 1 means nothing lost.",
        FORGET,
    ),
    Metric(
        "average_gap",
        "Average gap",
        "mean of |figure(w₁) − figure(w*)| over unlearning accuracy, retain accuracy, "
        "test accuracy and membership inference AUC",
        "field; attack figure ours",
        "Distance from the retrained model over the usual figures. Lower is nearer.",
        NEAR,
        100.0,
        2,
        "points",
        _POSITIVE,
    ),
    Metric(
        "average_gap_without_attack",
        "Average gap without the attack",
        "mean of |figure(w₁) − figure(w*)| over unlearning accuracy, retain accuracy and "
        "test accuracy",
        "ours",
        "The average gap over the accuracies alone: much of the other is noise of the attack.",
        NEAR,
        100.0,
        2,
        "points",
        _POSITIVE,
    ),
    Metric(
        "js_to_retrained",
        "Jensen-Shannon divergence to retrained",
        "JS(w₁(x) ‖ w*(x)), averaged over Dᵤ",
        "field",
        "Distance between the outputs of the two models. Lower is nearer; at most ln 2 = 0.693.",
        NEAR,
        decimals=4,
        unit="nats",
        bounds=(0.0, 0.6931471805599453),
    ),
    Metric(
        "mia_auc",
        "Membership inference AUC",
        "area under the ROC curve of an attack that tells Dᵤ from unseen data",
        "field; attack ours",
        "Good is what the retrained model has. 0.5 is chance, and so is a value slightly below it: "
        "cross-validation leans downwards. A stronger attack may do better.",
        NEAR,
        bounds=_UNIT,
    ),
    Metric(
        "parameter_distance",
        "Parameter distance",
        "‖w₁ − w₀‖₂",
        "field",
        "How far the parameters moved from the original model: how much changed, not how well.",
        NEAR,
        decimals=2,
        bounds=_POSITIVE,
    ),
    Metric(
        "run_time_ratio",
        "Run-time ratio",
        "time of the method / time of retraining",
        "field",
        "Below 1 is faster than retraining, on the machine of this run.",
        NEAR,
        bounds=_POSITIVE,
    ),
    Metric(
        "seconds",
        "Run time",
        "wall-clock time of the method",
        "field",
        "Depends on the machine.",
        NEAR,
        decimals=2,
        unit="s",
        bounds=_POSITIVE,
    ),
    Metric(
        "memory_retention_rate_test",
        "Memory retention rate, test data",
        "P(w₁, Dₜ) / P(w₀, Dₜ)",
        "ours",
        "Share of the original test accuracy that is left.",
        MORE,
    ),
    Metric(
        "memory_retention_rate_normalised",
        "Memory retention rate, normalised",
        "P(w₁, Dᵣ) / P(w*, Dᵣ)",
        "ours",
        "1 means as accurate on the kept data as the retrained model.",
        MORE,
        bounds=_POSITIVE,
    ),
    _percent(
        "unlearning_accuracy",
        "Unlearning accuracy",
        "1 − P(w₁, Dᵤ)",
        "field",
        "Forget accuracy seen from the other side.",
        MORE,
    ),
    _percent(
        "mia_accuracy",
        "Membership inference accuracy",
        "share of right answers of the same attack on balanced data",
        "field",
        "50 % means that this attack does no better than chance.",
        MORE,
    ),
    Metric(
        "mia_auc_low",
        "Membership inference AUC, lower end",
        "2.5 % quantile of the AUC over 1,000 bootstrap samples of the examples",
        "ours",
        "How far the AUC of one seed may be off because the examples are few; mean over seeds.",
        MORE,
        bounds=_UNIT,
    ),
    Metric(
        "mia_auc_high",
        "Membership inference AUC, upper end",
        "97.5 % quantile of the same",
        "ours",
        "The other end.",
        MORE,
        bounds=_UNIT,
    ),
    Metric(
        "mia_loss_auc",
        "Loss threshold AUC",
        "area under the ROC curve of calling low loss a member",
        "field",
        "An attack that is not trained. Below 0.5, the data to forget has a higher loss than "
        "unseen data.",
        MORE,
        bounds=_UNIT,
    ),
    Metric(
        "mia_examples_per_side",
        "Examples per side of the attack",
        "number of examples of Dᵤ, and as many unseen ones of the same labels",
        "ours",
        "The fewer, the less the attack can see.",
        MORE,
        decimals=0,
        bounds=_POSITIVE,
    ),
)

AUDIT_METRICS: tuple[Metric, ...] = (
    Metric(
        "unlearning_degree",
        "Unlearning degree",
        "P(w₀, G(Dᵤ)) − P(w₁, G(Dᵤ))",
        "paper",
        "Accuracy on the shifted data that unlearning took away. 0 for the original model; good is "
        "what the retrained model has.",
        AUDIT,
        100.0,
        1,
        "points",
        (-1.0, 1.0),
    ),
    Metric(
        "unlearning_degree_normalised",
        "Unlearning degree, normalised",
        "(P(w₀, G(Dᵤ)) − P(w₁, G(Dᵤ))) / (P(w₀, G(Dᵤ)) − P(w*, G(Dᵤ)))",
        "ours",
        "0 for the original model, 1 where as much is forgotten as by retraining, above 1 where "
        "more is. P(w*, ·) is the mean of several retrained models where the audit trained them.",
        AUDIT,
        decimals=2,
    ),
    _percent(
        "unshifted_forget_accuracy",
        "Accuracy on unshifted data",
        "P(w₁, Dᵤ)",
        "ours",
        "Accuracy on the data to forget as it was before the shift. No model of an audit was "
        "trained on it.",
        AUDIT,
    ),
    Metric(
        "unshifted_degree",
        "Degree on unshifted data",
        "P(w₀, Dᵤ) − P(w₁, Dᵤ)",
        "ours",
        "What plain accuracy sees of the same unlearning.",
        AUDIT,
        100.0,
        1,
        "points",
        (-1.0, 1.0),
    ),
    Metric(
        "unshifted_degree_normalised",
        "Degree on unshifted data, normalised",
        "(P(w₀, Dᵤ) − P(w₁, Dᵤ)) / (P(w₀, Dᵤ) − P(w*, Dᵤ))",
        "ours",
        "Its denominator is often near 0: then it says nothing.",
        AUDIT,
        decimals=2,
    ),
    Metric(
        "optimizer_steps",
        "Optimiser steps",
        "steps of the method's optimiser",
        "field",
        "A step of a repair with a teacher reads a batch of each set.",
        NEAR,
        decimals=0,
        bounds=_POSITIVE,
    ),
    Metric(
        "optimizer_step_ratio",
        "Step ratio",
        "optimiser steps of the method / of retraining",
        "field",
        "The run-time ratio without the machine; passes that only score are not counted.",
        NEAR,
        decimals=2,
        bounds=_POSITIVE,
    ),
)

BY_KEY = {metric.key: metric for metric in (*AUDIT_METRICS, *METRICS)}

FURTHER = "further"
TABLES: tuple[tuple[str, str, str], ...] = (
    (AUDIT, "How much was forgotten, on shifted data", "degree"),
    (FORGET, "What was forgotten and what was kept", "forgotten-kept"),
    (NEAR, "How near to retraining, and at what cost", "near-cost"),
    (MORE, "Further figures", FURTHER),
)


def metric_for(key: str) -> Metric:
    """Return the definition of ``key``; a plain one for a figure this report does not know."""
    known = BY_KEY.get(key)
    if known is not None:
        return known
    return Metric(key, key.replace("_", " "), "not described here", "ours", "", MORE, decimals=4)
