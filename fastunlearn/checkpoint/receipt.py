"""The account of what was done to a checkpoint."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fastunlearn.checkpoint.header import FormatError, parse_json

SCHEMA = "fastunlearn.checkpoint-receipt/1"


@dataclass(frozen=True)
class CheckpointReceipt:
    """What became of a checkpoint, complete enough to be checked by doing it again.

    A receipt says what was written, from what, and how. It is no certificate that anything was
    forgotten.

    Attributes:
        perturbation: `fastunlearn.Receipt.to_dict()` of the whole.
        source, scores, result: digests (see `fastunlearn.checkpoint.Digest`) of the checkpoint
            before, of the scores (None where there were none), and of the checkpoint after.
        missing_scores, allow_overflow: see `fastunlearn.checkpoint.perturb`.
        tensors: SHA-256 of each tensor of the result.
    """

    perturbation: dict[str, Any]
    source: str
    scores: str | None
    result: str
    missing_scores: str
    allow_overflow: bool
    tensors: dict[str, str]

    def to_json(self) -> str:
        """Strict JSON text."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1, allow_nan=False) + "\n"

    @staticmethod
    def read(path: str | Path) -> CheckpointReceipt:
        """Read what `to_json` wrote.

        Raises:
            FormatError: the file holds something else.
        """
        path = Path(path)
        found = parse_json(path, path.read_bytes())
        names = {field.name for field in fields(CheckpointReceipt)}
        if found.pop("schema", None) != SCHEMA or set(found) != names:
            raise FormatError(f"{path} must be a receipt of schema {SCHEMA}, got another")
        kinds = {"perturbation": dict, "tensors": dict, "source": str, "result": str}
        for name, kind in kinds.items():
            if not isinstance(found[name], kind):
                raise FormatError(f"{path}: {name} must be {kind.__name__}, got {found[name]!r}")
        return CheckpointReceipt(**found)
