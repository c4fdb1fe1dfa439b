"""The command line: `fastunlearn demo | run | audit | score | perturb | verify | patch | ...`.

An error of the user's making is one line on stderr and exit code 2; Ctrl-C keeps what is done,
reports it, and exits with 130.
"""

from fastunlearn.cli import evaluate, files, score, tools  # each registers its commands
from fastunlearn.cli._app import app, main

__all__ = ["app", "evaluate", "files", "main", "score", "tools"]
