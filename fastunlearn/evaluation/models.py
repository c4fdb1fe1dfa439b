"""Small image classifiers for the evaluation, adaptive to 8x8 and 28x28 single-channel input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from fastunlearn.evaluation.config import ConfigError
from fastunlearn.evaluation.results import write_atomically


class SmallCNN(nn.Module):
    """Two 3x3 convolutions and two linear layers; 103,018 parameters at 28x28, ten classes.

    Each convolution is followed by a max-pool as long as the image stays at least 4x4, so an
    8x8 image is pooled once. The pool comes before the ReLU: the same function, as both are
    monotone, on a quarter of the elements. No dropout, no batch norm.

    Args:
        image_size: height and width of the input in pixels, at least 4.
        n_classes: length of the output, raw logits.
    """

    def __init__(self, image_size: int, n_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels, size = 1, image_size
        for width in (8, 16):
            layers.append(nn.Conv2d(channels, width, 3, padding=1))
            if size // 2 >= 4:
                layers.append(nn.MaxPool2d(2))
                size //= 2
            layers.append(nn.ReLU())
            channels = width
        self.features = nn.Sequential(*layers)
        self.hidden = nn.Linear(channels * size * size, 128)
        self.output = nn.Linear(128, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of shape (B, n_classes) for images of shape (B, 1, H, W)."""
        return self.output(torch.relu(self.hidden(self.features(x).flatten(1))))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm around a shortcut (basic block)."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or n_in != n_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, n_in, H, W) to (B, n_out, H / stride, W / stride), rounded up."""
        out = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """A residual network for small single-channel images: a 3x3 stem without a max-pool.

    Args:
        image_size: height and width of the input; any size works.
        n_classes: length of the output, raw logits.
        stages: number of basic blocks in each stage; a stage halves the image (but the first) and
            doubles the channels. (2, 2, 2, 2) is ResNet-18, (1, 1, 1) ResNet-8.
        width: channels of the first stage; 64 gives ResNet-18's usual 11.2 million parameters.
        stem_stride: 2 halves the image in the stem, which costs a quarter of the time.

    Source: He, Zhang, Ren, Sun, Deep Residual Learning for Image Recognition, CVPR 2016.
    """

    def __init__(
        self,
        image_size: int,
        n_classes: int,
        *,
        stages: Sequence[int] = (2, 2, 2, 2),
        width: int = 64,
        stem_stride: int = 1,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, stem_stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        blocks: list[nn.Module] = []
        n_in = width
        for stage, n_blocks in enumerate(stages):
            n_out = width * 2**stage
            for block in range(n_blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(ResidualBlock(n_in, n_out, stride))
                n_in = n_out
        self.blocks = nn.Sequential(*blocks)
        self.output = nn.Linear(n_in, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of shape (B, n_classes) for images of shape (B, 1, H, W)."""
        out = self.blocks(torch.relu(self.norm(self.stem(x))))
        return self.output(out.mean(dim=(2, 3)))


MODELS: dict[str, Callable[[int, int], nn.Module]] = {
    "small_cnn": SmallCNN,
    "resnet18": ResNet,
    "resnet18_w16": partial(ResNet, width=16),
    "resnet8": partial(ResNet, stages=(1, 1, 1), width=16, stem_stride=2),
}


def build_model(name: str, image_size: int, n_classes: int, *, seed: int) -> nn.Module:
    """Make a freshly initialised model on the CPU.

    Args:
        name: a key of `MODELS`.
        image_size: height and width of the input in pixels.
        n_classes: number of classes.
        seed: of the initial weights; the same seed gives the same bits. The state of torch's
            own generators is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        # not torch.manual_seed, which would also reseed the generators of every GPU
        torch.default_generator.manual_seed(seed)
        return MODELS[name](image_size, n_classes)


def save_weights(model: nn.Module, path: Path) -> None:
    """Write parameters and buffers to a safetensors file, whole or not at all.

    The folder is made if missing.
    """
    from safetensors.torch import save

    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    write_atomically(path, save(state))


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Replace the parameters and buffers of `model` by those of a safetensors file.

    Raises:
        ConfigError: the file cannot be read, or its names, shapes or dtypes are not the model's.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"original: {path} must be a safetensors file, got: {error}") from error
    expected = model.state_dict()
    different = sorted(set(expected) ^ set(found))
    if different:
        raise ConfigError(
            f"original: {path} must hold the tensors of the model and no others; "
            f"missing or unknown: {', '.join(different)}"
        )
    for name, value in expected.items():
        wanted, got = (f"{t.dtype} {tuple(t.shape)}" for t in (value, found[name]))
        if wanted != got:
            raise ConfigError(f"original: {name} in {path} must be {wanted}, got {got}")
    model.load_state_dict(found, strict=True)
