"""Checks of each class and slice: none below a floor, none worse than the champion by more than a margin.

Many tests find something by chance alone, so a slice fails only on a bootstrap p-value that holds among all of them
(Holm 1979): with equal models, all slices pass with probability `confidence`. Where rows come in groups, a slice of
few groups knows little, however many rows they have: below `FEWEST` groups it is not tested.
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
from nightgate.gate.wording import between, listed, percent, signed, stored, told_apart, within
from nightgate.metrics.bootstrap import FEWEST, Estimate, Statistic
from nightgate.metrics.confusion import class_scores, confusion_counts, overall_scores

Kind = Literal["slice_floor", "slice_margin"]

STAGES = (500, 2_000, 10_000)
"""Resamples of a slice. The next number is drawn only where the p-value is near enough to what decides."""
TOLD = 3
"""Failures that the summary tells in full."""


@dataclass(frozen=True, eq=False)
class _Part:
    """A class within the window, or the rows of it that share a value."""

    name: str
    value: str
    rows: int
    """Of the class, or with the value."""
    few: str
    """Why it cannot be tested; '' where it can."""
    mask: Mask
    statistic: Statistic

    def __str__(self) -> str:
        return f"{self.name} {self.value!r}"


@dataclass(frozen=True, eq=False)
class _Tested:
    kind: Kind
    part: _Part
    estimate: Estimate | None = None
    """Of the F1, or of its difference to the champion's; None where it cannot be tested."""
    p_value: float = 1.0


def slices(case: Case) -> list[Check]:
    """The summary, then a row for each class and slice and what it was held against."""
    kinds: list[Kind] = []
    if case.policy.slice_floor > 0:
        kinds.append("slice_floor")
    unasked = case.policy.policy == "threshold_only" and case.evidence.champion and case.obstacle("champion")
    if case.evidence.champion is not None and not unasked:
        kinds.append("slice_margin")
    if not kinds:
        return [Check("slices", "not_run", f"{unasked or 'no champion yet'}, and slice_floor is 0")]
    roles: tuple[Role, ...] = ("candidate", "champion") if "slice_margin" in kinds else ("candidate",)
    if obstacle := case.obstacle(*roles):
        reason = f"{obstacle}, so nothing shows how classes and slices did"
        return [Check("slices", "failed", reason, rows_used=case.num_rows)]
    parts = list(_parts(case))
    num_tests = len(kinds) * sum(not part.few for part in parts)
    tested = [_test(case, part, kind, num_tests) for part in parts for kind in kinds]
    judged = [one for one in tested if one.estimate is not None]
    level = 1 - case.policy.confidence
    failed = {id(one) for one, no in zip(judged, holm([one.p_value for one in judged], level), strict=True) if no}
    checks = [_check(case, one, failed=id(one) in failed) for one in tested]
    return [_summary(case, checks), *checks]


def _parts(case: Case) -> Iterator[_Part]:
    test, window = case.evidence.test, case.window
    for index, label in enumerate(case.evidence.label_names):
        # A class is resampled with all rows of the window: others may be taken for it.
        yield _part(case, "label", label, window & (test.true == index), window, int(case.places[index]))
    for one in test.slices:
        for code, value in enumerate(one.values):
            mask = window & (one.codes == code)
            if mask.any():
                yield _part(case, one.name, value, mask, mask, case.policy.average)


def _part(case: Case, name: str, value: str, own: Mask, resampled: Mask, statistic: Statistic) -> _Part:
    """`own`: the rows that it is about, of those that are resampled for it."""
    rows, least = int(np.count_nonzero(own)), case.policy.min_slice_rows
    num_units = case.num_units(own)
    few = ""
    if rows < least:
        few = f"{rows:,} test rows are fewer than min_slice_rows {least:,}"
    elif num_units < FEWEST:
        few = f"{rows:,} test rows come in {num_units} groups, fewer than {FEWEST}"
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
        # From the level up nothing fails, down to the strictest of Holm's limits everything does; so few draws as not
        # to tell these limits apart have not shown it.
        if p_value > 2 * level or max(p_value, 1 / resamples) <= level / num_tests:
            break
    return _Tested(kind, part, estimate, p_value)


def _bound(case: Case, kind: Kind) -> float:
    """What F1, or its difference to the champion's, must not be significantly below."""
    return case.policy.slice_floor if kind == "slice_floor" else -case.policy.slice_margin


def _f1(case: Case, role: Role, part: _Part) -> float | None:
    counts = confusion_counts(case.true(part.mask), case.labels(role, part.mask), case.num_labels)
    found = class_scores(counts, part.statistic) if isinstance(part.statistic, int) else overall_scores(counts)
    return found.f1(case.policy.average)


def _check(case: Case, one: _Tested, *, failed: bool) -> Check:
    part, estimate = one.part, one.estimate
    ours = _f1(case, "candidate", part)
    theirs = _f1(case, "champion", part) if one.kind == "slice_margin" else None
    outcome: Outcome = "failed" if failed else "passed"
    if estimate is None:
        outcome = "underpowered"
        reason = f"{part}: {part.few}"
    elif one.kind == "slice_floor":
        reason = _of_floor(case, one, estimate, failed)
    else:
        assert ours is not None
        assert theirs is not None
        reason = _of_margin(case, one, estimate, (ours, theirs), failed)
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


def _of_floor(case: Case, one: _Tested, estimate: Estimate, failed: bool) -> str:
    floor = case.policy.slice_floor
    told, bound = told_apart(estimate.value, floor)
    if estimate.value >= floor:
        relation = "is not below"
    else:
        relation = f"is {'significantly' if failed else 'not significantly'} below"
    interval = within(estimate.interval, case.policy.confidence)
    return f"{one.part}: F1 {told}{interval} on {one.part.rows:,} rows {relation} slice_floor {bound}{_p(one)}"


def _of_margin(case: Case, one: _Tested, estimate: Estimate, scores: tuple[float, float], failed: bool) -> str:
    ours, theirs = told_apart(*scores)
    shown = "significantly" if failed else "not significantly"
    return (
        f"{one.part}: F1 {ours} against {theirs} of {case.name('champion')} on {one.part.rows:,} rows "
        f"({signed(estimate.value)}; {between(estimate.interval, case.policy.confidence)}) is {shown} worse by more "
        f"than slice_margin {case.policy.slice_margin:.4f}{_p(one)}"
    )


def _p(one: _Tested) -> str:
    return f" (p {one.p_value:.2g})" if one.p_value >= 0.001 else " (p below 0.001)"


def _summary(case: Case, checks: list[Check]) -> Check:
    """One row for all of them: where it fails, so does the gate."""
    failures = [check.reason for check in checks if check.outcome == "failed"]
    few = sum(check.outcome == "underpowered" for check in checks)
    tests = len(checks) - few
    too_few = f"fewer than min_slice_rows {case.policy.min_slice_rows:,} test rows"
    too_few += "" if case.evidence.test.groups is None else f", or than {FEWEST} groups"
    outcome: Outcome = "failed" if failures else "passed" if tests else "underpowered"
    if not tests:
        reason = f"every class and slice has {too_few}"
    else:
        chance = percent(1 - case.policy.confidence)
        reason = (
            f"{len(failures) or 'none'} of {tests:,} tests of classes and slices failed (held over all of them by "
            f"Holm: chance alone fails any in at most {chance} of nights)"
        )
        reason += f"; {few:,} more have {too_few}" if few else ""
        reason += f": {listed(failures, TOLD, '; ')}" if failures else ""
    return Check("slices", outcome, reason, rows_used=case.num_rows)
