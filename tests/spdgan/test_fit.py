"""Fitting: the shift works, nothing else is touched, stops and resumptions are exact."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastunlearn.spdgan import SPDGAN, SPDGANConfig
from fastunlearn.spdgan.training import unmet

SHORT = SPDGANConfig(max_steps=6, check_every=2, width=8)


def bits(gan: SPDGAN) -> dict[str, Tensor]:
    assert gan._networks is not None
    return gan._networks.state_dict()


def same(a: SPDGAN, b: SPDGAN) -> bool:
    x, y = bits(a), bits(b)
    return x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)


def test_the_reference_falls_and_the_shift_stays_small(world: Any) -> None:
    gan = SPDGAN(SPDGANConfig(max_steps=60, check_every=20))
    before = copy.deepcopy(world.x)
    report = gan.fit(world.loader(), world.reference)
    shifted = gan.perturb(world.x)
    reference = copy.deepcopy(world.reference).eval()
    plain, moved = (
        float((reference(x).argmax(1) == world.y).float().mean()) for x in (world.x, shifted)
    )
    assert plain > 0.9 and moved < 0.6
    # All 128 examples are in the last check, so it is the same figure.
    assert report.history[-1]["reference_accuracy"] == moved
    assert torch.equal(world.x, before)
    assert (shifted.double() - world.x.double()).abs().max() <= 0.3
    assert shifted.min() >= 0 and shifted.max() <= 1
    # Means over the same examples in another order.
    assert report.closeness.to_dict() == pytest.approx(gan.closeness(world.x).to_dict())
    assert report.closeness.linf_max <= 0.3 and report.closeness.ssim < 1
    assert report.steps == 60 and [e["step"] for e in report.history] == [20, 40, 60]


def test_one_step_by_hand(world: Any) -> None:
    """The generator moves by Adam along the gradient of L_G, after the discriminator's step."""
    from torch.nn.functional import cross_entropy, softplus

    from fastunlearn.spdgan.data import read_forget_set
    from fastunlearn.spdgan.training import Trainer, begin

    config = SPDGANConfig(
        max_steps=1,
        width=4,
        adversarial=0.7,
        shift=2.0,
        closeness=5.0,
        margin=2.0,
        noise=0.3,
        radius=0.01,
    )
    reference = copy.deepcopy(world.reference).eval()
    data = read_forget_set(world.loader(), config)
    with torch.random.fork_rng():
        training = begin(data, config, torch.device("cpu"), seed=0)
        training.networks.generator.body.leave.reset_parameters()  # new, G(x) is x itself
    networks = copy.deepcopy(training.networks)
    x, y = data.x[:32], data.y[:32]
    trainer = Trainer(training, [reference, reference], seed=0)
    noise = trainer._noise(x, 0)
    assert 0.29 < float(noise.std()) < 0.31
    trainer.step(x, y, 0)

    critic, z = networks.discriminator, networks.generator(x)
    loss = softplus(-critic(x)).mean() + softplus(critic(z.detach())).mean()
    adam = {"betas": (0.5, 0.99)}
    optimizer = torch.optim.Adam(critic.parameters(), lr=config.lr_discriminator, **adam)
    loss.backward()
    optimizer.step()
    shift = (2.0 - cross_entropy(reference(z + noise), y, reduction="none")).clamp(min=0).mean()
    far = ((z - x).flatten(1).norm(dim=1) - 0.01).clamp(min=0).mean()
    assert float(shift.detach()) > 0 and float(far.detach()) > 0
    optimizer = torch.optim.Adam(networks.generator.parameters(), lr=config.lr, **adam)
    (0.7 * softplus(-critic(z)).mean() + 2.0 * shift + 5.0 * far).backward()
    optimizer.step()
    for got, wanted in zip(training.networks.parameters(), networks.parameters(), strict=True):
        # Adam's first step is lr * sign(gradient): float32 rounding of the sums, and no more.
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_noise_is_of_the_seed_and_the_step(world: Any) -> None:
    from fastunlearn.spdgan.data import read_forget_set
    from fastunlearn.spdgan.training import Trainer, begin

    data = read_forget_set(world.loader(), SHORT)
    with torch.random.fork_rng():
        training = begin(data, SHORT, torch.device("cpu"), seed=0)

    def noise(seed: int, step: int) -> torch.Tensor:
        return Trainer(training, [], seed)._noise(data.x, step)

    assert torch.equal(noise(2**64 - 1, 5), noise(2**64 - 1, 5))
    assert not torch.equal(noise(0, 0), noise(0, 1))
    assert not torch.equal(noise(0, 0), noise(1, 0))


def test_every_pass_has_an_order_of_its_own_from_the_seed() -> None:
    from fastunlearn.spdgan.data import ForgetSet
    from fastunlearn.spdgan.training import batches

    data = ForgetSet(torch.arange(20.0)[:, None], torch.arange(20), 8, "")

    def order(seed: int, start: int, stop: int) -> list[list[int]]:
        return [y.tolist() for _, y in batches(data, seed, start, stop)]

    steps = order(1, 0, 6)
    assert [len(step) for step in steps] == [8, 8, 4, 8, 8, 4]
    first, second = sum(steps[:3], []), sum(steps[3:], [])
    assert sorted(first) == sorted(second) == list(range(20)) and first != second
    assert order(1, 4, 6) == steps[4:] and order(2, 0, 6) != steps


@pytest.mark.parametrize("kind", ["seed", "order", "loader"])
def test_what_decides_the_bits(world: Any, kind: str) -> None:
    first, second = SPDGAN(SHORT, seed=3), SPDGAN(SHORT, seed=4 if kind == "seed" else 3)
    first.fit(world.loader(), world.reference)
    state = torch.get_rng_state()
    batches = world.loader()
    if kind == "order":
        batches = batches[:1] + batches[:0:-1]
    elif kind == "loader":
        torch.manual_seed(99)
        state = torch.get_rng_state()
        pairs = torch.utils.data.TensorDataset(world.x, world.y)
        batches = torch.utils.data.DataLoader(pairs, 32, shuffle=True)
    second.fit(batches, world.reference)
    assert torch.equal(torch.get_rng_state(), state)
    assert same(first, second) == (kind != "seed")


def test_the_reference_is_left_bit_unchanged(world: Any) -> None:
    reference = world.reference.train()
    reference[0].weight.requires_grad_(False)
    reference[6].bias.grad = torch.ones(10)
    before = copy.deepcopy(reference.state_dict())
    try:
        SPDGAN(SHORT).fit(world.loader(), [reference])
        assert all(torch.equal(before[n], v) for n, v in reference.state_dict().items())
        assert all(module.training for module in reference.modules())
        flags = [p.requires_grad for p in reference.parameters()]
        assert flags == [False] + [True] * (len(flags) - 1)
        grads = [p.grad is not None for p in reference.parameters()]
        assert grads == [False] * (len(grads) - 1) + [True]
        assert torch.equal(reference[6].bias.grad, torch.ones(10))
    finally:
        reference[0].weight.requires_grad_(True)
        reference[6].bias.grad = None


def test_a_resumed_fit_gives_the_same_bits(world: Any, tmp_path: Path) -> None:
    path = tmp_path / "fit.safetensors"
    whole, resumed = SPDGAN(SHORT), SPDGAN(SHORT)
    expected = whole.fit(world.loader(), world.reference)

    def stop(phase: str, done: int, total: int | None) -> None:
        assert (phase, total) == ("spdgan", 6)
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resumed.fit(world.loader(), world.reference, progress=stop, state=path)
    with pytest.raises(RuntimeError, match=r"SPDGAN.perturb: fit must be called first"):
        resumed.perturb(world.x)
    seen: list[int] = []
    report = resumed.fit(
        world.loader(), world.reference, state=path, progress=lambda _, done, __: seen.append(done)
    )
    assert seen == [5, 6]  # the state was written at step 4
    assert same(whole, resumed) and report.history == expected.history
    assert not path.exists() and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("other", ["seed", "config", "data", "reference", "rubbish"])
def test_the_state_of_another_fit_is_refused(world: Any, tmp_path: Path, other: str) -> None:
    path = tmp_path / "fit.safetensors"

    def stop(phase: str, done: int, total: int | None) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        SPDGAN(SHORT).fit(world.loader(), world.reference, progress=stop, state=path)
    gan = SPDGAN(replace(SHORT, lr=1e-3) if other == "config" else SHORT, seed=int(other == "seed"))
    loader, reference = world.loader(), world.reference
    if other == "data":
        loader[0] = (loader[0][0], loader[0][1].flip(0))
    elif other == "reference":
        reference = copy.deepcopy(reference)
        reference[6].bias.data[0] += 1
    elif other == "rubbish":
        path.write_bytes(b"rubbish")
    with pytest.raises(ValueError, match=r"SPDGAN\.fit: state must be"):
        gan.fit(loader, reference, state=path)


def test_several_references_count_equally(world: Any) -> None:
    constant = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    nn.init.zeros_(constant[1].weight)
    constant[1].bias.data.copy_(torch.eye(10)[3])  # always says 3
    single = SPDGAN(SHORT).fit(world.loader(), world.reference)
    double = SPDGAN(SHORT).fit(world.loader(), (world.reference, constant))
    share = float((world.y == 3).float().mean())
    assert single.history[0]["reference_accuracy"] > 0.5
    # Nothing moves the constant one's part; the other falls at most a little more slowly.
    assert double.history[0]["reference_accuracy"] == pytest.approx(
        (single.history[0]["reference_accuracy"] + share) / 2, abs=0.05
    )


ALL = {"target_accuracy": 1.0, "min_psnr": -99.0, "radius": 1.0, "max_auc": 1.0}
BLOCKS = {
    "shift": {"target_accuracy": 0.0},
    "closeness": {"min_psnr": 99.0},
    "balance": {"max_auc": 0.5},
}


@pytest.mark.parametrize("patience", [1, 2])
def test_it_stops_where_all_three_hold(world: Any, patience: int) -> None:
    config = replace(SHORT, patience=patience, **ALL)
    report = SPDGAN(config).fit(world.loader(), world.reference)
    assert report.stopped == "held" and report.steps == 2 * patience
    assert [entry["unmet"] for entry in report.history] == [[]] * patience


@pytest.mark.parametrize("quantity", BLOCKS)
def test_each_quantity_keeps_it_from_stopping(world: Any, quantity: str) -> None:
    config = replace(SHORT, patience=1, **(ALL | BLOCKS[quantity]))
    report = SPDGAN(config).fit(world.loader(), world.reference)
    assert report.stopped == f"max_steps, without {quantity}" and report.steps == 6


@pytest.mark.parametrize(
    ("changed", "missing"),
    [
        ({}, []),
        ({"reference_accuracy": 0.21}, ["shift"]),
        ({"psnr": 15.4}, ["closeness"]),
        ({"linf": 0.31}, ["closeness"]),
        ({"discriminator_auc": 0.995}, ["balance"]),
        ({"discriminator_auc": 0.005}, ["balance"]),
        ({"reference_accuracy": 0.5, "psnr": 1.0}, ["shift", "closeness"]),
    ],
)
def test_the_three_quantities_by_hand(changed: dict[str, float], missing: list[str]) -> None:
    entry = {"reference_accuracy": 0.2, "psnr": 15.5, "linf": 0.3, "discriminator_auc": 0.99}
    config = SPDGANConfig(target_accuracy=0.2, min_psnr=15.5, epsilon=0.3, max_auc=0.99)
    assert unmet(entry | changed, config) == missing


def test_held_at_the_last_check_only_is_not_enough() -> None:
    from fastunlearn.spdgan.training import Training

    config = SPDGANConfig(patience=2)
    history: list[dict[str, Any]] = [{"step": 1, "unmet": ["shift"]}, {"step": 2, "unmet": []}]
    training = Training(config, nn.Module(), {}, history)  # type: ignore[arg-type]
    assert not training.enough and training.stopped == "max_steps"
    history.append({"step": 3, "unmet": []})
    assert training.enough and training.stopped == "held"


def test_a_diverging_fit_says_so(world: Any) -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :10] * float("nan")

    with pytest.raises(FloatingPointError, match=r"SPDGAN\.fit: loss must be finite"):
        SPDGAN(SHORT).fit(world.loader(), Broken())


def test_it_learns_under_no_grad_and_inference_mode(world: Any) -> None:
    plain, inner = SPDGAN(SHORT), SPDGAN(SHORT)
    plain.fit(world.loader(), world.reference)
    with torch.inference_mode():
        inner.fit(world.loader(), world.reference)
    assert same(plain, inner)
