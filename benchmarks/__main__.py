"""Benchmarks: a minute, everything, or the check of the bars.

python -m benchmarks                what `fastunlearn bench` does
python -m benchmarks --full         every size, pattern, dtype, model; threads; SIMD levels
python -m benchmarks --check        the table of bars; exit code 1 where one is missed
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--full", action="store_true")
    what.add_argument("--check", action="store_true")
    parser.add_argument("--out", type=Path, help="folder for JSON and PNG")
    parser.add_argument("--simd", metavar="LEVEL", help="portable, avx2 or avx512")
    parser.add_argument("--only", metavar="TEXT", help="with --check: the bars with these words")
    parser.add_argument(
        "--shrink", metavar="N", type=int, default=1, help="divide all sizes, to try the machinery"
    )
    options = parser.parse_args()
    if options.only is not None and not options.check:
        parser.error("--only goes with --check")
    if options.shrink != 1 and not (options.check or options.full):
        parser.error("--shrink goes with --check or --full")
    return options


def main() -> int:
    """Run what the command line asks for; returns the exit code."""
    options = _options()
    command = " ".join(["python -m benchmarks", *sys.argv[1:]])
    if options.simd:
        os.environ["FASTUNLEARN_SIMD"] = options.simd  # read when fastunlearn is imported
    from rich.console import Console

    from benchmarks.check import MISSED, check
    from benchmarks.full import run as run_full
    from fastunlearn._extension import why_unavailable
    from fastunlearn.bench.quick import run as run_quick
    from fastunlearn.bench.results import simd_level

    console = Console()
    if options.simd and options.simd != simd_level():
        why = why_unavailable() or f"it uses {simd_level()}"
        print(f"benchmarks: --simd {options.simd}: no such extension: {why}", file=sys.stderr)
        return 2
    if options.check:
        try:
            rows = check(command, options.out, options.only, options.shrink, console)
        except LookupError as error:
            print(f"benchmarks: {error.args[0]}", file=sys.stderr)
            return 2
        return int(any(row["verdict"] == MISSED for row in rows))
    if options.full:
        run_full(command, options.out, options.shrink, console)
        return 0
    run_quick(options.out or Path("runs/bench"), 60.0, command, console=console)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("benchmarks: interrupted", file=sys.stderr)
        sys.exit(130)
