"""The examples' figures as tables for the documentation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent.parent / "docs/results/examples"
NOT_RUN = "Not run yet."


def _load(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def authors() -> str:
    """The GPT that forgets authors."""
    found = _load("authors")
    if found is None:
        return NOT_RUN
    size = found["size"]
    lines = [
        f"{size['forget']} of {size['authors']} authors are forgotten, 5 facts each; seed "
        f"{found['seed']}, 2 cores, torch {found['torch']}, `make authors`.",
        "",
        "| model | recall, forget | recall, retain | perplexity of answers, forget"
        " | perplexity of answers, retain | perplexity of held-out tales | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["models"].values():
        forget, retain = row["forget"], row["retain"]
        cells = [
            *(f"{part['recall']:.3f}" for part in (forget, retain)),
            *(f"{part['perplexity']:.2f}" for part in (forget, retain)),
            f"{row['text_perplexity']:.1f}",
            f"{row['seconds']:.0f}",
        ]
        lines.append(f"| {row['label']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def newsgroups() -> str:
    """The classifier that forgets a newsgroup, and texts."""
    lines = [
        "| forgotten | model | accuracy, forget set | retain set | forgotten group's test texts"
        " | other test texts | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, what in (("group", "a newsgroup"), ("texts", "5 % of the texts")):
        found = _load(f"newsgroups-{name}")
        if found is None:
            return NOT_RUN
        for row in found["models"].values():
            parts = (row[part] for part in ("forget", "retain", "test_forget", "test"))
            cells = ["" if part is None else f"{part:.3f}" for part in parts]
            line = f"| {what} | {row['label']} | {' | '.join(cells)} | {row['seconds']:.0f} |"
            lines.append(line)
    size = found["size"]
    lines += [
        "",
        f"{size['texts']} training and {size['tests']} test texts of each of 20 groups, seed "
        f"{found['seed']}, 2 cores, torch {found['torch']}, `make newsgroups`.",
    ]
    return "\n".join(lines)


def sharded() -> str:
    """The GPT under FSDP2."""
    found = _load("authors-fsdp")
    if found is None:
        return NOT_RUN
    lines = [
        "| strategy | processes | elements of the first | selected, of all | SHA-256 |",
        "|---|---|---|---|---|",
    ]
    titles = {"top_k": "Top-K, K = 1 %", "random_k": "Random-k, K = 70 %"}
    for name, title in titles.items():
        for world, rows in found["processes"].items():
            row = rows[name]
            lines.append(
                f"| {title} | {world} | {row['of_first_rank']:,} | {row['count']:,} of"
                f" {row['n']:,} | {row['sha256'][:16]}… |"
            )
    return "\n".join(lines)
