"""The training of an SPD-GAN: the losses, the three quantities, and when it is enough."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastunlearn._loop import ProgressHook, preserved
from fastunlearn.spdgan.closeness import distances
from fastunlearn.spdgan.config import SPDGANConfig
from fastunlearn.spdgan.data import ForgetSet
from fastunlearn.spdgan.networks import Networks

CHECKED = 512  # examples that a check looks at, at most
BETAS = (0.5, 0.99)


@dataclass
class Training:
    """An SPD-GAN in training: everything that a stopped fit needs to go on.

    Attributes:
        config: The settings.
        networks: Generator and discriminator, float32.
        optimizers: Adam of the generator and of the discriminator, by their names.
        history: One entry for each check, see `FitReport`.
    """

    config: SPDGANConfig
    networks: Networks
    optimizers: dict[str, torch.optim.Adam]
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def step(self) -> int:
        """Generator steps at the last check."""
        return self.history[-1]["step"] if self.history else 0

    @property
    def enough(self) -> bool:
        """Whether all three quantities held at the last ``patience`` checks."""
        last = self.history[-self.config.patience :]
        return len(last) == self.config.patience and not any(entry["unmet"] for entry in last)

    @property
    def stopped(self) -> str:
        """Why the fit ended, as `FitReport` says."""
        if self.enough:
            return "held"
        missing = self.history[-1]["unmet"]
        return f"max_steps, without {', '.join(missing)}" if missing else "max_steps"


def begin(data: ForgetSet, config: SPDGANConfig, device: torch.device, seed: int) -> Training:
    """Return new networks and optimisers. Seeds torch's CPU generator, for the weights."""
    torch.default_generator.manual_seed(seed)
    networks = Networks(data.shape, config)
    if len(data.shape) == 1:
        x = data.x.double()
        unit = x.std(dim=0, correction=0).float()
        if not bool((unit > 0).any()):
            raise ValueError(
                "SPDGAN.fit: vectors must differ in at least one feature over the forget set, "
                "got standard deviations of 0"
            )
        networks.generator.centre, networks.generator.unit = x.mean(dim=0).float(), unit
    networks.to(device)
    rates = {"generator": config.lr, "discriminator": config.lr_discriminator}
    optimizers = {
        name: torch.optim.Adam(getattr(networks, name).parameters(), lr=rate, betas=BETAS)
        for name, rate in rates.items()
    }
    return Training(config, networks, optimizers)


def batches(data: ForgetSet, seed: int, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of the steps start..stop-1: every pass in a new order drawn from seed."""
    generator = torch.Generator().manual_seed(seed)

    def endless() -> Iterator[Tensor]:
        while True:
            yield from torch.randperm(len(data.y), generator=generator).split(data.batch_size)

    for index in itertools.islice(endless(), start, stop):
        yield data.x[index], data.y[index]


@contextmanager
def frozen(references: Sequence[nn.Module]) -> Iterator[None]:
    """Hold the references in evaluation mode without gradients and put them back afterwards."""
    with ExitStack() as stack:
        for reference in references:
            stack.enter_context(preserved(reference, train=False))
            reference.requires_grad_(False)
        yield


class Trainer:
    """The steps and the checks of a training against references.

    Args:
        training: What is trained, in place.
        references: Frozen classifiers on the networks' device; their loss is averaged.
        seed: Of the order of the examples and of the noise.
    """

    def __init__(self, training: Training, references: Sequence[nn.Module], seed: int) -> None:
        self.training, self.references, self.seed = training, references, seed
        self.device = training.networks.device
        self._losses: list[Tensor] = []

    def run(self, data: ForgetSet, hook: ProgressHook) -> Iterator[None]:
        """Train from the last check on, and pause after every check."""
        training, config = self.training, self.training.config
        steps = training.step
        for x, y in batches(data, self.seed, steps, config.max_steps):
            if training.enough:
                return
            self.step(x, y, steps)
            steps += 1
            hook("spdgan", steps, config.max_steps)
            if steps % config.check_every == 0 or steps == config.max_steps:
                self.check(data, steps)
                yield

    def step(self, x: Tensor, y: Tensor, number: int) -> None:
        """Update the discriminator, then the generator, on one batch; ``number`` is from 0."""
        training, config = self.training, self.training.config
        x, y = x.to(self.device), y.to(self.device)
        rate = config.lr * (0.55 + 0.45 * math.cos(math.pi * number / config.max_steps))
        training.optimizers["generator"].param_groups[0]["lr"] = rate
        generator = training.networks.generator
        critic = training.networks.discriminator.requires_grad_(True)
        shifted = generator(x)
        real, fake = generator.standardise(x), generator.standardise(shifted)
        loss_critic = F.softplus(-critic(real)).mean() + F.softplus(critic(fake.detach())).mean()
        self._update("discriminator", loss_critic)
        critic.requires_grad_(False)
        adversarial = F.softplus(-critic(fake)).mean()
        seen = shifted + self._noise(shifted, number)
        losses = [F.cross_entropy(out, y, reduction="none") for out in self._outputs(seen)]
        shift = F.relu(config.margin - torch.stack(losses)).mean()
        distance = (fake - real).flatten(1).norm(dim=1)
        far = F.relu(distance - config.radius_of(x[0].numel())).mean()
        loss = config.adversarial * adversarial + config.shift * shift + config.closeness * far
        self._update("generator", loss)
        self._losses.append(torch.stack([loss.detach(), loss_critic.detach()]))

    def check(self, data: ForgetSet, steps: int) -> None:
        """Measure the three quantities and append them to the history.

        Raises:
            FloatingPointError: A loss since the last check is not finite.
        """
        losses = torch.stack(self._losses).double().mean(dim=0).tolist()
        self._losses.clear()
        if not all(map(math.isfinite, losses)):
            raise FloatingPointError(
                f"SPDGAN.fit: loss must be finite, got {losses} in the steps up to {steps}"
            )
        entry = {"step": steps, "generator_loss": losses[0], "discriminator_loss": losses[1]}
        entry |= self._quantities(data)
        entry["unmet"] = unmet(entry, self.training.config)
        self.training.history.append(entry)

    @torch.no_grad()
    def _quantities(self, data: ForgetSet) -> dict[str, float]:
        networks, x = self.training.networks, data.x[:CHECKED]
        shifted = networks.perturb(x, data.batch_size)
        hits = 0
        for start in range(0, len(x), data.batch_size):
            part = slice(start, start + data.batch_size)
            y = data.y[:CHECKED][part].to(self.device)
            for out in self._outputs(shifted[part].to(self.device)):
                hits += int((out.argmax(dim=1) == y).sum())
        figures = distances(x, shifted, networks.generator.unit.cpu())
        return {
            "reference_accuracy": hits / (len(x) * len(self.references)),
            "psnr": figures["psnr"],
            "linf": figures["linf"],
            "discriminator_auc": networks.separation(x, shifted, data.batch_size),
        }

    def _noise(self, x: Tensor, number: int) -> Tensor:
        """Return the noise of one step, of seed and step alone: a resumed fit repeats it."""
        mixed = np.random.SeedSequence([self.seed, number]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(mixed[0]))
        noise = torch.randn(x.shape, generator=generator).to(x.device)
        noise *= self.training.config.noise * self.training.networks.generator.unit
        return noise.to(x.dtype)

    def _outputs(self, x: Tensor) -> list[Tensor]:
        return [reference(x).float() for reference in self.references]

    def _update(self, name: str, loss: Tensor) -> None:
        optimizer = self.training.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def unmet(entry: dict[str, Any], config: SPDGANConfig) -> list[str]:
    """Return which of shift, closeness and balance do not hold at a check."""
    holds = {
        "shift": entry["reference_accuracy"] <= config.target_accuracy,
        "closeness": entry["psnr"] >= config.min_psnr and entry["linf"] <= config.epsilon,
        "balance": 1 - config.max_auc <= entry["discriminator_auc"] <= config.max_auc,
    }
    return [name for name, held in holds.items() if not held]
