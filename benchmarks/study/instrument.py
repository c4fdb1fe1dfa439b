"""Where an audit's instrument failed: there the normalised degree may be noise over noise."""

from __future__ import annotations

from benchmarks.study.curve import LEAST_GAIN
from fastunlearn.report.view import View, finite

MARK = "†"


def failed_seeds(view: View) -> dict[int, str]:
    """Return the seeds on which the instrument is not shown to work, each with the reason."""
    found = {}
    for seed, audit in view.audits.items():
        gain, reasons = finite(audit["gain"]), []
        if not audit["anchors"]["in_order"]:
            reasons.append("anchors out of order")
        if gain is None:
            reasons.append("gain undefined")
        elif gain < LEAST_GAIN:
            reasons.append(f"gain {gain:.1f}, below {LEAST_GAIN:g}")
        if reasons:
            found[seed] = ", ".join(reasons)
    return found


def failure_words(view: View) -> str | None:
    """Return the sentence that names these seeds; None where there are none."""
    failed = failed_seeds(view)
    if not failed:
        return None
    seeds = "; ".join(f"seed {seed} ({reason})" for seed, reason in failed.items())
    return (
        f"{MARK} The instrument is not shown to work on {len(failed)} of {len(view.seeds)} seeds: "
        f"{seeds}. Degree* may be noise over noise there."
    )
