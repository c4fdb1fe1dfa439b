"""Result files that grow row by row: written whole after each row, and gone on with later."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from fastunlearn.evaluation.results import write_atomically
from fastunlearn.evaluation.runner import environment


def begin(path: Path, schema: str, config: Any) -> dict[str, Any]:
    """Return the results to go on with: those of the file, or new ones without rows.

    Args:
        path: the file; need not exist.
        schema: name and version of its form.
        config: all that rows depend on but their own keys, in JSON types.

    Raises:
        ValueError: the file is of another schema, configuration or environment, or is not JSON.
    """
    fresh = {"schema": schema, "environment": environment(), "config": config, "rows": []}
    if not path.exists():
        return fresh
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"resume: {path} must be JSON, got: {error}") from error
    for key in ("schema", "environment", "config"):
        if found.get(key) != fresh[key]:
            raise ValueError(
                f"resume: {key} of {path} must be {fresh[key]!r}, got {found.get(key)!r}"
            )
    return found


def add(results: dict[str, Any], row: dict[str, Any], path: Path) -> None:
    """Append a row and write the file; numbers that are not finite become None."""
    results["rows"].append(finite(row))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(results, indent=1, allow_nan=False) + "\n").encode())


def finite(value: Any) -> Any:
    """Return JSON-able values with None in the place of each number that is not finite."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
