"""Pictures of examples, their shifted versions, and the difference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from fastunlearn.spdgan.closeness import closeness

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["pictures"]


def pictures(x: Tensor, shifted: Tensor, labels: Tensor | None = None, n: int = 8) -> Figure:
    """Draw the first ``n`` images: x above, G(x) in the middle, the difference below.

    Three channels are shown in colour, other numbers as their grey mean; of the difference every
    pixel shows the channel that changed most, with its sign.

    Args:
        x: Shape (N, C, H, W), floating, N >= 1; not mutated.
        shifted: The same shape.
        labels: Optional titles of the columns, shape (N,).
        n: Number of columns, >= 1; fewer where there are fewer images.

    Returns:
        A matplotlib figure; save it with ``figure.savefig(path)``.

    Raises:
        TypeError, ValueError: As `closeness`; also for vectors, or ``n`` < 1.
        ImportError: matplotlib or torchmetrics is missing.
    """
    if isinstance(x, Tensor) and x.ndim != 4:
        raise ValueError(f"pictures: x must have shape (N, C, H, W), got {tuple(x.shape)}")
    if n < 1:
        raise ValueError(f"pictures: n must be >= 1, got {n}")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            'pictures: matplotlib must be installed: pip install "fastunlearn[eval]"'
        ) from error
    figures = closeness(x[:n], shifted[:n])
    x, shifted = (t[:n].detach().cpu().float() for t in (x, shifted))
    columns = max(len(x), 4)  # few images leave columns empty: the caption needs the width
    figure = Figure(figsize=(1.1 * columns + 1.0, 4.4), layout="constrained")
    axes = figure.subplots(3, columns, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    for axis in axes[:, len(x) :].flat:
        axis.set_visible(False)
    _draw_images(axes[:2], x, shifted)
    drawn = _draw_differences(axes[2], shifted - x, figures.linf_max)
    for axis, label in zip(axes[0], () if labels is None else labels[:n].tolist(), strict=False):
        axis.set_title(str(label), fontsize=10)
    for axis, name in zip(axes[:, 0], ("x", "G(x)", "G(x) - x"), strict=True):
        axis.set_ylabel(name, fontsize=10)
    bar = figure.colorbar(drawn, ax=list(axes[2]), fraction=0.03, pad=0.02)
    bar.ax.tick_params(labelsize=8)
    figure.supxlabel(
        "Difference: red brighter, blue darker, white unchanged; full colour is "
        f"{figures.linf_max:.2g}.\nMean L-inf {figures.linf:.2g}, mean PSNR {figures.psnr:.1f} dB.",
        fontsize=9,
    )
    return figure


def _draw_images(axes: Any, x: Tensor, shifted: Tensor) -> None:
    """Draw both rows on one scale, from the least to the greatest value of either."""
    low = min(float(x.min()), float(shifted.min()))
    span = max(float(x.max()), float(shifted.max())) - low or 1.0
    for row, images in zip(axes, (x, shifted), strict=True):
        for axis, image in zip(row, (images - low) / span, strict=False):
            if len(image) == 3:
                axis.imshow(image.permute(1, 2, 0).numpy())
            else:
                axis.imshow(image.mean(dim=0).numpy(), cmap="gray", vmin=0, vmax=1)


def _draw_differences(axes: Any, difference: Tensor, limit: float) -> Any:
    """Draw the channel that changed most of every pixel, and return what the colour bar shows."""
    channel = difference.abs().argmax(dim=1, keepdim=True)
    most = difference.gather(1, channel).squeeze(1)
    limit = limit or 1.0
    for axis, image in zip(axes, most, strict=False):
        drawn = axis.imshow(image.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
    return drawn
