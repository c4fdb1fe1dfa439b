"""Where the elements of a shard lie in the flat index space of the whole model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from fastunlearn.strategies import Strategy
from fastunlearn.targets import check_tensor, kept


@dataclass(frozen=True)
class Shard:
    """One rank's box of a parameter, for those who shard by hand.

    Args:
        tensor: this rank's part, any strides; its shape is the box's. It may be empty.
        shape: of the full parameter.
        offset: of the box's first element along each dimension.
        grad: scores of the box, shaped like `tensor`; None takes `tensor.grad`.
        owned: False on all but one of the ranks that hold the same box, so that it counts once.
    """

    tensor: Tensor
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    grad: Tensor | None = None
    owned: bool = True

    def __post_init__(self) -> None:
        """Refuse a box that does not lie in the parameter."""
        box = tuple(self.tensor.shape)
        if not len(box) == len(self.shape) == len(self.offset):
            raise ValueError(
                f"Shard: tensor, shape and offset must have as many dimensions, got {box}, "
                f"{self.shape} and {self.offset}"
            )
        inside = all(
            start >= 0 and start + size <= full
            for start, size, full in zip(self.offset, box, self.shape, strict=True)
        )
        if math.prod(box) and not inside:
            raise ValueError(
                f"Shard: tensor must lie in shape {self.shape}, got {box} at {self.offset}"
            )


class Piece(NamedTuple):
    """A view of a shard whose elements form rows at equal distances in the flat index space.

    Attributes:
        parameter: number of the parameter.
        view, score: of the local tensor and of its scores (the view itself where there are none).
        layout: base, row_len and row_stride, see `fastunlearn.reference.memory`.
        owned: whether this rank counts it.
    """

    parameter: int
    view: Tensor
    score: Tensor
    layout: tuple[int, int, int]
    owned: bool


class Sharded(NamedTuple):
    """The parameters of a call, in flat-index order.

    Attributes:
        names, shapes, dtypes: of the full parameters.
        placements: of each, in words: part of the plan that all ranks must share.
        boxes: shape and offset of this rank's part of each.
        pieces: this rank's.
        numel: size of the flat index space.
    """

    names: list[str]
    shapes: list[tuple[int, ...]]
    dtypes: list[torch.dtype]
    placements: list[str]
    boxes: list[tuple[tuple[int, ...], tuple[int, ...]]]
    pieces: list[Piece]
    numel: int


def sharded(
    op: str, target: Any, strategy: Strategy, rank: int, *, scored: bool, scores: Any = None
) -> Sharded:
    """Describe the shards of a target.

    Args:
        op: name of the operation, for messages.
        target: a module, a mapping, or an iterable of tensors or of (name, tensor) pairs, where a
            tensor is a DTensor, a `Shard`, or a plain tensor that every rank has.
        strategy: gives the include and exclude patterns.
        rank: of this process in the group; the first counts what all have.
        scored: whether scores are read.
        scores: by name or in order; None takes gradients.

    Raises:
        TypeError: something that is no tensor.
        ValueError: a partial DTensor, or a parameter without scores.
    """
    named = kept(op, target, strategy)
    for _, value in named:
        if not isinstance(value, (Tensor, Shard)):
            raise TypeError(f"{op}: target must hold tensors, got {type(value).__name__}")
    given = None
    if scores is not None:
        listed = [] if isinstance(scores, Mapping) else zip(named, scores, strict=True)
        given = scores if isinstance(scores, Mapping) else {n: score for (n, _), score in listed}
        absent = [name for name, _ in named if name not in given]
        if absent:
            raise ValueError(f"{op}: scores must hold every parameter, got none for {absent[0]!r}")
    found = Sharded([], [], [], [], [], [], 0)
    base = 0
    for number, (name, value) in enumerate(named):
        box, placement = _box(op, name, value, rank)
        check_tensor(op, "parameter", name, box.tensor)
        grad = _grad(op, name, value, box, None if given is None else given[name], scored)
        found.names.append(name)
        found.shapes.append(box.shape)
        found.dtypes.append(box.tensor.dtype)
        found.placements.append(placement)
        found.boxes.append((tuple(box.tensor.shape), box.offset))
        for view, score, layout in pieces(
            box.tensor.detach(), grad.detach(), box.shape, box.offset
        ):
            at = (base + layout[0], *layout[1:])
            found.pieces.append(Piece(number, view, score, at, box.owned))
        base += math.prod(box.shape)
    return found._replace(numel=base)


def _box(op: str, name: str, value: Any, rank: int) -> tuple[Shard, str]:
    """Return the local box of a parameter and its placement in words."""
    if isinstance(value, Shard):
        return value, "shard"
    if not isinstance(value, DTensor):
        shape = tuple(value.shape)
        return Shard(value, shape, (0,) * len(shape), owned=rank == 0), "everywhere"
    mesh, placements = value.device_mesh, value.placements
    if any(placement.is_partial() for placement in placements):
        raise ValueError(f"{op}: parameter {name!r} must not be partial, got {placements}")
    shape, offset = compute_local_shape_and_global_offset(value.shape, mesh, placements)
    here = mesh.get_coordinate()
    if here is None:
        raise ValueError(f"{op}: this rank must be in the mesh of parameter {name!r}, got none")
    pairs = zip(here, placements, strict=True)
    owned = all(at == 0 or not placement.is_replicate() for at, placement in pairs)
    local = value.to_local()
    if tuple(local.shape) != tuple(shape):  # an empty shard may have lost its other dimensions
        local = local.view(shape)
    words = f"{placements} on {tuple(mesh.shape)}"
    return Shard(local, tuple(value.shape), tuple(offset), owned=owned), words


def _grad(op: str, name: str, value: Any, box: Shard, given: Any, scored: bool) -> Tensor:
    """Return the local scores of a parameter; the parameter itself where none are read."""
    if not scored:
        return box.tensor
    score = given
    if score is None:
        score = value.grad if isinstance(value, Tensor) else box.grad
        score = box.tensor.grad if score is None and isinstance(value, Shard) else score
    if score is None:
        raise ValueError(
            f"{op}: every parameter must have a .grad, got none for {name!r}; call backward first "
            "or give scores="
        )
    if isinstance(score, DTensor):
        if not isinstance(value, DTensor) or score.placements != value.placements:
            raise ValueError(
                f"{op}: scores of {name!r} must be placed as it is, got {score.placements}"
            )
        score = score.to_local()
    if score.numel() == 0 and box.tensor.numel() == 0:
        return box.tensor
    check_tensor(op, "score of", name, score)
    if score.shape != box.tensor.shape:
        raise ValueError(
            f"{op}: scores of {name!r} must have shape {tuple(box.tensor.shape)} on this rank, "
            f"got {tuple(score.shape)}"
        )
    return score


def pieces(
    tensor: Tensor, score: Tensor, shape: Sequence[int], offset: Sequence[int]
) -> Iterator[tuple[Tensor, Tensor, tuple[int, int, int]]]:
    """Cut a box into views of equally spaced rows.

    A box whose flat indices are such rows, as any 1-D or 2-D sharding of a matrix gives, is one
    view; of others the first dimension is walked.

    Args:
        tensor, score: the box and its scores, of one shape.
        shape: of the full parameter.
        offset: of the box's first element.

    Yields:
        View, scores, and base, row_len and row_stride relative to the parameter's first element.
    """
    if tensor.numel() == 0:
        return
    strides = [math.prod(shape[d + 1 :]) for d in range(len(shape))]
    base = sum(start * stride for start, stride in zip(offset, strides, strict=True))
    rows = _rows(tensor.shape, strides)
    if rows is not None:
        yield tensor, score, (base, *rows)
        return
    for place, (view, part) in enumerate(zip(tensor, score, strict=True)):
        ahead = (offset[0] + place) * strides[0]
        for *found, (start, *rest) in pieces(view, part, shape[1:], offset[1:]):
            yield found[0], found[1], (ahead + start, rest[0], rest[1])


def _rows(box: Sequence[int], strides: Sequence[int]) -> tuple[int, int] | None:
    """Return row_len and row_stride of a box with elements; None where it is no such rows.

    Args:
        box: shape of the box.
        strides: distances in flat indices along its dimensions.
    """
    merged = [(1, 1)]  # size and distance, the outermost last
    for size, stride in zip(reversed(box), reversed(strides), strict=True):
        inner, distance = merged[-1]
        if size == 1:
            continue
        if stride == inner * distance:
            merged[-1] = (inner * size, distance)
        else:
            merged.append((size, stride))
    if len(merged) > 2:
        return None
    row, repeat = merged[0][0], merged[1][1] if len(merged) == 2 else merged[0][0]
    return row, repeat


def views_of(shards: Sharded) -> list[Tensor]:
    """The op argument `weights`."""
    return [piece.view for piece in shards.pieces]


def layout_of(shards: Sharded) -> list[int]:
    """The op argument `layout`."""
    return [number for piece in shards.pieces for number in piece.layout]
