"""Generator and discriminator for images of any size and for feature vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastunlearn.metrics.attack import area_under_curve
from fastunlearn.spdgan.config import SPDGANConfig

Shape = tuple[int, ...]


class Generator(nn.Module):
    """G(x) = clip(x + epsilon * unit * tanh(g(x)), low, high) [ours]; a new one gives x itself.

    The unit is the value range of images and each feature's standard deviation of vectors, so a
    feature that is constant over the forget set stays as it is.

    Args:
        shape: Shape of one example, (C, H, W) or (F,).
        config: Uses epsilon, width, low and high.

    Attributes:
        centre: float32 buffer, shape () or (F,): what is subtracted before the network.
        unit: float32 buffer of the same shape, >= 0.
    """

    centre: Tensor
    unit: Tensor

    def __init__(self, shape: Shape, config: SPDGANConfig) -> None:
        super().__init__()
        image = len(shape) == 3
        self.epsilon = config.epsilon
        self.low, self.high = config.bounds(image=image)
        body = ImageShift if image else VectorShift
        self.body = body(shape[0], config.width)
        if image:
            centre, unit = torch.tensor(self.low), torch.tensor(self.high - self.low)
        else:
            centre, unit = torch.zeros(shape), torch.ones(shape)
        self.register_buffer("centre", centre)
        self.register_buffer("unit", unit)

    def standardise(self, x: Tensor) -> Tensor:
        """Return (x - centre) / unit in float32, 0 where the unit is 0."""
        scale = torch.where(self.unit > 0, self.unit, torch.ones_like(self.unit))
        return (x.float() - self.centre) / scale

    def forward(self, x: Tensor) -> Tensor:
        """Shift a batch; shape and dtype are those of ``x``."""
        step = self.epsilon * self.unit * torch.tanh(self.body(self.standardise(x)))
        return clip(x + step.to(x.dtype), self.low, self.high)


def clip(x: Tensor, low: float, high: float) -> Tensor:
    """Return ``x.clamp(low, high)`` with a gradient that can lead back inside.

    The gradient of ``clamp`` is 0 at every clipped value. Images are black to a large part: there a
    generator that once moves down gets no gradient again and stays where it is. Here only that part
    of the gradient is dropped whose descent would lead further outside, as in projected descent.
    """
    clipped: Tensor = _Clip.apply(x, low, high)
    return clipped


class _Clip(torch.autograd.Function):
    """See `clip`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bounds = low, high
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,), (low, high) = ctx.saved_tensors, ctx.bounds
        outwards = ((x < low) & (grad > 0)) | ((x > high) & (grad < 0))
        return grad.masked_fill(outwards, 0.0), None, None


class ImageShift(nn.Module):
    """Convolutions at half resolution with one step down for context; any height and width.

    Args:
        channels: Channels of the images.
        width: Channels inside.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(4 * channels, width, 3, padding=1)
        self.down = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.middle = nn.Conv2d(width, width, 3, padding=1)
        self.leave = _zeroed(nn.Conv2d(width, 4 * channels, 3, padding=1))
        _channels_last(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        height, width = x.shape[-2:]
        even = F.pad(x, (0, width % 2, 0, height % 2), mode="replicate")
        fine = F.relu(self.enter(F.pixel_unshuffle(even, 2)))
        coarse = F.relu(self.middle(F.relu(self.down(fine))))
        context = F.interpolate(coarse, size=fine.shape[-2:])
        out = F.pixel_shuffle(self.leave(fine + context), 2)
        return out[..., :height, :width]


class VectorShift(nn.Module):
    """A perceptron with two hidden layers.

    Args:
        features: Length of the vectors.
        width: A quarter of the hidden layers' width.
    """

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.layers = perceptron(features, 4 * width, features, nn.ReLU())
        _zeroed(self.layers[-1])

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, F) to the same shape."""
        return self.layers(x)


class ImageDiscriminator(nn.Module):
    """Three strided convolutions and the mean over what is left; any height and width."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        widths = (channels, width // 4 or 1, width // 2 or 1, width)
        for n_in, n_out in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Conv2d(n_in, n_out, 3, stride=2, padding=1), nn.LeakyReLU(0.2)]
        self.features = nn.Sequential(*layers)
        self.output = nn.Linear(width, 1)
        _channels_last(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logit of being real, shape (B,), of images (B, C, H, W)."""
        return self.output(self.features(x).mean(dim=(2, 3))).squeeze(1)


class VectorDiscriminator(nn.Module):
    """A perceptron with two hidden layers."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.layers = perceptron(features, 4 * width, 1, nn.LeakyReLU(0.2))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logit of being real, shape (B,), of vectors (B, F)."""
        return self.layers(x).squeeze(1)


def perceptron(n_in: int, hidden: int, n_out: int, activation: nn.Module) -> nn.Sequential:
    """Return three linear layers with an activation between them."""
    return nn.Sequential(
        nn.Linear(n_in, hidden), activation, nn.Linear(hidden, hidden), activation,
        nn.Linear(hidden, n_out),
    )  # fmt: skip


def _zeroed(layer: nn.Module) -> nn.Module:
    """Set a layer to 0 and return it: as the last one of a generator it makes G(x) begin as x."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _channels_last(network: nn.Module) -> None:
    """Lay the convolutions' weights out by pixel: forward and backward take half as long."""
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


class Networks(nn.Module):
    """Generator and discriminator of examples of one shape.

    Args:
        shape: Shape of one example, (C, H, W) or (F,).
        config: Uses epsilon, width, low and high.
    """

    def __init__(self, shape: Shape, config: SPDGANConfig) -> None:
        super().__init__()
        self.shape = shape
        self.generator = Generator(shape, config)
        kind = ImageDiscriminator if len(shape) == 3 else VectorDiscriminator
        self.discriminator: nn.Module = kind(shape[0], config.width)

    @property
    def device(self) -> torch.device:
        """Where both are."""
        return self.generator.unit.device

    @torch.no_grad()
    def perturb(self, x: Tensor, chunk: int) -> Tensor:
        """Return G(x), ``chunk`` examples at a time.

        Args:
            x: Checked examples, any floating dtype and device; not mutated.
            chunk: Examples at a time.

        Returns:
            Shape, dtype and device of ``x``. Every value is within epsilon units of that of x:
            where the sum has rounded past it, the next number towards x is taken.
        """
        if not len(x):
            return x.clone()
        parts = []
        for part in x.split(chunk):
            here = part.to(self.device)
            parts.append(self._within(here, self.generator(here)).to(x.device))
        return torch.cat(parts)

    def _within(self, x: Tensor, shifted: Tensor) -> Tensor:
        """Return ``shifted`` with every value brought within epsilon units of that of ``x``."""
        bound = self.generator.epsilon * self.generator.unit.double()
        exact = x.double()
        near = (exact + (shifted.double() - exact).clamp(-bound, bound)).to(x.dtype)
        past = (near.double() - exact).abs() > bound
        return torch.where(past, torch.nextafter(near, x), near)

    @torch.no_grad()
    def separation(self, x: Tensor, shifted: Tensor, chunk: int) -> float:
        """Return the area under the discriminator's ROC curve between ``x`` and ``shifted``."""
        scores = [
            torch.cat([self._realness(part) for part in side.split(chunk)]).double().cpu().numpy()
            for side in (x, shifted)
        ]
        return area_under_curve(scores[0], scores[1])

    def _realness(self, x: Tensor) -> Tensor:
        return self.discriminator(self.generator.standardise(x.to(self.device)))
