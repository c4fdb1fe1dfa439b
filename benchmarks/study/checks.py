"""Further checks of the methods on digits: per-example attack, relearning, representations.

    python -m benchmarks.study.checks [--out FILE]

Two cells of the study are checked, digits with the small CNN and 10 % to forget. Plain random
examples are not among them: a model that generalises does as well on them as one that was trained
on them, so there is little to find. Each method runs with the study's settings. A second
call goes on with the methods that the file lacks.

- shifted: random examples, shifted by SPD-GAN. The original model learns the shift as a whole,
  which relearning and the challenge's score see; U-LiRA, which compares shifted examples with
  others shifted alike, sees only what a model knows of the single example.
- mislabelled: each example must be learned by itself, which is what U-LiRA sees. Where the original
  model is right on next to none of the wrong labels (`target`), relearning shows nothing.

Read every figure between two rows: `original` is what a check finds where nothing was unlearned,
`retrain_again` what it finds where there is nothing left to find.

The file, schema `fastunlearn.study.checks/2`:

- `schema`, `environment`, `config`: `sizes` and, by cell, the resolved configuration.
- `rows`: for each cell and method
  - `cell`, `method`, `label`, `seconds`: names, and what the checks of it took;
  - `ulira`: for the pools `forget` and `retain`, on the shadow models of the first seed's data:
    `auc` with `value`, `low`, `high` (95 %) and `n` examples; `rates`, a list by false-positive
    rate (0.1 % and 1 %) as `RateAtFPR`, all models together; `undefined`, the reasons of what is
    None; `detectable`, the smallest distance of the AUC from 0.5 that would have been shown;
    `strength`, the attack's strength in words;
  - `challenge`: the epsilon score of the NeurIPS 2023 challenge, `score`, from `quality` (F) and
    accuracies of the shadow models; `separated`, the share of forget examples whose unlearned and
    retrained models a threshold parts without error; `models_per_side` for each example, far fewer
    than the challenge's 512, so that `greatest_finite_epsilon` is small and chance alone keeps
    `quality` of an honest retraining below 1: compare with the row `retrain_again`;
  - `relearning`: gradient steps on the forget set until its accuracy is the original's: lists by
    seed `seeds`, `target`, `steps`, `reached`; `censored`, how many did not reach it within
    `max_steps`; `median`, None where it lies among the censored;
  - `similarity`: debiased linear CKA to the retrained model on the forget set, by layer with
    parameters: `values` by seed, `mean`, and `low`, `high` of its 95 % Student-t interval, None
    for a single seed.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.study.cells import cells
from benchmarks.study.resumable import add, begin
from benchmarks.study.shadows import Shadows, attacks, challenge, unlearned_model
from fastunlearn.evaluation.audit import make_instrument
from fastunlearn.evaluation.config import Config
from fastunlearn.evaluation.data import DATASETS, Samples, derive_seed
from fastunlearn.evaluation.methods import METHODS
from fastunlearn.evaluation.one_seed import make_task
from fastunlearn.evaluation.task import Task
from fastunlearn.evaluation.training import optimizer_factory, predict, silent
from fastunlearn.metrics import accuracy, layer_similarity, relearn_steps
from fastunlearn.report.view import interval_of

SCHEMA = "fastunlearn.study.checks/2"
CELLS = ("digits-small_cnn-random-10-shifted", "digits-small_cnn-mislabelled-plain")
CHECKED = (
    "original",
    "retrain_again",
    "recipe",
    "recipe_top_k",
    "top_k",
    "fine_tune",
    "salun",
    "scrub",
    "l1_sparse",
)


@dataclass(frozen=True)
class Sizes:
    """How much is done: shadow models (even, at least 6), and the most relearning steps."""

    shadow_models: int = 32
    relearn_steps: int = 200


@dataclass(frozen=True)
class Prepared:
    """One seed of a cell: the run with its original model, and the retrained model."""

    task: Task
    retrained: nn.Module


def check_configs() -> dict[str, Config]:
    """Return the configurations of the checked cells, with the checked methods alone, by name."""
    found = {cell.name: cell.config for cell in cells()}
    return {name: checked(found[name]) for name in CELLS}


def checked(config: Config) -> Config:
    """Return the configuration with the checked methods alone, and without further retraining."""
    methods = {name: config.methods[name] for name in ("retrain", *CHECKED)}
    audit = None if config.spdgan is None else replace(config.spdgan, anchors=(), retrained=1)
    return replace(config, methods=methods, spdgan=audit)


def run(
    configs: Mapping[str, Config],
    samples: Samples,
    sizes: Sizes,
    out: Path,
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Check every method in every cell and write the file after each.

    Args:
        configs: by name of the cell, as `checked` gives them.
        samples: the whole data set, that of all cells.
        sizes: how much is done.
        out: the file; rows that it has are kept.
        tell: is given a line after each row.

    Returns:
        The results, as written.

    Raises:
        ValueError: the file there is of another schema, configuration or environment.
    """
    settings = {"sizes": asdict(sizes), **{name: c.to_dict() for name, c in configs.items()}}
    results = begin(out, SCHEMA, settings)
    done = {(row["cell"], row["method"]) for row in results["rows"]}
    for cell, config in configs.items():
        missing = [name for name in CHECKED if (cell, name) not in done]
        if not missing:
            continue
        shadows = Shadows(config, samples, sizes.shadow_models)
        reference = shadows.outputs("retrain")
        prepared = [prepare(make_task(config, samples, seed)) for seed in config.seeds]
        for name in missing:
            started = time.perf_counter()
            label = config.methods[name].label
            outputs = shadows.outputs(name)
            row = {
                "cell": cell,
                "method": name,
                "label": label,
                "ulira": attacks(outputs.scores),
                "challenge": challenge(outputs, reference),
                **model_checks(prepared, name, sizes.relearn_steps),
            }
            seconds = time.perf_counter() - started
            add(results, {**row, "seconds": seconds}, out)
            tell(f"{cell}: {label}: {seconds:.0f} s")
    return results


def prepare(task: Task) -> Prepared:
    """Shift the forget set where the run is an audit; train original and retrained model."""
    if task.config.spdgan is not None:
        task = make_instrument(task, lambda label: nullcontext(silent)).task
    original, retrained = (
        METHODS[name].run(task, task.config.methods[name]).model for name in ("original", "retrain")
    )
    return Prepared(replace(task, original=original), retrained)


def model_checks(prepared: Sequence[Prepared], name: str, max_steps: int) -> dict[str, Any]:
    """Unlearn on every seed; return `relearning` and `similarity` of the row."""
    models = [unlearned_model(each.task, name) for each in prepared]
    pairs = list(zip(prepared, models, strict=True))
    return {
        "relearning": relearning(pairs, max_steps),
        "similarity": similarity(pairs),
    }


def relearning(pairs: Sequence[tuple[Prepared, nn.Module]], max_steps: int) -> dict[str, Any]:
    """Return the steps of each model until the forget set is back.

    The optimiser is that of the study's fine-tuning; every method has a seed's batches in one
    order.
    """
    found = []
    for each, model in pairs:
        forget, original = each.task.scenario.forget, each.task.original
        repair = each.task.config.methods["fine_tune"].repair
        assert original is not None and repair is not None  # by `prepare`, and of its kind
        found.append(
            relearn_steps(
                model,
                each.task.forget_loader(repair.batch_size),
                target=accuracy(predict(original, forget), forget.y),
                make_optimizer=optimizer_factory(repair),
                max_steps=max_steps,
                seed=derive_seed(each.task.seed, "relearning"),
            )
        )
    steps = [result.steps if result.reached else math.inf for result in found]
    return {
        "seeds": [each.task.seed for each, _ in pairs],
        "target": [result.target for result in found],
        "steps": [result.steps for result in found],
        "reached": [result.reached for result in found],
        "censored": sum(not result.reached for result in found),
        "max_steps": max_steps,
        "median": float(statistics.median(steps)),
    }


def similarity(pairs: Sequence[tuple[Prepared, nn.Module]]) -> dict[str, Any]:
    """Return the similarity of each model to the retrained one, by layer with parameters.

    On the forget set: elsewhere there was nothing to unlearn, and every method looks alike.
    """
    by_seed = []
    for each, model in pairs:
        layers = [name for name, module in model.named_modules() if module._parameters]
        x = each.task.scenario.forget.x
        by_seed.append(layer_similarity(model, each.retrained, x, layers, debiased=True))
    return {name: _over_seeds([values[name] for values in by_seed]) for name in by_seed[0]}


def _over_seeds(values: list[float]) -> dict[str, Any]:
    stat = interval_of(values)
    assert stat is not None  # there is a seed
    return {"values": values, "mean": stat.mean, "low": stat.low, "high": stat.high}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the checks of the study."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study.checks")
    parser.add_argument("--out", type=Path, default=Path("docs/results/study/checks.json"))
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    configs = check_configs()
    run(configs, DATASETS["digits"].load(), Sizes(), given.out)


if __name__ == "__main__":
    main()
