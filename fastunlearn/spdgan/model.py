"""SPDGAN: fit to a forget set, perturb, measure, save."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastunlearn._loop import ProgressHook, forked_rng, progress_hook
from fastunlearn.spdgan.closeness import Closeness, closeness, similarity_index
from fastunlearn.spdgan.config import DEFAULTS, SPDGANConfig
from fastunlearn.spdgan.data import ForgetSet, check_examples, read_forget_set
from fastunlearn.spdgan.networks import Networks
from fastunlearn.spdgan.saved import read_fitted, write_fitted
from fastunlearn.spdgan.state import fit_digest, read_state, write_state
from fastunlearn.spdgan.training import Trainer, begin, frozen

__all__ = ["SPDGAN", "FitReport"]

CHUNK = 256  # examples that go through the networks at a time


@dataclass(frozen=True)
class FitReport:
    """What a fit did.

    Attributes:
        history: One entry for each check: ``step``, ``generator_loss`` and
            ``discriminator_loss`` (means since the check before), ``reference_accuracy``,
            ``psnr``, ``linf``, ``discriminator_auc`` (of up to 512 examples), and ``unmet``, which
            of "shift", "closeness" and "balance" did not hold.
        stopped: "held" where all three held at ``patience`` checks in a row, else "max_steps",
            followed by those that did not hold at the last check.
        steps: Generator steps.
        seconds: Duration, of the last call alone where the fit was resumed.
        closeness: Figures of the whole forget set.
    """

    history: list[dict[str, Any]]
    stopped: str
    steps: int
    seconds: float
    closeness: Closeness

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values."""
        return asdict(self)


class SPDGAN:
    """A generator that moves data slightly off its distribution [paper; design: ours].

    The shifted data G(x) keep their labels. A reference classifier that never saw them does badly
    on them, so that what a model knows of them it has learned from them:

        G(x) = clip(x + epsilon * unit * tanh(g(x)), low, high)
        L_G = adversarial * L_adv + shift * max(0, margin - CE(R(G(x) + noise * unit * n), y))
              + closeness * max(0, ||G(x) - x||_2 / unit - radius)

    with means over the batch and over the references R, n standard normal, L_adv =
    softplus(-D(G(x))), and a discriminator D that minimises softplus(-D(x)) + softplus(D(G(x))).
    Images have convolutional networks that take any size from 1x1 and any number of channels,
    vectors have perceptrons.

    Everything random comes from ``seed``; torch's global generators are left alone. The same seed,
    data and references give the same bits on the same machine with the same number of threads
    (on CUDA: where its kernels are deterministic).

    Args:
        config: The settings.
        seed: In [0, 2^64).

    Raises:
        TypeError, ValueError: The config is none, or the seed out of range.

    Example:
        >>> x, y = torch.rand(8, 1, 8, 8), torch.arange(8) % 2
        >>> reference = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
        >>> gan = SPDGAN(SPDGANConfig(max_steps=2, width=4))
        >>> gan.fit([(x, y)], reference).stopped[:9]
        'max_steps'
        >>> bool((gan.perturb(x) - x).abs().max() <= 0.3)
        True

    Source: Zuo, Tang, Li, Datta, "Machine Unlearning Through Fine-Grained Model Parameters
    Perturbation", IEEE TKDE 37(4), 2025; the loss of the two networks: Goodfellow et al.,
    "Generative Adversarial Nets", NeurIPS 2014.
    """

    def __init__(self, config: SPDGANConfig = DEFAULTS, *, seed: int = 0) -> None:
        if not isinstance(config, SPDGANConfig):
            got = type(config).__name__
            raise TypeError(f"SPDGAN: config must be an SPDGANConfig, got {got}")
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise TypeError(f"SPDGAN: seed must be an int, got {type(seed).__name__}")
        if not 0 <= seed < 2**64:
            raise ValueError(f"SPDGAN: seed must be in [0, 2^64), got {seed}")
        self.config, self.seed = config, seed
        self._networks: Networks | None = None

    def fit(
        self,
        forget_loader: Iterable[Any],
        reference_model: nn.Module | Sequence[nn.Module],
        *,
        progress: bool | ProgressHook = False,
        state: str | Path | None = None,
    ) -> FitReport:
        """Train on the forget set until shift, closeness and balance hold, or for ``max_steps``.

        The forget set is read once, checked and held in memory; its order is without effect. The
        three quantities are checked every ``check_every`` steps:

        - shift: the references' mean accuracy on G(x) is at most ``target_accuracy``;
        - closeness: mean PSNR at least ``min_psnr``, mean L-inf at most ``epsilon``;
        - balance: the discriminator's AUC is in [1 - max_auc, max_auc].

        A failed or interrupted call leaves the SPDGAN as it was.

        Args:
            forget_loader: Yields pairs (x, y): floating x of shape (B, C, H, W) or (B, F) within
                [low, high], integer labels y of shape (B,). Its first batch gives the batch size.
            reference_model: One or several classifiers trained without the forget set, on one
                device, which gives logits (B, classes). Used in evaluation mode and left
                bit-unchanged, flags, buffers and ``.grad`` included. Several make G(x) hard for
                any model of their kind rather than for one.
            progress: True for a progress bar on stderr, or a hook ``(phase, done, total)``, called
                after each step.
            state: File to resume from where it exists, written at every check and removed at the
                end. A resumed fit gives the bits of an uninterrupted one.

        Returns:
            What was done.

        Raises:
            TypeError, ValueError: A batch, a reference's output or the state file is not as above.
            FloatingPointError: The training diverged.
            ImportError: torchmetrics is missing (images only).
        """
        begun = time.perf_counter()
        references = _checked_references(reference_model)
        with forked_rng(), frozen(references), progress_hook(progress) as hook:
            # not torch.manual_seed, which would also reseed the generators of every GPU
            torch.default_generator.manual_seed(self.seed)  # a loader may draw from it
            data = read_forget_set(forget_loader, self.config)
            if len(data.shape) == 3:
                similarity_index()  # missing, it is better missed now than after the training
            device = _device(references)
            _check_outputs(references, data, device)
            training = begin(data, self.config, device, self.seed)
            path = None if state is None else Path(state)
            digest = "" if path is None else fit_digest(self.config, self.seed, data, references)
            if path is not None and path.exists():
                read_state(path, training, digest)
            trainer = Trainer(training, references, self.seed)
            for _ in trainer.run(data, hook):
                if path is not None:
                    write_state(path, training, digest)
            figures = _figures(training.networks, data.x)
        if path is not None:
            path.unlink(missing_ok=True)
        self._networks = training.networks.requires_grad_(False)
        seconds = time.perf_counter() - begun
        return FitReport(training.history, training.stopped, training.step, seconds, figures)

    def perturb(self, x: Tensor) -> Tensor:
        """Return G(x).

        Args:
            x: Shape (N, *shape of the fit), floating, any device, finite and within [low, high];
                not mutated.

        Returns:
            Shape, dtype and device of ``x``, without gradient. No value is further from that of x
            than epsilon units.

        Raises:
            TypeError, ValueError: ``x`` is not as above.
            RuntimeError: Nothing is fitted.
        """
        return self._fitted("perturb", x).perturb(x.detach(), CHUNK)

    def closeness(self, x: Tensor) -> Closeness:
        """Return how close G(x) is to ``x``, and how well the discriminator tells them apart.

        Args:
            x: As for `perturb`, N >= 1.

        Returns:
            The figures; lengths are in units (see `SPDGANConfig`).

        Raises:
            TypeError, ValueError, RuntimeError: As `perturb`; also where ``x`` is empty.
            ImportError: torchmetrics is missing (images only).
        """
        return _figures(self._fitted("closeness", x), x.detach())

    def save(self, folder: str | Path) -> None:
        """Write config.json and the weights to a folder, made if missing, whole or not at all.

        Raises:
            RuntimeError: Nothing is fitted.
        """
        write_fitted(Path(folder), self._required("save"), self.config, self.seed)

    @classmethod
    def load(cls, folder: str | Path) -> SPDGAN:
        """Read what `save` wrote, onto the CPU.

        Raises:
            ValueError: A file is not as `save` writes it; the message names file and place.
            OSError: A file cannot be read.
        """
        networks, config, seed = read_fitted(Path(folder))
        gan = cls(config, seed=seed)
        gan._networks = networks.requires_grad_(False)
        return gan

    def _required(self, op: str) -> Networks:
        if self._networks is None:
            raise RuntimeError(f"SPDGAN.{op}: fit must be called first, got an unfitted SPDGAN")
        return self._networks

    def _fitted(self, op: str, x: Tensor) -> Networks:
        networks = self._required(op)
        check_examples(f"SPDGAN.{op}", x, self.config)
        if tuple(x.shape[1:]) != networks.shape:
            wanted = ", ".join(map(str, ("N", *networks.shape)))
            got = tuple(x.shape)
            raise ValueError(f"SPDGAN.{op}: x must have the shape ({wanted}) of the fit, got {got}")
        return networks


def _figures(networks: Networks, x: Tensor) -> Closeness:
    shifted = networks.perturb(x, CHUNK)
    figures = closeness(x, shifted, value_range=networks.generator.unit.to(x.device))
    return replace(figures, discriminator_auc=networks.separation(x, shifted, CHUNK))


def _checked_references(given: Any) -> list[nn.Module]:
    references = [given] if isinstance(given, nn.Module) else given
    if not isinstance(references, Sequence) or not references:
        got = "none" if isinstance(references, Sequence) else type(references).__name__
        raise TypeError(
            f"SPDGAN.fit: reference_model must be a torch.nn.Module or several, got {got}"
        )
    for reference in references:
        if not isinstance(reference, nn.Module):
            got = type(reference).__name__
            raise TypeError(f"SPDGAN.fit: reference_model must hold torch.nn.Modules, got {got}")
    return list(references)


def _device(references: list[nn.Module]) -> torch.device:
    found = {tensor.device for model in references for tensor in model.parameters()}
    if len(found) > 1:
        got = ", ".join(sorted(map(str, found)))
        raise ValueError(f"SPDGAN.fit: reference_model must be on one device, got {got}")
    device = found.pop() if found else torch.device("cpu")
    if device.type == "meta":
        raise ValueError("SPDGAN.fit: reference_model must have weights, got meta tensors")
    return device


def _check_outputs(references: list[nn.Module], data: ForgetSet, device: torch.device) -> None:
    """Raise unless every reference gives logits of all labels for a first batch."""
    x = data.x[: data.batch_size].to(device)
    for reference in references:
        with torch.no_grad():
            out = reference(x)
        if not isinstance(out, Tensor) or not out.is_floating_point() or out.ndim != 2:
            got = f"{out.dtype} {tuple(out.shape)}" if isinstance(out, Tensor) else type(out)
            raise ValueError(
                f"SPDGAN.fit: reference_model must give floating logits (B, classes), got {got}"
            )
        least, greatest = int(data.y.min()), int(data.y.max())
        if least < 0 or greatest >= out.shape[1]:
            label = least if least < 0 else greatest
            raise ValueError(f"SPDGAN.fit: labels must be in [0, {out.shape[1]}), got {label}")
