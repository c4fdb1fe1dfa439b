"""Python processes of their own, for what must not happen in the process of the tests."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap


def script(text: str, threads: int, timeout: float = 60.0, **environment: str) -> str:
    """Run a Python script of its own; a hang becomes TimeoutExpired."""
    variables = dict(os.environ, OMP_NUM_THREADS=str(threads), PYTHONWARNINGS="ignore")
    variables["PYTHONPATH"] = os.pathsep.join(sys.path)
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text)],
        env={**variables, **environment},
        timeout=timeout,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout
