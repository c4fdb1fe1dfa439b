"""A fitted SPD-GAN on disk: config.json, and beside it the safetensors file that it names."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from fastunlearn.evaluation.results import write_atomically
from fastunlearn.spdgan.config import SPDGANConfig
from fastunlearn.spdgan.networks import Networks

FORMAT = "fastunlearn.spdgan/1"
KEYS = ("format", "config", "seed", "shape", "weights")
WEIGHTS = re.compile(r"weights-[0-9a-f]{16}\.safetensors")


def write_fitted(folder: Path, networks: Networks, config: SPDGANConfig, seed: int) -> None:
    """Write to a folder, made if missing, so that a reader finds the old or the new one, whole.

    The weights get a name of their content, config.json then names them, and only after that
    other weights go.
    """
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    content = save({name: value.contiguous() for name, value in networks.state_dict().items()})
    name = f"weights-{hashlib.sha256(content).hexdigest()[:16]}.safetensors"
    write_atomically(folder / name, content)
    values = (FORMAT, config.to_dict(), seed, list(networks.shape), name)
    text = json.dumps(dict(zip(KEYS, values, strict=True)), indent=1) + "\n"
    write_atomically(folder / "config.json", text.encode())
    for other in folder.iterdir():
        if WEIGHTS.fullmatch(other.name) and other.name != name:
            other.unlink()


def read_fitted(folder: Path) -> tuple[Networks, SPDGANConfig, int]:
    """Read what `write_fitted` wrote, onto the CPU.

    Raises:
        ValueError: A file is not as it must be; the message names it and the place in it.
        OSError: A file cannot be read.
    """
    about = _read_config(folder / "config.json")
    config, shape = SPDGANConfig(**about["config"]), tuple(about["shape"])
    networks = Networks(shape, config)
    _load(networks, folder / about["weights"])
    return networks, config, about["seed"]


def _read_config(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"SPDGAN.load: {path} must be JSON, got: {error}") from error
    _check_names(path, "", about, KEYS)
    if about["format"] != FORMAT:
        raise ValueError(f"SPDGAN.load: {path} must have format {FORMAT}, got {about['format']!r}")
    _check_names(path, "config: ", about["config"], [f.name for f in fields(SPDGANConfig)])
    shape = about["shape"]
    sizes = isinstance(shape, list) and all(type(size) is int and size > 0 for size in shape)
    if not sizes or len(shape) not in (1, 3):
        raise ValueError(f"SPDGAN.load: shape in {path} must be [C, H, W] or [F], got {shape!r}")
    if type(about["seed"]) is not int:
        raise ValueError(f"SPDGAN.load: seed in {path} must be an int, got {about['seed']!r}")
    if not isinstance(about["weights"], str) or not WEIGHTS.fullmatch(about["weights"]):
        expected = "weights-<16 hexadecimal digits>.safetensors"
        raise ValueError(
            f"SPDGAN.load: weights in {path} must be {expected}, got {about['weights']!r}"
        )
    return about


def _check_names(path: Path, where: str, value: Any, names: Any) -> None:
    if not isinstance(value, dict):
        got = type(value).__name__
        raise ValueError(f"SPDGAN.load: {where}{path} must hold an object, got {got}")
    different = sorted(set(names) ^ set(value))
    if different:
        raise ValueError(
            f"SPDGAN.load: {where}{path} must have the keys {', '.join(names)}; "
            f"missing or unknown: {', '.join(different)}"
        )


def _load(networks: Networks, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        found = load(path.read_bytes())
    except SafetensorError as error:
        raise ValueError(f"SPDGAN.load: {path} must be safetensors, got: {error}") from error
    expected = networks.state_dict()
    different = sorted(set(expected) ^ set(found))
    if different:
        raise ValueError(
            f"SPDGAN.load: {path} must hold the tensors of the networks and no others; "
            f"missing or unknown: {', '.join(different)}"
        )
    for name, value in expected.items():
        wanted, got = (f"{t.dtype} {tuple(t.shape)}" for t in (value, found[name]))
        if wanted != got:
            raise ValueError(f"SPDGAN.load: {name} in {path} must be {wanted}, got {got}")
    networks.load_state_dict(found)
