"""Evaluations of the champion and the anchor in the database: one for each version, role and snapshot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, cast

import sqlalchemy as sa
from sqlalchemy.orm import Session

from nightgate.database.data_schema import DriftRow
from nightgate.database.evaluation_schema import ChampionEvaluation, ChampionEvaluationSlice
from nightgate.database.refresh_schema import Refresh
from nightgate.database.schema import Run
from nightgate.database.shared_values import add_rows, slice_ids
from nightgate.database.transactions import Database
from nightgate.runs.epoch_details import slice_row

if TYPE_CHECKING:
    from nightgate.metrics.classification import SliceScore
    from nightgate.metrics.confusion import Average

Alarm = Literal["below_min_f1", "champion_dropped", "drifted"]
NEWS = timedelta(days=7)
"""Age beyond which an alarm is no news: its events are not published any more. An alarm that comes again within it is
none either: F1 may go up and down around a limit."""
_KEY = ("pipeline", "snapshot_id", "model_version", "role")
_AT = sa.select(ChampionEvaluation).filter_by(**{name: sa.bindparam(name) for name in _KEY})


@dataclass(frozen=True)
class Evaluation:
    """A version on the labelled rows that became known after it was chosen."""

    pipeline: str
    snapshot_id: str
    model_version: int
    role: str
    """'champion' or 'anchor'; only of the champion there are alarms."""
    evaluated_at: datetime
    rows_from: datetime | None
    """Aware: `data_until` of the snapshot that the version was chosen on."""
    rows_to: datetime | None
    """Aware: `data_until` of the evaluated snapshot."""
    rows: int
    reason: str
    """What was found, and what was not compared, as a clause."""
    f1: float | None = None
    """By the gate's average; None where there are no rows, or the version cannot be scored."""
    f1_ci_low: float | None = None
    f1_ci_high: float | None = None
    accuracy: float | None = None
    min_f1: float | None = None
    promotion_f1: float | None = None
    """On the test rows that it was chosen by, weighted to the class shares of the newest rows compared with them."""
    fall: float | None = None
    """The clearest fall below that, in standard errors."""
    alarms: tuple[Alarm, ...] = ()
    run_id: str | None = None
    """The night that it is a part of, if any."""
    precision: str | None = None
    """In which the predictions were computed."""

    @property
    def is_whole(self) -> bool:
        """Whether the version could be scored, if there was anything to score it on."""
        return self.f1 is not None or not self.rows

    def __str__(self) -> str:
        return f"{self.role} {self.model_version}: {', '.join(self.alarms) or 'no alarm'}"


def find(
    db: Database, key: tuple[str, str, int, str], rows_from: datetime | None, policy: dict[str, Any]
) -> Evaluation | None:
    """The stored evaluation with this key (pipeline, snapshot, version, role), if it is whole and has these terms."""
    row = db.read(lambda session: session.scalar(_AT, dict(zip(_KEY, key, strict=True))))
    if row is None or (row.rows_from, row.policy) != (rows_from, policy):
        return None
    found = _evaluation(row)
    return found if found.is_whole else None


def record(
    db: Database, found: Evaluation, policy: dict[str, Any], slices: Sequence[SliceScore], average: Average
) -> Evaluation:
    """Store an evaluation, in place of one with the same key that was made on other terms or was not whole.

    Alarms that were published for that one are no news: a champion that cannot be scored is evaluated every time.
    """
    values = {field.name: getattr(found, field.name) for field in fields(found)}
    values |= {"alarms": ", ".join(found.alarms), "policy": policy}

    def work(session: Session) -> None:
        row = session.scalar(_AT, {name: values[name] for name in _KEY})
        if row is None:
            row = ChampionEvaluation()
            session.add(row)
        else:
            session.execute(sa.delete(ChampionEvaluationSlice).filter_by(evaluation_id=row.evaluation_id))
            if not set(found.alarms) <= set(_evaluation(row).alarms):
                row.announced_at = None
        for name, value in values.items():
            setattr(row, name, value)
        session.flush()
        place = {"evaluation_id": row.evaluation_id}
        ids = slice_ids(session, [(one.slice_name, one.slice_value) for one in slices])
        add_rows(session, ChampionEvaluationSlice, [place | slice_row(one, average, ids) for one in slices])

    db.write(work)
    return found


def unannounced(db: Database, now: datetime | None = None) -> list[Evaluation]:
    """Evaluations with alarms whose events were not published; the oldest first."""
    query = (
        sa.select(ChampionEvaluation)
        .where(ChampionEvaluation.announced_at.is_(None), ChampionEvaluation.alarms != "")
        .where(ChampionEvaluation.evaluated_at > (now or datetime.now(UTC)) - NEWS)
        .order_by(ChampionEvaluation.evaluated_at)
    )
    return db.read(lambda session: [_evaluation(row) for row in session.scalars(query)])


def news(db: Database, one: Evaluation) -> frozenset[Alarm]:
    """The alarms of an evaluation that were not published of the version's last one, nor of one within `NEWS`."""
    table = ChampionEvaluation
    query = (
        sa.select(table)
        .filter_by(pipeline=one.pipeline, model_version=one.model_version, role=one.role)
        .where(table.evaluated_at < one.evaluated_at)
        .order_by(table.evaluated_at.desc())
    )

    def work(session: Session) -> frozenset[Alarm]:
        earlier = session.scalars(query).all()
        recent = [row for row in earlier if row is earlier[0] or row.evaluated_at > one.evaluated_at - NEWS]
        known = {alarm for row in recent if row.announced_at for alarm in _evaluation(row).alarms}
        return frozenset(one.alarms) - known

    return db.read(work)


def mark_announced(db: Database, one: Evaluation) -> None:
    """Record that the events of these alarms were published, unless the version was evaluated again meanwhile."""
    same = (one.pipeline, one.snapshot_id, one.model_version, one.role, one.evaluated_at)
    table = ChampionEvaluation
    columns = (table.pipeline, table.snapshot_id, table.model_version, table.role, table.evaluated_at)
    statement = sa.update(table).where(*(column == value for column, value in zip(columns, same, strict=True)))
    db.write(lambda session: session.execute(statement.values(announced_at=datetime.now(UTC))))


def drifted(db: Database, pipeline: str, since: datetime, until: datetime) -> list[str]:
    """Why the data drifted from the champion's rows: statistics that warned in the last two measurements, in words.

    Twice in a row, because a single one warns by chance once in 1,000 times: `nightgate.metrics.drift`.

    Args:
        since: aware, when the champion was chosen: earlier measurements were against another one's rows.
        until: aware; measurements of refreshes up to then.
    """
    found_by = sa.union_all(
        *(
            sa.select(key, table.data_until).where(
                table.pipeline == pipeline, table.started_at > since, table.data_until <= until
            )
            for table, key in ((Run, Run.run_id.label("run_id")), (Refresh, Refresh.refresh_id.label("run_id")))
        )
    ).subquery()
    query = (
        sa.select(found_by.c.data_until, DriftRow.statistic, DriftRow.slice_name, DriftRow.outcome, DriftRow.reason)
        .join(found_by, found_by.c.run_id == DriftRow.run_id)
        .where(DriftRow.reference == "champion")
    )
    measured: dict[datetime, dict[tuple[str, str], str]] = {}
    for at, statistic, slice_name, outcome, reason in db.read(lambda session: session.execute(query).all()):
        warned = measured.setdefault(at, {})
        if outcome == "warning":
            warned[statistic, slice_name] = reason
    if len(measured) < 2:
        return []
    before, last = (measured[at] for at in sorted(measured)[-2:])
    return [reason for name, reason in last.items() if name in before]


def _evaluation(row: ChampionEvaluation) -> Evaluation:
    values = {field.name: getattr(row, field.name) for field in fields(Evaluation)}
    alarms = tuple(cast("Alarm", name) for name in row.alarms.split(", ") if name)
    return Evaluation(**values | {"alarms": alarms})
