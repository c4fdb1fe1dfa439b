"""Parameter lists of real models: names and shapes without weights."""

from __future__ import annotations

import functools
import json
from pathlib import Path

Shape = tuple[int, ...]


@functools.cache
def models() -> dict[str, dict[str, Shape]]:
    """Return, for each model, its parameters' names and shapes in the order of the model.

    ResNet as in torchvision, ViT as in timm, BERT (with pooler) and GPT-2 (tied head) as in
    transformers.

    Example:
        >>> import math
        >>> shapes = models()["ResNet-18"].values()
        >>> len(shapes), sum(map(math.prod, shapes))
        (62, 11689512)
    """
    listed = json.loads(Path(__file__).with_name("models.json").read_text(encoding="utf-8"))
    return {
        model: {name: tuple(shape) for name, shape in parameters.items()}
        for model, parameters in listed.items()
    }
