"""Images of any size and number of channels, vectors, dtypes; the bound holds for each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastunlearn.spdgan import SPDGAN, SPDGANConfig, pictures
from fastunlearn.spdgan.networks import Generator, clip

QUICK = SPDGANConfig(max_steps=2, check_every=2, width=4)
SHAPES = [(1, 28, 28), (3, 7, 9), (3, 32, 32), (2, 1, 1), (1, 3, 2), (5, 6, 5), (4,), (1,)]


def fitted(shape: tuple[int, ...], config: SPDGANConfig, x: Tensor | None = None) -> SPDGAN:
    generator = torch.Generator().manual_seed(0)
    if x is None:
        x = torch.rand(7, *shape, generator=generator)
    y = torch.arange(7) % 3
    reference = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 3))
    gan = SPDGAN(config)
    gan.fit([(x[:4], y[:4]), (x[4:], y[4:])], reference.to(x.dtype))
    return gan


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_fitted_and_kept(shape: tuple[int, ...]) -> None:
    gan = fitted(shape, QUICK)
    for n in (0, 1, 3):
        x = torch.rand(n, *shape)
        shifted = gan.perturb(x)
        assert shifted.shape == x.shape and shifted.dtype == x.dtype
        assert not shifted.requires_grad and shifted.data_ptr() != x.data_ptr() or n == 0
        assert n == 0 or not torch.equal(shifted, x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("epsilon", [0.3, 0.1, 1e-3, 100.0])
def test_the_bound_holds_to_the_last_bit(dtype: torch.dtype, epsilon: float) -> None:
    config = SPDGANConfig(max_steps=1, width=4, epsilon=epsilon)
    gan = fitted((1, 8, 8), config)
    networks = gan._networks
    assert networks is not None
    networks.generator.body.leave.bias.data = torch.tensor([90.0, -90.0, 90.0, -90.0])  # |tanh| = 1
    x = torch.rand(600, 1, 8, 8).to(dtype)  # more than two chunks
    shifted = gan.perturb(x)
    step = (shifted.double() - x.double()).abs()
    assert float(step.max()) <= epsilon
    assert float(shifted.min()) >= 0 and float(shifted.max()) <= 1
    if epsilon == 0.3 and dtype == torch.float32:
        assert float(step.max()) > 0.3 - 1e-6


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7), (6,)])
def test_a_new_generator_gives_x_itself(shape: tuple[int, ...]) -> None:
    x = torch.rand(4, *shape)
    assert torch.equal(Generator(shape, SPDGANConfig(width=4))(x), x)


def test_the_gradient_of_the_clip_leads_back_inside() -> None:
    """Of a value below, inside and above: descent along each sign of the gradient."""
    for sign, wanted in ((1.0, [0.0, 1.0, 1.0]), (-1.0, [-1.0, -1.0, 0.0])):
        x = torch.tensor([-0.5, 0.5, 1.5], requires_grad=True)
        clipped = clip(x, 0.0, 1.0)
        assert clipped.tolist() == [0.0, 0.5, 1.0]
        (sign * clipped).sum().backward()
        assert x.grad is not None and x.grad.tolist() == wanted


def test_a_generator_that_has_moved_everything_down_comes_back() -> None:
    """Black images and a shift downwards: the gradient of a plain clamp would be 0 for good."""
    torch.manual_seed(0)
    generator, x = Generator((1, 8, 8), SPDGANConfig(width=4)), torch.zeros(4, 1, 8, 8)
    torch.nn.init.constant_(generator.body.leave.bias, -0.5)
    optimizer = torch.optim.SGD(generator.parameters(), lr=0.1)
    for _ in range(50):
        optimizer.zero_grad()
        (generator(x) - 0.2).square().sum().backward()
        optimizer.step()
    assert float((generator(x).detach() - 0.2).abs().max()) < 0.05


def test_images_of_another_range() -> None:
    config = SPDGANConfig(max_steps=2, width=4, low=-1.0, high=3.0)
    x = 4 * torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(1)) - 1
    gan = fitted((1, 8, 8), config, x)
    networks = gan._networks
    assert networks is not None
    networks.generator.body.leave.bias.data.fill_(90.0)
    step = gan.perturb(x) - x
    # epsilon counts ranges of 4: up by 1.2, or as far as 3 is away.
    torch.testing.assert_close(step, torch.minimum(torch.tensor(1.2), 3 - x), rtol=1e-6, atol=1e-6)
    assert gan.closeness(x).linf == pytest.approx(float(step.flatten(1).amax(1).mean()) / 4)


def test_vectors_move_by_their_standard_deviations() -> None:
    scale = torch.tensor([1.0, 1000.0, 0.0, 1e-3])
    x = 5.0 + scale * torch.randn(7, 4, generator=torch.Generator().manual_seed(2))
    gan = fitted((4,), SPDGANConfig(max_steps=1, width=4, epsilon=0.5), x)
    networks = gan._networks
    assert networks is not None
    assert networks.generator.unit.tolist() == pytest.approx(
        x.double().std(dim=0, correction=0).tolist(), rel=1e-6
    )
    networks.generator.body.layers[-1].bias.data.fill_(90.0)
    step = gan.perturb(x) - x
    deviation = x.double().std(dim=0, correction=0)
    assert torch.equal(step[:, 2], torch.zeros(7))  # constant over the forget set
    # Float32 spacing at 5 is 5e-7, against a step of half of 1e-3.
    torch.testing.assert_close(
        step.double()[:, [0, 1, 3]], 0.5 * deviation[[0, 1, 3]].expand(7, 3), rtol=2e-3, atol=0
    )
    figures = gan.closeness(x)
    assert figures.linf == pytest.approx(0.5, rel=1e-3) and figures.ssim is None
    assert figures.l2 == pytest.approx(0.5 * 3**0.5, rel=1e-3)


def test_vectors_shift_a_reference(world: Any) -> None:
    x = world.x.flatten(1)
    reference = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), world.reference)
    report = SPDGAN(SPDGANConfig(max_steps=40, check_every=40, epsilon=1.0)).fit(
        [(x, world.y)], reference
    )
    assert report.history[-1]["reference_accuracy"] < 0.7


def test_vectors_that_do_not_vary_are_refused() -> None:
    with pytest.raises(ValueError, match=r"SPDGAN\.fit: vectors must differ in at least one"):
        fitted((4,), QUICK, torch.ones(7, 4))


def test_bounds_hold_for_vectors_where_given() -> None:
    x = torch.rand(7, 4)
    gan = fitted((4,), SPDGANConfig(max_steps=3, lr=0.1, width=4, low=0.0, epsilon=9.0), x)
    assert float(gan.perturb(x).min()) >= 0 and float(gan.perturb(x).max()) > 1


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_pictures(channels: int) -> None:
    x = torch.rand(5, channels, 6, 7)
    shifted = (x + 0.2).clamp(max=1)
    for n, labels in ((3, torch.arange(5)), (8, None)):
        figure = pictures(x, shifted, labels, n=n)
        figure.canvas.draw()
        columns = min(n, 5)
        shown = [axis for axis in figure.axes if axis.get_visible() and axis.images]
        assert len(shown) == 3 * columns + 1 or len(shown) == 3 * columns  # and the colour bar
        difference = [a for a in shown if a.images[0].get_cmap().name == "RdBu_r"]
        assert all(
            a.images[0].get_clim() == pytest.approx((-0.2, 0.2)) for a in difference[:columns]
        )
        caption = figure.get_supxlabel()
        assert "full colour is 0.2" in caption and "L-inf 0.2" in caption
        titles = [axis.get_title() for axis in shown[:columns]]
        assert titles == (["0", "1", "2"] if labels is not None else [""] * columns)


def test_pictures_of_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match=r"pictures: x must have shape \(N, C, H, W\)"):
        pictures(torch.rand(2, 4), torch.rand(2, 4))
    with pytest.raises(ValueError, match="pictures: n must be >= 1, got 0"):
        pictures(torch.rand(2, 1, 4, 4), torch.rand(2, 1, 4, 4), n=0)
