"""Configuration of an evaluation: frozen dataclasses, read from YAML, checked key by key.

Nothing is guessed: an unknown key, a value of the wrong type or out of range is a `ConfigError`
that names the place, what was expected and what was found. Checks happen once, here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

_T = TypeVar("_T")
_SCENARIO_KEYS = {
    "random": ("fraction",),
    "class": ("class",),
    "mislabelled": ("fraction",),
}
_TYPE_NAMES = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names the key and both values."""


@dataclass(frozen=True)
class ScenarioConfig:
    """What is to be forgotten.

    Args:
        kind: `random` (a stratified random fraction), `class` (all training samples of a class)
            or `mislabelled` (a random fraction that was trained on with wrong labels).
        fraction: share of the training set, in (0, 1); for `random` and `mislabelled`.
        target_class: the class to forget; written `class` in YAML and JSON.
    """

    kind: str = "random"
    fraction: float | None = None
    target_class: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, with the keys of this kind only."""
        value = self.target_class if self.kind == "class" else self.fraction
        return {"kind": self.kind, _SCENARIO_KEYS[self.kind][0]: value}


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
        _check_choice(f"{where}.optimizer", self.optimizer, ("adam", "sgd"))
        _check_range(f"{where}.batch_size", self.batch_size, low=1)
        _check_range(f"{where}.weight_decay", self.weight_decay, low=0.0)
        if self.lr <= 0.0:
            raise ConfigError(f"{where}.lr must be above 0, got {self.lr}")
        if not 0.0 <= self.momentum < 1.0:
            raise ConfigError(
                f"{where}.momentum must be at least 0 and below 1, got {self.momentum}"
            )
        _check_range(f"{where}.epochs", self.epochs, low=least_epochs)


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
        _check_range("repair.distill", self.distill, low=0.0)
        _check_choice("repair.divergence", self.divergence, ("js", "jeffreys"))


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

    def to_dict(self) -> dict[str, Any]:
        """Return the resolved configuration in JSON types; `parse_config` reads it back."""
        return {
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

    def with_seeds(self, seeds: tuple[int, ...]) -> Config:
        """Return the same configuration over other seeds."""
        return dataclasses.replace(self, seeds=_parse_seeds(list(seeds)))

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
        raw = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_strict_loader())
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

    top = _mapping("config", raw)
    allowed = [f.name for f in dataclasses.fields(Config)] + ["repair"]
    _check_keys("config", top, allowed, required=("dataset", "model", "scenario"))
    dataset = _typed("dataset", top["dataset"], str)
    model = _typed("model", top["model"], str)
    _check_choice("dataset", dataset, tuple(DATASETS))
    _check_choice("model", model, tuple(MODELS))
    test_fraction = _typed("test_fraction", top.get("test_fraction", 0.2), float)
    _check_fraction("test_fraction", test_fraction)
    threads = top.get("threads")
    if threads is not None:
        _check_range("threads", _typed("threads", threads, int), low=1)
    original = top.get("original")
    if original is not None:
        _typed("original", original, str)
    repair = build(RepairConfig, "repair", top.get("repair", {}))
    return Config(
        name=_typed("name", top.get("name", f"{dataset} {model}"), str),
        dataset=dataset,
        model=model,
        scenario=_parse_scenario(top["scenario"], DATASETS[dataset].n_classes),
        train=build(TrainConfig, "train", top.get("train", {})),
        methods=parse_methods(top.get("methods"), repair),
        seeds=_parse_seeds(top.get("seeds", [0])),
        test_fraction=test_fraction,
        threads=threads,
        original=original,
        save_models=_typed("save_models", top.get("save_models", False), bool),
    )


def build(cls: type[_T], where: str, raw: Any, base: _T | None = None) -> _T:
    """Make the dataclass `cls` from a mapping of YAML values, strictly.

    Args:
        cls: a dataclass whose fields are int, float, str or bool.
        where: place in the configuration, for messages.
        raw: the mapping; keys that are absent keep their default, or `base`'s value.
        base: values to start from.

    Raises:
        ConfigError: an unknown key, a wrong type, or a value that `cls` refuses.
    """
    given = _mapping(where, raw)
    hints = get_type_hints(cls)
    _check_keys(where, given, list(hints))
    values = {key: _typed(f"{where}.{key}", value, hints[key]) for key, value in given.items()}
    if base is None:
        return cls(**values)
    return dataclasses.replace(base, **values)  # type: ignore[type-var]


def _parse_scenario(raw: Any, n_classes: int) -> ScenarioConfig:
    given = _mapping("scenario", raw)
    if "kind" not in given:
        raise ConfigError(f"scenario.kind must be one of {_listed(_SCENARIO_KEYS)}, got nothing")
    kind = _typed("scenario.kind", given["kind"], str)
    _check_choice("scenario.kind", kind, tuple(_SCENARIO_KEYS))
    keys = _SCENARIO_KEYS[kind]
    _check_keys("scenario", given, ["kind", *keys], required=keys)
    if kind == "class":
        target = _typed("scenario.class", given["class"], int)
        _check_range("scenario.class", target, low=0, high=n_classes - 1)
        return ScenarioConfig(kind, target_class=target)
    fraction = _typed("scenario.fraction", given["fraction"], float)
    _check_fraction("scenario.fraction", fraction)
    return ScenarioConfig(kind, fraction=fraction)


def _parse_seeds(raw: Any) -> tuple[int, ...]:
    if not isinstance(raw, list) or not raw:
        raise ConfigError(f"seeds must be a list of at least one whole number, got {raw!r}")
    seeds = tuple(_typed("seeds", seed, int) for seed in raw)
    for seed in seeds:
        _check_range("seeds", seed, low=0, high=2**63 - 1)
    if len(set(seeds)) != len(seeds):
        raise ConfigError(f"seeds must be different from one another, got {raw!r}")
    return seeds


def _mapping(where: str, raw: Any) -> dict[str, Any]:
    if not isinstance(raw, Mapping) or not all(isinstance(key, str) for key in raw):
        raise ConfigError(f"{where} must be a mapping of names to values, got {raw!r}")
    return dict(raw)


def _typed(where: str, value: Any, kind: Any) -> Any:
    # bool is a subclass of int, but `epochs: true` is a mistake
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise ConfigError(f"{where} must be {_TYPE_NAMES[kind]}, got {value!r}")
    if kind is float and not math.isfinite(value):
        raise ConfigError(f"{where} must be finite, got {value!r}")
    return value


def _check_keys(
    where: str, given: Mapping[str, Any], allowed: list[str], required: tuple[str, ...] = ()
) -> None:
    unknown = [key for key in given if key not in allowed]
    if unknown:
        raise ConfigError(f"{where}: keys must be among {_listed(allowed)}, got {_listed(unknown)}")
    missing = [key for key in required if key not in given]
    if missing:
        raise ConfigError(f"{where}: {_listed(missing)} must be given, got {_listed(given)}")


def _check_choice(where: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{where} must be one of {_listed(choices)}, got {value!r}")


def _check_range(where: str, value: float, low: float, high: float | None = None) -> None:
    if value < low or (high is not None and value > high):
        upper = "" if high is None else f" and at most {high}"
        raise ConfigError(f"{where} must be at least {low}{upper}, got {value}")


def _check_fraction(where: str, value: float) -> None:
    if not 0.0 < value < 1.0:
        raise ConfigError(f"{where} must be above 0 and below 1, got {value}")


def _listed(names: Any) -> str:
    return ", ".join(repr(name) for name in names) or "nothing"


def _strict_loader() -> Any:
    """Return a safe YAML loader that reads `1e-3` as a number and refuses a key given twice."""
    import yaml

    class StrictLoader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [child.value for child, _ in node.value if isinstance(child.value, str)]
            twice = sorted({key for key in keys if keys.count(key) > 1})
            if twice:
                line = node.start_mark.line + 1
                raise ConfigError(
                    f"config: each key must be given once, got {_listed(twice)} twice "
                    f"in the block at line {line}"
                )
            return super().construct_mapping(node, deep)

    # YAML 1.1 wants a dot in a float; people write 1e-3
    StrictLoader.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
        list("-+0123456789"),
    )
    return StrictLoader
