"""Commands about this machine: speed and build."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fastunlearn.cli._app import app, fail, one_line_errors


@app.command()
def bench(
    out: Annotated[
        Path, typer.Option(help="Folder for the results (JSON) and the picture (PNG).")
    ] = Path("runs/bench"),
    seconds: Annotated[
        float, typer.Option(min=0.1, help="Time for the measurements; what does not fit is named.")
    ] = 60.0,
) -> None:
    """Time the operations on this machine, beside the usual idioms and the memory floor."""
    from fastunlearn.bench.quick import Interrupted
    from fastunlearn.bench.quick import run as run_bench

    try:
        written = run_bench(out, seconds, f"fastunlearn bench --seconds {seconds:g}")
        code = 0
    except Interrupted as stop:
        written, code = stop.written, 130
    except OSError as error:
        fail(error)
    for path in written:
        typer.echo(f"{'Picture' if path.suffix == '.png' else 'Results'}: {path}")
    raise typer.Exit(code)


@app.command()
def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print versions, the backend in use and how the extension was built."""
    with one_line_errors():
        from fastunlearn._extension import build_info
        from fastunlearn.evaluation.runner import environment

        facts = {**environment(), "build": build_info()}
    if as_json:
        typer.echo(json.dumps(facts, indent=1))
        return
    build = {f"build.{name}": value for name, value in facts.pop("build").items()}
    for name, value in {**facts, **build}.items():
        typer.echo(f"{name:<20}{value}")
