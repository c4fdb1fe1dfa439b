"""Forget scenarios: disjoint, complete, seeded, and fair to the membership attack."""

from __future__ import annotations

import pytest
import torch

from fastunlearn.evaluation.config import ConfigError, ScenarioConfig
from fastunlearn.evaluation.data import stratified_choice
from fastunlearn.evaluation.scenarios import make_scenario, mislabel, shifted

KINDS = {
    "random": ScenarioConfig("random", fraction=0.1),
    "class": ScenarioConfig("class", target_class=3),
    "mislabelled": ScenarioConfig("mislabelled", fraction=0.05),
}


@pytest.fixture(scope="module")
def split(digits):
    test, train = stratified_choice(digits.y, 0.2, seed=0)
    return digits.at(train), digits.at(test)


@pytest.mark.parametrize("kind", KINDS)
def test_forget_and_retain_partition_the_training_set(kind, split):
    train, test = split
    found = make_scenario(KINDS[kind], train, test, 10, seed=1)
    indices = torch.cat([found.forget_index, found.retain_index]).sort().values
    assert torch.equal(indices, torch.arange(len(train)))
    assert torch.equal(found.retain.x, train.x[found.retain_index])
    assert torch.equal(found.retain.y, train.y[found.retain_index])
    assert torch.equal(found.forget.x, train.x[found.forget_index])
    assert torch.equal(found.test.y, test.y) and torch.equal(found.unseen.x, test.x)


@pytest.mark.parametrize("kind", ["random", "mislabelled"])
def test_scenarios_follow_the_seed(kind, split):
    a, b, c = (make_scenario(KINDS[kind], *split, 10, seed=s) for s in (1, 1, 2))
    assert torch.equal(a.forget_index, b.forget_index) and torch.equal(a.forget.y, b.forget.y)
    assert not torch.equal(a.forget_index, c.forget_index)


def test_random_takes_its_share_of_every_class(split):
    train, _ = split
    found = make_scenario(KINDS["random"], *split, 10, seed=1)
    wanted = [round(0.1 * int(count)) for count in train.y.bincount()]
    assert found.forget.y.bincount().tolist() == wanted
    assert torch.equal(found.forget.y, train.y[found.forget_index])


def test_class_takes_all_of_it_and_keeps_the_test_set_whole(split):
    _, test = split
    found = make_scenario(KINDS["class"], *split, 10, seed=1)
    assert set(found.forget.y.tolist()) == {3} and 3 not in found.retain.y.tolist()
    assert 3 in found.test.y.tolist() and torch.equal(found.unseen.y, test.y)


def test_mislabelled_has_wrong_labels_on_both_sides_of_the_attack(split):
    train, test = split
    found = make_scenario(KINDS["mislabelled"], *split, 10, seed=1)
    assert bool((found.forget.y != train.y[found.forget_index]).all())
    assert bool((found.unseen.y != test.y).all())
    assert torch.equal(found.test.y, test.y)


def test_wrong_labels_are_uniform_over_the_others():
    shifts = (mislabel(torch.full((9000,), 7), 10, seed=0) - 7) % 10
    counts = shifts.bincount(minlength=10)
    assert counts[0] == 0
    assert bool(((counts[1:] - 1000).abs() < 150).all())  # five standard deviations of 30


def test_an_empty_forget_set_is_refused(split):
    with pytest.raises(ConfigError, match="at least one sample each, got 0"):
        make_scenario(ScenarioConfig("random", fraction=0.001), *split, 10, seed=0)


@pytest.mark.parametrize("kind", ["random", "mislabelled"])
def test_a_shift_moves_both_sides_of_the_attack_and_nothing_else(kind, split):
    found = make_scenario(KINDS[kind], *split, 10, seed=1)
    moved = shifted(found, lambda x: 1 - x)
    assert moved.unshifted_forget is found.forget and found.unshifted_forget is None
    for name in ("forget", "unseen"):
        before, after = getattr(found, name), getattr(moved, name)
        assert torch.equal(after.x, 1 - before.x) and torch.equal(after.y, before.y)
    assert moved.retain is found.retain and moved.test is found.test


def test_among_equally_memorised_the_seed_draws(split):
    train, test = split
    config = ScenarioConfig("memorised", fraction=0.1, models=2)
    scores = torch.zeros(len(train))
    a, b, c = (
        make_scenario(config, train, test, 10, seed=s, memorisation=scores).forget_index
        for s in (1, 1, 2)
    )
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_memorised_takes_the_greatest_scores(split):
    train, test = split
    scores = torch.rand(len(train), generator=torch.Generator().manual_seed(0))
    config = ScenarioConfig("memorised", fraction=0.1, models=2)
    found = make_scenario(config, train, test, 10, seed=1, memorisation=scores)
    assert len(found.forget_index) == round(0.1 * len(train))
    assert scores[found.forget_index].min() > scores[found.retain_index].max()
    assert torch.equal(found.forget.y, train.y[found.forget_index])
    both = torch.cat([found.forget_index, found.retain_index]).sort().values
    assert torch.equal(both, torch.arange(len(train)))
