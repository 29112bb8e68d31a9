"""Checks of every class and slice: F1 not below a floor, nor worse than the champion's by more than a margin.

A slice fails on a bootstrap p-value corrected for the number of tests (Holm 1979): with equal models none fails with
probability `confidence`. It passes if its interval lies above the bound, and is underpowered if neither is shown. A
slice of fewer than `FEWEST` groups is not tested, however many rows they have.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from nightgate.gate.decision import Check, Outcome
from nightgate.gate.evidence import Mask
from nightgate.gate.measurements import Case, Role
from nightgate.gate.statistics import holm
from nightgate.gate.wording import between, distinct, listed, of_margin, percent, signed, stored, within
from nightgate.metrics.bootstrap import FEWEST, Estimate, Statistic
from nightgate.metrics.confusion import class_scores, confusion_counts, overall_scores

Kind = Literal["slice_floor", "slice_margin"]

STAGES = (500, 2_000, 10_000)
"""Resamples of a slice: the next number is drawn only while the p-value is close to its limits."""
FAILURES_LISTED = 3
"""Failures that the summary gives in full."""


@dataclass(frozen=True, eq=False)
class _Part:
    """A class within the window, or the rows of the window that have one value of a slice column."""

    name: str
    value: str
    rows: int
    """Rows of the class, or with the value."""
    few: str
    """Why there are too few rows or groups to test; '' if there are enough."""
    mask: Mask
    statistic: Statistic

    def __str__(self) -> str:
        return f"{self.name} {self.value!r}"


@dataclass(frozen=True, eq=False)
class _Tested:
    kind: Kind
    part: _Part
    estimate: Estimate | None = None
    """Of F1, or of its difference from the champion's; None if there are too few rows."""
    p_value: float = 1.0


def slices(case: Case) -> list[Check]:
    """The summary, then a check for each class and slice against the floor, the margin or both."""
    kinds: list[Kind] = []
    if case.policy.slice_floor > 0:
        kinds.append("slice_floor")
    skipped = case.policy.policy == "threshold_only" and case.evidence.champion and case.obstacle("champion")
    if case.evidence.champion is not None and not skipped:
        kinds.append("slice_margin")
    if not kinds:
        return [Check("slices", "not_run", f"{skipped or 'no champion yet'}, and slice_floor is 0")]
    roles: tuple[Role, ...] = ("candidate", "champion") if "slice_margin" in kinds else ("candidate",)
    if obstacle := case.obstacle(*roles):
        reason = f"{obstacle}, so classes and slices are not tested"
        return [Check("slices", "failed", reason, rows_used=case.num_rows)]
    parts = list(_parts(case))
    num_tests = len(kinds) * sum(not part.few for part in parts)
    tested = [_test(case, part, kind, num_tests) for part in parts for kind in kinds]
    judged = [one for one in tested if one.estimate is not None]
    level = 1 - case.policy.confidence
    failed = {id(one) for one, no in zip(judged, holm([one.p_value for one in judged], level), strict=True) if no}
    checks = [_check(case, one, failed=id(one) in failed) for one in tested]
    return [_summary(case, checks, untested=len(tested) - len(judged)), *checks]


def _parts(case: Case) -> Iterator[_Part]:
    test, window = case.evidence.test, case.window
    for index, label in enumerate(case.evidence.label_names):
        # The F1 of a class depends on all rows of the window: others may be predicted as it.
        yield _part(case, "label", label, window & (test.true == index), window, int(case.places[index]))
    for one in test.slices:
        for code, value in enumerate(one.values):
            mask = window & (one.codes == code)
            if mask.any():
                yield _part(case, one.name, value, mask, mask, case.policy.average)


def _part(case: Case, name: str, value: str, own: Mask, resampled: Mask, statistic: Statistic) -> _Part:
    """A class or slice; `own` are its rows among those that are resampled."""
    rows, least, num_units = int(np.count_nonzero(own)), case.policy.min_slice_rows, case.num_units(own)
    few = ""
    if rows < least:
        few = f"{rows:,} test rows are fewer than min_slice_rows {least:,}"
    elif num_units < FEWEST:
        few = f"{rows:,} test rows come in {num_units} {'group' if num_units == 1 else 'groups'}, fewer than {FEWEST}"
    return _Part(name, value, rows, few, resampled, statistic)


def _test(case: Case, part: _Part, kind: Kind, num_tests: int) -> _Tested:
    if part.few:
        return _Tested(kind, part)
    if kind == "slice_floor":
        resampled = partial(case.estimate, "candidate", part.mask, part.statistic)
    else:
        resampled = partial(case.difference, "champion", part.mask, part.statistic)
    level = 1 - case.policy.confidence
    for resamples in STAGES:
        estimate = resampled(resamples)
        p_value = estimate.p_value(_bound(case, kind))
        # Above the level no test fails, below the strictest of Holm's limits every test does. 1 / resamples is the
        # smallest p-value that so few draws can show.
        if p_value > 2 * level or max(p_value, 1 / resamples) <= level / num_tests:
            break
    return _Tested(kind, part, estimate, p_value)


def _bound(case: Case, kind: Kind) -> float:
    """Threshold that F1, or its difference from the champion's, must not be significantly below."""
    return case.policy.slice_floor if kind == "slice_floor" else -case.policy.limit("slices")


def _f1(case: Case, role: Role, part: _Part) -> float | None:
    counts = confusion_counts(case.true(part.mask), case.labels(role, part.mask), case.num_labels)
    found = class_scores(counts, part.statistic) if isinstance(part.statistic, int) else overall_scores(counts)
    return found.f1(case.policy.average)


def _check(case: Case, one: _Tested, *, failed: bool) -> Check:
    part, estimate = one.part, one.estimate
    ours = _f1(case, "candidate", part)
    theirs = _f1(case, "champion", part) if one.kind == "slice_margin" else None
    outcome = _outcome(case, one, failed=failed)
    if estimate is None:
        reason = f"{part}: {part.few}"
    elif one.kind == "slice_floor":
        reason = _of_floor(case, one, estimate, outcome)
    else:
        assert ours is not None
        assert theirs is not None
        reason = _of_margin(case, one, estimate, (ours, theirs), outcome)
    low, high = (estimate.interval if estimate else None) or (None, None)
    return Check(
        name=one.kind,
        outcome=outcome,
        reason=reason,
        candidate_value=stored(ours),
        champion_value=stored(theirs),
        threshold=_bound(case, one.kind),
        ci_low=low,
        ci_high=high,
        rows_used=part.rows,
        slice_name=part.name,
        slice_value=part.value,
    )


def _outcome(case: Case, one: _Tested, *, failed: bool) -> Outcome:
    if failed:
        # A floor is only tested where the policy sets one.
        return "failed" if one.kind == "slice_floor" or case.policy.blocks("slices") else "warning"
    interval = one.estimate.interval if one.estimate else None
    return "passed" if interval and interval.low > _bound(case, one.kind) else "underpowered"


SHOWN = {"passed": "excluded", "failed": "shown", "warning": "shown", "underpowered": "not excluded"}
"""What an outcome says of a loss."""


def _of_floor(case: Case, one: _Tested, estimate: Estimate, outcome: Outcome) -> str:
    f1, bound = distinct(estimate.value, case.policy.slice_floor)
    interval = within(estimate.interval, case.policy.confidence)
    shown = f"an F1 below slice_floor {bound} is {SHOWN[outcome]}"
    return f"{one.part}: F1 {f1}{interval} on {one.part.rows:,} rows: {shown}{_p(one)}"


def _of_margin(case: Case, one: _Tested, estimate: Estimate, scores: tuple[float, float], outcome: Outcome) -> str:
    (ours, theirs), confidence = distinct(*scores), case.policy.confidence
    loss = of_margin("loss", case.policy.limit("slices"), SHOWN[outcome], confidence, "slice_margin")
    return (
        f"{one.part}: F1 {ours} against {theirs} of {case.name('champion')} on {one.part.rows:,} rows "
        f"({signed(estimate.value)}; {between(estimate.interval, confidence)}): {loss}{_p(one)}"
    )


def _p(one: _Tested) -> str:
    return f" (p {one.p_value:.2g})" if one.p_value >= 0.001 else " (p below 0.001)"


def _summary(case: Case, checks: list[Check], *, untested: int) -> Check:
    """The check `slices`, which fails or warns if any class or slice does, and passes if none does and one passes."""
    outcomes = [check.outcome for check in checks]
    ranks: tuple[Outcome, ...] = ("failed", "warning", "passed")
    outcome: Outcome = next((rank for rank in ranks if rank in outcomes), "underpowered")
    found = [check.reason for check in checks if check.outcome == outcome] if outcome in ("failed", "warning") else []
    too_few = f"fewer than min_slice_rows {case.policy.min_slice_rows:,} test rows"
    too_few += "" if case.evidence.test.groups is None else f", or than {FEWEST} groups"
    if untested == len(checks):
        reason = f"every class and slice has {too_few}"
    else:
        chance = percent(1 - case.policy.confidence)
        unclear = outcomes.count("underpowered") - untested
        reason = (
            f"{len(found) or 'none'} of {len(checks) - untested:,} tests of classes and slices failed (Holm's "
            f"correction: with equal models any fails in at most {chance} of nights)"
        )
        reason += f"; {unclear:,} neither show nor exclude a loss" if unclear else ""
        reason += f"; {untested:,} more with {too_few} are not tested" if untested else ""
        reason += f": {listed(found, FAILURES_LISTED, '; ')}" if found else ""
    return Check("slices", outcome, reason, rows_used=case.num_rows)
