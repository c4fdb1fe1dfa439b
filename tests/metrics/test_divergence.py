"""Jensen-Shannon and Jeffreys divergence: values, bounds, gradients, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastunlearn.divergence import jeffreys, jensen_shannon

LN2 = math.log(2.0)
LOGIT = st.floats(-1e4, 1e4, width=32)


@st.composite
def logit_pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Two float32 logit tensors of one shape (N, C), with equal rows and huge gaps among them."""
    rows, classes = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    matrix = st.lists(
        st.lists(LOGIT, min_size=classes, max_size=classes), min_size=rows, max_size=rows
    )
    p = torch.tensor(draw(matrix))
    q = p.clone() if draw(st.booleans()) else torch.tensor(draw(matrix))
    return p, q


def by_definition(p: Tensor, q: Tensor) -> float:
    """Mean over rows of the mean KL to the mixture, from probabilities in plain Python."""
    total = 0.0
    for row_p, row_q in zip(p.double().softmax(-1), q.double().softmax(-1), strict=True):
        for a, b in zip(row_p.tolist(), row_q.tolist(), strict=True):
            # 2 x / (a + b) and not x / m, as the mean m of two denormals can be 0.
            total += sum(x * math.log(2 * x / (a + b)) for x in (a, b) if x > 0) / 2
    return total / len(p)


def test_jensen_shannon_hand_computed() -> None:
    p, q = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.25, 0.75]]).log()
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)  # the mixture is (1/2, 1/2)
    # Four float32 roundings of numbers below 1.
    assert jensen_shannon(p, q).item() == pytest.approx(expected, abs=4 * 2**-24)


def test_jeffreys_hand_computed() -> None:
    p, q = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.25, 0.75]]).log()
    expected = 2 * 0.5 * math.log(3.0)
    # As above, with terms up to 1.1.
    assert jeffreys(p, q).item() == pytest.approx(expected, abs=8 * 2**-24)


@settings(max_examples=300, deadline=None)
@given(logit_pairs())
def test_jensen_shannon_properties(pair: tuple[Tensor, Tensor]) -> None:
    p, q = pair
    rows = jensen_shannon(p, q, reduction="none")
    assert rows.shape == p.shape[:-1]
    assert torch.equal(rows, jensen_shannon(q, p, reduction="none"))
    # The bound is ln 2 rounded to float32, which is 2e-9 above ln 2.
    assert bool(((rows >= 0) & (rows <= torch.tensor(LN2))).all())
    equal = (p.softmax(-1) == q.softmax(-1)).all(-1)
    same_logits = (p == q).all(-1)
    assert bool((rows[same_logits] == 0).all())
    # Rows that differ by more than rounding have a divergence.
    apart = ~equal & ((p.softmax(-1) - q.softmax(-1)).abs().amax(-1) > 1e-2)
    assert bool((rows[apart] > 1e-6).all())


@settings(max_examples=200, deadline=None)
@given(logit_pairs())
def test_jensen_shannon_agrees_with_its_definition(pair: tuple[Tensor, Tensor]) -> None:
    p, q = pair[0].double(), pair[1].double()
    # The definition itself loses about 1e-16 per term to p / m near 1.
    assert jensen_shannon(p, q).item() == pytest.approx(by_definition(p, q), abs=1e-13)


def test_rounding_does_not_break_the_bounds() -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(20_000, 3, generator=generator)
    near = p + 1e-7 * torch.randn(20_000, 3, generator=generator)
    assert bool((jensen_shannon(p, near, "none") >= 0).all())
    p, q = torch.randn(2, 20_000, 10, generator=generator)
    p[:, :5] += 60.0
    q[:, 5:] += 60.0
    assert bool((jensen_shannon(p, q, "none") <= torch.tensor(LN2)).all())


def test_small_divergence_is_not_lost_to_rounding() -> None:
    p = torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
    q = p + 1e-3 * torch.randn(64, 10, generator=torch.Generator().manual_seed(1))
    exact = jensen_shannon(p.double(), q.double()).item()
    assert exact < 1e-6
    # Each float32 log-probability is off by 2^-22 at most, which is 3e-4 of the gap of 1e-3.
    assert jensen_shannon(p, q).item() == pytest.approx(exact, rel=3e-3)


@pytest.mark.parametrize("function", [jensen_shannon, jeffreys])
def test_gradients_agree_with_differences(function) -> None:
    generator = torch.Generator().manual_seed(2)
    p, q = (
        torch.randn(3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
        for _ in range(2)
    )
    for reduction in ("batchmean", "mean", "none"):
        assert torch.autograd.gradcheck(lambda a, b, r=reduction: function(a, b, r), (p, q))


@pytest.mark.parametrize(
    "rows",
    [
        [[1e30, -1e30, 3.0], [-1e30, 1e30, 3.0]],
        [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]],
        [[1.0, -math.inf, 3.0], [2.0, -math.inf, 1.0]],
        [[1.0, -math.inf, 3.0], [2.0, 0.0, 1.0]],
    ],
    ids=["saturated", "equal", "masked in both", "masked in one"],
)
def test_jensen_shannon_gradient_is_finite(rows: list[list[float]]) -> None:
    p, q = (torch.tensor([row], requires_grad=True) for row in rows)
    value = jensen_shannon(p, q)
    gradients = torch.autograd.grad(value, (p, q))
    assert value.isfinite() and all(bool(g.isfinite().all()) for g in gradients)
    if rows[0] == rows[1]:
        assert value == 0 and all(bool((g == 0).all()) for g in gradients)


def test_masked_classes() -> None:
    p, q = torch.tensor([[0.0, -math.inf]]), torch.tensor([[-math.inf, 0.0]])
    assert jensen_shannon(p, q).item() == pytest.approx(LN2)
    assert jeffreys(p, q).item() == math.inf
    assert jeffreys(p, p).item() == 0.0


def test_nan_stays_visible() -> None:
    p = torch.tensor([[0.0, math.nan]])
    assert jensen_shannon(p, torch.zeros(1, 2)).isnan()
    assert jeffreys(p, torch.zeros(1, 2)).isnan()


@pytest.mark.parametrize("function", [jensen_shannon, jeffreys])
def test_reductions(function) -> None:
    generator = torch.Generator().manual_seed(3)
    p, q = torch.randn(4, 5, 3, generator=generator), torch.randn(4, 5, 3, generator=generator)
    rows = function(p, q, "none")
    assert rows.shape == (4, 5)
    torch.testing.assert_close(function(p, q, "mean"), rows.mean())
    torch.testing.assert_close(function(p, q, "batchmean"), rows.sum() / 4)
    assert function(p[0, 0], q[0, 0]) == rows[0, 0]


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_dtypes(dtype: torch.dtype, expected: torch.dtype) -> None:
    p, q = torch.tensor([[1.0, 2.0]], dtype=dtype), torch.tensor([[2.0, 1.0]], dtype=dtype)
    assert jensen_shannon(p, q).dtype == expected
    # 1 and 2 are exact in every dtype, so that only the arithmetic's rounding is left.
    wide = jensen_shannon(p.double(), q.double()).item()
    assert jensen_shannon(p, q).item() == pytest.approx(wide, abs=4 * 2**-24)


def test_one_class_has_no_divergence() -> None:
    assert jensen_shannon(torch.tensor([[3.0]]), torch.tensor([[-7.0]])).item() == 0.0


@pytest.mark.parametrize("function", [jensen_shannon, jeffreys])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            (torch.zeros(2, 3), torch.zeros(2, 4)),
            ValueError,
            r"logits_q must have shape \(2, 3\), got \(2, 4\)",
        ),
        ((torch.zeros(2, 3).long(), torch.zeros(2, 3)), TypeError, "logits_p .* got torch.int64"),
        ((torch.zeros(2, 3), [0.0]), TypeError, "logits_q .* got list"),
        ((torch.zeros(0, 3), torch.zeros(0, 3)), ValueError, "at least one example"),
        ((torch.zeros(2, 0), torch.zeros(2, 0)), ValueError, r"C >= 1, got \(2, 0\)"),
        ((torch.tensor(1.0), torch.tensor(1.0)), ValueError, r"C >= 1, got \(\)"),
        ((torch.zeros(2, 3), torch.zeros(2, 3), "sum"), ValueError, "reduction must .* got 'sum'"),
    ],
)
def test_refusals(function, arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"^{function.__name__}: .*{message}"):
        function(*arguments)


def test_empty_batch_without_reduction() -> None:
    assert jensen_shannon(torch.zeros(0, 3), torch.zeros(0, 3), "none").shape == (0,)
