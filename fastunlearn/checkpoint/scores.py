"""Scores as a checkpoint, for `perturb`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fastunlearn.checkpoint.output import Output, write_all

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}
_ALIGNMENT = 8


def save_scores(
    scores: Mapping[str, Tensor],
    path: str | Path,
    *,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Write scores to a safetensors file, whole or not at all.

    Args:
        scores: by name, as `fastunlearn.score` gives them: float64, float32, float16 or bfloat16.
        path: of the file.
        metadata: texts to keep in it.
        overwrite: whether a file that is there may be replaced.

    Raises:
        TypeError: a score has another dtype.
        FileExistsError: something is there, and must not be overwritten.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, score in scores.items():
        if score.dtype not in _NAMES:
            raise TypeError(f"save_scores: score {name!r} must be floating, got {score.dtype}")
        start, end = end, end + score.numel() * score.element_size()
        header[name] = {
            "dtype": _NAMES[score.dtype],
            "shape": list(score.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    place = Path(path)
    with Output(place, names=None, mode=0o644, overwrite=overwrite) as output:
        file = output.file(place.name)
        write_all(file, memoryview(len(text).to_bytes(8, "little") + text), 0)
        at = 8 + len(text)
        for score in scores.values():
            raw = score.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
            write_all(file, raw.data, at)
            at += raw.nbytes
        output.commit()
