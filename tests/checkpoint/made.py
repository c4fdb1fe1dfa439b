"""Small checkpoints, their scores, and what the library makes of them in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import fastunlearn as fu

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SEED = 7


def weights(seed: int = 0, size: int = 12) -> dict[str, Tensor]:
    """Tensors of all kinds; those that cannot be perturbed among them."""
    source = torch.Generator().manual_seed(seed)
    found = {
        f"layer.{i}": torch.randn(size + i, 2 * size, generator=source).to(DTYPES[i % 4])
        for i in range(6)
    }
    found["scalar"] = torch.tensor(0.5)
    found["empty"] = torch.zeros(0, 3)
    found["ids"] = torch.arange(5)
    found["flags"] = torch.tensor([True, False, True])
    return found


def scores_of(tensors: Mapping[str, Tensor], seed: int = 1, decimals: int = 1) -> dict[str, Tensor]:
    """Scores with many ties."""
    source = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(tensor.shape, generator=source).round(decimals=decimals)
        for name, tensor in tensors.items()
        if tensor.is_floating_point()
    }


def save(tensors: Mapping[str, Tensor], path: Path, files: int = 0) -> Path:
    """Write a checkpoint: a file, or a folder with an index."""
    if not files:
        save_file(dict(tensors), path)
        return path
    path.mkdir()
    parts: list[dict[str, Tensor]] = [{} for _ in range(files)]
    for i, (name, tensor) in enumerate(tensors.items()):
        parts[i * 7 % files][name] = tensor
    weight_map = {}
    for i, part in enumerate(parts):
        file = f"model-{i + 1:05}-of-{files:05}.safetensors"
        save_file(part, path / file, {"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    (path / "config.json").write_text("{}")
    return path


def load(path: Path) -> dict[str, Tensor]:
    """Read a checkpoint with the format's own library."""
    if path.is_file():
        return load_file(path)
    found: dict[str, Tensor] = {}
    for file in path.glob("*.safetensors"):
        found.update(load_file(file))
    return found


def expected(
    tensors: Mapping[str, Tensor],
    strategy: fu.TopK | fu.RandomK,
    scores: Mapping[str, Tensor] | None,
    **how: object,
) -> tuple[dict[str, Tensor], fu.Receipt]:
    """What `fastunlearn.perturb_` makes of the tensors in the order of their names."""
    found = {name: tensor.clone() for name, tensor in tensors.items()}
    chosen = {
        name: found[name]
        for name in sorted(found)
        if found[name].is_floating_point() and (scores is None or name in scores)
    }
    receipt = fu.perturb_(chosen, strategy, scores=scores, seed=SEED, **how)  # type: ignore[arg-type]
    return found, receipt


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two checkpoints have the same tensors, bit for bit."""
    return one.keys() == other.keys() and all(
        tensor.dtype == other[name].dtype
        and tensor.shape == other[name].shape
        and tensor.reshape(-1).view(torch.uint8).equal(other[name].reshape(-1).view(torch.uint8))
        for name, tensor in one.items()
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path in it."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
