"""Numbers that do not exist: a NaN that carries the reason."""

from __future__ import annotations

import math

__all__ = ["Undefined", "undefined_reason"]


class Undefined(float):
    """A NaN that says why there is no number.

    It is a ``float`` in every respect (``math.isnan`` is true, arithmetic gives a plain NaN), so a
    metric's return type stays ``float``; :func:`undefined_reason` reads the reason back. Copies and
    pickles keep it.

    Args:
        reason: One clause for a reader of the report.

    Example:
        >>> value = Undefined("the denominator is 0")
        >>> value != value, value.reason
        (True, 'the denominator is 0')
    """

    reason: str

    def __new__(cls, reason: str) -> Undefined:
        value = super().__new__(cls, "nan")
        value.reason = reason
        return value

    def __reduce__(self) -> tuple[type[Undefined], tuple[str]]:
        return Undefined, (self.reason,)

    def __repr__(self) -> str:
        return f"Undefined({self.reason!r})"


def undefined_reason(value: float) -> str | None:
    """Return why ``value`` is not a number, or None where it is one.

    Args:
        value: What a metric returned.

    Returns:
        None for a number, including infinities; the reason of an :class:`Undefined`; a general
        sentence for a NaN of another origin.

    Example:
        >>> undefined_reason(0.5) is None
        True
        >>> undefined_reason(float("nan"))
        'the value is not a number (NaN) in the data it was computed from'
    """
    if isinstance(value, Undefined):
        return value.reason
    if math.isnan(value):
        return "the value is not a number (NaN) in the data it was computed from"
    return None
