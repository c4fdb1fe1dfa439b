"""The application that commands are registered with, and what they do about errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

app = typer.Typer(
    name="fastunlearn",
    help="Machine unlearning by exact Top-K and Random-k parameter perturbation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line; the console script `fastunlearn`."""
    app()


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what a user can mend into one line and exit code 2; let real defects trace back."""
    try:
        from fastunlearn.evaluation.config import ConfigError
        from fastunlearn.evaluation.results import ResultsError
    except ImportError as error:
        fail(error)
    try:
        yield
    except (ConfigError, ResultsError, ImportError, OSError, FloatingPointError) as error:
        fail(error)


def fail(error: BaseException) -> NoReturn:
    typer.echo(f"fastunlearn: {' '.join(str(error).split())}", err=True)
    raise typer.Exit(2) from error
