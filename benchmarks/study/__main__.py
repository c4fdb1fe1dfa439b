"""The study: run what is missing, then write docs/study.md from the results.

python -m benchmarks.study                           everything, two cells at a time
python -m benchmarks.study --only '*resnet8*'        the cells of that name
python -m benchmarks.study --minutes 20              begin no seed after 20 minutes
python -m benchmarks.study --write-only              the document alone

A second call goes on where the first one stopped. The exit code is 1 where a cell failed.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.study",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--jobs", metavar="N", type=int, default=2, help="cells at a time")
    parser.add_argument("--only", metavar="PATTERN", default="*", help="cells to run")
    parser.add_argument("--minutes", metavar="M", type=float, help="begin no seed after these")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "docs/results/study", help="folder of the results"
    )
    parser.add_argument("--write-only", action="store_true", help="run nothing")
    options = parser.parse_args()
    if options.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {options.jobs}")
    return options


def main() -> int:
    """Run what the command line asks for; returns the exit code."""
    options = _options()
    from benchmarks.study.cells import cells
    from benchmarks.study.document import write
    from benchmarks.study.execute import Plan, run_all

    failed: list[str] = []
    planned = list(cells())
    if not options.write_only:
        chosen = [cell for cell in planned if fnmatch(cell.name, options.only)]
        if not chosen:
            names = ", ".join(cell.name for cell in planned)
            print(f"benchmarks.study: --only must match one of {names}", file=sys.stderr)
            return 2
        deadline = None if options.minutes is None else time.time() + 60.0 * options.minutes
        plan = Plan(ROOT / "runs/study", options.out, deadline)
        failed = run_all(chosen, plan, options.jobs)
    print(f"wrote {write(planned, options.out, ROOT / 'docs')}")
    return int(bool(failed))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the cells' processes too
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("benchmarks.study: interrupted; finished seeds are kept", file=sys.stderr)
        sys.exit(130)
