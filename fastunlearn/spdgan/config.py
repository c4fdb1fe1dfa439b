"""The settings of an SPD-GAN: frozen, validated, JSON-serialisable."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["SPDGANConfig"]

_COUNTS = ("max_steps", "width", "check_every", "patience")
_POSITIVE = ("epsilon", "lr", "lr_discriminator", "margin")
_WEIGHTS = ("adversarial", "shift", "closeness", "noise")
_OPTIONAL = ("radius", "low", "high")


@dataclass(frozen=True)
class SPDGANConfig:
    """How far, towards what and for how long an SPD-GAN is trained [ours].

    Lengths are in units: of the value range ``high - low`` for images, of each feature's standard
    deviation over the forget set for vectors.

    Attributes:
        epsilon: Bound of the shift of every pixel or feature, in units, > 0.
        max_steps: Generator steps after which the fit ends in any case.
        lr: Adam's learning rate of the generator; falls to a tenth along half a cosine.
        lr_discriminator: Adam's constant learning rate of the discriminator.
        adversarial: Weight of the adversarial term, >= 0.
        shift: Weight of the reference's loss on the shifted data, >= 0.
        closeness: Weight of the L2 distance beyond ``radius``, >= 0.
        margin: Cross-entropy of the reference, in nats, beyond which the shift gains nothing.
        noise: Standard deviation, in units, of the Gaussian noise on what the references see in
            training, >= 0: a shift that works in spite of it works on other models too.
        radius: L2 distance in units that costs nothing; None: that of a PSNR of ``min_psnr``,
            ``sqrt(number of values) * 10 ** (-min_psnr / 20)``.
        min_psnr: Least mean PSNR, in dB over one unit, for the early stop.
        width: Channels of the networks; vectors get hidden layers of four times as many.
        low: Least value of the data; None: 0 for images, no bound for vectors.
        high: Greatest value of the data; None: 1 for images, no bound for vectors.
        check_every: Steps between two checks of the early stop (and writes of the state file).
        patience: Checks in a row at which all three quantities must hold.
        target_accuracy: Shift: greatest accuracy of the reference on the shifted data.
        max_auc: Balance: the discriminator's AUC must lie in [1 - max_auc, max_auc].

    Raises:
        TypeError, ValueError: A field is out of its range.

    Example:
        >>> SPDGANConfig(epsilon=0.2).radius is None
        True
        >>> SPDGANConfig(epsilon=0.0)
        Traceback (most recent call last):
        ...
        ValueError: SPDGANConfig: epsilon must be a finite number > 0, got 0.0
    """

    epsilon: float = 0.3
    max_steps: int = 300
    lr: float = 3e-3
    lr_discriminator: float = 5e-4
    adversarial: float = 0.1
    shift: float = 3.0
    closeness: float = 5.0
    margin: float = 8.0
    noise: float = 0.1
    radius: float | None = None
    min_psnr: float = 15.2
    width: int = 32
    low: float | None = None
    high: float | None = None
    check_every: int = 25
    patience: int = 2
    target_accuracy: float = 0.15
    max_auc: float = 0.99

    def __post_init__(self) -> None:
        """Validate every field."""
        for name in _COUNTS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                self._fail(name, "an int >= 1", TypeError)
            if value < 1:
                self._fail(name, "an int >= 1")
        for name in (*_POSITIVE, *_WEIGHTS, "min_psnr", "target_accuracy", "max_auc"):
            self._check_finite(name)
        for name in _OPTIONAL:
            if getattr(self, name) is not None:
                self._check_finite(name)
        self._check_ranges()

    def _check_ranges(self) -> None:
        for name in (*_POSITIVE, "radius"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                self._fail(name, "a finite number > 0")
        for name in _WEIGHTS:
            if getattr(self, name) < 0:
                self._fail(name, "a finite number >= 0")
        if not 0 <= self.target_accuracy <= 1:
            self._fail("target_accuracy", "in [0, 1]")
        if not 0.5 <= self.max_auc <= 1:
            self._fail("max_auc", "in [0.5, 1]")
        low, high = self.bounds(image=True)
        if low >= high:
            self._fail("low", f"less than high = {high!r} of images")

    def _check_finite(self, name: str) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self._fail(name, "a number", TypeError)
        if not math.isfinite(value):
            self._fail(name, "a finite number")

    def _fail(self, name: str, expected: str, kind: type[Exception] = ValueError) -> None:
        raise kind(f"SPDGANConfig: {name} must be {expected}, got {getattr(self, name)!r}")

    def bounds(self, *, image: bool) -> tuple[float, float]:
        """Return least and greatest value of the data; infinite where there is no bound."""
        low, high = (0.0, 1.0) if image else (-math.inf, math.inf)
        return (
            low if self.low is None else float(self.low),
            high if self.high is None else float(self.high),
        )

    def radius_of(self, numel: int) -> float:
        """Return the free L2 distance, in units, of one example of ``numel`` values."""
        if self.radius is not None:
            return self.radius
        return math.sqrt(numel) * 10 ** (-self.min_psnr / 20)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values."""
        return asdict(self)


DEFAULTS = SPDGANConfig()
