"""What shards may be given, and what is refused; one process."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import fastunlearn as fu
from fastunlearn import distributed as fud
from fastunlearn.distributed.shards import pieces
from fastunlearn.reference.memory import Layout


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_the_views_of_a_box_have_its_flat_indices() -> None:
    draw, views = random.Random(0), 0
    for _ in range(500):
        shape = [draw.randint(1, 5) for _ in range(draw.randint(1, 4))]
        low = [draw.choice([0, draw.randrange(size)]) for size in shape]
        high = [draw.choice([n, draw.randint(at + 1, n)]) for at, n in zip(low, shape, strict=True)]
        full = torch.arange(math.prod(shape)).view(shape)
        box = full[tuple(map(slice, low, high))]
        met = 0
        for view, score, layout in pieces(box, box, shape, low):
            own = Layout(*layout, view.numel()).to_global(torch.arange(view.numel()))
            assert torch.equal(own, view.flatten()) and torch.equal(score, view)
            met, views = met + view.numel(), views + 1
        assert met == box.numel()
    assert views > 510  # some boxes need several


def shard(**changes: Any) -> fud.Shard:
    usual = {"shape": (4, 3), "offset": (0, 0), "grad": torch.ones(4, 3)}
    return fud.Shard(torch.zeros(4, 3), **{**usual, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"offset": (1, 0)}, "must lie in shape"),
        ({"offset": (-1, 0)}, "must lie in shape"),
        ({"shape": (4,)}, "as many dimensions"),
    ],
)
def test_a_box_outside_is_refused(changes: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        shard(**changes)


@pytest.mark.parametrize(
    ("target", "strategy", "error", "words"),
    [
        (lambda: [shard(shape=(5, 3))], fu.TopK(2), ValueError, "own every element once, got 12"),
        (lambda: [shard(owned=False)], fu.TopK(2), ValueError, "own every element once, got 0"),
        (lambda: [shard(grad=torch.ones(3, 4))], fu.TopK(2), ValueError, "must have shape"),
        (lambda: [shard(grad=None)], fu.TopK(2), ValueError, "must have a .grad"),
        (lambda: [shard()], fu.TopK(2, include=("a",)), ValueError, "must leave at least one"),
        (lambda: [shard()], "top", TypeError, "strategy must be TopK or RandomK"),
        (lambda: [torch.zeros(3, dtype=torch.int64)], fu.RandomK(1), TypeError, "floating-point"),
        (lambda: [torch.zeros(1).expand(4)], fu.RandomK(1), ValueError, "distinct memory"),
        (lambda: [3], fu.RandomK(1), TypeError, "target must hold tensors"),
        (lambda: [shard()], fu.TopK(13), ValueError, "k must be at most 12"),
        (
            lambda: [("a", shard()), ("a", shard())],
            fu.TopK(2), ValueError, "names must be unique",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(
    alone: None, target: Any, strategy: Any, error: Any, words: str
) -> None:
    given = target()
    with pytest.raises(error, match=words):
        fud.perturb_(given, strategy, seed=0)


def test_tied_weights_count_once(alone: None) -> None:
    weight = torch.zeros(6)
    receipt = fud.perturb_([weight, weight], fu.RandomK(6, std=1.0), seed=0)
    assert (receipt.n, receipt.count) == (6, 6)


def test_collectives_are_few_and_small(alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    for name in ("all_gather", "all_reduce"):
        real = getattr(dist, name)

        def counted(*args: Any, real: Any = real, **options: Any) -> Any:
            tensor = args[1] if isinstance(args[0], list) else args[0]
            sent.append(tensor.numel() * tensor.element_size())
            return real(*args, **options)

        monkeypatch.setattr(dist, name, counted)
    untied = shard(grad=torch.arange(12.0).view(4, 3))
    fud.perturb_([untied], fu.TopK(2), seed=0)
    assert len(sent) == 4 and max(sent) < 1 << 20
    sent.clear()
    fud.perturb_([shard()], fu.TopK(2), seed=0)  # all tied
    assert len(sent) == 7
    sent.clear()
    fud.perturb_([shard()], fu.RandomK(2), seed=0)
    assert len(sent) == 2
    for strategy, count in ((fu.TopK(2), 6), (fu.RandomK(2), 1)):
        sent.clear()
        fud.select([shard()], strategy, seed=0)
        assert len(sent) == count


def test_select_names_itself_and_takes_nothing(alone: None) -> None:
    with pytest.raises(ValueError, match="^select: shards must own"):
        fud.select([shard(owned=False)], fu.TopK(2))
    with pytest.raises(ValueError, match="^select: scores must not be NaN"):
        fud.select([shard(grad=torch.full((4, 3), float("nan")))], fu.TopK(2))
    for strategy in (fu.TopK(0), fu.RandomK(0)):
        found = fud.select([shard()], strategy, seed=0)
        assert (found.count, found.counts, found.threshold) == (0, {"0": 0}, None)
        assert not found.masks()["0"].any() and found.indices().numel() == 0


@pytest.mark.parametrize(
    ("dtype", "weight", "std"),
    [
        (torch.float16, 65504.0, 9.0),  # a large weight, little noise
        (torch.float16, 0.0, 1e6),
        (torch.bfloat16, -3.38e38, 1e36),
        (torch.float32, 3.4e38, 1e38),
    ],
)
def test_a_weight_that_would_overflow_is_refused(
    alone: None, dtype: torch.dtype, weight: float, std: float
) -> None:
    tensor = torch.full((4, 3), weight, dtype=dtype)
    before = tensor.clone()
    given = [fud.Shard(tensor, (4, 3), (0, 0), torch.ones(4, 3))]
    with pytest.raises(ValueError, match="that overflow on all ranks"):
        fud.perturb_(given, fu.TopK(12, std=std), seed=0)
    assert torch.equal(tensor, before)
    receipt = fud.perturb_(given, fu.TopK(12, std=std), seed=0, allow_overflow=True)
    assert receipt.overflow > 0 and tensor.isinf().any()


def test_a_shard_of_nothing_does_not_overflow(alone: None) -> None:
    empty = fud.Shard(torch.zeros(0, 3), (0, 3), (0, 0), torch.zeros(0, 3))
    assert fud.perturb_([empty], fu.TopK(0), seed=0).n == 0
