"""The results file: its schema, checks, summary over seeds, and writing that never tears.

`results.json` is one JSON object of schema `fastunlearn.results/1`:

- `schema`, `name`, `config` (resolved), `config_digest`, `environment`, `complete` (false while
  seeds are missing);
- `runs`: one entry for each finished seed, with `seed`, `sizes`, `n_params`, `methods`, and
  `elapsed_seconds`. A method has `label`, `metrics` (null where undefined), `undefined` (the
  reason for each null), `selected`, `seconds` and `run_time_ratio`;
  In an audit a run also has `audit`, and its metrics hold `AUDIT_METRICS` too;
- `summary`: for each method and metric mean, std, 95 % Student-t interval and n over the seeds
  where it is defined; std and interval are null for fewer than two.

Times lie only in `seconds`, `run_time_ratio` and `elapsed_seconds`; `without_times` drops them.
"""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SCHEMA = "fastunlearn.results/1"
METRICS = (
    "forget_accuracy",
    "retain_accuracy",
    "test_accuracy",
    "forgetting_rate",
    "forgetting_rate_normalised",
    "memory_retention_rate",
    "memory_retention_rate_test",
    "memory_retention_rate_normalised",
    "unlearning_accuracy",
    "mia_auc",
    "mia_auc_low",
    "mia_auc_high",
    "mia_accuracy",
    "mia_loss_auc",
    "mia_examples_per_side",
    "js_to_retrained",
    "parameter_distance",
    "average_gap",
    "average_gap_without_attack",
)
AUDIT_METRICS = (
    "unlearning_degree",
    "unlearning_degree_normalised",
    "unshifted_forget_accuracy",
    "unshifted_degree",
    "unshifted_degree_normalised",
    "optimizer_steps",
    "optimizer_step_ratio",
)
TIMES = ("seconds", "run_time_ratio", "elapsed_seconds")
_STATISTICS = ("mean", "std", "ci_low", "ci_high", "n")
_TOP = {
    "schema": str,
    "name": str,
    "config": dict,
    "config_digest": str,
    "environment": dict,
    "complete": bool,
    "runs": list,
    "summary": dict,
}
_RUN = {"seed": int, "sizes": dict, "n_params": int, "methods": dict, "elapsed_seconds": float}
_AUDIT = {
    "fit": dict,
    "closeness": dict,
    "references": dict,
    "spread": dict,
    "gain": object,
    "gain_unshifted": object,
    "undefined": dict,
    "anchors": dict,
}
_RETRAINED = {"retrained": dict}  # files that lack it took `retrain` alone
_ANCHORS = {"order": list, "degrees": list, "in_order": bool, "out_of_order": list}
_METHOD = {
    "label": str,
    "metrics": dict,
    "undefined": dict,
    "selected": (dict, type(None)),
    "seconds": float,
    "run_time_ratio": float,
}


class ResultsError(ValueError):
    """A results file that cannot be used; the message names the place and both values."""


def validate(results: Any) -> None:
    """Check that `results` is a whole and consistent object of the schema.

    Raises:
        ResultsError: naming the first place that is not as it must be.
    """
    _check_keys("results", results, _TOP)
    if results["schema"] != SCHEMA:
        raise ResultsError(f"results.schema must be {SCHEMA!r}, got {results['schema']!r}")
    seeds = []
    for place, run in enumerate(results["runs"]):
        _check_run(f"results.runs[{place}]", run)
        seeds.append(run["seed"])
    if len(set(seeds)) != len(seeds):
        raise ResultsError(f"results.runs must have one entry for each seed, got seeds {seeds}")
    planned = results["config"].get("seeds")
    if not isinstance(planned, list) or not set(seeds) <= set(planned):
        raise ResultsError(f"results.runs seeds must be among {planned}, got {seeds}")
    if results["complete"] != (set(seeds) == set(planned)):
        raise ResultsError(
            f"results.complete must be {set(seeds) == set(planned)} with seeds {seeds} of "
            f"{planned}, got {results['complete']}"
        )
    for method, metrics in results["summary"].items():
        for metric, row in metrics.items():
            where = f"results.summary.{method}.{metric}"
            _check_names(where, row, _STATISTICS)
            for key, value in row.items():
                _check_number(f"{where}.{key}", value, optional=True)


def without_times(results: Any) -> Any:
    """Return a deep copy of `results` without any time: equal for equal seeds and set-ups."""
    if isinstance(results, dict):
        return {k: without_times(v) for k, v in results.items() if k not in TIMES}
    if isinstance(results, list):
        return [without_times(item) for item in results]
    return results


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the summary over seeds of every metric and of the times.

    Formula [ours]: mean -+ t(0.975, n - 1) * std / sqrt(n), std with n - 1 in the denominator,
    over the n seeds in which the metric is defined.
    """
    summary: dict[str, Any] = {}
    for method in runs[0]["methods"] if runs else ():
        entries = [run["methods"][method] for run in runs]
        rows = {metric: [e["metrics"][metric] for e in entries] for metric in entries[0]["metrics"]}
        rows["run_time_ratio"] = [e["run_time_ratio"] for e in entries]
        rows["seconds"] = [e["seconds"] for e in entries]
        summary[method] = {
            name: _statistics([v for v in values if v is not None]) for name, values in rows.items()
        }
    return summary


def read_results(path: str | Path) -> dict[str, Any]:
    """Read and validate a results file.

    Raises:
        ResultsError: the content is not JSON or not of the schema.
        OSError: the file cannot be read.
    """
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ResultsError(f"results: {path} must be JSON, got: {error}") from error
    validate(results)
    return results


def write_results(results: dict[str, Any], path: str | Path) -> None:
    """Validate and write a results file so that a reader sees the old or the new one, whole."""
    validate(results)
    text = json.dumps(results, indent=1, allow_nan=False) + "\n"
    write_atomically(Path(path), text.encode())


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    The content goes to a temporary file in the same folder, to the disk, and then into place.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _statistics(values: list[float]) -> dict[str, float | int | None]:
    n = len(values)
    if n == 0:
        return {"mean": None, "std": None, "ci_low": None, "ci_high": None, "n": 0}
    mean = math.fsum(values) / n
    if n == 1:
        return {"mean": mean, "std": None, "ci_low": None, "ci_high": None, "n": 1}
    t = _student_t()
    std = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    half = float(t.ppf(0.975, n - 1)) * std / math.sqrt(n)
    return {"mean": mean, "std": std, "ci_low": mean - half, "ci_high": mean + half, "n": n}


def _student_t() -> Any:
    try:
        from scipy.stats import t
    except ImportError as error:
        raise ImportError(
            "confidence intervals need scipy, which is not installed: "
            'pip install "fastunlearn[eval]"'
        ) from error
    return t


def _check_run(where: str, run: Any) -> None:
    is_audit = isinstance(run, dict) and "audit" in run
    _check_keys(where, run, {**_RUN, "audit": dict} if is_audit else _RUN)
    if is_audit:
        _check_audit(f"{where}.audit", run["audit"])
    _check_keys(f"{where}.sizes", run["sizes"], dict.fromkeys(("forget", "retain", "test"), int))
    for name in ("original", "retrain"):
        if name not in run["methods"]:
            raise ResultsError(f"{where}.methods must hold {name!r}, got {list(run['methods'])}")
    for name, method in run["methods"].items():
        _check_method(f"{where}.methods.{name}", method, is_audit)


def _check_audit(where: str, audit: Any) -> None:
    several = isinstance(audit, dict) and "retrained" in audit
    _check_keys(where, audit, {**_AUDIT, **_RETRAINED} if several else _AUDIT)
    for name in ("references", "retrained") if several else ("references",):
        tested = isinstance(audit[name], dict) and "test" in audit[name]  # not in earlier files
        data = ("shifted", "unshifted", "test") if tested else ("shifted", "unshifted")
        _check_keys(f"{where}.{name}", audit[name], dict.fromkeys(data, list))
        for part, values in audit[name].items():
            for value in values:
                _check_number(f"{where}.{name}.{part}", value, optional=False)
    _check_keys(f"{where}.anchors", audit["anchors"], _ANCHORS)
    _check_keys(f"{where}.fit", audit["fit"], {"steps": int, "stopped": str, "seconds": float})
    _check_keys(
        f"{where}.spread", audit["spread"], dict.fromkeys(("shifted", "plain", "unshifted"), float)
    )
    for name, value in audit["closeness"].items():
        _check_number(f"{where}.closeness.{name}", value, optional=True)
    for name in ("gain", "gain_unshifted"):
        _check_number(f"{where}.{name}", audit[name], optional=True)
        if (audit[name] is None) != (name in audit["undefined"]):
            raise ResultsError(
                f"{where}.undefined must give a reason for null gains only, got {audit[name]} for "
                f"{name} and reasons for {sorted(audit['undefined'])}"
            )


def _check_method(where: str, method: Any, is_audit: bool) -> None:
    _check_keys(where, method, _METHOD)
    names = (*METRICS, *AUDIT_METRICS) if is_audit else METRICS
    _check_names(f"{where}.metrics", method["metrics"], names)
    for metric, value in method["metrics"].items():
        _check_number(f"{where}.metrics.{metric}", value, optional=True)
        if (value is None) != (metric in method["undefined"]):
            raise ResultsError(
                f"{where}.undefined must give a reason for null metrics only, "
                f"got {value} for {metric} and reasons for {sorted(method['undefined'])}"
            )
    selected = method["selected"]
    if selected is not None:
        _check_keys(f"{where}.selected", selected, {"k": int, "tensors": list})
        for tensor in selected["tensors"]:
            kinds = {"name": str, "numel": int, "selected": int}
            _check_keys(f"{where}.selected.tensors", tensor, kinds)
        total = sum(tensor["selected"] for tensor in selected["tensors"])
        if total != selected["k"]:
            raise ResultsError(f"{where}.selected must add up to k={selected['k']}, got {total}")


def _check_keys(where: str, value: Any, kinds: Mapping[str, Any]) -> None:
    _check_names(where, value, tuple(kinds))
    for key, kind in kinds.items():
        if kind is float:
            _check_number(f"{where}.{key}", value[key], optional=False)
        elif not isinstance(value[key], kind) or (kind is int and isinstance(value[key], bool)):
            expected = getattr(kind, "__name__", "object or null")
            raise ResultsError(f"{where}.{key} must be {expected}, got {value[key]!r}")


def _check_names(where: str, value: Any, names: tuple[str, ...]) -> None:
    if not isinstance(value, dict):
        raise ResultsError(f"{where} must be an object, got {type(value).__name__}")
    different = sorted(set(names) ^ set(value))
    if different:
        raise ResultsError(
            f"{where} must have the keys {', '.join(names)}; missing or unknown: "
            f"{', '.join(map(str, different))}"
        )


def _check_number(where: str, value: Any, *, optional: bool) -> None:
    if value is None and optional:
        return
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value):
        raise ResultsError(f"{where} must be a finite number, got {value!r}")
