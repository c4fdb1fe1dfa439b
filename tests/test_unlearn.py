"""Unlearning end to end: the phases fit together, and a seed says it all."""

from __future__ import annotations

import functools
import json
import math
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from repair_cases import (
    FORGET,
    OPTIMIZERS,
    RETAIN,
    SGD,
    STRATEGIES,
    changed,
    copies,
    network,
    run,
    same,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from fastunlearn.perturb import perturb_
from fastunlearn.repair import Repair
from fastunlearn.scores import score
from fastunlearn.strategies import RandomK, TopK
from fastunlearn.unlearn import unlearn

MASKED = Repair(masked=True, optimizer=OPTIMIZERS["adamw"])


@pytest.mark.parametrize("kind", ["grad", "fisher", "mas", "taylor", "ratio", "weight"])
def test_scores_and_perturbation_are_those_of_the_single_calls(kind: str) -> None:
    strategy = TopK(0.2, std=0.1, score=kind)
    model, other = network(), network()
    result = run(model, strategy, repair=None)
    scores = score(other, FORGET, F.cross_entropy, kind=kind, retain=RETAIN)
    receipt = perturb_(list(other.named_parameters()), strategy, scores=scores, seed=0)
    assert same(model, other)
    assert result.receipt.to_dict() == receipt.to_dict()


def test_top_k_perturbs_the_most_sensitive_parameters() -> None:
    model = network()
    scores = score(model, FORGET, F.cross_entropy)
    before = copies(model)
    result = run(model, TopK(10, std=0.1), repair=None)
    diff = changed(model, before)
    flat = torch.cat([scores[name].flatten() for name in scores])
    moved = torch.cat([diff[name].flatten() for name in scores])
    order = torch.argsort(flat, descending=True, stable=True)
    assert sorted(order[:10].tolist()) == moved.nonzero().flatten().tolist()
    assert result.receipt.count == 10


@pytest.mark.parametrize("distill", [0.0, 0.5])
@pytest.mark.parametrize("strategy", STRATEGIES, ids=["grad", "fisher", "random"])
def test_masked_repair_leaves_a_sparse_patch(strategy: TopK | RandomK, distill: float) -> None:
    model = network()
    before = copies(model)
    repair = Repair(
        epochs=2, masked=True, distill=distill, optimizer=OPTIMIZERS["sgd"], clip_grad_norm=1.0
    )
    result = run(model, strategy, repair=repair)
    masks = result.selection.masks()
    diff = changed(model, before)
    for name, moved in diff.items():
        if name in masks:
            assert not (moved & ~masks[name]).any(), name
        else:
            assert not moved.any(), name
    assert sum(int(diff[name].sum()) for name in masks) == result.receipt.count
    perturbed = network()
    run(perturbed, strategy, repair=None)
    assert not same(model, perturbed)


def test_the_reference_is_the_model_before_the_perturbation() -> None:
    model = network()
    model[1].requires_grad_(False)  # statistics stay: before the first step only the noise differs
    still = functools.partial(torch.optim.SGD, lr=0.0)
    quiet = run(model, TopK(0.1, std=0.0), repair=Repair(optimizer=still))
    assert quiet.history[0]["divergence"] == 0.0
    loud = run(model, TopK(0.1, std=1.0), repair=Repair(optimizer=still))
    assert loud.history[0]["divergence"] > 1e-3


def shuffled(seed: int) -> DataLoader[tuple[Tensor, ...]]:
    """Return a loader that shuffles with torch's global generator."""
    x, y = (torch.cat(parts) for parts in zip(*RETAIN, strict=True))
    return DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=["grad", "fisher", "random"])
def test_same_seed_same_bits(strategy: TopK | RandomK) -> None:
    """Dropout and shuffling included, whatever the global generator has been through."""
    models, histories = [], []
    for seed in (5, 5, 6):
        models.append(network())
        torch.manual_seed(random.randrange(1 << 30))
        state = torch.get_rng_state()
        result = run(models[-1], strategy, forget=shuffled(0), retain=shuffled(1), seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        histories.append(result.history)
    assert same(models[0], models[1]) and histories[0] == histories[1]
    assert not same(models[0], models[2]) and histories[0] != histories[2]


def test_without_a_seed_calls_differ() -> None:
    models = [network(), network()]
    results = [run(model, seed=None, keep_seed=True) for model in models]
    assert not same(*models)
    replay = network()
    run(replay, seed=results[0].receipt.seed)
    assert same(replay, models[0])


def test_seed_is_kept_on_request_only() -> None:
    assert run(network(), repair=None).receipt.seed is None
    assert run(network(), repair=None, seed=2**64 - 1, keep_seed=True).receipt.seed == 2**64 - 1


class Untouchable:
    """A loader that nobody may read."""

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("this loader must not be read")


@pytest.mark.parametrize("given", ["random", "scores", "weight"])
def test_forget_set_is_not_read_without_need(given: str) -> None:
    model = network()
    scores = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    strategy = {"random": RandomK(5), "scores": TopK(5), "weight": TopK(5, score="weight")}[given]
    run(model, strategy, forget=Untouchable(), repair=Repair(distill=0),
        scores=scores if given == "scores" else None)  # fmt: skip


def test_given_scores_decide() -> None:
    model = network()
    before = copies(model)
    scores = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    scores["5.bias"][1] = -1.0
    run(model, TopK(1), scores=scores, repair=None)
    diff = changed(model, before)
    assert diff["5.bias"].tolist() == [False, True, False]
    assert sum(int(d.sum()) for d in diff.values()) == 1


def test_frozen_parameters_are_not_counted() -> None:
    model = network()
    model[0].requires_grad_(False)
    before = copies(model)
    result = run(model, RandomK(1.0))
    diff = changed(model, before)
    assert not diff["0.weight"].any() and diff["5.weight"].all()
    assert result.receipt.n == result.receipt.count == 4 + 4 + 64 * 3 + 3


@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_patterns_hold_for_a_masked_repair(scope: str) -> None:
    model = network()
    before = copies(model)
    strategy = TopK(0.3, scope=scope, include=("0.*", "5.*"), exclude=("*.bias",))
    result = run(model, strategy, repair=MASKED)
    moved = {name for name, diff in changed(model, before).items() if diff.any()}
    assert moved == {"0.weight", "5.weight"}
    assert sum(int(d.sum()) for d in changed(model, before).values()) == result.receipt.count


class Tagger(nn.Module):
    """A tied language model on dict batches."""

    def __init__(self) -> None:
        """Build it; embedding and head share their weight."""
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(9, 6)
        self.rnn = nn.GRU(6, 6, num_layers=2, dropout=0.3, batch_first=True)
        self.head = nn.Linear(6, 9)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """Return logits of shape (batch, length, 9)."""
        return {"logits": self.head(self.rnn(self.embed(tokens))[0])}


def test_any_batch_structure_and_tied_weights() -> None:
    tokens = torch.randint(0, 9, (8, 5), generator=torch.Generator().manual_seed(0))
    loader = [{"tokens": part} for part in tokens.split(4)]

    def forward(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return model(batch["tokens"])["logits"], batch["tokens"]

    def loss(logits: Tensor, tokens: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), tokens.flatten())

    model = Tagger()
    before = copies(model)
    result = unlearn(model, TopK(0.3), forget=loader, retain=loader, loss_fn=loss,
                     forward_fn=forward, repair=MASKED, seed=0)  # fmt: skip
    assert model.head.weight is model.embed.weight
    assert "head.weight" not in result.selection.masks()
    assert result.history[0]["divergence"] > 0
    moved = sum(int(d.sum()) for name, d in changed(model, before).items() if name != "head.weight")
    assert moved == result.receipt.count


def test_result_is_json() -> None:
    stop = Repair(epochs=3, stop_when=lambda entry: True)
    result = run(network(), repair=stop)
    report = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert report["stopped"] == "stop_when" and len(report["history"]) == 1
    assert report["history"][0]["steps"] == len(RETAIN)
    assert report["receipt"]["count"] == result.receipt.count
    assert report["strategy"]["k"] == 0.1 and report["repair"]["epochs"] == 3
    assert set(report["timings"]) == {"score", "perturb", "repair", "total"}
    parts = [report["timings"][phase] for phase in ("score", "perturb", "repair")]
    assert all(part > 0 for part in parts)
    assert report["timings"]["total"] == pytest.approx(sum(parts))
    assert len(report["epoch_seconds"]) == 1


def test_without_repair() -> None:
    result = run(network(), retain=None, repair=None)
    assert result.history == [] and result.stopped is None and result.selection is None
    assert result.to_dict()["repair"] is None


def test_modes_and_gradients_are_put_back() -> None:
    model = network().train()
    model[1].eval()
    model[5].bias.grad = torch.ones(3)
    run(model)
    assert model.training and not model[1].training and model[0].training
    assert model[5].bias.grad.tolist() == [1.0] * 3 and model[0].weight.grad is None


def test_stale_autocast_copies_are_dropped() -> None:
    model, (x, _) = network().eval(), FORGET[0]
    with torch.autocast("cpu", torch.bfloat16):
        model(x).sum()  # fills the cache with copies of the original weights
        run(model, TopK(1.0, std=1.0), repair=None)
        got = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(got, model(x))


def test_interruption_between_steps_leaves_a_usable_model() -> None:
    model = network().train()
    before = copies(model)
    calls: list[tuple[str, int]] = []

    def hook(phase: str, done: int, total: int | None) -> None:
        calls.append((phase, done))
        if calls[-1] == ("repair", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model, RandomK(5), repair=MASKED, progress=hook)
    assert model.training and all(p.grad is None for p in model.parameters())
    diff = changed(model, before)
    assert 0 < sum(int(d.sum()) for d in diff.values()) <= 5


def test_progress() -> None:
    calls: list[tuple[str, int, int | None]] = []
    repair = Repair(epochs=2, max_steps=4)
    run(network(), repair=repair, progress=lambda *call: calls.append(call))
    assert calls == [("score", 1, 2), ("score", 2, 2), *(("repair", i, 4) for i in range(1, 5))]


def test_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    run(network(), progress=True)
    assert capsys.readouterr().out == ""


def refusals() -> list[tuple[type[Exception], str, dict[str, Any]]]:
    """Return (exception, part of its message, changed arguments)."""
    nan = {name: torch.full_like(p, math.nan) for name, p in network().named_parameters()}
    return [
        (TypeError, "unlearn: strategy must be a TopK or a RandomK, got int", {"strategy": 3}),
        (TypeError, "unlearn: repair must be a Repair or None, got dict", {"repair": {}}),
        (ValueError, "unlearn: retain must be a loader for repair .* got None", {"retain": None}),
        (TypeError, "unlearn: forget must be re-iterable .* got list_iterator",
         {"forget": iter(FORGET)}),
        (TypeError, "unlearn: retain must be re-iterable .* got int", {"retain": 3}),
        (ValueError, "unlearn: scores must be None for a RandomK, got dict",
         {"strategy": RandomK(1), "scores": {}}),
        (TypeError, "unlearn: loss_fn must be callable, got NoneType", {"loss_fn": None}),
        (TypeError, "unlearn: seed must be an int, got bool", {"seed": True}),
        (ValueError, r"unlearn: seed must be in \[0, 2\^64\), got -1", {"seed": -1}),
        (ValueError, r"unlearn: seed must be in \[0, 2\^64\)", {"seed": 2**64}),
        (ValueError, "score: loader must yield at least one example", {"forget": []}),
        (ValueError, "(select|perturb_): .*[nN]a[nN]", {"scores": nan}),
        (ValueError, "(select|perturb_): k must be at most 243, .* got 1000000",
         {"strategy": TopK(10**6)}),
        (TypeError, "score: retain must be a loader",
         {"strategy": TopK(1, score="ratio"), "retain": None, "repair": None}),
    ]  # fmt: skip


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("error", "message", "changes"), refusals())
def test_refusals_change_nothing(
    error: type[Exception], message: str, changes: dict[str, Any], masked: bool
) -> None:
    model = network()
    before = copies(model)
    arguments = {"repair": Repair(masked=masked, optimizer=SGD), **changes}
    with pytest.raises(error, match=f"^{message}"):
        run(model, **arguments)
    assert not any(bool(diff.any()) for diff in changed(model, before).values())
