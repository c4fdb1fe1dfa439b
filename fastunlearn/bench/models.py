"""Parameter lists of real models: names and shapes without weights."""

from __future__ import annotations

import functools
import json
from pathlib import Path

Shape = tuple[int, ...]


@functools.cache
def models() -> dict[str, dict[str, Shape]]:
    """Return, for each model, its parameters' names and shapes in the order of the model.

    ResNet as in torchvision, ViT as in timm, BERT (with pooler), GPT-2 (tied head) and Llama 2 as
    in transformers.

    Example:
        >>> import math
        >>> shapes = models()["ResNet-18"].values()
        >>> len(shapes), sum(map(math.prod, shapes))
        (62, 11689512)
    """
    listed = json.loads(Path(__file__).with_name("models.json").read_text(encoding="utf-8"))
    found = {
        model: {name: tuple(shape) for name, shape in parameters.items()}
        for model, parameters in listed.items()
    }
    return {**found, "Llama-2-7B": _llama()}


def _llama(layers: int = 32, width: int = 4096, inner: int = 11_008) -> dict[str, Shape]:
    vocabulary = (32_000, width)
    layer: dict[str, Shape] = {
        **{f"self_attn.{letter}_proj.weight": (width, width) for letter in "qkvo"},
        "mlp.gate_proj.weight": (inner, width),
        "mlp.up_proj.weight": (inner, width),
        "mlp.down_proj.weight": (width, inner),
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
    }
    return {
        "model.embed_tokens.weight": vocabulary,
        **{f"model.layers.{i}.{name}": layer[name] for i in range(layers) for name in layer},
        "model.norm.weight": (width,),
        "lm_head.weight": vocabulary,
    }
