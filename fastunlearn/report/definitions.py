"""What each reported figure means: title, formula, origin, unit and number format."""

from __future__ import annotations

from dataclasses import dataclass

FORGET, NEAR, MORE = "forget", "near", "more"


@dataclass(frozen=True)
class Metric:
    """One figure of a results file.

    Args:
        key: Name in the results file.
        title: Name that a reader sees.
        formula: Definition in plain Unicode.
        mark: Origin, one of ``MARKS``.
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

    def quantity(self, value: float) -> str:
        """Return ``value`` scaled and rounded, with its unit."""
        return f"{self.number(value)} {self.unit}".rstrip()


MARKS = {
    "paper": "named or stated by the source paper: Zuo, Tang, Li and Datta, Machine Unlearning "
    "Through Fine-Grained Model Parameters Perturbation, IEEE TKDE 37(4), 2025",
    "peer": "stated by a later publication that re-implements the method",
    "ours": "our own definition, because the paper's formula was not at hand or there is none",
    "field": "in common use in unlearning research; the exact form is the one written here",
}

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
        "0.5 means that this attack does no better than chance. A stronger attack may do better.",
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
)

BY_KEY = {metric.key: metric for metric in METRICS}

FURTHER = "further"
TABLES: tuple[tuple[str, str, str], ...] = (
    (FORGET, "What was forgotten and what was kept", "forgotten-kept"),
    (NEAR, "How near to retraining, and at what cost", "near-cost"),
    (MORE, "Further figures", FURTHER),
)

WORDS = (
    ("w₀", "original model, trained on all training data"),
    ("w₁", "model after unlearning"),
    ("w*", "retrained model, trained on the kept data only: the reference"),
    ("Dᵤ", "forget set, the data to unlearn"),
    ("Dᵣ", "retain set, the rest of the training data"),
    ("Dₜ", "test set"),
    ("P(w, S)", "accuracy of model w on data S"),
)

METHOD = (
    ("Top-K selects the K parameters most sensitive to the data to forget.", "paper"),
    ("Random-k selects parameters uniformly at random.", "paper"),
    ("Random-k here takes exactly K parameters, every K-subset alike.", "ours"),
    ("Noise is added to the selected parameters only.", "paper"),
    ("Normal noise of scale 0.1 on 1 % of the parameters is the usual setting.", "peer"),
    ("A repair by fine-tuning on the kept data follows the noise.", "peer"),
    ("Fine-tuning, gradient ascent and leaving the model alone are baselines.", "field"),
)

PROMISES = (
    "Exact selection: exactly K parameters, and the same ones for the same scores and seed.",
    "Reproducible noise: the same seed gives the same bits.",
    "A complete receipt: what was selected, where, which noise, a commitment to the seed.",
)

LIMITS = (
    "No differential privacy.",
    "No certified removal.",
    "No proof of erasure. A figure says what this measurement could see; a stronger attack may "
    + "see more.",
    "The noise is not secret: Philox is not a cryptographic generator, and whoever has the seed "
    + "and the changed model can subtract the noise.",
    "The figures hold for these data, this model and these seeds.",
)


def metric_for(key: str) -> Metric:
    """Return the definition of ``key``; a plain one for a figure this report does not know."""
    known = BY_KEY.get(key)
    if known is not None:
        return known
    return Metric(key, key.replace("_", " "), "not described here", "ours", "", MORE, decimals=4)
