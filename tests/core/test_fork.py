"""In a forked child the parent's threads are gone: it computes the same, and does not hang."""

from __future__ import annotations

import pytest
from core.backends import compiled
from core.processes import script

# Large enough that a call uses its threads. numpy makes the memory: torch would start its own pool
# for that, and its next parallel operation in a child would wait for it forever.
SETUP = """
    import hashlib, os, signal, sys, threading, time
    import numpy as np
    import torch
    torch.set_num_threads({threads})
    import fastunlearn as fu

    N = {elements}
    scores = [torch.from_numpy(np.arange(N) * 7 % (N // 3) + 0.5), torch.ones(1000)]

    def run():
        weights = [torch.from_numpy(np.zeros(N, np.float32)), torch.ones(1000)]
        receipt = fu.perturb_(weights, fu.TopK(0.01), scores=scores, seed=1)
        assert receipt.backend == "{backend}", receipt.backend
        fu.perturb_(weights, fu.RandomK(1000, rel_std=0.5), seed=1)
        count = fu.select(weights, fu.TopK(0.3), scores=scores).count
        sums = [hashlib.sha256(w.numpy().tobytes()).hexdigest() for w in weights]
        return sums, count

    def child_of(work):
        \"\"\"Run work in a forked child; its result must be True within 20 seconds.\"\"\"
        child = os.fork()
        if child == 0:
            try:
                os._exit(0 if work() else 1)
            except BaseException as error:
                print(error, file=sys.stderr, flush=True)
                os._exit(2)
        limit = time.monotonic() + 20
        while time.monotonic() < limit:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                assert status == 0, status
                return
            time.sleep(0.005)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise SystemExit("the child hangs")

    first = run()
"""

AGAIN = """
    for _ in range(3):
        child_of(lambda: run() == first)
        assert run() == first
"""

# A child may use another number of threads, and have children.
GENERATIONS = """
    def child():
        torch.set_num_threads({threads} + 1)
        child_of(lambda: run() == first and run() == first)
        return run() == first

    child_of(child)
"""

# torch's own operations in a child need one thread, as after any parallel operation of torch: the
# compiled kernels borrow its threads. Workers of a DataLoader are set so.
TORCH = """
    def child():
        torch.set_num_threads(1)
        model = torch.nn.Linear(500, 400)
        model(torch.ones(64, 500)).sum().backward()
        fu.perturb_(model, fu.TopK(9), seed=0)
        total = float((torch.ones(300_000) * 2).sum())
        return run() == first and total == 600_000.0

    for _ in range(3):
        child_of(child)
"""

# Another thread of the parent is inside a call at the moment of the fork.
BUSY = """
    stop = threading.Event()
    found = []

    def work():
        while not stop.is_set():
            found.append(run() == first)

    worker = threading.Thread(target=work)
    worker.start()
    for _ in range(8):
        child_of(lambda: run() == first)
        time.sleep(0.003)
    stop.set()
    worker.join(30)
    assert not worker.is_alive() and found and all(found)
"""


def forked(text: str, threads: int, backend: str = "cpu") -> None:
    asked, elements = ("reference", 140_000) if backend == "reference" else ("auto", 700_000)
    text = SETUP.format(threads=threads, backend=backend, elements=elements) + text
    script(text.replace("{threads}", str(threads)), threads, 150.0, FASTUNLEARN_BACKEND=asked)


def test_fork_after_use_of_the_reference() -> None:
    forked(AGAIN, 2, "reference")


@compiled
@pytest.mark.parametrize(
    ("text", "threads"),
    [(AGAIN + GENERATIONS, 2), (TORCH, 2), (BUSY, 5)],
    ids=["generations", "torch", "busy"],
)
def test_fork_after_use(text: str, threads: int) -> None:
    forked(text, threads)
