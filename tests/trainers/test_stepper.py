"""What all trainers share: seeds of several processes, shards, and packages that are absent."""

from __future__ import annotations

import doctest
import importlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

import fastunlearn as fu
from fastunlearn.trainers.stepper import Stepper

RUN = Path(__file__).with_name("run_ranks.py")


def test_replicas_stay_alike_and_shards_are_one_model(tmp_path: Path) -> None:
    ranks = [
        subprocess.Popen(
            [sys.executable, RUN, str(rank), tmp_path / "store"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=150) for process in ranks]
    assert [out.strip() for out, _ in said] == ["alike"] * 2, "\n".join(err for _, err in said)


@pytest.mark.parametrize("distill", ["0", "1"])
def test_the_trainer_under_ddp(tmp_path: Path, distill: str) -> None:
    pytest.importorskip("transformers")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [
        subprocess.Popen(
            [sys.executable, RUN.with_name("run_trainer.py"), tmp_path, distill],
            env={**os.environ, **world, "RANK": str(rank), "LOCAL_RANK": str(rank),
                 "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=150) for process in ranks]
    assert ["alike" in out for out, _ in said] == [True] * 2, "\n".join(err for _, err in said)


@pytest.mark.parametrize(
    ("module", "absent", "extra"),
    [
        ("huggingface", "transformers", "fastunlearn[hf]"),
        ("accelerate", "accelerate", "fastunlearn[hf]"),
        ("lightning", "lightning.pytorch", "fastunlearn[lightning]"),
    ],
)
def test_an_absent_package_is_named(module: str, absent: str, extra: str) -> None:
    code = f"import sys; sys.modules[{absent!r}] = None; import fastunlearn.trainers.{module}"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = answer.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: fastunlearn.trainers") and extra in last


@pytest.mark.parametrize("module", ["huggingface", "accelerate", "lightning"])
def test_examples_in_docstrings(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers" if module == "huggingface" else module)
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testmod(importlib.import_module(f"fastunlearn.trainers.{module}"))
    assert tried > 0 and failed == 0


def test_shards_that_an_engine_hides_are_refused(tmp_path: Path) -> None:
    stepper = Stepper("test", fu.RandomK(1), 0, 1, False)
    model = nn.Linear(2, 2)
    model.weight.ds_id = 0  # as DeepSpeed's ZeRO-3 does
    with pytest.raises(ValueError, match="got 'weight', of which DeepSpeed hides"):
        stepper.perturb(model, 0)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        flat = FullyShardedDataParallel(
            nn.Linear(2, 2), device_id=torch.device("cpu"), use_orig_params=True
        )
        with pytest.raises(ValueError, match="of which FSDP1 hides the shards"):
            stepper.perturb(flat, 0)
    finally:
        dist.destroy_process_group()
