"""Configuration of an evaluation: frozen dataclasses, read from YAML, checked key by key.

Nothing is guessed: an unknown key, a value of the wrong type or out of range is a `ConfigError`
that names the place, what was expected and what was found. Checks happen once, here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastunlearn.evaluation.audit_config import AuditConfig, anchor_rows, parse_audit
from fastunlearn.evaluation.parsing import (
    ConfigError,
    build,
    check_choice,
    check_fraction,
    check_keys,
    check_range,
    listed,
    mapping,
    strict_loader,
    typed,
)

_SCENARIO_KEYS = {
    "random": ("fraction",),
    "class": ("class",),
    "mislabelled": ("fraction",),
    "memorised": ("fraction", "models"),
}
_SCENARIO_DEFAULTS = {"models": 40}


@dataclass(frozen=True)
class ScenarioConfig:
    """What is to be forgotten.

    Args:
        kind: `random` (a stratified random fraction), `class` (all training samples of a class),
            `mislabelled` (a random fraction that was trained on with wrong labels) or `memorised`
            (the fraction that models get right only if they were trained on it).
        fraction: share of the training set, in (0, 1); for all but `class`.
        target_class: the class to forget; written `class` in YAML and JSON.
        models: number of models that score memorisation; for `memorised`.
    """

    kind: str = "random"
    fraction: float | None = None
    target_class: int | None = None
    models: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, with the keys of this kind only."""
        values = {"fraction": self.fraction, "class": self.target_class, "models": self.models}
        return {"kind": self.kind, **{key: values[key] for key in _SCENARIO_KEYS[self.kind]}}


@dataclass(frozen=True)
class FineTuneConfig:
    """Fine-tuning on the retain set: all there is for plain fine-tuning, a part of a repair."""

    epochs: int = 1
    batch_size: int = 64
    optimizer: str = "adam"
    lr: float = 0.001
    momentum: float = 0.9
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        self._check("repair", least_epochs=0)

    def _check(self, where: str, least_epochs: int) -> None:
        check_choice(f"{where}.optimizer", self.optimizer, ("adam", "sgd"))
        check_range(f"{where}.batch_size", self.batch_size, low=1)
        check_range(f"{where}.weight_decay", self.weight_decay, low=0.0)
        if self.lr <= 0.0:
            raise ConfigError(f"{where}.lr must be above 0, got {self.lr}")
        if not 0.0 <= self.momentum < 1.0:
            raise ConfigError(
                f"{where}.momentum must be at least 0 and below 1, got {self.momentum}"
            )
        check_range(f"{where}.epochs", self.epochs, low=least_epochs)


@dataclass(frozen=True)
class TrainConfig(FineTuneConfig):
    """How the original and the retrained model are trained; the same for both."""

    epochs: int = 12

    def __post_init__(self) -> None:
        self._check("train", least_epochs=1)


@dataclass(frozen=True)
class RepairConfig(FineTuneConfig):
    """The repair after a perturbation: fine-tuning, a divergence term, a mask."""

    distill: float = 0.1
    divergence: str = "js"
    masked: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("repair.distill", self.distill, low=0.0)
        check_choice("repair.divergence", self.divergence, ("js", "jeffreys"))


@dataclass(frozen=True)
class MethodConfig:
    """One row of the report: a kind of method, its display name, its options and its repair.

    `repair` is None for kinds that have none, and holds only what the kind applies: a
    `RepairConfig` after a perturbation, a plain `FineTuneConfig` for fine-tuning.
    """

    kind: str
    label: str
    options: Mapping[str, Any]
    repair: FineTuneConfig | None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form: options beside `kind` and `label`, `repair` below."""
        form = {"kind": self.kind, "label": self.label, **self.options}
        if self.repair is not None:
            form["repair"] = dataclasses.asdict(self.repair)
        return form


@dataclass(frozen=True)
class Config:
    """A whole evaluation. Make one with `load_config` or `parse_config`.

    Args:
        name: title of the evaluation.
        dataset: a name in `fastunlearn.evaluation.data.DATASETS`.
        model: a name in `fastunlearn.evaluation.models.MODELS`.
        scenario: what is to be forgotten.
        train: training of the original and of the retrained model.
        methods: rows of the report in display order; always holds `original` and `retrain`.
        seeds: one full repetition for each.
        test_fraction: share of the samples that no model is trained on, in (0, 1).
        original: a safetensors file with the weights of the original model, used instead of
            training it; `{seed}` in it stands for the seed. None trains it.
        save_models: write the original model of each seed beside the results, as
            `models/original-SEED.safetensors`.
        spdgan: makes the evaluation an audit: the forget set is shifted by SPD-GAN before the
            original model is trained on it. None leaves the forget set as it is.
        threads: CPU threads of torch, or None for torch's own choice. Sums over threads round
            differently, so a fixed number makes results comparable between machines; and a small
            model is served best by one.
    """

    name: str
    dataset: str
    model: str
    scenario: ScenarioConfig
    train: TrainConfig
    methods: Mapping[str, MethodConfig]
    seeds: tuple[int, ...] = (0,)
    test_fraction: float = 0.2
    threads: int | None = None
    original: str | None = None
    save_models: bool = False
    spdgan: AuditConfig | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the resolved configuration in JSON types; `parse_config` reads it back."""
        form = {
            "name": self.name,
            "dataset": self.dataset,
            "test_fraction": self.test_fraction,
            "model": self.model,
            "scenario": self.scenario.to_dict(),
            "seeds": list(self.seeds),
            "threads": self.threads,
            "original": self.original,
            "save_models": self.save_models,
            "train": dataclasses.asdict(self.train),
            "methods": {name: method.to_dict() for name, method in self.methods.items()},
        }
        if self.spdgan is not None:
            form["spdgan"] = self.spdgan.to_dict()
        return form

    def with_seeds(self, seeds: tuple[int, ...]) -> Config:
        """Return the same configuration over other seeds."""
        return dataclasses.replace(self, seeds=_parse_seeds(list(seeds)))

    def as_audit(self) -> Config:
        """Return the same configuration with default SPD-GAN settings where it has none."""
        return self if self.spdgan is not None else parse_config({**self.to_dict(), "spdgan": {}})

    def digest(self) -> str:
        """Return the SHA-256 (hex) of everything that changes what one seed gives.

        The seeds themselves, the title and whether models are saved are left out, so that a run
        may be resumed with more seeds. The method order counts: it is the display order.
        """
        without = ("name", "seeds", "save_models")
        content = {k: v for k, v in self.to_dict().items() if k not in without}
        return hashlib.sha256(json.dumps(content, sort_keys=False).encode()).hexdigest()


def load_config(path: str | Path) -> Config:
    """Read a configuration from a YAML file.

    Raises:
        ConfigError: the text is not YAML or not a valid configuration.
        OSError: the file cannot be read.
    """
    import yaml

    try:
        raw = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=strict_loader())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"config: {path} must be YAML, got: {' '.join(str(error).split())}"
        ) from error
    return parse_config(raw)


def parse_config(raw: Any) -> Config:
    """Check a configuration given as plain dicts and lists and resolve its defaults.

    Raises:
        ConfigError: a key is unknown or missing, or a value has the wrong type or range.
    """
    from fastunlearn.evaluation.data import DATASETS
    from fastunlearn.evaluation.methods import parse_methods
    from fastunlearn.evaluation.models import MODELS

    top = mapping("config", raw)
    allowed = [f.name for f in dataclasses.fields(Config)] + ["repair"]
    check_keys("config", top, allowed, required=("dataset", "model", "scenario"))
    for name, choices in (("dataset", tuple(DATASETS)), ("model", tuple(MODELS))):
        check_choice(name, typed(name, top[name], str), choices)
    test_fraction = typed("test_fraction", top.get("test_fraction", 0.2), float)
    check_fraction("test_fraction", test_fraction)
    threads = top.get("threads")
    if threads is not None:
        check_range("threads", typed("threads", threads, int), low=1)
    repair = build(RepairConfig, "repair", top.get("repair", {}))
    audit, methods = parse_audit(top["spdgan"]) if "spdgan" in top else None, top.get("methods")
    return Config(
        name=typed("name", top.get("name", f"{top['dataset']} {top['model']}"), str),
        dataset=top["dataset"],
        model=top["model"],
        scenario=_parse_scenario(top["scenario"], DATASETS[top["dataset"]].n_classes),
        train=build(TrainConfig, "train", top.get("train", {})),
        methods=parse_methods(methods, repair, anchor_rows(audit) if audit else {}),
        seeds=_parse_seeds(top.get("seeds", [0])),
        test_fraction=test_fraction,
        threads=threads,
        original=_parse_original(top.get("original"), audit),
        save_models=typed("save_models", top.get("save_models", False), bool),
        spdgan=audit,
    )


def _parse_original(raw: Any, audit: AuditConfig | None) -> str | None:
    if raw is not None:
        typed("original", raw, str)
        if audit is not None:
            raise ConfigError(
                "original must be absent in an audit, where the original model is trained on the "
                f"shifted forget set, got {raw!r}"
            )
    return raw


def _parse_scenario(raw: Any, n_classes: int) -> ScenarioConfig:
    given = mapping("scenario", raw)
    if "kind" not in given:
        raise ConfigError(f"scenario.kind must be one of {listed(_SCENARIO_KEYS)}, got nothing")
    kind = typed("scenario.kind", given["kind"], str)
    check_choice("scenario.kind", kind, tuple(_SCENARIO_KEYS))
    keys = _SCENARIO_KEYS[kind]
    required = tuple(key for key in keys if key not in _SCENARIO_DEFAULTS)
    check_keys("scenario", given, ["kind", *keys], required=required)
    if kind == "class":
        target = typed("scenario.class", given["class"], int)
        check_range("scenario.class", target, low=0, high=n_classes - 1)
        return ScenarioConfig(kind, target_class=target)
    fraction = typed("scenario.fraction", given["fraction"], float)
    check_fraction("scenario.fraction", fraction)
    if kind != "memorised":
        return ScenarioConfig(kind, fraction=fraction)
    models = typed("scenario.models", given.get("models", _SCENARIO_DEFAULTS["models"]), int)
    check_range("scenario.models", models, low=2)
    return ScenarioConfig(kind, fraction=fraction, models=models)


def _parse_seeds(raw: Any) -> tuple[int, ...]:
    if not isinstance(raw, list) or not raw:
        raise ConfigError(f"seeds must be a list of at least one whole number, got {raw!r}")
    seeds = tuple(typed("seeds", seed, int) for seed in raw)
    for seed in seeds:
        check_range("seeds", seed, low=0, high=2**63 - 1)
    if len(set(seeds)) != len(seeds):
        raise ConfigError(f"seeds must be different from one another, got {raw!r}")
    return seeds
