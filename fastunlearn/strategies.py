"""What to select and how to perturb it: frozen, validated, JSON-serialisable descriptions."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

Noise = Literal["normal", "uniform", "laplace"]
Mode = Literal["add", "replace", "zero"]
Rounding = Literal["nearest", "stochastic"]
Scope = Literal["global", "tensor"]
Score = Literal["grad", "fisher", "mas", "taylor", "ratio", "weight"]
NanPolicy = Literal["error", "largest", "smallest"]

DEFAULT_STD = 0.1  # docs/method.md tells what was tried against it


@dataclass(frozen=True)
class Strategy:
    """Fields that Top-K and Random-k share. Use `TopK` or `RandomK`.

    Args:
        k: how many parameters to perturb. An int counts them; a float in (0, 1] is a fraction, and
            the count is `round(k * n)`, halves to even.
        std: standard deviation of the noise; 0.1 where neither `std` nor `rel_std` is given [peer].
        rel_std: standard deviation as a multiple of the root mean square of the tensor that the
            parameter lives in [ours].
        noise: "normal", "uniform" or "laplace"; each has mean 0 and the standard deviation above.
        mode: "add" (w + noise), "replace" (noise) or "zero" (0).
        rounding: how a new value becomes one of a 16-bit type (others round to nearest): "nearest",
            or "stochastic", up or down at random so that the expected value is the exact one.
            Noise below half a unit in the last place is lost by the first and kept, on average,
            by the second [ours].
        scope: "global" selects K of the whole model, "tensor" applies the rule in each tensor.
        include: parameter-name patterns (`fnmatch`); where given, only matching names take part.
        exclude: parameter-name patterns of parameters left out.

    Raises:
        TypeError, ValueError: a field is out of its range.
    """

    k: int | float
    std: float | None = None
    rel_std: float | None = None
    noise: Noise = "normal"
    mode: Mode = "add"
    rounding: Rounding = "nearest"
    scope: Scope = "global"
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()

    name: ClassVar[str]

    def __post_init__(self) -> None:
        self._check_k()
        self._check_scale()
        self._check_choice("noise", get_args(Noise))
        self._check_choice("mode", get_args(Mode))
        self._check_choice("rounding", get_args(Rounding))
        self._check_choice("scope", get_args(Scope))
        for field in ("include", "exclude"):
            object.__setattr__(self, field, self._patterns(field))

    def _fail(self, field: str, expected: str, kind: type[Exception] = ValueError) -> None:
        value = getattr(self, field)
        raise kind(f"{type(self).__name__}: {field} must be {expected}, got {value!r}")

    def _check_k(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, (int, float)):
            self._fail("k", "an int (count) or a float (fraction)", TypeError)
        if isinstance(self.k, int) and self.k < 0:
            self._fail("k", "a count >= 0")
        if isinstance(self.k, float) and not 0.0 < self.k <= 1.0:
            self._fail("k", "a fraction in (0, 1]")

    def _check_scale(self) -> None:
        if self.std is not None and self.rel_std is not None:
            self._fail("rel_std", "None where std is given")
        if self.std is None and self.rel_std is None:
            object.__setattr__(self, "std", DEFAULT_STD)
        field = "std" if self.rel_std is None else "rel_std"
        value = getattr(self, field)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self._fail(field, "a number", TypeError)
        if not 0 <= value <= sys.float_info.max:
            self._fail(field, "finite and >= 0")
        object.__setattr__(self, field, value + 0.0)  # -0.0 is 0.0, and would give -0.0 weights

    def _check_choice(self, field: str, choices: Sequence[str]) -> None:
        if getattr(self, field) not in choices:
            self._fail(field, "one of " + ", ".join(map(repr, choices)))

    def _patterns(self, field: str) -> tuple[str, ...]:
        value = getattr(self, field)
        if isinstance(value, str) or not all(isinstance(pattern, str) for pattern in value):
            self._fail(field, "a sequence of strings", TypeError)
        return tuple(value)

    @property
    def update(self) -> str:
        """What the operations call mode and rounding together."""
        stochastic = self.rounding == "stochastic" and self.mode != "zero"
        return f"{self.mode}_stochastic" if stochastic else self.mode

    def count(self, n: int) -> int:
        """Number of elements that `k` means among n."""
        return self.k if isinstance(self.k, int) else round(self.k * n)

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form, with the strategy's name under "name"."""
        patterns = {"include": list(self.include), "exclude": list(self.exclude)}
        return {"name": self.name, **vars(self), **patterns}


@dataclass(frozen=True)
class TopK(Strategy):
    """The K parameters most sensitive to the data to unlearn [paper].

    Exactly K are taken: the greatest by (|score| descending, flat index ascending). The order is
    that of the fp32 bit patterns, so the set is unique and the same on every backend.

    Args:
        score: what sensitivity means. "grad" |g| [paper], "fisher" g^2 [peer], "taylor" |w g|
            [ours], "weight" |w| [ours]; "mas" and "ratio" [ours] need a pass over data: compute
            them with `score`, or let `unlearn` do so. Scores given by the caller are used as they
            are.
        nan: "error", or count a NaN score as the "largest" or as the "smallest" (0).
        k, std, rel_std, noise, mode, rounding, scope, include, exclude: see `Strategy`.

    Example:
        >>> TopK(0.01, std=0.1).count(1000)
        10
        >>> TopK(1.5)
        Traceback (most recent call last):
        ...
        ValueError: TopK: k must be a fraction in (0, 1], got 1.5

    Source: Zuo, Tang, Li, Datta, "Machine Unlearning Through Fine-Grained Model Parameters
    Perturbation", IEEE TKDE 37(4), 2025.
    """

    score: Score = "grad"
    nan: NanPolicy = "error"

    name: ClassVar[str] = "top_k"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_choice("score", get_args(Score))
        self._check_choice("nan", get_args(NanPolicy))


@dataclass(frozen=True)
class RandomK(Strategy):
    """A uniform K-subset of the parameters [paper], exactly K and not a Bernoulli mask [ours].

    Needs no gradient. The subset is a function of the seed, the step and the number of parameters.

    Args:
        k, std, rel_std, noise, mode, rounding, scope, include, exclude: see `Strategy`.

    Example:
        >>> RandomK(500, rel_std=1.0, noise="laplace").to_dict()["rel_std"]
        1.0
    """

    name: ClassVar[str] = "random_k"


def strategy_of(values: Mapping[str, Any]) -> Strategy:
    """Make a strategy again from its `to_dict`.

    Raises:
        TypeError, ValueError: a field is unknown or out of its range.
    """
    kinds = {kind.name: kind for kind in (TopK, RandomK)}
    fields = dict(values)
    name = fields.pop("name", None)
    if name not in kinds:
        raise ValueError(f"strategy: name must be one of {', '.join(kinds)}, got {name!r}")
    return kinds[name](**fields)
