"""The parts of the membership-inference attack: balancing, scoring, area under the curve."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import Tensor

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

_BOOTSTRAP_SAMPLES = 1000


def canonical_order(features: Tensor, labels: Tensor | None) -> tuple[Array, Labels]:
    """Return features and labels sorted by their values; all labels are 0 where none are given.

    Sorting makes the attack independent of the order in which examples arrive, and so of how
    processes share them out.

    Args:
        features: Shape (N, F), floating point, not mutated.
        labels: Shape (N,), integers, not mutated; or None.

    Returns:
        Shapes (N, F) and (N,).
    """
    rows = features.detach().cpu().double().numpy()
    classes = np.zeros(len(rows), np.int64) if labels is None else labels.cpu().long().numpy()
    order = np.lexsort((*rows.T[::-1], classes))
    return rows[order], classes[order]


def balance(
    forget: tuple[Array, Labels], unseen: tuple[Array, Labels], *, seed: int
) -> tuple[Array, Array]:
    """Draw equally many examples of each class from both sides, without replacement.

    Args:
        forget: Features (N, F) and labels (N,).
        unseen: Features (M, F) and labels (M,).
        seed: Seed of the draw.

    Returns:
        Two arrays of the same shape (n, F); n is 0 where no class is on both sides.
    """
    generator = np.random.default_rng(seed)
    chosen: tuple[list[Array], list[Array]] = ([], [])
    for label in np.intersect1d(forget[1], unseen[1]):
        groups = [rows[labels == label] for rows, labels in (forget, unseen)]
        size = min(len(group) for group in groups)
        for group, into in zip(groups, chosen, strict=True):
            into.append(group[generator.permutation(len(group))[:size]])
    if not chosen[0]:
        return forget[0][:0], unseen[0][:0]
    return np.concatenate(chosen[0]), np.concatenate(chosen[1])


def out_of_fold_scores(
    members: Array, others: Array, *, folds: int, seed: int
) -> tuple[Array, Array]:
    """Score each example by a classifier that was fitted without its fold.

    The classifier is a logistic regression on features standardised within the training folds.

    Args:
        members: Shape (n, F), n >= folds.
        others: Shape (n, F).
        folds: Number of stratified folds.
        seed: Seed of the shuffle in [0, 2^32).

    Returns:
        Log-odds of being a member, shapes (n,) and (n,).

    Raises:
        ImportError: If scikit-learn is missing.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import StratifiedKFold, cross_val_predict
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise ImportError(
            'membership_attack: scikit-learn must be installed: pip install "fastunlearn[eval]"'
        ) from error
    features = np.concatenate([members, others])
    is_member = np.repeat([1, 0], [len(members), len(others)])
    scores = cross_val_predict(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        features,
        is_member,
        cv=StratifiedKFold(folds, shuffle=True, random_state=seed),
        method="decision_function",
    )
    return scores[: len(members)], scores[len(members) :]


def area_under_curve(positive: Array, negative: Array) -> float:
    """Return P(positive > negative) + P(equal) / 2 over all pairs: the area under the ROC curve.

    Args:
        positive: Shape (n,), n >= 1, finite scores of positive examples.
        negative: Shape (m,), m >= 1, finite scores of negative examples.

    Returns:
        A number in [0, 1].

    Example:
        >>> area_under_curve(np.array([2.0, 3.0]), np.array([1.0, 2.0]))
        0.875
    """
    ranks, n_ranks = _dense_ranks(positive, negative)
    return _area(np.bincount(ranks[0], minlength=n_ranks), np.bincount(ranks[1], minlength=n_ranks))


def bootstrap_interval(positive: Array, negative: Array, *, seed: int) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of :func:`area_under_curve`.

    Both sides are resampled on their own, 1,000 times.

    Args:
        positive: Shape (n,), n >= 1.
        negative: Shape (m,), m >= 1.
        seed: Seed of the resampling.

    Returns:
        The 2.5 % and the 97.5 % quantile.
    """
    ranks, n_ranks = _dense_ranks(positive, negative)
    generator = np.random.default_rng(seed)
    areas = np.empty(_BOOTSTRAP_SAMPLES)
    for sample in range(_BOOTSTRAP_SAMPLES):
        counts = (
            np.bincount(side[generator.integers(len(side), size=len(side))], minlength=n_ranks)
            for side in ranks
        )
        areas[sample] = _area(*counts)
    low, high = np.quantile(areas, [0.025, 0.975])
    return float(low), float(high)


def _dense_ranks(positive: Array, negative: Array) -> tuple[tuple[Labels, Labels], int]:
    """Return the rank of each score among the distinct scores, and how many those are."""
    distinct, ranks = np.unique(np.concatenate([positive, negative]), return_inverse=True)
    return (ranks[: len(positive)], ranks[len(positive) :]), len(distinct)


def _area(positive_counts: Labels, negative_counts: Labels) -> float:
    """Return the area under the curve from the number of examples at each distinct score."""
    below = np.cumsum(negative_counts) - negative_counts / 2
    pairs = int(positive_counts.sum()) * int(negative_counts.sum())
    return float(positive_counts @ below) / pairs
