"""What surrounds the kernels: streams, waiting, workspace, memory, versions, errors, devices."""

from __future__ import annotations

import pytest
import torch
from core.backends import call
from core.configurations import configuration
from core.worlds import build
from gpu.device import DEVICE, OPS, bits, check, gpu
from torch import Tensor

import fastunlearn as fu

pytestmark = gpu

STRATEGIES = {
    "top_k": fu.TopK(0.02, std=0.1),
    "top_k, relative": fu.TopK(0.02, rel_std=0.1),
    "top_k, by tensor": fu.TopK(0.02, std=0.1, scope="tensor"),
    "top_k, half": fu.TopK(0.5, std=0.1),
    "random_k": fu.RandomK(0.02, std=0.1),
    "random_k, relative": fu.RandomK(0.02, rel_std=0.1),
}
SLEEP_CYCLES = 500_000_000  # a quarter of a second or more on any GPU


def parameters(sizes: tuple[int, ...] = (70_001, 1, 5000), seed: int = 1) -> list[Tensor]:
    """On the host, with gradients."""
    draw = torch.Generator().manual_seed(seed)
    made = []
    for n in sizes:
        made.append(torch.nn.Parameter(torch.randn(n, generator=draw)))
        made[-1].grad = torch.randn(n, generator=draw)
    return made


def there(listed: list[Tensor], device: torch.device = DEVICE) -> list[Tensor]:
    """A copy on a device."""
    made = []
    for one in listed:
        made.append(torch.nn.Parameter(one.detach().to(device, copy=True)))
        made[-1].grad = one.grad.to(device, copy=True)
    return made


def same(some: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.equal(bits(a), bits(b)) for a, b in zip(some, others, strict=True))


# The public calls ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STRATEGIES)
def test_perturb_and_its_receipt(name: str) -> None:
    host, strategy = parameters(), STRATEGIES[name]
    device, before = there(host), there(host)
    wanted = fu.perturb_(host, strategy, seed=3, step=2).to_dict()
    found = fu.perturb_(device, strategy, seed=3, step=2).to_dict()
    assert same(host, device) and not same(before, device)
    assert found["backend"] == "cuda" and found["device"].startswith("cuda")
    for receipt in (wanted, found):
        del receipt["backend"], receipt["device"]
    assert found == wanted


@pytest.mark.parametrize("strategy", [fu.TopK(0.1), fu.TopK(9, scope="tensor"), fu.RandomK(0.1)])
def test_select(strategy: fu.Strategy) -> None:
    host = parameters((70_001, 9, 5000))
    wanted = fu.select(host, strategy, seed=3)
    found = fu.select(there(host), strategy, seed=3)
    assert (found.count, found.counts) == (wanted.count, wanted.counts)
    assert found.threshold == wanted.threshold
    assert torch.equal(found.indices(), wanted.indices())


@pytest.mark.parametrize("name", STRATEGIES)
def test_versions_are_bumped(name: str) -> None:
    listed = there(parameters((70_001, 500, 5000)))
    versions = [one._version for one in listed]
    saved = (listed[0] ** 2).sum()
    fu.perturb_(listed, STRATEGIES[name], seed=1)
    assert all(one._version > v for one, v in zip(listed, versions, strict=True))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.backward()


def test_nan_is_told_by_the_receipt_and_nothing_is_written() -> None:
    listed = there(parameters())
    before = there(listed)
    listed[2].grad[7] = float("nan")
    receipt = fu.perturb_(listed, fu.TopK(0.1), seed=1)
    with pytest.raises(ValueError, match="scores must not be NaN, got 1 NaN"):
        receipt.to_dict()
    assert same(listed, before)


def test_overflow_is_told_by_the_receipt_and_nothing_is_written() -> None:
    listed = there(parameters())
    with torch.no_grad():
        listed[2].fill_(torch.finfo(torch.float32).max)
    before = there(listed)
    receipt = fu.perturb_(listed, fu.TopK(1.0, std=1e38), seed=1)
    with pytest.raises(ValueError, match="must leave .* weights finite"):
        receipt.to_dict()
    assert same(listed, before)
    assert fu.perturb_(listed, fu.TopK(1.0, std=1e38), seed=1, allow_overflow=True).overflow > 0


def test_host_and_device_in_one_call_are_refused() -> None:
    host = parameters()
    mixed = [host[0], *there(host[1:])]
    before = there(mixed, torch.device("cpu"))
    with pytest.raises((TypeError, ValueError)):
        fu.perturb_(mixed, fu.TopK(0.1), seed=1)
    assert same(mixed, before)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_devices_in_one_call() -> None:
    host = parameters((70_001, 9, 5000))
    mixed = [p for i, one in enumerate(host) for p in there([one], torch.device("cuda", i % 2))]
    before = there(mixed, torch.device("cpu"))
    try:
        receipt = fu.perturb_(mixed, fu.TopK(0.1), seed=3)
    except ValueError as error:
        assert "peer" in str(error)
        assert same(mixed, before)
        return
    fu.perturb_(host, fu.TopK(0.1), seed=3)
    assert same(mixed, host) and receipt.count == 7501


# Streams and waiting ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STRATEGIES)
def test_nothing_waits_for_the_device(name: str) -> None:
    """While the device is busy the call returns; torch, too, sees nothing that waits."""
    host = parameters()
    listed, strategy = there(host), STRATEGIES[name]
    fu.perturb_(there(host), strategy, seed=1)  # loads the kernels
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(SLEEP_CYCLES)
        busy = torch.cuda.Event()
        busy.record()
        receipt = fu.perturb_(listed, strategy, seed=3)
        waited = busy.query()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not waited
    fu.perturb_(host, strategy, seed=3)
    assert receipt.count > 0 and same(listed, host)


@pytest.mark.parametrize("operation", ["topk_select", "randomk_select", "noise", "rms"])
def test_no_operation_waits_for_the_device(operation: str) -> None:
    weights, scores = there(parameters((5000,))), there(parameters((5000,), 2))
    index, rng, whole = torch.arange(99, device=DEVICE), torch.tensor([5, 0]), [0, 5000, 5000]
    arguments = {
        "topk_select": (weights, scores, [50], False, "grad", "error", whole),
        "randomk_select": (weights, rng, [50], False, whole, 5000),
        "noise": (index, rng, "normal"),
        "rms": (weights,),
    }[operation]
    getattr(OPS, operation)(*arguments)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(SLEEP_CYCLES)
        busy = torch.cuda.Event()
        busy.record()
        getattr(OPS, operation)(*arguments)
        waited = busy.query()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not waited


def test_work_goes_to_the_current_stream() -> None:
    """Gradients that another stream makes late are seen, and its work afterwards waits for ours."""
    host = parameters()
    listed = there(host)
    late = [one.grad.clone() for one in listed]
    for one in listed:
        one.grad.zero_()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(SLEEP_CYCLES)
        for one, grad in zip(listed, late, strict=True):
            one.grad.copy_(grad)
        receipt = fu.perturb_(listed, fu.TopK(0.02), seed=3)
        copies = [one.detach().clone() for one in listed]
    stream.synchronize()
    fu.perturb_(host, fu.TopK(0.02), seed=3)
    assert same(copies, host) and receipt.count == 1500


# Memory -------------------------------------------------------------------------------------------


def poison(byte: int) -> None:
    """Fill the memory that the allocator hands out next."""
    blocks = [
        torch.full((size,), byte, dtype=torch.uint8, device=DEVICE)
        for size in [512] * 200 + [1 << 16] * 50 + [1 << 20] * 30 + [1 << 25] * 3
    ]
    torch.cuda.synchronize()
    del blocks


@pytest.mark.parametrize("byte", [0xFF, 0x5A, 0x01])
def test_workspace_may_hold_anything(byte: int) -> None:
    for number in range(60):
        made = configuration(number)
        poison(byte)
        check(made, build(made))


@pytest.mark.parametrize("byte", [0xFF, 0x5A])
@pytest.mark.parametrize("operation", ["topk_perturb_", "topk_select"])
def test_workspace_of_a_large_call_may_hold_anything(operation: str, byte: int) -> None:
    (weight,) = parameters((1_000_003,))
    for k in (1000, 10_000, 500_000):
        poison(byte)
        check(*call(operation, [weight.detach()], [weight.grad], [k]))


@pytest.mark.parametrize("k", [0.001, 0.01, 0.1, 0.5])
@pytest.mark.parametrize("strategy", [fu.TopK, fu.RandomK])
def test_extra_memory(strategy: type, k: float) -> None:
    """At most n/4 bytes and 64 MiB, whatever is selected."""
    n = 10**8
    weight = torch.zeros(n, dtype=torch.bfloat16, device=DEVICE)
    score = torch.empty(n, dtype=torch.bfloat16, device=DEVICE).normal_()
    scores = [score] if strategy is fu.TopK else None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    receipt = fu.perturb_([weight], strategy(k, std=1.0), scores=scores, seed=1)
    extra = torch.cuda.max_memory_allocated() - before
    assert receipt.count == round(k * n)
    assert extra <= n // 4 + (64 << 20)


@pytest.mark.parametrize("strategy", [fu.TopK(0.01, std=1.0), fu.RandomK(0.01, std=1.0)])
def test_more_than_2_to_the_31_elements(strategy: fu.Strategy) -> None:
    n = 2**31 + 9
    free, _ = torch.cuda.mem_get_info()
    if free < 6 * n:
        pytest.skip("needs 12 GiB of GPU memory")
    weight = torch.zeros(n, dtype=torch.bfloat16, device=DEVICE)
    scores = None
    if isinstance(strategy, fu.TopK):
        score = torch.zeros(n, dtype=torch.bfloat16, device=DEVICE)
        score[-(n // 50) :] = 1.0  # the first half of these is selected
        scores = [score]
    receipt = fu.perturb_([weight], strategy, scores=scores, seed=5)
    assert receipt.count == round(n * 0.01)
    changed = sum(int(torch.count_nonzero(part)) for part in weight.split(1 << 28))
    assert changed == receipt.count
    if scores is not None:
        first = n - n // 50
        index = torch.tensor([first, first + 1, 2**31 - 1], device=DEVICE)
        z = OPS.noise(index, torch.tensor([5, 0]), "normal").to(torch.bfloat16)
        assert torch.equal(weight[index[:2]], z[:2])
        assert not weight[:first].any() and not weight[first + receipt.count :].any()
