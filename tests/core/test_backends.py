"""The compiled kernels give the bits of the reference: weights, selections, statistics, noise, rms.

Every generated call runs once on the reference and once for each SIMD level of this CPU on copies
of the same memory, gaps included; SHA-256 sums decide.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from core import configurations as axes
from core.backends import LEVELS, OPS, call, check, compiled, simd
from core.configurations import HISTOGRAMS, OPERATIONS, Configuration, configuration
from core.processes import script
from core.worlds import Outcome, World, build, first_difference, run

import fastunlearn as fu
from fastunlearn import _extension, _ops
from fastunlearn.reference import ops as reference
from fastunlearn.reference.ops import Stat

COUNT, GROUP = 2000, 50
MET: Counter[str] = Counter()


def note(made: Configuration, wanted: Outcome) -> None:
    """Count what the data made of a call, for the test below."""
    MET["all"] += 1
    if "stats" not in wanted.results:
        return
    total = wanted.results["stats"].sum(0).tolist()
    MET["NaN refused"] += total[Stat.NAN] > 0
    if made.writes:
        MET["written"] += any(wanted.bumped)
        MET["overflow refused"] += total[Stat.OVERFLOW] > 0 and not made.allow_overflow
        MET["overflow allowed"] += total[Stat.OVERFLOW] > 0 and made.allow_overflow
        MET["some unchanged"] += total[Stat.UNCHANGED] > 0
    if made.topk:
        MET["ties cut"] += 0 < total[Stat.TIES_TAKEN] < total[Stat.TIES]
        MET["all ties"] += 1 < total[Stat.TIES_TAKEN] == total[Stat.TIES]
    elif made.layout == "far":
        MET["far random"] += total[Stat.SELECTED] > 0


@compiled
@pytest.mark.parametrize("first", range(0, COUNT, GROUP))
def test_generated_calls(first: int) -> None:
    for number in range(first, first + GROUP):
        made = configuration(number)
        note(made, check(made, build(made)))


@compiled
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_more_generated_calls() -> None:
    for number in range(COUNT, 10 * COUNT):
        made = configuration(number)
        check(made, build(made))


LEAST = {
    "NaN refused": 60, "written": 600, "overflow refused": 40, "overflow allowed": 40,
    "some unchanged": 300, "ties cut": 300, "all ties": 200, "far random": 25,
}  # fmt: skip


@compiled
def test_generated_calls_meet_every_outcome() -> None:
    if MET["all"] != COUNT:
        pytest.skip("needs all groups of test_generated_calls in this process")
    assert {name: MET[name] for name in LEAST if MET[name] < LEAST[name]} == {}


def test_generated_calls_meet_every_option() -> None:
    made = [configuration(number) for number in range(400)]
    entries = [entry for one in made for entry in one.entries]
    drawn = {
        "operation": ({one.operation for one in made}, axes.OPERATIONS),
        "layout": ({one.layout for one in made}, axes.LAYOUTS),
        "alias": ({one.alias for one in made}, (*axes.ALIASES, None)),
        "score": ({one.score for one in made}, axes.SCORES),
        "nan": ({(one.nan, one.nan_share > 0) for one in made}, range(6)),
        "noise": ({one.noise for one in made}, axes.KINDS),
        "update": ({(one.update, one.allow_overflow) for one in made}, range(10)),
        "threads": ({one.threads for one in made}, range(1, 9)),
        "index": ({one.index for one in made if one.operation == "noise"}, axes.INDEX_ORDERS),
        "strides": ({entry.weight_strides for entry in entries}, axes.STRIDES),
        "score strides": ({entry.score_strides for entry in entries}, (*axes.STRIDES, "expanded")),
        "values": ({entry.score_values for entry in entries}, axes.VALUES),
        "dtypes": ({(entry.weight, entry.score) for entry in entries}, range(16)),
        "scale": ({entry.scale for entry in entries}, set(axes.SCALES)),
        "numel": ({n for n in axes.SIZES if any(n == e.numel for e in entries)}, axes.SIZES),
    }
    assert {name: seen for name, (seen, every) in drawn.items() if len(seen) < len(every)} == {}
    assert configuration(17) == configuration(17) != configuration(18)


# Scales that the Python functions keep away ------------------------------------------------------


@compiled
@pytest.mark.parametrize("scale", [-0.0, math.nan])
@pytest.mark.parametrize("update", ["add", "replace"])
@pytest.mark.parametrize("share", [0.001, 0.9])
def test_odd_scales(scale: float, update: str, share: float) -> None:
    """Weights of -0.0 tell by which way a zero came. A journal covers few, a screen many."""
    n = 300_000
    weights = [torch.full((n,), -0.0), torch.full((n,), -0.0, dtype=torch.bfloat16)]
    generator = torch.Generator().manual_seed(0)
    scores = [torch.rand(n, generator=generator) for _ in weights]
    k = [int(share * 2 * n)]
    wanted = check(*call("topk_perturb_", weights, scores, k, scale, update=update))
    assert wanted.results["stats"][:, Stat.OVERFLOW].sum() == (k[0] if math.isnan(scale) else 0)


def test_std_has_no_sign() -> None:
    for strategy in (fu.TopK(1, std=-0.0), fu.RandomK(1, rel_std=-0.0)):
        assert [str(strategy.std), str(strategy.rel_std)].count("0.0") == 1


# Arguments that do not fit ------------------------------------------------------------------------


def arguments(operation: str, **changed: Any) -> list[Any]:
    """Good arguments of a raw operation on two tensors, but for what is changed."""
    given = {
        "weights": [torch.ones(4), torch.ones(2, 3)],
        "scores": [torch.arange(4.0), torch.ones(3, 2)],
        "scale": torch.ones(2, dtype=torch.float64),
        "rng": torch.tensor([0, 0]),
        "k": [3],
        "per_tensor": False,
        "score": "grad",
        "nan": "error",
        "noise": "normal",
        "update": "add",
        "allow_overflow": False,
        "layout": [0, 4, 4, 4, 6, 6],
        "total": 10,
    }
    assert set(changed) <= set(given)
    given.update(changed)
    names = [argument.name for argument in getattr(OPS, operation).default._schema.arguments]
    return [given[name] for name in names]


TOPK, RANDOMK = ("topk_perturb_", "topk_select"), ("randomk_perturb_", "randomk_select")
ALL, WRITING = TOPK + RANDOMK, (TOPK[0], RANDOMK[0])
MISFITS: list[tuple[tuple[str, ...], dict[str, Any], str]] = [
    (TOPK, {"scores": []}, "scores must be 2 tensors, one for each weight, got 0"),
    (TOPK, {"scores": [torch.ones(4)] * 3}, "scores must be 2 tensors, one for each weight, got 3"),
    (TOPK, {"scores": [torch.ones(4)] * 2}, r"scores\[1\] must have 6 elements, got 4"),
    (ALL, {"k": []}, "k must be 1 counts, got 0"),
    (ALL, {"k": [1, 1]}, "k must be 1 counts, got 2"),
    (ALL, {"k": [1], "per_tensor": True}, "k must be 2 counts, got 1"),
    (ALL, {"k": [11]}, r"k\[0\] must be between 0 and 10, got 11"),
    (ALL, {"k": [-1]}, r"k\[0\] must be between 0 and 10, got -1"),
    (ALL, {"k": [4, 7], "per_tensor": True}, r"k\[1\] must be between 0 and 6, got 7"),
    (WRITING, {"scale": torch.ones(1).double()}, "scale must have 2 elements, .*, got 1"),
    (ALL, {"layout": [0, 4, 4]}, "layout must be 6 numbers, got 3"),
    (ALL, {"layout": [0, 4, 4, 4, 0, 6]}, r"layout of weights\[1\] must be .*, got 4, 0, 6"),
    (ALL, {"layout": [0, 2, 1, 4, 6, 6]}, r"layout of weights\[0\] must be .*, got 0, 2, 1"),
    (RANDOMK, {"total": 9}, r"total must be at least 10, the end of weights\[1\], got 9"),
]


@compiled
@pytest.mark.parametrize(("operations", "changed", "match"), MISFITS)
def test_arguments_that_do_not_fit(
    operations: tuple[str, ...], changed: dict[str, Any], match: str
) -> None:
    for operation in operations:
        getattr(OPS, operation)(*arguments(operation))
        given = arguments(operation, **changed)
        with pytest.raises(ValueError, match=f"{operation}: {match}"):
            getattr(OPS, operation)(*given)
        assert all(bool((weight == 1).all()) for weight in given[0])


@compiled
def test_scores_that_are_not_read_need_not_fit() -> None:
    OPS.topk_select(*arguments("topk_select", score="weight", scores=[]))


@compiled
def test_selecting_leaves_shared_memory_shared() -> None:
    """A lazy clone gets memory of its own when it is written, and not before."""
    weight = torch.ones(8)
    clone = torch._lazy_clone(weight)
    fu.select([clone], fu.TopK(2), scores=[torch.arange(8.0)])
    assert torch._C._is_cow_tensor(clone)
    fu.perturb_([clone], fu.TopK(2), scores=[torch.arange(8.0)])
    assert bool((weight == 1).all()) and not bool((clone == 1).all())


@compiled
@pytest.mark.parametrize("tensor", [torch.ones(4, 4).t(), torch.ones(4, device="meta")])
def test_bare_read_takes_plain_memory_alone(tensor: torch.Tensor) -> None:
    module: Any = _extension.load()
    assert module.stream_read([torch.zeros(4, 4)], 1) == 0
    with pytest.raises(ValueError, match="stream_read: tensors must be contiguous and on the CPU"):
        module.stream_read([tensor], 1)


# The harness: what is off by one bit anywhere is found, and named --------------------------------


def outcome_of(number: int, operation: str) -> tuple[Configuration, World, Outcome]:
    """A call of the operation that selects something, and what the reference does."""
    while True:
        made = configuration(number)
        if made.operation == operation:
            world = build(made)
            found = run(reference, made, world.copy())
            results = list(found.results.values())
            if all(r.numel() for r in results) and (not made.writes or any(found.bumped)):
                return made, world, found
        number += 1


@pytest.mark.parametrize("operation", OPERATIONS)
def test_one_flipped_bit_in_a_result_is_found(operation: str) -> None:
    made, world, wanted = outcome_of(100, operation)
    assert first_difference(wanted, run(reference, made, world.copy())) is None
    for name in wanted.results:
        broken = run(reference, made, world.copy())
        line = broken.results[name].reshape(-1).contiguous()
        line.view(torch.uint8)[-1] ^= 1
        broken.results[name] = line.view(wanted.results[name].shape)
        found = first_difference(wanted, broken)
        assert found is not None and found.startswith("stats" if name == "stats" else name)


@pytest.mark.parametrize("operation", ["topk_perturb_", "topk_select"])
def test_one_flipped_bit_in_memory_is_found(operation: str) -> None:
    made, world, wanted = outcome_of(200, operation)
    for number, buffer in enumerate(world.buffers):
        for place in {0, buffer.nbytes // 2, buffer.nbytes - 1} if buffer.nbytes else ():
            broken = run(reference, made, world.copy())
            broken.world.buffers[number].view(torch.uint8)[place] ^= 1
            assert first_difference(wanted, broken) is not None
    if any(wanted.bumped):
        broken = run(reference, made, world.copy())
        broken.bumped = [False] * len(broken.bumped)
        assert "version counters" in (first_difference(wanted, broken) or "")


# Which backend runs -------------------------------------------------------------------------------


@compiled
def test_every_operation_is_compiled() -> None:
    """Else the other tests would compare the reference with itself."""
    found = {name: _ops.backend_of(name, torch.device("cpu")) for name in _ops.SCHEMAS}
    assert found == dict.fromkeys((*OPERATIONS, *HISTOGRAMS), "cpu")
    assert "portable" in LEVELS


def test_a_usable_extension_serves_the_operations() -> None:
    """So that a build without kernels cannot turn the tests of this file into skipped ones."""
    served = _ops.backend_of("topk_perturb_", torch.device("cpu"))
    assert (served == "cpu") == _extension.available()


@compiled
def test_simd_level_can_be_chosen() -> None:
    module: Any = _extension.load()
    before = module.get_simd()
    for level in LEVELS:
        with simd(level):
            assert module.get_simd() == level
    assert module.get_simd() == before
    for name in {"portable", "avx2", "avx512", "sse9", ""} - set(LEVELS):
        with pytest.raises(ValueError, match="must be"):
            module.set_simd(name)
        assert module.get_simd() == before


@compiled
def test_simd_level_from_the_environment() -> None:
    text = "from fastunlearn import _extension; print(_extension.load().get_simd())"
    assert script(text, 1, FASTUNLEARN_SIMD="portable").strip() == "portable"


@compiled
@pytest.mark.parametrize("x", [9206, 9514, 10_086, 10_506])
def test_rms_rounds_the_quotient_once(x: int) -> None:
    """Quotients that lie 2^-63 beyond the middle of two float64 numbers: the last bit counts."""
    tensor = torch.cat((torch.ones(1000), torch.tensor([x * 2.0**-29])))
    wanted = math.ldexp(math.sqrt((1000 * 2**58 + x * x) / 1001), -29)
    assert [operations.rms([tensor]).item() for operations in (reference, OPS)] == [wanted] * 2


@compiled
def test_random_k_that_meets_no_tensor() -> None:
    """A shard that none of the selected elements lies in stays as it is."""
    for operations in (reference, OPS):
        weight = torch.ones(4)
        scale, rng = torch.ones(1, dtype=torch.float64), torch.tensor([0, 0])
        arguments = (scale, rng, [1], False, "normal", "add", False, [2**40, 4, 4], 2**41)
        stats = operations.randomk_perturb_([weight], *arguments)
        assert bool((weight == 1).all()) and stats.tolist() == [[0, -1, 0, 0, 0, 0, 0]]
