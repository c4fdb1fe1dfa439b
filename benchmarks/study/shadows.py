"""U-LiRA and the challenge's score for one method after another, on the same shadow models."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fastunlearn.evaluation.audit import make_instrument
from fastunlearn.evaluation.config import Config, ScenarioConfig
from fastunlearn.evaluation.data import Samples, derive_seed, joined, stratified_choice
from fastunlearn.evaluation.methods import METHODS
from fastunlearn.evaluation.models import build_model
from fastunlearn.evaluation.one_seed import make_task
from fastunlearn.evaluation.scenarios import mislabel
from fastunlearn.evaluation.shadow import (
    PoolScores,
    ShadowData,
    ShadowPlan,
    ShadowScores,
    shadow_scores,
    trainer,
)
from fastunlearn.evaluation.shadow_attack import ShadowReport, attack_pool
from fastunlearn.evaluation.task import Task
from fastunlearn.evaluation.training import predict, silent
from fastunlearn.metrics import accuracy, epsilon_score, example_epsilons, forgetting_quality


@dataclass(frozen=True)
class Outputs:
    """What the shadow models give after unlearning by one method.

    Args:
        scores: of the two pools.
        retain: mean accuracy of the models, each on its own retain set.
        test: mean accuracy on the test set.
    """

    scores: ShadowScores
    retain: float
    test: float


class Shadows:
    """Shadow models of one cell, trained once and unlearned by any method of its configuration.

    The training set is parted into the two pools and a base set. The pools have such a share that
    half the forget pool is 10 % of what a shadow model is trained on, as in the study. What sets
    the forget pool apart holds for all of it, so that what a model was trained on and what it never
    saw are alike but for that: in an audit one SPD-GAN shifts it, fitted on it against references
    that are trained on all the rest; mislabelled, all its labels are wrong. The retain pool is as
    it is.

    Args:
        config: a random or a mislabelled forget set; its first seed gives the split.
        samples: the whole data set.
        n_models: number of shadow models, see `ShadowPlan`.

    Raises:
        ValueError: the forget set is of another kind.
    """

    POOL = 1 / 6  # of the training set: (1/6 / 2) / (1 - 1/6) = 0.1

    def __init__(self, config: Config, samples: Samples, n_models: int) -> None:
        kind, seed = config.scenario.kind, config.seeds[0]
        if kind not in ("random", "mislabelled"):
            raise ValueError(f"Shadows: scenario must be random or mislabelled, got {kind!r}")
        # the true labels of all, whatever the scenario
        plain = replace(config, scenario=ScenarioConfig("random", fraction=0.1))
        self._task = make_task(plain, samples, seed)
        self._plan = ShadowPlan(n_models, seed=derive_seed(seed, "checks"))
        self._data = _pools(self._task, self.POOL, wrong=kind == "mislabelled")
        self._train = trainer(config.train)
        self._trained: dict[int, dict[str, Tensor]] = {}

    def outputs(self, name: str) -> Outputs:
        """Unlearn every shadow model by the method of that row and score both pools."""
        config, n_classes, test = self._task.config, self._task.n_classes, self._task.scenario.test
        image_size = test.x.shape[-1]
        on_retain, on_test = [], []

        def unlearn(model: nn.Module, forget: Samples, retain: Samples, seed: int) -> nn.Module:
            task = _with_sets(self._task, forget, retain)
            unlearned = unlearned_model(replace(task, seed=seed, original=model), name)
            on_retain.append(accuracy(predict(unlearned, retain), retain.y))
            on_test.append(accuracy(predict(unlearned, test), test.y))
            return unlearned

        scores = shadow_scores(
            self._plan,
            self._data,
            make_model=lambda seed: build_model(config.model, image_size, n_classes, seed=seed),
            train=self._train_once,
            unlearn=unlearn,
        )
        return Outputs(
            scores, math.fsum(on_retain) / len(on_retain), math.fsum(on_test) / len(on_test)
        )

    def _train_once(self, model: nn.Module, samples: Samples, seed: int) -> None:
        """Train, or take the weights of the training with that seed, which no other has."""
        if seed not in self._trained:
            self._train(model, samples, seed)
            self._trained[seed] = copy.deepcopy(model.state_dict())
        model.load_state_dict(self._trained[seed])
        model.eval()


def unlearned_model(task: Task, name: str) -> nn.Module:
    """Return what the method of that row makes of the task's original model."""
    if name == "original":
        return task.copy_of_original()
    method = task.config.methods[name]
    return METHODS[method.kind].run(task, method).model


def attacks(scores: ShadowScores) -> dict[str, Any]:
    """Return the figures of U-LiRA on both pools, see `benchmarks.study.checks`."""
    return {name: _attack(getattr(scores, name)) for name in ("forget", "retain")}


def challenge(own: Outputs, retrained: Outputs) -> dict[str, Any]:
    """Return the epsilon score of the NeurIPS 2023 challenge with the number of models behind it.

    Each forget example has as many unlearned as retrained models: those half of the shadow models
    that learned it. They differ in the rest of their data too, while the challenge's differ in the
    seed alone; that widens both sides and makes this attack the weaker one [ours].

    Args:
        own: of the method.
        retrained: of models retrained on the same retain sets.
    """
    ours, theirs = (_of_members(each.scores.forget) for each in (own, retrained))
    epsilons = example_epsilons(ours, theirs)
    n_models = len(ours)
    return {
        "score": epsilon_score(
            epsilons,
            retain=own.retain,
            retain_retrained=retrained.retain,
            test=own.test,
            test_retrained=retrained.test,
        ),
        "quality": forgetting_quality(epsilons),
        "separated": float(epsilons.isinf().double().mean()),
        "models_per_side": n_models,
        "greatest_finite_epsilon": math.log(n_models - 1),
    }


def _of_members(pool: PoolScores) -> Tensor:
    """Return the scores of each example in the models that unlearned it, shape (S / 2, N)."""
    n_models, n_examples = pool.members.shape
    return pool.unlearned.T[pool.members.T].view(n_examples, n_models // 2).T


def _attack(pool: PoolScores) -> dict[str, Any]:
    report = attack_pool(pool)
    pooled = report.pooled.to_dict()
    return {
        "auc": asdict(report.auc),
        "rates": pooled["rates"],
        "undefined": pooled["undefined"],
        "detectable": report.detectable,
        "strength": strength(report),
    }


def strength(report: ShadowReport) -> str:
    """Return in words how strong the attack was and what it could have found."""
    return (
        f"{report.n_models} models attacked, {report.n_shadows_per_side} shadow models on each "
        f"side of a ratio, {report.n_examples} examples; an AUC nearer to 0.5 than "
        f"{report.detectable:.3f} would likely have been missed"
    )


def _pools(task: Task, share: float, *, wrong: bool) -> ShadowData:
    """Part the training set: two pools of that share, the rest the base; shift or mislabel one."""
    everything = joined(task.scenario.forget, task.scenario.retain)
    seed = derive_seed(task.seed, "checks", "forget pool")
    chosen, others = stratified_choice(everything.y, share, seed=seed)
    forget, rest = everything.at(chosen), everything.at(others)
    if wrong:
        seed = derive_seed(task.seed, "checks", "wrong labels")
        forget = replace(forget, y=mislabel(forget.y, task.n_classes, seed=seed))
    if task.config.spdgan is not None:
        instrument = make_instrument(_with_sets(task, forget, rest), lambda _: nullcontext(silent))
        forget = instrument.task.scenario.forget
    seed = derive_seed(task.seed, "checks", "retain pool")
    chosen, others = stratified_choice(rest.y, share / (1 - share), seed=seed)
    return ShadowData(rest.at(others), forget, rest.at(chosen))


def _with_sets(task: Task, forget: Samples, retain: Samples) -> Task:
    """Return the task with other sets; their places are those in forget and retain joined."""
    n_forget = len(forget)
    scenario = replace(
        task.scenario,
        forget=forget,
        retain=retain,
        forget_index=torch.arange(n_forget),
        retain_index=torch.arange(n_forget, n_forget + len(retain)),
    )
    return replace(task, scenario=scenario)
