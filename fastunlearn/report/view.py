"""A read-only view of a results dict: methods in order, statistics, paired differences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastunlearn.evaluation.anchors import PARTLY, anchor_order
from fastunlearn.report.definitions import AUDIT_METRICS, METRICS, Metric, metric_for

SCHEMA = "fastunlearn.results/1"
ORIGINAL, RETRAIN, AGAIN = "original", "retrain", "retrain_again"
LABELS = {
    ORIGINAL: "Original",
    RETRAIN: "Retrained",
    AGAIN: "Retrained again",
    "top_k": "Top-K",
    "random_k": "Random-k",
    "fine_tune": "Fine-tuning",
    "gradient_ascent": "Gradient ascent",
}


@dataclass(frozen=True)
class Stat:
    """Mean over seeds with its 95 % interval; the interval is None for a single seed."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends of the interval, or None."""
        if self.low is None or self.high is None:
            return None
        return self.low, self.high

    def sign(self) -> int:
        """Return the sign of the mean where the interval leaves out 0; 0 where it does not."""
        if self.interval is None or self.low is None or self.high is None:
            return 0
        return int(self.low > 0) - int(self.high < 0)


def finite(value: Any) -> float | None:
    """Return ``value`` as a float, or None where it is null, not a number or not finite."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def student_quantile(df: int) -> float:
    """Return the 0.975 quantile of Student's t with ``df`` degrees of freedom.

    Inverts by bisection the finite series for P(|T| < t) at whole degrees of freedom.

    Source:
        Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    low, high = 0.0, 100.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _central_mass(middle, df) < 0.95 else (low, middle)
    return (low + high) / 2


def _central_mass(t: float, df: int) -> float:
    theta = math.atan(t / math.sqrt(df))
    sine, cosine = math.sin(theta), math.cos(theta)
    odd = df % 2
    term, total = (cosine if odd else 1.0), 0.0
    for j in range(2 + odd, df + 1, 2):
        total += term
        term *= cosine * cosine * (j - 1) / j
    return 2 / math.pi * (theta + sine * total) if odd else sine * total


def interval_of(values: list[float]) -> Stat | None:
    """Return mean and 95 % Student-t interval of ``values``; None for an empty list."""
    n = len(values)
    if n == 0:
        return None
    mean = math.fsum(values) / n
    if n == 1:
        return Stat(mean, None, None, 1)
    std = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    half = student_quantile(n - 1) * std / math.sqrt(n)
    return Stat(mean, mean - half, mean + half, n)


class View:
    """Reads a results dict; never changes it.

    Args:
        results: Dict of schema ``fastunlearn.results/1``.

    Raises:
        ValueError: The schema is another one.
    """

    def __init__(self, results: Mapping[str, Any]) -> None:
        schema = results.get("schema")
        if schema != SCHEMA:
            raise ValueError(f"report: results['schema'] must be {SCHEMA!r}, got {schema!r}")
        self.results = results
        self.name = str(results.get("name", "unnamed run"))
        self.config: Mapping[str, Any] = results.get("config") or {}
        self.environment: Mapping[str, Any] = results.get("environment") or {}
        self.runs: list[Mapping[str, Any]] = list(results.get("runs") or [])
        self.complete = bool(results.get("complete", False))
        self.seeds = [run["seed"] for run in self.runs]
        self.planned = list(self.config.get("seeds") or self.seeds)
        self.methods = self._ordered_methods()

    def _ordered_methods(self) -> tuple[str, ...]:
        seen = {method: None for run in self.runs for method in run["methods"]}
        first = [method for method in (ORIGINAL, RETRAIN) if method in seen]
        return tuple(first + [method for method in seen if method not in first])

    def _kind(self, method: str) -> str:
        settings = (self.config.get("methods") or {}).get(method) or {}
        return str(settings.get("kind", method))

    @property
    def again(self) -> tuple[str, ...]:
        """The further retrained models: how far honest retrainings lie apart."""
        return tuple(m for m in self.methods if self._kind(m) == AGAIN)

    @property
    def unlearned(self) -> tuple[str, ...]:
        """The methods that are neither the original nor a wholly or partly retrained model."""
        known = (ORIGINAL, RETRAIN, *self.again)
        return tuple(m for m in self.methods if m not in known and self._kind(m) != PARTLY)

    @property
    def anchors(self) -> tuple[str, ...]:
        """Original, partly retrained and retrained models, from nothing forgotten to all."""
        return tuple(m for m in anchor_order(self.config.get("methods") or {}) if m in self.methods)

    @property
    def audits(self) -> dict[int, Mapping[str, Any]]:
        """What each seed of an audit says of its instrument; empty where there was none."""
        return {run["seed"]: run["audit"] for run in self.runs if run.get("audit")}

    def label(self, method: str) -> str:
        """Return the display name of ``method``."""
        for run in self.runs:
            entry = run["methods"].get(method)
            if entry and entry.get("label"):
                return " ".join(str(entry["label"]).split())
        return LABELS.get(method, method)

    def metrics(self) -> list[Metric]:
        """Return the known figures in display order, then any others that occur."""
        known = {metric.key for metric in (*AUDIT_METRICS, *METRICS)}
        others = {
            key: None
            for run in self.runs
            for entry in run["methods"].values()
            for key in entry.get("metrics") or {}
            if key not in known
        }
        audit = AUDIT_METRICS if self.audits else ()
        return [*audit, *METRICS, *(metric_for(key) for key in others)]

    def values(self, method: str, metric: str) -> dict[int, float]:
        """Return the defined values of a figure by seed."""
        found = {}
        for run in self.runs:
            entry = run["methods"].get(method)
            if entry is None:
                continue
            raw = (entry.get("metrics") or {}).get(metric, entry.get(metric))
            value = finite(raw)
            if value is not None:
                found[run["seed"]] = value
        return found

    def stat(self, method: str, metric: str) -> Stat | None:
        """Return the summary of a figure, its interval cut to the figure's possible range.

        As stored, computed where none is stored.
        """
        stat = self._stored(method, metric)
        if stat is None or stat.low is None or stat.high is None:
            return stat
        bounds = metric_for(metric)
        return Stat(stat.mean, bounds.clip(stat.low), bounds.clip(stat.high), stat.n)

    def _stored(self, method: str, metric: str) -> Stat | None:
        stored = ((self.results.get("summary") or {}).get(method) or {}).get(metric)
        mean = finite(stored.get("mean")) if stored else None
        if stored is None:
            return interval_of(list(self.values(method, metric).values()))
        if mean is None:
            return None
        n = int(stored.get("n") or 0)
        if n < 2:
            return Stat(mean, None, None, n)
        return Stat(mean, finite(stored.get("ci_low")), finite(stored.get("ci_high")), n)

    def paired(self, first: str, second: str, metric: str) -> Stat | None:
        """Return first minus second over the seeds that have both, with its interval."""
        a, b = self.values(first, metric), self.values(second, metric)
        return interval_of([a[seed] - b[seed] for seed in a if seed in b])

    def reasons(self, method: str, metric: str) -> dict[str, list[int]]:
        """Return why a figure is undefined, with the seeds where it is."""
        found: dict[str, list[int]] = {}
        for run in self.runs:
            entry = run["methods"].get(method)
            if entry is None or metric in ("seconds", "run_time_ratio"):
                continue
            metrics = entry.get("metrics") or {}
            if metric in metrics and finite(metrics[metric]) is None:
                reason = (entry.get("undefined") or {}).get(metric, "no reason given")
                found.setdefault(str(reason), []).append(run["seed"])
        return found

    def selections(self) -> dict[str, list[dict[str, Any]]]:
        """Return per method the tensors with their size and mean selected count over seeds."""
        found: dict[str, list[dict[str, Any]]] = {}
        for method in self.methods:
            entries = [run["methods"].get(method, {}).get("selected") for run in self.runs]
            tables = [entry["tensors"] for entry in entries if entry]
            if tables:
                found[method] = _average_tensors(tables)
        return found


def _average_tensors(tables: list[list[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    merged: dict[str, dict[str, Any]] = {}
    for table in tables:
        for tensor in table:
            row = merged.setdefault(
                str(tensor["name"]),
                {"name": str(tensor["name"]), "numel": int(tensor["numel"]), "selected": 0.0},
            )
            row["selected"] += tensor["selected"] / len(tables)
    return list(merged.values())
