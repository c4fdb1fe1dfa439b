"""The memory of a generated call, the call itself, and the first difference between two outcomes.

A world is a list of flat buffers and of views into them, so that it can be copied with all its
gaps, offsets and shared memory, and compared byte by byte.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from core.cases import SPECIAL, numbers
from core.configurations import Configuration, Draw, Entry
from torch import Tensor

from fastunlearn.reference.ops import Stat

FILL = 7  # of the memory that belongs to no element
POOLS = {"normal": "normal", "ties": "ties", "special": "special", "bits": "bits"}


@dataclass(frozen=True)
class View:
    """A tensor as a place in a buffer; strides and offset in elements of its dtype."""

    buffer: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    def of(self, buffers: Sequence[Tensor]) -> Tensor:
        line = buffers[self.buffer]
        line = line if line.dtype == self.dtype else line.view(self.dtype)
        return line.as_strided(self.shape, self.stride, self.offset)


@dataclass
class World:
    """Everything that a call may read or write."""

    buffers: list[Tensor]
    weight_views: list[View]
    score_views: list[View]

    def copy(self) -> World:
        return World([b.clone() for b in self.buffers], self.weight_views, self.score_views)

    @property
    def weights(self) -> list[Tensor]:
        return [view.of(self.buffers) for view in self.weight_views]

    @property
    def scores(self) -> list[Tensor]:
        return [view.of(self.buffers) for view in self.score_views]


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def _permuted(shape: tuple[int, ...], order: Sequence[int]) -> tuple[int, ...]:
    """Strides of a tensor whose memory is row-major once its dimensions are in this order."""
    strides = dict(zip(order, row_major([shape[d] for d in order]), strict=True))
    return tuple(strides[d] for d in range(len(shape)))


def spread(draw: Draw, strides: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], int, int]:
    """Strides, storage offset and buffer length; contiguous where the kind does not fit."""
    dims, count = len(shape), math.prod(shape)
    plain = row_major(shape)
    if strides == "transposed" and dims >= 2:
        return _permuted(shape, range(dims)[::-1]), 0, count
    if strides == "permuted" and dims >= 3:
        return _permuted(shape, draw.source.permutation(dims).tolist()), 0, count
    if strides == "channels_last" and dims == 4:
        return _permuted(shape, (0, 2, 3, 1)), 0, count
    if strides == "step" and dims:
        step = draw.pick((2, 3))
        return tuple(step * s for s in plain), 0, step * count
    if strides == "columns" and dims:
        wide = (*shape[:-1], shape[-1] + 3)
        return row_major(wide), draw.between(0, 3), math.prod(wide)
    if strides == "singles":
        odd = [draw.between(0, 9) if n == 1 else s for n, s in zip(shape, plain, strict=True)]
        return tuple(odd), 0, count
    if strides == "expanded" and dims:
        kept = draw.between(-1, dims - 1)  # -1: every element is the same
        return tuple(int(d == kept) for d in range(dims)), 0, max(shape[kept], 1)
    offset = draw.between(1, 17) if strides == "offset" else 0
    return plain, offset, count + offset


def values(draw: Draw, kind: str, count: int) -> np.ndarray:
    """float64 values of a pattern, in logical order; never NaN."""
    source = draw.source
    if kind == "equal":
        return np.full(count, draw.pick((0.0, 1.5, -math.inf, 1e-41)))
    if kind == "few":
        return source.choice(source.standard_normal(16), count)
    if kind == "narrow":
        return 1.0 + source.integers(0, 64, count) * 2.0**-23
    if kind == "wide":
        return 10.0 ** source.uniform(-44, 38, count)
    normal = source.standard_normal(count)
    if kind == "zeros":
        return np.where(source.random(count) < 0.7, 0.0, normal)
    if kind == "clustered":
        start = draw.between(0, count)
        normal[start : start + count // 50 + 1] *= 1000
    elif kind in ("ascending", "descending"):
        normal = normal[np.argsort(np.abs(normal))]
        return normal[::-1].copy() if kind == "descending" else normal
    return normal


def tensor_of(
    draw: Draw, kind: str, shape: tuple[int, ...], dtype: torch.dtype, magnitude: float = 1.0
) -> Tensor:
    """A contiguous tensor of a pattern."""
    if kind in POOLS and magnitude == 1.0:
        return numbers(kind, shape, dtype, draw.source)
    if kind in POOLS:
        return numbers(kind, shape, torch.float64, draw.source).mul_(magnitude).to(dtype)
    drawn = values(draw, kind, math.prod(shape)) * magnitude
    return torch.from_numpy(drawn).to(dtype).reshape(shape)


def _some(draw: Draw, count: int, share: float) -> Tensor:
    """Places of a share of the elements, but of at least one."""
    size = math.ceil(share * count)
    return torch.from_numpy(draw.source.integers(0, max(count, 1), size))


def _sprinkle(draw: Draw, tensor: Tensor, share: float) -> None:
    """Overwrite a share of the elements with infinities, zeros and denormals."""
    if not share:
        return
    places = _some(draw, tensor.numel(), share)
    chosen = torch.tensor(draw.source.choice(SPECIAL, len(places)))
    tensor.view(-1)[places] = chosen.to(tensor.dtype)


def _poison(draw: Draw, tensor: Tensor, share: float) -> None:
    """Overwrite a share of the elements with NaN of any sign and payload."""
    if not share:
        return
    places = _some(draw, tensor.numel(), share)
    signed = {8: torch.int64, 4: torch.int32, 2: torch.int16}[tensor.itemsize]
    exponent = torch.tensor(math.inf, dtype=tensor.dtype).view(signed)
    payload = torch.from_numpy(draw.source.integers(-(2**15), 2**15, len(places))).to(signed)
    tensor.view(-1)[places] = (payload | exponent | 1).view(tensor.dtype)


def _add(world: World, draw: Draw, strides: str, content: Tensor, extra: int = 0) -> View:
    """Put a tensor into a new buffer that ends `extra` elements later than it must."""
    shape = tuple(content.shape)
    stride, offset, length = spread(draw, strides, shape)
    world.buffers.append(torch.full((length + extra,), FILL, dtype=content.dtype))
    view = View(len(world.buffers) - 1, content.dtype, shape, stride, offset)
    if strides == "expanded":  # several elements on one address cannot be copied to
        line = content.reshape(-1)[:length]
        world.buffers[-1][: len(line)].copy_(line)
    else:
        view.of(world.buffers).copy_(content)
    return view


def _aliased(draw: Draw, alias: str, views: list[View], i: int) -> View:
    """A score that lies in the memory of the weights."""
    view = views[i]
    if alias == "swapped":
        return views[(i + 1) % len(views)]
    if alias == "shifted":
        shift = draw.between(1, 9)
        return View(view.buffer, view.dtype, view.shape, view.stride, view.offset + shift)
    if alias == "transposed":
        return View(view.buffer, view.dtype, view.shape, view.stride[::-1], view.offset)
    if alias == "reinterpreted" and view.dtype.itemsize == 2:
        other = {torch.bfloat16: torch.float16, torch.float16: torch.bfloat16}[view.dtype]
        return View(view.buffer, other, view.shape, view.stride, view.offset)
    if alias == "expanded":
        return View(view.buffer, view.dtype, view.shape, (0,) * len(view.shape), view.offset)
    return view


def build(made: Configuration) -> World:
    """Lay out the memory of a configuration."""
    draw = Draw(made.number + 2**32)
    world = World([], [], [])
    alias = made.alias
    for entry in made.entries:
        kind = entry.score_values if alias else entry.weight_values
        weight = tensor_of(draw, kind, entry.shape, entry.weight)
        _poison(draw, weight, made.weight_nan_share)
        world.weight_views.append(
            _add(world, draw, entry.weight_strides, weight, 9 if alias else 0)
        )
    for i, entry in enumerate(made.entries):
        world.score_views.append(_score(world, draw, made, i, entry))
    return world


def _score(world: World, draw: Draw, made: Configuration, i: int, entry: Entry) -> View:
    if made.alias:
        return _aliased(draw, made.alias, world.weight_views, i)
    if made.scores_are_weights:
        return world.weight_views[i]
    score = tensor_of(draw, entry.score_values, entry.shape, entry.score, entry.magnitude)
    _sprinkle(draw, score, made.special_share)
    _poison(draw, score, made.nan_share)
    return _add(world, draw, entry.score_strides, score)


# The call -----------------------------------------------------------------------------------------


def rng_tensor(seed: int, step: int) -> Tensor:
    return torch.tensor([seed - 2**64 * (seed >> 63), step])


def indices(made: Configuration) -> Tensor:
    """The argument of the operation `noise`: flat indices up to 2^62."""
    draw = Draw(made.number + 2**33)
    count = draw.pick((0, 1, 5, 64, 1000, 5003, 66_000))
    start = draw.pick((0, 3, 2**32 - 9, 2**34 - 9, 2**61 + 1, 2**62 - count))
    index = torch.arange(start, start + count)
    if made.index == "shuffled":
        return index[torch.from_numpy(draw.source.permutation(count))]
    if made.index == "far":
        return torch.from_numpy(draw.source.integers(0, 2**62, count)).view(-1, 1)
    if made.index == "strided":
        return index[: count // 6 * 6].view(2, count // 6, 3).permute(2, 0, 1)
    if made.index == "repeated":
        return index[:1].expand(count) if count else index
    return index[0] if made.index == "scalar" and count else index


def arguments(made: Configuration, world: World) -> tuple[Any, ...]:
    """What the operation of a configuration is called with."""
    rng = rng_tensor(made.seed, made.step)
    if made.operation == "noise":
        return indices(made), rng, made.noise
    if made.operation == "rms":
        return (world.weights,)
    scale = torch.tensor([entry.scale for entry in made.entries], dtype=torch.float64)
    places = [entry.place for entry in made.entries]
    layout = [x for p in places for x in (p.base, p.row_len, p.row_stride)]
    drawn, count = (scale, rng) if made.writes else (), (list(made.k), made.per_tensor)
    tail = (made.noise, made.update, made.allow_overflow) if made.writes else ()
    if made.topk:
        ranked = (made.score, made.nan)
        return (world.weights, world.scores, *drawn, *count, *ranked, *tail, layout)
    return (world.weights, *(drawn or (rng,)), *count, *tail, layout, made.total)


@dataclass
class Outcome:
    """Everything that a call left behind."""

    world: World
    weights: list[Tensor]
    results: dict[str, Tensor]
    bumped: list[bool]  # whether the version counter of each weight rose

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 over every byte, with the form of the results."""
        found = hashlib.sha256(repr(self.bumped).encode())
        for name, tensor in self.results.items():
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        for tensor in (*self.world.buffers, *self.results.values()):
            found.update(raw_bytes(tensor))
        return found.hexdigest()


def raw_bytes(tensor: Tensor) -> Any:
    line = tensor.detach().reshape(-1).contiguous()
    return line.view(torch.uint8).numpy() if line.numel() else b""


def run(operations: Any, made: Configuration, world: World) -> Outcome:
    """Call an operation of a namespace on a world of its own."""
    called = arguments(made, world)
    weights = [] if made.operation == "noise" else called[0]
    versions = [w._version for w in weights]
    found = getattr(operations, made.operation)(*called)
    results: dict[str, Tensor] = {}
    if isinstance(found, Tensor):
        results["stats" if made.writes else made.operation] = found
    else:
        results = {f"packed[{i}]": part for i, part in enumerate(found[0])}
        results["stats"] = found[1]
    bumped = [w._version > v for w, v in zip(weights, versions, strict=True)]
    return Outcome(world, weights, results, bumped)


# The first difference -----------------------------------------------------------------------------


def _words(tensor: Tensor) -> np.ndarray:
    """Bits of the elements in logical order, as unsigned integers."""
    line = tensor.detach().reshape(-1).contiguous()
    return line.view(torch.uint8).numpy().view(f"u{tensor.element_size()}")


def _compared(name: str, wanted: Tensor, found: Tensor) -> str | None:
    if (wanted.dtype, wanted.shape) != (found.dtype, found.shape):
        return f"{name}: {wanted.dtype} {wanted.shape} became {found.dtype} {found.shape}"
    pairs = _words(wanted), _words(found)
    differ = np.flatnonzero(pairs[0] != pairs[1])
    if not differ.size:
        return None
    first = int(differ[0])
    place = f"{name}, element {first}"
    if name == "stats":
        place = f"stats of tensor {first // len(Stat)}, {Stat(first % len(Stat)).name}"
    values = [t.reshape(-1)[first].item() for t in (wanted, found)]
    bits = [f"{value} (bits {int(w[first]):#x})" for value, w in zip(values, pairs, strict=True)]
    return f"{place}: wanted {bits[0]}, found {bits[1]}; {differ.size} of {pairs[0].size} differ"


def _named(outcome: Outcome) -> Iterable[tuple[str, Tensor]]:
    yield from outcome.results.items()
    yield from ((f"weights[{i}]", w) for i, w in enumerate(outcome.world.weights))
    yield from ((f"buffers[{i}]", b) for i, b in enumerate(outcome.world.buffers))


def first_difference(wanted: Outcome, found: Outcome) -> str | None:
    """Where two outcomes differ, results first, or None where every byte is equal."""
    if wanted.digest == found.digest:
        return None
    if wanted.bumped != found.bumped:
        return f"version counters: rose {wanted.bumped} and {found.bumped}"
    for (name, left), (other, right) in zip(_named(wanted), _named(found), strict=True):
        assert name == other
        difference = _compared(name, left, right)
        if difference:
            return difference
    raise AssertionError("digests differ and no byte does")
