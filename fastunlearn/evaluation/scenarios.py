"""Forget scenarios: which training samples are to be unlearned, and whom to compare them with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastunlearn.evaluation.config import ConfigError, ScenarioConfig
from fastunlearn.evaluation.data import Samples, derive_seed, stratified_choice
from fastunlearn.evaluation.memorisation import most_memorised


@dataclass(frozen=True)
class Scenario:
    """The sets of one run.

    Args:
        forget: D_u, the data to unlearn, with the labels the original model was trained on.
        retain: D_r, the rest of the training set.
        test: D_t, all test samples with their true labels, whatever the scenario.
        unseen: what the membership attack compares the forget set with: the test samples, treated
            as the forget set was (see `make_scenario` and `shifted`).
        forget_index: int64, place of each forget sample in the training set, ascending.
        retain_index: int64, the same for the retain set; with `forget_index` a partition.
        unshifted_forget: in an audit, the forget set as it was; None where it is not shifted.
    """

    forget: Samples
    retain: Samples
    test: Samples
    unseen: Samples
    forget_index: Tensor
    retain_index: Tensor
    unshifted_forget: Samples | None = None


def make_scenario(
    config: ScenarioConfig,
    train: Samples,
    test: Samples,
    n_classes: int,
    *,
    seed: int,
    memorisation: Tensor | None = None,
) -> Scenario:
    """Choose the forget set and prepare the test samples that the attack compares it with.

    - `random`: a stratified random fraction of the training set.
    - `class`: all training samples of one class. The test set keeps that class, so the test
      accuracy of a model that has forgotten it falls; the retrained model shows by how much.
    - `memorised`: the training examples with the greatest memorisation scores. They are unlike
      other data, so an attack may tell them from test samples of any model, the retrained one
      included: compare with its value, not with 0.5.
    - `mislabelled`: a stratified random fraction that the original model is trained on with wrong
      labels; forgetting them means no longer giving these wrong labels.

    The attack must ask whether a sample was trained on and nothing else. It balances the labels of
    both sides itself, so `class` compares with test samples of that class alone. For `mislabelled`
    the unseen samples get wrong labels by the same rule; with true ones a model that has never
    seen either side could still be told them apart.

    Args:
        config: which scenario.
        train: the whole training set with true labels.
        test: the whole test set.
        n_classes: number of classes.
        seed: of the run.
        memorisation: scores of the training samples, shape (N,); for `memorised` alone.

    Returns:
        The sets; the test set is never reduced.

    Raises:
        ConfigError: the forget or the retain set would be empty.
    """
    forget_index, retain_index = _choice(config, train, seed, memorisation)
    if not len(forget_index) or not len(retain_index):
        raise ConfigError(
            f"scenario: forget and retain set must hold at least one sample each, "
            f"got {len(forget_index)} and {len(retain_index)}"
        )
    forget = train.at(forget_index)
    unseen = test
    if config.kind == "mislabelled":
        wrong = derive_seed(seed, "scenario", "wrong labels")
        forget = Samples(forget.x, mislabel(forget.y, n_classes, seed=wrong))
        wrong = derive_seed(seed, "scenario", "wrong test labels")
        unseen = Samples(test.x, mislabel(test.y, n_classes, seed=wrong))
    return Scenario(
        forget=forget,
        retain=train.at(retain_index),
        test=test,
        unseen=unseen,
        forget_index=forget_index,
        retain_index=retain_index,
    )


def _choice(
    config: ScenarioConfig, train: Samples, seed: int, memorisation: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the indices of forget and retain set, ascending."""
    if config.kind in ("random", "mislabelled"):
        assert config.fraction is not None
        forget_seed = derive_seed(seed, "scenario", "forget")
        return stratified_choice(train.y, config.fraction, seed=forget_seed)
    if config.kind == "class":
        assert config.target_class is not None
        chosen = train.y.eq(config.target_class)
    else:
        assert config.fraction is not None and memorisation is not None
        chosen = torch.zeros(len(train), dtype=torch.bool)
        chosen[most_memorised(memorisation, config.fraction, seed=seed)] = True
    return torch.nonzero(chosen).flatten(), torch.nonzero(~chosen).flatten()


def shifted(scenario: Scenario, perturb: Callable[[Tensor], Tensor]) -> Scenario:
    """Return the scenario of an audit: the forget set shifted, labels as they were.

    The unseen samples are shifted too: between shifted members and plain others an attack would
    find the shift, not the membership.

    Args:
        scenario: the sets as they are.
        perturb: maps images to images of the same shape, as `SPDGAN.perturb` does.
    """
    forget, unseen = scenario.forget, scenario.unseen
    return replace(
        scenario,
        forget=Samples(perturb(forget.x), forget.y),
        unseen=Samples(perturb(unseen.x), unseen.y),
        unshifted_forget=forget,
    )


def mislabel(labels: Tensor, n_classes: int, *, seed: int) -> Tensor:
    """Return labels that are all wrong.

    Each is moved by 1..n_classes-1 places, uniformly at random, modulo the number of classes.

    Args:
        labels: int64, shape (N,).
        n_classes: number of classes, at least 2.
        seed: of the shifts.
    """
    generator = torch.Generator().manual_seed(seed)
    shift = torch.randint(1, n_classes, labels.shape, generator=generator)
    return (labels + shift) % n_classes
