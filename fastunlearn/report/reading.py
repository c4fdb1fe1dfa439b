"""Says in plain words what a results file shows, hedged by its intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from fastunlearn.report.definitions import Metric, metric_for
from fastunlearn.report.view import ORIGINAL, RETRAIN, Stat, View

READING_NOTE = (
    "Computed from the figures. Differences are taken seed by seed; told apart means that the 95 % "
    "interval of the difference leaves out 0."
)


class Finding(NamedTuple):
    """One answer: the question in a few words, and what the data says to it."""

    lead: str
    text: str


NEARNESS = ("average_gap", "average_gap_without_attack", "js_to_retrained")
CONTRASTED = (
    "forget_accuracy",
    "retain_accuracy",
    "test_accuracy",
    *NEARNESS,
    "mia_auc",
    "run_time_ratio",
)


def show(metric: Metric, stat: Stat | None) -> str:
    """Return mean, unit and interval of a figure as text."""
    if stat is None:
        return "undefined"
    text = metric.quantity(stat.mean)
    return text if stat.interval is None else f"{text} {bracket(metric, stat)}"


def bracket(metric: Metric, stat: Stat) -> str:
    """Return the interval as text; empty where there is none."""
    if stat.interval is None:
        return ""
    return "[{}, {}]".format(*(metric.number(end) for end in stat.interval))


def show_difference(metric: Metric, stat: Stat) -> str:
    """Return a signed difference with its interval as text."""
    number = metric.number(stat.mean)
    unit = "points" if metric.unit == "%" else metric.unit
    sign = "" if number.startswith("-") else "+"
    return " ".join(part for part in (sign + number, bracket(metric, stat), unit) if part)


def headline(view: View) -> list[str]:
    """Return sentences: what was forgotten, what was kept, in what time, on which data."""
    if not view.runs:
        return ["No seed is finished yet, so there is nothing to report."]
    return [_task(view), *_outcomes(view)]


def _named(value: Any, fallback: str) -> str:
    if isinstance(value, dict):
        value = value.get("name", value.get("kind", fallback))
    return str(value) if value else fallback


def _task(view: View) -> str:
    sizes, n_params = view.runs[0].get("sizes") or {}, view.runs[0].get("n_params")
    data = _named(view.config.get("dataset"), "the data")
    model = _named(view.config.get("model"), "the model")
    forget, retain = sizes.get("forget"), sizes.get("retain")
    amount = "Part"
    if forget is not None and retain is not None:
        amount = f"{forget:,} of {forget + retain:,}"
    size = f" ({n_params:,} parameters)" if n_params else ""
    count = len(view.seeds)
    seeds = "1 seed" if count == 1 else f"{count} seeds"
    scenario = view.config.get("scenario")
    wrong = (
        " Their labels are wrong: forget accuracy counts agreement with the wrong labels."
        if isinstance(scenario, dict) and scenario.get("kind") == "mislabelled"
        else ""
    )
    shift = (
        " It is an audit: SPD-GAN shifted these examples slightly before the original model "
        "learned them, and the data to forget is the shifted one below."
        if view.audits
        else ""
    )
    return (
        f"{amount} training examples of {data} ({scenario_words(view.config)}) were to be "
        f"forgotten by the model {model}{size}. The figures come from {seeds}.{wrong}{shift}"
    )


def scenario_words(config: Any) -> str:
    """Return the forget scenario in words."""
    scenario = config.get("scenario") or {}
    if not isinstance(scenario, dict):
        return str(scenario)
    kind = str(scenario.get("kind", "unnamed scenario"))
    fraction = scenario.get("fraction")
    share = f"{100 * fraction:g} %" if isinstance(fraction, (int, float)) else ""
    if kind == "class":
        return f"all of class {scenario.get('class', '?')}"
    if kind.startswith("random") and share:
        return f"a random {share}"
    if kind == "memorised" and share:
        return f"the most memorised {share}"
    return f"{kind} examples, {share}" if share else kind


def _outcomes(view: View) -> list[str]:
    shown = [m for m in view.methods if m in ("recipe", "top_k", "random_k")] or view.unlearned
    return [_outcome(view, method) for method in shown]


def _outcome(view: View, method: str) -> str:
    parts = []
    degree = view.stat(method, "unlearning_degree_normalised")
    if degree is not None:
        share = show(metric_for("unlearning_degree_normalised"), degree)
        parts.append(f"normalised unlearning degree {share}, where retraining has 1")
    for key, words in (("forget_accuracy", "data to forget"), ("retain_accuracy", "kept data")):
        metric = metric_for(key)
        before, after = view.stat(ORIGINAL, key), view.stat(method, key)
        if after is None:
            continue
        start = f"from {metric.quantity(before.mean)} to " if before else ""
        reference = view.stat(RETRAIN, key)
        aim = f" (retrained: {metric.quantity(reference.mean)})" if reference else ""
        parts.append(f"accuracy on the {words} went {start}{metric.quantity(after.mean)}{aim}")
    ratio = view.stat(method, "run_time_ratio")
    if ratio is not None:
        number = metric_for("run_time_ratio").number(ratio.mean)
        parts.append(f"it took {number} times as long as retraining")
    return f"{view.label(method)}: " + "; ".join(parts or ["no figure is defined"]) + "."


def reading(view: View) -> list[Finding]:
    """Return what the data shows, one finding per question.

    Every comparison is made seed by seed (paired) with a 95 % Student-t interval; "told apart"
    means that the interval of the difference leaves out 0.
    """
    if not view.runs:
        return []
    sections = (_basis, _room, _floor, _nearness, _divergence, _contrast, _losses, _attack, _time)
    return [finding for section in sections for finding in section(view)]


def _basis(view: View) -> Iterable[Finding]:
    if not view.complete:
        yield Finding(
            "Incomplete run",
            f"{len(view.seeds)} of {len(view.planned)} planned seeds are done. The figures may "
            "change.",
        )
    if len(view.seeds) == 1:
        yield Finding(
            "One seed",
            "There is no interval, and no difference below can be told from chance. Use at least "
            "three seeds, better five.",
        )
    elif len(view.seeds) == 2:
        yield Finding("Two seeds", "The intervals are very wide, as they must be.")


def _room(view: View) -> Iterable[Finding]:
    metric = metric_for("forget_accuracy")
    gap = view.paired(ORIGINAL, RETRAIN, metric.key)
    if gap is None:
        return
    lead, drop = "How much there is to forget", show_difference(metric, gap)
    if gap.sign() > 0:
        text = (
            "On the data to forget, the original model is more accurate than the retrained one "
            f"({drop}). This gap is what unlearning should close, and no more."
        )
    elif gap.sign() < 0:
        text = (
            "On the data to forget, the original model is less accurate than the retrained one "
            f"({drop}). Lower forget accuracy is then not nearer to retraining."
        )
    elif gap.interval is not None:
        text = (
            "On the data to forget, the original and the retrained model cannot be told apart "
            f"({drop}). Forget accuracy then says little about forgetting, and figures normalised "
            "by this gap are unsteady."
        )
    else:
        text = f"Forget accuracy, original minus retrained: {drop}."
    yield Finding(lead, text)


def _floor(view: View) -> Iterable[Finding]:
    for method in view.again:
        parts = [
            f"{lower_first(metric.title)} {show(metric, stat)}"
            for metric in map(metric_for, NEARNESS)
            if (stat := view.stat(method, metric.key)) is not None
        ]
        if parts:
            yield Finding(
                "What two honest retrainings differ by",
                f"{view.label(method)}, against the first retrained model: {'; '.join(parts)}. No "
                "method can be expected nearer than this.",
            )


def _nearness(view: View) -> Iterable[Finding]:
    yield from _near_by(view, metric_for("average_gap"), "Nearness to retraining")
    metric = metric_for("average_gap_without_attack")
    yield from _near_by(view, metric, "Nearness to retraining, accuracies alone")


def _near_by(view: View, metric: Metric, lead: str) -> Iterable[Finding]:
    ranked = _ranked(view, [*view.unlearned, *view.again, ORIGINAL], metric.key)
    if not ranked:
        return
    order = ", ".join(f"{view.label(m)} {show(metric, view.stat(m, metric.key))}" for m in ranked)
    text = f"By {lower_first(metric.title)}, smallest mean first: {order}."
    if not view.again:
        text += " Not even a second retrained model would have a gap of 0, because seeds differ."
    yield Finding(lead, text)
    for other in (ORIGINAL, "fine_tune"):
        methods = [m for m in view.unlearned if m != other]
        if other in view.methods and methods:
            yield from _against(view, methods, other, metric)


def _divergence(view: View) -> Iterable[Finding]:
    metric = metric_for("js_to_retrained")
    methods = [m for m in view.unlearned if view.values(m, metric.key)]
    if methods and view.values(ORIGINAL, metric.key):
        yield from _against(view, methods, ORIGINAL, metric)


def _ranked(view: View, methods: Iterable[str], key: str) -> list[str]:
    means = [(stat.mean, m) for m in methods if (stat := view.stat(m, key)) is not None]
    return [method for _, method in sorted(means, key=lambda pair: pair[0])]


def _against(view: View, methods: Sequence[str], other: str, metric: Metric) -> Iterable[Finding]:
    groups: dict[int, list[str]] = {-1: [], 1: [], 0: []}
    for method in methods:
        stat = view.paired(method, other, metric.key)
        if stat is not None:
            words = f"{view.label(method)} ({show_difference(metric, stat)})"
            groups[stat.sign()].append(words)
    names = {-1: "nearer to retraining", 1: "farther from retraining", 0: "not told apart"}
    if len(view.seeds) == 1:
        names[0] = "differences from one seed"
    parts = [f"{names[sign]}: {', '.join(found)}" for sign, found in groups.items() if found]
    if parts:
        name = "doing nothing" if other == ORIGINAL else view.label(other)
        text = "; ".join(parts) + "."
        yield Finding(f"Against {name}, by {lower_first(metric.title)}", capital(text))


def lower_first(title: str) -> str:
    """Return ``title`` as it stands inside a sentence; names keep their capital."""
    return title if title.startswith("Jensen") else title[:1].lower() + title[1:]


def capital(text: str) -> str:
    """Return ``text`` with a capital first letter."""
    return text[:1].upper() + text[1:]


def _contrast(view: View) -> Iterable[Finding]:
    if not {"top_k", "random_k"} <= set(view.methods):
        return
    apart: list[str] = []
    alike: list[str] = []
    for key in CONTRASTED:
        metric, stat = metric_for(key), view.paired("top_k", "random_k", key)
        if stat is not None:
            words = f"{lower_first(metric.title)} {show_difference(metric, stat)}"
            (apart if stat.sign() else alike).append(words)
    lead = f"{view.label('top_k')} minus {view.label('random_k')}"
    if len(view.seeds) == 1:
        yield Finding(f"{lead}, one seed", capital("; ".join(alike)) + ".")
        return
    total = len(apart) + len(alike)
    text = (
        f"Told apart: {'; '.join(apart) or 'nothing'}. "
        f"Not told apart: {'; '.join(alike) or 'nothing'}. "
        f"These are {total} comparisons, each at 95 %: where there is no difference at all, about "
        "one in twenty still looks like one."
    )
    yield Finding(lead, text)


def _losses(view: View) -> Iterable[Finding]:
    metric = metric_for("retain_accuracy")
    lost: list[str] = []
    unclear: list[str] = []
    for method in view.unlearned:
        stat = view.paired(method, ORIGINAL, metric.key)
        if stat is not None:
            words = f"{view.label(method)} ({show_difference(metric, stat)})"
            (lost if stat.sign() < 0 else unclear).append(words)
    parts = [f"accuracy on the kept data was lost by {', '.join(lost)}"] if lost else []
    if unclear:
        words = "no loss could be told from chance for"
        if len(view.seeds) == 1:
            words = "retain accuracy, difference from one seed:"
        parts.append(f"{words} {', '.join(unclear)}")
    if parts:
        yield Finding("What was kept, against the original", capital("; ".join(parts)) + ".")


def _attack(view: View) -> Iterable[Finding]:
    metric = metric_for("mia_auc")
    groups: dict[int, list[str]] = {1: [], -1: [], 0: []}
    widths = []
    for method in view.methods:
        stat = None if method == RETRAIN else view.paired(method, RETRAIN, metric.key)
        if stat is None:
            continue
        groups[stat.sign()].append(f"{view.label(method)} {show_difference(metric, stat)}")
        if stat.interval is not None:
            widths.append((stat.interval[1] - stat.interval[0]) / 2)
    names = {1: "above for", -1: "below for", 0: "not told apart for"}
    if len(view.seeds) == 1:
        names[0] = "one seed, not judged:"
    parts = [f"{names[sign]} {', '.join(found)}" for sign, found in groups.items() if found]
    if parts:
        yield Finding(
            "Membership inference AUC, against the retrained model",
            f"{capital('; '.join(parts))}. {_strength(view, widths)}Where this attack finds "
            "nothing, something may still be left.",
        )


def _strength(view: View, widths: Sequence[float]) -> str:
    """Return how much the attack could see: its examples, and the spread over seeds."""
    text = ""
    sizes = view.values(RETRAIN, "mia_examples_per_side").values()
    if sizes:
        ends = dict.fromkeys(f"{size:,.0f}" for size in (min(sizes), max(sizes)))
        text = f"The attack saw {' to '.join(ends)} examples per side. "
    if widths:
        metric = metric_for("mia_auc")
        text += (
            "The smallest difference that these seeds could show, half the width of the paired "
            f"95 % interval, is {metric.number(min(widths))} to {metric.number(max(widths))}, by "
            "method. "
        )
    return text


def _time(view: View) -> Iterable[Finding]:
    metric = metric_for("run_time_ratio")
    ranked = _ranked(view, view.unlearned, metric.key)
    if ranked:
        shown = ", ".join(
            f"{view.label(m)} {show(metric, view.stat(m, metric.key))}" for m in ranked
        )
        yield Finding("Time, as a multiple of retraining", f"Shortest mean first: {shown}.")
