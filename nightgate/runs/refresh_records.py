"""What a refresh leaves in the database beside its snapshot: counts, checks, votes, and the state of the quarantine.

Inside the transaction of `nightgate.runs.records`. Counts and checks belong to the attempt of a night or to a refresh
on its own. Votes and quarantine are the state of the pipeline after its newest night, which a backfill of an earlier
one leaves alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from nightgate.data.refresh_counts import PartCounts
from nightgate.database.refresh_schema import PLACES, DataCheck, LabelVote, Refresh, RefreshCount
from nightgate.database.schema import METADATA, QuarantinedRow, Run
from nightgate.database.shared_values import add_rows, is_recorded, merge_rows
from nightgate.runs.lifecycle import Fenced

if TYPE_CHECKING:
    from nightgate.config.checks import Allowed
    from nightgate.data.checks import CheckResult
    from nightgate.data.refresh import Refreshed
    from nightgate.data.refresh_counts import LabelVotes
    from nightgate.sources.source_table import Quarantined

MOST_PARTS = 1000
"""Parts with a row of their own each night; of the others those that did not change share one."""
_AT_ONCE = 500
_CHECKED_AGAIN = "(run_id, attempt, check_name) DO UPDATE SET " + ", ".join(
    f"{name} = excluded.{name}"
    for name in ("position", "value", "threshold", "outcome", "reason", "allowed_by", "allowed_reason")
)
_IS_LATER = "CASE WHEN excluded.last_night >= quarantine.last_night THEN"
_READ_AGAIN = "(pipeline, row_key, reason) DO UPDATE SET " + ", ".join(
    [
        "first_night = CASE WHEN excluded.first_night < quarantine.first_night "
        "THEN excluded.first_night ELSE quarantine.first_night END",
        # A backfill reopens no row, and does not take one from a later night.
        f"resolved_night = {_IS_LATER} NULL ELSE quarantine.resolved_night END",
        *(
            f"{name} = {_IS_LATER} excluded.{name} ELSE quarantine.{name} END"
            for name in ("last_night", "run_id", "attempt", "position", "origin", "part", "detail", "excerpt")
        ),
    ]
)

# Built once: that takes longer than to execute them.
_OF_PIPELINE: sa.BindParameter[str] = sa.bindparam("pipeline")
_TAKEN_IN = sa.select(
    *(
        sa.select(sa.func.max(of.night))
        .where(of.pipeline == _OF_PIPELINE, of.snapshot_id.is_not(None))
        .scalar_subquery()
        for of in (Run, Refresh)
    )
)
_QUARANTINE = METADATA.tables[QuarantinedRow.__tablename__]
_OPEN = sa.select(*(_QUARANTINE.c[name] for name in ("row_key", "reason", "part", "row_id", "first_night"))).where(
    _QUARANTINE.c.pipeline == _OF_PIPELINE,
    _QUARANTINE.c.resolved_night.is_(None),
    # Not what was found now.
    sa.or_(_QUARANTINE.c.run_id != sa.bindparam("run_id"), _QUARANTINE.c.attempt != sa.bindparam("attempt")),
)
_RESOLVED = (
    sa.update(_QUARANTINE)
    .where(_QUARANTINE.c.pipeline == sa.bindparam("of_pipeline"), _QUARANTINE.c.row_key == sa.bindparam("key"))
    .where(_QUARANTINE.c.reason == sa.bindparam("of_reason"))
    .values(resolved_night=sa.bindparam("resolved_night"))
)
_VOTED_ON = sa.select(LabelVote.fingerprint).where(LabelVote.pipeline == _OF_PIPELINE).distinct()


class Finder(NamedTuple):
    """Whose refresh it is: the attempt of a night, or a refresh on its own, whose only attempt is 1."""

    run_id: str
    attempt: int
    pipeline: str
    night: date

    @staticmethod
    def of(run: Fenced) -> Finder:
        return Finder(run.run_id, run.attempt, run.pipeline, run.night)


def add_refreshed(session: Session, run: Finder, refreshed: Refreshed, allowed: Allowed) -> None:
    """Store what a refresh that made a snapshot found."""
    add_found(session, run, refreshed.quarantined, refreshed.parts, refreshed.checks, allowed)
    taken_in = _last_taken_in(session, run)
    if taken_in is None or taken_in <= run.night:  # no refresh of a later date has made a snapshot
        _resolve(session, run, refreshed, taken_in)
        _replace_votes(session, run, refreshed.votes, refreshed.counted)


def add_found(
    session: Session,
    run: Finder,
    quarantined: Sequence[Quarantined],
    parts: Sequence[PartCounts],
    checks: Sequence[CheckResult],
    allowed: Allowed,
) -> None:
    """Store counts, checks and unusable rows, also of a refresh that failed: it resolves nothing."""
    place = {"run_id": run.run_id, "attempt": run.attempt}
    if parts and not is_recorded(session, RefreshCount, **place, position=0):
        rows = [place | {"position": at} | _columns(part) for at, part in enumerate(_bounded(parts))]
        add_rows(session, RefreshCount, rows)
    found = []
    for position, check in enumerate(checks):
        by, why = (allowed.by, allowed.reason) if check.outcome == "allowed" else (None, None)
        facts = {"position": position, "check_name": check.name, "allowed_by": by, "allowed_reason": why}
        found.append(
            place | facts | {name: getattr(check, name) for name in ("value", "threshold", "outcome", "reason")}
        )
    merge_rows(session, DataCheck, found, _CHECKED_AGAIN)
    _add_quarantined(session, run, quarantined)


def _columns(part: PartCounts) -> dict[str, Any]:
    kept = {name: getattr(part, name) for name in ("part", "rows_seen", "bytes", "modified", "unchanged")}
    return kept | {f"rows_{name}": getattr(part, name) for name in (*PLACES, "vanished")}


def _bounded(parts: Sequence[PartCounts]) -> list[PartCounts]:
    """The parts, changed ones first; unchanged ones beyond `MOST_PARTS` in one sum."""
    ordered = sorted(parts, key=lambda part: part.unchanged)
    changed = sum(not part.unchanged for part in parts)
    kept, others = ordered[: max(MOST_PARTS, changed)], ordered[max(MOST_PARTS, changed) :]
    if not others:
        return ordered
    names = ("rows_seen", *PLACES, "vanished")
    sums = {name: sum(getattr(part, name) for part in others) for name in names}
    together = PartCounts(part=f"({len(others):,} more unchanged parts)", unchanged=True, **sums)
    return [*kept, replace(together, bytes=sum(part.bytes or 0 for part in others))]


def _row_key(row: Quarantined) -> str:
    """The same for a source row every night: a hash of its id, or else of its place."""
    return hashlib.sha256((row.row_id or f"\n{row.origin}").encode("utf-8", "replace")).hexdigest()[:32]


def _add_quarantined(session: Session, run: Finder, quarantined: Sequence[Quarantined]) -> None:
    facts = {"pipeline": run.pipeline, "run_id": run.run_id, "attempt": run.attempt}
    facts |= {"first_night": run.night, "last_night": run.night}
    rows = {
        (_row_key(row), row.reason): vars(row) | facts | {"row_key": _row_key(row), "position": position}
        for position, row in enumerate(quarantined)
    }
    merge_rows(session, QuarantinedRow, list(rows.values()), _READ_AGAIN)


def _resolve(session: Session, run: Finder, refreshed: Refreshed, taken_in: date | None) -> None:
    """Resolve rows that tonight's refresh would have found again: those of other parts stand as they were.

    A part that was put back after a refresh that failed counts as unchanged. What only the failed refresh found in it
    is resolved: the part has no such rows, or no refresh has taken anything in since they were found first.
    """
    parts = refreshed.parts
    standing = {part.part for part in parts if (part.unchanged and part.quarantined) or not part.complete}
    place = {"pipeline": run.pipeline, "run_id": run.run_id, "attempt": run.attempt}
    gone = [
        {"of_pipeline": run.pipeline, "key": key, "of_reason": reason, "resolved_night": run.night}
        for key, reason, part, row_id, first_night in session.execute(_OPEN, place)
        if part not in standing or row_id in refreshed.corrected or (taken_in is not None and first_night > taken_in)
    ]
    if gone:
        session.connection().execute(_RESOLVED, gone)


def _last_taken_in(session: Session, run: Finder) -> date | None:
    """The date of the last refresh that made a snapshot, before tonight's is recorded."""
    return max(filter(None, session.execute(_TAKEN_IN, {"pipeline": run.pipeline}).one()), default=None)


def _replace_votes(
    session: Session, run: Finder, texts: Sequence[LabelVotes], counted: NDArray[np.uint64] | None
) -> None:
    """Store the votes on texts that tonight's rows have; those on other texts stand.

    Args:
        counted: as in `Refreshed`.
    """
    stored = session.scalars(_VOTED_ON, {"pipeline": run.pipeline}).all()
    keys = np.array([int(mark[:16], 16) for mark in stored], np.uint64)
    ends = np.ones(len(stored), bool) if counted is None else np.isin(keys, counted)
    marks = [*(text.fingerprint for text in texts), *(stored[at] for at in np.flatnonzero(ends).tolist())]
    for start in range(0, len(marks), _AT_ONCE):
        known = LabelVote.fingerprint.in_(marks[start : start + _AT_ONCE])
        session.execute(sa.delete(LabelVote).where(LabelVote.pipeline == run.pipeline, known))
    place = {"pipeline": run.pipeline, "run_id": run.run_id}
    rows = [
        place | {"fingerprint": text.fingerprint, "label": label, "votes": votes, "chosen": label == text.label}
        for text in texts
        for label, votes in text.votes.items()
    ]
    add_rows(session, LabelVote, rows)
