"""One of two gloo processes of test_sync.py: python sync_worker.py RANK RENDEZVOUS RESULT.

Also holds the data and the metrics, so that the single process of the test uses the same.
"""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torchmetrics import Metric, MetricCollection

from fastunlearn.metrics import (
    ForgettingRate,
    JensenShannonToRetrained,
    MembershipInferenceAttack,
    MemoryRetentionRate,
    NormalisedForgettingRate,
    NormalisedMemoryRetentionRate,
    UnlearningAccuracy,
)

Batch = dict[str, Tensor]


def batches() -> list[Batch]:
    """Three batches of unequal size with the logits of three models."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for size in (24, 7, 33):
        targets = torch.arange(size) % 3
        boosts = {"original": 4.0, "unlearned": 2.0, "retrained": 1.0}
        logits = {
            name: torch.randn(size, 3, generator=generator) + boost * one_hot(targets, 3)
            for name, boost in boosts.items()
        }
        found.append({**logits, "targets": targets})
    return found


def collection() -> MetricCollection:
    """Every metric that takes keywords of a batch."""
    return MetricCollection(
        [
            ForgettingRate(),
            NormalisedForgettingRate(),
            MemoryRetentionRate(),
            NormalisedMemoryRetentionRate(),
            UnlearningAccuracy(),
            JensenShannonToRetrained(),
        ]
    )


def attack_update(metric: Metric, batch: Batch, is_forget: bool) -> None:
    """Give the attack one batch."""
    metric.update(batch["unlearned"], batch["targets"], is_forget=is_forget)


def main(rank: int, rendezvous: str, result: str) -> None:
    """Update with this rank's share, synchronise, and write what was computed."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{rendezvous}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    metrics, attack, one_sided = (
        collection(),
        MembershipInferenceAttack(),
        MembershipInferenceAttack(),
    )
    first, second, third = batches()
    for batch in [first, third] if rank == 0 else [second]:
        metrics.update(**batch)
    attack_update(attack, *((first, True) if rank == 0 else (third, False)))
    if rank == 0:  # the other process sees no example at all
        attack_update(one_sided, first, True)
        attack_update(one_sided, third, False)
    values = {name: float(value) for name, value in metrics.compute().items()}
    values["attack"] = float(attack.compute())
    values["one_sided"] = float(one_sided.compute())
    values["examples_kept_here"] = sum(len(rows) for rows in one_sided.rows)
    Path(result).write_text(json.dumps(values))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
