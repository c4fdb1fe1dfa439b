"""A fault on one rank is an error on all of them, in time, and nothing is written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

RUN = Path(__file__).with_name("run_faults.py")
FAULTS = int(os.environ.get("FASTUNLEARN_FAULTS", "28"))
SLACK = 5.0
TIMEOUT = 2.0
OWN = {"raise": "RuntimeError", "nan": "ValueError", "overflow": "ValueError", "grad": "ValueError"}
PEERS = {"plan": {"PlanError"}, "nan": {"ValueError"}, "overflow": {"ValueError"},
         "grad": {"PeerError"}}  # fmt: skip


def test_a_fault_of_one_rank_is_an_error_on_all(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, RUN, tmp_path, str(FAULTS)],
        capture_output=True, text=True, timeout=120 + 12 * FAULTS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == FAULTS
    fired = 0
    for fault in found:
        told = {one["rank"]: one for one in fault["ranks"]}
        kind, bad = fault["kind"], fault["rank"]
        live = [rank for rank in range(fault["world"]) if rank != bad or kind in OWN]
        assert set(live) <= set(told), fault  # none hangs
        for rank in live:
            assert told[rank]["said"] != "wrote" and told[rank]["unchanged"], fault
            assert told[rank]["seconds"] < TIMEOUT + SLACK, fault
            if rank == bad:
                assert told[rank]["said"] == OWN[kind], fault
            elif kind in PEERS:
                assert told[rank]["said"] in PEERS[kind], fault
        fired += bad not in told or told[bad]["said"] != "wrote"
    assert fired == FAULTS
