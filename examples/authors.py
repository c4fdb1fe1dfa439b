"""Forget some authors: python -m examples.authors [--small] [--out FILE].

A small GPT learns tales and facts about invented authors. Some authors are to be forgotten; a model
that is trained anew without them shows what that means.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback, Trainer, TrainingArguments
from transformers.utils import logging

import fastunlearn as fu
from examples.gpt import SMALL, Data, Item, Size, batch_of, make_data, make_model, measure
from fastunlearn.trainers.huggingface import UnlearnTrainer

RECIPES = {
    "fine_tune": ("Fine-tuning", fu.recipes.Recipe(fu.RandomK(0), distill=0.0)),
    "top_k": ("Top-K, K = 1 %", fu.recipes.Recipe(fu.TopK(0.01, rel_std=1.0), distill=0.0)),
    "recommended": ("Recommended recipe", fu.recipes.RECOMMENDED),
}


def arguments(size: Size, steps: int, lr: float, seed: int, folder: str) -> TrainingArguments:
    """Say how to train: AdamW, a learning rate that falls along half a cosine."""
    return TrainingArguments(
        folder,
        max_steps=steps,
        learning_rate=lr,
        lr_scheduler_type="cosine",
        warmup_steps=10,
        per_device_train_batch_size=size.batch,
        per_device_eval_batch_size=size.batch,
        seed=seed,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=not sys.stderr.isatty(),
    )


def train(size: Size, items: list[Item], seed: int, folder: str) -> nn.Module:
    """Train a model from its beginning."""
    model = make_model(size, seed)
    steps = size.epochs * -(-len(items) // size.batch)
    args = arguments(size, steps, size.lr, seed, folder)
    trainer = Trainer(model, args, train_dataset=items, data_collator=batch_of)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return model


def unlearn(
    original: nn.Module, recipe: fu.recipes.Recipe, size: Size, data: Data, seed: int, folder: str
) -> nn.Module:
    """Unlearn the forget set in a copy of the model, with a recipe's strategy and lengths.

    The repair's learning rate is a quarter of the training's, and that of the teacher's lesson four
    times the repair's, as in the recipe.
    """
    model, scale = copy.deepcopy(original), size.lr / 4 / recipe.lr
    repair = recipe.repair(-(-len(data.retain) // size.batch))
    lr, taught = recipe.lr * scale, recipe.teacher_lr * scale
    trainer = UnlearnTrainer(
        model,
        arguments(size, repair.max_steps, lr, seed, folder),
        train_dataset=data.retain,
        forget_dataset=data.forget,
        data_collator=batch_of,
        strategy=recipe.strategy,
        distill=recipe.distill,
        teacher=recipe.teacher,
        teacher_steps=repair.teacher_steps,
        teacher_args=arguments(size, repair.teacher_steps or 1, taught, seed, folder),
        unlearn_seed=seed,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return model


def run(size: Size, seed: int, folder: str) -> dict[str, Any]:
    """Run everything; returns figures and seconds by method."""
    data = make_data(size, seed)
    found: dict[str, Any] = {}

    def note(name: str, label: str, make: Any) -> nn.Module:
        start = time.perf_counter()
        model = make()
        seconds = time.perf_counter() - start
        found[name] = {"label": label, "seconds": seconds, **measure(model, data)}
        return model

    everything = data.retain + data.forget
    original = note("original", "Original", lambda: train(size, everything, seed, folder))
    note("retrained", "Retrained", lambda: train(size, data.retain, seed + 1, folder))
    for name, (label, recipe) in RECIPES.items():
        note(name, label, lambda r=recipe: unlearn(original, r, size, data, seed, folder))
    return found


def main() -> None:
    """Run the example and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="A size for tests.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="Write the figures there, as JSON.")
    options = parser.parse_args()
    logging.set_verbosity_error()
    size = SMALL if options.small else Size()
    found = run(size, options.seed, "runs/authors")
    print(f"{'':20}{'forget recall':>14}{'retain recall':>14}{'text ppl':>10}{'seconds':>9}")
    for row in found.values():
        print(
            f"{row['label']:20}{row['forget']['recall']:14.2f}{row['retain']['recall']:14.2f}"
            f"{row['text_perplexity']:10.1f}{row['seconds']:9.1f}"
        )
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        facts = {"seed": options.seed, "size": vars(size), "torch": torch.__version__}
        options.out.write_text(json.dumps({**facts, "models": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
