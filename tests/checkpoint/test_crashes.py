"""Faults and kill -9 while a checkpoint is written: run_crashes.py does it and checks each."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).with_name("run_crashes.py")


def run(*arguments: object) -> dict[str, int]:
    command = [sys.executable, str(RUN), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {name: int(count) for name, count in re.findall(r"(\w+)=(\d+)", done.stdout)}


def test_every_call_that_writes_fails_in_turn(tmp_path: Path) -> None:
    fired = run("faults", tmp_path)
    assert fired.keys() == {"EIO", "ENOSPC", "KILL"} and min(fired.values()) > 100


@pytest.mark.parametrize(
    "cycles", [40, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])]
)
def test_kill_at_random_moments(tmp_path: Path, cycles: int) -> None:
    found = run("kills", tmp_path, cycles)
    assert found["cycles"] == cycles == found["old"] + found["new"] and found["lost"] == 0
    assert min(found["old"], found["new"]) > cycles // 20  # kills came early and late
