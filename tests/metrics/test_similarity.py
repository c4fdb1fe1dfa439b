"""Linear CKA: known values, both forms, both estimators, hooks that go away."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from fastunlearn.metrics import layer_similarity, linear_cka, undefined_reason
from fastunlearn.metrics import similarity as module


def random(n: int, p: int, seed: int) -> Tensor:
    return torch.randn(n, p, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_by_hand() -> None:
    # Centred: a = (-1, 0, 1), b = (-1, 1, 0). CKA = (a.b)^2 / (|a|^2 |b|^2) = 1 / (2 * 2).
    a, b = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[0.0], [2.0], [1.0]])
    assert linear_cka(a, b) == pytest.approx(0.25, abs=1e-14)


def unbiased_by_definition(a: Tensor, b: Tensor) -> float:
    """HSIC_1 of Song et al. (2012), eq. 4: sums over tuples of different indices."""
    k, m, n = a @ a.T, b @ b.T, len(a)
    total = 0.0
    for i, j, q, r in itertools.permutations(range(n), 4):
        total += float(k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]))
    return total / math.perm(n, 4)


def test_the_debiased_form_is_the_unbiased_hsic() -> None:
    a, b = random(6, 3, 0), random(6, 2, 1) + 4.0
    pairs = [unbiased_by_definition(x, y) for x, y in ((a, b), (a, a), (b, b))]
    expected = pairs[0] / math.sqrt(pairs[1] * pairs[2])
    assert linear_cka(a, b, debiased=True) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize(("n", "p", "q"), [(40, 5, 9), (5, 40, 9), (12, 12, 12)])
def test_both_forms_are_equal(n: int, p: int, q: int, debiased: bool) -> None:
    a, b = module._centred("", "", random(n, p, 0)), module._centred("", "", random(n, q, 1))
    gram, feature = (f(a, b, debiased) for f in (module._gram_hsic, module._feature_hsic))
    # Sums of at most 40 * 40 products of order 40 in float64.
    assert gram == pytest.approx(feature, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("debiased", [False, True])
def test_rotation_scale_and_shift_change_nothing(debiased: bool) -> None:
    a = random(30, 8, 0)
    rotation = torch.linalg.qr(random(8, 8, 1)).Q
    b = 7.0 * a @ rotation - 2.0
    assert linear_cka(a, b, debiased=debiased) == pytest.approx(1.0, abs=1e-12)


def test_unrelated_representations() -> None:
    biased = [linear_cka(random(20, 200, s), random(20, 200, 99 + s)) for s in range(20)]
    fair = [
        linear_cka(random(20, 200, s), random(20, 200, 99 + s), debiased=True) for s in range(20)
    ]
    assert min(biased) > 0.85  # what the docstring warns of
    # Standard deviation of one about 1 / n; of the mean of 20 about 0.01.
    assert abs(sum(fair) / 20) < 0.05


def test_images_are_flattened_and_half_precision_is_widened() -> None:
    a = random(10, 12, 0)
    assert linear_cka(a.reshape(10, 3, 2, 2), a) == pytest.approx(1.0, abs=1e-12)
    half = torch.full((10, 3), 300.0, dtype=torch.float16) + random(10, 3, 1).half()
    assert linear_cka(half, half.double()) == pytest.approx(1.0, abs=1e-12)


def test_what_is_undefined() -> None:
    constant = torch.full((10, 3), 0.1)
    assert "same for all examples" in undefined_reason(linear_cka(constant, random(10, 2, 0)))
    assert "not finite" in undefined_reason(linear_cka(constant * math.nan, constant))


class Net(nn.Module):
    """A layer with an in-place successor, one called twice, one without a row per example."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Linear(5, 6)
        self.inplace = nn.ReLU(inplace=True)
        self.twice = nn.Tanh()
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inplace(self.first(x))
        return self.last(self.drop(self.twice(self.twice(x))))


def test_layers() -> None:
    a, b = Net(0), Net(1)
    x = random(600, 5, 0).float()  # more than one chunk
    found = layer_similarity(a, b, x)
    assert list(found) == ["first", "inplace", "drop", "last"]
    expected = linear_cka(a.first(x), b.first(x))
    assert found["first"] == pytest.approx(expected, abs=1e-9)  # not what the ReLU left of it
    assert found["inplace"] != found["first"]
    assert all(0 < value < 1 for value in found.values())
    # The first layers see the same inputs linearly, the last ones do not.
    assert layer_similarity(a, a, x)["last"] == pytest.approx(1.0, abs=1e-12)
    assert layer_similarity(a, b, x, ["last"]) == {"last": found["last"]}


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) for m in model.modules())


def test_models_are_left_as_they_were() -> None:
    a, b = Net(0), Net(1)
    b.drop.eval()
    layer_similarity(a, b, torch.randn(10, 5))
    assert hooks_of(a) == hooks_of(b) == 0
    assert a.training and a.drop.training and b.training and not b.drop.training
    with pytest.raises(RuntimeError):
        layer_similarity(a, b, torch.randn(10, 4))
    assert hooks_of(a) == hooks_of(b) == 0 and a.training


@pytest.mark.parametrize(
    ("layers", "message"),
    [(["middle"], "must name modules, got 'middle'"), (["twice"], "called once .* got 'twice'")],
)
def test_layer_refusals(layers: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=f"^layer_similarity: layers .*{message}"):
        layer_similarity(Net(0), Net(1), torch.randn(10, 5), layers)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="features_b must hold 4 examples, got 5"):
        linear_cka(random(4, 2, 0), random(5, 2, 0))
    with pytest.raises(ValueError, match="at least 4 examples, got 3"):
        linear_cka(random(3, 2, 0), random(3, 2, 0), debiased=True)
    with pytest.raises(TypeError, match="features_a must be a floating-point tensor"):
        linear_cka(torch.ones(3, 2).long(), random(3, 2, 0))
