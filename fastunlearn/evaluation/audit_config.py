"""Settings of an audit: the generator that shifts the forget set, its references, the anchors."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from fastunlearn.evaluation.parsing import (
    ConfigError,
    build,
    check_fraction,
    check_keys,
    check_range,
    mapping,
    typed,
)
from fastunlearn.spdgan import SPDGANConfig

ANCHORS = (0.5, 0.1, 0.02)
REFERENCES = (1.0, 1.0, 0.33, 0.17)
RETRAINED = 3
_OWN = ("references", "retrained", "batch_size", "anchors")
_COUNTS = ("retrained", "batch_size")


@dataclass(frozen=True)
class AuditConfig:
    """The `spdgan` block of a configuration.

    Args:
        gan: settings of SPD-GAN; written beside the others in YAML and JSON.
        references: the models, trained on the retain set, that the generator works against: for
            each the share of the training's epochs that it gets, in (0, 1], rounded, at least one.
            What models do with shifted data differs most of all by how long they were trained.
        retrained: models trained on the retain set whose mean performance is that of the retrained
            model in degrees and gains; the row `retrain` is the first of them. One alone would
            make a yardstick as long as its initial weights happen to make it.
        batch_size: forget examples in a batch of the generator's training.
        anchors: shares of the forget set, each in (0, 1), that stay in the training set of a
            partly retrained model; falling.
    """

    gan: SPDGANConfig
    references: tuple[float, ...] = REFERENCES
    retrained: int = RETRAINED
    batch_size: int = 64
    anchors: tuple[float, ...] = ANCHORS

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form; `parse_audit` reads it back."""
        own: dict[str, Any] = {name: getattr(self, name) for name in _OWN}
        lists = {name: list(own[name]) for name in ("references", "anchors")}
        return {**dataclasses.asdict(self.gan), **own, **lists}


def parse_audit(raw: Any) -> AuditConfig:
    """Check the `spdgan` block.

    Raises:
        ConfigError: a key is unknown, or a value has the wrong type or range.
    """
    given = mapping("spdgan", raw)
    check_keys("spdgan", given, [*_OWN, *(f.name for f in dataclasses.fields(SPDGANConfig))])
    own = {name: given.pop(name) for name in _OWN if name in given}
    for name in (name for name in _COUNTS if name in own):
        check_range(f"spdgan.{name}", typed(f"spdgan.{name}", own[name], int), low=1)
    if "references" in own:
        own["references"] = _parse_references(own["references"])
    if "anchors" in own:
        own["anchors"] = _parse_anchors(own["anchors"])
    try:
        gan = build(SPDGANConfig, "spdgan", given)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"spdgan: {error}") from error
    return AuditConfig(gan, **own)


def anchor_rows(audit: AuditConfig) -> dict[str, dict[str, Any]]:
    """Return the `methods` entries of the partly retrained models, most kept first."""
    return {
        f"partly_retrained_{kept:g}": {
            "kind": "partly_retrained",
            "label": f"Retrained, {100 * kept:g} % kept",
            "kept": kept,
        }
        for kept in audit.anchors
    }


def _parse_references(raw: Any) -> tuple[float, ...]:
    shares = _shares("spdgan.references", raw)
    if not shares or not all(0.0 < share <= 1.0 for share in shares):
        raise ConfigError(f"spdgan.references must be shares above 0 and up to 1, got {raw!r}")
    return shares


def _shares(where: str, raw: Any) -> tuple[float, ...]:
    if not isinstance(raw, list):
        raise ConfigError(f"{where} must be a list of shares, got {raw!r}")
    return tuple(typed(where, share, float) for share in raw)


def _parse_anchors(raw: Any) -> tuple[float, ...]:
    shares = _shares("spdgan.anchors", raw)
    for kept in shares:
        check_fraction("spdgan.anchors", kept)
    if list(shares) != sorted(set(shares), reverse=True):
        raise ConfigError(f"spdgan.anchors must fall from one to the next, got {raw!r}")
    return shares
