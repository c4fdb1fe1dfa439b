"""The cells of the study: data set x model x scenario, and what is compared in each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.methods import register_all
from fastunlearn.evaluation.config import Config, parse_config

SEEDS = (90, 91, 92, 93, 94)
"""The reported seeds. No setting was chosen on any of them."""

SCENARIOS: dict[str, dict[str, Any]] = {
    "random-10": {"kind": "random", "fraction": 0.1},
    "random-1": {"kind": "random", "fraction": 0.01},
    "random-50": {"kind": "random", "fraction": 0.5},
    "class": {"kind": "class", "class": 3},
    "mislabelled": {"kind": "mislabelled", "fraction": 0.1},
    "memorised": {"kind": "memorised", "fraction": 0.1, "models": 10},
}

# Of other people's methods the options that `benchmarks.study.baselines` found.
METHODS: dict[str, Any] = {
    "retrain_again": {},
    "recipe": {"label": "Recommended recipe"},
    "recipe_top_k": {"kind": "recipe", "label": "Recipe, Top-K", "select": "top_k"},
    "top_k": {"label": "Top-K, K = 1 %", "k": 0.01},
    "random_k": {"label": "Random-k, K = 1 %", "k": 0.01},
    "fine_tune": {},
    "gradient_ascent": {"steps": 30, "lr": 0.005},
    "neg_grad_plus": {"alpha": 0.99},
    "random_labels": {"lr": 0.003},
    "salun": {"lr": 0.002},
    "ssd": {},
    "scrub": {"alpha": 0.1},
    "bad_teacher": {"lr": 0.003},
    "l1_sparse": {"lr": 0.003},
    "fisher_forgetting": {},
}

RESNET8: dict[str, Any] = {
    "random_labels": {"lr": 0.0003},
    "salun": {},
    "scrub": {"alpha": 0.1},
}
"""What the search found for the ResNet."""

TRAIN = {"epochs": 12, "batch_size": 64, "optimizer": "adam", "lr": 0.003}
REPAIR = {"epochs": 1, "batch_size": 64, "optimizer": "adam", "lr": 0.001, "distill": 0.1}


@dataclass(frozen=True)
class Cell:
    """One evaluation of the study: `name` is that of its results file."""

    name: str
    config: Config


ONE_ANCHOR = {"anchors": [0.1]}
TWO_ANCHORS = {"anchors": [0.1, 0.02]}
"""Fewer partly retrained models than an audit has by default, for time; the last tells the most."""

SMALL_GRID = ("retrain_again", "recipe", "recipe_top_k", "top_k", "random_k", "fine_tune")
"""The methods that the ResNet is compared with: a training of it takes five times as long."""

PLAIN = {"mnist5k": ("random-10", "class", "memorised"), "digits": tuple(SCENARIOS)}
"""The scenarios that are run on data as they are as well; on MNIST-5k fewer, for time."""

SENSITIVITY_K = (0.1, 0.3, 0.7, 0.9)
SENSITIVITY_SCALES = (0.25, 0.5, 1.0)


def cells() -> Iterator[Cell]:
    """Yield the cells, the most important first."""
    register_all()
    yield _cell("mnist5k", "small_cnn", "random-10")
    yield _resnet()
    yield _sensitivity()
    rest = tuple(name for name in SCENARIOS if name != "random-10")
    for scenario in SCENARIOS:
        yield _cell("digits", "small_cnn", scenario)
    for scenario in rest:
        yield _cell("mnist5k", "small_cnn", scenario)
    for dataset, scenarios in PLAIN.items():
        for scenario in scenarios:
            yield _cell(dataset, "small_cnn", scenario, shifted=False)


def _cell(dataset: str, model: str, scenario: str, *, shifted: bool = True) -> Cell:
    name = f"{dataset}-{model}-{scenario}-{'shifted' if shifted else 'plain'}"
    audit = {} if scenario == "random-10" else TWO_ANCHORS
    return _parsed(name, dataset, model, scenario, METHODS, spdgan=audit if shifted else None)


def _resnet() -> Cell:
    """The ResNet's smaller grid: fewer methods, one anchor in between."""
    methods = {name: METHODS[name] for name in SMALL_GRID} | RESNET8
    name = "mnist5k-resnet8-random-10-shifted"
    return _parsed(name, "mnist5k", "resnet8", "random-10", methods, spdgan=ONE_ANCHOR)


def _sensitivity() -> Cell:
    """The recipe over K and noise scale, Top-K and Random-k."""
    methods = {
        f"{select}_{k:g}_{scale:g}": {
            "kind": "recipe",
            "label": f"{label}, K = {100 * k:g} %, {scale:g} RMS",
            "select": select,
            "k": k,
            "rel_std": scale,
        }
        for select, label in (("top_k", "Top-K"), ("random_k", "Random-k"))
        for k in SENSITIVITY_K
        for scale in SENSITIVITY_SCALES
    }
    name = "mnist5k-small_cnn-random-10-sensitivity"
    return _parsed(name, "mnist5k", "small_cnn", "random-10", methods, spdgan=ONE_ANCHOR)


def _parsed(
    name: str,
    dataset: str,
    model: str,
    scenario: str,
    methods: dict[str, Any],
    *,
    spdgan: dict[str, Any] | None,
) -> Cell:
    raw = {
        "name": name,
        "dataset": dataset,
        "model": model,
        "threads": 1,
        "scenario": SCENARIOS[scenario],
        "seeds": list(SEEDS),
        "train": TRAIN,
        "repair": REPAIR,
        "methods": methods,
    }
    if spdgan is not None:
        raw["spdgan"] = spdgan
    return Cell(name, parse_config(raw))
