"""The torchmetrics classes agree with the functions and behave as torchmetrics' own."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable

import matplotlib
import pytest
import torch
from matplotlib import pyplot
from torch import Tensor
from torch.nn.functional import one_hot
from torchmetrics import Metric, MetricCollection

from fastunlearn import metrics as fm

Data = dict[str, Tensor]


def make_data(n: int = 50, seed: int = 0) -> Data:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, 3, (n,), generator=generator)
    data = {
        name: torch.randn(n, 3, generator=generator) + boost * one_hot(targets, 3)
        for name, boost in (("original", 3.0), ("unlearned", 1.0), ("retrained", 2.0))
    }
    return {**data, "targets": targets}


def accuracies(data: Data) -> dict[str, float]:
    return {
        name: fm.accuracy(data[name], data["targets"])
        for name in ("original", "unlearned", "retrained")
    }


# The class, the arguments of its update, and the same value from the pure functions.
CASES: list[tuple[type[Metric], tuple[str, ...], Callable[[Data, dict[str, float]], float]]] = [
    (
        fm.ForgettingRate,
        ("original", "unlearned", "targets"),
        lambda d, p: fm.forgetting_rate(p["original"], p["unlearned"]),
    ),
    (
        fm.NormalisedForgettingRate,
        ("original", "unlearned", "retrained", "targets"),
        lambda d, p: fm.forgetting_rate_normalised(**p),
    ),
    (
        fm.MemoryRetentionRate,
        ("original", "unlearned", "targets"),
        lambda d, p: fm.memory_retention_rate(p["original"], p["unlearned"]),
    ),
    (
        fm.NormalisedMemoryRetentionRate,
        ("unlearned", "retrained", "targets"),
        lambda d, p: fm.memory_retention_rate_normalised(p["unlearned"], p["retrained"]),
    ),
    (
        fm.UnlearningAccuracy,
        ("unlearned", "targets"),
        lambda d, p: fm.unlearning_accuracy(p["unlearned"]),
    ),
    (
        fm.UnlearningDegree,
        ("original", "unlearned", "targets"),
        lambda d, p: fm.unlearning_degree(p["original"], p["unlearned"]),
    ),
    (
        fm.NormalisedUnlearningDegree,
        ("original", "unlearned", "retrained", "targets"),
        lambda d, p: fm.unlearning_degree_normalised(p["original"], p["unlearned"], p["retrained"]),
    ),
    (
        fm.JensenShannonToRetrained,
        ("unlearned", "retrained"),
        lambda d, p: float(fm.js_divergence(d["unlearned"], d["retrained"])),
    ),
]
BY_CLASS = pytest.mark.parametrize(
    ("metric_class", "names", "function"), CASES, ids=[case[0].__name__ for case in CASES]
)


def pick(data: Data, names: tuple[str, ...], part: slice = slice(None)) -> Data:
    return {name: data[name][part] for name in names}


@BY_CLASS
def test_batches_give_the_value_of_the_function(metric_class, names, function) -> None:
    data, metric = make_data(), metric_class()
    for part in (slice(0, 1), slice(1, 30), slice(30, None)):
        metric.update(**pick(data, names, part))
    expected = function(data, accuracies(data))
    # compute gives float32, and the divergence sums in another order.
    assert metric.compute().item() == pytest.approx(expected, rel=1e-6)
    assert metric.compute().dtype == torch.float32 and metric.compute().shape == ()
    assert metric.undefined_reason is None


@BY_CLASS
def test_forward_gives_the_batch_and_accumulates(metric_class, names, function) -> None:
    data, metric = make_data(), metric_class()
    for part in (slice(0, 20), slice(20, None)):
        batch = {name: value[part] for name, value in data.items()}
        expected = function(batch, accuracies(batch))
        assert metric(**pick(batch, names)).item() == pytest.approx(expected, rel=1e-6)
    expected = function(data, accuracies(data))
    assert metric.compute().item() == pytest.approx(expected, rel=1e-6)


@BY_CLASS
def test_reset_clone_pickle_and_state_dict(metric_class, names, function) -> None:
    metric = metric_class()
    metric.persistent(True)
    metric.update(**pick(make_data(), names))
    value = metric.compute()
    for twin in (metric.clone(), pickle.loads(pickle.dumps(metric))):
        assert twin.compute() == value
    loaded = metric_class()
    loaded.persistent(True)
    loaded.load_state_dict(metric.state_dict())
    loaded.update(**pick(make_data(seed=1), names))
    metric.update(**pick(make_data(seed=1), names))
    assert loaded.compute() == metric.compute() != value
    metric.reset()
    metric.update(**pick(make_data(), names))
    assert metric.compute() == value


@BY_CLASS
@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_no_example_is_nan_with_a_reason(metric_class, names, function) -> None:
    metric = metric_class()
    assert metric.compute().isnan()
    assert metric.undefined_reason == "there is no example"
    metric.reset()
    assert metric.undefined_reason is None


@BY_CLASS
def test_constants_and_inputs(metric_class, names, function) -> None:
    metric, data = metric_class(), make_data()
    assert metric.full_state_update is False and metric.is_differentiable is False
    expected = {fm.JensenShannonToRetrained: False}
    if metric_class in (fm.MemoryRetentionRate, fm.NormalisedMemoryRetentionRate):
        expected[metric_class] = True
    assert metric.higher_is_better is expected.get(metric_class)
    before = {name: value.clone() for name, value in data.items()}
    metric.update(
        **pick({k: v.requires_grad_(v.is_floating_point()) for k, v in data.items()}, names)
    )
    assert not metric.compute().requires_grad
    assert all(torch.equal(before[name], value) for name, value in data.items())


@BY_CLASS
def test_a_refused_batch_leaves_the_state(metric_class, names, function) -> None:
    data, metric = make_data(), metric_class()
    metric.update(**pick(data, names))
    value = metric.compute()
    last = [name for name in names if name != "targets"][-1]
    with pytest.raises(ValueError, match=" must have shape "):
        metric.update(**{**pick(data, names), last: data[last][:5]})
    metric._computed = None  # the cache would hide a changed state
    assert metric.compute() == value


def test_undefined_rate_is_nan_with_a_reason() -> None:
    metric = fm.ForgettingRate()
    wrong = torch.tensor([[1.0, 0.0]])
    metric.update(wrong, wrong, torch.tensor([1]))
    assert metric.compute().isnan()
    assert "performance on the forget set is 0" in (metric.undefined_reason or "")


def test_errors_name_the_class() -> None:
    with pytest.raises(TypeError, match=r"^ForgettingRate\.update: targets must be an integer"):
        fm.ForgettingRate().update(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1))


def test_collection_takes_keywords_and_shares_states_rightly() -> None:
    collection = MetricCollection([case[0]() for case in CASES])
    data = make_data()
    for part in (slice(0, 20), slice(20, None)):
        collection.update(**{name: value[part] for name, value in data.items()})
    values = collection.compute()
    performances = accuracies(data)
    for metric_class, _, function in CASES:
        expected = function(data, performances)
        assert float(values[metric_class.__name__]) == pytest.approx(expected, rel=1e-6)
    collection.reset()
    assert int(collection["UnlearningAccuracy"].total) == 0


def attack_data(n: int = 60) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, targets and sides of n forget and n unseen examples, mixed."""
    targets = torch.arange(2 * n) % 3
    is_forget = torch.arange(2 * n) % 5 < 2
    noise = torch.randn(2 * n, 3, generator=torch.Generator().manual_seed(4))
    return noise + 2.0 * one_hot(targets, 3) * is_forget.unsqueeze(-1), targets, is_forget


@pytest.mark.parametrize("match_labels", [True, False])
def test_attack_metric_equals_the_function(match_labels: bool) -> None:
    logits, targets, forget = attack_data()
    options = {"match_labels": match_labels, "folds": 4, "seed": 3}
    metric = fm.MembershipInferenceAttack(**options)
    metric.update(logits[:50], targets[:50], is_forget=forget[:50])
    for side in (True, False):
        rest = forget[50:] == side
        metric.update(logits[50:][rest], targets[50:][rest], is_forget=side)
    area = metric.compute()
    expected = fm.membership_attack(
        logits[forget], targets[forget], logits[~forget], targets[~forget], **options
    )
    assert metric.result == expected and 0.6 < expected.auc < 1.0
    assert area.item() == pytest.approx(expected.auc, rel=1e-7)
    assert metric.clone().compute() == area
    assert metric.higher_is_better is False


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_attack_metric_without_one_side() -> None:
    metric = fm.MembershipInferenceAttack()
    assert metric.compute().isnan()
    logits, targets, _ = attack_data()
    metric.update(logits, targets, is_forget=True)
    assert metric.compute().isnan()
    assert metric.undefined_reason == "only 0 examples on each side for 5 folds"
    metric.reset()
    assert metric.result is None and metric.rows == []


@pytest.mark.parametrize(
    "is_forget", [1, torch.ones(5, dtype=torch.bool), torch.ones(4)], ids=["int", "shape", "dtype"]
)
def test_attack_metric_refusals(is_forget) -> None:
    metric = fm.MembershipInferenceAttack()
    with pytest.raises(ValueError, match=r"is_forget must be a bool .* \(4,\), got "):
        metric.update(torch.zeros(4, 2), torch.zeros(4).long(), is_forget=is_forget)
    assert metric.rows == []


@BY_CLASS
def test_plot(metric_class, names, function) -> None:
    matplotlib.use("Agg")
    metric = metric_class()
    metric.update(**pick(make_data(), names))
    figure, axes = metric.plot()
    figure.canvas.draw()
    assert axes.has_data()
    values = [metric.compute(), torch.tensor(math.nan), metric.compute()]
    _, given = pyplot.subplots()
    assert metric.plot(values, ax=given)[1] is given
    assert len(given.lines) >= 1
    pyplot.close("all")


def test_plot_of_the_attack() -> None:
    matplotlib.use("Agg")
    metric = fm.MembershipInferenceAttack()
    metric.update(*attack_data())
    figure, axes = metric.plot()
    figure.canvas.draw()
    low, high = axes.get_ylim()
    assert low <= 0.0 and high >= 1.0
    pyplot.close("all")
