"""What must hold for any model: what a method may read, what it must leave alone, and seeds."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.methods._common import paired
from benchmarks.methods.bad_teacher import incompetent_teacher, mixed
from benchmarks.methods.random_labels import wrong_labels
from benchmarks.methods.salun import saliency_masks
from fastunlearn._finetune import _Guard
from fastunlearn.evaluation.config import ConfigError
from fastunlearn.evaluation.training import fit

from .cases import CORES, batches, bits_differ, linear, network, run, same_bits, state

FORGET, RETAIN = batches(2, seed=1), batches(5, seed=2)
POISON = [(torch.full_like(x, torch.nan), y) for x, y in FORGET]
TRAINED = [name for name in CORES if name not in ("ssd", "fisher_forgetting")]
ADAM = {"epochs": 2, "lr": 0.01, "weight_decay": 0.1}
MOMENTUM = {"epochs": 2, "optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}


@pytest.mark.parametrize("name", CORES)
def test_a_method_repeats_and_leaves_no_trace(name: str) -> None:
    model, again = network(dropout=0.5), network(dropout=0.5)
    model[2].eval()  # a flag of one module alone
    before, generator = state(model), torch.get_rng_state()
    options = {"alpha": 1.5} if name == "ssd" else {}
    run(name, model, FORGET, RETAIN, **options)
    assert torch.equal(torch.get_rng_state(), generator)
    assert [m.training for m in model] == [True, True, False, True, True, True]
    assert all(p.grad is None for p in model.parameters())
    assert not same_bits(state(model), before)
    torch.rand(1)  # what the caller draws in between must not matter
    run(name, again, FORGET, RETAIN, **options)
    assert same_bits(state(model), state(again))


@pytest.mark.parametrize("name", ["random_labels", "salun", "bad_teacher", "fisher_forgetting"])
def test_another_seed_gives_another_model(name: str) -> None:
    models = [run(name, network(), FORGET, RETAIN, seed=seed) for seed in (0, 1)]
    assert not same_bits(*map(state, models))


@pytest.mark.parametrize("name", CORES)
def test_batch_norm_statistics_move_in_training_alone(name: str) -> None:
    model = network()
    before = state(model)["1.running_mean"]
    run(name, model, FORGET, RETAIN, **({"alpha": 1.5} if name == "ssd" else {}))
    assert torch.equal(model[1].running_mean, before) == (name not in TRAINED)


@pytest.mark.parametrize("name", CORES)
def test_frozen_parameters_keep_their_bits(name: str) -> None:
    model = network()
    model[0].requires_grad_(False)
    before = state(model)
    run(name, model, FORGET, RETAIN, **({"alpha": 1.5} if name == "ssd" else {}))
    assert not bits_differ(model[0].weight, before["0.weight"]).any()
    assert bits_differ(model[5].weight, before["5.weight"]).any()


def fine_tuned(options: dict[str, Any]) -> nn.Module:
    """Return the network after the evaluation's own fine-tuning on the retain set."""
    model = network()
    optimizer = torch.optim.Adam(
        model.parameters(), lr=options["lr"], weight_decay=options["weight_decay"]
    )
    fit(model, RETAIN, optimizer, options["epochs"], cosine=False)
    return model


@pytest.mark.parametrize(
    ("name", "neutral"), [("neg_grad_plus", {"alpha": 1.0}), ("l1_sparse", {"gamma": 0.0})]
)
def test_without_its_own_term_it_is_fine_tuning_bit_for_bit(
    name: str, neutral: dict[str, float]
) -> None:
    found = run(name, network(), POISON, RETAIN, **ADAM, **neutral)
    assert same_bits(state(found), state(fine_tuned(ADAM)))
    other = run(name, network(), FORGET, RETAIN, **ADAM)
    assert not same_bits(state(other), state(found))


@pytest.mark.parametrize("name", ["l1_sparse", "fisher_forgetting"])
def test_the_forget_set_is_not_read(name: str) -> None:
    clean, poisoned = (run(name, network(), forget, RETAIN) for forget in (FORGET, POISON))
    assert same_bits(state(clean), state(poisoned))
    reads = run("neg_grad_plus", network(), POISON, RETAIN)  # the poison does reach one that reads
    assert reads[5].weight.isnan().any()


def unmasked_moves(options: dict[str, Any]) -> int:
    """Run SalUn and count the weights outside its mask whose bits changed."""
    model = network()
    masks = saliency_masks(model, FORGET, cross_entropy, 0.3)
    assert sum(int(m.sum()) for m in masks.values()) == round(0.3 * 243)
    with torch.no_grad():  # bits that arithmetic would not keep
        for name, parameter in model.named_parameters():
            parameter.masked_fill_(~masks[name] & (parameter.abs() < 0.05), -0.0)
    # the scores must be of the weights as they are now
    masks = saliency_masks(model, FORGET, cross_entropy, 0.3)
    before = state(model)
    run("salun", model, FORGET, RETAIN, fraction=0.3, **options)
    moves = {n: bits_differ(p, before[n]) for n, p in model.named_parameters()}
    assert sum(int(moves[n][masks[n]].sum()) for n in moves) > 50, "the others must have moved"
    return sum(int(moves[n][~masks[n]].sum()) for n in moves)


@pytest.mark.parametrize("options", [ADAM, MOMENTUM], ids=["adam", "momentum"])
def test_salun_keeps_every_bit_outside_its_mask(options: dict[str, Any]) -> None:
    assert unmasked_moves(options) == 0


@pytest.mark.parametrize("options", [ADAM, MOMENTUM], ids=["adam", "momentum"])
def test_masking_gradients_alone_would_not_do(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Guard, "around_step", lambda self: contextlib.nullcontext())
    assert unmasked_moves(options) > 0


def test_random_labels_without_masks_are_salun_with_all_weights() -> None:
    everything = run("salun", network(), FORGET, RETAIN, fraction=1.0)
    assert same_bits(state(everything), state(run("random_labels", network(), FORGET, RETAIN)))


def test_ssd_leaves_every_bit_where_alpha_is_huge() -> None:
    model = network()
    with torch.no_grad():
        model[0].weight.view(-1)[0] = -0.0
    before = state(model)
    run("ssd", model, FORGET, RETAIN, alpha=1e9)
    assert same_bits(state(model), before)
    # 16 of 56 examples are to be forgotten: the ratio cannot exceed 3.5
    run("ssd", model, FORGET, RETAIN, alpha=3.5 + 1e-5)
    assert same_bits(state(model), before)
    run("ssd", model, FORGET, RETAIN, alpha=1.5)
    assert not same_bits(state(model), before)


def test_ssd_shrinks_and_never_turns_a_sign() -> None:
    model = network()
    before = state(model)
    run("ssd", model, FORGET, RETAIN, alpha=1.0, lam=0.5)
    for name, parameter in model.named_parameters():
        assert (parameter.abs() <= before[name].abs()).all()
        assert (parameter * before[name] >= 0).all()


def test_noise_of_fisher_forgetting_has_the_variance_of_the_formula() -> None:
    # With w = 0 and 1000 inputs of 2 each weight has F = p (1 - p) x^2 = 1: std = 0.0001^(1/4).
    model = linear((0.0,) * 1000, (0.0,) * 1000)
    run("fisher_forgetting", model, [], [(torch.full((1, 1000), 2.0), torch.tensor([0]))],
        lambda_sigma2=1e-4)  # fmt: skip
    # the std of 2000 draws is off by 0.1 / sqrt(2 * 2000) = 0.0016; four of these
    assert model.weight.std().item() == pytest.approx(0.1, abs=0.0064)
    assert model.weight.mean().item() == pytest.approx(0.0, abs=4 * 0.1 / 2000**0.5)


def test_wrong_labels_are_never_right_and_even() -> None:
    labels = torch.arange(5).repeat(4000)
    wrong = wrong_labels(labels, 5, torch.Generator().manual_seed(0))
    assert not (wrong == labels).any()
    counts = torch.zeros(5, 5).index_put((labels, wrong), torch.ones(()), accumulate=True)
    off = counts[~torch.eye(5, dtype=torch.bool)]
    # each of the 20 is binomial (4000, 1/4), std 27.4; five of these
    assert ((off - 1000).abs() < 137).all()


def test_the_bad_teacher_has_fresh_weights_and_statistics() -> None:
    model = network()
    fit(model, RETAIN, torch.optim.Adam(model.parameters()), 1)
    generator = torch.get_rng_state()
    teacher, again = incompetent_teacher(model, 3), incompetent_teacher(model, 3)
    assert torch.equal(torch.get_rng_state(), generator)
    assert same_bits(state(teacher), state(again))
    assert not same_bits(state(teacher), state(incompetent_teacher(model, 4)))
    assert bits_differ(teacher[0].weight, model[0].weight).all()
    assert not teacher[1].running_mean.any() and not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())


def test_a_module_that_cannot_draw_fresh_weights_is_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model.scale = nn.Parameter(torch.ones(()))
    with pytest.raises(TypeError, match=r"model must have reset_parameters\(\).*got Sequential"):
        incompetent_teacher(model, 0)


def test_mixed_batches_are_even_and_each_comes_once() -> None:
    found = list(mixed("AB", "abcdef", 1.0))
    assert "".join(batch for _, batch in found) == "abAcdeBf"
    assert [kind for kind, _ in found] == [batch.isupper() for _, batch in found]
    assert [b for kind, b in mixed("A", "abcdefg", 0.3) if not kind] == ["a", "b", "c"]


def test_pairs_start_the_forget_set_anew() -> None:
    pairs = list(paired("abcde", "XY", epochs=2))
    assert "".join(r for r, _ in pairs) == "abcdeabcde"
    assert "".join(f for _, f in pairs) == "XYXYXYXYXY"
    with pytest.raises(ValueError, match="forget must yield at least one batch, got none"):
        list(paired("ab", "", epochs=1))


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("neg_grad_plus", "alpha", 1.1),
        ("neg_grad_plus", "alpha", -0.1),
        ("random_labels", "retain_weight", -1.0),
        ("salun", "fraction", 0.0),
        ("salun", "fraction", 1.5),
        ("salun", "retain_weight", float("nan")),
        ("ssd", "alpha", 0.0),
        ("ssd", "lam", -1.0),
        ("ssd", "examples", 0),
        ("scrub", "max_epochs", -1),
        ("scrub", "alpha", -0.1),
        ("scrub", "gamma", float("inf")),
        ("bad_teacher", "retain_fraction", 0.0),
        ("l1_sparse", "gamma", -1e-4),
        ("fisher_forgetting", "lambda_sigma2", -1.0),
        ("fisher_forgetting", "examples", 0),
        *((name, "lr", 0.0) for name in TRAINED),
        *((name, "epochs", 0) for name in TRAINED),
    ],
)
def test_options_are_validated(name: str, field: str, value: float) -> None:
    options_type = CORES[name][1]
    with pytest.raises(ConfigError, match=rf"{options_type.__name__}\.{field} must be .*, got "):
        options_type(**{field: value})


def test_random_labels_join_both_batches() -> None:
    """Batch norm must see forget and retain examples at once, not one set after the other."""
    sizes: list[int] = []
    model = network()
    hook = lambda module, args: sizes.append(len(args[0]))  # noqa: E731
    handle = model.register_forward_pre_hook(hook)
    run("random_labels", model, FORGET, RETAIN)
    handle.remove()
    assert sizes[0] == len(next(iter(FORGET))[0]) + len(next(iter(RETAIN))[0])
