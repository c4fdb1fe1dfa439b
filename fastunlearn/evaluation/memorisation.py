"""Memorisation of training examples, scored by held-out training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastunlearn._loop import ProgressHook, forked_rng
from fastunlearn.evaluation.data import Samples, derive_seed
from fastunlearn.evaluation.shadow import (
    MakeModel,
    Train,
    read_tensors,
    samples_digest,
    write_tensors,
)
from fastunlearn.evaluation.training import predict, silent


@dataclass(frozen=True)
class Memorisation:
    """How much each example's label is known only because the model was trained on it.

    Args:
        scores: float64, shape (N,), in [-1, 1]: share of models right on the example among those
            trained on it, less the share among the others. 1 means memorised, 0 that training on
            it changes nothing.
        standard_errors: float64, shape (N,), of `scores` over models; smoothed (one success and one
            failure added to each side, Agresti and Caffo 2000), so never 0.
        inside: bool, shape (M, N): the model was trained on the example.
        correct: bool, shape (M, N): the model is right on it.
    """

    scores: Tensor
    standard_errors: Tensor
    inside: Tensor
    correct: Tensor


def memorisation_scores(
    train_set: Samples,
    *,
    make_model: MakeModel,
    train: Train,
    n_models: int = 40,
    share: float = 0.7,
    seed: int = 0,
    folder: Path | None = None,
    key: str = "",
    progress: ProgressHook = silent,
) -> Memorisation:
    """Score every example by models that were trained with and without it.

    mem(i) = P[correct on i | i in S] - P[correct on i | i not in S] over models trained on random
    subsets S. Every example is in round(share * n_models) subsets exactly [ours: subsets of equal
    size], which spreads the models evenly; a subset's size varies by about sqrt(N).

    The score ranks examples; with n_models = 40 the standard error of one score is about 0.15, so
    the top of the ranking holds chance as well as memorisation. Mislabelled and atypical examples
    come out on top. The same arguments give the same scores on the same machine; torch's
    generators are put back.

    Args:
        train_set: the training set, N examples with the labels they are trained with.
        make_model: makes an untrained model from a seed.
        train: `train(model, samples, seed)`, in place.
        n_models: number of models, at least 2.
        share: part of the models that see an example, in (0, 1).
        seed: of the subsets and of every training.
        folder: keeps the answers of finished models there, in one file named after data and
            settings, and goes on with it; made if missing. None keeps nothing.
        key: names model and training with their settings, as functions cannot be compared.
        progress: called after each model with "held-out model", its place from 1, their number.

    Returns:
        The scores, with what they were computed from.

    Raises:
        ValueError: `n_models` or `share` leaves an example always or never in the subsets, a subset
            would be empty, or the file cannot be read.

    Source:
        V. Feldman, C. Zhang, What neural networks memorize and why, NeurIPS 2020.
    """
    inside = _subsets(len(train_set), n_models, share, seed)
    digest = samples_digest([train_set], [n_models, share, seed, key])
    path = None if folder is None else folder / f"memorisation-{digest[:16]}.safetensors"
    found = None if path is None else read_tensors(path, digest)
    rows = [] if found is None else list(found["correct"])
    for number in range(len(rows), n_models):
        samples = train_set.at(torch.nonzero(inside[number]).flatten())
        own = derive_seed(seed, "memorisation", "model", str(number))
        with forked_rng():
            torch.default_generator.manual_seed(own)
            model = make_model(derive_seed(own, "weights"))
            train(model, samples, derive_seed(own, "train"))
            rows.append(predict(model, train_set).argmax(-1) == train_set.y)
        if path is not None:
            write_tensors(path, {"correct": torch.stack(rows)}, digest)
        progress("held-out model", number + 1, n_models)
    return _scored(inside, torch.stack(rows))


def most_memorised(scores: Tensor, fraction: float, *, seed: int) -> Tensor:
    """Return which examples have the greatest scores.

    Args:
        scores: floating point, shape (N,), without NaN.
        fraction: part of the examples to return, in (0, 1]; rounded half to even, at least 1.
        seed: of the draw among equal scores. Few models give few different scores, and the data may
            be sorted by class: the order of the indices must not choose.

    Returns:
        int64, ascending.

    Raises:
        ValueError: `fraction` is out of range, or there is no score or a NaN.
    """
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"most_memorised: fraction must be in (0, 1], got {fraction}")
    if scores.ndim != 1 or not len(scores) or scores.isnan().any():
        raise ValueError(
            "most_memorised: scores must be one-dimensional, not empty and without NaN, "
            f"got shape {tuple(scores.shape)} with {int(scores.isnan().sum())} NaN"
        )
    count = max(1, round(fraction * len(scores)))
    generator = torch.Generator().manual_seed(derive_seed(seed, "memorisation", "ties"))
    drawn = torch.randperm(len(scores), generator=generator).to(scores.device)
    ranked = drawn[scores[drawn].argsort(descending=True, stable=True)]
    return ranked[:count].sort().values


def _subsets(n: int, n_models: int, share: float, seed: int) -> Tensor:
    """Return which model sees which example, bool (n_models, n), equally often for each example."""
    op = "memorisation_scores"
    if not 0.0 < share < 1.0:
        raise ValueError(f"{op}: share must be in (0, 1), got {share}")
    times = round(share * n_models)
    if not 0 < times < n_models:
        raise ValueError(
            f"{op}: n_models must leave each example in some subsets and out of some, "
            f"got {n_models} with share {share}"
        )
    generator = torch.Generator().manual_seed(derive_seed(seed, "memorisation", "subsets"))
    ranks = torch.rand(n_models, n, generator=generator).argsort(0).argsort(0)
    inside = ranks < times
    if not inside.any(1).all():
        raise ValueError(f"{op}: train_set must be large enough for {n_models} subsets, got {n}")
    return inside


def _scored(inside: Tensor, correct: Tensor) -> Memorisation:
    scores = torch.zeros(inside.shape[1], dtype=torch.float64)
    variances = torch.zeros_like(scores)
    for side, sign in ((inside, 1.0), (~inside, -1.0)):
        n = side.sum(0).double()
        right = (correct & side).sum(0).double()
        scores += sign * right / n
        smoothed = (right + 1) / (n + 2)
        variances += smoothed * (1 - smoothed) / (n + 2)
    return Memorisation(scores, variances.sqrt(), inside, correct)
