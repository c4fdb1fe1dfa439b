"""FSDP2 over tensor parallel, as trainers use them, gives the bits of one process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

RUN = Path(__file__).with_name("run_fsdp.py")


def test_fsdp_over_tensor_parallel(tmp_path: Path) -> None:
    ranks = [
        subprocess.Popen(
            [sys.executable, RUN, str(rank), tmp_path / "store"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(4)
    ]  # fmt: skip
    said = [process.communicate(timeout=200) for process in ranks]
    assert [out.strip() for out, _ in said] == ["equal"] * 4, "\n".join(err for _, err in said)
