"""The gate: may this candidate replace the champion? A pure function of measurements and policy.

`decide` runs every check, even after one has failed, and gives each a sentence with its numbers. A check passes only
on evidence: a missing or non-finite F1, or one measured on other rows, fails the check that needed it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from nightgate import config
from nightgate.intervals import Interval

Outcome = Literal["passed", "failed", "underpowered", "warning", "not_run"]
Verdict = Literal["promote", "hold"]

LOGIT_TOLERANCE = 1e-4
"""Largest difference between a logit of an earlier night and the same one computed again."""


@dataclass(frozen=True)
class Reuse:
    """How many of a model's `rows` were not scored tonight but on an earlier night."""

    rows: int
    reused: int = 0
    """Rows whose logits of an earlier night stand; 0 when one that was recomputed differed."""
    recomputed: int = 0
    """Of the rows that were stored, those that were scored again tonight, drawn at random."""
    differing: int = 0
    """Of the recomputed rows: a logit further off than the tolerance, or another predicted label."""


@dataclass(frozen=True)
class Measured:
    """What is known of one side. `candidate` and `champion` are measured on the same night, on the same test rows."""

    f1: float | None
    """On the test split, averaged as the policy says."""
    support: int
    """Test rows that were scored."""
    test_version: str
    data_until: datetime | None
    """Aware: the model was trained on rows before this instant."""
    interval: Interval | None = None
    """The F1's 95 % interval; informative."""
    version: int | None = None
    reuse: Reuse | None = None
    """None: all rows were scored tonight."""

    def __post_init__(self) -> None:
        assert self.data_until is None or self.data_until.tzinfo is not None, "data_until must be aware"

    @property
    def flaw(self) -> str:
        """Why the F1 is no evidence, or '' where it is."""
        if self.support <= 0:
            return f"was scored on {self.support} test rows"
        if self.f1 is None:
            return "has no F1"
        if not math.isfinite(self.f1):
            return f"has a non-finite F1 ({self.f1})"
        if not 0 <= self.f1 <= 1:
            return f"has an F1 of {self.f1}, which is not between 0 and 1"
        return ""


@dataclass(frozen=True)
class Check:
    """One row of `gate_checks`. `slice_name` and `slice_value` are '' where all test rows are meant."""

    name: str
    outcome: Outcome
    reason: str
    """A sentence with the numbers in it."""
    metric: str = "f1"
    candidate_value: float | None = None
    champion_value: float | None = None
    threshold: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    rows_used: int | None = None
    slice_name: str = ""
    slice_value: str = ""


@dataclass(frozen=True)
class Decision:
    verdict: Verdict
    reason: str
    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.outcome == "failed")


def decide(
    candidate: Measured, champion: Measured | None, policy: config.Gate, *, difference: Interval | None = None
) -> Decision:
    """Promote the candidate when no check fails; ties go to the candidate, which knows newer rows.

    Args:
        champion: None when the pipeline has none yet; the checks that compare are then not run.
        difference: 95 % interval of candidate's F1 minus champion's, rows paired; informative.
    """
    checks = (
        _min_f1(candidate, policy),
        _beats_champion(candidate, champion, difference),
        _not_older(candidate, champion),
        _reused_predictions(champion),
    )
    failed = [check for check in checks if check.outcome == "failed"]
    if failed:
        return Decision("hold", "; ".join(check.reason for check in failed), checks)
    assert candidate.f1 is not None
    told = f"F1 {candidate.f1:.4f} on {candidate.support:,} test rows"
    if champion is None:
        return Decision("promote", f"{told}; the first champion", checks)
    assert champion.f1 is not None
    gap = candidate.f1 - champion.f1
    against = f"{_signed(gap)} against" if gap else "a tie with"
    return Decision("promote", f"{told}, {against} {_name(champion)}", checks)


def _min_f1(candidate: Measured, policy: config.Gate) -> Check:
    low, high = candidate.interval or (None, None)
    flaw = candidate.flaw
    if flaw:
        passed, reason = False, f"the candidate {flaw}, so nothing shows that it reaches min_f1 {policy.min_f1:.4f}"
    else:
        assert candidate.f1 is not None
        passed = candidate.f1 >= policy.min_f1
        f1, minimum = told_apart(candidate.f1, policy.min_f1)
        within = f" (95 % interval {candidate.interval})" if candidate.interval else ""
        relation = "is below" if not passed else "equals" if candidate.f1 == policy.min_f1 else "reaches"
        reason = f"F1 {f1}{within} on {candidate.support:,} test rows {relation} min_f1 {minimum}"
    return Check(
        name="min_f1",
        outcome="passed" if passed else "failed",
        reason=reason,
        candidate_value=_stored(candidate.f1),
        threshold=policy.min_f1,
        ci_low=low,
        ci_high=high,
        rows_used=candidate.support,
    )


def _beats_champion(candidate: Measured, champion: Measured | None, difference: Interval | None) -> Check:
    if champion is None:
        return Check(
            name="beats_champion",
            outcome="not_run",
            reason="no champion yet",
            candidate_value=_stored(candidate.f1),
            rows_used=candidate.support,
        )
    passed, reason = _compared(candidate, champion, difference)
    low, high = difference or (None, None)
    return Check(
        name="beats_champion",
        outcome="passed" if passed else "failed",
        reason=reason,
        candidate_value=_stored(candidate.f1),
        champion_value=_stored(champion.f1),
        threshold=_stored(champion.f1),
        ci_low=low,
        ci_high=high,
        rows_used=candidate.support,
    )


def _compared(candidate: Measured, champion: Measured, difference: Interval | None) -> tuple[bool, str]:
    who = _name(champion)
    if candidate.flaw:
        return False, f"the candidate {candidate.flaw}, so it cannot be compared with {who}"
    if champion.flaw:
        return False, f"{who} {champion.flaw}, so nothing shows that the candidate is not below it"
    if candidate.test_version != champion.test_version:
        return False, (
            f"the candidate was scored on test version {candidate.test_version} and {who} on "
            f"{champion.test_version}: the two F1 cannot be compared"
        )
    if candidate.support != champion.support:
        return False, (
            f"the candidate was scored on {candidate.support:,} test rows and {who} on {champion.support:,}: "
            "the two F1 cannot be compared"
        )
    assert candidate.f1 is not None
    assert champion.f1 is not None
    ours, theirs = told_apart(candidate.f1, champion.f1)
    rows = f"on the same {candidate.support:,} test rows"
    if candidate.f1 == champion.f1:
        text = f"F1 {ours} ties with {who} {rows}, and a tie goes to the candidate"
    else:
        relation = "above" if candidate.f1 > champion.f1 else "below"
        gap = candidate.f1 - champion.f1
        text = f"F1 {ours} is {relation} {theirs} of {who} {rows} ({_signed(gap)})"
    if difference:
        unclear = ", which includes 0" if difference.low <= 0 <= difference.high else ""
        text += f"; 95 % interval of the difference {_signed(difference.low)} to {_signed(difference.high)}{unclear}"
    return candidate.f1 >= champion.f1, text


def _not_older(candidate: Measured, champion: Measured | None) -> Check:
    if champion is None:
        return Check(name="not_older", outcome="not_run", reason="no champion yet", metric="data_until")
    who = _name(champion)
    ours, theirs = candidate.data_until, champion.data_until
    passed = False
    if ours is None or theirs is None:
        unknown = "the candidate" if ours is None else who
        reason = f"it is not known up to when {unknown} saw data, so nothing shows that the candidate's is not older"
    elif ours < theirs:
        reason = f"the candidate saw data up to {_instant(ours)}, older than {_instant(theirs)} of {who}"
    else:
        passed = True
        than = f"as did {who}" if ours == theirs else f"newer than {_instant(theirs)} of {who}"
        reason = f"the candidate saw data up to {_instant(ours)}, {than}"
    return Check("not_older", "passed" if passed else "failed", reason, metric="data_until")


def _reused_predictions(champion: Measured | None) -> Check:
    reuse = champion.reuse if champion else None
    outcome: Outcome
    if champion is None:
        outcome, reason = "not_run", "no champion yet"
    elif reuse is None or not reuse.recomputed:
        outcome, reason = "not_run", f"all test rows of {_name(champion)} were scored tonight, none was reused"
    elif reuse.differing:
        outcome = "failed"
        reason = (
            f"{reuse.differing:,} of {reuse.recomputed:,} recomputed rows of {_name(champion)} differ from what an "
            f"earlier night stored, by more than {LOGIT_TOLERANCE:g} in a logit or in the label: the stored rows were "
            f"dropped and all {reuse.rows:,} scored afresh; see what changed on this machine since then (processor or "
            "GPU, threads, libraries, memory errors), then run the night again with --force"
        )
    else:
        outcome = "passed"
        reason = (
            f"{reuse.reused:,} of {reuse.rows:,} test rows of {_name(champion)} were scored on an earlier night; of "
            f"these {reuse.recomputed:,}, drawn at random, were scored again tonight, and none differs by more than "
            f"{LOGIT_TOLERANCE:g} in a logit or in the label"
        )
    return Check(
        name="reused_predictions",
        outcome=outcome,
        reason=reason,
        metric="logit",
        threshold=LOGIT_TOLERANCE,
        rows_used=reuse.recomputed if reuse else None,
    )


def told_apart(first: float, second: float) -> tuple[str, str]:
    """Both numbers with four decimals, or as many more as it takes to see that they differ."""
    for digits in range(4, 18):
        texts = f"{first:.{digits}f}", f"{second:.{digits}f}"
        if texts[0] != texts[1] or first == second:
            return texts
    return repr(first), repr(second)


def _name(champion: Measured) -> str:
    return "the champion" if champion.version is None else f"the champion (version {champion.version})"


def _instant(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(sep=" ").replace("+00:00", " UTC")


def _signed(value: float) -> str:
    text = f"{value:+.4f}"
    # A gap that four decimals hide is told in scientific notation, never as +0.0000.
    return f"{value:+.1e}" if float(text) == 0 and value != 0 else text


def _stored(value: float | None) -> float | None:
    """As the database may hold it: NULL instead of NaN or infinity."""
    return value if value is not None and math.isfinite(value) else None
