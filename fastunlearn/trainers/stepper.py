"""What the trainers share: when to perturb, what, and with which seed."""

from __future__ import annotations

import secrets
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastunlearn.perturb import perturb_
from fastunlearn.receipt import Receipt
from fastunlearn.strategies import RandomK, TopK

# Attributes that engines put on parameters whose tensors are shards without saying so.
_HIDDEN_SHARDS = {"ds_id": "DeepSpeed", "_fsdp_flattened": "FSDP1"}


class Stepper:
    """Perturbs a model after every n-th step of its optimizer.

    Args:
        op: name of the caller, for messages.
        strategy: what to select and how to perturb it. A Top-K strategy ranks `.grad`.
        seed: in [0, 2**64); None draws one, the same for all processes.
        every: number of steps of the optimizer from one perturbation to the next, >= 1.
        keep_seed: write the seed into receipts.

    Attributes:
        receipts: one for each perturbation, in order.
        skipped: perturbations that were left out, see `after_step`.

    Raises:
        TypeError, ValueError: an argument is out of its range.
    """

    def __init__(
        self, op: str, strategy: TopK | RandomK, seed: int | None, every: int, keep_seed: bool
    ) -> None:
        if not isinstance(strategy, (TopK, RandomK)):
            raise TypeError(f"{op}: strategy must be a TopK or a RandomK, got {strategy!r}")
        if isinstance(strategy, TopK) and strategy.score in ("mas", "ratio"):
            raise ValueError(
                f"{op}: strategy must have a score that a gradient gives, got {strategy.score!r}"
            )
        if isinstance(every, bool) or not isinstance(every, int):
            raise TypeError(f"{op}: every must be an int, got {every!r}")
        if every < 1:
            raise ValueError(f"{op}: every must be >= 1, got {every}")
        self.op, self.strategy, self.seed, self.every = op, strategy, seed, every
        self.keep_seed = keep_seed
        self.receipts: list[Receipt] = []
        self.skipped = 0

    def after_step(self, model: nn.Module, step: int, *, taken: bool = True) -> Receipt | None:
        """Perturb where it is time.

        Args:
            model: whose gradients are those of the step, unscaled.
            step: number of steps so far, this one included.
            taken: False where the optimizer's step was left out for an overflow.

        Returns:
            The receipt, or None where nothing was done.
        """
        if step % self.every:
            return None
        if not taken:
            self.skipped += 1
            return None
        return self.perturb(model, step // self.every - 1)

    def perturb(self, model: nn.Module, step: int) -> Receipt:
        """Perturb now, as the perturbation of this number."""
        target = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        if not target:
            raise ValueError(f"{self.op}: model must have a parameter that requires a gradient")
        for name, parameter in target:
            for mark, engine in _HIDDEN_SHARDS.items():
                if hasattr(parameter, mark):
                    raise ValueError(
                        f"{self.op}: parameters must be whole or DTensors, got {name!r}, of which "
                        f"{engine} hides the shards; FSDP2 (fully_shard) is supported"
                    )
        if self.seed is None:
            self.seed = shared_seed(target[0][1].device)
        how: dict[str, Any] = {"seed": self.seed, "step": step, "keep_seed": self.keep_seed}
        if any(hasattr(p, "placements") for _, p in target):
            from fastunlearn.distributed import perturb_ as perturb_shards

            receipt = perturb_shards(target, self.strategy, **how)
        else:
            skip = isinstance(self.strategy, TopK) and any(p.grad is not None for _, p in target)
            receipt = perturb_(
                target, self.strategy, missing_grad="skip" if skip else "error", **how
            )
        self.receipts.append(receipt)
        return receipt


def shared_seed(device: torch.device) -> int:
    """Draw a seed from the operating system; the first process's, where there are several."""
    seed = secrets.randbits(63)
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        word = torch.tensor([seed], device=device if device.type == "cuda" else "cpu")
        dist.broadcast(word, 0)
        seed = int(word)
    return seed


def gradients_are_finite(model: nn.Module) -> bool:
    """Whether no gradient of the model holds an infinity or a NaN; on this process."""
    gradients = (p.grad for p in model.parameters() if p.grad is not None)
    local = (getattr(g, "to_local", lambda g=g: g)() for g in gradients)
    return all(bool(cast(Tensor, g).isfinite().all()) for g in local)


def needs(package: str, extra: str) -> ImportError:
    """Return the error of an optional package that is absent."""
    return ImportError(
        f"fastunlearn.trainers.{extra} needs {package}, which is not installed: "
        f"pip install 'fastunlearn[{'hf' if extra != 'lightning' else extra}]'"
    )
