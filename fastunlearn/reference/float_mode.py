"""IEEE arithmetic for the time of a call, whatever mode the caller's thread is in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def ieee_arithmetic() -> Iterator[None]:
    """Suspend a flush-to-zero mode set by `torch.set_flush_denormal(True)`.

    The mode belongs to each thread, and pool threads inherit it from the one that made them, so
    while it is suspended the work stays on the calling thread.
    """
    smallest_normal = torch.tensor(2.0**-126)
    if float(smallest_normal * 0.5) != 0.0:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_flush_denormal(False)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(True)
