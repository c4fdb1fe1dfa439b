"""What scoring and repair share: batches in, losses out, and the model put back as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

__all__ = ["ForwardFn", "LossFn", "ProgressHook", "default_forward"]

ForwardFn = Callable[[nn.Module, Any], tuple[Any, Any]]
"""``forward_fn(model, batch) -> (outputs, targets)``."""
LossFn = Callable[[Any, Any], Tensor]
"""``loss_fn(outputs, targets) -> scalar``, the mean loss over the examples of one batch."""
ProgressHook = Callable[[str, int, "int | None"], None]
"""``hook(phase, done, total)``, called after each batch; ``total`` is None where unknown."""


def trainable_parameters(model: nn.Module, op: str) -> dict[str, nn.Parameter]:
    """Return the parameters with ``requires_grad`` by name, tied ones once, or raise."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{op}: model must be a torch.nn.Module, got {type(model).__name__}")
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise ValueError(f"{op}: model must have a parameter with requires_grad, got none")
    for name, parameter in parameters.items():
        if is_lazy(parameter):
            raise ValueError(f"{op}: {name} must be initialised (run the model once), got lazy")
        if not parameter.is_floating_point():
            raise TypeError(f"{op}: {name} must be real floating point, got {parameter.dtype}")
    return parameters


def default_forward(model: nn.Module, batch: Any) -> tuple[Any, Any]:
    """Unpack ``x, y = batch``, move both to the model's device, return ``(model(x), y)``.

    Args:
        model: Any module that takes one argument. Its device is that of its first parameter.
        batch: A pair; tensors inside tuples, lists and dicts are moved too.

    Returns:
        (outputs, targets).

    Raises:
        TypeError: If the batch is not a pair.

    Example:
        >>> import torch
        >>> outputs, y = default_forward(torch.nn.Identity(), (torch.ones(2, 3), torch.zeros(2)))
        >>> outputs.shape, y.shape
        (torch.Size([2, 3]), torch.Size([2]))
    """
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        got = type(batch).__name__
        got += f" of length {len(batch)}" if isinstance(batch, (tuple, list)) else ""
        raise TypeError(
            f"forward_fn: batch must be a pair (inputs, targets), got {got}; "
            "pass forward_fn= for other batches"
        )
    first = next(model.parameters(), None)
    inputs, targets = batch if first is None else _moved(batch, first.device)
    return model(inputs), targets


def _moved(value: Any, device: torch.device) -> Any:
    """Move the tensors of a nested batch to a device."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {key: _moved(item, device) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_moved(item, device) for item in value)
    return value


def example_count(outputs: Any, targets: Any, op: str) -> int:
    """Return the first dimension of the first tensor in the outputs, else in the targets."""
    for value in (outputs, targets):
        tensor = _first_tensor(value)
        if tensor is not None:
            return tensor.shape[0]
    raise TypeError(
        f"{op}: outputs or targets must hold a tensor with a batch dimension, "
        f"got {type(outputs).__name__} and {type(targets).__name__}"
    )


def _first_tensor(value: Any) -> Tensor | None:
    """Find the first tensor with a dimension in a nested structure."""
    if isinstance(value, Tensor):
        return value if value.ndim > 0 else None
    items: Iterable[Any] = ()
    if isinstance(value, Mapping):
        items = value.values()
    elif isinstance(value, (tuple, list)):
        items = value
    return next((found for found in map(_first_tensor, items) if found is not None), None)


def checked_loss(loss: Any, op: str) -> Tensor:
    """Return the loss if it is a 0-dim floating tensor with a graph, or raise."""
    if not isinstance(loss, Tensor):
        raise TypeError(f"{op}: loss_fn must return a tensor, got {type(loss).__name__}")
    if loss.ndim != 0 or not loss.is_floating_point():
        raise TypeError(
            f"{op}: loss_fn must return a floating scalar of shape (), "
            f"got {loss.dtype} of shape {tuple(loss.shape)}"
        )
    if not loss.requires_grad:
        raise ValueError(f"{op}: loss must depend on a trainable parameter, got one without graph")
    return loss


def length_of(loader: Any) -> int | None:
    """Return the number of batches, or None where the loader does not know it."""
    try:
        return len(loader)
    except TypeError:  # an IterableDataset's loader has __len__ and raises all the same
        return None


class Batches:
    """A loader that keeps the first batch it ever yields, for a trial before anything is changed.

    A pass begun for the trial alone would make the orders of a loader that shuffles with its own
    generator depend on whether there was another pass before.
    """

    def __init__(self, loader: Iterable[Any], name: str) -> None:
        """Wrap a re-iterable loader; the name is for messages."""
        self._loader, self._name = loader, name
        self._opened = False
        self._first: list[Any] = []

    def __len__(self) -> int:
        """Return the loader's length, or raise TypeError where it has none."""
        loader: Any = self._loader
        return len(loader)

    def __iter__(self) -> Iterator[Any]:
        """Begin a pass over the loader."""
        for batch in self._loader:
            if not self._opened:
                self._opened = True
                self._first.append(batch)
            yield batch

    def first(self) -> Any:
        """Return the first batch and let go of it; begins a pass only if there was none yet."""
        if not self._opened:
            next(iter(self), None)
        if not self._first:
            raise ValueError(f"repair: {self._name} must yield at least one batch, got none")
        return self._first.pop()


@contextmanager
def preserved(model: nn.Module, *, train: bool) -> Iterator[None]:
    """Run a block in training or evaluation mode, with gradients, and put the model back.

    Parameters are the caller's business; flags, buffers, modes and generators are restored. It
    also leaves an outer ``no_grad`` or ``inference_mode``, under which nothing can be learned.
    """
    flags = [(p, p.requires_grad) for p in model.parameters()]
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        forked_rng(),
        preserved_buffers(model),
        preserved_mode(model),
    ):
        try:
            set_mode(model, train=train)
            yield
        finally:
            for parameter, flag in flags:
                parameter.requires_grad_(flag)


@contextmanager
def forked_rng() -> Iterator[None]:
    """Put torch's CPU generator and every CUDA generator back after the block."""
    # Reading a CUDA generator starts CUDA, so a process that never used it is left alone.
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        yield


@contextmanager
def preserved_buffers(model: nn.Module) -> Iterator[None]:
    """Put every buffer back after the block, both the tensor object and its bits."""
    saved = [
        (module._buffers, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for owner, name, buffer, value in saved:
                buffer.copy_(value)
                owner[name] = buffer


@contextmanager
def preserved_mode(model: nn.Module) -> Iterator[None]:
    """Put each submodule's own training flag (and a recurrent layer's dropout) back."""
    flags = [(module, module.training) for module in model.modules()]
    dropouts = [(m, m.dropout) for m in model.modules() if isinstance(m, nn.RNNBase)]
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag
        for module, dropout in dropouts:
            module.dropout = dropout


def set_mode(model: nn.Module, *, train: bool) -> None:
    """Set training or evaluation mode; call it inside `preserved_mode`.

    cuDNN refuses to differentiate a recurrent layer in evaluation mode. Training mode without
    dropout computes the same, so that is what evaluation mode means for those layers here.
    """
    model.train(train)
    for module in model.modules():
        if not train and isinstance(module, nn.RNNBase):
            module.training, module.dropout = True, 0.0


@contextmanager
def progress_hook(progress: bool | ProgressHook) -> Iterator[ProgressHook]:
    """Yield a hook: the caller's own, a progress bar on stderr (True), or one that does nothing."""
    if callable(progress):
        yield progress
    elif not progress:
        yield lambda phase, done, total: None
    else:
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            tasks: dict[str, Any] = {}

            def advance(phase: str, done: int, total: int | None) -> None:
                if phase not in tasks:
                    tasks[phase] = bar.add_task(phase, total=total)
                bar.update(tasks[phase], completed=done, total=total)

            yield advance
