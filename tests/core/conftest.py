"""Fixtures of the tests of the core operations."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors only: threads would cost more than they give."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "fastunlearn: the compiled extension is not in use")
        yield
    torch.set_num_threads(threads)
