"""Undo in memory: the bits that a perturbation overwrites."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastunlearn.selection import Selection, unpacked


class Entry(NamedTuple):
    """What one step overwrites, of all parameters that took part.

    Attributes:
        step: its number.
        tensors: the parameters.
        packed: the selected elements of each, see `Selection.packed`.
        values: their values before, in logical order.
        before, after: version counter of each parameter; None for inference tensors.
    """

    step: int
    tensors: list[Tensor]
    packed: list[Tensor]
    values: list[Tensor]
    before: list[int | None]
    after: list[int | None]


@torch.no_grad()
def before_step(step: int, parameters: dict[str, Tensor], selection: Selection) -> Entry:
    """Keep what a step will overwrite: K values, and one bit for each element."""
    packed = selection.packed()
    tensors = [parameters[name] for name in packed]
    pairs = zip(packed, tensors, strict=True)
    values = [tensor.detach()[selection.mask(name)] for name, tensor in pairs]
    return Entry(step, tensors, list(packed.values()), values, _versions(tensors), [])


def after_step(entry: Entry) -> Entry:
    """Note how the parameters are left."""
    return entry._replace(after=_versions(entry.tensors))


@torch.no_grad()
def undo(journal: list[Entry]) -> int:
    """Put the bits back that the last step has overwritten, and forget it; returns its number.

    Raises:
        RuntimeError: a parameter was written to since; nothing is put back.
    """
    entry = journal[-1]
    if _versions(entry.tensors) != entry.after:
        raise RuntimeError(
            "undo: parameters must be as the step left them, got some that were written to since"
        )
    for tensor, packed, values in zip(entry.tensors, entry.packed, entry.values, strict=True):
        tensor.detach()[unpacked(packed, tensor.shape)] = values
    journal.pop()
    if journal:
        # What the undone step was made of is there again, under another version.
        known = {id(t): v for t, v in zip(entry.tensors, entry.before, strict=True)}
        tensors, after = journal[-1].tensors, journal[-1].after
        for place, tensor in enumerate(tensors):
            if known.get(id(tensor)) == after[place]:
                after[place] = _versions([tensor])[0]
    return entry.step


def _versions(tensors: list[Tensor]) -> list[int | None]:
    return [None if tensor.is_inference() else tensor._version for tensor in tensors]
