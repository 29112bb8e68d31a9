"""Decide whether a night trains, and for which reasons: a pure function of facts that are gathered first.

    decide(facts, pipeline.schedule)    # Reasons(False, ("212 new rows (trains at 500)", "champion 9 days old"))

Rows count from the snapshot that the last training saw, whatever came of its candidate: those of nights that were
skipped or that failed are not lost. A reason about the champion holds until it is replaced. Without any change since
the last training the same seed would train the same model: only `max_skips` lets such a night train. An alarm starts
one night for a champion: `answer`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import sqlalchemy as sa
from sqlalchemy.orm import Session

from nightgate.config.schedule import Schedule
from nightgate.config.values import duration
from nightgate.data.columns import take
from nightgate.data.deltas import TAKEN
from nightgate.data.snapshots import ONE_FILE, Snapshot, open_snapshot
from nightgate.database.evaluation_schema import ChampionEvaluation
from nightgate.database.gate_schema import Anchor, Freeze
from nightgate.database.schema import Promotion, Run
from nightgate.database.transactions import Database
from nightgate.errors import SnapshotError
from nightgate.night.run import NightRun
from nightgate.registry import versions
from nightgate.registry.versions import VersionRow
from nightgate.runs.inputs import changed

log = logging.getLogger(__name__)

ALARMS = {"drift": {"drifted"}, "champion_dropped": {"champion_dropped", "below_min_f1"}}
"""The alarms of the champion's evaluation that each name in `[schedule] train_on` stands for."""
_WORDS = {
    "drift": ("drift", "no drift"),
    "champion_dropped": ("champion dropped", "no alarm that the champion dropped"),
}
_TRAINED = ("promoted", "held", "waiting")
_BROKEN = ("failed", "cancelled")


@dataclass(frozen=True)
class ChangedRows:
    """How the rows of two snapshots differ, by text; each difference counts as one row."""

    new: int = 0
    corrected: int = 0
    """With another label, time, slice or split."""
    removed: int = 0

    @property
    def total(self) -> int:
        return self.new + self.corrected + self.removed

    def __str__(self) -> str:
        others = {"corrected": self.corrected, "removed": self.removed}
        more = "".join(f", {count:,} {name}" for name, count in others.items() if count)
        return f"{self.new:,} new row{'' if self.new == 1 else 's'}{more}"


@dataclass(frozen=True)
class Facts:
    """What is known of a night after its refresh, and of those before it."""

    asked: str = ""
    """Why it trains whatever the rest says; '' for a night of the schedule."""
    trained: str = ""
    """The run that trained last, with its night; '': none has."""
    broken: str = ""
    """A run that began to train since and did not end."""
    changes: tuple[str, ...] = ()
    """What else than rows has changed since that training."""
    rows: ChangedRows | None = ChangedRows()
    """Since that training; None: its snapshot cannot be compared with tonight's."""
    quiet: int = 0
    """Nights in a row, up to this one, that were skipped with the very rows of that training."""
    champion_age: timedelta | None = None
    """From the instant of its night to tonight's, by the schedule's wall clock; None: there is no champion."""
    alarms: frozenset[str] | None = frozenset()
    """Of the champion's evaluation on tonight's rows; None: it failed."""
    alarm: str = ""
    """The alarm that started the run; '' for none."""
    answer: str = ""
    """The run that has trained for it already; '' if none has."""


@dataclass(frozen=True)
class Reasons:
    """Whether a night trains, and what holds and what doesn't."""

    train: bool
    facts: tuple[str, ...]
    undecided: bool = False
    """Whether it might train if the champion's evaluation had not failed."""

    def __str__(self) -> str:
        return ", ".join(self.facts)


def decide(facts: Facts, schedule: Schedule) -> Reasons:
    """Whether a night with these facts trains."""
    always = facts.asked or ("" if facts.trained else "no night has trained yet") or facts.broken
    if always:
        return Reasons(True, (always,))
    if facts.changes:
        return Reasons(True, facts.changes)
    if facts.answer:
        return Reasons(False, (f"alarm {facts.alarm} has had its training: {facts.answer}",))
    if facts.rows is None:
        return Reasons(True, (f"the rows of {facts.trained} cannot be compared",))
    if facts.rows.total:
        found = {f"{facts.rows} (trains at {schedule.min_new_rows:,})": facts.rows.total >= schedule.min_new_rows}
    else:
        found = {f"nothing is new since {facts.trained}": False}
    for name in schedule.train_on:
        holds = facts.alarms is not None and not facts.alarms.isdisjoint(ALARMS[name])
        found[_WORDS[name][not holds] if facts.alarms is not None else f"{_WORDS[name][0]} not known"] = holds
    oldest = duration(schedule.max_champion_age)
    if oldest is not None and facts.champion_age is not None:
        found[f"champion {_days(facts.champion_age)} old"] = facts.champion_age >= oldest
    if facts.alarm:
        found[f"started by alarm {facts.alarm}"] = True
    if facts.rows.total:
        train = any(found.values())
        return Reasons(train, tuple(found), not train and facts.alarms is None and bool(schedule.train_on))
    # The same seed would train the same model: no other reason counts.
    train = not facts.alarm and facts.quiet >= schedule.max_skips
    return Reasons(train, (*found, *([f"max_skips is {schedule.max_skips}"] if train else [])))


def _days(age: timedelta) -> str:
    return "1 day" if age.days == 1 else f"{age.days:,} days"


def gather(
    run: NightRun, snapshot: Snapshot, inputs: dict[str, str], alarms: frozenset[str] | None = frozenset()
) -> Facts:
    """The facts of a run after its refresh.

    Args:
        inputs: of `nightgate.runs.inputs`.
        alarms: of the champion's evaluation on the snapshot; None: it failed.
    """
    if asked := _asked(run):
        return Facts(asked)
    trained, later, decided = run.db.read(lambda session: _since_training(session, run))
    if trained is None:
        return Facts()
    if trained.inputs is None:
        decided.append(f"{_named(trained)} did not record its inputs")
    differ = changed((trained.inputs or inputs) | {"snapshot": snapshot.id}, inputs)
    skipped = (one for one in later if one.status == "skipped")
    champion, zone = versions.champion(run.db, run.pipeline.name), ZoneInfo(run.pipeline.schedule.timezone)
    since = None if champion is None else champion.data_until
    return Facts(
        trained=_named(trained),
        broken=next((f"{_named(one)} did not complete" for one in later if one.status in _BROKEN), ""),
        changes=(*differ, *decided),
        rows=_changed_rows(run, trained, snapshot),
        quiet=sum(1 for _ in takewhile(lambda one: one.snapshot_id == trained.snapshot_id, skipped)),
        # Of one timezone, so that the difference is that of its wall clock: a night a day, also when clocks change.
        champion_age=None if since is None else run.data_until.astimezone(zone) - since.astimezone(zone),
        alarms=alarms,
        alarm=run.alarm,
        answer=answer(run.db, champion, run.alarm, besides=run.run_id) if champion and run.alarm else "",
    )


def answer(db: Database, champion: VersionRow, alarm: str, *, besides: str = "") -> str:
    """The run that trains, or has trained, on the rows with which this champion first raised an alarm; '' if none.

    One that was skipped or broke is none: the next evaluation that raises the alarm starts another.

    Args:
        alarm: `champion_dropped`, which `below_min_f1` is too, or `drifted`.
        besides: a run that does not count.
    """
    evaluation = ChampionEvaluation
    names = next(names for names in ALARMS.values() if alarm in names)
    raised = (
        sa.select(sa.func.min(sa.func.coalesce(evaluation.rows_to, evaluation.evaluated_at)))
        .where(evaluation.pipeline == champion.pipeline, evaluation.model_version == champion.version)
        .where(evaluation.role == "champion", evaluation.evaluated_at >= champion.valid_from)
        .where(sa.or_(*(evaluation.alarms.contains(name) for name in names)))
        .scalar_subquery()
    )
    query = (
        sa.select(Run.run_id, Run.night, Run.status)
        .where(Run.pipeline == champion.pipeline, Run.dry_run.is_(False), Run.run_id != besides)
        .where(Run.status.in_(("running", *_TRAINED)), Run.data_until >= raised, Run.data_until <= datetime.now(UTC))
        .order_by(Run.data_until)
        .limit(1)
    )
    found = db.read(lambda session: session.execute(query).first())
    return _named(found) if found else ""


def _asked(run: NightRun) -> str:
    by_hand = run.night.trigger != "schedule" and not run.alarm
    reasons = {f"attempt {run.attempt}": run.attempt > 1, "forced": run.force, "a dry run": run.dry_run}
    return next((reason for reason, holds in (reasons | {"started by hand": by_hand}).items() if holds), "")


def _named(run: sa.Row[Any]) -> str:
    return f"the night of {run.night} (run {run.run_id}, {run.status})"


def _since_training(session: Session, run: NightRun) -> tuple[sa.Row[Any] | None, list[sa.Row[Any]], list[str]]:
    """The run that trained last, those that ended since and came to a decision, the newest first, and what was decided
    by others since it started.

    A training counts by its data: a past night that was run by hand comes before the nights that follow it. One that is
    still to come, by a clock that was wrong, does not count until then.
    """
    query = (
        sa.select(Run.run_id, Run.night, Run.status, Run.snapshot_id, Run.inputs, Run.data_until, Run.started_at)
        .where(Run.pipeline == run.pipeline.name, Run.dry_run.is_(False), Run.run_id != run.run_id)
        .where(Run.data_until <= datetime.now(UTC))
        .order_by(Run.data_until.desc(), Run.started_at.desc(), Run.run_id.desc())
    )
    trained = session.execute(query.where(Run.status.in_(_TRAINED)).limit(1)).first()
    if trained is None:
        return None, [], []
    # Those without inputs failed before it was decided whether they train.
    ended = query.where(Run.status.in_(("skipped", *_BROKEN)), Run.inputs.is_not(None))
    later = ended.where(Run.data_until >= trained.data_until, Run.started_at > trained.started_at)
    of_others = {
        "the champion was changed": (Promotion, Promotion.valid_from, Promotion.run_id),
        "the anchor was moved": (Anchor, Anchor.valid_from, Anchor.run_id),
        "a freeze has ended": (Freeze, Freeze.ended_at, sa.null()),
    }
    decided = [
        decision
        for decision, (table, moment, by_run) in of_others.items()
        if session.scalar(
            sa.select(sa.func.count())
            .select_from(table)
            .where(table.pipeline == run.pipeline.name, moment > trained.started_at)  # type: ignore[attr-defined]
            .where(sa.or_(by_run.is_(None), by_run != trained.run_id))
        )
    ]
    return trained, list(session.execute(later)), decided


def _changed_rows(run: NightRun, trained: sa.Row[Any], tonight: Snapshot) -> ChangedRows | None:
    if trained.snapshot_id == tonight.id:
        return ChangedRows()
    try:
        before = open_snapshot(run.home.snapshots / run.pipeline.name / str(trained.snapshot_id), verify=False)
        if ONE_FILE in (before.manifest["format"], tonight.manifest["format"]):
            return None
        same_rules = before.manifest["rules"] == tonight.manifest["rules"]
        return compare_rows(before, tonight) if same_rules else None
    except SnapshotError as error:
        log.warning("%s", error.reason)
        return None


def compare_rows(before: Snapshot, now: Snapshot) -> ChangedRows:
    """How the rows of a snapshot differ from those of an earlier one.

    Raises:
        SnapshotError: a file cannot be read.
    """
    names = ("text_key", "facts", "label", "split")
    indexes = (snapshot.chain().index([*names, "state"]) for snapshot in (before, now))
    old, new = (take(index, index["state"] == TAKEN) for index in indexes)
    _, at, there = np.intersect1d(old["text_key"], new["text_key"], assume_unique=True, return_indices=True)
    differs = np.zeros(len(at), bool)
    for name in names[1:]:
        differs |= old[name][at] != new[name][there]
    return ChangedRows(len(new["text_key"]) - len(at), int(differs.sum()), len(old["text_key"]) - len(at))
