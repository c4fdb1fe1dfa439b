"""Similarity of two models' representations: linear centred kernel alignment, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fastunlearn._loop import preserved_mode
from fastunlearn.metrics.undefined import Undefined

__all__ = ["layer_similarity", "linear_cka"]

_CHUNK = 500


def linear_cka(features_a: Tensor, features_b: Tensor, *, debiased: bool = False) -> float:
    """Return the linear CKA of two representations of the same examples.

    HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with the Gram matrices K = A A^T and L = B B^T, over
    all examples at once (no mean over minibatches). It does not change with rotations, scale or
    shift of either side; 1 means equal up to these.

    The biased estimator (centred Gram matrices, Kornblith et al.) drifts towards 1 when there are
    more features than examples, also for unrelated representations: compare values of one n only,
    or take ``debiased=True`` (the unbiased HSIC of Song et al. in each place, diagonal left out),
    which is near 0 for unrelated representations and may be slightly negative.

    Args:
        features_a: Shape (n, ...), floating point; all but the first dimension is flattened to p
            features. Not mutated.
        features_b: Shape (n, ...), the same examples in the same order, q features. Not mutated.
        debiased: Use the unbiased HSIC, which needs n >= 4.

    Returns:
        At most 1; :class:`~fastunlearn.metrics.Undefined` where a side is the same for all examples
        or a value is not finite. Computed in float64 in O(n^2 (p + q)) time and O(n^2) memory, or
        O(n (p + q)^2) and O((p + q)^2) where n > max(p, q).

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If the numbers of examples differ or are too small.

    Example:
        >>> a = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0], [5.0, 3.0]])
        >>> round(linear_cka(a, 3.0 * a.flip(1) + 1.0), 12)
        1.0

    Source:
        S. Kornblith et al., Similarity of neural network representations revisited, ICML 2019; L.
        Song et al., Feature selection via dependence maximization, JMLR 2012 (unbiased HSIC); T.
        Nguyen et al., Do wide and deep networks learn the same things?, ICLR 2021 (its use in CKA).
    """
    op = "linear_cka"
    a, b = _centred(op, "features_a", features_a), _centred(op, "features_b", features_b)
    n = len(a)
    if len(b) != n:
        raise ValueError(f"{op}: features_b must hold {n} examples, got {len(b)}")
    least = 4 if debiased else 2
    if n < least:
        raise ValueError(f"{op}: features_a must hold at least {least} examples, got {n}")
    if not (a.isfinite().all() and b.isfinite().all()):
        return Undefined("a representation is not finite")
    hsic = _feature_hsic if n > max(a.shape[1], b.shape[1]) else _gram_hsic
    own_a, own_b = hsic(a, a, debiased), hsic(b, b, debiased)
    for own in (own_a, own_b):
        if own <= 0.0:
            return Undefined("a representation is the same for all examples")
    # Each root on its own: the product of two small numbers would underflow.
    return hsic(a, b, debiased) / (own_a**0.5 * own_b**0.5)


def layer_similarity(
    model_a: nn.Module,
    model_b: nn.Module,
    x: Tensor,
    layers: Sequence[str] | None = None,
    *,
    debiased: bool = False,
) -> dict[str, float]:
    """Return the linear CKA of two models of one architecture, layer by layer.

    Against the retrained model it shows where an unlearned model still differs inside, which equal
    outputs hide. Give examples of the forget set, and read it beside the value between two models
    retrained with different seeds: that is the best a method can reach, and it is below 1.

    Args:
        model_a: The first model; runs in eval mode without a graph. Mode and hooks are put back,
            also on an error. Not mutated.
        model_b: The second model, whose modules have the same names.
        x: Inputs, shape (n, ...), on the models' device. Not mutated.
        layers: Names of modules as in ``named_modules()``, each called once in a forward pass and
            returning a tensor with n rows; None takes every module without children that does.
        debiased: As :func:`linear_cka`.

    Returns:
        The value of :func:`linear_cka` by layer name, in the order of the modules. The outputs of
        all layers are held in memory as float32 or wider.

    Raises:
        ValueError: If a layer is missing or has no usable output, or ``x`` holds too few examples.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
        >>> x = torch.eye(3).repeat(3, 1)
        >>> {name: round(value, 6) for name, value in layer_similarity(model, model, x).items()}
        {'0': 1.0, '1': 1.0}

    Source:
        As :func:`linear_cka`.
    """
    outputs = [_layer_outputs(model, x, layers) for model in (model_a, model_b)]
    if outputs[0].keys() != outputs[1].keys():
        differing = sorted(outputs[0].keys() ^ outputs[1].keys())
        raise ValueError(
            "layer_similarity: model_b must have the layers of model_a, "
            f"got {differing[0]!r} in one of them only"
        )
    return {
        name: linear_cka(own, outputs[1][name], debiased=debiased)
        for name, own in outputs[0].items()
    }


def _centred(op: str, name: str, features: Tensor) -> Tensor:
    """Return features as float64 (n, p) with mean 0 in each column."""
    if not isinstance(features, Tensor) or not features.is_floating_point():
        got = features.dtype if isinstance(features, Tensor) else type(features).__name__
        raise TypeError(f"{op}: {name} must be a floating-point tensor, got {got}")
    if features.ndim < 2 or features.numel() == 0:
        raise ValueError(f"{op}: {name} must have shape (n, ...), got {tuple(features.shape)}")
    rows = features.detach().flatten(1).double()
    rows = rows - rows[0]  # so that a constant column becomes 0 to the bit
    return rows - rows.mean(0)


def _gram_hsic(a: Tensor, b: Tensor, debiased: bool) -> float:
    """Return HSIC of centred features, up to a factor that cancels in CKA, by n x n matrices."""
    k, l = a @ a.T, b @ b.T  # noqa: E741  (the field's own names)
    if not debiased:
        return float((k * l).sum())
    k.fill_diagonal_(0.0)
    l.fill_diagonal_(0.0)
    return _unbiased((k * l).sum(), k.sum(1), l.sum(1))


def _feature_hsic(a: Tensor, b: Tensor, debiased: bool) -> float:
    """Return what :func:`_gram_hsic` returns, by p x q matrices."""
    product = (a.T @ b).square().sum()
    if not debiased:
        return float(product)
    # With centred features the rows of A A^T sum to 0, so without the diagonal to minus the latter.
    diagonal_a, diagonal_b = a.square().sum(1), b.square().sum(1)
    return _unbiased(product - diagonal_a @ diagonal_b, -diagonal_a, -diagonal_b)


def _unbiased(trace: Tensor, rows_k: Tensor, rows_l: Tensor) -> float:
    """Return the unbiased HSIC times n (n - 3), from matrices K and L with an empty diagonal.

    Args:
        trace: tr(K L).
        rows_k: Row sums of K, shape (n,).
        rows_l: Row sums of L, shape (n,).
    """
    n = len(rows_k)
    mean = rows_k.sum() * rows_l.sum() / ((n - 1) * (n - 2))
    return float(trace + mean - 2.0 * (rows_k @ rows_l) / (n - 2))


@torch.no_grad()
def _layer_outputs(model: nn.Module, x: Tensor, layers: Sequence[str] | None) -> dict[str, Tensor]:
    """Return the outputs of the layers for all of x, each of shape (n, p), by name."""
    modules = dict(model.named_modules())
    if layers is None:
        names = [name for name, module in modules.items() if not any(module.children())]
    else:
        missing = [name for name in layers if name not in modules]
        if missing:
            raise ValueError(f"layer_similarity: layers must name modules, got {missing[0]!r}")
        names = [name for name in modules if name in set(layers)]
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    chunks = x.split(_CHUNK)
    with preserved_mode(model), _recorded({name: modules[name] for name in names}, parts):
        model.eval()
        for chunk in chunks:
            model(chunk)
    usable = {
        name: torch.cat(outputs)
        for name, outputs in parts.items()
        if [len(output) for output in outputs] == [len(chunk) for chunk in chunks]
    }
    unusable = [name for name in names if name not in usable]
    if layers is not None and unusable:
        raise ValueError(
            "layer_similarity: layers must be called once and return one row for each example, "
            f"got {unusable[0]!r}"
        )
    return usable


@contextmanager
def _recorded(modules: dict[str, nn.Module], parts: dict[str, list[Tensor]]) -> Iterator[None]:
    """Append every output of the modules to the lists of their names while the block runs."""

    def recorder(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def record(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim >= 1 and output.is_floating_point():
                # A copy, because an in-place layer may follow.
                parts[name].append(output.reshape(len(output), -1).clone())

        return record

    handles = [module.register_forward_hook(recorder(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
