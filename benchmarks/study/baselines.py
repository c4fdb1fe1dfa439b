"""The search behind the options that other people's methods have in the study.

    python -m benchmarks.study.baselines [--model small_cnn]

For each model of the study an audit of a few settings of each method that it is compared with, on
seeds that nothing is reported on; the results are in docs/results/study-baselines*.json. Rule: of
each method the setting that meets the recipe's bar on the most seeds, among equals the one with the
smallest shortfall (`benchmarks.study.bar.closest`). So each is tuned towards what the recipe is
asked for.
"""

from __future__ import annotations

import argparse
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
Settings = dict[str, list[dict[str, Any]]]
SMALL_CNN: Settings = {
    "gradient_ascent": [{}, {"steps": 30, "lr": 0.005}, {"steps": 20, "lr": 0.01}],
    "neg_grad_plus": [{}, {"alpha": 0.98}, {"alpha": 0.99}, {"alpha": 0.99, "lr": 0.0003}],
    "random_labels": [{}, {"retain_weight": 0.3}, {"retain_weight": 3.0}, {"lr": 0.003}],
    "salun": [
        {},
        {"fraction": 0.9},
        {"fraction": 0.1},
        {"retain_weight": 0.3},
        {"lr": 0.002},
        {"lr": 0.003},
    ],
    "ssd": [{}, {"alpha": 2.0}, {"alpha": 2.0, "lam": 0.1}, {"alpha": 5.0, "lam": 0.1}],
    "scrub": [{}, {"alpha": 0.1}, {"lr": 0.003}, {"lr": 0.003, "alpha": 0.1}],
    "bad_teacher": [{}, {"lr": 0.003}, {"retain_fraction": 1.0}, {"lr": 0.0003}],
    "l1_sparse": [
        {},
        {"gamma": 0.002},
        {"gamma": 0.005},
        {"lr": 0.003},
        {"lr": 0.003, "gamma": 0.002},
    ],
    "fisher_forgetting": [{}, {"lambda_sigma2": 1e-7}, {"lambda_sigma2": 1e-6}],
}
RESNET8: Settings = {
    "random_labels": [{}, {"lr": 0.0003}, {"lr": 0.003}],
    "salun": [{}, {"lr": 0.0003}, {"lr": 0.003}],
    "scrub": [{}, {"alpha": 0.1}, {"lr": 0.0003}],
}
SEARCHES = {"small_cnn": SMALL_CNN, "resnet8": RESNET8}
_NAMES = {"small_cnn": "study-baselines", "resnet8": "study-baselines-resnet8"}


def named(settings: Settings) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield each setting: its method's kind, a name for it, and the options."""
    for kind, tried in settings.items():
        for options in tried:
            words = [f"{name}_{value:g}" for name, value in options.items()]
            yield kind, "-".join([kind, *(words or ["default"])]), options


def cell(model: str) -> Cell:
    """Return the audit of all settings that are tried for a model."""
    register_all()
    raw = {
        "name": _NAMES[model],
        "dataset": "mnist5k",
        "model": model,
        "threads": 1,
        "scenario": SCENARIOS["random-10"],
        "seeds": list(SEEDS),
        "train": TRAIN,
        "methods": {
            name: {"kind": kind, "label": name, **options}
            for kind, name, options in named(SEARCHES[model])
        },
        "spdgan": {"anchors": [0.1]},
    }
    return Cell(_NAMES[model], parse_config(raw))


def chosen(view: View, settings: Settings) -> dict[str, dict[str, Any]]:
    """Return of each method the options that the rule takes."""
    options = {name: given for _, name, given in named(settings)}
    found: dict[str, dict[str, Any]] = {}
    for kind in settings:
        best = closest(view, [name for of, name, _ in named(settings) if of == kind])
        assert best is not None  # every method has settings
        found[kind] = options[best]
    return found


def search(model: str) -> None:
    """Run what is missing, and print every setting and those that the rule takes."""
    plan, settings = Plan(ROOT / "runs/study", ROOT / "docs/results"), SEARCHES[model]
    run_cell(cell(model), plan)
    view = View(read_results(plan.result(cell(model))))
    for _, name, _ in named(settings):
        degree, test = (
            view.stat(name, key) for key in ("unlearning_degree_normalised", "test_accuracy")
        )
        assert degree is not None and test is not None  # of two finished seeds
        line = f"degree* {degree.mean:5.2f}, test accuracy {test.mean:.3f}"
        found = verdicts(view, name)
        print(f"{name:40s} {line}, {seeds_met(found)} seeds met, shortfall {shortfall(found):.2f}")
    for kind, options in chosen(view, settings).items():
        print(f"{kind}: {options}")


def main() -> None:
    """Search for the model given, or for all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study.baselines")
    parser.add_argument("--model", choices=SEARCHES, help="all where none is given")
    given = parser.parse_args().model
    for model in [given] if given else SEARCHES:
        search(model)


if __name__ == "__main__":
    main()
