"""Shields a kernel from the caller's settings: autograd, default device, float mode, threads."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

_forked = False


def _note_fork() -> None:
    global _forked
    _forked = True


os.register_at_fork(after_in_child=_note_fork)


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run a function without autograd, in IEEE arithmetic, with its temporaries on the CPU."""

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        with torch.no_grad(), ExitStack() as stack:
            if torch.get_default_device().type != "cpu":
                stack.enter_context(torch.device("cpu"))
            if _forked:  # the parent's pool threads are gone, and a wait for them would hang
                stack.enter_context(_one_thread())
            stack.enter_context(_ieee_arithmetic())
            return function(*args)

    return run


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _flushes(elements: int) -> bool:
    """Whether a denormal result becomes zero on any thread that this many elements reach."""
    smallest_normal = torch.full((elements,), 2.0**-126, dtype=torch.float32)
    return not bool((smallest_normal * 0.5).view(torch.int32).all())


@contextmanager
def _ieee_arithmetic() -> Iterator[None]:
    """Suspend a flush-to-zero mode set by `torch.set_flush_denormal(True)`.

    The mode belongs to each thread, and pool threads keep the one they were born with, so where
    any thread flushes the work stays on the calling thread.
    """
    if not _flushes(torch.get_num_threads() << 16):
        yield
        return
    caller_flushes = _flushes(1)
    torch.set_flush_denormal(False)
    try:
        with _one_thread():
            yield
    finally:
        torch.set_flush_denormal(caller_flushes)
