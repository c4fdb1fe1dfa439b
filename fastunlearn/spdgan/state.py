"""What a fit leaves on disk while it runs: one safetensors file, with the history as JSON in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from fastunlearn.evaluation.results import write_atomically
from fastunlearn.spdgan.config import SPDGANConfig
from fastunlearn.spdgan.data import ForgetSet, tensor_bytes
from fastunlearn.spdgan.training import Training

SLOTS = ("step", "exp_avg", "exp_avg_sq")


def fit_digest(
    config: SPDGANConfig, seed: int, data: ForgetSet, references: Sequence[nn.Module]
) -> str:
    """Return a SHA-256 of everything that decides what a fit gives."""
    settings = [config.to_dict(), seed, list(data.shape), str(data.x.dtype), data.batch_size]
    digest = hashlib.sha256(json.dumps([*settings, data.digest]).encode())
    for reference in references:
        for name, value in reference.state_dict().items():
            if isinstance(value, Tensor):
                digest.update(name.encode() + tensor_bytes(value))
    return digest.hexdigest()


def write_state(path: Path, training: Training, digest: str) -> None:
    """Write a training to one safetensors file, whole or not at all."""
    from safetensors.torch import save

    tensors = dict(training.networks.state_dict())
    for name, optimizer in training.optimizers.items():
        for index, slots in optimizer.state_dict()["state"].items():
            tensors |= {f"{name}_adam.{index}.{slot}": slots[slot] for slot in SLOTS}
    about = {"digest": digest, "history": training.history}
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    write_atomically(path, save(tensors, {"spdgan": json.dumps(about)}))


def read_state(path: Path, training: Training, digest: str) -> None:
    """Put a training that was just begun where the file left it.

    Raises:
        ValueError: The file is no such state, or that of another fit.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("spdgan", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"SPDGAN.fit: state must be a state file, got {path}: {error}") from error
    if about.get("digest") != digest:
        raise ValueError(
            "SPDGAN.fit: state must be of a fit with this seed, configuration, forget set and "
            f"reference, got another's: {path}"
        )
    # The digest vouches for the rest: the file was written whole, by this same fit.
    training.networks.load_state_dict({n: tensors[n] for n in training.networks.state_dict()})
    for name, optimizer in training.optimizers.items():
        count = len(optimizer.param_groups[0]["params"])
        state = {
            index: {slot: tensors[f"{name}_adam.{index}.{slot}"] for slot in SLOTS}
            for index in range(count)
        }
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    training.history = about["history"]
