"""The command that writes scores for `fastunlearn perturb`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fastunlearn.cli._app import app
from fastunlearn.cli.files import Overwrite, errors_of_checkpoints


@app.command()
def score(
    source: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Folder of a causal language model (transformers, safetensors), or "
            "MODULE:FUNCTION that returns the arguments of fastunlearn.score as a dict.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Where the scores go: a safetensors file.")],
    texts: Annotated[
        Path | None, typer.Option(help='What to unlearn: a text a line, or .jsonl with "text".')
    ] = None,
    retain: Annotated[Path | None, typer.Option(help="What to keep, for --kind ratio.")] = None,
    kind: Annotated[str, typer.Option(help="grad, fisher, mas, taylor, ratio or weight.")] = "grad",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    batch_size: Annotated[int, typer.Option(min=1, help="Texts in a batch.")] = 1,
    max_length: Annotated[int, typer.Option(min=2, help="Longest text, in tokens.")] = 512,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    overwrite: Overwrite = False,
) -> None:
    """Score the parameters of a model by their importance for some texts, or other data."""
    with errors_of_checkpoints():
        wide = _dtype(dtype)
        from fastunlearn.checkpoint.scores import save_scores
        from fastunlearn.scores import score as run

        if out.exists() and not overwrite:  # before hours of work
            raise FileExistsError(f"{out} must not exist; --overwrite replaces it")
        call = (
            _of_entry_point(source)
            if ":" in source
            else _of_texts(source, texts, retain, (batch_size, max_length), device)
        )
        call = {"kind": kind, "dtype": wide, "progress": sys.stderr.isatty(), **call}
        found = run(**call)
        save_scores(found, out, metadata={"score": call["kind"]}, overwrite=overwrite)
    count = sum(value.numel() for value in found.values())
    typer.echo(f"Scored {count:,} parameters in {len(found)} tensors: {out}")


def _of_entry_point(source: str) -> dict[str, Any]:
    """Call a function that is named MODULE:FUNCTION, in the current folder or installed."""
    module, _, name = source.partition(":")
    sys.path.insert(0, "")
    try:
        function = getattr(importlib.import_module(module), name, None)
    finally:
        sys.path.remove("")
    if not callable(function):
        raise ValueError(f"{source} must name a function, got {function!r}")
    found = function()
    if not isinstance(found, dict) or "model" not in found:
        raise TypeError(f"{source} must return a dict with 'model', 'loader' and 'loss_fn'")
    return {"loader": None, "loss_fn": None, **found}


def _of_texts(
    source: str, texts: Path | None, retain: Path | None, size: tuple[int, int], device: str
) -> dict[str, Any]:
    from fastunlearn.trainers import texts as lm

    parts = [None if path is None else lm.read_texts(path) for path in (texts, retain)]
    model, tokenizer = lm.causal_lm(source, device)
    loaders = [part and lm.batches_of(part, tokenizer, *size) for part in parts]
    return {
        "model": model,
        "loader": loaders[0],
        "loss_fn": lm.loss_fn,
        "retain": loaders[1],
        "forward_fn": lm.forward,
    }


def _dtype(name: str) -> Any:
    import torch

    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"--dtype must be a dtype of torch, got {name!r}")
    return found
