"""Models and data small enough to follow, and what the tests of all methods share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.methods.bad_teacher import BadTeacherOptions, bad_teacher
from benchmarks.methods.fisher_forgetting import FisherForgettingOptions, fisher_forgetting
from benchmarks.methods.l1_sparse import L1SparseOptions, l1_sparse
from benchmarks.methods.neg_grad_plus import NegGradPlusOptions, neg_grad_plus
from benchmarks.methods.random_labels import RandomLabelsOptions, random_labels
from benchmarks.methods.salun import SalUnOptions, salun
from benchmarks.methods.scrub import ScrubOptions, scrub
from benchmarks.methods.ssd import SSDOptions, ssd

CORES: dict[str, tuple[Any, type]] = {
    "neg_grad_plus": (neg_grad_plus, NegGradPlusOptions),
    "random_labels": (random_labels, RandomLabelsOptions),
    "salun": (salun, SalUnOptions),
    "ssd": (ssd, SSDOptions),
    "scrub": (scrub, ScrubOptions),
    "bad_teacher": (bad_teacher, BadTeacherOptions),
    "l1_sparse": (l1_sparse, L1SparseOptions),
    "fisher_forgetting": (fisher_forgetting, FisherForgettingOptions),
}
SGD = {"epochs": 1, "optimizer": "sgd", "lr": 1.0, "momentum": 0.0}

Loader = list[tuple[Tensor, Tensor]]


def linear(*rows: tuple[float, ...]) -> nn.Linear:
    """Return a linear layer without bias whose weight has these rows, one for each class."""
    weight = torch.tensor(rows)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


def one(x: float | tuple[float, ...], y: int) -> Loader:
    """Return a loader of one batch with one example."""
    return [(torch.tensor(x).reshape(1, -1), torch.tensor([y]))]


def network(seed: int = 0, dropout: float = 0.0) -> nn.Module:
    """Return a small convolutional network with batch norm for 3 classes."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(4 * 16, 3),
        )


def batches(count: int, seed: int) -> Loader:
    """Return batches of 8 random images of 6x6 pixels with labels."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.rand(8, 1, 6, 6, generator=generator),
            torch.randint(3, (8,), generator=generator),
        )
        for _ in range(count)
    ]


def run(name: str, model: nn.Module, forget: Loader, retain: Loader, seed: int = 0, **options: Any):
    """Run a method in place by its name; returns the model."""
    core, options_type = CORES[name]
    core(model, forget, retain, cross_entropy, options_type(**options), seed=seed)
    return model


def state(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of all parameters and buffers."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def bits_differ(a: Tensor, b: Tensor) -> Tensor:
    """Return where two tensors differ in any bit, so that -0.0 is not 0.0."""
    kind = {4: torch.int32, 8: torch.int64}[a.dtype.itemsize]
    return a.contiguous().view(kind) != b.contiguous().view(kind)


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Return whether two states agree in every bit."""
    return a.keys() == b.keys() and not any(bool(bits_differ(a[n], b[n]).any()) for n in a)
