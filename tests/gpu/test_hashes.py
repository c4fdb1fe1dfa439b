"""The GPU gives the bits of the host's kernels, by SHA-256 over everything that a call leaves."""

from __future__ import annotations

import pytest
from core.backends import OPS
from core.configurations import configuration
from core.worlds import build, run
from gpu.device import compared, gpu, run_there

pytestmark = gpu

COUNT = 400


@pytest.mark.parametrize("number", range(COUNT))
def test_host_and_device_agree(number: int) -> None:
    made = configuration(number)
    world = build(made)
    wanted = run(OPS, made, world.copy())
    difference = compared(made, wanted, run_there(made, world))
    assert difference is None, f"{difference}\n{made}"
