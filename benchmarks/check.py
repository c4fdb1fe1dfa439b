"""Measure the table of bars and say which are met: `python -m benchmarks --check`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.bars import Bar, bars, memory_probes, quantities, timed_probes, value_of
from fastunlearn.bench.cases import Probe
from fastunlearn.bench.child import peak_extra_mib
from fastunlearn.bench.measure import measure
from fastunlearn.bench.results import cores, environment, machine_kind, simd_level, write
from fastunlearn.bench.steadiness import Steadiness
from fastunlearn.bench.table import header

SECONDS = 1.5  # for each method
MET, BEYOND, MISSED, NOT_MEASURED, NO_BAR = "met", "beyond", "MISSED", "not measured", "no bar"
_STYLES = {MET: "green", BEYOND: "bold green", MISSED: "bold red", NOT_MEASURED: "yellow"}


def check(
    command: str, out: Path | None, only: str | None, shrink: int, console: Console
) -> list[dict[str, Any]]:
    """Measure every bar whose words hold `only`; print them, and write JSON to the folder `out`.

    Raises:
        LookupError: no bar has these words.
    """
    chosen = [
        b for b in bars(cores(), shrink) if (only or "").lower() in f"{b.row} {b.what}".lower()
    ]
    if not chosen:
        raise LookupError(f"no bar has the words {only!r}")
    facts = environment(command)
    console.print(header(facts))
    steadiness = Steadiness()
    ms, mib = _measure(chosen, steadiness, console)
    rows = [judge(bar, ms[bar.run], mib) for bar in chosen]
    facts["slowdown"] = steadiness.slowdown()
    console.print(table(rows))
    if facts["slowdown"] is not None:
        console.print(f"A fixed loop took {facts['slowdown']:.2f} times its best time (median).")
    if out is not None:
        path = out / f"check-{machine_kind()}-{simd_level()}.json"
        console.print(f"Results: {write(path, 'check', facts, rows)}", soft_wrap=True)
    return rows


def _measure(
    chosen: Sequence[Bar], steadiness: Steadiness, console: Console
) -> tuple[dict[str, dict[Probe, float]], dict[Probe, float | None]]:
    """Times in ms, run by run, and peak extra memory in MiB."""
    runs: dict[str, dict[Probe, None]] = {}
    memory: dict[Probe, None] = {}
    for bar in chosen:
        for quantity in quantities(bar):
            runs.setdefault(bar.run, {}).update(dict.fromkeys(timed_probes(quantity)))
            memory.update(dict.fromkeys(memory_probes(quantity)))
    # By run: a probe may stand in several, and a ratio takes both its times from one.
    ms: dict[str, dict[Probe, float]] = {}
    for name, probes in runs.items():
        with console.status(f"measuring: {name}"):
            timings = measure(list(probes), seconds=SECONDS, steadiness=steadiness)
        ms[name] = {probe: timing.ms for probe, timing in timings.items()}
    with console.status("measuring: memory"):
        mib = {probe: peak_extra_mib(probe) for probe in memory}
    return ms, mib


def judge(bar: Bar, ms: dict[Probe, float], mib: dict[Probe, float | None]) -> dict[str, Any]:
    """One row of the results."""
    value = value_of(bar.quantity, ms, mib)
    other = None if bar.or_else is None else value_of(bar.or_else[0], ms, mib)
    probes = [p for quantity in quantities(bar) for p in timed_probes(quantity) if p in ms]
    return {
        "row": bar.row,
        "what": bar.what,
        "limit": bar.limit,
        "beyond": bar.beyond,
        "at_least": bar.at_least,
        "unit": bar.quantity.unit,
        "measured": value,
        "or_else_measured": other,
        "or_else_limit": None if bar.or_else is None else bar.or_else[1],
        "verdict": verdict(bar, value, other),
        "ms": {_name(probe): ms[probe] for probe in probes},
    }


def verdict(bar: Bar, value: float | None, other: float | None = None) -> str:
    """Whether a measured value meets the bar."""
    if bar.limit is None:
        return NO_BAR
    if value is None:
        return NOT_MEASURED
    if _reaches(value, bar.beyond, bar.at_least):
        return BEYOND
    if _reaches(value, bar.limit, bar.at_least):
        return MET
    held = bar.or_else is not None and other is not None and other <= bar.or_else[1]
    return MET if held else MISSED


def _reaches(value: float, mark: float | None, at_least: bool) -> bool:
    return mark is not None and (value >= mark if at_least else value <= mark)


def _name(probe: Probe) -> str:
    data = probe.case.data
    threads = "" if probe.threads is None else f", {probe.threads} threads"
    return f"{probe.method}, {data.values}, {data.dtype}, K = {100 * probe.case.k:g} %{threads}"


def number(value: float | None, unit: str) -> str:
    """A value with its unit, three digits."""
    return "" if value is None else f"{value:.3g}{unit}" if value < 1000 else f"{value:.0f}{unit}"


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows for the terminal, under the headings of the table of bars."""
    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for heading in ("bar", "at least or most", "measured", "beyond", "verdict"):
        right = heading in ("at least or most", "measured", "beyond")
        made.add_column(heading, justify="right" if right else "left", no_wrap=right)
    previous = None
    for row in rows:
        if row["row"] != previous:
            made.add_row(f"[bold]{row['row']}[/]")
        previous = row["row"]
        sign = ">=" if row["at_least"] else "<="
        marks = [number(row[key], row["unit"]) for key in ("limit", "beyond")]
        style = _STYLES.get(row["verdict"])
        made.add_row(
            f"  {row['what']}",
            f"{sign} {marks[0]}" if marks[0] else "",
            number(row["measured"], row["unit"]),
            marks[1],
            f"[{style}]{row['verdict']}[/]" if style else row["verdict"],
        )
    return made
