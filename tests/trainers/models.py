"""A tiny GPT-2 and items for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PrinterCallback, TrainingArguments

IGNORED = -100


def gpt(seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=17, n_positions=8, n_embd=8, n_layer=1, n_head=2, resid_pdrop=0.0,
            embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
        )
    )  # fmt: skip


def items(count: int, seed: int = 0) -> list[dict[str, list[int]]]:
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(17, (count, 6), generator=draw).tolist()
    return [{"input_ids": t, "labels": [IGNORED, *t[1:]]} for t in tokens]


def collate(batch: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    return {key: torch.tensor([item[key] for item in batch]) for key in ("input_ids", "labels")}


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    usual: dict[str, Any] = {
        "max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 0.1, "optim": "sgd",
        "lr_scheduler_type": "constant", "use_cpu": True, "report_to": [], "save_strategy": "no",
        "logging_strategy": "no", "seed": 3, "disable_tqdm": True, "max_grad_norm": 0.0,
    }  # fmt: skip
    return TrainingArguments(str(folder), **{**usual, **changes})


def quiet(trainer: Any) -> Any:
    trainer.remove_callback(PrinterCallback)
    return trainer


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def kth(gradients: list[Tensor], k: int) -> float:
    """The K-th greatest magnitude."""
    return float(torch.cat([g.abs().flatten() for g in gradients]).topk(k).values[-1])
