"""The benchmark for GPUs: `python -m benchmarks.gpu --out DIR [--quick]`.

Floors, sizes up to 1e9, a 6.7e9 model, peers, and the table of bars. The exit code is 1 where a
call of ours failed; a missed bar is told by the table alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

SECONDS, QUICK_SECONDS = 240.0, 60.0


def main() -> int:
    """Run what the command line asks for; returns the exit code."""
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder for the JSON")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--quick", action="store_true", help=f"end in {QUICK_SECONDS:g} s")
    length.add_argument("--seconds", type=float, default=SECONDS, help="begin no case after these")
    parser.add_argument("--device", default="cuda", help="cpu tries the machinery")
    parser.add_argument(
        "--shrink", metavar="N", type=int, default=1, help="divide all sizes, to try the machinery"
    )
    options = parser.parse_args()
    import torch
    from rich.console import Console

    from benchmarks.gpu.run import run

    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("benchmarks.gpu: there is no GPU that torch can use", file=sys.stderr)
        return 2
    seconds = QUICK_SECONDS if options.quick else options.seconds
    command = " ".join(["python -m benchmarks.gpu", *sys.argv[1:]])
    console = Console(width=150)
    bench = run(options.out, seconds, command, device, options.shrink, console)
    for words in bench.broken:
        print(f"FAILED: {words}")
    verdicts = Counter(f"bars {row['verdict']}" for row in bench.judged)
    figures = {"rows": len(bench.rows), "rows failed": len(bench.broken), **verdicts}
    print("figures: " + json.dumps(figures))
    return int(bool(bench.broken))


if __name__ == "__main__":
    sys.exit(main())
