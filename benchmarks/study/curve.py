"""The instrument's gain against the size of the shift: MNIST-5k, small CNN, a random 10 %.

    python -m benchmarks.study.curve [--seeds 60 61 62 63 64] [--out FILE]

References, retrained model and plain original model are trained once for each seed and shared by
all shifts; each shift has its own generator and its own original model. The figures of a row are
those that an audit with that epsilon has (`fastunlearn.evaluation.audit`), bit for bit. A second
call goes on with the rows that the file lacks.

The file, schema `fastunlearn.study.curve/2`:

- `schema`, `environment`, and `config`: the configuration of the audit; the epsilon of each row
  takes the place of the one in it.
- `rows`: for each seed and epsilon
  - `seed`, `epsilon`: the greatest shift of a pixel, in units of the pixel range;
  - `spread`: accuracy of the original less the mean of the retrained models on the shifted forget
    set;
  - `plain_spread`: the same on the unshifted one, of the original model that learned that;
  - `gain`: spread over plain spread; None where the plain spread is not above 0;
  - `linf`, `psnr`: mean shift of the forget set, PSNR in dB;
  - `references`: accuracy of each reference on the shifted forget set;
  - `stopped`: how the generator's training ended, see `FitReport`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.study.cells import SCENARIOS, SEEDS, TRAIN
from benchmarks.study.resumable import add, begin
from fastunlearn.evaluation.audit import gain, mean_accuracy
from fastunlearn.evaluation.config import Config, parse_config
from fastunlearn.evaluation.data import DATASETS, Samples, TensorLoader, derive_seed, joined
from fastunlearn.evaluation.one_seed import make_task
from fastunlearn.evaluation.retraining import retrain_further, train_fresh, train_reference
from fastunlearn.evaluation.scenarios import shifted
from fastunlearn.evaluation.task import Task
from fastunlearn.evaluation.training import predict
from fastunlearn.metrics import accuracy
from fastunlearn.spdgan import SPDGAN

SCHEMA = "fastunlearn.study.curve/2"
EPSILONS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
LEAST_GAIN = 10.0


def curve_config() -> Config:
    """Return the configuration of the study's audit, without its methods and anchors."""
    return parse_config(
        {
            "name": "mnist5k-small_cnn-random-10-curve",
            "dataset": "mnist5k",
            "model": "small_cnn",
            "threads": 1,
            "scenario": SCENARIOS["random-10"],
            "train": TRAIN,
            "methods": {},
            "spdgan": {"anchors": []},
        }
    )


@dataclass(frozen=True)
class Shared:
    """What all shifts of one seed have in common.

    Args:
        task: the run, its forget set as it is.
        references: the models that each generator works against.
        retrained: the retrained models; they depend on no shift.
        plain_spread: P(plain original) - mean P(retrained) on the unshifted forget set.
    """

    task: Task
    references: tuple[nn.Module, ...]
    retrained: tuple[nn.Module, ...]
    plain_spread: float


def share(task: Task) -> Shared:
    """Train what the shifts of a seed share, with the seeds that an audit gives each model."""
    scenario, audit = task.scenario, task.config.spdgan
    assert audit is not None  # the configuration is that of an audit
    numbers = range(1, len(audit.references) + 1)
    references = tuple(train_reference(task, number) for number in numbers)
    first = train_fresh(task, scenario.retain, "retrain").model
    further = (retrain_further(task, number) for number in range(2, audit.retrained + 1))
    retrained = (first, *further)
    plain = train_fresh(task, joined(scenario.forget, scenario.retain), "original").model
    spread = _accuracy(plain, scenario.forget) - mean_accuracy(retrained, scenario.forget)
    return Shared(task, references, retrained, spread)


def point(shared: Shared, epsilon: float) -> dict[str, Any]:
    """Return the row of one shift: fit SPD-GAN, train the original model on G(D_u), measure."""
    task, audit = shared.task, shared.task.config.spdgan
    assert audit is not None  # as in `share`
    gan = SPDGAN(replace(audit.gan, epsilon=epsilon), seed=derive_seed(task.seed, "SPD-GAN"))
    fit = gan.fit(TensorLoader(task.scenario.forget, audit.batch_size), shared.references)
    scenario = shifted(task.scenario, gan.perturb)
    original = train_fresh(task, joined(scenario.forget, scenario.retain), "original").model
    spread = _accuracy(original, scenario.forget) - mean_accuracy(shared.retrained, scenario.forget)
    return {
        "seed": task.seed,
        "epsilon": epsilon,
        "spread": spread,
        "plain_spread": shared.plain_spread,
        "gain": gain(spread, shared.plain_spread),
        "linf": fit.closeness.linf,
        "psnr": fit.closeness.psnr,
        "references": [_accuracy(model, scenario.forget) for model in shared.references],
        "stopped": fit.stopped,
    }


def run(
    config: Config,
    samples: Samples,
    epsilons: Sequence[float],
    out: Path,
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure every shift on every seed of the configuration and write the file after each.

    Args:
        config: of an audit; its own epsilon is not used.
        samples: the whole data set.
        epsilons: the shifts.
        out: the file; rows that it has are kept.
        tell: is given a line after each row.

    Returns:
        The results, as written.

    Raises:
        ValueError: the file there is of another schema, configuration or environment.
    """
    settings = {key: value for key, value in config.to_dict().items() if key != "seeds"}
    results = begin(out, SCHEMA, settings)
    done = {(row["seed"], row["epsilon"]) for row in results["rows"]}
    for seed in config.seeds:
        missing = [epsilon for epsilon in epsilons if (seed, epsilon) not in done]
        if not missing:
            continue
        shared = share(make_task(config, samples, seed))
        for epsilon in missing:
            row = point(shared, epsilon)
            add(results, row, out)
            tell(f"seed {seed}, epsilon {epsilon:g}: spread {row['spread']:.3f}, "
                 f"gain {row['gain']:.1f}")  # fmt: skip
    return results


def smallest_useful_epsilon(
    rows: Iterable[Mapping[str, Any]], least_gain: float = LEAST_GAIN
) -> float | None:
    """Return the smallest epsilon whose gain is at least `least_gain` on every seed [ours].

    Args:
        rows: of a results file. A seed that lacks an epsilon, or has no gain there (None), counts
            as one where the gain is too small.
        least_gain: what makes a shift useful.

    Returns:
        The epsilon; None where there is no such one.

    Example:
        >>> rows = [{"seed": 0, "epsilon": e, "gain": g} for e, g in ((0.1, 4.0), (0.2, 12.0))]
        >>> smallest_useful_epsilon(rows)
        0.2
    """
    rows = list(rows)
    seeds = {row["seed"] for row in rows}
    useful: dict[float, set[int]] = {}
    for row in rows:
        if row["gain"] is not None and row["gain"] >= least_gain:
            useful.setdefault(row["epsilon"], set()).add(row["seed"])
    return min((epsilon for epsilon, found in useful.items() if found == seeds), default=None)


def _accuracy(model: nn.Module, samples: Samples) -> float:
    return accuracy(predict(model, samples), samples.y)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the curve of MNIST-5k."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study.curve")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--out", type=Path, default=Path("docs/results/study/curve.json"))
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    config = curve_config().with_seeds(tuple(given.seeds))
    results = run(config, DATASETS[config.dataset].load(), EPSILONS, given.out)
    print(f"smallest useful epsilon: {smallest_useful_epsilon(results['rows'])}")


if __name__ == "__main__":
    main()
