"""Memorisation scores: known cases, standard errors, cache."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fastunlearn.evaluation.data import Samples
from fastunlearn.evaluation.memorisation import (
    Memorisation,
    memorisation_scores,
    most_memorised,
)

N = 30


class Lookup(nn.Module):
    """Knows what it has seen; answers 0 to everything else."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.known: dict[float, int] = {}

    def forward(self, x: Tensor) -> Tensor:
        answers = torch.tensor([self.known.get(float(value), 0) for value in x[:, 0]])
        return nn.functional.one_hot(answers, 3).float()


class Trainer:
    """Teaches a `Lookup` by heart, counts its calls, and stops after some."""

    def __init__(self, limit: int = 999) -> None:
        self.sizes: list[int] = []
        self.limit = limit

    def __call__(self, model: nn.Module, samples: Samples, seed: int) -> None:
        if len(self.sizes) == self.limit:
            raise KeyboardInterrupt
        self.sizes.append(len(samples))
        model.known = dict(zip(samples.x[:, 0].tolist(), samples.y.tolist(), strict=True))


def train_set() -> Samples:
    """Labels 0 and 1 in turn: a `Lookup` has to memorise the ones, and gets the zeros anyway."""
    return Samples(torch.arange(float(N)).unsqueeze(-1), torch.arange(N) % 2)


def scored(train=None, **options) -> Memorisation:
    settings = {"n_models": 10} | options
    return memorisation_scores(train_set(), make_model=Lookup, train=train or Trainer(), **settings)


def test_known_values() -> None:
    found = scored()
    assert found.scores.tolist() == [0.0, 1.0] * (N // 2)
    assert found.inside.sum(0).tolist() == [7] * N and found.inside.shape == (10, N)
    # Memorised: 7 of 7 with, 0 of 3 without. (8/9)(1/9)/9 + (1/5)(4/5)/5.
    error = math.sqrt(8 / 81 / 9 + 4 / 25 / 5)
    assert found.standard_errors[1].item() == pytest.approx(error, abs=1e-12)


def test_the_standard_error_is_that_of_the_score() -> None:
    # A model that answers at random: right in half of the cases, whatever it has seen.
    class Coin(Lookup):
        def forward(self, x: Tensor) -> Tensor:
            return torch.randn(len(x), 2)

    found = memorisation_scores(train_set(), make_model=Coin, train=Trainer(), n_models=60)
    assert abs(float(found.scores.mean())) < 0.1
    # 30 scores estimate their spread to 13 %.
    assert float(found.scores.std()) == pytest.approx(float(found.standard_errors.mean()), rel=0.45)


def test_subsets_are_seeded() -> None:
    assert torch.equal(scored().inside, scored().inside)
    assert not torch.equal(scored().inside, scored(seed=1).inside)
    sizes = Trainer()
    scored(sizes, share=0.5)
    assert sum(sizes.sizes) == 5 * N and len(set(sizes.sizes)) > 1


def test_the_cache_goes_on_where_it_was_left(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        scored(Trainer(4), folder=tmp_path)
    rest, seen = Trainer(), []
    found = scored(rest, folder=tmp_path, progress=lambda *event: seen.append(event))
    assert len(rest.sizes) == 6 and seen[0] == ("held-out model", 5, 10)
    again = Trainer()
    cached = scored(again, folder=tmp_path)
    assert not again.sizes
    for result in (found, cached):
        assert torch.equal(result.correct, scored().correct)
    assert len(list(tmp_path.iterdir())) == 1
    for change in ({"seed": 1}, {"share": 0.5}, {"key": "other"}):
        other = Trainer()
        scored(other, folder=tmp_path, **change)
        assert len(other.sizes) == 10, change


def test_mislabelled_digits_are_the_most_memorised(digits: Samples) -> None:
    from fastunlearn.evaluation.config import TrainConfig
    from fastunlearn.evaluation.shadow import trainer

    samples = digits.at(torch.arange(200))
    samples.y[:10] = (samples.y[:10] + 5) % 10

    def make_model(seed: int) -> nn.Module:
        torch.default_generator.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

    found = memorisation_scores(
        samples,
        make_model=make_model,
        train=trainer(TrainConfig(epochs=60, batch_size=32, lr=0.01)),
        n_models=10,
    )
    assert float(found.scores[:10].mean()) > 0.8 > 0.3 > float(found.scores[10:].mean())
    # some others have the greatest score as well: twice as many are taken, so ties choose little
    assert (most_memorised(found.scores, 0.1, seed=0) < 10).sum() >= 8


def test_most_memorised() -> None:
    scores = torch.tensor([0.5, 0.9, 0.5, 0.1, 0.5])
    assert most_memorised(scores, 0.01, seed=0).tolist() == [1]
    assert most_memorised(scores, 0.8, seed=0).tolist() == [0, 1, 2, 4]
    assert most_memorised(scores, 1.0, seed=0).tolist() == [0, 1, 2, 3, 4]
    pairs = {tuple(most_memorised(scores, 0.4, seed=seed).tolist()) for seed in range(30)}
    assert pairs == {(0, 1), (1, 2), (1, 4)}


def test_equal_scores_are_drawn_by_the_seed() -> None:
    scores = torch.zeros(200)
    found = [most_memorised(scores, 0.1, seed=seed).tolist() for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    for chosen in found:
        assert len(set(chosen)) == 20 and chosen == sorted(chosen)
        assert sum(index < 20 for index in chosen) < 10 and max(chosen) > 100


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scored(share=1.0), r"share must be in \(0, 1\), got 1"),
        (lambda: scored(n_models=1), "n_models must leave each example in some subsets"),
        (lambda: most_memorised(torch.ones(3), 0.0, seed=0), r"fraction must be in \(0, 1\]"),
        (lambda: most_memorised(torch.tensor([1.0, math.nan]), 0.5, seed=0), "with 1 NaN"),
    ],
)
def test_refusals(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
