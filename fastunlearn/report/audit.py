"""Says in plain words what an audit's instrument is worth on this data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fastunlearn.evaluation.anchors import out_of_order
from fastunlearn.report.definitions import metric_for
from fastunlearn.report.reading import Finding, show
from fastunlearn.report.view import RETRAIN, Stat, View, finite, interval_of

_DEGREE = metric_for("unlearning_degree")
_SHARE = metric_for("unshifted_forget_accuracy")
_CLOSENESS = (
    ("linf", "greatest change of a value {} of the range", "{:.2f}"),
    ("psnr", "peak signal-to-noise ratio {} dB", "{:.1f}"),
    ("ssim", "structural similarity {}", "{:.2f}"),
    ("discriminator_auc", "area under the discriminator's ROC curve {}", "{:.2f}"),
)


@dataclass(frozen=True)
class Gain:
    """The instrument's gain over plain accuracy.

    Args:
        value: Ratio of the two mean spreads; None where the plain one is not above 0.
        shifted: Spread between original and retrained model on the shifted forget set.
        plain: The same on the unshifted one.
        seeds: The ratio of each seed, None where undefined.
    """

    value: float | None
    shifted: Stat
    plain: Stat
    seeds: dict[int, float | None]


def gain(view: View, kind: str = "plain") -> Gain | None:
    """Return the gain over the seeds; None where there was no audit.

    The ratio of the means, not the mean of the ratios [ours]: a seed on which plain accuracy
    hardly tells the models apart would rule the latter.

    Args:
        view: The results.
        kind: "plain" compares with an original model that learned the unshifted data, "unshifted"
            with the audit's own.
    """
    key = "gain" if kind == "plain" else "gain_unshifted"
    spreads = [audit["spread"] for audit in view.audits.values()]
    shifted = _spread([spread["shifted"] for spread in spreads])
    plain = _spread([spread[kind] for spread in spreads])
    if shifted is None or plain is None:
        return None
    value = shifted.mean / plain.mean if plain.mean > 0.0 else None
    return Gain(value, shifted, plain, {s: finite(a[key]) for s, a in view.audits.items()})


def _spread(values: list[float]) -> Stat | None:
    """Return mean and interval of a difference of accuracies, cut to what it can be."""
    stat = interval_of(values)
    if stat is None or stat.interval is None:
        return stat
    low, high = (_DEGREE.clip(end) for end in stat.interval)
    return Stat(stat.mean, low, high, stat.n)


def anchor_failures(view: View) -> list[str]:
    """Return one clause for each pair of anchors that is out of order, with the seeds where it is.

    The mean over the seeds is looked at as well.
    """
    where: dict[tuple[str, str], list[str]] = {}
    for seed, audit in view.audits.items():
        for first, second in audit["anchors"]["out_of_order"]:
            where.setdefault((first, second), []).append(f"seed {seed}")
    degrees = anchor_degrees(view)
    names = list(degrees)
    for i, j in out_of_order([stat.mean for stat in degrees.values()]) if degrees else ():
        where.setdefault((names[i], names[j]), []).append("mean over seeds")
    return [_pair_words(view, *pair, ", ".join(places)) for pair, places in where.items()]


def anchor_degrees(view: View) -> dict[str, Stat]:
    """Return each anchor's degree over the seeds; that of `retrain` is all retrained models'."""
    rows: dict[str, list[float]] = {}
    for audit in view.audits.values():
        anchors = audit["anchors"]
        for name, degree in zip(anchors["order"], anchors["degrees"], strict=True):
            rows.setdefault(name, []).append(degree)
    stats = {name: _spread(values) for name, values in rows.items()}
    return {name: stat for name, stat in stats.items() if stat is not None}


def _pair_words(view: View, first: str, second: str, where: str) -> str:
    words = "not below" if {first, second} == {"original", "retrain"} else "above"
    return f"{view.label(first)} lies {words} {view.label(second)} ({where})"


def failure_sentence(view: View) -> str | None:
    """Return the sentence that says that the instrument failed; None where it did not."""
    failures = anchor_failures(view)
    if not failures:
        return None
    return (
        f"The instrument failed on this data, its anchors are out of order: {'; '.join(failures)}."
    )


def audit_findings(view: View) -> list[Finding]:
    """Return what an audit says of its instrument; empty where there was no audit."""
    return list(_findings(view)) if view.audits else []


def _findings(view: View) -> Iterator[Finding]:
    yield Finding("How slight the shift is", _closeness_words(view))
    yield Finding("How hard the shifted data is", _reference_words(view))
    own, unshifted = gain(view), gain(view, "unshifted")
    assert own is not None and unshifted is not None  # there is an audit
    yield Finding("Gain over plain accuracy", _gain_words(own, unshifted))
    yield Finding("Anchors", _anchor_words(view))
    if retrained := _retrained_words(view):
        yield Finding("Retrained models", retrained)


def _closeness_words(view: View) -> str:
    parts = []
    for key, words, form in _CLOSENESS:
        found = [finite(audit["closeness"].get(key)) for audit in view.audits.values()]
        values = [value for value in found if value is not None]
        if values:
            parts.append(words.format(form.format(sum(values) / len(values))))
    ends = sorted({str(audit["fit"]["stopped"]) for audit in view.audits.values()})
    return (
        f"Means over seeds: {', '.join(parts)}. Training of the generator ended: {'; '.join(ends)}."
    )


def _reference_words(view: View) -> str:
    means = {}
    for key in ("unshifted", "shifted"):
        values = [v for audit in view.audits.values() for v in audit["references"][key]]
        means[key] = _SHARE.quantity(sum(values) / len(values))
    return (
        f"The reference models, which never saw this data, get {means['unshifted']} of it right "
        f"before the shift and {means['shifted']} after it."
    )


def _retrained_words(view: View) -> str | None:
    """Return how far apart the retrained models are whose mean is the aim; None of one alone."""
    rows = _retrained_rows(view)
    if not rows:
        return None
    seeds = "; ".join(
        f"seed {seed}: {', '.join(_SHARE.number(value) for value in found)}"
        for seed, found in rows.items()
    )
    return (
        "Degree and gain take the mean performance of several retrained models, the row Retrained "
        f"is the first of them. What each gets of the shifted data, %: {seeds}. A further "
        "retrained model can be expected 1.4 times as far from their mean as each of them is."
    )


def _retrained_rows(view: View) -> dict[int, list[float]]:
    """Return the accuracies on the shifted data of the seeds with several retrained models."""
    found = {s: audit.get("retrained", {}).get("shifted", []) for s, audit in view.audits.items()}
    return {seed: values for seed, values in found.items() if len(values) > 1}


def _gain_words(own: Gain, unshifted: Gain) -> str:
    spread = f"{show(_DEGREE, own.shifted)} apart on the shifted data"
    plain = f"{show(_DEGREE, own.plain)} on the unshifted data"
    lead = f"Original and retrained model lie {spread}, and {plain} if the original learned that."
    if own.value is None:
        return f"{lead} Plain accuracy does not tell them apart at all, so the gain is undefined."
    seeds = ", ".join("undefined" if v is None else f"{v:.1f}" for v in own.seeds.values())
    other = "undefined" if unshifted.value is None else f"{unshifted.value:.1f}"
    unsure = own.plain.interval is not None and own.plain.sign() <= 0
    limit = "What plain accuracy sees cannot be told from 0, so take this as large. " * unsure
    return (
        f"{lead} So the instrument spreads them {own.value:.1f} times as far (by seed: {seeds}). "
        f"{limit}Measured against the audit's own original model, which never saw the unshifted "
        f"data, the gain is {other}."
    )


def _anchor_words(view: View) -> str:
    several = ", mean of all," if _retrained_rows(view) else ""
    series = ", ".join(
        f"{view.label(m)}{several if m == RETRAIN else ''} {show(_DEGREE, stat)}"
        for m, stat in anchor_degrees(view).items()
    )
    failed = failure_sentence(view)
    if failed is not None:
        return f"{failed} Degrees: {series}."
    return f"In order on every seed and in the mean. Degrees: {series}."
