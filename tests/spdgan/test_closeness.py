"""Closeness by hand values, and the settings."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fastunlearn.spdgan import SPDGANConfig, closeness
from fastunlearn.spdgan.networks import Networks


def test_distances_by_hand() -> None:
    x = torch.zeros(2, 1, 2, 2, dtype=torch.float64)
    shifted = torch.tensor([[[[3.0, 4.0], [0.0, 0.0]]], [[[1.0, -1.0], [1.0, 1.0]]]]).double()
    figures = closeness(x, shifted, value_range=10.0)
    assert figures.l2 == pytest.approx((0.5 + 0.2) / 2)
    assert figures.linf == pytest.approx((0.4 + 0.1) / 2) and figures.linf_max == pytest.approx(0.4)
    # mean squares 0.25 / 4 and 0.01: 12.0412 dB and 20 dB
    assert figures.psnr == pytest.approx((-10 * math.log10(0.0625) + 20) / 2)
    assert figures.ssim is None and figures.discriminator_auc is None


def test_vectors_have_a_unit_for_each_feature() -> None:
    x, shifted = torch.zeros(1, 3), torch.tensor([[0.3, 40.0, 7.0]])
    figures = closeness(x, shifted, value_range=torch.tensor([1.0, 100.0, 0.0]))
    assert figures.l2 == pytest.approx(0.5) and figures.linf == pytest.approx(0.4)
    assert figures.psnr == pytest.approx(-10 * math.log10(0.25 / 3))


def test_equal_images() -> None:
    x = torch.rand(3, 2, 12, 12)
    figures = closeness(x, x.clone())
    assert (figures.l2, figures.linf, figures.linf_max) == (0, 0, 0)
    assert figures.psnr == 100.0 and figures.ssim == pytest.approx(1.0)
    json.dumps(figures.to_dict(), allow_nan=False)


@pytest.mark.parametrize(("size", "span"), [((28, 28), 1.0), ((7, 9), 1.0), ((3, 40), 255.0)])
def test_ssim_of_flat_images_by_hand(size: tuple[int, int], span: float) -> None:
    """Without variance SSIM is its first factor, (2 a b + c1) / (a^2 + b^2 + c1)."""
    a, b, c1 = 0.2 * span, 0.6 * span, (0.01 * span) ** 2
    x, shifted = torch.full((2, 1, *size), a), torch.full((2, 1, *size), b)
    shifted[1] = a
    expected = ((2 * a * b + c1) / (a * a + b * b + c1) + 1) / 2
    # float32 variances of flat images are rounding errors of about 1e-7 against c2 = 9e-4
    assert closeness(x, shifted, value_range=span).ssim == pytest.approx(expected, abs=2e-3)


def test_ssim_is_the_usual_one_on_large_images() -> None:
    from torchmetrics.functional.image import structural_similarity_index_measure

    x = torch.rand(4, 3, 20, 16, generator=torch.Generator().manual_seed(0))
    shifted = (x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))).clamp(0)
    usual = structural_similarity_index_measure(shifted, x, data_range=1.0)
    assert closeness(x, shifted).ssim == pytest.approx(float(usual), abs=1e-6)
    assert 0 < float(usual) < 0.99


def test_separation_is_the_area_under_the_curve(monkeypatch: Any) -> None:
    networks = Networks((1,), SPDGANConfig(width=1))

    def scores(x: Tensor) -> Tensor:
        return x[:, 0]

    monkeypatch.setattr(networks.discriminator, "forward", scores)
    x, shifted = torch.tensor([[2.0], [3.0]]), torch.tensor([[1.0], [2.0]])
    assert networks.separation(x, shifted, chunk=1) == 0.875
    assert networks.separation(shifted, x, chunk=9) == 0.125


X = torch.zeros(2, 1, 4, 4)


@pytest.mark.parametrize(
    ("x", "shifted", "span", "error", "message"),
    [
        (X.int(), X, 1.0, TypeError, "x must be a floating-point tensor, got torch.int32"),
        (X, [1], 1.0, TypeError, "shifted must be a floating-point tensor, got list"),
        (X, X[:1], 1.0, ValueError, r"shifted must have shape \(2, 1, 4, 4\), got \(1, 1, 4, 4\)"),
        (X[:0], X[:0], 1.0, ValueError, r"x must have shape .* N >= 1, got \(0, 1, 4, 4\)"),
        (X[0], X[0], 1.0, ValueError, r"x must have shape .* got \(1, 4, 4\)"),
        (X, X, 0.0, ValueError, "value_range must be > 0, got 0.0"),
        (X, X, -1.0, ValueError, "value_range must be > 0, got -1.0"),
        (X, X, math.nan, ValueError, "value_range must be > 0, got nan"),
    ],
)
def test_closeness_refuses(
    x: Any, shifted: Any, span: float, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"closeness: {message}"):
        closeness(x, shifted, value_range=span)


@pytest.mark.parametrize(
    ("field", "value", "error", "expected"),
    [
        ("epsilon", 0.0, ValueError, "a finite number > 0"),
        ("epsilon", True, TypeError, "a number"),
        ("lr", -1.0, ValueError, "a finite number > 0"),
        ("lr_discriminator", math.inf, ValueError, "a finite number"),
        ("margin", math.nan, ValueError, "a finite number"),
        ("radius", 0.0, ValueError, "a finite number > 0"),
        ("radius", "1", TypeError, "a number"),
        ("shift", -0.1, ValueError, "a finite number >= 0"),
        ("adversarial", None, TypeError, "a number"),
        ("max_steps", 0, ValueError, "an int >= 1"),
        ("max_steps", 1.0, TypeError, "an int >= 1"),
        ("patience", True, TypeError, "an int >= 1"),
        ("target_accuracy", 1.1, ValueError, r"in \[0, 1\]"),
        ("max_auc", 0.4, ValueError, r"in \[0.5, 1\]"),
        ("min_psnr", math.inf, ValueError, "a finite number"),
        ("low", math.nan, ValueError, "a finite number"),
        ("low", 1.0, ValueError, "less than high = 1.0 of images"),
    ],
)
def test_config_refuses(field: str, value: Any, error: type[Exception], expected: str) -> None:
    with pytest.raises(error, match=f"SPDGANConfig: {field} must be {expected}, got {value!r}"):
        SPDGANConfig(**{field: value})


def test_config_derives_and_round_trips() -> None:
    config = SPDGANConfig(min_psnr=20.0, high=2.0)
    assert config.radius_of(400) == pytest.approx(2.0)  # sqrt(400) * 0.1
    assert SPDGANConfig(radius=4.5).radius_of(784) == 4.5
    assert config.bounds(image=True) == (0.0, 2.0)
    assert config.bounds(image=False) == (-math.inf, 2.0)
    assert SPDGANConfig(**json.loads(json.dumps(config.to_dict()))) == config
