"""Find the compiled extension, or say why it is not in use.

`fastunlearn._C` is optional: without it every operation runs in pure PyTorch. The environment
variable FASTUNLEARN_BACKEND is read once, when the extension is first asked for: `auto` (the
default) uses the extension where it is installed, `reference` leaves it out. So is
FASTUNLEARN_SIMD, which chooses the level of its kernels. They are registered with torch only after
the build was found to fit.
"""

from __future__ import annotations

import functools
import importlib
import os
import threading
import warnings
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from fastunlearn._version import __version__

__all__ = ["available", "build_info", "load", "warn_once", "why_unavailable"]

BUILD_COMMAND = "pip install --no-build-isolation -e ."
_BACKENDS = ("auto", "reference")
_FOLDER = Path(__file__).parent
_NOTE_NAME = "_C_missing.txt"  # setup.py writes it when it builds nothing

_warn_lock = threading.Lock()
_warned = False


def load() -> ModuleType | None:
    """Return the module `fastunlearn._C`, or None when it is missing, unusable or not wanted.

    Raises:
        ValueError: FASTUNLEARN_BACKEND is set to an unknown value, or FASTUNLEARN_SIMD to a level
            that is unknown or that this CPU lacks.
    """
    return _probe()[0]


def available() -> bool:
    """Return whether the compiled extension is in use."""
    return load() is not None


def why_unavailable() -> str | None:
    """Return why the compiled extension is not in use, or None when it is."""
    return _probe()[1]


def build_info() -> dict[str, Any]:
    """Describe the compiled extension.

    Returns:
        With the extension: `extension` (True), `version`, `compiler`, `cxx_flags`, `cxx_standard`,
        `torch` (compiled against), `cuda` (its version, or False), `cuda_archs` (as in
        TORCH_CUDA_ARCH_LIST, or False), `simd_compiled`, `simd_runtime` and `build_type`. Without:
        `extension` (False) and `reason`.

    Example:
        >>> isinstance(build_info()["extension"], bool)
        True
    """
    module, reason = _probe()
    if module is None:
        return {"extension": False, "reason": reason}
    return {"extension": True, **module.build_info()}


def warn_once() -> None:
    """Warn, the first time it is called in a process, that the slower fallback is in use.

    Silent when the extension is in use, and when FASTUNLEARN_BACKEND=reference asked for the
    fallback.
    """
    global _warned
    if _warned or available() or _requested_backend() == "reference":
        return
    with _warn_lock:
        if _warned:
            return
        _warned = True
    warnings.warn(
        f"fastunlearn: the compiled extension is not in use: {why_unavailable()}. Falling back to"
        " pure PyTorch: same results, slower. To build it, install a C++17 compiler and run"
        f" `{BUILD_COMMAND}` in the source folder",
        RuntimeWarning,
        stacklevel=3,
    )


def _requested_backend() -> str:
    backend = os.environ.get("FASTUNLEARN_BACKEND") or "auto"
    if backend not in _BACKENDS:
        raise ValueError(
            f"fastunlearn: FASTUNLEARN_BACKEND must be one of {', '.join(_BACKENDS)},"
            f" got {backend!r}"
        )
    return backend


@functools.cache
def _probe() -> tuple[ModuleType | None, str | None]:
    """Return the module, or None and the reason; only one of the two is None."""
    if _requested_backend() == "reference":
        return None, "FASTUNLEARN_BACKEND=reference asks for the fallback"
    # Only beside this file: an editable install elsewhere would offer its own copy's build.
    if PathFinder.find_spec("fastunlearn._C", [str(_FOLDER)]) is None:
        return None, _why_not_built()
    try:
        module = importlib.import_module("fastunlearn._C")
    except ImportError as error:
        return None, f"it is installed but cannot be loaded ({error})"
    mismatch = _mismatch(module.build_info())
    if mismatch is not None:
        return None, mismatch
    module.register_kernels()
    return module, None


def _why_not_built() -> str:
    note = _FOLDER / _NOTE_NAME
    if not note.exists():
        return "it is not installed"
    return f"it was not built: {note.read_text(encoding='utf-8').strip()}"


def _mismatch(info: dict[str, Any]) -> str | None:
    """Return why a build does not fit this process: torch keeps its C++ ABI within a minor version.

    A stale build of another fastunlearn may miss an op, or compute an older contract.
    """
    if info["version"] != __version__:
        return f"it was built for fastunlearn {info['version']}, this is {__version__}"
    built, running = info["torch"], torch.__version__
    if built.split(".")[:2] != running.split(".")[:2]:
        return f"it was built for torch {built}, this is {running}"
    return None
