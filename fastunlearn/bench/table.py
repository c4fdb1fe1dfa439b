"""Results as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from fastunlearn.bench.cases import FALLBACK, OURS
from fastunlearn.bench.results import times_floor

Row = Mapping[str, Any]

# Methods that ours is set against, in the words of a narrow table.
SHORT = {
    "cat + topk + index_add_": "topk",
    "cat + kthvalue + where": "kthvalue",
    "SalUn: argsort(argsort(cat))": "SalUn",
    "abs + np.partition": "np.partition",
    "prune.global_unstructured": "prune",
    "SSD: per-tensor dampening": "SSD",
    "Bernoulli mask": "Bernoulli",
    "randperm[:K]": "randperm",
    "CuPy: partition": "CuPy",
    "torch._foreach, Bernoulli mask": "foreach",
    FALLBACK: "pure PyTorch",
}


def short_ms(ms: float) -> str:
    """Milliseconds with three digits, small and large ones in units of their own."""
    if ms >= 1000:
        return f"{ms / 1000:.3g} s"
    return f"{ms:.3g} ms" if ms >= 1 else f"{ms * 1000:.3g} us"


def ratio(value: float) -> str:
    """A ratio with two digits or more: 0.0054x, 1.3x, 85x, 1200x."""
    return f"{value:.2g}x" if value < 99.5 else f"{value:.0f}x"


def header(facts: Mapping[str, Any]) -> str:
    """One line about the machine."""
    return (
        f"{facts['cpu']}, {facts['threads']} of {facts['cores']} cores, {facts['simd']}, "
        f"torch {facts['torch']}, fastunlearn {facts['fastunlearn']}"
    )


def timing_table(rows: Sequence[Row], title: str) -> Table:
    """Time of ours, GB/s, multiple of the floor, and how much longer the idioms take."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("case", ratio=5)
    with_memory = any(row["peak_extra_mib"] for row in rows)
    for heading in ("ours", "GB/s", "x floor", *["extra MiB"] * with_memory):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("times faster than", ratio=6)
    for row in rows:
        table.add_row(*_cells(row, with_memory))
    return table


def _cells(row: Row, with_memory: bool) -> list[str]:
    ours = row["ms"][OURS]
    over, memory = times_floor(row), row["peak_extra_mib"].get(OURS)
    named = [str(row[key]) for key in ("threads", "simd") if key in row]
    speed = row["floor_bytes"]
    others = [
        f"{SHORT[name]} {ratio(ms / ours)}" for name, ms in row["ms"].items() if name in SHORT
    ]
    memories = ["" if memory is None else f"{memory:.0f}"] * with_memory
    return [
        row["label"] + (f" ({', '.join(named)})" if named else ""),
        short_ms(ours),
        "" if speed is None else f"{speed / ours / 1e6:.1f}",
        "" if over is None else f"{over:.2f}",
        *memories,
        ", ".join(others),
    ]
