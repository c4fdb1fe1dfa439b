"""The cells of the study: data set x model x scenario, and what is compared in each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.methods import register_all
from fastunlearn.evaluation.config import Config, parse_config

SEEDS = (30, 31, 32, 33, 34)
"""The reported seeds. No setting was chosen on any of them."""

SCENARIOS: dict[str, dict[str, Any]] = {
    "random-10": {"kind": "random", "fraction": 0.1},
    "random-1": {"kind": "random", "fraction": 0.01},
    "random-50": {"kind": "random", "fraction": 0.5},
    "class": {"kind": "class", "class": 3},
    "mislabelled": {"kind": "mislabelled", "fraction": 0.1},
    "memorised": {"kind": "memorised", "fraction": 0.1, "models": 10},
}

METHODS: dict[str, Any] = {
    "retrain_again": {},
    "recipe": {"label": "Recommended recipe"},
    "recipe_random": {
        "kind": "recipe",
        "label": "Recipe, Random-k",
        "select": "random_k",
    },
    "top_k": {"label": "Top-K, K = 1 %", "k": 0.01},
    "random_k": {"label": "Random-k, K = 1 %", "k": 0.01},
    "fine_tune": {},
    "gradient_ascent": {},
    "neg_grad_plus": {},
    "random_labels": {},
    "salun": {},
    "ssd": {},
    "scrub": {},
    "bad_teacher": {},
    "l1_sparse": {},
    "fisher_forgetting": {},
}

TRAIN = {"epochs": 12, "batch_size": 64, "optimizer": "adam", "lr": 0.003}
REPAIR = {"epochs": 1, "batch_size": 64, "optimizer": "adam", "lr": 0.001, "distill": 0.1}


@dataclass(frozen=True)
class Cell:
    """One evaluation of the study: `name` is that of its results file."""

    name: str
    config: Config


def cells() -> Iterator[Cell]:
    """Yield the cells, the most important first."""
    register_all()
    for dataset, model, scenarios in (
        ("mnist5k", "small_cnn", tuple(SCENARIOS)),
        ("mnist5k", "resnet8", ("random-10",)),
        ("digits", "small_cnn", tuple(SCENARIOS)),
    ):
        for scenario in scenarios:
            for shifted in (True, False):
                yield _cell(dataset, model, scenario, shifted)


def _cell(dataset: str, model: str, scenario: str, shifted: bool) -> Cell:
    name = f"{dataset}-{model}-{scenario}-{'shifted' if shifted else 'plain'}"
    raw = {
        "name": name,
        "dataset": dataset,
        "model": model,
        "threads": 1,
        "scenario": SCENARIOS[scenario],
        "seeds": list(SEEDS),
        "train": TRAIN,
        "repair": REPAIR,
        "methods": METHODS,
    }
    if shifted:
        raw["spdgan"] = {}
    return Cell(name, parse_config(raw))
