"""Decide whether to skip a night: one that would only repeat the last one is skipped."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.orm import Session

from nightgate.database.gate_schema import Anchor, Freeze
from nightgate.database.schema import Promotion, Run
from nightgate.database.transactions import Database
from nightgate.runs.inputs import changed

_COMPLETED = ("promoted", "held", "skipped", "waiting")


def may_skip(db: Database, run_id: str, max_skips: int) -> tuple[bool, str]:
    """Whether the run's night may be skipped, and why or why not. The run's inputs are recorded already.

    It may be skipped if the last night completed and neither its inputs nor champion, anchor or a freeze have changed
    since: the same seed would train the same model. After `max_skips` skipped nights in a row one runs anyway.
    """

    def work(session: Session) -> tuple[bool, str]:
        run = session.get_one(Run, run_id)
        before = list(
            session.scalars(
                sa.select(Run)
                .where(Run.pipeline == run.pipeline, Run.dry_run.is_(False), Run.run_id != run_id)
                .where(Run.status.not_in(("superseded", "missed")))
                .order_by(Run.started_at.desc(), Run.run_id.desc())
                .limit(max_skips + 1)
            )
        )
        if not before:
            return False, "it is the first night"
        last = before[0]
        name = f"the night of {last.night} (run {last.run_id}, {last.status})"
        if last.status not in _COMPLETED:
            return False, f"{name} did not complete"
        skipped = next((at for at, one in enumerate(before) if one.status != "skipped"), len(before))
        if skipped >= max_skips:
            return False, f"max_skips is {max_skips}"
        if last.inputs is None:
            return False, f"{name} did not record its inputs"
        if news := [*changed(last.inputs, run.inputs or {}), *_decisions(session, last)]:
            return False, f"since {name}: {', '.join(news)}"
        return True, f"nothing is new since {name}: the same snapshot {run.snapshot_id}, configuration, code and model"

    return db.read(work)


def _decisions(session: Session, last: Run) -> list[str]:
    """What was decided since that run started, other than by the run itself."""
    of_others = {
        "the champion was changed": (Promotion, Promotion.valid_from, Promotion.run_id),
        "the anchor was moved": (Anchor, Anchor.valid_from, Anchor.run_id),
        "a freeze has ended": (Freeze, Freeze.ended_at, sa.null()),
    }
    return [
        decided
        for decided, (table, moment, by_run) in of_others.items()
        if session.scalar(
            sa.select(sa.func.count())
            .select_from(table)
            .where(table.pipeline == last.pipeline, moment > last.started_at)  # type: ignore[attr-defined]
            .where(sa.or_(by_run.is_(None), by_run != last.run_id))
        )
    ]
