"""Makes results dicts for the tests of the report: invented numbers, no experiment behind them."""

from __future__ import annotations

import math
import random
from typing import Any

from scipy import stats

LABELS = {
    "original": "Original",
    "retrain": "Retrained",
    "retrain_again": "Retrained again",
    "top_k": "Top-K",
    "random_k": "Random-k",
    "fine_tune": "Fine-tuning",
    "gradient_ascent": "Gradient ascent",
}
# forget, retain, test accuracy; AUC; JS; distance; seconds
LEVELS = {
    "original": (0.997, 0.998, 0.955, 0.585, 0.0142, 0.0, 21.0),
    "retrain": (0.951, 0.999, 0.954, 0.503, 0.0, 14.1, 19.5),
    "retrain_again": (0.951, 0.998, 0.955, 0.501, 0.0035, 14.2, 19.6),
    "top_k": (0.966, 0.990, 0.949, 0.531, 0.0121, 4.7, 2.9),
    "random_k": (0.975, 0.993, 0.951, 0.541, 0.0118, 4.2, 2.4),
    "fine_tune": (0.986, 0.999, 0.955, 0.556, 0.0113, 1.9, 2.2),
    "gradient_ascent": (0.712, 0.784, 0.741, 0.548, 0.1480, 2.6, 0.4),
}
PARTLY = {f"partly_retrained_{kept:g}": kept for kept in (0.5, 0.1)}
# What an audit adds: accuracy on the shifted and on the unshifted data to forget.
AUDIT_LEVELS = {
    "original": (0.96, 0.956),
    "retrain": (0.30, 0.951),
    "retrain_again": (0.31, 0.951),
    "partly_retrained_0.5": (0.80, 0.952),
    "partly_retrained_0.1": (0.45, 0.950),
}
SMALL_NET = (
    ("conv1.weight", 144, 4.0),
    ("conv1.bias", 16, 8.0),
    ("head.weight", 7840, 0.9),
    ("head.bias", 10, 12.0),
)


def resnet_tensors() -> list[tuple[str, int, float]]:
    """Return 62 tensors of a small residual network: name, size, how strongly Top-K favours it."""
    rows: list[tuple[str, int, float]] = [
        ("conv1.weight", 144, 9.0),
        ("bn1.weight", 16, 6.0),
        ("bn1.bias", 16, 5.0),
    ]
    width = 16
    for stage in range(4):
        inner = width * 2**stage
        outer = inner if stage == 0 else inner // 2
        for block in range(2):
            into = outer if block == 0 else inner
            base = f"layer{stage + 1}.{block}"
            for half, size in ((1, into * inner * 9), (2, inner * inner * 9)):
                rows.append((f"{base}.conv{half}.weight", size, 3.0 / (stage + 1)))
                rows.append((f"{base}.bn{half}.weight", inner, 4.0 / (stage + 1)))
                rows.append((f"{base}.bn{half}.bias", inner, 5.0 / (stage + 1)))
            if stage and block == 0:
                rows.append((f"{base}.downsample.0.weight", into * inner, 2.0))
                rows.append((f"{base}.downsample.1.weight", inner, 2.0))
                rows.append((f"{base}.downsample.1.bias", inner, 3.0))
    return rows + [("fc.weight", 1280, 14.0), ("fc.bias", 10, 20.0)]


def _selected(rng: random.Random, tensors: Any, fraction: float, top: bool) -> dict[str, Any]:
    weights = [
        size * (bias if top else 1.0) * math.exp(rng.gauss(0, 0.2)) for _, size, bias in tensors
    ]
    k = max(1, round(fraction * sum(size for _, size, _ in tensors)))
    rows = [
        {"name": name, "numel": size, "selected": min(size, round(k * w / sum(weights)))}
        for (name, size, _), w in zip(tensors, weights, strict=True)
    ]
    return {"k": k, "tensors": rows}


def _measure(rng: random.Random, level: tuple[float, ...]) -> dict[str, float]:
    forget, retain, test, auc = (min(1.0, v + rng.gauss(0, 0.004)) for v in level[:4])
    return {
        "forget_accuracy": forget,
        "retain_accuracy": retain,
        "test_accuracy": test,
        "unlearning_accuracy": 1 - forget,
        "mia_auc": auc,
        "mia_auc_low": auc - 0.04,
        "mia_auc_high": auc + 0.04,
        "mia_accuracy": 0.5 + (auc - 0.5) * 0.7,
        "mia_loss_auc": 0.5 + (auc - 0.5) * 0.9,
        "mia_examples_per_side": 398.0,
        "js_to_retrained": level[4] * math.exp(rng.gauss(0, 0.05)),
        "parameter_distance": level[5] * math.exp(rng.gauss(0, 0.03)),
    }


def _relative(own: dict[str, float], before: dict[str, float], aim: dict[str, float]) -> dict:
    lost = before["forget_accuracy"] - own["forget_accuracy"]
    compared = ("forget_accuracy", "retain_accuracy", "test_accuracy", "mia_auc")
    gaps = [abs(own[key] - aim[key]) for key in compared]
    return {
        "forgetting_rate": lost / before["forget_accuracy"],
        "forgetting_rate_normalised": lost / (before["forget_accuracy"] - aim["forget_accuracy"]),
        "memory_retention_rate": own["retain_accuracy"] / before["retain_accuracy"],
        "memory_retention_rate_test": own["test_accuracy"] / before["test_accuracy"],
        "memory_retention_rate_normalised": own["retain_accuracy"] / aim["retain_accuracy"],
        "average_gap": sum(gaps) / 4,
        "average_gap_without_attack": sum(gaps[:3]) / 3,
    }


def make_audit(
    seeds: int = 3, *, levels: dict[str, tuple[float, float]] | None = None
) -> dict[str, Any]:
    """Return an invented results dict of an audit.

    Args:
        seeds: Number of seeds that are done.
        levels: By model, accuracy on shifted and unshifted data in place of `AUDIT_LEVELS`.
    """
    extra = {name: f"Retrained, {100 * kept:g} % kept" for name, kept in PARTLY.items()}
    results = make_results(seeds, extra=extra)
    rows = results["config"]["methods"]
    rows |= {name: {"kind": "partly_retrained", "kept": kept} for name, kept in PARTLY.items()}
    for run in results["runs"]:
        _add_audit(run, AUDIT_LEVELS | (levels or {}))
    results["summary"] = _summary(results["runs"]) if seeds else {}
    return results


def _add_audit(run: dict[str, Any], levels: dict[str, tuple[float, float]]) -> None:
    rng = random.Random(run["seed"])
    found = {m: levels.get(m, (0.7, 0.954)) for m in run["methods"]}
    found = {m: tuple(v + rng.gauss(0, 0.001) for v in pair) for m, pair in found.items()}
    (w0, plain_w0), (aim, plain_aim) = found["original"], found["retrain"]
    for method, (shifted, plain) in found.items():
        run["methods"][method]["metrics"] |= {
            "forget_accuracy": shifted,
            "unlearning_degree": w0 - shifted,
            "unlearning_degree_normalised": (w0 - shifted) / (w0 - aim),
            "unshifted_forget_accuracy": plain,
            "unshifted_degree": plain_w0 - plain,
            "unshifted_degree_normalised": (plain_w0 - plain) / (plain_w0 - plain_aim),
            "optimizer_steps": 60.0,
            "optimizer_step_ratio": 0.1,
        }
    order = ["original", *PARTLY, "retrain"]
    degrees = [w0 - found[m][0] for m in order]
    wrong = [[order[i], order[i + 1]] for i in range(3) if degrees[i] > degrees[i + 1]]
    spread = {"shifted": w0 - aim, "plain": 0.05, "unshifted": plain_w0 - plain_aim}
    run["audit"] = {
        "fit": {"steps": 300, "stopped": "held", "seconds": 9.0},
        "closeness": {"l2": 4.5, "linf": 0.3, "linf_max": 0.3, "psnr": 15.5, "ssim": 0.8,
                      "discriminator_auc": None},
        "references": {"shifted": [0.25, 0.35], "unshifted": [0.95, 0.95]},
        "spread": spread,
        "gain": spread["shifted"] / spread["plain"],
        "gain_unshifted": spread["shifted"] / spread["unshifted"],
        "undefined": {},
        "anchors": {
            "order": order, "degrees": degrees, "in_order": not wrong, "out_of_order": wrong,
        },
    }  # fmt: skip


def _run(seed: int, tensors: Any, methods: dict[str, str], sizes: dict[str, int]) -> dict:
    rng = random.Random(seed)
    levels = {method: LEVELS.get(method, LEVELS["fine_tune"]) for method in methods}
    measured = {method: _measure(rng, level) for method, level in levels.items()}
    seconds = {m: level[6] * math.exp(rng.gauss(0, 0.05)) for m, level in levels.items()}
    entries = {}
    for method, label in methods.items():
        own = measured[method]
        perturbs = method in ("top_k", "random_k")
        entries[method] = {
            "label": label,
            "metrics": own | _relative(own, measured["original"], measured["retrain"]),
            "undefined": {},
            "selected": _selected(rng, tensors, 0.01, method == "top_k") if perturbs else None,
            "seconds": seconds[method],
            "run_time_ratio": seconds[method] / seconds["retrain"],
        }
    return {
        "seed": seed,
        "sizes": dict(sizes),
        "n_params": sum(size for _, size, _ in tensors),
        "methods": entries,
        "elapsed_seconds": 60.0 + seed,
    }


def _summary(runs: list[dict]) -> dict[str, dict[str, dict[str, Any]]]:
    summary: dict[str, dict[str, dict[str, Any]]] = {}
    for method in runs[0]["methods"]:
        entries = [run["methods"][method] for run in runs]
        columns = {key: [e["metrics"][key] for e in entries] for key in entries[0]["metrics"]}
        columns |= {key: [e[key] for e in entries] for key in ("seconds", "run_time_ratio")}
        summary[method] = {key: _stat(values) for key, values in columns.items()}
    return summary


def _stat(values: list[float | None]) -> dict[str, Any]:
    kept = [v for v in values if v is not None]
    n = len(kept)
    if n == 0:
        return {"mean": None, "std": None, "ci_low": None, "ci_high": None, "n": 0}
    mean = sum(kept) / n
    if n == 1:
        return {"mean": mean, "std": None, "ci_low": None, "ci_high": None, "n": 1}
    std = math.sqrt(sum((v - mean) ** 2 for v in kept) / (n - 1))
    half = float(stats.t.ppf(0.975, n - 1)) * std / math.sqrt(n)
    return {"mean": mean, "std": std, "ci_low": mean - half, "ci_high": mean + half, "n": n}


def make_results(
    seeds: int = 5,
    *,
    deep: bool = False,
    name: str = "synthetic, for tests only",
    extra: dict[str, str] | None = None,
    undefined: tuple[tuple[str, str, str], ...] = (),
    complete: bool = True,
) -> dict[str, Any]:
    """Return an invented results dict.

    Args:
        seeds: Number of seeds that are done.
        deep: 62 tensors in place of 4.
        name: Name of the run.
        extra: Further methods, name to label.
        undefined: (method, metric, reason) set to null for every seed.
        complete: False plans two more seeds than are done.
    """
    tensors = resnet_tensors() if deep else list(SMALL_NET)
    methods = LABELS | (extra or {})
    sizes = {"forget": 400, "retain": 3600, "test": 1000}
    runs = [_run(seed, tensors, methods, sizes) for seed in range(seeds)]
    for method, metric, reason in undefined:
        for run in runs:
            entry = run["methods"][method]
            entry["metrics"][metric] = None
            entry["undefined"][metric] = reason
    planned = list(range(seeds if complete else seeds + 2))
    return {
        "schema": "fastunlearn.results/1",
        "name": name,
        "config": {
            "dataset": "mnist5k",
            "model": "cnn",
            "scenario": {"kind": "random", "fraction": 0.1},
            "seeds": planned,
            "train": {"epochs": 12, "batch_size": 128, "lr": 0.001},
            "methods": {"top_k": {"kind": "top_k", "k": 0.01, "std": 0.1}},
        },
        "environment": {"fastunlearn": "0.0", "torch": "0.0", "backend": "reference"},
        "complete": complete,
        "runs": runs,
        "summary": _summary(runs) if runs else {},
    }
