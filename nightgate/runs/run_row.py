"""How a run stands: its status, reason and numbers, as its row in the database has them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from nightgate.database.schema import ModelVersion, Run, Snapshot
from nightgate.database.transactions import Database


@dataclass(frozen=True)
class RunRow:
    """A run at the moment at which it was read."""

    run_id: str
    pipeline: str
    night: date
    attempt: int
    status: str
    reason: str
    error_type: str | None
    next_step: str | None
    dry_run: bool
    data_until: datetime
    """Aware, of the first attempt: a resumed run sees the same rows."""
    snapshot: str | None
    """Folder of its snapshot, relative to the home; None: there is none yet."""
    test_f1: float | None
    model_version: int | None
    """The version that it made."""
    champion_version: int | None
    """The champion that it was compared with."""
    prefect_flow_run_id: str | None

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do for this process; a run that waits for an approval counts as ended."""
        return self.status != "running"


def select_runs() -> sa.Select[Any]:
    """The columns of `RunRow`, in its order; the caller adds WHERE and ORDER BY."""
    return (
        sa.select(
            Run.run_id,
            Run.pipeline,
            Run.night,
            Run.attempt,
            Run.status,
            sa.func.coalesce(Run.reason, ""),
            Run.error_type,
            Run.next_step,
            Run.dry_run,
            Run.data_until,
            Snapshot.path,
            Run.test_f1,
            ModelVersion.version,
            Run.champion_version,
            Run.prefect_flow_run_id,
        )
        .outerjoin(ModelVersion, ModelVersion.run_id == Run.run_id)
        .outerjoin(Snapshot, (Snapshot.pipeline == Run.pipeline) & (Snapshot.snapshot_id == Run.snapshot_id))
    )


_ONE = select_runs().where(Run.run_id == sa.bindparam("run_id"))


def read_run(db: Database, run_id: str) -> RunRow:
    """The row of a run that exists."""
    return db.read(lambda session: run_row(session, run_id))


def run_row(session: Session, run_id: str) -> RunRow:
    """The row of a run that exists, as this transaction sees it."""
    session.flush()
    return RunRow(*session.execute(_ONE, {"run_id": run_id}).one())
