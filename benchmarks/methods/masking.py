"""Time SalUn's selection of weights by its authors' idiom and by `fastunlearn.select`.

python -m benchmarks.methods.masking
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

import fastunlearn as fu
from fastunlearn.bench.cases import Case, Probe
from fastunlearn.bench.measure import Timing, measure
from fastunlearn.bench.patterns import Data, make
from fastunlearn.bench.peers import TOP_K, Peer

MODEL = "ResNet-18"
FRACTIONS = (0.1, 0.5)  # 0.5 is SalUn's own
IDIOM, OURS = "SalUn: mask by ranks", "fastunlearn.select, masks"


def rank_masks(parameters: Sequence[Tensor], fraction: float) -> list[Tensor]:
    """Mark the greatest |gradient| by the rank of every element, as SalUn's users do.

    Two full sorts of all elements. Equal elements get ranks in no particular order.

    Returns:
        For each parameter an int64 mask of its shape, 1 where selected.

    Source: Fan et al., "SalUn", ICLR 2024, as the authors' code does it.
    """
    magnitudes = torch.cat([_gradient(p).abs().flatten() for p in parameters])
    ranks = torch.argsort(torch.argsort(-magnitudes))
    chosen = int(magnitudes.numel() * fraction)
    split = ranks.split([p.numel() for p in parameters])
    masks = []
    for own, parameter in zip(split, parameters, strict=True):
        mask = torch.zeros_like(own)
        mask[own < chosen] = 1
        masks.append(mask.view_as(parameter))
    return masks


def selected_masks(parameters: Sequence[Tensor], fraction: float) -> list[Tensor]:
    """Mark the greatest |gradient| by `fastunlearn.select`: bool masks, one for each parameter."""
    return list(fu.select(list(parameters), fu.TopK(fraction)).masks().values())


def timings(data: Data, fraction: float, seconds: float) -> dict[str, Timing]:
    """Time both in one interleaved run, by name; about `seconds` for each."""
    with _as_methods():
        probes = [Probe(Case(data, k=fraction), name) for name in (OURS, IDIOM)]
        return {probe.method: t for probe, t in measure(probes, seconds=seconds).items()}


def differing(data: Data, fraction: float) -> int:
    """Count the elements on which both disagree, where no two magnitudes are equal.

    The gradients are the whole numbers from 1 in random order, exact in fp32 up to 2^24.

    Raises:
        ValueError: there are more elements than that.
    """
    if data.numel > 1 << 24:
        raise ValueError(f"differing: data must have at most 2^24 elements, got {data.numel}")
    parameters = make(data)
    order = torch.randperm(data.numel, generator=torch.Generator().manual_seed(0)) + 1
    values = order.float().split([p.numel() for p in parameters])
    for parameter, own in zip(parameters, values, strict=True):
        parameter.grad = own.view_as(parameter)
    pairs = zip(rank_masks(parameters, fraction), selected_masks(parameters, fraction), strict=True)
    return sum(int((theirs.bool() != ours).sum()) for theirs, ours in pairs)


@contextmanager
def _as_methods() -> Iterator[None]:
    """Let the bench engine know both for a while, as methods that perturb nothing."""
    ways = {IDIOM: rank_masks, OURS: selected_masks}
    TOP_K.update({name: _as_peer(way) for name, way in ways.items()})
    try:
        yield
    finally:
        for name in ways:
            del TOP_K[name]


def _as_peer(way: Callable[[Sequence[Tensor], float], list[Tensor]]) -> Peer:
    def run(parameters: Sequence[Tensor], k: float, std: float) -> None:
        way(parameters, k)

    return run


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def main() -> None:
    """Print both times, their ratio, and whether the masks are the same."""
    data = Data(MODEL)
    print(f"{MODEL}, {data.numel:,} elements, fp32, {torch.get_num_threads()} threads; median ms")
    for fraction in FRACTIONS:
        found = timings(data, fraction, seconds=5.0)
        idiom, ours = found[IDIOM], found[OURS]
        print(
            f"K = {fraction:.0%}: idiom {idiom.ms:.0f} [{idiom.low_ms:.0f}, {idiom.high_ms:.0f}], "
            f"select + masks {ours.ms:.1f} [{ours.low_ms:.1f}, {ours.high_ms:.1f}], "
            f"{idiom.ms / ours.ms:.0f} times faster; "
            f"elements that differ without ties: {differing(data, fraction)}"
        )


if __name__ == "__main__":
    main()
