"""Any sharding gives the bits of one process: generated calls on ranks of their own processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).with_name("run_layouts.py")
CALLS = {1: 30, 2: 60, 3: 50, 4: 60, 8: 30}  # 230 in all


@pytest.mark.parametrize("world", CALLS)
def test_every_layout_gives_the_bits_of_one_process(tmp_path: Path, world: int) -> None:
    ranks = [
        subprocess.Popen(
            [sys.executable, RUN, str(rank), str(world), tmp_path / "store", str(1000 * world),
             str(CALLS[world])],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(world)
    ]  # fmt: skip
    said = [process.communicate(timeout=300)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0] * world, "\n".join(said)
    assert all(f"{CALLS[world]} calls agree" in text for text in said)
