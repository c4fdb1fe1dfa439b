"""Shadow models and U-LiRA end to end: halves, resuming, and the values that must come out."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fastunlearn.evaluation.config import TrainConfig
from fastunlearn.evaluation.data import Samples
from fastunlearn.evaluation.scenarios import mislabel
from fastunlearn.evaluation.shadow import (
    PoolScores,
    ShadowData,
    ShadowPlan,
    ShadowScores,
    shadow_scores,
    trainer,
)
from fastunlearn.evaluation.shadow_attack import _mean_area, _ratios, attack_pool
from fastunlearn.evaluation.training import predict
from fastunlearn.metrics import Interval, membership_scores, threshold_attack, undefined_reason

FIT = trainer(TrainConfig(epochs=50, batch_size=64, lr=0.02))
BRIEF = trainer(TrainConfig(epochs=10, batch_size=64, lr=0.01))


def make_model(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def keep(model: nn.Module, forget: Samples, retain: Samples, seed: int) -> nn.Module:
    return model


def retrain(model: nn.Module, forget: Samples, retain: Samples, seed: int) -> nn.Module:
    fresh = make_model(seed)
    FIT(fresh, retain, seed)
    return fresh


@pytest.fixture(scope="module")
def noisy(digits: Samples) -> ShadowData:
    """40 digits to keep, and two pools of 80 with wrong labels, which must be memorised."""
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))
    base, forget, retain = (digits.at(part) for part in order[:200].split([40, 80, 80]))
    wrong = (
        Samples(pool.x, mislabel(pool.y, 10, seed=k)) for k, pool in enumerate((forget, retain))
    )
    return ShadowData(base, *wrong)


@pytest.fixture(scope="module")
def memorised(noisy: ShadowData) -> ShadowScores:
    """Models that learn all of their examples by heart, and are retrained to forget."""
    return shadow_scores(
        ShadowPlan(8, seed=1), noisy, make_model=make_model, train=FIT, unlearn=retrain
    )


def test_the_halves_of_a_pair_complement_each_other() -> None:
    members = ShadowPlan(8, seed=3).members("forget", 11)
    assert members.shape == (8, 11) and members.dtype == torch.bool
    assert torch.equal(members[0::2], ~members[1::2])
    assert members.sum(0).tolist() == [4] * 11
    assert members.sum(1).tolist() == [5, 6] * 4
    assert len({tuple(row) for row in members.tolist()}) == 8
    assert not torch.equal(members, ShadowPlan(8, seed=4).members("forget", 11))
    assert not torch.equal(members, ShadowPlan(8, seed=3).members("retain", 11))


class Memoriser(nn.Module):
    """Answers the stored label of what it has been given, and that of the nearest to the rest."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen = Samples(torch.empty(0), torch.empty(0))

    def forward(self, x: Tensor) -> Tensor:
        distance, nearest = torch.cdist(x.flatten(1), self.seen.x.flatten(1)).min(1)
        answer = nn.functional.one_hot(self.seen.y[nearest], 10)
        return answer * torch.where(distance < 1e-3, 20.0, 5.0).unsqueeze(-1)


def store(model: Memoriser, samples: Samples, seed: int) -> None:
    model.seen = samples


def erase(model: Memoriser, forget: Samples, retain: Samples, seed: int) -> Memoriser:
    model.seen = retain
    return model


@pytest.mark.parametrize("variance", ["fixed", "per_example"])
def test_a_perfect_memoriser_has_an_area_of_one(noisy: ShadowData, variance: str) -> None:
    scores = shadow_scores(ShadowPlan(8), noisy, make_model=Memoriser, train=store, unlearn=erase)
    for report in (
        attack_pool(scores.forget, when="original", variance=variance),
        attack_pool(scores.retain, when="original", variance=variance),
        attack_pool(scores.retain, variance=variance),
    ):
        assert report.auc_per_model == (1.0,) * 8
        assert (report.pooled.auc, report.pooled.rate_at(0.01).tpr) == (1.0, 1.0)
    erased = attack_pool(scores.forget, variance=variance)
    assert erased.auc.low < 0.5 < erased.auc.high


@pytest.mark.parametrize("variance", ["fixed", "per_example"])
def test_a_network_that_learned_by_heart_is_found(memorised: ShadowScores, variance: str) -> None:
    for pool in (memorised.forget, memorised.retain):
        report = attack_pool(pool, when="original", variance=variance)
        assert report.auc.low > 0.9
        rate = report.pooled.rate_at(0.01)
        assert rate.low > 2 * rate.fpr_high
    assert (report.n_models, report.n_shadows_per_side, report.n_examples) == (8, 3, 80)


@pytest.mark.parametrize("variance", ["fixed", "per_example"])
def test_retraining_leaves_nothing_to_find(memorised: ShadowScores, variance: str) -> None:
    report = attack_pool(memorised.forget, variance=variance)
    assert report.auc.low < 0.5 < report.auc.high
    assert 0 < report.detectable < 0.12
    # It keeps the retain half, and that stays as visible as before.
    assert attack_pool(memorised.retain, variance=variance).auc.low > 0.9


def test_half_learned_labels_are_in_between(noisy: ShadowData) -> None:
    scores = shadow_scores(
        ShadowPlan(8, seed=1), noisy, make_model=make_model, train=BRIEF, unlearn=keep
    )
    report = attack_pool(scores.forget)
    assert 0.55 < report.auc.low < report.auc.high < 0.95
    assert torch.equal(scores.forget.original, scores.forget.unlearned)


def test_threshold_attacks_on_one_model(noisy: ShadowData) -> None:
    members, others = noisy.forget, noisy.retain
    found = {}
    for name, samples, model, train in (
        ("memoriser", members, Memoriser(0), store),
        ("network", members, make_model(0), FIT),
        ("half learned", members, make_model(0), BRIEF),
        ("retrained", noisy.base, make_model(0), FIT),
    ):
        train(model, samples, 0)
        sides = (
            membership_scores(predict(model, side), side.y, "scaled_logit")
            for side in (members, others)
        )
        found[name] = threshold_attack(*sides)
    assert found["memoriser"].auc == found["memoriser"].accuracy == 1.0
    assert found["network"].auc > 0.95
    assert found["retrained"].auc_low < 0.5 < found["retrained"].auc_high
    assert found["retrained"].auc_high < found["half learned"].auc < found["network"].auc_low


def null_scores(seed: int, n_models: int = 6, n: int = 400) -> PoolScores:
    """Scores that do not depend on membership; easy and hard examples."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n_models, n, generator=generator, dtype=torch.float64)
    scores = noise + 3 * torch.randn(n, generator=generator, dtype=torch.float64)
    return PoolScores(ShadowPlan(n_models, seed).members("forget", n), scores, scores)


def mean_area(scores: PoolScores, variance: str) -> Interval:
    n_models = len(scores.members)
    ratios = [_ratios(scores.members, scores.unlearned, t, variance) for t in range(n_models)]
    return _mean_area(torch.stack(ratios).numpy(), scores.members.numpy(), seed=0)[1]


@pytest.mark.parametrize("variance", ["fixed", "per_example"])
def test_the_attack_is_not_biased_where_there_is_nothing(variance: str) -> None:
    areas = [mean_area(null_scores(seed), variance).value for seed in range(8)]
    # One area has a standard error of 0.029, the mean of 8 runs of 6 models one of 0.004. Leaving
    # out the attacked model alone, not its pair, would give 0.47 and 0.41.
    assert abs(sum(areas) / 8 - 0.5) < 0.015


def test_what_a_run_could_have_shown() -> None:
    report = attack_pool(null_scores(0))
    # 2.80 standard errors: one model of 200 + 200 examples has 0.029, six that are compared with
    # each other 0.029 * sqrt(2 / 6).
    assert 2.8 * 0.029 * (2 / 6) ** 0.5 * 0.99 < report.detectable < 0.07
    assert report.pooled.n_members == report.pooled.n_nonmembers == 1200


def test_the_interval_holds_the_truth_where_there_is_nothing() -> None:
    found = [mean_area(null_scores(seed, 8, 100), "fixed") for seed in range(40)]
    held = sum(auc.low <= 0.5 <= auc.high for auc in found)
    # 36 of 40 expected at 90 %, with a standard deviation of 1.9; over models it would be 30.
    assert held >= 34


def test_areas_are_those_of_the_pairs() -> None:
    ratios = torch.tensor([[1.0, 2.0, 2.0, 0.0], [3.0, 1.0, 0.0, 3.0]]).double()
    members = torch.tensor([[0, 1, 0, 1], [1, 0, 0, 1]]).bool()
    rows = (values.repeat(1, 10).numpy() for values in (ratios, members))
    areas, auc, _ = _mean_area(*rows, seed=0)
    # Model 0: (2 > 1), (2 = 2), (0 < 1), (0 < 2): 1.5 of 4. Model 1: all of 4.
    assert areas == (0.375, 1.0) and auc.value == 0.6875 and auc.n == 40


def test_scores_that_are_not_finite() -> None:
    scores = null_scores(0)
    scores.unlearned[0, 0] = float("nan")
    report = attack_pool(scores)
    assert "not finite" in undefined_reason(report.auc.value)
    assert "not finite" in undefined_reason(report.pooled.auc)


class Counter:
    """A trainer that counts its calls and stops after some."""

    def __init__(self, limit: int) -> None:
        self.calls, self.limit = 0, limit

    def __call__(self, model: nn.Module, samples: Samples, seed: int) -> None:
        if self.calls == self.limit:
            raise KeyboardInterrupt
        self.calls += 1
        BRIEF(model, samples, seed)


def tiny(digits: Samples) -> ShadowData:
    return ShadowData(*(digits.at(part) for part in torch.arange(50).split([10, 20, 20])))


def test_resuming_gives_the_same_bits(digits: Samples, tmp_path: Path) -> None:
    data, plan = tiny(digits), ShadowPlan(6)
    options = {"make_model": make_model, "unlearn": retrain, "key": "tiny"}
    whole = shadow_scores(plan, data, train=BRIEF, **options)
    state = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        shadow_scores(plan, data, train=Counter(4), folder=tmp_path, **options)
    assert len(list(tmp_path.iterdir())) == 4
    rest, seen = Counter(99), []
    resumed = shadow_scores(
        plan, data, train=rest, folder=tmp_path, progress=lambda *e: seen.append(e), **options
    )
    assert rest.calls == 2
    assert seen == [("shadow model", k, 6) for k in range(1, 7)]
    assert torch.equal(torch.get_rng_state(), state)
    for pool in ("forget", "retain"):
        for field in ("members", "original", "unlearned"):
            first, second = (getattr(getattr(s, pool), field) for s in (whole, resumed))
            assert torch.equal(first, second), (pool, field)


def test_files_of_another_run_are_refused(digits: Samples, tmp_path: Path) -> None:
    data, plan = tiny(digits), ShadowPlan(6)
    options = {
        "make_model": make_model,
        "train": BRIEF,
        "unlearn": keep,
        "folder": tmp_path,
    }
    shadow_scores(plan, data, key="a", **options)
    spoiled = copy.deepcopy(data)
    spoiled.forget.y[0] += 1
    for other_plan, other_data, key in (
        (plan, data, "b"),
        (ShadowPlan(6, seed=1), data, "a"),
        (plan, spoiled, "a"),
    ):
        with pytest.raises(ValueError, match="^resume: .* must be of this data and these settings"):
            shadow_scores(other_plan, other_data, key=key, **options)
    (tmp_path / "shadow-0000.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="must be a safetensors file"):
        shadow_scores(plan, data, key="a", **options)


def test_what_the_method_is_given(digits: Samples) -> None:
    data, plan, given = tiny(digits), ShadowPlan(6), []

    def record(model: nn.Module, forget: Samples, retain: Samples, seed: int) -> nn.Module:
        given.append((forget, retain, seed))
        return model

    shadow_scores(plan, data, make_model=make_model, train=BRIEF, unlearn=record)
    for number, (forget, retain, _) in enumerate(given):
        expected = data.forget.x[plan.members("forget", 20)[number]]
        assert torch.equal(forget.x, expected)
        kept = data.retain.x[plan.members("retain", 20)[number]]
        assert torch.equal(retain.x, torch.cat([data.base.x, kept]))
    assert len({seed for *_, seed in given}) == 6


@pytest.mark.parametrize("n_models", [4, 7, True])
def test_refusals(digits: Samples, n_models: int) -> None:
    with pytest.raises(ValueError, match="n_models must be an even integer >= 6"):
        ShadowPlan(n_models)
    one = digits.at(torch.arange(1))
    with pytest.raises(ValueError, match="forget must hold at least 20 examples, got 1"):
        ShadowData(digits, one, digits)
