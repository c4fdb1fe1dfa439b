"""Perturb a checkpoint on disk, and verify what was done."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from fastunlearn.checkpoint.files import Checkpoint
from fastunlearn.checkpoint.output import write_file
from fastunlearn.checkpoint.patch_file import PatchWriter
from fastunlearn.checkpoint.perturb import DEFAULT_MEMORY, Request, transform
from fastunlearn.checkpoint.receipt import CheckpointReceipt
from fastunlearn.checkpoint.rewrite import Copy, Sink, Sinks
from fastunlearn.checkpoint.stream import digest_of
from fastunlearn.receipt import seed_commitment
from fastunlearn.strategies import Strategy, TopK, strategy_of
from fastunlearn.targets import MissingGrad

Place = str | Path


def perturb(
    source: Place,
    out: Place,
    strategy: Strategy,
    *,
    scores: Place | None = None,
    seed: int | None = None,
    step: int = 0,
    allow_overflow: bool = False,
    missing_scores: MissingGrad = "error",
    overwrite: bool = False,
    receipt: Place | None = None,
    patch: Place | None = None,
    memory: int = DEFAULT_MEMORY,
) -> CheckpointReceipt:
    """Perturb a checkpoint without its model.

    What is written is what `fastunlearn.perturb_` would leave of the floating-point tensors, taken
    in the order of their names; however they are spread over files. Other tensors stay.

    The result comes to its place whole or not at all, also where the process is killed: it is
    written beside it, and then renamed.

    Args:
        source: a safetensors file, or a folder of them with an index.
        out: where the result goes: a file, or a folder, as the source is.
        strategy: `TopK` or `RandomK`. Its patterns choose among the names.
        scores: a checkpoint with a tensor of the same name and shape for each that takes part;
            None for `RandomK`, and for `TopK(score="weight")`. They are used as they are.
        seed, step, allow_overflow: see `fastunlearn.perturb_`.
        missing_scores: "error", or "skip" to leave tensors alone that the scores lack (buffers,
            say).
        overwrite: whether `out` may be there already. It may be the source itself.
        receipt: where the receipt goes; None for `out` with ".receipt.json" at the end of its name.
        patch: where a patch from the source to the result goes, see `make_patch`; None for none.
        memory: bytes that buffers may take.

    Returns:
        The receipt, as written.

    Raises:
        FormatError: a file is not what it must be.
        OSError: a file cannot be read or written.
        TypeError, ValueError: as for `fastunlearn.perturb_`.
    """
    request = Request.make(strategy, seed, step, allow_overflow, missing_scores, memory)
    out = Path(out)
    receipt = out.with_name(f"{out.name}.receipt.json") if receipt is None else Path(receipt)
    with ExitStack() as stack:
        checkpoint, ranked = _open(stack, source, scores, strategy)
        copy = stack.enter_context(Copy(checkpoint, out, overwrite))
        sinks: list[Sink] = [copy]
        if patch is not None:
            writer = stack.enter_context(PatchWriter(Path(patch), checkpoint, overwrite))
            sinks.append(writer)
        found = transform(checkpoint, ranked, request, Sinks(sinks))
        if patch is not None:
            writer.commit(found.source, found.result)
        write_file(receipt, found.to_json().encode())
        copy.commit()
    return found


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes:
        different: tensors that are not as the receipt says; all is well where there is none.
        recomputed: whether the result was computed again, not its digest compared alone.
    """

    different: tuple[str, ...]
    recomputed: bool


def verify(
    out: Place,
    receipt: Place | CheckpointReceipt,
    *,
    source: Place | None = None,
    scores: Place | None = None,
    seed: int | None = None,
    memory: int = DEFAULT_MEMORY,
) -> Verification:
    """Check that a checkpoint is what a receipt says.

    Args:
        out: the checkpoint.
        receipt: of `perturb`.
        source, scores, seed: what it was made from; with these it is computed again, and every bit
            compared. Without them the digests of the receipt are all there is to compare with.
        memory: bytes that buffers may take.

    Raises:
        ValueError: source, scores or seed are not those of the receipt.
        FormatError, OSError: as for `perturb`.
    """
    told = receipt if isinstance(receipt, CheckpointReceipt) else CheckpointReceipt.read(receipt)
    if source is not None:
        expected = _again(told, source, scores, seed, memory).tensors
    elif scores is not None or seed is not None:
        raise ValueError("verify: source must be given with scores or seed, got None")
    else:
        expected = told.tensors
    with Checkpoint(out) as checkpoint:
        found = digest_of(checkpoint, memory // 4).tensors
    names = sorted(set(expected) | set(found))
    different = tuple(name for name in names if expected.get(name) != found.get(name))
    return Verification(different, recomputed=source is not None)


def _again(
    told: CheckpointReceipt, source: Place, scores: Place | None, seed: int | None, memory: int
) -> CheckpointReceipt:
    """Compute what a receipt tells of once more."""
    if seed is None or seed_commitment(seed) != told.perturbation["seed_commitment"]:
        raise ValueError("verify: seed must be the one that the receipt is bound to, got another")
    strategy = strategy_of(told.perturbation["strategy"])
    missing: MissingGrad = "skip" if told.missing_scores == "skip" else "error"
    step = told.perturbation["step"]
    request = Request.make(strategy, seed, step, told.allow_overflow, missing, memory)
    with ExitStack() as stack:
        opened = _open(stack, source, scores, strategy)
        found = transform(*opened, request, Sinks([]))
    for role in ("source", "scores"):
        if getattr(found, role) != getattr(told, role):
            raise ValueError(f"verify: {role} must have the digest in the receipt, got another")
    return found


def _open(
    stack: ExitStack, source: Place, scores: Place | None, strategy: Strategy
) -> tuple[Checkpoint, Checkpoint | None]:
    ranked = scores is None and isinstance(strategy, TopK)  # by the weights themselves
    again = ranked or strategy.rel_std is not None
    checkpoint = stack.enter_context(Checkpoint(source, again=again))
    if scores is None:
        return checkpoint, None
    return checkpoint, stack.enter_context(Checkpoint(scores, again=True))
