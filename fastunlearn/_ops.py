"""Schemas, fake kernels and registration of the operations: `torch.ops.fastunlearn.*`.

The schemas live here, so the operations exist without a compiled library. The reference kernels are
registered for every backend (CompositeExplicitAutograd); a compiled library registers its own under
CPU or CUDA, and the dispatcher then prefers those.

Arguments that several operations share:
    weights: floating tensors of any strides; the `_` operations write them in place.
    scores: stored scores, shaped like the weights, any floating dtype.
    scale: float64, shape (number of tensors,): standard deviation of the noise in each tensor.
    rng: int64, shape (2,): seed (64 bits) and step (32 bits).
    k: one count, or one for each tensor where `per_tensor`.
    score, nan, noise: names, see `fastunlearn.strategies`.
    update: the strategy's `mode`, with "_stochastic" after it for that `rounding`; torch's
        functionalisation keeps the word `mode` for itself.
    layout: base, row_len and row_stride of each tensor in turn (`reference.memory.Layout`).
    total: size of the flat index space, shards on other processes included.
    row: of the result, to which each tensor is counted.
    shift, bins: width of a bin of a histogram in bits, and number of bins.

The histograms count what makes up a selection that is spread over several processes. They return
int64 of shape (rows, bins), `key_histogram` with one column more: NaN scores met under nan="error".
They have no CUDA kernels yet; the reference serves there.

Every other operation but `noise` and `rms` returns statistics, int64 of shape (number of tensors,
len(Stat)). A call that meets a refused NaN or overflow writes nothing and says so there, so that no
backend has to wait for the device before it returns. The CUDA backend leaves statistics and root
mean squares on the device of the first tensor, the others on the CPU. It takes `scale` and `rng`
from the CPU, and then copies their values, or from the device, and then reads them when it runs: a
captured graph can be replayed with another seed. A `scale` on the device that is not finite makes
the call a no-op too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastunlearn import _extension
from fastunlearn.reference import ops as reference
from fastunlearn.reference.ops import Stat

SCHEMAS = {
    "topk_perturb_": (
        "(Tensor(a!)[] weights, Tensor[] scores, Tensor scale, Tensor rng, int[] k,"
        " bool per_tensor, str score, str nan, str noise, str update, bool allow_overflow,"
        " int[] layout) -> Tensor"
    ),
    "topk_select": (
        "(Tensor[] weights, Tensor[] scores, int[] k, bool per_tensor, str score, str nan,"
        " int[] layout) -> (Tensor[], Tensor)"
    ),
    "randomk_perturb_": (
        "(Tensor(a!)[] weights, Tensor scale, Tensor rng, int[] k, bool per_tensor, str noise,"
        " str update, bool allow_overflow, int[] layout, int total) -> Tensor"
    ),
    "randomk_select": (
        "(Tensor[] weights, Tensor rng, int[] k, bool per_tensor, int[] layout, int total)"
        " -> (Tensor[], Tensor)"
    ),
    "key_histogram": (
        "(Tensor[] weights, Tensor[] scores, str score, str nan, int[] row, int[] low, int shift,"
        " int bins) -> Tensor"
    ),
    "tie_histogram": (
        "(Tensor[] weights, Tensor[] scores, str score, str nan, int[] row, int[] key, int[] first,"
        " int shift, int bins, int[] layout) -> Tensor"
    ),
    "noise": "(Tensor index, Tensor rng, str kind) -> Tensor",
    "rms": "(Tensor[] tensors) -> Tensor",
}


def _home(tensors: Sequence[Tensor]) -> torch.device:
    """Where the results of an operation lie that are not shaped like its tensors."""
    if tensors and backend_of("topk_perturb_", tensors[0].device) == "cuda":
        return tensors[0].device
    return torch.device("cpu")


def _fake_stats(weights: Sequence[Tensor], *_: Any) -> Tensor:
    return torch.empty(len(weights), len(Stat), dtype=torch.int64, device=_home(weights))


def _fake_select(weights: Sequence[Tensor], *_: Any) -> tuple[list[Tensor], Tensor]:
    packed = [w.new_empty((w.numel() + 7) // 8, dtype=torch.uint8) for w in weights]
    return packed, _fake_stats(weights)


def _fake_rms(tensors: Sequence[Tensor]) -> Tensor:
    return torch.empty(len(tensors), dtype=torch.float64, device=_home(tensors))


_FAKES: dict[str, Callable[..., Any]] = {
    "topk_perturb_": _fake_stats,
    "topk_select": _fake_select,
    "randomk_perturb_": _fake_stats,
    "randomk_select": _fake_select,
    "key_histogram": lambda *a: torch.empty(len(a[5]), a[7] + 1, dtype=torch.int64),
    "tie_histogram": lambda *a: torch.empty(len(a[5]), a[8], dtype=torch.int64),
    "noise": lambda index, rng, kind: index.new_empty(index.shape, dtype=torch.float32),
    "rms": _fake_rms,
}

_library = torch.library.Library("fastunlearn", "DEF")
for _name, _schema in SCHEMAS.items():
    _library.define(_name + _schema)
    _library.impl(_name, getattr(reference, _name), "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastunlearn::{_name}", _FAKES[_name], lib=_library)

_extension.load()  # registers the compiled kernels, where there are some

ops = torch.ops.fastunlearn


def backend_of(name: str, device: torch.device) -> str:
    """Name of the backend that serves an operation on a device: "reference", "cpu" or "cuda"."""
    key = device.type.upper()
    compiled = torch._C._dispatch_has_kernel_for_dispatch_key(f"fastunlearn::{name}", key)
    return device.type if compiled else "reference"
