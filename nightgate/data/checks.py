"""The data checks of a refresh: pure functions from the counts of tonight and of the nights before to results.

results = run_checks(tonight, recent, parts, pipeline.data.checks, pipeline.split, allowed=frozenset())
require_passed(pipeline.name, night, results)   # raises DataCheckError: the night ends before training
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from statistics import median
from typing import Literal

from nightgate.config.checks import CheckName, DataChecks
from nightgate.data.refresh_counts import NIGHTS_COMPARED, PartCounts, Statistics
from nightgate.errors import DataCheckError

FEWEST_ROWS = 20
"""Fewer lost, quarantined or repeated rows never fail a check."""
FEWEST_COMPARED = 200
"""Fewer rows say too little about a share or a usual number."""
ROWS_PER_LABEL = 20
"""So many rows a label bring the expected distance between samples of one distribution below 0.1."""
NIGHTS_FOR_USUAL = 3
WHOLE_DAY = timedelta(hours=18)
"""Fewer hours since the last refresh, as after a manual run, bring fewer rows than a usual night."""
PARTS_NAMED = 5

Outcome = Literal["passed", "failed", "allowed", "not_run"]


@dataclass(frozen=True)
class CheckResult:
    name: CheckName
    outcome: Outcome
    value: float | None
    """What was compared with the threshold."""
    threshold: float | None
    reason: str


def run_checks(
    tonight: Statistics,
    recent: Sequence[Statistics],
    parts: Iterable[PartCounts],
    settings: DataChecks,
    shares: Mapping[str, float],
    allowed: AbstractSet[str] = frozenset(),
) -> tuple[CheckResult, ...]:
    """The results of all checks, in a fixed order.

    Args:
        recent: nights before, the last one last, as `nightgate.data.refresh_counts.remember` keeps them.
        shares: of the splits that are made by hash, as set.
        allowed: names of checks whose failure does not count tonight.
    """
    if recent and recent[-1].source != tonight.source:
        tonight = replace(tonight, is_first=True)
    recent = [night for night in recent if night.source == tonight.source]
    results = (
        _rows(tonight, recent, parts, settings.max_rows_lost),
        _new_rows(tonight, recent, settings),
        _quarantined(tonight, settings.max_quarantined),
        _labels(tonight, recent, settings.max_label_shift),
        _splits(tonight, settings.max_split_share, shares),
        _repeated_text(tonight, settings.max_repeated_text),
        _missing(tonight, {name: rules.max_missing for name, rules in settings.columns.items()}),
    )
    return tuple(
        CheckResult(one.name, "allowed", one.value, one.threshold, one.reason)
        if one.outcome == "failed" and one.name in allowed
        else one
        for one in results
    )


def require_passed(pipeline: str, night: date, results: Sequence[CheckResult]) -> None:
    """Raise if a check failed.

    Raises:
        DataCheckError: with the reason of every failed check, and `results` as `checks`.
    """
    failed = [one for one in results if one.outcome == "failed"]
    if not failed:
        return
    names = " --allow-failed-check ".join(one.name for one in failed)
    error = DataCheckError(
        f"{'; '.join(one.reason for one in failed)}: nothing was taken in",
        next_step=f"mend the source and run the same command again; if the data are right: "
        f"nightgate run {pipeline} --night {night} --allow-failed-check {names} --reason TEXT, "
        "or allow_failed_checks and reason in the form of Prefect's UI",
    )
    error.checks = tuple(results)
    raise error


def _result(name: CheckName, value: float, threshold: float, failed: bool, reason: str) -> CheckResult:
    return CheckResult(name, "failed" if failed else "passed", value, threshold, reason)


def _not_run(name: CheckName, threshold: float, reason: str) -> CheckResult:
    return CheckResult(name, "not_run", None, threshold, reason)


def _rows(tonight: Statistics, recent: Sequence[Statistics], parts: Iterable[PartCounts], limit: float) -> CheckResult:
    if not recent:
        return _not_run("rows", limit, "there is no earlier night of this source")
    before = recent[-1].rows_total
    lost = before - tonight.rows_total
    share = max(lost, 0) / before if before else 0.0
    change = f"{before:,} rows became {tonight.rows_total:,}"
    if share <= limit or lost < FEWEST_ROWS:
        return _result("rows", share, limit, False, change)
    worst = sorted((part for part in parts if part.vanished), key=lambda part: (-part.vanished, part.part))
    named = [
        f"{part.part} is gone ({part.vanished:,} rows)"
        if not part.rows_seen
        else f"{part.part} lost {part.vanished:,} and has {part.rows_seen:,}"
        for part in worst[:PARTS_NAMED]
    ]
    named += [f"{len(worst) - PARTS_NAMED:,} more lost rows"] if len(worst) > PARTS_NAMED else []
    where = f" ({'; '.join(named)})" if named else ""
    return _result("rows", share, limit, True, f"{change}, {share:.0%} fewer than on {recent[-1].night}{where}")


def _new_rows(tonight: Statistics, recent: Sequence[Statistics], settings: DataChecks) -> CheckResult:
    low, high = settings.min_new_rows, settings.max_new_rows
    if not tonight.rows_new and (tonight.rows_read or not _never_rests(recent)):
        # Many a feed rests at weekends, or has edits alone; a night without news is skipped.
        return _not_run("new_rows", high, "there are no new rows")
    # The first night of a source reads all that there is.
    usual = [night.rows_new for night in recent if night.rows_new and not night.is_first]
    if tonight.is_first or len(usual) < NIGHTS_FOR_USUAL:
        return _not_run("new_rows", high, f"{len(usual)} earlier nights with new rows, {NIGHTS_FOR_USUAL} are needed")
    days = (tonight.night - recent[-1].night).days
    if days < 1:
        return _not_run("new_rows", high, f"the night of {recent[-1].night} was refreshed before")
    middle = median(usual)
    if max(middle, tonight.rows_new) < FEWEST_COMPARED:
        return _not_run("new_rows", high, f"{tonight.rows_new:,} new rows, usually {middle:,.0f}: too few to tell")
    found = f"{tonight.rows_new:,} new rows, where the median of {len(usual)} nights is {middle:,.0f}"
    ratio = tonight.rows_new / middle
    # A night as quiet or as busy as one of the last week is no surprise, and neither is a backlog of several days.
    is_few = tonight.rows_new < low * middle and tonight.rows_new < min(usual)
    if is_few and tonight.until and recent[-1].until:
        since = datetime.fromisoformat(tonight.until) - datetime.fromisoformat(recent[-1].until)
        if since < WHOLE_DAY:
            hours = since / timedelta(hours=1)
            return _not_run("new_rows", low, f"{found}; only {hours:.0f} hours since the last refresh: too few to tell")
    if is_few:
        return _result("new_rows", ratio, low, True, f"only {found}")
    too_many = tonight.rows_new > high * max(middle, FEWEST_COMPARED) * days and tonight.rows_new > max(usual)
    return _result("new_rows", ratio, high, too_many, found)


def _never_rests(recent: Sequence[Statistics]) -> bool:
    """Whether each of the last seven days had a night with new rows."""
    days = [one.night for one in recent[-NIGHTS_COMPARED:] if one.rows_new and not one.is_first]
    return len(days) == NIGHTS_COMPARED and (days[-1] - days[0]).days < NIGHTS_COMPARED


def _quarantined(tonight: Statistics, limit: float) -> CheckResult:
    count, read = tonight.rows_quarantined, tonight.rows_read
    share = count / read if read else 0.0
    reason = f"{count:,} of {read:,} newly read rows cannot be used"
    return _result("quarantined", share, limit, share > limit and count >= FEWEST_ROWS, reason)


def _labels(tonight: Statistics, recent: Sequence[Statistics], limit: float) -> CheckResult:
    before: dict[str, int] = {}
    for night in recent:
        for label, count in night.labels.items():
            before[label] = before.get(label, 0) + count
    names = before.keys() | tonight.labels.keys()
    needed = max(FEWEST_COMPARED // 2, ROWS_PER_LABEL * len(names))
    known, new = sum(before.values()), sum(tonight.labels.values())
    if min(known, new) < needed:
        return _not_run("labels", limit, f"{new:,} new rows and {known:,} before them: too few to compare")
    gaps = {name: tonight.labels.get(name, 0) / new - before.get(name, 0) / known for name in names}
    distance = sum(map(abs, gaps.values())) / 2
    widest = max(sorted(gaps), key=lambda name: abs(gaps[name]))
    was, now = before.get(widest, 0) / known, tonight.labels.get(widest, 0) / new
    reason = f"labels of new rows moved by {distance:.2f} (total variation): {widest!r} from {was:.0%} to {now:.0%}"
    return _result("labels", distance, limit, distance > limit, reason)


def _splits(tonight: Statistics, limit: float, shares: Mapping[str, float]) -> CheckResult:
    if tonight.rows_total < FEWEST_COMPARED or not any(shares.values()):
        why = "the source names the splits" if not any(shares.values()) else f"{tonight.rows_total:,} rows: too few"
        return _not_run("splits", limit, why)
    found = {name: tonight.splits.get(name, 0) / tonight.rows_total for name, share in shares.items() if share}
    worst = max(found, key=lambda name: found[name] / shares[name])
    ratio = found[worst] / shares[worst]
    reason = f"{worst} holds {found[worst]:.0%} of the rows where {shares[worst]:.0%} is set"
    hint = ": one group or one text with near copies holds too many" if ratio > limit else ""
    return _result("splits", ratio, limit, ratio > limit, reason + hint)


def _repeated_text(tonight: Statistics, limit: float) -> CheckResult:
    count, read = tonight.commonest, tonight.rows_read
    share = count / read if read else 0.0
    failed = share > limit and count >= FEWEST_ROWS
    text = f" ({tonight.commonest_text!r})" if failed and tonight.commonest_text else ""
    return _result("repeated_text", share, limit, failed, f"one text{text} stands in {count:,} of {read:,} new rows")


def _missing(tonight: Statistics, limits: Mapping[str, float]) -> CheckResult:
    read = tonight.rows_checked
    shares = {name: tonight.missing.get(name, 0) / read if read else 0.0 for name in limits}
    if not shares:
        return _not_run("missing", 1.0, "no column has a limit")
    worst = max(sorted(shares), key=lambda name: shares[name] - limits[name])
    count = tonight.missing.get(worst, 0)
    failed = shares[worst] > limits[worst] and count >= FEWEST_ROWS
    reason = f"column {worst!r} is empty in {count:,} of {read:,} rows"
    return _result("missing", shares[worst], limits[worst], failed, reason)
