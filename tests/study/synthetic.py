"""Makes results of the study's cells: invented numbers, no experiment behind them."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from benchmarks.study.cells import Cell
from fastunlearn.evaluation.anchors import anchor_order, out_of_order
from fastunlearn.evaluation.results import AUDIT_METRICS, METRICS, SCHEMA, summarise

TOP = 0.96
SPREAD = 0.75
LEVELS: dict[str, dict[str, float]] = {
    "original": {"degree": 0.0, "js": 0.30, "steps": 1.0, "gap": 0.20},
    "retrain": {"degree": 1.0, "js": 0.0, "steps": 1.0, "gap": 0.0},
    "retrain_again": {"degree": 1.0, "js": 0.02, "steps": 0.95, "gap": 0.002},
    "partly_retrained_0.5": {"degree": 0.2, "steps": 1.0},
    "partly_retrained_0.1": {"degree": 0.6, "steps": 1.0},
    "partly_retrained_0.02": {"degree": 0.9, "steps": 1.0},
    "recipe": {"degree": 1.02, "js": 0.05, "gap": 0.02},
    "recipe_top_k": {"degree": 0.7, "js": 0.09, "gap": 0.06},
    "gradient_ascent": {"degree": 0.9, "test": 0.70, "retention": 0.75},
}
USUAL = {"degree": 0.3, "test": 0.955, "retention": 0.995, "steps": 0.15, "js": 0.2, "gap": 0.1}
"""A method's normalised degree, test accuracy, memory retention, step ratio, JS, average gap."""


def make_results(
    cell: Cell,
    levels: Mapping[str, Mapping[str, float]] | None = None,
    *,
    seeds: int | None = None,
    plain_spread: float = 0.05,
) -> dict[str, Any]:
    """Return results of a cell.

    Args:
        cell: whose methods and seeds are taken.
        levels: by method, in place of single entries of `LEVELS` and `USUAL`.
        seeds: how many of them are done; None for all.
        plain_spread: between original and retrained model on the unshifted data.
    """
    config = cell.config
    planned = enumerate(config.seeds[:seeds])
    runs = [_run(cell, seed, place, levels or {}, plain_spread) for place, seed in planned]
    return {
        "schema": SCHEMA,
        "name": cell.name,
        "config": config.to_dict(),
        "config_digest": config.digest(),
        "environment": {"torch": "0.0", "threads": 1},
        "complete": len(runs) == len(config.seeds),
        "runs": runs,
        "summary": summarise(runs),
    }


def _run(
    cell: Cell, seed: int, place: int, levels: Mapping[str, Any], plain_spread: float
) -> dict[str, Any]:
    rng = random.Random(30 + place)  # by place: the noise stays where the study's seeds change
    methods = {}
    for name, method in cell.config.methods.items():
        level = {**USUAL, **LEVELS.get(name, {}), **levels.get(name, {})}
        fixed = name in ("original", "retrain")
        metrics = _metrics(level, random.Random(0) if fixed else rng, 0.0 if fixed else 0.01)
        if cell.config.spdgan is None:
            metrics = {key: metrics[key] for key in METRICS}
        methods[name] = {
            "label": method.label,
            "metrics": metrics,
            "undefined": {},
            "selected": None,
            "seconds": 2.0,
            "run_time_ratio": 0.2 + 0.01 * rng.random(),
        }
    entry = {
        "seed": seed,
        "sizes": {"forget": 400, "retain": 3600, "test": 1000},
        "n_params": 1000,
        "methods": methods,
        "elapsed_seconds": 100.0,
    }
    if cell.config.spdgan is not None:
        entry["audit"] = _audit(cell, methods, plain_spread)
    return entry


def _metrics(level: Mapping[str, float], rng: random.Random, noise: float) -> dict[str, float]:
    metrics = {key: 0.4 + 0.2 * rng.random() for key in (*METRICS, *AUDIT_METRICS)}
    degree = level["degree"] + noise * rng.gauss(0, 1)
    return metrics | {
        "forget_accuracy": TOP - SPREAD * degree,
        "unlearning_accuracy": 1 - TOP + SPREAD * degree,
        "unlearning_degree": SPREAD * degree,
        "unlearning_degree_normalised": degree,
        "retain_accuracy": 0.99 * level["retention"],
        "test_accuracy": level["test"] + 0.1 * noise * rng.gauss(0, 1),
        "memory_retention_rate": level["retention"],
        "js_to_retrained": max(0.0, level["js"] + 0.2 * noise * rng.gauss(0, 1)),
        "average_gap": level["gap"] + 0.1 * noise * rng.random(),
        "average_gap_without_attack": level["gap"] + 0.1 * noise * rng.random(),
        "optimizer_steps": 675 * level["steps"],
        "optimizer_step_ratio": level["steps"],
    }


def _audit(cell: Cell, methods: Mapping[str, Any], plain_spread: float) -> dict[str, Any]:
    order = anchor_order(cell.config.to_dict()["methods"])
    degrees = [methods[name]["metrics"]["unlearning_degree"] for name in order]
    wrong = [[order[i], order[j]] for i, j in out_of_order(degrees)]
    seen = plain_spread > 0.0
    return {
        "fit": {"steps": 300, "stopped": "held", "seconds": 9.0},
        "closeness": {"l2": 4.5, "linf": 0.28, "psnr": 15.6, "ssim": None},
        "references": {"shifted": [0.2, 0.3], "unshifted": [0.95, 0.95]},
        "spread": {"shifted": SPREAD, "plain": plain_spread, "unshifted": 0.02},
        "gain": SPREAD / plain_spread if seen else None,
        "gain_unshifted": SPREAD / 0.02,
        "undefined": {} if seen else {"gain": "plain accuracy does not tell them apart"},
        "anchors": {
            "order": order,
            "degrees": degrees,
            "in_order": not wrong,
            "out_of_order": wrong,
        },
    }
