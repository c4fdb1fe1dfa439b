"""Perturbation in a training loop that is written with Accelerate."""

from __future__ import annotations

from torch import nn

from fastunlearn.receipt import Receipt
from fastunlearn.strategies import RandomK, TopK
from fastunlearn.trainers.stepper import Stepper, needs

try:
    from accelerate import Accelerator
except ImportError as error:
    raise needs("accelerate", "accelerate") from error

__all__ = ["Perturber"]


class Perturber:
    """Perturbs a model after every n-th step of its optimizer; call it after each `step()`.

    It does nothing while gradients are being accumulated, nor after a step that the gradient scaler
    has left out.

    Args:
        accelerator: of the loop.
        model: as prepared by it.
        strategy, seed, every, keep_seed: see `Stepper`.

    Attributes:
        stepper: has the receipts.

    Example:
        >>> import torch
        >>> from accelerate import Accelerator
        >>> import fastunlearn as fu
        >>> from fastunlearn.trainers.accelerate import Perturber
        >>> accelerator = Accelerator(cpu=True)
        >>> net = torch.nn.Linear(4, 2)
        >>> model, optimizer = accelerator.prepare(net, torch.optim.SGD(net.parameters(), lr=0.1))
        >>> perturber = Perturber(accelerator, model, fu.TopK(0.5, std=0.01), seed=0)
        >>> accelerator.backward(model(torch.ones(3, 4)).sum())
        >>> optimizer.step()
        >>> receipt = perturber.step()  # while the gradients are there
        >>> optimizer.zero_grad()
        >>> receipt.count
        5
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        strategy: TopK | RandomK,
        *,
        seed: int | None = None,
        every: int = 1,
        keep_seed: bool = False,
    ) -> None:
        self.accelerator, self.model = accelerator, model
        self.stepper = Stepper("Perturber", strategy, seed, every, keep_seed)
        self.steps = 0

    def step(self) -> Receipt | None:
        """Perturb where it is time; returns the receipt, or None where nothing was done."""
        if not self.accelerator.sync_gradients:
            return None
        self.steps += 1
        taken = not self.accelerator.optimizer_step_was_skipped
        return self.stepper.after_step(
            self.accelerator.unwrap_model(self.model), self.steps, taken=taken
        )
