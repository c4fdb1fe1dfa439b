"""Faults and kills in the midst of writing a checkpoint: the old or the new one is there, whole.

python run_crashes.py faults FOLDER          every call that writes fails in turn, and is killed in
python run_crashes.py kills FOLDER CYCLES    kill -9 at random moments
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
from checkpoint import made  # noqa: E402

import fastunlearn as fu  # noqa: E402
from fastunlearn import checkpoint as ck  # noqa: E402
from fastunlearn.checkpoint import output  # noqa: E402

CALLS = ("open", "pwrite", "fsync", "fchmod", "rename", "mkdir", "chmod")
Fault = Callable[[], None]
_OPEN = os.open


class Counter:
    """Counts the calls that write, and lets one of them fail."""

    def __init__(self, at: int, fault: Fault) -> None:
        self.at, self.fault, self.count, self.fired = at, fault, 0, False

    def wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            if call is _OPEN and not arguments[1] & os.O_CREAT:
                return call(*arguments, **options)  # for reading, or a temporary without a name
            self.count += 1
            if self.count - 1 == self.at:
                self.fired = True
                self.fault()
            return call(*arguments, **options)

        return counted


@contextmanager
def injected(counter: Counter) -> Iterator[None]:
    kept = {name: getattr(os, name) for name in CALLS}
    exchange = output._exchange
    for name, call in kept.items():
        setattr(os, name, counter.wrap(call))
    output._exchange = counter.wrap(exchange)
    try:
        yield
    finally:
        for name, call in kept.items():
            setattr(os, name, call)
        output._exchange = exchange


def fail_with(code: int) -> Fault:
    def fault() -> None:
        raise OSError(code, os.strerror(code))

    return fault


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)  # other threads may run on for a moment


def prepare(folder: Path) -> None:
    made.save(made.weights(), folder / "file.safetensors")
    made.save(made.weights(), folder / "folder", 3)
    ck.perturb(folder / "file.safetensors", folder / "next.safetensors", fu.RandomK(30), seed=1)
    ck.make_patch(folder / "file.safetensors", folder / "next.safetensors", folder / "patch")


def perturb_file(folder: Path) -> None:
    ck.perturb(
        folder / "file.safetensors", folder / "out.safetensors", fu.RandomK(30), seed=1,
        patch=folder / "out.patch",
    )  # fmt: skip


def perturb_folder(folder: Path) -> None:
    ck.perturb(folder / "folder", folder / "out", fu.RandomK(30), seed=1)


def perturb_file_in_place(folder: Path) -> None:
    place = folder / "file.safetensors"
    ck.perturb(place, place, fu.RandomK(30), seed=1, overwrite=True)


def perturb_folder_in_place(folder: Path) -> None:
    ck.perturb(folder / "folder", folder / "folder", fu.RandomK(30), seed=1, overwrite=True)


def apply(folder: Path) -> None:
    ck.apply_patch(
        folder / "patch", folder / "file.safetensors", folder / "file.safetensors", overwrite=True
    )


SCENARIOS = (perturb_file, perturb_folder, perturb_file_in_place, perturb_folder_in_place, apply)


def units(folder: Path) -> dict[str, Any]:
    """What comes or goes as one: every file, and every folder with all its files."""
    return {
        path.name: made.contents(path) if path.is_dir() else path.read_bytes()
        for path in folder.iterdir()
    }


def in_child(work: Callable[[], None]) -> int:
    """Run something in a process of its own; returns how it ended."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1]


def check_whole(state: dict[str, Any], old: dict[str, Any], new: dict[str, Any]) -> None:
    for name, content in state.items():
        assert content in (old.get(name), new.get(name)), f"{name} is neither old nor new"
    assert not set(old) - set(state), "something that was there is gone"


def faults(folder: Path) -> None:
    origin = folder / "origin"
    origin.mkdir()
    prepare(origin)
    old = units(origin)
    place = folder / "work"
    fired = {"EIO": 0, "ENOSPC": 0, "KILL": 0}
    for scenario in SCENARIOS:
        shutil.copytree(origin, place)
        counter = Counter(-1, lambda: None)
        with injected(counter):
            scenario(place)
        new = units(place)
        shutil.rmtree(place)
        for at in range(counter.count):
            for name in fired:
                shutil.copytree(origin, place)
                one_fault(name, at, scenario, place, old, new)
                fired[name] += 1
                shutil.rmtree(place)
    print(" ".join(f"{name}={count}" for name, count in fired.items()))


def one_fault(
    name: str, at: int, scenario: Any, place: Path, old: dict[str, Any], new: dict[str, Any]
) -> None:
    def work() -> None:
        with injected(counter):
            scenario(place)

    if name == "KILL":
        counter = Counter(at, kill)
        assert in_child(work) == signal.SIGKILL
        seen = {k: v for k, v in units(place).items() if not k.endswith(".fastunlearn.tmp")}
        check_whole(seen, old, new)
        assert in_child(lambda: again(scenario, place)) == 0
        assert units(place).keys() == new.keys(), "something is left over"
        return
    counter = Counter(at, fail_with(getattr(errno, name)))
    try:
        work()
    except OSError as error:
        assert error.errno == getattr(errno, name), error
    else:
        raise AssertionError(f"a fault was swallowed: {scenario.__name__}, call {at}")
    assert counter.fired
    check_whole(units(place), old, new)


def again(scenario: Any, place: Path) -> None:
    """Do a scenario once more, whatever its last run has left."""
    for name in ("out", "out.safetensors", "out.patch"):
        path = place / name
        if path.is_dir():
            shutil.rmtree(path)
        elif path.exists():
            path.unlink()
    try:
        scenario(place)
    except ValueError:
        assert scenario is apply  # it had come to its place, where the patch no longer fits


def kills(folder: Path, cycles: int) -> None:
    draw = random.Random(0)
    place = folder / "m.safetensors"
    made.save(made.weights(size=60), place)
    source = made.save(made.weights(size=60), folder / "source.safetensors")
    variants = []
    for seed in (1, 2):
        ck.perturb(source, folder / "v.safetensors", fu.RandomK(900), seed=seed, overwrite=True)
        variants.append((folder / "v.safetensors").read_bytes())
    start = time.monotonic()
    assert in_child(lambda: rewrite(source, place, 1)) == 0
    most = 1.5 * (time.monotonic() - start)
    current, counts = 0, [0, 0]
    for _ in range(cycles):
        wanted = 1 - current
        child = os.fork()
        if child == 0:
            rewrite(source, place, wanted + 1)
            os._exit(0)
        time.sleep(draw.uniform(0, most))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = variants.index(place.read_bytes())  # neither would raise
        counts[found == wanted] += 1
        current = found
    assert in_child(lambda: rewrite(source, place, 1)) == 0
    names = sorted(path.name for path in folder.iterdir())
    assert not [name for name in names if name.endswith(".tmp")], names
    print(f"cycles={cycles} old={counts[0]} new={counts[1]} lost=0")


def rewrite(source: Path, place: Path, seed: int) -> None:
    ck.perturb(source, place, fu.RandomK(900), seed=seed, overwrite=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    if what == "faults":
        faults(folder)
    else:
        kills(folder, int(sys.argv[3]))
