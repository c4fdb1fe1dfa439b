"""The CUDA backend run on a CPU: what a process does that has loaded it."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import itertools
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from core import backends
from core.configurations import HISTOGRAMS, OPERATIONS, Configuration, configuration, end_of
from core.worlds import build, first_difference, run

from fastunlearn import _ops
from fastunlearn.reference import ops as reference

# fastunlearn::register_device_ops() and simt::set_seed(uint64_t)
_REGISTER, _SET_SEED = "_ZN11fastunlearn19register_device_opsEv", "_ZN4simt8set_seedEm"
MOST_ELEMENTS = 20_000  # of a usual call; one in MANY may be of any size
MANY = 25


def load(path: str) -> ctypes.CDLL:
    """Register the kernels and make sure that they, and nothing else, serve the CPU."""
    found = {name: _ops.backend_of(name, torch.device("cpu")) for name in _ops.SCHEMAS}
    assert set(found.values()) == {"reference"}, found
    library = ctypes.CDLL(path)
    library[_REGISTER]()
    found = {name: _ops.backend_of(name, torch.device("cpu")) for name in _ops.SCHEMAS}
    assert found == dict.fromkeys(OPERATIONS, "cpu") | dict.fromkeys(HISTOGRAMS, "reference")
    return library


def in_order(made: Configuration) -> Configuration:
    """The same call with its tensors in the order of their flat indices, as the kernels want it."""
    order = sorted(range(len(made.entries)), key=lambda i: made.entries[i].place.base)
    k = tuple(made.k[i] for i in order) if made.per_tensor else made.k
    return dataclasses.replace(made, entries=tuple(made.entries[i] for i in order), k=k)


def ascends(made: Configuration) -> bool:
    """Whether each tensor begins where the one before has ended, or later."""
    ends = [(entry.place.base, end_of(entry.place, entry.numel)) for entry in made.entries]
    return all(left[1] <= right[0] for left, right in itertools.pairwise(ends))


def calls(start: int) -> Iterator[Configuration]:
    """Generated calls from a number on, most of them small."""
    for number in itertools.count(start):
        made = configuration(number)
        if number % MANY == 0 or sum(e.numel for e in made.entries) <= MOST_ELEMENTS:
            yield in_order(made) if number % 5 else made


class Fallbacks:
    """Counts the calls of the reference."""

    def __init__(self) -> None:
        self.count = 0
        real = reference.layouts

        def layouts(*args: Any) -> Any:
            self.count += 1
            return real(*args)

        reference.layouts = layouts


def compare(
    library: ctypes.CDLL, made: Configuration, fallbacks: Fallbacks, met: Counter[str]
) -> None:
    """Run a call on the reference and on the kernels, in a schedule of its own."""
    world = build(made)
    wanted = run(reference, made, world.copy())
    library[_SET_SEED](ctypes.c_uint64(made.number))
    os.environ.pop("SIMT_POINTERS", None)
    if made.number % 2:
        os.environ["SIMT_POINTERS"] = "1"  # scale and rng are read when the kernels run
    before = fallbacks.count
    found = run(torch.ops.fastunlearn, made, world.copy())
    served = fallbacks.count == before
    if served and made.writes:
        assert all(found.bumped), f"versions of a started call must rise\n{made}"
        found.bumped = wanted.bumped
    difference = first_difference(wanted, found)
    assert difference is None, f"SIMT_SEED={made.number}: {difference}\n{made}"
    assert served or not ascends(made), made
    met.update({"all": 1, "served": served, made.operation: served, made.layout: served})


def generated(path: str, start: int, count: int) -> None:
    """Compare `count` calls and print what they were as JSON."""
    torch.set_num_threads(1)
    library, fallbacks, met = load(path), Fallbacks(), Counter[str]()
    for made in itertools.islice(calls(start), count):
        compare(library, made, fallbacks, met)
    print(json.dumps(met))


def vectors(path: str) -> None:
    """Run the tests of the committed vectors on the kernels."""
    backends.LEVELS[:] = ["simt"]
    backends.simd = lambda level: contextlib.nullcontext()  # type: ignore[assignment]
    load(path)
    file = Path(__file__).parents[1] / "test_vectors.py"
    arguments = ["-q", "-p", "no:cacheprovider", "-k", "simt", "-x", str(file)]
    with contextlib.redirect_stdout(sys.stderr):  # which is shown where this process fails
        status = pytest.main(arguments)
    assert status == 0, status


def _topk(weight: torch.Tensor, scale: float, k: int, update: str = "add") -> torch.Tensor:
    """Perturb one tensor by its own values; returns the statistics."""
    n = weight.numel()
    drawn = (torch.tensor([scale], dtype=torch.float64), torch.tensor([1, 0]))
    tail = ("weight", "error", "normal", update, True, [0, max(n, 1), max(n, 1)])
    return torch.ops.fastunlearn.topk_perturb_([weight], [weight], *drawn, [k], False, *tail)


def _randomk(weight: torch.Tensor, scale: float, k: int, update: str = "add") -> torch.Tensor:
    n = weight.numel()
    drawn = (torch.tensor([scale], dtype=torch.float64), torch.tensor([1, 0]))
    tail = ("normal", update, True, [0, max(n, 1), max(n, 1)], n)
    return torch.ops.fastunlearn.randomk_perturb_([weight], *drawn, [k], False, *tail)


def infinite_scales(path: str) -> None:
    """A scale that only the device knows, and that is not finite, refuses the whole call."""
    load(path)
    os.environ["SIMT_POINTERS"] = "1"
    for perturb, k, update, scale in itertools.product(
        (_topk, _randomk), (3, 900), ("add", "zero"), (float("nan"), float("inf"), 0.5)
    ):
        weight = torch.arange(1.0, 1001.0)
        stats = perturb(weight, scale, k, update)
        changed = int((weight != torch.arange(1.0, 1001.0)).sum())
        assert changed == int(stats[0, 0]) == (k if scale == 0.5 else 0), (perturb, k, scale)
    strided = torch.ones((4,) * 6)[(slice(None, None, 2),) * 6]
    with pytest.raises(ValueError, match="scale on a device must be finite, got nan"):
        _topk(strided, float("nan"), 3)
    assert bool((strided == 1).all())


def dimensions(path: str) -> None:
    """Four dimensions that do not merge are served by the kernels, five by the reference."""
    load(path)
    fallbacks = Fallbacks()
    for dims in (4, 5):
        found = torch.arange(4.0**dims).view((4,) * dims)
        weight = found[(slice(None, None, 2),) * dims]
        wanted = found.clone()
        stats = _topk(weight, 0.5, 3)
        assert fallbacks.count == (dims == 5) and int(stats[0, 0]) == 3
        assert int((found != wanted).sum()) == 3


def bitmaps(path: str) -> None:
    """Selections are views of one bitmap, and unused bits are 0."""
    load(path)
    weights = [torch.ones(4097), torch.ones(0), torch.ones(13)]
    layout = [0, 4097, 4097, 4097, 1, 1, 4097, 13, 13]
    arguments = (weights, weights, [4109], False, "weight", "error", layout)
    packed, stats = torch.ops.fastunlearn.topk_select(*arguments)
    assert [p.numel() for p in packed] == [513, 0, 2]
    assert len({p.untyped_storage().data_ptr() for p in packed}) == 1
    assert packed[0].tolist() == [255] * 512 + [1] and packed[2].tolist() == [255, 15]
    assert stats[:, 0].tolist() == [4097, 0, 12]


def refused_arguments(path: str) -> None:
    """Sizes that do not fit are told before anything is read past its end."""
    load(path)
    weight = torch.ones(10)
    with pytest.raises(ValueError, match=r"topk_perturb_: k\[0\] must be between 0 and 10, got 11"):
        _topk(weight, 0.5, 11)
    with pytest.raises(ValueError, match=r"randomk_perturb_: k\[0\] must be between 0 and 10"):
        _randomk(weight, 0.5, 11)
    with pytest.raises(ValueError, match="rng must be 2 numbers, got 3"):
        torch.ops.fastunlearn.noise(torch.arange(4), torch.tensor([1, 2, 3]), "normal")
