"""Whole settings that were measured: what to perturb, who teaches, how long to repair.

`RECOMMENDED` is the one to begin with; docs/study.md has the evidence for it and its limits. `PEER`
is the setting of later work that implements the paper's method, kept for comparison.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fastunlearn._loop import LossFn, length_of
from fastunlearn.repair import Repair
from fastunlearn.strategies import RandomK, TopK
from fastunlearn.unlearn import Result, unlearn

__all__ = ["PEER", "RECOMMENDED", "Recipe"]


@dataclass(frozen=True)
class Recipe:
    """A strategy with its repair; the length of the repair is in passes over the retain set.

    Args:
        strategy: what to select and how to perturb it.
        teacher: whom the repair follows on the forget set, see `Repair`.
        distill: weight of that term.
        passes: passes over the retain loader, > 0; a part of a pass is as many of its batches,
            rounded, at least one.
        lr: learning rate of Adam.
        masked: update the selected parameters alone.

    Example:
        >>> from fastunlearn import recipes
        >>> recipes.RECOMMENDED.repair(100).max_steps
        250
    """

    strategy: TopK | RandomK
    teacher: str = "original"
    distill: float = 0.1
    passes: float = 1.0
    lr: float = 1e-3
    masked: bool = False

    def __post_init__(self) -> None:
        """Refuse what no repair could work with."""
        for name in ("passes", "lr"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"Recipe: {name} must be a number > 0, got {type(value).__name__}")
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"Recipe: {name} must be a finite number > 0, got {value}")
        self.repair(None)

    def repair(self, batches: int | None) -> Repair:
        """Return the repair for a retain loader of so many batches.

        Args:
            batches: number of batches in a pass; None where it is unknown, which rounds `passes`
                up to whole ones.
        """
        return Repair(
            epochs=math.ceil(self.passes),
            max_steps=None if batches is None else max(1, round(self.passes * batches)),
            distill=self.distill,
            teacher=self.teacher,
            masked=self.masked,
            optimizer=functools.partial(torch.optim.Adam, lr=self.lr),
        )

    def unlearn(
        self,
        model: nn.Module,
        *,
        forget: Iterable[Any],
        retain: Iterable[Any],
        loss_fn: LossFn,
        **options: Any,
    ) -> Result:
        """Call `fastunlearn.unlearn` with this recipe's strategy and repair.

        Args:
            model: changed in place.
            forget, retain, loss_fn, options: as for `fastunlearn.unlearn`.
        """
        return unlearn(
            model,
            self.strategy,
            forget=forget,
            retain=retain,
            loss_fn=loss_fn,
            repair=self.repair(length_of(retain)),
            **options,
        )


RECOMMENDED = Recipe(
    TopK(0.3, rel_std=4.0, score="ratio"), teacher="perturbed", distill=1.0, passes=2.5, lr=5e-4
)
PEER = Recipe(TopK(0.01, std=0.1))
