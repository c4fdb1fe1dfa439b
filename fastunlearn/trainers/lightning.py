"""Perturbation as a callback of Lightning."""

from __future__ import annotations

from typing import Any

from fastunlearn.strategies import RandomK, TopK
from fastunlearn.trainers.stepper import Stepper, gradients_are_finite, needs

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise needs("lightning", "lightning") from error

__all__ = ["PerturbCallback"]


class PerturbCallback(Callback):
    """Perturbs the parameters that require gradients after every n-th step of the optimizer.

    Gradients are those of the step: accumulated, clipped, and no longer scaled. A step that the
    gradient scaler has left out is followed by no perturbation. With several optimizers, one step
    of each counts as one.

    Args:
        strategy, seed, every, keep_seed: see `Stepper`. The number of the perturbation follows from
            the trainer's number of steps, so a resumed run goes on where it was.

    Attributes:
        stepper: has the receipts.

    Example:
        >>> import fastunlearn as fu
        >>> from fastunlearn.trainers.lightning import PerturbCallback
        >>> callback = PerturbCallback(fu.TopK(0.01, std=0.01), every=10, seed=0)
    """

    def __init__(
        self,
        strategy: TopK | RandomK,
        *,
        seed: int | None = None,
        every: int = 1,
        keep_seed: bool = False,
    ) -> None:
        self.stepper = Stepper("PerturbCallback", strategy, seed, every, keep_seed)
        self._steps = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count where the trainer does."""
        self._steps = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Perturb where the batch ended a step: its gradients stay until the next one."""
        if trainer.global_step == self._steps:
            return
        self._steps = trainer.global_step
        optimizers = max(len(trainer.optimizers), 1)
        if self._steps % optimizers == 0:
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            taken = scaler is None or gradients_are_finite(pl_module)
            self.stepper.after_step(pl_module, self._steps // optimizers, taken=taken)

    def state_dict(self) -> dict[str, Any]:
        """The seed, if there is one yet: whoever has it can subtract the noise."""
        return {"seed": self.stepper.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the seed of the run before."""
        self.stepper.seed = state_dict["seed"]
