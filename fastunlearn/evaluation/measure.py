"""The figures of one run: every method's model set against the original and the retrained one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from fastunlearn.evaluation.data import Samples, derive_seed
from fastunlearn.evaluation.results import AUDIT_METRICS, METRICS
from fastunlearn.evaluation.scenarios import Scenario
from fastunlearn.evaluation.task import Outcome
from fastunlearn.evaluation.training import predict
from fastunlearn.metrics import (
    AVERAGE_GAP_METRICS,
    Undefined,
    accuracy,
    average_gap,
    forgetting_rate,
    forgetting_rate_normalised,
    js_divergence,
    membership_attack,
    memory_retention_rate,
    memory_retention_rate_normalised,
    parameter_distance,
    undefined_reason,
    unlearning_accuracy,
    unlearning_degree,
    unlearning_degree_normalised,
)


@dataclass(frozen=True)
class Metrics:
    """The figures of one method.

    Args:
        values: every name of `results.METRICS`, in an audit also of `results.AUDIT_METRICS`; None
            where undefined.
        undefined: the reason of each None.
    """

    values: dict[str, float | None]
    undefined: dict[str, str]


@dataclass(frozen=True)
class _Outputs:
    """Logits of one model on the sets, and the accuracies that follow.

    `on_unshifted` is None outside an audit.
    """

    forget: Tensor
    unseen: Tensor
    on_forget: float
    on_retain: float
    on_test: float
    on_unshifted: float | None


def measure(
    outcomes: Mapping[str, Outcome],
    scenario: Scenario,
    *,
    seed: int,
    aim: tuple[float, float] | None = None,
) -> dict[str, Metrics]:
    """Measure every method of a run.

    `js_to_retrained` is the mean Jensen-Shannon divergence (nats) of the outputs on the forget
    set; `parameter_distance` is the L2 distance to the original model. The membership attack
    tells forget samples from unseen samples of the same labels and has one seed for all methods.
    In an audit the forget set of all these figures is the shifted one, and normalised degrees are
    relative to the mean performance of all retrained models.

    Args:
        outcomes: by method name; must hold `original` and `retrain`.
        scenario: the sets of the run.
        seed: of the run.
        aim: in an audit, mean accuracy of its retrained models on the shifted and the unshifted
            forget set; None outside.

    Returns:
        The metrics by method name.
    """
    outputs = {name: _outputs(outcome, scenario) for name, outcome in outcomes.items()}
    attack_seed = derive_seed(seed, "attack") % 2**32
    with _one_blas_thread():
        attacks = {
            name: _attack_metrics(own, scenario, attack_seed) for name, own in outputs.items()
        }
    raw = {
        name: {
            **_accuracy_metrics(outputs[name], outputs["original"], outputs["retrain"]),
            **attacks[name],
            "js_to_retrained": float(
                js_divergence(outputs[name].forget, outputs["retrain"].forget)
            ),
            "parameter_distance": parameter_distance(outcome.model, outcomes["original"].model),
        }
        for name, outcome in outcomes.items()
    }
    if aim is not None:
        for name, own in outputs.items():
            raw[name] |= _audit_metrics(own, outputs["original"], aim)
            raw[name] |= _step_metrics(outcomes[name], outcomes["retrain"])
    for values in raw.values():
        values["average_gap"] = average_gap(values, raw["retrain"])
        values["average_gap_without_attack"] = _gap_without_attack(values, raw["retrain"])
    return {name: _checked(values) for name, values in raw.items()}


def _gap_without_attack(own: dict[str, float], retrained: dict[str, float]) -> float:
    """Return the average gap over the accuracies alone; the attack's AUC is its noisiest part."""
    names = [name for name in AVERAGE_GAP_METRICS if name != "mia_auc"]
    return math.fsum(abs(own[name] - retrained[name]) for name in names) / len(names)


@contextmanager
def _one_blas_thread() -> Iterator[None]:
    """Keep BLAS to one thread: with the attack's few unknowns, more only wait for each other."""
    import sklearn.linear_model  # noqa: F401  (loads the libraries that are to be limited)
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(1, user_api="blas"):
        yield


def _outputs(outcome: Outcome, scenario: Scenario) -> _Outputs:
    def on(samples: Samples) -> float:
        return accuracy(predict(outcome.model, samples), samples.y)

    forget = predict(outcome.model, scenario.forget)
    plain = scenario.unshifted_forget
    return _Outputs(
        forget=forget,
        unseen=predict(outcome.model, scenario.unseen),
        on_forget=accuracy(forget, scenario.forget.y),
        on_retain=on(scenario.retain),
        on_test=on(scenario.test),
        on_unshifted=None if plain is None else on(plain),
    )


def _accuracy_metrics(own: _Outputs, original: _Outputs, retrained: _Outputs) -> dict[str, float]:
    return {
        "forget_accuracy": own.on_forget,
        "retain_accuracy": own.on_retain,
        "test_accuracy": own.on_test,
        "forgetting_rate": forgetting_rate(original.on_forget, own.on_forget),
        "forgetting_rate_normalised": forgetting_rate_normalised(
            original.on_forget, own.on_forget, retrained.on_forget
        ),
        "memory_retention_rate": memory_retention_rate(original.on_retain, own.on_retain),
        "memory_retention_rate_test": memory_retention_rate(original.on_test, own.on_test),
        "memory_retention_rate_normalised": memory_retention_rate_normalised(
            own.on_retain, retrained.on_retain
        ),
        "unlearning_accuracy": unlearning_accuracy(own.on_forget),
    }


def _audit_metrics(own: _Outputs, original: _Outputs, aim: tuple[float, float]) -> dict[str, float]:
    assert own.on_unshifted is not None  # all outputs of an audit have it
    assert original.on_unshifted is not None
    plain = (original.on_unshifted, own.on_unshifted)
    return {
        "unlearning_degree": unlearning_degree(original.on_forget, own.on_forget),
        "unlearning_degree_normalised": unlearning_degree_normalised(
            original.on_forget, own.on_forget, aim[0]
        ),
        "unshifted_forget_accuracy": own.on_unshifted,
        "unshifted_degree": unlearning_degree(*plain),
        # the same formula, and its reason names the unshifted set
        "unshifted_degree_normalised": forgetting_rate_normalised(*plain, aim[1]),
    }


def _step_metrics(own: Outcome, retrained: Outcome) -> dict[str, float]:
    if not retrained.optimizer_steps:
        ratio: float = Undefined("the retrained model took no step of an optimiser")
    else:
        ratio = own.optimizer_steps / retrained.optimizer_steps
    return {"optimizer_steps": float(own.optimizer_steps), "optimizer_step_ratio": ratio}


def _attack_metrics(own: _Outputs, scenario: Scenario, seed: int) -> dict[str, float]:
    found = membership_attack(
        own.forget, scenario.forget.y, own.unseen, scenario.unseen.y, seed=seed
    )
    return {
        "mia_auc": found.auc,
        "mia_auc_low": found.auc_low,
        "mia_auc_high": found.auc_high,
        "mia_accuracy": found.accuracy,
        "mia_loss_auc": found.loss_auc,
        "mia_examples_per_side": float(found.n_per_side),
    }


def _checked(raw: dict[str, float]) -> Metrics:
    """Replace what is not a finite number by None, with the reason."""
    values: dict[str, float | None] = {}
    undefined: dict[str, str] = {}
    for name in (*METRICS, *(name for name in AUDIT_METRICS if name in raw)):
        value = raw[name]
        reason = undefined_reason(value)
        if reason is None and math.isinf(value):
            reason = "the value is infinite"
        if reason is None:
            values[name] = float(value)
        else:
            values[name] = None
            undefined[name] = reason
    return Metrics(values, undefined)
