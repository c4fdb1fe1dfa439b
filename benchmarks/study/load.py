"""What the document reads: each planned cell with its results, or with none."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.study.cells import Cell
from fastunlearn.evaluation.anchors import PARTLY
from fastunlearn.evaluation.results import read_results
from fastunlearn.report.view import View

SENSITIVITY = "-sensitivity"
_DATASETS = {"mnist5k": "MNIST-5k", "digits": "digits"}
_MODELS = {"small_cnn": "small CNN", "resnet8": "ResNet-8"}
OURS = ("recipe", "recipe_top_k")
"""Rows of the recommended recipe; the other methods are baselines to it."""


@dataclass(frozen=True)
class Found:
    """A planned cell, and a view of its results; None where there are none."""

    cell: Cell
    view: View | None

    @property
    def shifted(self) -> bool:
        """Whether the forget set was shifted by SPD-GAN."""
        return self.cell.config.spdgan is not None

    @property
    def sensitivity(self) -> bool:
        """Whether it is a grid of settings of one method."""
        return self.cell.name.endswith(SENSITIVITY)

    @property
    def setting(self) -> str:
        """Data set and model, in words."""
        config = self.cell.config
        names = (_DATASETS.get(config.dataset, config.dataset), _MODELS.get(config.model))
        return f"{names[0]}, {names[1] or config.model}"

    @property
    def title(self) -> str:
        """Data set, model and scenario, in words."""
        return f"{self.setting}, {self._scenario()}"

    @property
    def name(self) -> str:
        """Title, and whether the forget set was shifted or the cell is a grid of settings."""
        kind = "shifted" if self.shifted else "plain"
        return f"{self.title} ({'sensitivity' if self.sensitivity else kind})"

    def _scenario(self) -> str:
        scenario = self.cell.config.scenario
        if scenario.kind == "class":
            return f"class {scenario.target_class}"
        assert scenario.fraction is not None  # for all but `class`
        return f"{scenario.kind} {100 * scenario.fraction:g} %"

    @property
    def state(self) -> str:
        """How much of the cell is done, and whether its settings are still these."""
        if self.view is None:
            return "not run"
        state = "complete" if self.complete else "partial"
        same = self.view.results["config_digest"] == self.cell.config.digest()
        note = "" if same else "; settings have changed since"
        return f"{state}, {self.seeds_done}{note}"

    @property
    def _done(self) -> int:
        seeds = [] if self.view is None else self.view.seeds
        return sum(seed in seeds for seed in self.cell.config.seeds)

    @property
    def complete(self) -> bool:
        """Whether every planned seed is run."""
        return self._done == len(self.cell.config.seeds)

    @property
    def seeds_done(self) -> str:
        """How many of the planned seeds are run, in words."""
        return f"{self._done} of {len(self.cell.config.seeds)} seeds"

    @property
    def partly(self) -> str:
        """Title, and how many seeds are run where not all are."""
        return self.title if self.complete else f"{self.title} ({self.seeds_done})"

    def compared(self) -> list[str]:
        """Return the planned rows that are neither the original nor a retrained model."""
        known = ("original", "retrain", "retrain_again", PARTLY)
        return [n for n, method in self.cell.config.methods.items() if method.kind not in known]

    def baselines(self) -> list[str]:
        """Return the methods to compare the recipe with; none without results."""
        return [] if self.view is None else [m for m in self.view.unlearned if m not in OURS]


def load(cells: Iterable[Cell], out: Path) -> list[Found]:
    """Read the results of the planned cells.

    Raises:
        ResultsError: a file there is not of the schema.
    """
    found = []
    for cell in cells:
        path = out / f"{cell.name}.json"
        found.append(Found(cell, View(read_results(path)) if path.exists() else None))
    return found


def ran(found: Iterable[Found]) -> list[tuple[Found, View]]:
    """Return those with results of at least one seed."""
    return [(one, one.view) for one in found if one.view is not None and one.view.seeds]


def complete(rows: Iterable[tuple[Found, View]]) -> list[tuple[Found, View]]:
    """Return those with all planned seeds: only these are counted in sentences."""
    return [(one, view) for one, view in rows if one.complete]


def partial_words(rows: Iterable[tuple[Found, View]]) -> list[str]:
    """Return the sentence that names the cells that lack seeds; nothing without such."""
    names = [f"{one.name} ({one.seeds_done})" for one, _ in rows if not one.complete]
    return [f"Partial, not counted: {'; '.join(names)}."] if names else []
