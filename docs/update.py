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
RESULTS = ROOT / "docs/results/mnist-5-seeds.json"
SWEEP = ROOT / "docs/results/sweep.json"
FALLBACK = ROOT / "benchmarks/results/fallback-amd-epyc-2core.json"
PAGES = ("README.md", "docs/method.md", "docs/performance.md")


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


def fallback_table() -> str:
    """Times and peak memory of the fallback and its peers."""
    results = load(FALLBACK)
    facts = results["environment"]
    lines = [
        f"{facts['cpu']}, {facts['threads']} threads, torch {facts['torch']},"
        f" `{facts['command']}`:",
        "",
        "| case | K | method | ms | times ours | peak extra MiB |",
        "|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        ours = row["time_ms"]["fastunlearn"]
        case = f"{row['kind']}, {row['model']}, {row['pattern']} gradients"
        for name, value in row["time_ms"].items():
            peak = row.get("peak_extra_mib", {}).get(name)
            memory = "" if peak is None else f"{peak:.0f}"
            cells = [case, f"{row['k']:g}", name, f"{value:.2f}", f"{value / ours:.2f}", memory]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


BLOCKS: dict[str, Callable[[], str]] = {
    "results": results_table,
    "sweep": sweep_table,
    "fallback": fallback_table,
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
