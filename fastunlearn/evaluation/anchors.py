"""The anchors of an audit: models of which it is known how much they have forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

PARTLY = "partly_retrained"


def anchor_order(methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the anchors from nothing forgotten to all forgotten.

    These are the original model, the partly retrained ones from most to least kept, and the
    retrained model.

    Args:
        methods: the `methods` of a resolved configuration, by name.
    """
    kept = {name: row["kept"] for name, row in methods.items() if row.get("kind") == PARTLY}
    return ["original", *sorted(kept, key=lambda name: -kept[name]), "retrain"]


def out_of_order(degrees: Sequence[float]) -> list[tuple[int, int]]:
    """Return the places that contradict the anchors' order [ours].

    Neighbours may be equal, as accuracies are counts; the two ends must be apart.

    Args:
        degrees: unlearning degrees in `anchor_order`.

    Returns:
        Pairs (i, i + 1) where the degree falls, and (0, last) where the last is not above the
        first; empty where all is in order.

    Example:
        >>> out_of_order([0.0, 0.3, 0.2, 0.6])
        [(1, 2)]
    """
    last = len(degrees) - 1
    pairs = [(i, i + 1) for i in range(last) if degrees[i] > degrees[i + 1]]
    if degrees[0] >= degrees[last] and (0, last) not in pairs:
        pairs.append((0, last))
    return pairs
