"""What `fastunlearn.score` needs of a causal language model and a file of texts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastunlearn.trainers.stepper import needs

try:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging
except ImportError as error:
    raise needs("transformers", "texts") from error

__all__ = ["batches_of", "causal_lm", "forward", "loss_fn", "read_texts"]

IGNORED = -100  # the label of a token that has no loss


def causal_lm(folder: str | Path, device: str = "cpu") -> tuple[nn.Module, Any]:
    """Load a causal language model and its tokenizer from a folder; nothing is downloaded.

    Raises:
        OSError: the folder holds no such model.
    """
    if not Path(folder).is_dir():
        raise NotADirectoryError(f"{folder} must be a folder with a model and its tokenizer")
    logging.disable_progress_bar()
    how = {"local_files_only": True, "trust_remote_code": False}
    model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, **how)
    return model.to(device), AutoTokenizer.from_pretrained(folder, **how)


def read_texts(path: str | Path) -> list[str]:
    """Read texts: the lines of a file; of one that ends in .jsonl their field "text".

    Raises:
        ValueError: there is none, or a line is no JSON object with a text.
    """
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    texts = [line for line in lines if line.strip()]
    if str(path).endswith(".jsonl"):
        for number, line in enumerate(texts):
            try:
                texts[number] = json.loads(line)["text"]
            except (ValueError, TypeError, KeyError):
                raise ValueError(f'{path} must hold objects with "text", got {line:.80}') from None
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{path} must hold texts, got none or something else")
    return texts


def batches_of(
    texts: Sequence[str], tokenizer: Any, batch_size: int, max_length: int
) -> list[dict[str, Tensor]]:
    """Make batches of `input_ids`, `attention_mask` and `labels`, each int64 of shape (B, T).

    Args:
        texts: to be cut at `max_length` tokens.
        tokenizer: of transformers; without a token to pad with, any will do: it has no loss.
        batch_size: number of texts in a batch.
        max_length: in tokens.
    """
    encoded = [
        tokenizer(text, truncation=True, max_length=max_length)["input_ids"] for text in texts
    ]
    pad = tokenizer.pad_token_id or 0
    batches = []
    for start in range(0, len(encoded), batch_size):
        group = encoded[start : start + batch_size]
        longest = max(map(len, group))
        rows = [(ids, longest - len(ids)) for ids in group]
        filled = {
            "input_ids": [ids + [pad] * rest for ids, rest in rows],
            "attention_mask": [[1] * len(ids) + [0] * rest for ids, rest in rows],
            "labels": [ids + [IGNORED] * rest for ids, rest in rows],
        }
        batches.append({name: torch.tensor(value) for name, value in filled.items()})
    return batches


def forward(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return logits (B, T, V) and labels (B, T) of a batch."""
    device = next(model.parameters()).device
    moved = {name: value.to(device) for name, value in batch.items()}
    labels = moved.pop("labels")
    return model(**moved, use_cache=False).logits, labels


def loss_fn(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of the tokens of a batch, in nats."""
    flat = logits[:, :-1].flatten(0, 1).float()
    return nn.functional.cross_entropy(flat, labels[:, 1:].flatten(), ignore_index=IGNORED)
