"""The CUDA backend run on a CPU: what a process does that has loaded it."""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from core import backends
from core.configurations import Configuration, configuration, end_of
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
    assert set(found.values()) == {"cpu"}, found
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
    backends.simd = lambda level: nullcontext()  # type: ignore[assignment]
    load(path)
    file = Path(__file__).parents[1] / "test_vectors.py"
    arguments = ["-q", "-p", "no:cacheprovider", "-k", "simt", "-x", str(file)]
    status = pytest.main(arguments)
    assert status == 0, status
