"""Checks that scores are valid: clean test rows, predictions that are not degenerate, a model that is
served, fast and small enough."""

from __future__ import annotations

import math

import numpy as np

from nightgate.gate.decision import Check
from nightgate.gate.evidence import Serving
from nightgate.gate.measurements import Case
from nightgate.gate.wording import stored

SERVING_TOLERANCE = 1e-3
"""Largest difference between the night's logits and those of a fresh process without this package's code."""


def clean_test(case: Case) -> Check:
    """Whether the test rows that each model was trained on are known; those are excluded."""
    sides = {role: side for role in case.roles if (side := case.side(role)) is not None}
    trained_on = {
        role: int(np.count_nonzero(side.trained_on)) for role, side in sides.items() if side.trained_on is not None
    }
    kept, rows = int(np.count_nonzero(case.clean)), len(case.evidence.test)
    unknown = [
        f"it is not known which test rows {case.name(role)} was trained on"
        + (f": {side.unknown_line}" if side.unknown_line else "")
        for role, side in sides.items()
        if side.trained_on is None
    ]
    if unknown:
        reason = "; ".join(unknown)
    elif not rows:
        reason = "there are no test rows"
    elif not kept:
        reason = f"none of {rows:,} test rows is left: a model was trained on each of them"
    elif kept == rows:
        reason = f"no model was trained on or selected by any of {rows:,} test rows"
    else:
        counts = ", ".join(f"{case.name(role)} on {count:,}" for role, count in trained_on.items() if count)
        reason = f"{rows - kept:,} of {rows:,} test rows are excluded because a model was trained on them ({counts})"
    return Check(
        name="clean_test",
        outcome="failed" if unknown or not kept else "passed",
        reason=reason,
        metric="rows_trained_on",
        candidate_value=trained_on.get("candidate"),
        champion_value=trained_on.get("champion"),
        rows_used=kept,
    )


def degenerate(case: Case) -> Check:
    """Whether the candidate has learned something: shares of classes, finite logits, calibration."""
    policy, side = case.policy, case.evidence.candidate
    if obstacle := case.obstacle("candidate"):
        return Check("degenerate", "failed", obstacle, "share_gap", threshold=policy.max_share_gap)
    names = sorted(case.evidence.label_names)
    shares = [
        np.bincount(labels, minlength=case.num_labels) / case.num_rows
        for labels in (case.labels("candidate", case.window), case.true(case.window))
    ]
    gaps = np.abs(shares[0] - shares[1])
    widest = int(gaps.argmax())
    gap, error = float(gaps[widest]), side.calibration_error
    widest_gap = (
        f"{shares[0][widest]:.1%} of the candidate's predictions and {shares[1][widest]:.1%} of the "
        f"{case.num_rows:,} test rows are {names[widest]!r}"
    )
    faults = []
    # max_share_gap 1 switches both checks of shares off.
    if shares[0].max() == 1 and policy.max_share_gap < 1:
        faults.append(f"the candidate predicts {names[int(shares[0].argmax())]!r} for all {case.num_rows:,} test rows")
    if side.nonfinite_rows:
        faults.append(f"the candidate gives {side.nonfinite_rows:,} rows a logit that is NaN or infinite")
    if gap > policy.max_share_gap:
        faults.append(f"{widest_gap}: a gap of {gap:.4f}, more than max_share_gap {policy.max_share_gap:.4f}")
    bound = f"max_calibration_error {policy.max_calibration_error:.4f}"
    if error is None and policy.max_calibration_error < 1:
        faults.append(f"the candidate's calibration error is unknown, so it is not shown to be within {bound}")
    elif error is not None and not error <= policy.max_calibration_error:
        faults.append(f"the candidate's calibration error {error:.4f} is not within {bound}")
    calibration = "its calibration error is unknown" if error is None else f"its calibration error is {error:.4f}"
    return Check(
        name="degenerate",
        outcome="failed" if faults else "passed",
        reason="; ".join(faults) or f"{widest_gap}, the largest gap of any class; {calibration}",
        metric="share_gap",
        candidate_value=gap,
        threshold=policy.max_share_gap,
        rows_used=case.num_rows,
    )


def serving(case: Case) -> Check:
    """Whether a fresh process without this package's code serves the model, as fast and small as the policy asks."""
    served = case.evidence.candidate.serving
    fault, reason, compared = unserved(served), "", True
    if not fault:
        assert served is not None
        fault, budgets, compared = _budgets(case, served)
        reason = (
            f"a fresh process without Nightgate's code gets the same logits on {served.rows:,} rows, within "
            f"{served.logit_difference:.1e} (at most {SERVING_TOLERANCE:g}); {budgets}"
        )
    return Check(
        name="serving",
        outcome="failed" if fault else "passed" if compared else "warning",
        reason=fault or reason,
        metric="logit_difference",
        candidate_value=stored(served.logit_difference) if served else None,
        threshold=SERVING_TOLERANCE,
        rows_used=served.rows if served else None,
    )


def unserved(served: Serving | None, who: str = "the saved candidate") -> str:
    """Why the model is not shown to be servable; '' if it is."""
    if served is None:
        return f"{who} was not tried in a fresh process, so it is not shown to be servable"
    if served.flaw:
        return f"{who} cannot be served: {served.flaw}"
    if served.rows <= 0 or served.logit_difference is None or not math.isfinite(served.logit_difference):
        return f"{who} gave no finite logits in a fresh process, so it is not shown to be servable"
    if served.logit_difference > SERVING_TOLERANCE:
        return (
            f"in a fresh process {who}'s logits are off by up to {served.logit_difference:.1e} on "
            f"{served.rows:,} rows, more than {SERVING_TOLERANCE:g}"
        )
    if served.flipped:
        return f"in a fresh process {who} gives {served.flipped:,} of {served.rows:,} rows another label"
    return ""


def _budgets(case: Case, served: Serving) -> tuple[str, str, bool]:
    """What exceeds its budget, what was compared, and whether everything could be compared."""
    champion = case.evidence.champion
    if champion is None:
        return "", "no champion yet, so time and size have no budget", True
    theirs, who = champion.serving, case.name("champion")
    if theirs is None or theirs.flaw:
        why = theirs.flaw if theirs else "it was not tried"
        return "", f"time and size are not compared, because {who} was not served: {why}", False
    over, ratios, compared = [], [], True
    size, champion_size = (None if one.size_bytes is None else one.size_bytes / 1e6 for one in (served, theirs))
    for what, ours, reference, most, key in (
        ("ms a text", served.latency_ms, theirs.latency_ms, case.policy.max_latency_ratio, "max_latency_ratio"),
        ("MB", size, champion_size, case.policy.max_size_ratio, "max_size_ratio"),
    ):
        if reference is None or not math.isfinite(reference) or reference <= 0:
            ratios.append(f"{what} of {who} are unknown and not compared")
            compared = False
        elif ours is None or not math.isfinite(ours):
            over.append(f"the candidate's {what} are unknown, so it is not shown to be within {key} {most:g}")
        else:
            ratios.append(f"{ours:.1f} {what}, {ours / reference:.2f} times {reference:.1f} of {who}")
            if ours > most * reference:
                over.append(f"the candidate takes {ratios[-1]}, more than {key} {most:g}")
    return "; ".join(over), "; ".join(ratios), compared
