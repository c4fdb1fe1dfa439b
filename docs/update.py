"""Fill the marked blocks of README.md and docs/ from committed results, and redraw the picture.

    python docs/update.py [--check]

A block lies between `<!-- name -->` and `<!-- /name -->`. `--check` writes nothing and fails where
a block differs from its results.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # `benchmarks` and `examples` are not installed

from benchmarks import large  # noqa: E402
from examples import tables  # noqa: E402

RESULTS = ROOT / "docs/results/mnist-5-seeds.json"
SWEEP = ROOT / "docs/results/sweep.json"
STUDY = ROOT / "docs/results/study/mnist5k-small_cnn-random-10-shifted.json"
SEARCHES = (
    ROOT / "docs/results/recipe-search.json",
    ROOT / "docs/results/recipe-search-resnet8.json",
)
BASELINES = ROOT / "docs/results/study-baselines.json"
BASELINES_RESNET8 = ROOT / "docs/results/study-baselines-resnet8.json"
BENCHMARKS = ROOT / "benchmarks/results"
NOT_MEASURED = "Not measured yet."
STUDY_COLUMNS = (
    ("unlearning_degree_normalised", 1, 2),
    ("test_accuracy", 100, 1),
    ("memory_retention_rate", 1, 3),
    ("optimizer_step_ratio", 1, 2),
    ("js_to_retrained", 1, 2),
)
NO_GPU = "Not yet run on a GPU."
UNFINISHED = (
    "Not all seeds of this table are run yet; [docs/study.md](docs/study.md) has those that are."
)
PAGES = (
    "README.md",
    "docs/method.md",
    "docs/performance.md",
    "docs/gpu.md",
    "docs/checkpoints.md",
    "docs/large-models.md",
    "docs/trainers.md",
)


def load(path: Path) -> dict[str, Any]:
    """Read one result file."""
    return json.loads(path.read_text())


def interval(entry: dict[str, Any], scale: float, digits: int) -> str:
    """Mean and 95 % interval."""
    low, high = entry["ci_low"] * scale, entry["ci_high"] * scale
    return f"{entry['mean'] * scale:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def results_table() -> str:
    """The main comparison."""
    results = load(RESULTS)
    labels = {name: m["label"] for name, m in results["runs"][0]["methods"].items()}
    sizes, seeds = results["runs"][0]["sizes"], len(results["runs"])
    lines = [
        f"MNIST-5k, a random 10 % to forget ({sizes['forget']} of"
        f" {sizes['forget'] + sizes['retain']} examples), small CNN, {seeds} seeds, mean [95 %"
        " interval over seeds; each seed splits the same 5,000 images anew]:",
        "",
        "| method | forget accuracy, % | retain accuracy, % | test accuracy, %"
        " | gap to retrained, points | time / retraining |",
        "|---|---|---|---|---|---|",
    ]
    for name, label in labels.items():
        row = results["summary"][name]
        cells = [interval(row[f"{s}_accuracy"], 100, 1) for s in ("forget", "retain", "test")]
        cells.append(interval(row["average_gap_without_attack"], 100, 2))
        cells.append(interval(row["run_time_ratio"], 1, 2))
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def study_table() -> str:
    """What an audit finds of every method, on the seeds where its instrument worked."""
    results = load(STUDY) if STUDY.exists() else {"complete": False}
    if not results["complete"]:
        return UNFINISHED
    from benchmarks.study.instrument import failed_seeds
    from fastunlearn.report.view import View

    without = failed_seeds(View(results))
    runs = [run for run in results["runs"] if run["seed"] not in without]
    if not runs:
        return "The instrument failed on every seed; [docs/study.md](docs/study.md) says how."
    failed = [str(seed) for seed in without]
    spread = spans([100 * run["audit"]["spread"]["shifted"] for run in runs], 1)
    plain = spans([100 * run["audit"]["spread"]["plain"] for run in runs], 1)
    lines = [
        "MNIST-5k, a random 10 % to forget, shifted by SPD-GAN, small CNN, seeds "
        + ", ".join(str(run["seed"]) for run in runs)
        + f": mean (least to greatest). Original and retrained model lie {spread} points apart on"
        f" the shifted data, {plain} on the data as they were (`make study`).",
        "",
        "| model | unlearning degree, normalised | test accuracy, % | memory retention rate"
        " | steps / retraining's | divergence to retrained, nats |",
        "|---|---|---|---|---|---|",
    ]
    if failed:
        lines[0] += (
            f" Left out: seed {', '.join(failed)}, where the instrument failed (the anchors out of"
            " order or a gain below 10), so that a degree says nothing."
        )
    for name, method in runs[0]["methods"].items():
        rows = [run["methods"][name]["metrics"] for run in runs]
        cells = [
            spans([scale * row[metric] for row in rows], digits)
            for metric, scale, digits in STUDY_COLUMNS
        ]
        lines.append(f"| {method['label']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def spans(values: list[float], digits: int) -> str:
    """Mean, least and greatest value."""
    mean = sum(values) / len(values)
    shown = [f"{value:.{digits}f}" for value in (mean, min(values), max(values))]
    return shown[0] if shown[1] == shown[2] else f"{shown[0]} ({shown[1]} to {shown[2]})"


def search_table(*paths: Path) -> str:
    """How each setting of some audits does, over their seeds."""
    found = [load(path) for path in paths if path.exists()]
    if not found:
        return NOT_MEASURED
    heads = "degree*, test accuracy less that of `retrain`, divergence"
    models = [f"{r['config']['model']}, {len(r['runs'])} seeds: {heads}" for r in found]
    lines = [f"| setting | {' | '.join(models)} |", "|---" * (len(found) + 1) + "|"]
    for name in found[0]["runs"][0]["methods"]:
        cells = [_search_cell(results["runs"], name) for results in found]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _search_cell(runs: list[dict[str, Any]], name: str) -> str:
    if name not in runs[0]["methods"]:
        return ""
    rows, aims = (
        [run["methods"][method]["metrics"] for run in runs] for method in (name, "retrain")
    )
    pairs = list(zip(rows, aims, strict=True))
    tests = [100 * (own["test_accuracy"] - aim["test_accuracy"]) for own, aim in pairs]
    degrees, divergences = (
        spans([row[metric] for row in rows], 2)
        for metric in ("unlearning_degree_normalised", "js_to_retrained")
    )
    return f"{degrees}; {spans(tests, 1)}; {divergences}"


def sweep_table() -> str:
    """Mean average gap and test accuracy of every setting of the search, best first."""
    results = load(SWEEP)
    summary = results["summary"]
    bound = summary["retrain"]["test_accuracy"]["mean"] - 0.01
    lines = [
        "| setting | average gap, points | test accuracy, % | within one point |",
        "|---|---|---|---|",
    ]
    ranked = sorted(summary, key=lambda name: summary[name]["average_gap"]["mean"])
    for name in ranked:
        gap, test = summary[name]["average_gap"]["mean"], summary[name]["test_accuracy"]["mean"]
        kept = "yes" if test >= bound else "no"
        lines.append(f"| {name} | {gap * 100:.2f} | {test * 100:.1f} | {kept} |")
    return "\n".join(lines)


def measured(pattern: str) -> list[dict[str, Any]]:
    """The benchmark results whose file names match, newest first."""
    found = [load(path) for path in sorted(BENCHMARKS.glob(pattern))]
    return sorted(found, key=lambda results: results["environment"]["date"], reverse=True)


def machine_line(facts: dict[str, Any]) -> str:
    """What a table was measured on, and the command that does it again."""
    slowdown = facts.get("slowdown")
    steadiness = f" a fixed loop at {slowdown:.2f} times its best time," if slowdown else ""
    return (
        f"{facts['cpu']}, {facts['threads']} threads, {facts['simd']}, torch {facts['torch']},"
        f"{steadiness} {facts['date']}, `{facts['command']}`:"
    )


def is_plain(row: dict[str, Any]) -> bool:
    """Whether a row of the full results is of the machine as it is: all threads, best level."""
    return "threads" not in row and "simd" not in row


def headline_table() -> str:
    """What the newest check at the best level says of speed and memory."""
    found = [r for r in measured("check-*.json") if r["environment"]["simd"] != "portable"]
    if not found:
        return NOT_MEASURED
    lines = [machine_line(found[0]["environment"]), "", "| case | figure | bar |", "|---|---|---|"]
    for row in found[0]["rows"]:
        if row["limit"] is None or row["row"].startswith(("adversarial", "pure-PyTorch", "1 ->")):
            continue
        faster = "faster, " if row["at_least"] else ""
        sign = "≥" if row["at_least"] else "≤"
        figure = f"{row['measured']:.3g}{row['unit']} {faster}{row['what']}"
        lines.append(f"| {row['row']} | {figure} | {sign} {row['limit']:.3g} |")
    return "\n".join(lines)


def bench_table(choose: Callable[[dict[str, Any]], bool]) -> str:
    """Rows of the newest full results."""
    from fastunlearn.bench.cases import OURS
    from fastunlearn.bench.results import times_floor
    from fastunlearn.bench.table import SHORT, ratio

    found = measured("cpu-*.json")
    rows = [row for row in found[0]["rows"] if choose(row)] if found else []
    if not rows:
        return NOT_MEASURED
    columns = ["case", "ms", "GB/s", "x floor", "extra MiB"]
    columns.append("times faster than")
    lines = [machine_line(found[0]["environment"]), "", f"| {' | '.join(columns)} |"]
    lines.append("|---" * len(columns) + "|")
    for row in rows:
        ours, floor, memory = row["ms"][OURS], times_floor(row), row["peak_extra_mib"].get(OURS)
        peers = [f"{SHORT[m]} {ratio(ms / ours)}" for m, ms in row["ms"].items() if m in SHORT]
        cells = [row["label"], f"{ours:.3g}"]
        cells.append("" if row["floor_bytes"] is None else f"{row['floor_bytes'] / ours / 1e6:.1f}")
        cells += [
            "" if floor is None else f"{floor:.2f}",
            "" if memory is None else f"{memory:.0f}",
        ]
        lines.append(f"| {' | '.join([*cells, ', '.join(peers)])} |")
    return "\n".join(lines)


def check_table() -> str:
    """The bars, and what each machine and SIMD level reaches, newest first."""
    found = measured("check-*.json")
    if not found:
        return NOT_MEASURED
    lines = [f"- **{i}**: {machine_line(r['environment'])[:-1]}" for i, r in enumerate(found, 1)]
    columns = ["case", "what", "bar", "beyond", *(f"measured, {i + 1}" for i in range(len(found)))]
    lines += ["", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    rows = {
        (row["row"], row["what"]): row for results in reversed(found) for row in results["rows"]
    }
    for place, row in rows.items():
        sign = "≥" if row["at_least"] else "≤"
        marks = ["" if row[m] is None else f"{sign} {row[m]:g}" for m in ("limit", "beyond")]
        values = []
        for results in found:
            own = next((r for r in results["rows"] if (r["row"], r["what"]) == place), None)
            values.append("" if own is None else _check_cell(own))
        lines.append(f"| {' | '.join([*place, *marks, *values])} |")
    return "\n".join(lines)


def gpu_table() -> str:
    """The bars for GPUs, and what the newest run on one reaches."""
    found = measured("gpu-*.json")
    if not found:
        return NO_GPU
    facts = found[0]["environment"]
    rates = ", ".join(f"{way} {rate:.0f} GB/s" for way, rate in facts["bandwidth_gb_s"].items())
    lines = [
        f"{facts['gpu']} ({rates}), CUDA {facts['cuda']}, torch {facts['torch']},"
        f" {facts['date']}, `{facts['command']}`:",
        "",
        "| case | what | bar | beyond | measured |",
        "|---|---|---|---|---|",
    ]
    for row in found[0]["bars"]:
        sign = "≥" if row["at_least"] else "≤"
        marks = ["" if row[m] is None else f"{sign} {row[m]:g}" for m in ("limit", "beyond")]
        lines.append(f"| {' | '.join([row['row'], row['what'], *marks, _check_cell(row)])} |")
    return "\n".join(lines)


def _check_cell(row: dict[str, Any]) -> str:
    value = "" if row["measured"] is None else f"{row['measured']:.3g}{row['unit']}"
    return value if row["verdict"] == "no bar" else f"{value} {row['verdict']}".strip()


BLOCKS: dict[str, Callable[[], str]] = {
    "results": results_table,
    "study": study_table,
    "sweep": sweep_table,
    "recipe-search": lambda: search_table(*SEARCHES),
    "baselines": lambda: search_table(BASELINES),
    "baselines-resnet8": lambda: search_table(BASELINES_RESNET8),
    "performance": headline_table,
    "check": check_table,
    "full": lambda: bench_table(is_plain),
    "gpu": gpu_table,
    "checkpoint": large.checkpoint,
    "sharded": large.sharded,
    "passes": large.passes,
    "rounding": large.rounding,
    "arithmetic": large.arithmetic,
    "authors": tables.authors,
    "newsgroups": tables.newsgroups,
    "fsdp": tables.sharded,
}


def filled(text: str) -> str:
    """The page with every block made anew."""
    for name, make in BLOCKS.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if pattern.search(text):
            body = make()
            text = pattern.sub(lambda match, body=body: f"{match[1]}{body}\n{match[2]}", text)
    return text


def main() -> int:
    """Update all pages and the picture, or check the pages."""
    stale = []
    for page in PAGES:
        path = ROOT / page
        before = path.read_text()
        after = filled(before)
        if after != before:
            stale.append(page)
            if "--check" not in sys.argv:
                path.write_text(after)
    if "--check" in sys.argv:
        for page in stale:
            print(f"{page} differs from its results: run python docs/update.py")
        return bool(stale)
    from fastunlearn.report import save_plot

    save_plot(load(RESULTS), "tradeoff", ROOT / "docs/images/tradeoff.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
