"""Tables of what was measured and of what is to be expected on large models, for docs/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
NOT_MEASURED = "Not measured yet."

# What the arithmetic assumes of a GPU: memory, and bytes a second that a streaming kernel gets.
GPU_BYTES, GPU_BANDWIDTH = 80e9, 2.7e12
# Bytes that a call moves for each element in bf16: a read of the weights to rule overflow out, a
# read of the scores to select, and with K = 1 % the sectors of 32 bytes that hold selected weights
# (1 - 0.99^16 of all), read and written; and for each of two counts, as one read by a kernel, or by
# torch operations as it is now (22 passes over intermediate results of 1 to 8 bytes).
MOVED = 2 + 2 + 2 * 2 * (1 - 0.99**16)
COUNT_BY_KERNEL, COUNT_BY_TORCH = 2, 110
MODELS = {"7B": 7e9, "70B": 70e9, "405B": 405e9}
GPUS = (8, 64, 512)


def _load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def arithmetic() -> str:
    """What Top-K on shards is expected to take; nothing here is measured."""
    lines = [
        "| model | GPUs | elements on each | weights and gradients on each, GB | ms, counts by a"
        " kernel | ms, counts by torch operations (now) | KiB that each sends |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, numel in MODELS.items():
        bits = int(numel).bit_length()
        ties = 3 * 8 * 2 ** -(-bits // 3) / 1024
        for gpus in GPUS:
            each = numel / gpus
            held = 4 * each
            fits = held < GPU_BYTES
            times = [
                f"{1e3 * each * (MOVED + 2 * count) / GPU_BANDWIDTH:.1f}"
                if fits
                else "does not fit"
                for count in (COUNT_BY_KERNEL, COUNT_BY_TORCH)
            ]
            cells = [name, str(gpus), f"{each:.2g}", f"{held / 1e9:.1f}", *times]
            lines.append(f"| {' | '.join(cells)} | 768, and {ties:.0f} to split ties |")
    return "\n".join(lines)


def checkpoint() -> str:
    """Copying and perturbing a large checkpoint."""
    paths = sorted(RESULTS.glob("large-checkpoint-*.json"))
    if not paths:
        return NOT_MEASURED
    lines = [
        "| checkpoint | what | seconds | speed / copy's | peak memory, MiB |",
        "|---|---|---|---|---|",
    ]
    for path in paths:
        found = _load(path)
        size = f"{found['gib']:g} GiB, {found['dtype']}"
        for row in found["rounds"]:
            seconds = row["copy"]["seconds"]
            lines.append(f"| {size} | copy, brought to the disk | {seconds:.0f} | 1 | |")
            for name, title in (("top_k", "Top-K, K = 1 %"), ("random_k", "Random-k, K = 1 %")):
                own = row[name]
                ratio, peak = seconds / own["seconds"], own["peak_bytes"] / 2**20
                line = f"| {size} | {title} | {own['seconds']:.0f} | {ratio:.2f} | {peak:.0f} |"
                lines.append(line)
    version = _load(paths[0])["environment"]["torch"]
    how = (
        f"2 cores, torch {version}, source and scores not in the page cache, "
        "`python -m benchmarks.checkpoint FOLDER`. Peaks are of the whole process, interpreter and "
        "torch included. The scores have the size and dtype of the checkpoint, and heavy ties."
    )
    return "\n".join(lines) + f"\n\n{how}"


def sharded() -> str:
    """A call on shards, beside one process."""
    path = RESULTS / "sharded.json"
    if not path.exists():
        return NOT_MEASURED
    found = _load(path)
    lines = [
        "| processes | strategy | seconds | collectives | KiB that each sends | extra memory of"
        " each, MiB |",
        "|---|---|---|---|---|---|",
    ]
    for name, title in (("top_k", "Top-K, K = 1 %"), ("random_k", "Random-k, K = 1 %")):
        for world, rows in found["processes"].items():
            own = rows[name]
            cells = [
                "1, `fastunlearn.perturb_`" if world == "0" else world,
                title,
                f"{own['seconds']:.3f}",
                str(own.get("collectives", 0)),
                f"{own.get('sent_bytes', 0) / 1024:.1f}",
                f"{own['extra_bytes'] / 2**20:.1f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    floor = found["processes"]["0"]["read_floor_seconds"]
    facts = found["environment"]
    lines += [
        "",
        f"{found['numel']:,} parameters in fp32, cut evenly; one thread for each process, 2 cores,"
        f" gloo, torch {facts['torch']}; the best of 5 calls, `python -m benchmarks.sharded`. One"
        f" read of all scores by one thread (`torch.aminmax`) took {floor:.3f} s.",
    ]
    return "\n".join(lines)


def rounding() -> str:
    """What stochastic rounding keeps of small noise, and what it costs."""
    path = RESULTS / "rounding.json"
    if not path.exists():
        return NOT_MEASURED
    found = _load(path)
    lines = [
        "| std of the noise / half a unit in the last place | weights that change: nearest |"
        " stochastic | noise that arrives on average: nearest | stochastic |",
        "|---|---|---|---|---|",
    ]
    for row in found["kept"]:
        cells = [f"{row['ratio']:g}"]
        cells += [f"{100 * row[f'{name} changed']:.1f} %" for name in ("nearest", "stochastic")]
        cells += [f"{row[f'{name} slope']:.2f}" for name in ("nearest", "stochastic")]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| strategy | nearest, ms | stochastic, ms | ratio |", "|---|---|---|---|"]
    seconds = found["seconds"]
    for strategy, title in (("top_k", "Top-K"), ("random_k", "Random-k")):
        for k in ("1%", "50%"):
            own = [seconds[f"{strategy} {k} {name}"] for name in ("nearest", "stochastic")]
            cells = [f"{title}, K = {k[:-1]} %", *(f"{1000 * value:.1f}" for value in own)]
            lines.append(f"| {' | '.join(cells)} | {own[1] / own[0]:.2f} |")
    lines += [
        "",
        f"A million weights of 1.5 above; {found['numel']:,} weights and scores in bfloat16 below,"
        f" {found['threads']} threads, torch {found['environment']['torch']}; medians of"
        f" {found['rounds']} calls in turns, a read of the scores (`torch.aminmax`) took"
        f" {1000 * seconds['read']:.1f} ms; `python -m benchmarks.rounding`.",
    ]
    return "\n".join(lines)


def passes() -> str:
    """One and two backward passes."""
    path = RESULTS / "passes.json"
    if not path.exists():
        return NOT_MEASURED
    found = _load(path)
    lines = [
        "| K | passes | extra memory, MiB | bytes for each parameter | seconds |",
        "|---|---|---|---|---|",
    ]
    for k, rows in found["k"].items():
        for way, title in (("one", "one, `perturb_`"), ("two", "two, `perturb_by_passes_`")):
            own = rows[way]
            extra, numel = own["extra_bytes"], own["numel"]
            lines.append(
                f"| {float(k):.0%} | {title} | {extra / 2**20:.0f} | {extra / numel:.2f}"
                f" | {own['seconds']:.1f} |"
            )
    lines += [
        "",
        f"{found['layers']} linear layers of width {found['width']} ({numel:,} parameters, fp32),"
        f" a batch of {found['batch']}, 2 cores, torch {found['environment']['torch']}; memory"
        " above that of model and data, activations included; `python -m benchmarks.passes`.",
    ]
    return "\n".join(lines)
