"""The study's document: its numbers are those of the results, its sentences follow them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from benchmarks.study import checks, curve, document, findings  # noqa: E402
from benchmarks.study.cells import Cell, cells  # noqa: E402
from benchmarks.study.document import write  # noqa: E402
from benchmarks.study.load import Found, load  # noqa: E402
from benchmarks.study.sensitivity import grid, selections  # noqa: E402
from benchmarks.study.tables import PLAIN, SHIFTED, SHIFTED_MORE  # noqa: E402
from fastunlearn.evaluation.config import parse_config  # noqa: E402
from fastunlearn.evaluation.methods import METHODS  # noqa: E402
from fastunlearn.evaluation.results import write_results  # noqa: E402
from fastunlearn.report.definitions import metric_for  # noqa: E402
from fastunlearn.report.view import View  # noqa: E402

from .synthetic import make_results  # noqa: E402

MAIN, RESNET = "mnist5k-small_cnn-random-10-shifted", "mnist5k-resnet8-random-10-shifted"
PLAIN_CELL = "mnist5k-small_cnn-random-10-plain"
GRID = "mnist5k-small_cnn-sensitivity"


@pytest.fixture(scope="module")
def planned() -> Iterator[dict[str, Cell]]:
    """Return the study's cells by name, and a small grid of settings."""
    with mock.patch.dict(METHODS):
        found = {cell.name: cell for cell in cells() if not cell.name.endswith("sensitivity")}
        raw = found[MAIN].config.to_dict()
        raw["methods"] = {
            f"{kind}_{k}_{scale}": {"kind": kind, "k": k, "rel_std": scale}
            for kind in ("top_k", "random_k")
            for k in (0.1, 0.2)
            for scale in (1.0, 2.0)
        }
        yield {**found, GRID: Cell(GRID, parse_config(raw))}


def found_in(cell: Cell, levels: Any = None, **options: Any) -> list[Found]:
    """Return a cell with invented results."""
    return [Found(cell, View(make_results(cell, levels, **options)))]


@pytest.fixture(scope="module")
def written(
    planned: dict[str, Cell], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, dict[str, Any]]:
    """Return the page of four cells, its folder, and the results by cell."""
    folder = tmp_path_factory.mktemp("study")
    chosen = {
        MAIN: make_results(planned[MAIN]),
        RESNET: make_results(planned[RESNET], seeds=2),
        PLAIN_CELL: make_results(planned[PLAIN_CELL]),
        GRID: make_results(planned[GRID], {"top_k_0.2_2.0": {"degree": 1.0}}, seeds=2),
    }
    (folder / "out").mkdir()
    for name, results in chosen.items():
        write_results(results, folder / "out" / f"{name}.json")
    (folder / "docs/images").mkdir(parents=True)
    (folder / "docs/images/study-old.png").write_bytes(b"")
    (folder / "docs/images/tradeoff.png").write_bytes(b"")
    page = write(planned.values(), folder / "out", folder / "docs")
    return page.read_text(), folder, chosen


def section(text: str, title: str) -> str:
    """Return what follows a heading, up to the next of its level or above."""
    level = title.split(" ")[0]
    lines = text.splitlines()
    start = lines.index(title) + 1
    end = next(
        (i for i in range(start, len(lines)) if re.match(rf"#{{2,{len(level)}}} ", lines[i])),
        len(lines),
    )
    return "\n".join(lines[start:end])


@pytest.mark.parametrize(
    ("name", "title", "keys"),
    [
        (MAIN, "### Shifted: MNIST-5k, small CNN, random 10 %", SHIFTED),
        (MAIN, "### Shifted: MNIST-5k, small CNN, random 10 %", SHIFTED_MORE),
        (RESNET, "### Shifted: MNIST-5k, ResNet-8, random 10 %", SHIFTED),
        (PLAIN_CELL, "### Plain: MNIST-5k, small CNN, random 10 %", PLAIN),
    ],
)
def test_every_number_is_that_of_the_summary(
    written: tuple[str, Path, dict[str, Any]], name: str, title: str, keys: tuple[str, ...]
) -> None:
    text, _, chosen = written
    body = section(text, title)
    for method, entry in chosen[name]["runs"][0]["methods"].items():
        cells_ = []
        for key in keys:
            row, metric = chosen[name]["summary"][method][key], metric_for(key)
            ends = [metric.number(metric.clip(row[end])) for end in ("ci_low", "ci_high")]
            cells_.append(f"{metric.number(row['mean'])} [{ends[0]}, {ends[1]}]")
        assert f"| {entry['label']} | {' | '.join(cells_)} |" in body


def test_the_bar_is_that_of_each_seed(written: tuple[str, Path, dict[str, Any]]) -> None:
    text, _, chosen = written
    body = section(text, "### Bar: MNIST-5k, small CNN, random 10 %")
    for run in chosen[MAIN]["runs"]:
        own, aim = (run["methods"][m]["metrics"] for m in ("recipe", "retrain"))
        gap = 100 * (own["test_accuracy"] - aim["test_accuracy"])
        assert (
            f"| {run['seed']} | {own['unlearning_degree_normalised']:.2f}: yes | {gap:+.1f} "
            f"points: yes | 0.995: yes | 0.15: yes | yes |"
        ) in body
    assert "Everything met on 5 of 5 seeds; 0 of 20 criteria missed." in body
    assert "Everything met on 0 of 5 seeds; 5 of 20 criteria missed." in body


def test_cells_without_results_are_named(
    written: tuple[str, Path, dict[str, Any]], planned: dict[str, Cell]
) -> None:
    text, _, chosen = written
    state = section(text, "## What was run")
    for name in planned:
        (row,) = (line for line in state.splitlines() if line.startswith(f"| `{name}` |"))
        assert ("| not run |" in row) == (name not in chosen)
    assert f"| `{RESNET}` | partial, 2 of 5 seeds | 400 | 3600 |" in state
    assert "State: not run." in section(text, "### Plain: digits, small CNN, class 3")
    assert section(text, "### Bar: digits, small CNN, random 10 %").strip() == "Not run."
    assert "| digits, small CNN, class 3 | not run |" in text
    assert text.splitlines()[4].startswith(f"2 of {len(planned)} cells are complete.")


def test_a_smaller_grid_is_named(written: tuple[str, Path, dict[str, Any]]) -> None:
    text, _, _ = written
    resnet = section(text, "### Shifted: MNIST-5k, ResNet-8, random 10 %")
    assert "2 of 5 seeds. Smaller grid: 8 rows, elsewhere up to 14." in resnet
    assert "Smaller grid" not in section(text, "### Shifted: MNIST-5k, small CNN, random 10 %")


def test_the_grid_tells_at_which_k_the_selections_differ() -> None:
    with mock.patch.dict(METHODS):
        (cell,) = (cell for cell in cells() if cell.name.endswith("sensitivity"))
        view = View(make_results(cell))
        near = {s.method: {"degree": 1.0 if s.k > 0.3 or s.kind == "top_k" else 0.1}
                for s in grid(view)}  # fmt: skip
        lines = selections(Found(cell, View(make_results(cell, near))))
    assert len(lines) == len({s.k for s in grid(view)})
    assert all("Top-K nearer at 3, Random-k at 0, not told apart at 0 of 3" in x for x in lines[:2])
    assert all("Top-K nearer at 0, Random-k at 0, not told apart at 3 of 3" in x for x in lines[2:])


def test_the_planned_grid_is_understood() -> None:
    with mock.patch.dict(METHODS):
        (cell,) = (cell for cell in cells() if cell.name.endswith("sensitivity"))
        settings = grid(View(make_results(cell, seeds=1)))
    rows = {name for name in cell.config.methods if name.startswith(("top_k", "random_k"))}
    assert {setting.method for setting in settings} == rows and len(rows) > 8
    assert all(cell.config.methods[s.method].options["k"] == s.k for s in settings)


def test_further_sections_are_named_when_not_run(
    written: tuple[str, Path, dict[str, Any]],
) -> None:
    text, _, _ = written
    assert section(text, "## Gain against the size of the shift").strip() == "Not run."
    assert section(text, "## Further checks").strip() == "Not run."


def test_pictures_are_those_of_the_page(written: tuple[str, Path, dict[str, Any]]) -> None:
    text, folder, _ = written
    linked = set(re.findall(r"\(images/(.*?)\)", text))
    drawn = {path.name for path in (folder / "docs/images").iterdir()}
    assert linked == drawn - {"tradeoff.png"}
    assert len(linked) == 3
    assert all((folder / "docs/images" / name).stat().st_size > 10_000 for name in linked)


def test_the_grid_names_what_meets_the_bar(written: tuple[str, Path, dict[str, Any]]) -> None:
    text, _, _ = written
    body = section(text, "## Sensitivity to K and to the noise scale")
    assert "Partial (2 of 5 seeds): The bar is met on every seed by: Top-K K = 20 %" in body


def test_the_same_results_give_the_same_page(
    written: tuple[str, Path, dict[str, Any]], planned: dict[str, Cell], tmp_path: Path
) -> None:
    text, folder, _ = written
    with mock.patch.multiple(document, draw_pareto=lambda *_: None, draw_heat_map=lambda *_: None):
        again = write(planned.values(), folder / "out", tmp_path)
    assert again.read_text() == text


def test_changed_settings_are_named(planned: dict[str, Cell], tmp_path: Path) -> None:
    results = make_results(planned[MAIN])
    write_results({**results, "config_digest": "other"}, tmp_path / f"{MAIN}.json")
    (one,) = load([planned[MAIN]], tmp_path)
    assert one.state == "complete, 5 of 5 seeds; settings have changed since"


def test_the_sentence_on_the_bar_follows_the_recipe(planned: dict[str, Cell]) -> None:
    cell = planned[MAIN]
    met = findings.bar(found_in(cell))
    assert met[0] == "The recipe meets the whole bar on every seed in 1 of 1 complete cells."
    assert met[1].endswith("met on every seed by Recommended recipe.")
    missed = findings.bar(found_in(cell, {"recipe": {"degree": 0.5}}))
    assert missed[0] == "The recipe meets the whole bar on every seed in 0 of 1 complete cells."
    assert "met on every seed by no method" in missed[1]
    assert "The recipe misses: degree* in [0.8, 1.2] on 5 seeds" in missed[1]
    assert findings.bar([Found(cell, None)]) == ["No results yet."]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {},
            "every difference that stands after Holm over its figures and cells Random-k is better",
        ),
        (
            {"recipe": {"degree": 0.6, "js": 0.2, "gap": 0.1}, "recipe_top_k": {"degree": 1.0}},
            "every difference that stands after Holm over its figures and cells Top-K is better",
        ),
        (
            {"recipe": {"degree": 0.7, "js": 0.09, "gap": 0.06}},
            "no difference stands",
        ),
        ({"recipe": {"js": 0.3}}, "in both directions"),
    ],
)
def test_the_sentence_on_the_selection_follows_the_data(
    planned: dict[str, Cell], change: Any, words: str
) -> None:
    first, second = findings.selection_verdicts(found_in(planned[MAIN], change))
    assert first.startswith("Recipe, Top-K against Recommended recipe: ") and words in first
    assert second.endswith("no difference stands after Holm over its figures and cells.")


def test_the_sentence_on_outputs_follows_the_data(planned: dict[str, Cell]) -> None:
    lower = findings.outputs(found_in(planned[MAIN]))
    assert lower[0].endswith("(after Holm over all methods and cells) in 1 of 1 complete cells.")
    assert "Recommended recipe: lower in 1, higher in 0, not told apart in 0 of 1 cells." in lower
    level = {name: {"js": 0.5} for name in planned[MAIN].config.methods}
    level["original"] = {"js": 0.1}
    higher = findings.outputs(found_in(planned[MAIN], level))
    assert higher[0].endswith("in 0 of 1 complete cells.")
    assert higher[1] == "For no method in: MNIST-5k, small CNN, random 10 % (shifted)."
    assert "Recommended recipe: lower in 0, higher in 1, not told apart in 0 of 1 cells." in higher


def test_the_sentence_on_the_instrument_follows_the_data(planned: dict[str, Cell]) -> None:
    cell = planned[MAIN]
    (works,) = findings.instrument(found_in(cell))
    assert "in 1 of 1 complete shifted cells: MNIST-5k, small CNN, random 10 %." in works
    weak = findings.instrument(found_in(cell, plain_spread=0.5))
    assert "in 0 of 1 complete shifted cells." in weak[0]
    assert weak[1].endswith("the gain is below 10 on 5 of 5 seeds.")
    blind = findings.instrument(found_in(cell, plain_spread=0.0))
    assert "the gain is undefined on 5 of 5 seeds" in blind[1]
    failed = findings.instrument(found_in(cell, {"partly_retrained_0.1": {"degree": 0.05}}))
    assert failed[1].startswith("The instrument failed in MNIST-5k, small CNN, random 10 %: ")


def test_a_second_retraining_is_the_measure_of_nearness(planned: dict[str, Cell]) -> None:
    none = findings.honest(found_in(planned[MAIN]))
    assert none == ["There is such a method in 0 of 1 complete cells."]
    near = findings.honest(found_in(planned[MAIN], {"retrain_again": {"gap": 0.04}}))
    assert near[0].startswith("There is such a method in 1 of 1 complete cells. In brackets ")
    lead = re.escape("MNIST-5k, small CNN, random 10 % (shifted): Recommended recipe (")
    assert len(near) == 2 and re.fullmatch(lead + r"0\.\d\d points\)\.", near[1])


def test_what_no_method_achieves_is_named(planned: dict[str, Cell]) -> None:
    assert findings.limits(found_in(planned[MAIN])) == [
        "Each criterion of the bar is met by some method, in every complete cell."
    ]
    level = {name: {"degree": 0.3} for name in planned[MAIN].config.methods}
    level["retrain"] = {"degree": 1.0}
    assert findings.limits(found_in(planned[MAIN], level)) == [
        "MNIST-5k, small CNN, random 10 %: no method has degree* in [0.8, 1.2] on every seed."
    ]


def test_the_curve_names_the_smallest_useful_shift(
    planned: dict[str, Cell], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    base = {"plain_spread": 0.05, "linf": 0.1, "psnr": 20.0, "stopped": "held"}
    rows = [
        {"seed": seed, "epsilon": epsilon, "spread": spread, "gain": spread / 0.05, **base}
        for seed in (0, 1)
        for epsilon, spread in ((0.1, 0.25), (0.2, 0.5 + 0.1 * seed), (0.3, 0.75))
    ]
    results = {"schema": curve.SCHEMA, "rows": rows}
    (out / "curve.json").write_text(json.dumps(results))
    body = section(
        write([planned[PLAIN_CELL]], out, tmp_path / "docs").read_text(),
        "## Gain against the size of the shift",
    )
    assert "The smallest useful shift is epsilon = 0.2:" in body
    assert "| 0.2 | 2 | 0.10 | 20.0 | 55.0 | 5.0 | 10.0, 12.0 |" in body
    (out / "curve.json").write_text(json.dumps({**results, "schema": "other/1"}))
    with pytest.raises(ValueError, match=f"schema of .* must be {curve.SCHEMA!r}"):
        write([planned[PLAIN_CELL]], out, tmp_path / "docs")


def test_the_checks_are_shown(planned: dict[str, Cell], tmp_path: Path) -> None:
    auc = {"value": 0.61, "low": 0.55, "high": 0.67, "n": 300}
    rates = [
        {"fpr": 0.001, "tpr": None, "low": None, "high": None},
        {"fpr": 0.01, "tpr": 0.05, "low": 0.01, "high": 0.1},
    ]
    row = {
        "cell": "digits",
        "method": "recipe",
        "label": "Recipe",
        "ulira": {
            pool: {"auc": auc, "rates": rates, "strength": "16 models attacked"}
            for pool in ("forget", "retain")
        },
        "challenge": {"score": 0.123, "quality": None},
        "relearning": {
            "steps": [3, 200, 200],
            "reached": [True, True, False],
            "censored": 1,
            "max_steps": 200,
            "median": 200.0,
        },
        "similarity": {"conv1": {"mean": 0.9, "low": None, "high": None}},
    }
    results = {"schema": checks.SCHEMA, "rows": [row]}
    (tmp_path / "checks.json").write_text(json.dumps(results))
    text = write([planned[PLAIN_CELL]], tmp_path, tmp_path / "docs").read_text()
    body = section(text, "## Further checks")
    interval = "0.610 [0.550, 0.670]"
    assert (
        f"| Recipe | {interval} | `*` | 0.050 [0.010, 0.100] | {interval} | 0.123 | undefined |"
    ) in body
    assert "| Recipe | 200 | 3, 200, >200 | 1 of 3 |" in body
    assert "CKA to the retrained model on the forget set" in body
    assert "| Recipe | 0.900 |" in body and "16 models attacked." in body
