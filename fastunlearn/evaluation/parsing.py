"""Checks of values that come from YAML: each refusal names the place and both values."""

from __future__ import annotations

import dataclasses
import math
import re
import types
from collections.abc import Mapping
from typing import Any, TypeVar, get_type_hints

_T = TypeVar("_T")
_TYPE_NAMES = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names the key and both values."""


def build(cls: type[_T], where: str, raw: Any, base: _T | None = None) -> _T:
    """Make the dataclass `cls` from a mapping of YAML values, strictly.

    Args:
        cls: a dataclass whose fields are int, float, str or bool, or one of these or None.
        where: place in the configuration, for messages.
        raw: the mapping; keys that are absent keep their default, or `base`'s value.
        base: values to start from.

    Raises:
        ConfigError: an unknown key, a wrong type, or a value that `cls` refuses.
    """
    given = mapping(where, raw)
    hints = get_type_hints(cls)
    check_keys(where, given, list(hints))
    values = {key: _field(f"{where}.{key}", value, hints[key]) for key, value in given.items()}
    if base is None:
        return cls(**values)
    return dataclasses.replace(base, **values)  # type: ignore[type-var]


def _field(where: str, value: Any, hint: Any) -> Any:
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        (hint,) = (kind for kind in hint.__args__ if kind is not types.NoneType)
    return typed(where, value, hint)


def mapping(where: str, raw: Any) -> dict[str, Any]:
    """Return `raw` as a dict, or refuse what is not a mapping of names."""
    if not isinstance(raw, Mapping) or not all(isinstance(key, str) for key in raw):
        raise ConfigError(f"{where} must be a mapping of names to values, got {raw!r}")
    return dict(raw)


def typed(where: str, value: Any, kind: Any) -> Any:
    """Return `value`, or refuse another type; a whole number becomes the float asked for."""
    # bool is a subclass of int, but `epochs: true` is a mistake
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise ConfigError(f"{where} must be {_TYPE_NAMES[kind]}, got {value!r}")
    if kind is float and not math.isfinite(value):
        raise ConfigError(f"{where} must be finite, got {value!r}")
    return value


def check_keys(
    where: str, given: Mapping[str, Any], allowed: list[str], required: tuple[str, ...] = ()
) -> None:
    """Refuse keys that are not allowed, and the lack of a required one."""
    unknown = [key for key in given if key not in allowed]
    if unknown:
        raise ConfigError(f"{where}: keys must be among {listed(allowed)}, got {listed(unknown)}")
    missing = [key for key in required if key not in given]
    if missing:
        raise ConfigError(f"{where}: {listed(missing)} must be given, got {listed(given)}")


def check_choice(where: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a word that is not among `choices`."""
    if value not in choices:
        raise ConfigError(f"{where} must be one of {listed(choices)}, got {value!r}")


def check_range(where: str, value: float, low: float, high: float | None = None) -> None:
    """Refuse a number below `low` or above `high`."""
    if value < low or (high is not None and value > high):
        upper = "" if high is None else f" and at most {high}"
        raise ConfigError(f"{where} must be at least {low}{upper}, got {value}")


def check_fraction(where: str, value: float) -> None:
    """Refuse a number that is not inside (0, 1)."""
    if not 0.0 < value < 1.0:
        raise ConfigError(f"{where} must be above 0 and below 1, got {value}")


def listed(names: Any) -> str:
    """Return names quoted, with commas between."""
    return ", ".join(repr(name) for name in names) or "nothing"


def strict_loader() -> Any:
    """Return a safe YAML loader that reads `1e-3` as a number and refuses a key given twice."""
    import yaml

    class StrictLoader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [child.value for child, _ in node.value if isinstance(child.value, str)]
            twice = sorted({key for key in keys if keys.count(key) > 1})
            if twice:
                line = node.start_mark.line + 1
                raise ConfigError(
                    f"config: each key must be given once, got {listed(twice)} twice "
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
