"""Shows the progress of an evaluation: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from fastunlearn.evaluation.one_seed import Event
from fastunlearn.evaluation.one_seed import Progress as ProgressHook


@contextmanager
def show_progress(console: Console | None = None) -> Iterator[ProgressHook]:
    """Yield a progress hook for `runner.run`.

    Every finished step becomes a line. On a terminal a bar below it shows the step in hand; in a
    log file or a pipe the begin of a step is a line too, so that a long step is not silent.

    Args:
        console: where to write; stderr by default, so that stdout stays for results.
    """
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield lambda event: _print_line(console, event)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        whole = bar.add_task("Steps", total=None)
        current = bar.add_task("", total=None)

        def show(event: Event) -> None:
            total = event.n_seeds * event.n_steps
            before = (event.seed_number - 1) * event.n_steps + max(0, event.step - 1)
            finished = event.seconds is not None
            bar.update(whole, total=total, completed=before + finished)
            if finished:
                _print_line(console, event)
            elif event.part is None:
                bar.reset(current, description=event.label, total=None)
            else:
                phase, done, of = event.part
                bar.update(current, description=f"{event.label}, {phase}", completed=done, total=of)

        yield show


def _print_line(console: Console, event: Event) -> None:
    if event.part is not None:
        return
    where = f"seed {event.seed} ({event.seed_number}/{event.n_seeds})"
    step = f"{event.step}/{event.n_steps} {event.label}"
    took = " ..." if event.seconds is None else f": {event.seconds:.1f} s"
    console.print(f"{where}  {step}{took}", highlight=False, markup=False, soft_wrap=True)
