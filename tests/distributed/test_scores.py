"""`score` on shards and replicas gives the scores of one process for the joined batches."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).with_name("run_scores.py")


@pytest.mark.parametrize(
    ("case", "world"),
    [("fsdp", 2), ("ddp", 2), ("tensor", 2), ("sequence", 2), ("both", 4), ("errors", 2)],
)
def test_scores_of_joined_batches(tmp_path: Path, case: str, world: int) -> None:
    ranks = [
        subprocess.Popen(
            [sys.executable, RUN, case, str(rank), str(world), tmp_path / "store"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(world)
    ]  # fmt: skip
    said = [process.communicate(timeout=200) for process in ranks]
    assert [out.strip() for out, _ in said] == ["agree"] * world, "\n".join(err for _, err in said)
