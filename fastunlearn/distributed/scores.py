"""`score` over a model that is spread over processes."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from fastunlearn.distributed.agree import Together
from fastunlearn.distributed.operations import device_of
from fastunlearn.scores import Accumulation, ForwardFn, LossFn, ProgressHook, scored


def score(
    model: nn.Module,
    loader: Iterable[Any] | None,
    loss_fn: LossFn | None,
    *,
    kind: str = "grad",
    retain: Iterable[Any] | None = None,
    dtype: torch.dtype = torch.float32,
    forward_fn: ForwardFn | None = None,
    train_mode: bool = False,
    eps: float = 1e-8,
    progress: bool | ProgressHook = False,
    group: dist.ProcessGroup | None = None,
) -> dict[str, Tensor]:
    """Score every trainable parameter of a model whose parameters or batches are spread over ranks.

    Every rank of the group calls it, with the model as it trains: under FSDP2 (`fully_shard`), with
    tensor parallel layers, under DistributedDataParallel. What counts as batch b are the b-th
    batches of all ranks together, also where they differ in size; ranks that share their data, as
    those of tensor parallel layers do, give the same ones. So the scores are those that
    `fastunlearn.score` gives in one process for the joined batches, up to rounding.

    A batch costs what a training step costs without the optimizer, and two collectives of 16 and
    24 bytes. Gradients are those that the model's backward leaves in `.grad`, which is put back
    afterwards: call it between steps, not while gradients accumulate unsynchronised. Ranks whose
    loaders end too early, and errors of a loader or a loss, are errors on all ranks; an error
    within the model's own collectives is one after the group's timeout.

    Args:
        model, loader, loss_fn, kind, retain, dtype, forward_fn, train_mode, eps, progress: see
            `fastunlearn.score`. The model is not wrapped in FSDP1, and no optimizer runs within
            its backward.
        group: of the ranks that the model is spread over, all of them; None for the default one.

    Returns:
        Name -> score, as `fastunlearn.score`; placed like the parameter (a DTensor where that is
        one), so that `perturb_` and `select` take it.

    Raises:
        TypeError, ValueError: as for `fastunlearn.score`; loaders of different lengths; a rank
            without an example in a batch; a backward that left no gradient, as it does while
            gradient synchronisation is off.
        PeerError: another rank has raised an error of its own.
    """
    how: dict[str, Any] = {"forward_fn": forward_fn, "train_mode": train_mode, "eps": eps}
    how |= {"kind": kind, "retain": retain, "dtype": dtype, "progress": progress}
    if not isinstance(model, nn.Module):
        raise TypeError(f"score: model must be a torch.nn.Module, got {type(model).__name__}")
    together = Together("score", group, device_of(model))
    with _gradients_apart(model):
        return scored(functools.partial(_Joined, together=together), model, loader, loss_fn, **how)


@dataclass(frozen=True)
class _Joined(Accumulation):
    """A scoring run on every rank, a batch of each at a time."""

    together: Together = field(kw_only=True)

    def batches(self, loader: Iterable[Any], name: str) -> Iterator[Any]:
        """Give the batches of this rank while all ranks have one."""
        own, done = _begun_late(loader), 0
        while found := self._next(own, name, done):
            done += 1
            yield found[0]

    def _next(self, own: Iterator[Any], name: str, done: int) -> list[Any]:
        """Take a batch, or none where all ranks have come to their end."""
        found: list[Any] = []

        def take() -> Tensor:
            found.extend(itertools.islice(own, 1))
            return torch.tensor([len(found)])

        ready, size = int(self.together.sum((1,), take)), self.together.size
        if 0 < ready < size:
            raise ValueError(
                f"score: {name} must yield as many batches on every rank, got {done} on "
                f"{size - ready} of {size} ranks and more on the others"
            )
        return found

    def gradients(self, batch: Any) -> tuple[int, Sequence[Tensor | None]]:
        """Return the number of examples of all ranks' batches and their gradient."""
        outputs, targets = self.forward(self.model, batch)
        count, objective = 0, None

        def measure() -> Tensor:
            nonlocal count, objective
            count, objective = self.objective(outputs, targets)
            return torch.tensor([count, objective is None])

        total, empty = self.together.sum((2,), measure).tolist()
        if empty:
            if total:
                raise ValueError("score: every rank must have an example in each batch, got none")
            return 0, ()
        assert objective is not None
        # The backward takes the mean over ranks; an even share is 1 and changes nothing.
        share = count * self.together.size / total
        (objective if share == 1 else objective * share).backward()
        return total, self._taken()

    def _taken(self) -> list[Tensor | None]:
        """Take what the backward has left; a sum over ranks may still have to be added up."""
        found = []
        for parameter in self.parameters.values():
            found.append(parameter.grad)
            parameter.grad = None
        if all(gradient is None for gradient in found):
            raise ValueError(
                "score: backward must leave gradients, got none; is their synchronisation off?"
            )
        return found


def _begun_late(loader: Iterable[Any]) -> Iterator[Any]:
    """Begin a loader with its first batch, where an error can be told to all ranks."""
    yield from loader


@contextmanager
def _gradients_apart(model: nn.Module) -> Iterator[None]:
    """Keep every `.grad` out of a block's way, and leave shards as shards."""
    parameters = list(model.parameters())
    hooked = [p for p in parameters if getattr(p, "_post_accumulate_grad_hooks", None)]
    if hooked:
        raise ValueError(
            "score: parameters must have no post-accumulate-grad hooks (an optimizer in the "
            f"backward has them), got {len(hooked)} that have"
        )
    saved = [p.grad for p in parameters]
    try:
        for parameter in parameters:
            parameter.grad = None
        yield
    finally:
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # the root stays whole after a forward pass without a backward
        for parameter, gradient in zip(parameters, saved, strict=True):
            parameter.grad = gradient
