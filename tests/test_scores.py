"""Scores: hand-computed values, the running mean, and a model left exactly as it was."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastunlearn._loop import preserved_mode, set_mode
from fastunlearn.scores import SCORE_KINDS, score
from fastunlearn.strategies import TopK


def linear(*weights: float) -> nn.Linear:
    """Return a bias-free linear model with one output and the given weights."""
    model = nn.Linear(len(weights), 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([weights]))
    return model


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean squared error of one output per example."""
    return (outputs[:, 0] - targets).square().mean()


# Residuals are all -1, so the examples' gradients are (-2, -4), (-6, -8), (-10, -12).
X = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
Y = torch.tensor([-1.0, -1.0, -1.0])
RAGGED = [(X[:2], Y[:2]), (X[2:], Y[2:])]
# Output 2, residual 3: gradient (6, 0).
RETAIN = [(torch.tensor([[1.0, 0.0]]), torch.tensor([-1.0]))]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("grad", [6.0, 8.0]),  # the mean of the examples, not of the batches, (7, 9)
        ("fisher", [58.0, 90.0]),  # (4^2 + 10^2) / 2, (6^2 + 12^2) / 2
        ("mas", [12.0, 16.0]),  # 2/3 * (8, 12) + 1/3 * (20, 24)
        ("taylor", [12.0, 16.0]),
        ("ratio", [58.0 / 37.0, 90.0]),  # with eps = 1
        ("weight", [2.0, 2.0]),
    ],
)
def test_hand_computed(kind: str, expected: list[float]) -> None:
    got = score(linear(2.0, -2.0), RAGGED, squared, kind=kind, retain=RETAIN, eps=1.0)
    assert list(got) == ["weight"]
    # Small integers: only the division by 3 and by 37 rounds.
    torch.testing.assert_close(got["weight"], torch.tensor([expected]), rtol=1e-6, atol=0)


def test_mas_takes_the_absolute_value_of_each_batch() -> None:
    x = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    model, none = linear(1.0, 0.0), torch.zeros(1)
    singles = score(model, [(x[:1], none), (x[1:], none)], None, kind="mas")
    whole = score(model, [(x, none)], None, kind="mas")
    assert singles["weight"].tolist() == [[2.0, 2.0]]
    assert whole["weight"].tolist() == [[2.0, 0.0]]


def test_every_kind_of_the_strategies_is_there() -> None:
    for kind in SCORE_KINDS:
        assert TopK(1, score=kind).score == kind
    with pytest.raises(ValueError, match="score"):
        TopK(1, score="no such score")


def small_cnn(batch_norm: bool = True, dropout: float = 0.5) -> nn.Sequential:
    """Return a small convolutional network with statistics and dropout."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4) if batch_norm else nn.Identity()
    conv = nn.Conv2d(1, 4, 3)
    return nn.Sequential(conv, norm, nn.ReLU(), nn.Flatten(), nn.Dropout(dropout), nn.Linear(64, 3))


def images(count: int) -> tuple[Tensor, Tensor]:
    """Return ``count`` random 6x6 images and their labels."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 1, 6, 6, generator=generator), torch.arange(count) % 3


def test_ragged_batches_give_the_gradient_of_the_whole_set() -> None:
    model, (x, y) = small_cnn().double(), images(11)
    x = x.double()
    got = score(
        model,
        [(x[:4], y[:4]), (x[4:8], y[4:8]), (x[8:], y[8:])],
        F.cross_entropy,
        dtype=torch.float64,
    )
    F.cross_entropy(model.eval()(x), y).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        # A few double roundings of sums of 11 terms of order 1.
        torch.testing.assert_close(got[name], parameter.grad.abs(), rtol=1e-10, atol=1e-13)


def test_one_batch_is_bit_equal_to_backward() -> None:
    model, batch = small_cnn(), images(5)
    got = score(model, [batch], F.cross_entropy)
    F.cross_entropy(model.eval()(batch[0]), batch[1]).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert torch.equal(got[name], parameter.grad.abs()), name


def state_of(model: nn.Module) -> list[object]:
    """Return all that scoring must put back, in comparable form."""
    tensors = [*model.parameters(), *model.buffers()]
    bits = [t.detach().reshape(-1).view(torch.uint8).tolist() for t in tensors]
    gradients = [None if p.grad is None else (id(p.grad), p.grad.tolist()) for p in tensors]
    flags = [m.training for m in model.modules()] + [p.requires_grad for p in tensors]
    return [
        bits,
        gradients,
        flags,
        [id(b) for b in model.buffers()],
        torch.get_rng_state().tolist(),
    ]


class Meddler(nn.Module):
    """Changes, in its forward pass, what a careless model may change."""

    def __init__(self) -> None:
        """Wrap the small network."""
        super().__init__()
        self.inner = small_cnn()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("missing", None)

    def forward(self, x: Tensor) -> Tensor:
        """Count calls by replacing a buffer, draw from the generator, flip a flag."""
        self.calls = self.calls + torch.rand(()) + 1
        self.inner[0].weight.requires_grad_(True)
        self.inner[1].training = not self.inner[1].training
        return self.inner(x)


def mixed_state() -> Meddler:
    """Return a model with individual training flags, a frozen tensor and one gradient."""
    model = Meddler().train()
    model.inner[1].eval()
    model.inner[0].weight.requires_grad_(False)
    model.inner[5].bias.grad = torch.full((3,), 7.0)
    return model


@pytest.mark.parametrize("train_mode", [False, True])
@pytest.mark.parametrize("kind", SCORE_KINDS)
def test_model_is_left_as_it_was(kind: str, train_mode: bool) -> None:
    model, (x, y) = mixed_state(), images(6)
    batches = [(x[:4], y[:4]), (x[4:], y[4:])]
    before = state_of(model)
    score(model, batches, F.cross_entropy, kind=kind, retain=batches, train_mode=train_mode)
    assert state_of(model) == before


def test_model_is_left_as_it_was_after_an_exception() -> None:
    model, (x, y) = mixed_state(), images(6)
    calls = []

    def failing(outputs: Tensor, targets: Tensor) -> Tensor:
        calls.append(torch.rand(()))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return F.cross_entropy(outputs, targets)

    before = state_of(model)
    with pytest.raises(KeyboardInterrupt):
        score(model, [(x, y)] * 3, failing, train_mode=True)
    assert len(calls) == 2
    assert state_of(model) == before


def test_batch_norm_statistics_do_move_while_it_runs() -> None:
    model, seen = small_cnn(), []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(int(model[1].num_batches_tracked))
        return F.cross_entropy(outputs, targets)

    score(model, [images(4)] * 2, loss, train_mode=True)
    assert seen == [1, 2] and int(model[1].num_batches_tracked) == 0


def test_modes_differ() -> None:
    model, batches = small_cnn(), [images(6)]
    evaluated, again = (score(model, batches, F.cross_entropy) for _ in range(2))
    trained = score(model, batches, F.cross_entropy, train_mode=True)
    assert not torch.equal(evaluated["0.weight"], trained["0.weight"])
    assert torch.equal(evaluated["0.weight"], again["0.weight"])


class Tied(nn.Module):
    """Embedding and output layer share one weight; one layer is never used."""

    def __init__(self, sparse: bool = False) -> None:
        """Build the layers."""
        super().__init__()
        self.embed = nn.Embedding(5, 3, sparse=sparse)
        self.unused = nn.Linear(2, 2)
        self.out = nn.Linear(3, 5, bias=False)
        if not sparse:
            self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits for the next token."""
        return self.out(self.embed(tokens))


def test_tied_and_untouched_parameters() -> None:
    model, batch = Tied(), (torch.tensor([0, 1, 2]), torch.tensor([1, 2, 3]))
    got = score(model, [batch], F.cross_entropy)
    assert list(got) == ["embed.weight", "unused.weight", "unused.bias"]
    assert not got["unused.weight"].any() and not got["unused.bias"].any()
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    assert torch.equal(got["embed.weight"], model.embed.weight.grad.abs())


def test_a_parameter_missing_from_one_batch_counts_as_zero_there() -> None:
    model = nn.ModuleDict({"a": linear(1.0), "b": linear(1.0)})

    def one_of(model: nn.Module, batch: tuple[str, Tensor]) -> tuple[Tensor, None]:
        return model[batch[0]](batch[1]), None

    batches = [("a", torch.ones(1, 1)), ("b", torch.ones(3, 1))]
    got = score(model, batches, lambda out, _: out.mean(), forward_fn=one_of)
    assert got["a.weight"].item() == 0.25 and got["b.weight"].item() == 0.75


@pytest.mark.parametrize(("kind", "power"), [("grad", 1), ("fisher", 2)])
def test_sparse_gradients(kind: str, power: int) -> None:
    model, batch = Tied(sparse=True), (torch.tensor([0, 1, 1]), torch.tensor([1, 2, 3]))
    got = score(model, [batch], F.cross_entropy, kind=kind)["embed.weight"]
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    assert torch.equal(got, model.embed.weight.grad.to_dense().abs() ** power)


def test_products_of_16_bit_gradients_round_once() -> None:
    model = linear(1.0, 1.0).to(torch.bfloat16)
    x = torch.tensor([[1.0078125, 3.0]], dtype=torch.bfloat16)  # its square needs 15 bits
    got = score(model, [(x, None)], lambda out, _: out.sum(), kind="fisher")
    assert got["weight"].tolist() == [[1.0078125**2, 9.0]]


def test_dict_batches_and_frozen_parameters() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    model[0].requires_grad_(False)
    x, y = torch.randn(4, 2), torch.tensor([0, 1, 2, 0])

    def forward(model: nn.Module, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        return {"logits": model(batch["x"])}, batch["y"]

    got = score(
        model,
        [{"x": x[:3], "y": y[:3]}, {"x": x[3:], "y": y[3:]}],
        lambda out, y: F.cross_entropy(out["logits"], y),
        forward_fn=forward,
    )
    assert list(got) == ["1.weight", "1.bias"]
    whole = score(model, [(x, y)], F.cross_entropy)
    torch.testing.assert_close(got["1.weight"], whole["1.weight"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["grad", "taylor", "mas", "weight"])
def test_dtypes(dtype: torch.dtype, kind: str) -> None:
    model, (x, y) = small_cnn(), images(6)
    batches = [(x[:4], y[:4]), (x[4:], y[4:])]
    got = score(model, batches, F.cross_entropy, kind=kind, dtype=dtype)
    exact = score(copy.deepcopy(model).double(), [(x.double(), y) for x, y in batches],
                  F.cross_entropy, kind=kind, dtype=torch.float64)  # fmt: skip
    for name, parameter in model.named_parameters():
        assert got[name].dtype == dtype and got[name].shape == parameter.shape
        assert not got[name].requires_grad and bool((got[name] >= 0).all())
        # Four roundings at most of terms of order 1, two of which may cancel.
        bound = 8 * max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
        torch.testing.assert_close(got[name].double(), exact[name], rtol=bound, atol=bound)


def test_float16_does_not_overflow_over_many_examples() -> None:
    x = torch.full((8192, 1), 16.0)
    batches = [(part, None) for part in x.split(512)]
    got = score(linear(1.0), batches, lambda out, _: out.mean(), dtype=torch.float16)
    assert got["weight"].item() == 16.0


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", ["grad", "weight"])
def test_callers_without_gradients(context: type, kind: str) -> None:
    model, batches = small_cnn(), [images(6)]
    expected = score(model, batches, F.cross_entropy, kind=kind)
    with context():
        got = score(model, batches, F.cross_entropy, kind=kind)
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    assert not any(value.is_inference() for value in got.values())


def test_autocast_callers() -> None:
    model, batches = small_cnn(), [images(6), images(4)]
    with torch.autocast("cpu", torch.bfloat16):
        got = score(model, batches, F.cross_entropy)

    def own_autocast(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            return model(batch[0]), batch[1]

    expected = score(model, batches, F.cross_entropy, forward_fn=own_autocast)
    full = score(model, batches, F.cross_entropy)
    assert not torch.equal(got["0.weight"], full["0.weight"])
    torch.testing.assert_close(got["0.weight"], expected["0.weight"], rtol=0.05, atol=1e-3)


def test_recurrent_layers_run_without_dropout_in_evaluation_mode() -> None:
    model = nn.LSTM(2, 3, num_layers=2, dropout=0.5)
    x = torch.randn(4, 2)
    expected = copy.deepcopy(model).eval()(x)[0]
    with preserved_mode(model):
        set_mode(model, train=False)
        assert model.training  # what cuDNN's backward asks for
        assert torch.equal(model(x)[0], expected)
    assert model.training and model.dropout == 0.5


def test_infinite_gradients_stay_infinite_and_nan_is_returned() -> None:
    def scaled(outputs: Tensor, factor: float) -> Tensor:
        return (outputs * factor).sum()

    one = torch.ones(1, 1)
    for factor, wanted in ((math.inf, math.isinf), (math.nan, math.isnan)):
        got = score(linear(1.0), [(one, 1.0), (one, factor), (one, 1.0)], scaled)
        assert wanted(got["weight"].item())


def test_batches_without_examples_do_not_count() -> None:
    empty = (torch.zeros(0, 2), torch.zeros(0))
    got = score(linear(2.0, -2.0), [empty, *RAGGED, empty], squared)
    expected = score(linear(2.0, -2.0), RAGGED, squared)
    assert torch.equal(got["weight"], expected["weight"])


def test_progress_hook_and_one_shot_loaders() -> None:
    calls: list[tuple[str, int, int | None]] = []
    score(linear(1.0, 1.0), iter(RAGGED), squared, progress=lambda *call: calls.append(call))
    assert calls == [("score", 1, None), ("score", 2, None)]
    del calls[:]
    score(linear(1.0, 1.0), RAGGED, squared, kind="ratio", retain=RETAIN,
          progress=lambda *call: calls.append(call))  # fmt: skip
    assert [call[1:] for call in calls] == [(1, 2), (2, 2), (1, 1)]


def test_progress_bar_writes_to_stderr_only(capsys: pytest.CaptureFixture[str]) -> None:
    score(linear(1.0, 1.0), RAGGED, squared, progress=True)
    assert capsys.readouterr().out == ""


def refusals() -> list[tuple[type[Exception], str, dict[str, object]]]:
    """Return (exception, part of its message, changed arguments)."""
    frozen = linear(1.0).requires_grad_(False)
    imaginary = nn.Linear(2, 1, dtype=torch.complex64)
    return [
        (ValueError, "kind must be one of grad, .* got 'gard'", {"kind": "gard"}),
        (TypeError, "dtype must be a floating-point dtype, got torch.int8", {"dtype": torch.int8}),
        (ValueError, "eps must be positive and finite, got 0", {"eps": 0}),
        (ValueError, "eps must be positive and finite, got nan", {"eps": math.nan}),
        (TypeError, "eps must be a number, got bool", {"eps": True}),
        (TypeError, "retain must be a loader for kind 'ratio', got NoneType", {"kind": "ratio"}),
        (TypeError, "loader must be iterable, got NoneType", {"loader": None}),
        (TypeError, "loss_fn must be callable, got NoneType", {"loss_fn": None}),
        (ValueError, "loader must yield at least one example, got none", {"loader": []}),
        (ValueError, "requires_grad, got none", {"model": frozen}),
        (TypeError, "model must be a torch.nn.Module, got list", {"model": [frozen]}),
        (TypeError, "weight must be real floating point, got torch.complex64",
         {"model": imaginary}),
        (ValueError, "weight must be initialised", {"model": nn.LazyLinear(2)}),
        (TypeError, "batch must be a pair .*, got dict; pass forward_fn=", {"loader": [{"x": 1}]}),
        (TypeError, "got tuple of length 3", {"loader": [(X, Y, Y)]}),
        (TypeError, r"floating scalar of shape \(\), got torch.float32 of shape \(3,\)",
         {"loss_fn": lambda out, y: out[:, 0] - y, "loader": [(X, Y)]}),
        (TypeError, "loss_fn must return a tensor, got float", {"loss_fn": lambda out, y: 0.0}),
        (ValueError, "loss must depend on a trainable parameter",
         {"loss_fn": lambda out, y: y.mean()}),
        (TypeError, "must hold a tensor with a batch dimension, got float and NoneType",
         {"forward_fn": lambda model, batch: (0.0, None)}),
        (TypeError, "outputs must be a floating-point tensor for 'mas', got list",
         {"kind": "mas", "forward_fn": lambda model, batch: ([model(batch[0])], None)}),
    ]  # fmt: skip


@pytest.mark.parametrize(("error", "message", "changes"), refusals())
def test_refusals(error: type[Exception], message: str, changes: dict[str, object]) -> None:
    arguments = {"model": linear(1.0, 1.0), "loader": RAGGED, "loss_fn": squared, **changes}
    with pytest.raises(error, match=f"^(score|forward_fn): .*{message}"):
        score(**arguments)
