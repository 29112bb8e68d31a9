"""Checks that scores are valid: clean test rows, predictions that are not degenerate, a model that is
served, fast and small enough."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from nightgate.config.gate import LIMITS, Blockable, Gate
from nightgate.gate.decision import Check, Outcome
from nightgate.gate.evidence import Serving
from nightgate.gate.measurements import Case
from nightgate.gate.wording import stored

SERVING_TOLERANCE = 1e-3
"""Largest difference between the night's logits and those of a fresh process without this package's code."""


@dataclass
class Faults:
    """What speaks against a candidate in one check: faults that hold it, and those of which the check only warns."""

    policy: Gate
    held: list[str] = field(default_factory=list)
    warned: list[str] = field(default_factory=list)

    def exceeds(self, check: Blockable, fault: str) -> None:
        """A limit is exceeded, or not shown to be kept."""
        (self.held if self.policy.blocks(check) else self.warned).append(fault)

    @property
    def outcome(self) -> Outcome:
        return "failed" if self.held else "warning" if self.warned else "passed"

    @property
    def reason(self) -> str:
        return "; ".join([*self.held, *self.warned])

    @property
    def brief(self) -> str:
        """For the verdict, which warnings have no part in."""
        return "; ".join(self.held) if self.warned else ""


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
    """Whether the candidate has learned something: more than one class, finite logits, class shares, calibration."""
    policy, side, most = case.policy, case.evidence.candidate, case.policy.limit("shares")
    if obstacle := case.obstacle("candidate"):
        return Check("degenerate", "failed", obstacle, "share_gap", threshold=most)
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
    faults = Faults(policy)
    # max_share_gap 1 switches both checks of shares off.
    if shares[0].max() == 1 and most < 1:
        only = names[int(shares[0].argmax())]
        faults.held.append(f"the candidate predicts {only!r} for all {case.num_rows:,} test rows")
    if side.nonfinite_rows:
        faults.held.append(f"the candidate gives {side.nonfinite_rows:,} rows a logit that is NaN or infinite")
    if gap > most:
        faults.exceeds("shares", f"{widest_gap}: a gap of {gap:.4f}, more than max_share_gap {most:.4f}")
    bound = f"max_calibration_error {policy.limit('calibration'):.4f}"
    if error is None and policy.limit("calibration") < 1:
        what = f"the candidate's calibration error is unknown, so it is not shown to be within {bound}"
        faults.exceeds("calibration", what)
    elif error is not None and not error <= policy.limit("calibration"):
        faults.exceeds("calibration", f"the candidate's calibration error {error:.4f} is not within {bound}")
    calibration = "its calibration error is unknown" if error is None else f"its calibration error is {error:.4f}"
    return Check(
        name="degenerate",
        outcome=faults.outcome,
        reason=faults.reason or f"{widest_gap}, the largest gap of any class; {calibration}",
        metric="share_gap",
        candidate_value=gap,
        threshold=most,
        rows_used=case.num_rows,
        brief=faults.brief,
    )


def serving(case: Case) -> Check:
    """Whether a fresh process without this package's code serves the model, as fast and small as the policy asks."""
    served, faults = case.evidence.candidate.serving, Faults(case.policy)
    found = []
    if fault := unserved(served):
        faults.held.append(fault)
    else:
        assert served is not None
        same = (
            f"a fresh process without Nightgate's code gets the same logits on {served.rows:,} rows, within "
            f"{served.logit_difference:.1e} (at most {SERVING_TOLERANCE:g})"
        )
        if case.evidence.precision != "fp32":
            same += f" in fp32; scored in {case.evidence.precision}, {served.rounded:,} of them have another label"
        found = [same, *_budgets(case, served, faults)]
    return Check(
        name="serving",
        outcome=faults.outcome,
        reason=faults.reason if faults.held else "; ".join([*found, *faults.warned]),
        metric="logit_difference",
        candidate_value=stored(served.logit_difference) if served else None,
        threshold=SERVING_TOLERANCE,
        rows_used=served.rows if served else None,
        brief=faults.brief,
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


def _budgets(case: Case, served: Serving, faults: Faults) -> list[str]:
    """Time and size within their limits; adds what exceeds its limit, or could not be compared, to `faults`."""
    champion = case.evidence.champion
    if champion is None:
        return ["no champion yet, so time and size have no limit"]
    theirs, who = champion.serving, case.name("champion")
    if theirs is None or theirs.flaw:
        why = theirs.flaw if theirs else "it was not tried"
        faults.warned.append(f"time and size are not compared, because {who} was not served: {why}")
        return []
    ratios = []
    size, champion_size = (None if one.size_bytes is None else one.size_bytes / 1e6 for one in (served, theirs))
    budgets: tuple[tuple[Blockable, str, float | None, float | None], ...] = (
        ("latency", "ms a text", served.latency_ms, theirs.latency_ms),
        ("size", "MB", size, champion_size),
    )
    for check, unit, ours, reference in budgets:
        limit = f"{LIMITS[check]} {case.policy.limit(check):g}"
        if reference is None or not math.isfinite(reference) or reference <= 0:
            faults.warned.append(f"{unit} of {who} are unknown and not compared")
        elif ours is None or not math.isfinite(ours):
            faults.exceeds(check, f"the candidate's {unit} are unknown, so it is not shown to be within {limit}")
        else:
            ratio = f"{ours:.1f} {unit}, {ours / reference:.2f} times {reference:.1f} of {who}"
            if ours > case.policy.limit(check) * reference:
                faults.exceeds(check, f"the candidate takes {ratio}, more than {limit}")
            else:
                ratios.append(ratio)
    return ratios
