"""The sections on the trade-off curve and on the further checks, from their own results files."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.study import checks, curve
from benchmarks.study.curve import LEAST_GAIN, smallest_useful_epsilon
from benchmarks.study.plots import draw_curve
from benchmarks.study.tables import folded, table

CURVE, CHECKS = "curve.json", "checks.json"
CURVE_PICTURE = "study-curve.png"
_SCHEMAS = {CURVE: curve.SCHEMA, CHECKS: checks.SCHEMA}
_NOT_RUN = ["Not run.", ""]


def read(out: Path, name: str) -> dict[str, Any] | None:
    """Read a results file of this section; None where there is none.

    Raises:
        ValueError: its schema is another one.
    """
    path = out / name
    if not path.exists():
        return None
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if results.get("schema") != _SCHEMAS[name]:
        raise ValueError(
            f"study: schema of {path} must be {_SCHEMAS[name]!r}, got {results.get('schema')!r}"
        )
    return results


def curve_section(out: Path, images: Path) -> list[str]:
    """Return the section on the gain against the size of the shift, and draw it."""
    results = read(out, CURVE)
    rows = results["rows"] if results else []
    if not rows:
        return _NOT_RUN
    draw_curve(rows, LEAST_GAIN, images / CURVE_PICTURE)
    useful = smallest_useful_epsilon(rows)
    verdict = (
        f"No shift that was tried has a gain of at least {LEAST_GAIN:g} on every seed."
        if useful is None
        else f"The smallest useful shift is epsilon = {useful:g}: the smallest that was tried with "
        f"a gain of at least {LEAST_GAIN:g} on every seed."
    )
    seeds = sorted({row["seed"] for row in rows})
    lines = [
        f"MNIST-5k, small CNN, a random 10 %. Seeds {', '.join(map(str, seeds))}. Means over "
        "seeds; gains seed by seed, from least to greatest.",
        "",
        f"**{verdict}**",
        "",
        f"![Gain against the size of the shift](images/{CURVE_PICTURE})",
        "",
    ]
    header = ("epsilon", "seeds", "L-inf", "PSNR, dB", "spread on G(D_u), points",
              "spread on D_u, points", "gain")  # fmt: skip
    epsilons = sorted({row["epsilon"] for row in rows})
    return lines + table(header, [_curve_row(e, rows) for e in epsilons])


def _curve_row(epsilon: float, rows: Iterable[Mapping[str, Any]]) -> list[str]:
    own = [row for row in rows if row["epsilon"] == epsilon]

    def mean(key: str, form: str, scale: float = 1.0) -> str:
        values = [scale * row[key] for row in own if row[key] is not None]
        return form.format(statistics.fmean(values)) if values else "undefined"

    gains = [row["gain"] for row in own]
    known = sorted(gain for gain in gains if gain is not None)
    shown = ", ".join([f"{gain:.1f}" for gain in known] + ["undefined"] * gains.count(None))
    return [
        f"{epsilon:g}",
        str(len(own)),
        mean("linf", "{:.2f}"),
        mean("psnr", "{:.1f}"),
        mean("spread", "{:.1f}", 100.0),
        mean("plain_spread", "{:.1f}", 100.0),
        shown,
    ]


def checks_section(out: Path) -> list[str]:
    """Return the section on the per-example attack, relearning and representations."""
    results = read(out, CHECKS)
    rows = results["rows"] if results else []
    if not rows:
        return _NOT_RUN
    lines = [
        "Read every figure between `Original`, where nothing was unlearned, and `Retrained again`, "
        "where there is nothing left to find.",
        "",
    ]
    for cell in dict.fromkeys(row["cell"] for row in rows):
        own = [row for row in rows if row["cell"] == cell]
        lines += [f"### `{cell}`", "", *_attack_table(own), *_model_table(own)]
        lines += folded("Similarity of the layers", _layer_table(own))
    return lines


def _attack_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    strength = rows[0]["ulira"]["forget"]["strength"]
    lines = [
        "Per-example attack (U-LiRA) on examples to forget: area under the ROC curve and "
        "true-positive rates with 95 % intervals, `*` where the false-positive rate is finer than "
        "the examples resolve; the AUC on kept examples; the epsilon score of the NeurIPS 2023 "
        f"challenge with its forgetting quality. Strength: {strength}. The intervals take the "
        "answers of all shadow models as independent; they share examples, so in truth the "
        "intervals are wider.",
        "",
    ]
    header = ["method", "AUC, forget"]
    header += [f"TPR at {100 * r['fpr']:g} % FPR" for r in rows[0]["ulira"]["forget"]["rates"]]
    header += ["AUC, retain", "epsilon score", "forgetting quality"]
    body = []
    for row in rows:
        forget, retain = row["ulira"]["forget"], row["ulira"]["retain"]
        cells = [row["label"], _between(forget["auc"], "value", "{:.3f}")]
        cells += [_between(rate, "tpr", "{:.3f}") for rate in forget["rates"]]
        cells.append(_between(retain["auc"], "value", "{:.3f}"))
        cells += [_number(row["challenge"][key], "{:.3f}") for key in ("score", "quality")]
        body.append(cells)
    return lines + table(header, body)


def _model_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    most = rows[0]["relearning"]["max_steps"]
    lines = [
        "Steps until the forget set is relearned, seed by seed; `>` where it was not within "
        f"{most} steps.",
        "",
    ]
    body = []
    for row in rows:
        own = row["relearning"]
        steps = [
            str(n) if reached else f">{n}"
            for n, reached in zip(own["steps"], own["reached"], strict=True)
        ]
        median = f"> {most}" if own["median"] is None else f"{own['median']:g}"
        body.append([row["label"], median, ", ".join(steps), f"{own['censored']} of {len(steps)}"])
    return lines + table(["method", "median", "seed by seed", "not relearned"], body)


def _layer_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    layers = list(rows[0]["similarity"])
    lines = [
        "Debiased linear CKA to the retrained model on the forget set, mean [95 %] over seeds; 1 "
        "is the same representation up to rotation and scale.",
        "",
    ]
    body = [
        [row["label"], *(_between(row["similarity"][name], "mean", "{:.3f}") for name in layers)]
        for row in rows
    ]
    return lines + table(["method", *(f"`{name}`" for name in layers)], body)


def _number(value: float | None, form: str) -> str:
    return "undefined" if value is None or not math.isfinite(value) else form.format(value)


def _between(entry: Mapping[str, Any], key: str, form: str) -> str:
    if entry[key] is None:
        return "`*`" if key == "tpr" else "undefined"
    ends = [entry["low"], entry["high"]]
    if None in ends:
        return _number(entry[key], form)
    return f"{_number(entry[key], form)} [{', '.join(_number(end, form) for end in ends)}]"
