"""The search behind the options that other people's methods have in the study.

    python -m benchmarks.study.baselines

An audit of a few settings of each method on seeds that nothing is reported on; the results are in
docs/results/study-baselines.json. Rule: of each method the setting that meets the recipe's bar on
the most seeds, among equals the one with the smallest shortfall (`benchmarks.study.bar.closest`).
So each is tuned towards what the recipe is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.methods import register_all
from benchmarks.study.bar import closest, seeds_met, shortfall, verdicts
from benchmarks.study.cells import SCENARIOS, TRAIN, Cell
from benchmarks.study.execute import Plan, run_cell
from fastunlearn.evaluation.config import parse_config
from fastunlearn.evaluation.results import read_results
from fastunlearn.report.view import View

ROOT = Path(__file__).resolve().parent.parent.parent
SEEDS = (964, 965)
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "gradient_ascent": [{}, {"steps": 30, "lr": 0.005}, {"steps": 20, "lr": 0.01}],
    "neg_grad_plus": [{}, {"alpha": 0.98}, {"alpha": 0.99}, {"alpha": 0.99, "lr": 0.0003}],
    "random_labels": [{}, {"retain_weight": 0.3}, {"retain_weight": 3.0}, {"lr": 0.003}],
    "salun": [{}, {"fraction": 0.9}, {"fraction": 0.1}, {"retain_weight": 0.3}, {"lr": 0.003}],
    "ssd": [{}, {"alpha": 2.0}, {"alpha": 2.0, "lam": 0.1}, {"alpha": 5.0, "lam": 0.1}],
    "scrub": [{}, {"alpha": 0.1}, {"lr": 0.003}, {"lr": 0.003, "alpha": 0.1}],
    "bad_teacher": [{}, {"lr": 0.003}, {"retain_fraction": 1.0}, {"lr": 0.0003}],
    "l1_sparse": [{}, {"gamma": 0.002}, {"gamma": 0.005}, {"lr": 0.003}],
    "fisher_forgetting": [{}, {"lambda_sigma2": 1e-7}, {"lambda_sigma2": 1e-6}],
}


def named() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield each setting: its method's kind, a name for it, and the options."""
    for kind, settings in SETTINGS.items():
        for options in settings:
            words = [f"{name}_{value:g}" for name, value in options.items()]
            yield kind, "-".join([kind, *(words or ["default"])]), options


def cell() -> Cell:
    """Return the audit of all settings."""
    register_all()
    raw = {
        "name": "study-baselines",
        "dataset": "mnist5k",
        "model": "small_cnn",
        "threads": 1,
        "scenario": SCENARIOS["random-10"],
        "seeds": list(SEEDS),
        "train": TRAIN,
        "methods": {
            name: {"kind": kind, "label": name, **options} for kind, name, options in named()
        },
        "spdgan": {"anchors": [0.1]},
    }
    return Cell("study-baselines", parse_config(raw))


def chosen(view: View) -> dict[str, dict[str, Any]]:
    """Return of each method the options that the rule takes."""
    options = {name: given for _, name, given in named()}
    found: dict[str, dict[str, Any]] = {}
    for kind in SETTINGS:
        best = closest(view, [name for of, name, _ in named() if of == kind])
        assert best is not None  # every method has settings
        found[kind] = options[best]
    return found


def main() -> None:
    """Run what is missing, and print every setting and those that the rule takes."""
    plan = Plan(ROOT / "runs/study", ROOT / "docs/results")
    run_cell(cell(), plan)
    view = View(read_results(plan.result(cell())))
    for _, name, _ in named():
        degree, test = (
            view.stat(name, key) for key in ("unlearning_degree_normalised", "test_accuracy")
        )
        assert degree is not None and test is not None  # of two finished seeds
        line = f"degree* {degree.mean:5.2f}, test accuracy {test.mean:.3f}"
        found = verdicts(view, name)
        print(f"{name:40s} {line}, {seeds_met(found)} seeds met, shortfall {shortfall(found):.2f}")
    for kind, options in chosen(view).items():
        print(f"{kind}: {options}")


if __name__ == "__main__":
    main()
