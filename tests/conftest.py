"""Settings for every test."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Small tensors gain nothing from threads, and on a busy machine they lose much.

    Tests that are about threads set their own number.
    """
    torch.set_num_threads(1)
