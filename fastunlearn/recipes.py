"""Whole settings that were measured: what to perturb, who teaches, how long to repair.

`RECOMMENDED` is the one to begin with; docs/study.md has the evidence for it and its limits. `PEER`
is the setting of later work that implements the paper's method, kept for comparison.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from fastunlearn._loop import LossFn, length_of
from fastunlearn.repair import Repair, check_number
from fastunlearn.strategies import RandomK, TopK
from fastunlearn.unlearn import Result, unlearn

__all__ = ["PEER", "RECOMMENDED", "Recipe"]


@dataclass(frozen=True)
class Recipe:
    """A strategy with its repair, whose lengths are in passes over the retain set.

    Args:
        strategy: what to select and how to perturb it.
        teacher: whom the repair follows on the forget set, see `Repair`.
        distill: weight of that term.
        passes: passes over the retain loader, > 0; a part of a pass is as many of its batches,
            rounded, at least one.
        teacher_passes: passes over the retain loader that a perturbed teacher takes before it
            teaches, >= 0, see `Repair.teacher_steps`; rounded like `passes`.
        lr: learning rate of Adam.
        teacher_lr: that of the teacher's passes, where it falls to 0 along half a cosine.
        masked: update the selected parameters alone.

    Example:
        >>> from fastunlearn import recipes
        >>> recipes.RECOMMENDED.repair(100).max_steps
        150
    """

    strategy: TopK | RandomK
    teacher: str = "original"
    distill: float = 0.1
    passes: float = 1.0
    teacher_passes: float = 0.0
    lr: float = 1e-3
    teacher_lr: float = 4e-3
    masked: bool = False

    def __post_init__(self) -> None:
        """Refuse what no repair could work with."""
        for name in ("passes", "lr", "teacher_lr"):
            check_number("Recipe", name, getattr(self, name), zero=False)
        check_number("Recipe", "teacher_passes", self.teacher_passes, zero=True)
        if self.teacher_passes and self.teacher == "original":
            raise ValueError(
                "Recipe: teacher_passes must be 0 with teacher='original', "
                f"got {self.teacher_passes}"
            )
        self.repair(1)

    def repair(self, batches: int | None) -> Repair:
        """Return the repair for a retain loader of so many batches.

        Args:
            batches: number of batches in a pass; None where it is unknown, which rounds `passes`
                up to whole ones.

        Raises:
            ValueError: the number is unknown and `teacher_passes` is not 0.
        """
        if batches is None and self.teacher_passes:
            raise ValueError("Recipe: retain must have a length for teacher_passes > 0, got none")

        def steps(passes: float) -> int | None:
            return None if batches is None else max(1, round(passes * batches))

        adam = partial(partial, torch.optim.Adam)
        lesson = (steps(self.teacher_passes) or 0) if self.teacher_passes else 0
        return Repair(
            epochs=math.ceil(self.passes),
            max_steps=steps(self.passes),
            distill=self.distill,
            teacher=self.teacher,
            teacher_steps=lesson,
            teacher_optimizer=adam(lr=self.teacher_lr) if lesson else None,
            teacher_scheduler=partial(CosineAnnealingLR, T_max=lesson) if lesson else None,
            masked=self.masked,
            optimizer=adam(lr=self.lr),
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
    RandomK(0.7, rel_std=0.5, mode="replace"),
    teacher="perturbed",
    distill=2.0,
    passes=1.5,
    teacher_passes=2.0,
)
PEER = Recipe(TopK(0.01, std=0.1))
