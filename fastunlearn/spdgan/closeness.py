"""How far shifted data lies from the data: distances, PSNR, SSIM."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Closeness", "closeness"]

PSNR_LIMIT = 100.0  # dB; an unchanged image has an infinite PSNR, and would make every mean so


@dataclass(frozen=True)
class Closeness:
    """Means over the examples; lengths in units of the value range.

    Attributes:
        l2: Euclidean distance.
        linf: Greatest absolute difference in an example, mean over the examples.
        linf_max: The same, greatest over the examples.
        psnr: Peak signal-to-noise ratio in dB, each example's cut at 100 dB.
        ssim: Structural similarity, 1 = equal; None for vectors and images of fewer than 3 pixels
            a side.
        discriminator_auc: Area under the ROC curve of the discriminator that tells the data (high)
            from the shifted data; 0.5 = cannot. None without a discriminator.
    """

    l2: float
    linf: float
    linf_max: float
    psnr: float
    ssim: float | None
    discriminator_auc: float | None = None

    def to_dict(self) -> dict[str, float | None]:
        """Return the fields as JSON-able values."""
        return asdict(self)


def closeness(x: Tensor, shifted: Tensor, *, value_range: float | Tensor = 1.0) -> Closeness:
    """Measure how far ``shifted`` lies from ``x``.

    Formulas, per example with d = (shifted - x) / value_range in float64: l2 = ||d||_2,
    linf = max |d|, psnr = -10 log10(mean d^2). SSIM uses a Gaussian window of standard deviation
    1.5 on 11x11 pixels, narrower in proportion on images smaller than that [ours].

    Args:
        x: Shape (N, C, H, W) or (N, F), floating, N >= 1; not mutated.
        shifted: The same shape.
        value_range: What counts as 1: the span of the pixel values, or for vectors a tensor
            (F,), as the standard deviations; features with 0 there count as unchanged.

    Returns:
        The figures, without a discriminator's.

    Raises:
        TypeError, ValueError: Shapes differ or are not as above, or the range is not > 0.
        ImportError: torchmetrics is missing (images only).

    Example:
        >>> figures = closeness(torch.zeros(1, 4), torch.full((1, 4), 0.1))
        >>> round(figures.l2, 4), round(figures.linf, 4), round(figures.psnr, 4)
        (0.2, 0.1, 20.0)

    Source: Wang, Bovik, Sheikh, Simoncelli, "Image Quality Assessment: From Error Visibility to
    Structural Similarity", IEEE Transactions on Image Processing 13(4), 2004.
    """
    _check(x, shifted)
    figures = distances(x, shifted, value_range)
    span = float(torch.as_tensor(value_range).max())
    return Closeness(**figures, ssim=_ssim(x.detach().float(), shifted.detach().float(), span))


def distances(x: Tensor, shifted: Tensor, value_range: float | Tensor) -> dict[str, float]:
    """Return l2, linf, linf_max and psnr as `closeness` defines them."""
    span = torch.as_tensor(value_range, dtype=torch.float64, device=x.device)
    if not bool((span >= 0).all()) or not bool((span > 0).any()):
        raise ValueError(f"closeness: value_range must be > 0, got {value_range}")
    scale = torch.where(span > 0, span, torch.full_like(span, math.inf))
    d = ((shifted.detach().double() - x.detach().double()) / scale).flatten(1)
    largest = d.abs().amax(dim=1)
    psnr = (-10 * d.pow(2).mean(dim=1).log10()).clamp(max=PSNR_LIMIT)
    return {
        "l2": float(d.norm(dim=1).mean()),
        "linf": float(largest.mean()),
        "linf_max": float(largest.max()),
        "psnr": float(psnr.mean()),
    }


def similarity_index() -> Any:
    """Return torchmetrics' SSIM.

    Raises:
        ImportError: torchmetrics is missing.
    """
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError as error:
        raise ImportError(
            'closeness: torchmetrics must be installed: pip install "fastunlearn[eval]"'
        ) from error
    return structural_similarity_index_measure


def _ssim(x: Tensor, shifted: Tensor, span: float) -> float | None:
    if x.ndim != 4 or min(x.shape[-2:]) < 3:
        return None
    # torchmetrics makes the window int(3.5 sigma + 0.5) wide on each side: 5 for 1.5, and less in
    # proportion where a window of 11 would not fit.
    half = min(5, (min(x.shape[-2:]) - 1) // 2)
    each = similarity_index()(
        shifted, x, sigma=0.3 * half, reduction="none", data_range=span, gaussian_kernel=True
    )
    return float(each.double().mean())


def _check(x: Any, shifted: Any) -> None:
    for name, value in (("x", x), ("shifted", shifted)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"closeness: {name} must be a floating-point tensor, got {got}")
    if x.ndim not in (2, 4) or x.numel() == 0:
        expected = "(N, C, H, W) or (N, F) with N >= 1"
        raise ValueError(f"closeness: x must have shape {expected}, got {tuple(x.shape)}")
    if shifted.shape != x.shape:
        wanted, got_shape = tuple(x.shape), tuple(shifted.shape)
        raise ValueError(f"closeness: shifted must have shape {wanted}, got {got_shape}")
