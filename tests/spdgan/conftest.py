"""A small forget set of real digits and a classifier trained on other digits."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("sklearn")
pytest.importorskip("torchmetrics")


@dataclass(frozen=True)
class World:
    """Forget set (x, y), 8x8 digits, and a reference in training mode that never saw them."""

    x: Tensor
    y: Tensor
    reference: nn.Module

    def loader(self, batch: int = 32) -> list[tuple[Tensor, Tensor]]:
        """Return the forget set in batches."""
        return list(zip(self.x.split(batch), self.y.split(batch), strict=True))


def classifier() -> nn.Sequential:
    """Return a convolutional classifier with everything that a careless caller would change."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.1), nn.Linear(128, 10),
    )  # fmt: skip


def trained(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> nn.Module:
    """Train a model made under the seed for a second or two."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(8):
        for index in torch.randperm(len(y), generator=generator).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[index]), y[index]).backward()
            optimizer.step()
    model.zero_grad()
    return model


@pytest.fixture(scope="session")
def digits() -> tuple[Tensor, Tensor]:
    """Return all digits in a fixed random order."""
    from fastunlearn.evaluation.data import load_digits

    samples = load_digits()
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))
    return samples.x[order], samples.y[order]


@pytest.fixture(scope="session")
def world(digits: tuple[Tensor, Tensor]) -> World:
    """Return 128 digits to forget and a reference trained on 1,200 others."""
    x, y = digits
    with torch.random.fork_rng():
        torch.manual_seed(1)
        reference = trained(classifier(), x[128:1328], y[128:1328], seed=1)
    return World(x[:128], y[:128], reference)
