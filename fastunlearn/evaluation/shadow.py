"""Shadow models for U-LiRA: trained, unlearned and scored in a batch that shares the work.

One shadow model serves every example of both pools at once: it is trained on half of the forget
pool and half of the retain pool beside a base set, then unlearns its half of the forget pool. So an
example of the forget pool is unlearned by half of the models and never seen by the others, and an
example of the retain pool is kept by half and never seen by the others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fastunlearn._loop import ProgressHook, forked_rng
from fastunlearn.evaluation.config import FineTuneConfig
from fastunlearn.evaluation.data import Samples, TensorLoader, derive_seed
from fastunlearn.evaluation.results import write_atomically
from fastunlearn.evaluation.training import fit, optimizer_factory, predict, silent
from fastunlearn.metrics import membership_scores

MakeModel = Callable[[int], nn.Module]
"""``make_model(seed)`` gives a freshly initialised classifier."""
Train = Callable[[nn.Module, Samples, int], None]
"""``train(model, samples, seed)`` trains in place."""
Unlearn = Callable[[nn.Module, Samples, Samples, int], nn.Module]
"""``unlearn(model, forget, retain, seed)`` gives the unlearned model; it may change `model`."""


@dataclass(frozen=True)
class ShadowPlan:
    """Which shadow model sees which half of a pool.

    Models come in pairs whose halves complement each other, so every example is a member in exactly
    one of the two. Whoever attacks one of the models leaves out its whole pair; then each side of
    every example has as many shadow models as the other, whether or not it is a member. Leaving
    out the attacked model alone would leave one shadow model less on the true side of each example,
    and that shows: the attack would be biased on models that have nothing to hide. [ours]

    Args:
        n_models: number of shadow models, even, at least 6: an attack on one has
            `n_models` / 2 - 1 of them on each side.
        seed: of the halves and of every training.
    """

    n_models: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.n_models, bool) or self.n_models < 6 or self.n_models % 2:
            raise ValueError(
                f"ShadowPlan: n_models must be an even integer >= 6, got {self.n_models!r}"
            )

    def members(self, pool: str, size: int) -> Tensor:
        """Return which model is trained on which example of a pool.

        Args:
            pool: name of the pool; each has halves of its own.
            size: number of its examples.

        Returns:
            bool, shape (n_models, size); rows 2k and 2k + 1 complement each other.
        """
        rows = []
        for pair in range(self.n_models // 2):
            seed = derive_seed(self.seed, "shadow", pool, str(pair))
            order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
            half = torch.zeros(size, dtype=torch.bool)
            half[order[: size // 2]] = True
            rows += [half, ~half]
        return torch.stack(rows)


@dataclass(frozen=True)
class ShadowData:
    """What the shadow models are trained on.

    All three must come from one distribution, and a pool that is mislabelled must be so throughout:
    the attack compares examples of a pool with others of the same pool.

    Args:
        base: kept by every model.
        forget: the pool whose halves are trained on and unlearned; at least 20 examples.
        retain: the pool whose halves are trained on and kept; at least 20 examples.
    """

    base: Samples
    forget: Samples
    retain: Samples

    def __post_init__(self) -> None:
        for name in ("forget", "retain"):
            if len(getattr(self, name)) < 20:
                raise ValueError(
                    f"ShadowData: {name} must hold at least 20 examples, "
                    f"got {len(getattr(self, name))}"
                )


@dataclass(frozen=True)
class PoolScores:
    """Scaled logits of the examples of one pool in all shadow models.

    Args:
        members: bool, shape (S, N): the model was trained on the example.
        original: float64, shape (S, N): before unlearning, the ceiling of what an attack can find.
        unlearned: float64, shape (S, N): after unlearning.
    """

    members: Tensor
    original: Tensor
    unlearned: Tensor


@dataclass(frozen=True)
class ShadowScores:
    """The scores of both pools: `forget` asks what unlearning left, `retain` what it exposes."""

    forget: PoolScores
    retain: PoolScores


def trainer(config: FineTuneConfig) -> Train:
    """Return a function that trains as the evaluation does: `train(model, samples, seed)`."""

    def train(model: nn.Module, samples: Samples, seed: int) -> None:
        loader = TensorLoader(samples, config.batch_size, seed=derive_seed(seed, "order"))
        fit(model, loader, optimizer_factory(config)(model.parameters()), config.epochs)

    return train


def shadow_scores(
    plan: ShadowPlan,
    data: ShadowData,
    *,
    make_model: MakeModel,
    train: Train,
    unlearn: Unlearn,
    folder: Path | None = None,
    key: str = "",
    progress: ProgressHook = silent,
) -> ShadowScores:
    """Train, unlearn and score all shadow models.

    The same arguments give the same scores on the same machine; torch's generators are put back.

    Args:
        plan: who sees what.
        data: the base set and the two pools.
        make_model: makes an untrained model from a seed.
        train: trains it in place.
        unlearn: removes the forget half from a trained model.
        folder: keeps one file for each finished model there, and goes on with those found; made if
            missing. None keeps nothing.
        key: names model, training and unlearning method with their settings. Files of another
            key, plan or data are refused, as functions cannot be compared.
        progress: called after each model with "shadow model", its place from 1, and their number.

    Returns:
        The scores of both pools.

    Raises:
        ValueError: a file in `folder` is of another plan, data or key, or cannot be read.
    """
    halves = {name: plan.members(name, len(getattr(data, name))) for name in ("forget", "retain")}
    digest = samples_digest([data.base, data.forget, data.retain], [asdict(plan), key])
    rows = []
    for number in range(plan.n_models):
        path = None if folder is None else folder / f"shadow-{number:04d}.safetensors"
        found = None if path is None else read_tensors(path, digest)
        if found is None:
            with forked_rng():
                chosen = {name: rows_of[number] for name, rows_of in halves.items()}
                seed = derive_seed(plan.seed, "shadow", "model", str(number))
                found = _one_model(data, chosen, seed, make_model, train, unlearn)
            if path is not None:
                write_tensors(path, found, digest)
        rows.append(found)
        progress("shadow model", number + 1, plan.n_models)
    pools = {
        name: PoolScores(
            members, *(torch.stack([row[f"{name}_{when}"] for row in rows]) for when in _WHEN)
        )
        for name, members in halves.items()
    }
    return ShadowScores(**pools)


_WHEN = ("original", "unlearned")


def _one_model(
    data: ShadowData,
    chosen: dict[str, Tensor],
    seed: int,
    make_model: MakeModel,
    train: Train,
    unlearn: Unlearn,
) -> dict[str, Tensor]:
    """Return the scores of both pools in one model before and after unlearning, each (N,)."""
    torch.default_generator.manual_seed(seed)
    forget = data.forget.at(torch.nonzero(chosen["forget"]).flatten())
    retain = joined(data.base, data.retain.at(torch.nonzero(chosen["retain"]).flatten()))
    model = make_model(derive_seed(seed, "weights"))
    train(model, joined(retain, forget), derive_seed(seed, "train"))
    scores = {}
    for when in _WHEN:
        if when == "unlearned":
            model = unlearn(model, forget, retain, derive_seed(seed, "unlearn"))
        for name in chosen:
            pool = getattr(data, name)
            logits = predict(model, pool)
            scores[f"{name}_{when}"] = membership_scores(logits, pool.y, "scaled_logit")
    return scores


def joined(first: Samples, second: Samples) -> Samples:
    """Return the samples of both, in order."""
    return Samples(torch.cat([first.x, second.x]), torch.cat([first.y, second.y]))


def samples_digest(samples: list[Samples], settings: object) -> str:
    """Return the SHA-256 of samples (shapes and bits) and of settings that JSON can hold."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for part in samples:
        for tensor in (part.x, part.y):
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def write_tensors(path: Path, tensors: dict[str, Tensor], digest: str) -> None:
    """Write tensors with the digest of what they were computed from, whole or not at all."""
    from safetensors.torch import save

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, save(tensors, metadata={"digest": digest}))


def read_tensors(path: Path, digest: str) -> dict[str, Tensor] | None:
    """Read what :func:`write_tensors` wrote; None where there is no file.

    Raises:
        ValueError: it cannot be read or has another digest.
    """
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            found = (file.metadata() or {}).get("digest")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"resume: {path} must be a safetensors file, got: {error}") from error
    if found != digest:
        raise ValueError(
            f"resume: {path} must be of this data and these settings "
            f"(digest {digest[:12]}), got {str(found)[:12]}"
        )
    return tensors
