"""Commands on checkpoints: perturb, verify, patch."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastunlearn.cli._app import app, fail, one_line_errors

if TYPE_CHECKING:
    from fastunlearn.strategies import Strategy

_SEED_BITS = 64

patch = typer.Typer(
    help="Sparse patches: the change of a checkpoint as a file.", no_args_is_help=True
)
app.add_typer(patch, name="patch")


class Select(str, Enum):
    """Strategies by name."""

    top_k = "top_k"
    random_k = "random_k"


Source = Annotated[
    Path, typer.Argument(metavar="CKPT", help="A safetensors file, or a folder with an index.")
]
Out = Annotated[Path, typer.Option(help="Where the result goes: a file or a folder, as CKPT is.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Memory = Annotated[int, typer.Option(metavar="MIB", min=1, help="Memory for buffers.")]
Scores = Annotated[
    Path | None, typer.Option(help="Checkpoint with the scores. For Top-K, but --score weight.")
]


@app.command()
def perturb(
    checkpoint: Source,
    out: Out,
    k: Annotated[str, typer.Option(help="How many: 0.01 is a fraction, 1000 a count.")],
    seed_file: Annotated[
        Path, typer.Option(help="Text file with the seed. A missing one is made, for you alone.")
    ],
    scores: Scores = None,
    strategy: Annotated[Select, typer.Option(help="What to select.")] = Select.top_k,
    score: Annotated[str, typer.Option(help="weight: |w| itself; else the scores given.")] = "grad",
    std: Annotated[float | None, typer.Option(help="Standard deviation of the noise.")] = None,
    rel_std: Annotated[
        float | None, typer.Option(help="The same, by the root mean square of each tensor.")
    ] = None,
    noise: Annotated[str, typer.Option(help="normal, uniform or laplace.")] = "normal",
    mode: Annotated[str, typer.Option(help="add, replace or zero.")] = "add",
    rounding: Annotated[
        str, typer.Option(help="Of 16-bit weights: nearest, or stochastic.")
    ] = "nearest",
    scope: Annotated[str, typer.Option(help="global, or tensor: K in each.")] = "global",
    include: Annotated[list[str] | None, typer.Option(help="Pattern of names. Repeat it.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Pattern of names. Repeat it.")] = None,
    step: Annotated[int, typer.Option(help="Number of the perturbation under one seed.")] = 0,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave tensors alone that the scores lack.")
    ] = False,
    allow_overflow: Annotated[
        bool, typer.Option("--allow-overflow", help="Weights may become infinite.")
    ] = False,
    receipt: Annotated[
        Path | None, typer.Option(help="Where the receipt goes. Default: OUT.receipt.json")
    ] = None,
    patch: Annotated[Path | None, typer.Option(help="Write a sparse patch there too.")] = None,
    overwrite: Overwrite = False,
    memory: Memory = 512,
) -> None:
    """Add noise to the K parameters of greatest score in a checkpoint, without its model."""
    with errors_of_checkpoints():
        from fastunlearn.checkpoint import perturb as run

        fields: dict[str, Any] = {"k": _count(k), "std": std, "rel_std": rel_std, "noise": noise}
        fields |= {"mode": mode, "rounding": rounding, "scope": scope}
        fields |= {"include": include or (), "exclude": exclude or ()}
        found = run(
            checkpoint,
            out,
            _strategy(strategy, score, fields),
            scores=scores,
            seed=_seed(seed_file, make=True),
            step=step,
            allow_overflow=allow_overflow,
            missing_scores="skip" if skip_missing else "error",
            overwrite=overwrite,
            receipt=receipt,
            patch=patch,
            memory=memory << 20,
        )
    told = found.perturbation
    typer.echo(f"Selected {told['count']:,} of {told['n']:,} parameters: {out}")
    if told["unchanged"]:
        typer.echo(f"{told['unchanged']:,} of them kept their value: the noise was rounded away")


@app.command()
def verify(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The checkpoint to check.")],
    receipt: Annotated[Path, typer.Option(help="The receipt of `fastunlearn perturb`.")],
    source: Annotated[
        Path | None, typer.Option(help="What it was made from: computes it again.")
    ] = None,
    scores: Scores = None,
    seed_file: Annotated[Path | None, typer.Option(help="The file with the seed.")] = None,
    memory: Memory = 512,
) -> None:
    """Check a checkpoint against its receipt, bit for bit; exit code 1 where it differs."""
    with errors_of_checkpoints():
        from fastunlearn.checkpoint import verify as run

        seed = None if seed_file is None else _seed(seed_file, make=False)
        found = run(out, receipt, source=source, scores=scores, seed=seed, memory=memory << 20)
    how = "computed again" if found.recomputed else "by the receipt's digests"
    if not found.different:
        typer.echo(f"As the receipt says ({how}): {out}")
        return
    first = ", ".join(found.different[:5])
    typer.echo(f"{len(found.different)} tensors are not as the receipt says ({how}): {first}")
    raise typer.Exit(1)


@patch.command()
def make(
    before: Annotated[Path, typer.Argument(metavar="BEFORE", help="A checkpoint.")],
    after: Annotated[Path, typer.Argument(metavar="AFTER", help="The changed one.")],
    out: Annotated[Path, typer.Option(help="Where the patch goes.")],
    overwrite: Overwrite = False,
    memory: Memory = 512,
) -> None:
    """Write what differs between two checkpoints."""
    with errors_of_checkpoints():
        from fastunlearn.checkpoint import make_patch

        about = make_patch(before, after, out, overwrite=overwrite, memory=memory << 20)
    _tell(about)


@patch.command()
def apply(
    file: Annotated[Path, typer.Argument(metavar="PATCH", help="The patch.")],
    checkpoint: Source,
    out: Out,
    overwrite: Overwrite = False,
    memory: Memory = 512,
) -> None:
    """Turn the checkpoint that a patch was made from into the one that it leads to."""
    with errors_of_checkpoints():
        from fastunlearn.checkpoint import apply_patch

        apply_patch(file, checkpoint, out, overwrite=overwrite, memory=memory << 20)
    typer.echo(f"Applied: {out}")


@patch.command()
def revert(
    file: Annotated[Path, typer.Argument(metavar="PATCH", help="The patch.")],
    checkpoint: Source,
    out: Out,
    overwrite: Overwrite = False,
    memory: Memory = 512,
) -> None:
    """Take back what `fastunlearn patch apply` did."""
    with errors_of_checkpoints():
        from fastunlearn.checkpoint import revert_patch

        revert_patch(file, checkpoint, out, overwrite=overwrite, memory=memory << 20)
    typer.echo(f"Reverted: {out}")


@patch.command()
def info(file: Annotated[Path, typer.Argument(metavar="PATCH", help="The patch.")]) -> None:
    """Tell what a patch changes."""
    with errors_of_checkpoints():
        from fastunlearn.checkpoint import patch_info

        about = patch_info(file)
    _tell(about)


def _tell(about: Any) -> None:
    for name, value in asdict(about).items():
        typer.echo(f"{name:<10}{value}")


@contextmanager
def errors_of_checkpoints() -> Iterator[None]:
    """Also turn into one line what the library refuses: its messages are made for users."""
    with one_line_errors():
        try:
            yield
        except (TypeError, ValueError) as error:
            fail(error)


def _strategy(select: Select, score: str, fields: dict[str, Any]) -> Strategy:
    from fastunlearn.strategies import strategy_of

    if select is Select.top_k:
        fields["score"] = score
    return strategy_of({"name": select.value, **fields})


def _count(k: str) -> int | float:
    """A count where there are digits alone, else a fraction.

    Raises:
        ValueError: it is no number.
    """
    try:
        return int(k) if k.isdigit() else float(k)
    except ValueError:
        raise ValueError(f"--k must be a number, got {k!r}") from None


def _seed(path: Path, *, make: bool) -> int:
    """Read a seed; draw one into a file that is missing.

    Raises:
        ValueError: the file holds no seed.
    """
    if make and not path.exists():
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(fd, "w", encoding="ascii") as file:
            file.write(f"{secrets.randbits(_SEED_BITS)}\n")
    text = path.read_bytes()[:100].strip()
    if not text.isdigit():
        raise ValueError(f"{path} must hold a decimal number, got something else")
    return int(text)
