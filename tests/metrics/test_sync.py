"""The metric classes over two processes give what one process gives."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from fastunlearn.metrics import MembershipInferenceAttack

WORKER = Path(__file__).with_name("sync_worker.py")


def load_worker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sync_worker", WORKER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_workers(folder: Path) -> list[dict[str, float]]:
    """Run both processes to their end and return what each computed."""
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    results = [folder / f"{rank}.json" for rank in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), str(folder / "rendezvous"), str(result)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, result in enumerate(results)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    return [json.loads(result.read_text()) for result in results]


def test_two_processes_equal_one(tmp_path: Path) -> None:
    worker = load_worker()
    first, second, third = worker.batches()
    metrics, attack = worker.collection(), MembershipInferenceAttack()
    for batch in (first, second, third):
        metrics.update(**batch)
    worker.attack_update(attack, first, True)
    worker.attack_update(attack, third, False)
    expected = {name: float(value) for name, value in metrics.compute().items()}
    area = float(attack.compute())

    ranks = run_workers(tmp_path)
    for rank, values in enumerate(ranks):
        # Synchronising must not leave the other process's examples in the state.
        assert values.pop("examples_kept_here") == (57, 0)[rank]
        assert values.pop("attack") == values.pop("one_sided") == area
        # The order of two float64 additions in the divergence's sum; counts are exact.
        assert values == pytest.approx(expected, rel=1e-6)
    assert ranks[0] == ranks[1]
