"""The account of what an operation did."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any


def seed_commitment(seed: int) -> str:
    """SHA-256 of the seed, in hex: `sha256(b"fastunlearn seed " + seed as 8 little-endian bytes)`.

    It binds the receipt to one seed. It hides the seed only where that has full entropy, as one
    drawn from the operating system has; a small seed is found by trying.
    """
    return hashlib.sha256(b"fastunlearn seed " + seed.to_bytes(8, "little")).hexdigest()


def key_to_score(key: int) -> float | None:
    """The score that a key stands for; None for the keys that stand for no score."""
    if not 0 <= key <= 0x7FFFFFFF:
        return None
    exponent, mantissa = key >> 23, key & 0x7FFFFF
    if exponent == 0xFF:
        return math.nan if mantissa else math.inf
    # in integers, since a conversion from fp32 would follow the thread's flush-to-zero mode
    return math.ldexp(mantissa | (exponent > 0) << 23, max(exponent, 1) - 150)


@dataclass(frozen=True)
class TensorReceipt:
    """What happened to one tensor.

    Attributes:
        name, shape, dtype: of the parameter.
        selected: number of its elements that were selected.
        scale: standard deviation of the noise in this tensor.
        threshold: smallest selected score of the problem that the tensor took part in, or None.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    selected: int
    scale: float
    threshold: float | None


@dataclass(frozen=True)
class Receipt:
    """What an in-place operation did, complete and JSON-serialisable.

    A receipt says what was written and from which inputs it can be computed again. It is no
    certificate that anything was forgotten. Whoever has the seed and the output can subtract the
    noise, so the seed is kept only on request.

    An operation on a GPU does not wait for the device. Its receipt does, when it is first looked
    at, and raises then what the operation refused; `check` does nothing else.

    Attributes:
        version: of fastunlearn.
        op: name of the operation.
        backend: "reference", "cpu" or "cuda".
        device: of the parameters; of the first where they lie on several GPUs.
        strategy: `Strategy.to_dict()`.
        n: number of parameters that took part; k: the number to select (summed over tensors under
            the scope "tensor"); count: the number selected.
        threshold: smallest selected score (fp32), None for Random-k, for K = 0 and under the scope
            "tensor" (see `tensors`).
        ties, ties_taken: elements whose score equals the threshold, and how many were taken,
            lowest flat index first; summed over tensors under the scope "tensor".
        overflow: weights that left the finite range. unchanged: selected weights whose new value
            equals the old one (in 16-bit types small noise rounds away).
        tensors: one entry for each parameter.
        seed_commitment: see `seed_commitment`; seed: None unless asked for; step: see `perturb_`.
    """

    version: str
    op: str
    backend: str
    device: str
    strategy: dict[str, Any]
    n: int
    k: int
    count: int
    threshold: float | None
    ties: int
    ties_taken: int
    overflow: int
    unchanged: int
    tensors: tuple[TensorReceipt, ...]
    seed_commitment: str
    seed: int | None
    step: int

    @classmethod
    def deferred(
        cls, totals: Callable[[], dict[str, Any]], tensors: Callable[[], tuple[TensorReceipt, ...]]
    ) -> Receipt:
        """Make a receipt whose fields are computed when they are first looked at.

        Few receipts are read, and writing one takes longer than a small call itself.

        Args:
            totals: gives every field but `tensors`.
            tensors: gives that one. Each may be called once for each thread that asks; what it
                raises, it raises again for the next who asks.
        """
        receipt = object.__new__(cls)
        state = vars(receipt)  # a frozen class allows no assignment
        state["_totals"], state["_tensors"] = totals, tensors
        return receipt

    if not TYPE_CHECKING:  # so that mypy still finds a misspelt field

        def __getattr__(self, name: str) -> Any:
            """Compute the fields that `deferred` left for later."""
            state = vars(self)
            if name not in type(self).__dataclass_fields__:
                pass  # who asks for something else is not made to wait for a device
            elif name == "tensors" and (tensors := state.get("_tensors")):
                state["tensors"] = tensors()
                state.pop("_tensors", None)  # only now: another thread may be here too
            elif totals := state.get("_totals"):
                state.update(totals())
                state.pop("_totals", None)
            if name not in state:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            return state[name]

    def check(self) -> Receipt:
        """Wait until the operation has ended, and return the receipt.

        Raises:
            ValueError: the operation met something that it refuses, and has written nothing.
        """
        _ = self.count  # reading a field is what waits and raises
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def to_dict(self) -> dict[str, Any]:
        """Nested dict of JSON types; an infinite threshold becomes the string "inf"."""
        return {key: _plain(value) for key, value in dataclasses.asdict(self).items()}

    def to_json(self, indent: int | None = 2) -> str:
        """Strict JSON text of `to_dict`."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
