"""How steady the machine is while it measures.

On a shared machine the neighbours' load comes and goes. It slows arithmetic down, and not reads
from memory, so that a call which computes looks worse beside the memory floor than it is.
"""

from __future__ import annotations

import statistics
import time

_ROUNDS = 300


class Steadiness:
    """Times a fixed loop of arithmetic again and again."""

    def __init__(self) -> None:
        self._seconds: list[float] = []

    def note(self) -> None:
        """Run the loop once: some tens of microseconds."""
        start, total = time.perf_counter(), 0
        for i in range(_ROUNDS):
            total += i * i
        self._seconds.append(time.perf_counter() - start)

    def slowdown(self) -> float | None:
        """Median time of the loop over its least: 1 on a steady machine. None before any note."""
        if not self._seconds:
            return None
        return statistics.median(self._seconds) / min(self._seconds)
