"""What a method is given and what it gives back."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from torch import nn

from fastunlearn._loop import ProgressHook
from fastunlearn.evaluation.config import Config
from fastunlearn.evaluation.data import TensorLoader, derive_seed
from fastunlearn.evaluation.scenarios import Scenario
from fastunlearn.evaluation.training import silent


@dataclass(frozen=True)
class Task:
    """What a method is given.

    Args:
        config: the evaluation.
        seed: of this run; every source of randomness derives its own from it.
        scenario: the sets.
        n_classes: number of classes.
        original: the model trained on forget and retain set; None while it is not trained yet.
            Methods must not change it.
        progress: called as work inside a method is done: phase, done, total.
    """

    config: Config
    seed: int
    scenario: Scenario
    n_classes: int
    original: nn.Module | None = None
    progress: ProgressHook = silent

    def copy_of_original(self) -> nn.Module:
        """Return a copy of the original model that may be changed."""
        if self.original is None:
            raise ValueError("task: original must be trained before this method, got None")
        return copy.deepcopy(self.original)

    def retain_loader(self, batch_size: int) -> TensorLoader:
        """Return shuffled batches of the retain set, in one order for all methods and passes.

        A pass that scoring or a check takes before the repair then changes nothing for it.
        """
        seed = derive_seed(self.seed, "repair", "retain order")
        return TensorLoader(self.scenario.retain, batch_size, seed=seed, reshuffle=False)

    def forget_loader(self, batch_size: int) -> TensorLoader:
        """Return shuffled batches of the forget set, in one order for all methods and passes."""
        seed = derive_seed(self.seed, "repair", "forget order")
        return TensorLoader(self.scenario.forget, batch_size, seed=seed, reshuffle=False)


@dataclass(frozen=True)
class Outcome:
    """What a method gives: the model, the seconds it took, and which parameters were selected.

    `selected` is None for methods that select nothing, else
    `{"k": int, "tensors": [{"name", "numel", "selected"}, ...]}` in model order. The runner counts
    `optimizer_steps`.
    """

    model: nn.Module
    seconds: float
    selected: dict[str, Any] | None = None
    optimizer_steps: int = 0
