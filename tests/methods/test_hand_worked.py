"""Every method against a case worked out by hand.

Most use a linear layer with one weight for each of two classes: with logits (a, b) the probability
of class 0 is p = 1 / (1 + exp(b - a)), and the gradient of the cross-entropy with respect to the
weights, for input x and label 0, is x * (p - 1, 1 - p); for label 1 it is x * (p, -p). The steps
are SGD with learning rate 1 and no momentum unless said otherwise.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.methods._common import kl_divergence
from benchmarks.methods._fisher import mean_squares
from benchmarks.methods.ssd import SSDOptions, ssd

from .cases import SGD, linear, one, run

LN3 = math.log(3.0)


def sigmoid(z: float) -> float:
    return 1.0 / (1.0 + math.exp(-z))


def check(model: nn.Linear, *rows: tuple[float, ...]) -> None:
    # a few roundings of values near 1 in fp32
    torch.testing.assert_close(model.weight.detach(), torch.tensor(rows), rtol=0, atol=1e-6)


def test_neg_grad_plus() -> None:
    # w = 0, so p = 1/2. Retain x = 1, y = 0: gradient (-0.5, 0.5). Forget x = 2, y = 1: (1, -1).
    # 0.75 (-0.5, 0.5) - 0.25 (1, -1) = (-0.625, 0.625)
    model = linear((0.0,), (0.0,))
    run("neg_grad_plus", model, one(2.0, 1), one(1.0, 0), alpha=0.75, **SGD)
    check(model, (0.625,), (-0.625,))


def test_random_labels() -> None:
    # Of two classes the only wrong label for y = 1 is 0. Forget x = 2, y' = 0: (-1, 1).
    # Retain x = 1, y = 0, half: (-0.25, 0.25). Sum (-1.25, 1.25).
    model = linear((0.0,), (0.0,))
    run("random_labels", model, one(2.0, 1), one(1.0, 0), retain_weight=0.5, **SGD)
    check(model, (1.25,), (-1.25,))


def test_salun() -> None:
    # Two inputs x = (1, 3): saliency |p - e_y| |x| is 0.5 and 1.5 in both rows, so half of the
    # weights are the second column. y = 1 becomes 0: gradient (-0.5, 0.5) times (1, 3), of which
    # the second column is applied. The retain input is 0 and so is its gradient.
    model = linear((0.25, 0.0), (0.25, 0.0))
    run("salun", model, one((1.0, 3.0), 1), one((0.0, 0.0), 0), fraction=0.5, **SGD)
    check(model, (0.25, 1.5), (0.25, -1.5))


def mean_output(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss whose gradient for one example is the example itself."""
    return outputs.mean()


def ssd_case(alpha: float, lam: float) -> Tensor:
    """F(D_u) = (4, 1), F(D_r) = (0, 1), F(D) = (1, 1), for w = (2, 2)."""
    model = linear((2.0, 2.0))
    # the mean gradient of this batch is (0, 1): its square would be another F
    forget = [(torch.tensor([[2.0, 1.0], [-2.0, 1.0]]), torch.zeros(2))]
    retain = [(torch.tensor([[0.0, 1.0]]).repeat(3, 1), torch.zeros(3))] * 2
    options = SSDOptions(alpha=alpha, lam=lam)
    ssd(model, forget, retain, mean_output, options, seed=0)
    return model.weight.detach()[0]


def test_ssd() -> None:
    # 2 forget and 6 retain examples: F(D) = (2 (4, 1) + 6 (0, 1)) / 8 = (1, 1), ratios (4, 1).
    assert ssd_case(alpha=2.0, lam=1.0).tolist() == [0.5, 2.0]  # 2 * min(1 * 1 / 4, 1)
    assert ssd_case(alpha=2.0, lam=2.0).tolist() == [1.0, 2.0]  # 2 * min(2 * 1 / 4, 1)
    assert ssd_case(alpha=2.0, lam=8.0).tolist() == [2.0, 2.0]  # never grows
    assert ssd_case(alpha=0.5, lam=0.5).tolist() == [0.25, 1.0]  # both selected
    assert ssd_case(alpha=4.0, lam=1.0).tolist() == [2.0, 2.0]  # 4 is not above 4


def test_ssd_reads_no_more_examples_than_it_may_but_knows_the_sizes() -> None:
    # Read: a forget example with F = (4, 0), a retain example with F = (1, 0), of 2 and 3 in all.
    # F(D) = (2 * 4 + 3 * 1) / 5 = 2.2, the ratio is 1.8, and 2 * 2.2 / 4 = 1.1.
    model = linear((2.0, 2.0))
    forget = [(torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.zeros(2))]
    retain = [(torch.tensor([[1.0, 0.0], [9.0, 9.0], [9.0, 9.0]]), torch.zeros(3))]
    ssd(model, forget, retain, mean_output, SSDOptions(alpha=1.5, examples=1), seed=0)
    check(model, (1.1, 2.0))


def test_scrub() -> None:
    # lr = ln 3, alpha = 2, gamma = 1, all x = 1, retain y = 0. Original w = 0: q = 1/2.
    # Epoch 1: d is 0 and so is its gradient; the min step follows (-0.5, 0.5):
    #   w = (ln 3 / 2, -ln 3 / 2), so p = 3/4.
    # Epoch 2: max step, gradient of KL(q || p) is (p - q, q - p) = (1/4, -1/4), climbed:
    #   w = (0.75 ln 3, ...); the other direction of KL would give another step (0.206).
    #   Now p = 1 / (1 + 3^-1.5), and the min step follows (p - 1) + 2 (p - 1/2).
    model = linear((0.0,), (0.0,))
    options = {**SGD, "lr": LN3, "epochs": 2, "max_epochs": 2, "alpha": 2.0, "gamma": 1.0}
    run("scrub", model, one(1.0, 0), one(1.0, 0), **options)
    p = 1.0 / (1.0 + 3.0**-1.5)
    w = 0.75 * LN3 - LN3 * ((p - 1.0) + 2.0 * (p - 0.5))
    check(model, (w,), (-w,))


def test_scrub_leaves_the_forget_set_after_its_max_epochs() -> None:
    # As above with max_epochs = 1: epoch 2 has the min step alone, from p = 3/4.
    model = linear((0.0,), (0.0,))
    options = {**SGD, "lr": LN3, "epochs": 2, "max_epochs": 1, "alpha": 2.0, "gamma": 1.0}
    run("scrub", model, one(1.0, 0), one(1.0, 0), **options)
    w = 0.5 * LN3 - LN3 * ((0.75 - 1.0) + 2.0 * (0.75 - 0.5))
    check(model, (w,), (-w,))


class TaughtLinear(nn.Linear):
    """A layer whose fresh weights are (ln 3, 0), so that it says (3/4, 1/4) to x = 1."""

    def reset_parameters(self) -> None:
        with torch.no_grad():
            self.weight.copy_(torch.tensor([[LN3], [0.0]]))


def test_bad_teacher() -> None:
    # The model and the good teacher say (1/2, 1/2), the bad one (3/4, 1/4).
    # Pass 1, retain batch: already there. Forget batch: w0 += 3/4 - 1/2.
    # Pass 2, retain batch: w0 += 1/2 - p; forget batch: w0 += 3/4 - p.
    model = TaughtLinear(1, 2, bias=False)
    nn.init.zeros_(model.weight)
    run("bad_teacher", model, one(1.0, 1), one(1.0, 1), **{**SGD, "epochs": 2})
    w = 0.25
    w += 0.5 - sigmoid(2 * w)
    w += 0.75 - sigmoid(2 * w)
    check(model, (w,), (-w,))


def test_l1_sparse() -> None:
    # w = (ln 3 / 2, -ln 3 / 2): p = 3/4, gradient (-1/4, 1/4), penalty 0.1 (1, -1); in the second
    # of two epochs the penalty is half.
    model = linear((LN3 / 2,), (-LN3 / 2,))
    run("l1_sparse", model, one(1.0, 1), one(1.0, 0), gamma=0.1, **{**SGD, "epochs": 2})
    w = LN3 / 2 + 0.25 - 0.1
    w += 1.0 - sigmoid(2 * w) - 0.05
    check(model, (w,), (-w,))


def test_fisher_forgetting() -> None:
    # p = 3/4 at x = 1. Over both classes: p (1 - p)^2 + (1 - p) p^2 = p (1 - p) = 0.1875, the same
    # for both weights. The second example is x = 0, with gradient 0, so F = 0.09375. The label
    # plays no part. With lambda sigma^2 = 0.0016 F the noise has std 0.2.
    model = linear((LN3,), (0.0,))
    retain = [(torch.tensor([[1.0], [0.0]]), torch.tensor([1, 1]))]
    run("fisher_forgetting", model, [], retain, seed=5, lambda_sigma2=0.0016 * 0.09375)
    noise = torch.randn(2, 1, generator=torch.Generator().manual_seed(5))
    a, b = (0.2 * noise).flatten().tolist()
    check(model, (LN3 + a,), (b,))


def test_fisher_forgetting_bounds_the_noise_where_there_is_no_influence() -> None:
    # F = 0: 1 / F is taken as 1e3, so 1.6e-6 gives std (1.6e-3)^(1/4) = 0.2.
    model = linear((LN3,), (0.0,))
    run("fisher_forgetting", model, [], one(0.0, 0), seed=5, lambda_sigma2=1.6e-6)
    noise = torch.randn(2, 1, generator=torch.Generator().manual_seed(5))
    a, b = (0.2 * noise).flatten().tolist()
    check(model, (LN3 + a,), (b,))


def test_kl_divergence_goes_from_the_teacher_to_the_student() -> None:
    # KL((3/4, 1/4) || (1/2, 1/2)) = ln 2 - H(3/4) = 0.1308; the other way it is 0.1438.
    teacher, student = torch.tensor([[LN3, 0.0]]), torch.zeros(1, 2)
    value = kl_divergence(teacher, student).item()
    assert value == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), abs=1e-6)
    two = kl_divergence(teacher.repeat(2, 1), student.repeat(2, 1)).item()
    assert two == pytest.approx(value, abs=1e-6)  # a mean over the batch


def test_mean_squares_do_not_depend_on_the_split_into_batches() -> None:
    model = linear((0.3, -0.2), (0.1, 0.4))
    x, y = torch.tensor([[1.0, 2.0], [-1.0, 0.5], [3.0, 0.0]]), torch.tensor([0, 1, 1])

    def own(outputs: Tensor, targets: Tensor) -> list[tuple[float, Tensor]]:
        return [(1.0, cross_entropy(outputs, targets))]

    whole, size = mean_squares(model, [(x, y)], own, 99)
    parts, _ = mean_squares(model, [(x[:1], y[:1]), (x[1:], y[1:])], own, 99)
    assert size == 3
    assert torch.equal(whole["weight"], parts["weight"])
    with pytest.raises(ValueError, match="at least one example, got none"):
        mean_squares(model, [], own, 99)
