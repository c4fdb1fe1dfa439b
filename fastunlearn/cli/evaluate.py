"""Commands that train, evaluate and report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastunlearn.cli._app import app, one_line_errors

if TYPE_CHECKING:
    from fastunlearn.evaluation.config import Config

_OUT_HELP = "Folder for results.json, summary.md and report.html."
_CONFIG_HELP = "What to evaluate."
_RESUME_HELP = "Go on with the seeds that results.json in the folder lacks."
_COLUMNS = (
    ("Forget", "forget_accuracy"),
    ("Retain", "retain_accuracy"),
    ("Test", "test_accuracy"),
)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help=_OUT_HELP)] = Path("runs/demo"),
    seeds: Annotated[int, typer.Option(min=1, help="Number of repetitions.")] = 2,
    resume: Annotated[bool, typer.Option("--resume", help=_RESUME_HELP)] = False,
) -> None:
    """Unlearn 10 % of MNIST-5k from a small CNN, audit how much is forgotten, write a report.

    Takes about a minute and a half a seed on one core and downloads nothing.
    """
    with one_line_errors():
        from fastunlearn.evaluation.config import load_config

        shipped = Path(__file__).parents[1] / "evaluation" / "configs" / "demo.yaml"
        config = load_config(shipped).with_seeds(tuple(range(seeds)))
        _evaluate(config, out, resume=resume)


@app.command()
def run(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help=_CONFIG_HELP)],
    out: Annotated[
        Path | None, typer.Option(help=f"{_OUT_HELP} Default: runs/ and the file's name.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help=_RESUME_HELP)] = False,
) -> None:
    """Run the evaluation that a YAML file describes and write its report."""
    with one_line_errors():
        from fastunlearn.evaluation.config import load_config

        _evaluate(load_config(config), out or Path("runs") / config.stem, resume=resume)


@app.command()
def audit(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help=_CONFIG_HELP)],
    out: Annotated[
        Path | None, typer.Option(help=f"{_OUT_HELP} Default: runs/audit- and the file's name.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help=_RESUME_HELP)] = False,
) -> None:
    """Measure how much is forgotten on data shifted by SPD-GAN, and what that instrument is worth.

    Runs the evaluation of the file with its `spdgan` block, or a default one, and models of which
    it is known how much they have forgotten; prints the unlearning degree beside what plain
    accuracy sees, the gain, and whether the anchors are in order.
    """
    with one_line_errors():
        from fastunlearn.evaluation.config import load_config

        out = out or Path("runs") / f"audit-{config.stem}"
        _evaluate(load_config(config).as_audit(), out, resume=resume)


@app.command()
def report(
    results: Annotated[Path, typer.Argument(metavar="RESULTS.json", help="A results file.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the report. Default: beside the results.")
    ] = None,
) -> None:
    """Write summary.md and report.html from a results file."""
    with one_line_errors():
        from fastunlearn.evaluation.results import read_results

        _write_report(read_results(results), out or results.parent, results.parent)


def _evaluate(config: Config, out: Path, *, resume: bool) -> None:
    from fastunlearn.evaluation.progress import show_progress
    from fastunlearn.evaluation.runner import Interrupted
    from fastunlearn.evaluation.runner import run as run_evaluation

    _import_report()
    try:
        with show_progress() as progress:
            results = run_evaluation(config, out, resume=resume, progress=progress)
    except Interrupted as stop:
        if stop.results is None:
            typer.echo("Interrupted before the first seed was done: nothing is written.", err=True)
        else:
            _write_report(stop.results, out, out)
            done, planned = len(stop.results["runs"]), len(config.seeds)
            typer.echo(
                f"Interrupted after {done} of {planned} seeds; --resume goes on from here.",
                err=True,
            )
        raise typer.Exit(130) from None
    _print_table(results)
    if config.spdgan is not None:
        _print_audit(results)
    _write_report(results, out, out)


def _import_report() -> Any:
    """Return `write_report`; called early too, so that a missing package costs no training."""
    from fastunlearn.report import write_report

    return write_report


def _write_report(results: dict[str, Any], out: Path, beside: Path) -> None:
    for path in _import_report()(results, out, pictures=beside / "pictures"):
        typer.echo(f"{'Report' if path.suffix == '.html' else 'Summary'}: {path}")


def _print_table(results: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    n = len(results["runs"])
    typer.echo(f"{results['name']}: mean over {n} seed{'s' * (n != 1)}, accuracy in %")
    table = Table()
    table.add_column("Method")
    for heading, _ in _COLUMNS:
        table.add_column(heading, justify="right")
    table.add_column("Seconds", justify="right")
    labels = {name: m["label"] for name, m in results["runs"][0]["methods"].items()}
    for name, label in labels.items():
        summary = results["summary"][name]
        cells = [_percent(summary[metric]["mean"]) for _, metric in _COLUMNS]
        table.add_row(label, *cells, f"{summary['seconds']['mean']:.2f}")
    Console().print(table)


def _print_audit(results: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from fastunlearn.report.audit import audit_findings
    from fastunlearn.report.definitions import AUDIT_METRICS
    from fastunlearn.report.summary import cell
    from fastunlearn.report.view import View

    view = View(results)
    typer.echo("\nHow much was forgotten, on the shifted data and on the data as it was")
    shown = [metric for metric in AUDIT_METRICS if "degree" in metric.key]
    table = Table()
    table.add_column("Method")
    for metric in shown:
        table.add_column(metric.title, justify="right")
    for method in view.methods:
        cells = [cell(view, method, metric).replace(" [", "\n[") for metric in shown]
        table.add_row(Text(view.label(method)), *map(Text, cells))
    Console().print(table)
    for finding in audit_findings(view):
        typer.echo(f"{finding.lead}: {finding.text}")


def _percent(value: float | None) -> str:
    return "undefined" if value is None else f"{100 * value:.1f}"
