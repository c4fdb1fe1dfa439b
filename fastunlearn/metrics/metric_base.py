"""The base of the torchmetrics classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE

from fastunlearn.metrics.undefined import undefined_reason


class UnlearningMetric(Metric):
    """What the classes share: plotting, and the reason of a value that does not exist."""

    is_differentiable = False
    full_state_update = False
    _reason: str | None = None

    @property
    def undefined_reason(self) -> str | None:
        """Why the value computed last is NaN, or None where it is a number."""
        return self._reason

    def reset(self) -> None:
        """Return to the state before the first update."""
        super().reset()
        self._reason = None

    def plot(
        self, val: Tensor | Sequence[Tensor] | None = None, ax: _AX_TYPE | None = None
    ) -> _PLOT_OUT_TYPE:
        """Plot one value or several.

        Args:
            val: A result of ``compute`` or ``forward``, or a sequence of them to be drawn as a
                curve. None computes the current value.
            ax: Matplotlib axes to draw on; None makes new ones.

        Returns:
            The figure and the axes.

        Raises:
            ModuleNotFoundError: If matplotlib is missing.
        """
        return self._plot(val, ax)

    def _as_tensor(self, value: float) -> Tensor:
        """Return a computed value on the metric's device, after noting why it is NaN if it is."""
        self._reason = undefined_reason(value)
        return torch.tensor(float(value), device=self.device)
