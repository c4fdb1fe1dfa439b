"""Writes docs/study.md and its pictures from the results files alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.study import findings, sensitivity, tables
from benchmarks.study.cells import Cell
from benchmarks.study.contrast import LEAST_SEEDS, LEVEL, selections
from benchmarks.study.further import checks_section, curve_section
from benchmarks.study.load import Found, load, ran
from benchmarks.study.plots import draw_heat_map, draw_pareto, not_dominated
from fastunlearn.evaluation.results import write_atomically
from fastunlearn.report.summary import footnotes
from fastunlearn.report.view import View

PAGE = "study.md"
BAR_SCENARIO = "random-10-shifted"
"""Cells of this scenario are held to the bar seed by seed, and pictured."""


def write(cells: Iterable[Cell], out: Path, docs: Path) -> Path:
    """Write the document and its pictures; pictures of earlier results go.

    Args:
        cells: the planned cells; those without a results file are named as not run.
        out: folder of the results files.
        docs: folder of the page; pictures go to `images` in it.

    Returns:
        The page's path.
    """
    images = docs / "images"
    images.mkdir(parents=True, exist_ok=True)
    for old in images.glob("study-*.png"):
        old.unlink()
    everything = load(cells, out)
    found = [one for one in everything if not one.sensitivity]
    lines = [
        "# Study: which unlearning works",
        "",
        "<!-- Written by `python -m benchmarks.study` from docs/results/study: not by hand. -->",
        "",
        *_progress(everything),
        *_how_to_read(found),
        *_what_works(found),
        *_bar(found),
        *_pareto(found, images),
        *_selections(found),
        *_sensitivity(everything, images),
        "## What the instrument is worth",
        "",
        *_instrument(found),
        "## Gain against the size of the shift",
        "",
        *curve_section(out, images),
        *_shifted(found),
        *_plain(found),
        "## Further checks",
        "",
        *checks_section(out),
        *_state(everything),
    ]
    page = docs / PAGE
    write_atomically(page, ("\n".join(lines).rstrip() + "\n").encode())
    return page


def _bullets(lines: Iterable[str]) -> list[str]:
    return [*(f"- {line}" for line in lines), ""]


def _progress(found: Sequence[Found]) -> list[str]:
    """Return how much of the study is there, with the cells that lack seeds."""
    short = [one for one in found if not one.state.startswith("complete")]
    text = f"{len(found) - len(short)} of {len(found)} cells are complete."
    if short:
        text += f" Others: {'; '.join(f'{one.name} ({one.state})' for one in short)}."
    return [text, ""]


def _how_to_read(found: Sequence[Found]) -> list[str]:
    seeds = sorted({seed for _, view in ran(found) for seed in view.seeds})
    return [
        "## How to read it",
        "",
        "Words: D_u is the data to forget, D_r the rest of the training data, G(D_u) the data to "
        "forget after a slight shift. w0 is the original model, w1 the unlearned one, w* one "
        "retrained on D_r. P is accuracy.",
        "",
        *_bullets(
            (
                "Shifted cells: a generator (SPD-GAN) is fitted on D_u against reference models of "
                "D_r; w0 is trained on D_r and G(D_u); each method unlearns G(D_u); three w* are "
                "trained on D_r with seeds of their own. [paper: the idea; ours: the design]",
                "Plain cells: the same without a shift.",
                "Degree = P(w0, G(D_u)) − P(w1, G(D_u)) [paper]. Degree* = degree over that of the "
                "mean P(w*, G(D_u)) of the three w* [ours]: 0 is untouched, 1 forgets as much as "
                "retraining, above 1 more. In shifted cells all figures on the forget set are on "
                "G(D_u). The bar compares test accuracy with the mean of the three w* too; every "
                "other figure that names w* takes the first, the row `Retrained`.",
                "Memory retention rate = P(w1, D_r) / P(w0, D_r) [name: paper; formula: ours]. "
                "Unlearning accuracy = 1 − P(w1, D_u). Average gap: the mean distance from w* in "
                "unlearning, retain and test accuracy and membership inference AUC. Step ratio: "
                "optimiser steps over those of retraining. All formulas: [method.md](method.md).",
                "The bar counts optimiser steps, not time: a step of one method can cost more than "
                "one of another, and passes that only score are not counted. The run-time ratio "
                "stands beside it in the tables.",
                f"Seeds: {', '.join(map(str, seeds)) or 'none yet'}. Each splits and trains anew; "
                "no setting was chosen on them ([method.md](method.md) says what became of earlier "
                "ones). Brackets are 95 % Student-t intervals over seeds, cut to what a figure can "
                "be.",
                "All seeds split the same 5,000 (MNIST-5k) or 1,797 (digits) examples anew. So "
                "the search for settings has seen images that are test images here, under other "
                "seeds, and the intervals treat splits that overlap as independent.",
                "A difference is paired: taken seed by seed, as the two methods share the seed's "
                "split and original model. Told apart means that its interval leaves out 0. The "
                "smallest detectable effect is the true difference that so many seeds would have "
                "shown with probability 0.8; of smaller ones a missing difference says nothing.",
                _chance_words(found),
                "`Retrained again` is a further honest retraining, none of the three: no method "
                "can be expected nearer to a w* than it is. `Retrained, x % kept` are the anchors "
                "between w0 and w*.",
            )
        ),
    ]


def _chance_words(found: Sequence[Found]) -> str:
    """Return how many differences are counted, and how the chance among them is held down."""
    pairs, outputs, again = findings.comparisons(found)
    total = pairs + outputs + again
    return (
        f"{total} paired differences are counted: {pairs} of Top-K and Random-k, {outputs} of a "
        f"method and the untouched model, {again} of a method and the second retraining. Where "
        f"there is nothing, about {LEVEL * total:.0f} of them would be told apart by chance. So "
        "those behind one verdict are also judged together, by Holm's procedure: of two rows over "
        "all figures and cells, of the untouched model over all methods and cells. The second "
        "retraining is compared without it: being near must not be made easier. Cells that lack "
        f"seeds are not counted; fewer than {LEAST_SEEDS} differences, or differences that are all "
        "equal, have no interval and tell nothing apart."
    )


def _what_works(found: Sequence[Found]) -> list[str]:
    parts = (
        ("The instrument.", findings.instrument(found)),
        ("The bar.", findings.bar(found)),
        ("Top-K or Random-k.", ["", *findings.selection_verdicts(found)]),
        ("Outputs.", findings.outputs(found)),
        (
            "Not told apart from a second retraining by the average gap without the attack, or "
            "nearer.",
            findings.honest(found),
        ),
        ("What no method achieves.", findings.limits(found)),
    )
    lines = ["## What works, what does not", "", "Made by rules from the figures below.", ""]
    for lead, sentences in parts:
        lines += [f"**{lead}** {sentences[0]}".rstrip(), ""]
        lines += _bullets(sentences[1:]) if sentences[1:] else []
    return lines


def _barred(found: Sequence[Found]) -> list[Found]:
    return [one for one in found if one.cell.name.endswith(BAR_SCENARIO)]


def _bar(found: Sequence[Found]) -> list[str]:
    lines = [
        "## The recipe's bar",
        "",
        "The closest baseline meets everything on the most seeds; among equals its shortfall is "
        "smallest: the sum of what is missed, in widths of each criterion's margin [ours].",
        "",
    ]
    for one in _barred(found):
        lines += [f"### Bar: {one.title}", ""]
        lines += ["Not run.", ""] if one.view is None else tables.bar_tables(one, one.view)
    return lines


def _pareto(found: Sequence[Found], images: Path) -> list[str]:
    lines = [
        "## Forgetting against accuracy",
        "",
        "Means with 95 % intervals over seeds. The shaded band and the dashed line are the bar's; "
        "a black edge marks a method that no other beats in both the mean distance of degree* "
        "from 1 over seeds and test accuracy.",
        "",
    ]
    for one in _barred(found):
        lines += [f"### Picture: {one.title}", ""]
        if one.view is None:
            lines += ["Not run.", ""]
            continue
        name = f"study-pareto-{one.cell.config.dataset}-{one.cell.config.model}.png"
        draw_pareto(one.view, images / name)
        best = ", ".join(one.view.label(m) for m in not_dominated(one.view)) or "none"
        lines += [
            f"![Degree* against test accuracy](images/{name})",
            "",
            f"Not beaten: {best}.",
            "",
        ]
    return lines


def _selections(found: Sequence[Found]) -> list[str]:
    rows = selections(found)
    lines = [
        "## Top-K against Random-k",
        "",
        "At the recipe's K = 70 % any two selections share at least four sevenths, so a difference "
        "there can only be small; the sensitivity below has lesser K.",
        "",
        *_bullets(findings.selection_verdicts(found)),
    ]
    if not rows:
        return lines
    lines += tables.selection_table(rows)
    return lines + tables.folded("All comparisons", tables.contrast_table(rows))


def _sensitivity(found: Sequence[Found], images: Path) -> list[str]:
    lines = ["## Sensitivity to K and to the noise scale", ""]
    cells = [one for one in found if one.sensitivity]
    if not cells:
        return [*lines, "Not run: no such cell is planned.", ""]
    for one in cells:
        lines += [f"### Grid: {one.title}", ""]
        if one.view is None:
            lines += ["Not run.", ""]
            continue
        name = f"study-{one.cell.name}.png"
        draw_heat_map(one.view, images / name)
        lines += [
            sensitivity.sentence(one.view),
            "",
            "Top-K against Random-k of the same K and scale, by the distance of degree* from 1, "
            "told apart after Holm over the grid:",
            "",
            *sensitivity.selections(one),
            "",
            f"![Heat maps over K and noise scale](images/{name})",
            "",
            "Means over seeds; a frame marks what meets the bar on every seed.",
            "",
            *tables.folded("Figures", tables.methods_table(one.view, tables.SHIFTED)),
        ]
    return lines


def _instrument(found: Sequence[Found]) -> list[str]:
    shifted = [one for one in found if one.shifted]
    rows = []
    for one in shifted:
        empty = ["not run", *[""] * (len(tables.INSTRUMENT_HEAD) - 2)]
        done = one.view is not None and one.view.seeds
        rows.append(tables.instrument_row(one, one.view) if done else [one.title, *empty])
    return [
        "Spread: P(w0) − P(w*). Gain: spread on G(D_u) over that on D_u of an original model that "
        "learned D_u itself [ours]. Shifts are in units of the pixel range.",
        "",
        *tables.table(tables.INSTRUMENT_HEAD, rows),
    ]


def _shifted(found: Sequence[Found]) -> list[str]:
    lines = ["## Shifted cells", ""]
    for one in (one for one in found if one.shifted):
        lines += [f"### Shifted: {one.title}", "", _state_line(one, found), ""]
        if one.view is None:
            continue
        lines += _bullets(findings.instrument([one])[1:])
        lines += tables.methods_table(one.view, tables.SHIFTED)
        more = [*tables.methods_table(one.view, tables.SHIFTED_MORE), *_undefined(one.view)]
        lines += tables.folded("More figures", more)
    return lines


def _plain(found: Sequence[Found]) -> list[str]:
    lines = ["## Plain cells", ""]
    for one in (one for one in found if not one.shifted):
        lines += [f"### Plain: {one.title}", "", _state_line(one, found), ""]
        if one.view is not None:
            body = [*tables.methods_table(one.view, tables.PLAIN), *_undefined(one.view)]
            lines += tables.folded("Figures", body)
    return lines


def _state_line(one: Found, found: Sequence[Found]) -> str:
    """Return how much is done, and whether the cell is a smaller grid than the others."""
    own, most = len(one.compared()), max(len(other.compared()) for other in found)
    smaller = f" Smaller grid: {own} rows, elsewhere up to {most}." if own < most else ""
    return f"State: {one.state}.{smaller}"


def _undefined(view: View) -> list[str]:
    notes = footnotes(view)
    return ["Undefined:", "", *_bullets(notes)] if notes else []


def _state(found: Sequence[Found]) -> list[str]:
    kinds = {str(dict(view.environment)) for _, view in ran(found)}
    seconds = sum(run["elapsed_seconds"] for _, view in ran(found) for run in view.runs)
    return [
        "## What was run",
        "",
        *tables.cells_table(found),
        f"Time of all seeds together: {seconds / 3600:.1f} hours of one process.",
        "",
        *_bullets(f"Environment: {kind.strip('{}')}." for kind in sorted(kinds)),
    ]
