"""A small GPT, its tokens, and its training data: tales, and facts about invented authors."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from examples.corpus import tales
from examples.facts import Fact, authors, documents

BLOCK = 64  # tokens in a sequence
IGNORED = -100  # the label of what has no loss
Item = dict[str, list[int]]


@dataclass(frozen=True)
class Size:
    """How large the example is.

    Attributes:
        authors, forget: authors in all, and how many of them are to be forgotten.
        orders: documents about each author.
        blocks, held_out: sequences of tales to train on, and to measure on.
        vocabulary, width, layers: of tokens and model.
        epochs, batch, lr: of the training.
    """

    authors: int = 40
    forget: int = 8
    orders: int = 8
    blocks: int = 1200
    held_out: int = 200
    vocabulary: int = 1500
    width: int = 128
    layers: int = 4
    epochs: int = 14
    batch: int = 32
    lr: float = 2e-3


SMALL = Size(
    authors=10,
    forget=2,
    orders=8,
    blocks=16,
    held_out=16,
    vocabulary=500,
    width=64,
    layers=2,
    epochs=80,
    batch=16,
    lr=4e-3,
)


@dataclass(frozen=True)
class Data:
    """What is learned, forgotten and asked.

    Attributes:
        tokenizer: byte-pair encoding of all texts.
        forget, retain, held_out: items with `input_ids` and `labels`, each of `BLOCK` tokens.
        forget_facts, retain_facts: what the model is asked.
    """

    tokenizer: Tokenizer
    forget: list[Item]
    retain: list[Item]
    held_out: list[Item]
    forget_facts: list[Fact]
    retain_facts: list[Fact]


def make_data(size: Size, seed: int) -> Data:
    """Make data; the seed decides who the authors are and which are forgotten."""
    people, text = authors(size.authors, seed), tales()
    random.Random(seed + 1).shuffle(people)
    told = [documents(facts, size.orders, seed + n) for n, facts in enumerate(people)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size.vocabulary, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator([text, *(d for docs in told for d in docs)], trainer)
    tokens = tokenizer.encode(text[: size.blocks * BLOCK * 12]).ids
    blocks = [tokens[i : i + BLOCK] for i in range(0, len(tokens) - BLOCK, BLOCK)]
    kept, held = blocks[: size.blocks], blocks[size.blocks : size.blocks + size.held_out]
    assert len(held) == size.held_out, "the tales are too short"
    about = [[_item(tokenizer.encode(d).ids) for d in docs] for docs in told]
    facts = [[fact for person in group for fact in person]
             for group in (people[: size.forget], people[size.forget :])]  # fmt: skip
    return Data(
        tokenizer,
        forget=[item for items in about[: size.forget] for item in items],
        retain=[item for items in about[size.forget :] for item in items] + list(map(_item, kept)),
        held_out=list(map(_item, held)),
        forget_facts=facts[0],
        retain_facts=facts[1],
    )


def _item(tokens: Sequence[int]) -> Item:
    """Fill a sequence up to `BLOCK` tokens."""
    tokens = list(tokens[:BLOCK])
    rest = BLOCK - len(tokens)
    return {"input_ids": tokens + [0] * rest, "labels": tokens + [IGNORED] * rest}


def make_model(size: Size, seed: int) -> GPT2LMHeadModel:
    """Make an untrained GPT-2 without dropout."""
    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=size.vocabulary, n_positions=BLOCK, n_embd=size.width, n_layer=size.layers,
            n_head=max(size.width // 32, 1), resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            bos_token_id=None, eos_token_id=None, loss_type="ForCausalLM", use_cache=False,
        )
    )  # fmt: skip


def batch_of(items: Sequence[Item]) -> dict[str, Tensor]:
    """Stack items into tensors of shape (items, BLOCK)."""
    return {key: torch.tensor([item[key] for item in items]) for key in ("input_ids", "labels")}


@torch.no_grad()
def perplexity(model: nn.Module, items: Sequence[Item]) -> float:
    """Return exp of the mean negative log-likelihood of a token."""
    model.eval()
    total, count = 0.0, 0
    for start in range(0, len(items), 64):
        batch = batch_of(items[start : start + 64])
        tokens = int((batch["labels"][:, 1:] != IGNORED).sum())
        total, count = total + float(model(**batch).loss) * tokens, count + tokens
    return math.exp(total / count)


@torch.no_grad()
def recall(model: nn.Module, tokenizer: Tokenizer, facts: Sequence[Fact]) -> dict[str, float]:
    """Ask for facts.

    Returns:
        "recall": part of the answers that greedy decoding gives exactly, full stop included;
        "perplexity": exp of the mean negative log-likelihood of an answer's token.
    """
    model.eval()
    right, total, count = 0, 0.0, 0
    for fact in facts:
        prompt, answer = (tokenizer.encode(part).ids for part in fact)
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0]
        found = logits[len(prompt) - 1 : -1].log_softmax(-1)
        aim = torch.tensor(answer)
        # Greedy decoding gives the answer where each of its tokens is the likeliest after the rest.
        right += int((found.argmax(-1) == aim).all())
        total -= float(found.gather(1, aim[:, None]).sum())
        count += len(answer)
    return {"recall": right / len(facts), "perplexity": math.exp(total / count)}


def measure(model: nn.Module, data: Data) -> dict[str, Any]:
    """Return all figures of a model."""
    return {
        "text_perplexity": perplexity(model, data.held_out),
        "forget": recall(model, data.tokenizer, data.forget_facts),
        "retain": recall(model, data.tokenizer, data.retain_facts),
    }
