"""Decide whether to skip a night: one that would only repeat the last one is skipped."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.orm import Session

from nightgate.database.schema import Promotion, Run
from nightgate.database.transactions import Database

_COMPLETED = ("promoted", "held", "skipped", "waiting")


def skip_reason(db: Database, run_id: str, max_skips: int) -> str:
    """Why the run's night may be skipped; '' if it must run. The run's snapshot is recorded already.

    It may be skipped if the last night completed and data, configuration, code and champion have not changed since: the
    same seed would train the same model. After `max_skips` skipped nights in a row one runs anyway.
    """

    def work(session: Session) -> str:
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
        if not before or before[0].status not in _COMPLETED:
            return ""
        last = before[0]
        skipped = next((at for at, one in enumerate(before) if one.status != "skipped"), len(before))
        if skipped >= max_skips:
            return ""
        same = (last.snapshot_id, last.config_hash, last.code_version)
        if (run.snapshot_id, run.config_hash, run.code_version) != same or _champion_moved(session, last):
            return ""
        return (
            f"nothing is new since the night of {last.night} (run {last.run_id}, {last.status}): the same snapshot "
            f"{run.snapshot_id}, configuration and code"
        )

    return db.read(work)


def _champion_moved(session: Session, last: Run) -> bool:
    """Whether the champion has changed since that run started, other than by the run itself."""
    moved = sa.select(sa.func.count()).where(
        Promotion.pipeline == last.pipeline,
        Promotion.valid_from > last.started_at,
        sa.or_(Promotion.run_id.is_(None), Promotion.run_id != last.run_id),
    )
    return bool(session.scalar(moved))
