"""The queue for a slot: pipelines that are due together run one after another instead of exhausting memory.

A slot is a name in `[resources] slot`, such as one per GPU or pool; `NIGHTGATE_SLOT_LIMITS="pool=2"` lets more than one
run hold it. Requests are rows of the metrics database, so they survive every restart; the request of a dead process is
released by the next process that polls the queue.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from nightgate.database.schema import Attempt, Run, SlotRequest
from nightgate.database.transactions import Database
from nightgate.runs.lifecycle import fenced
from nightgate.runs.liveness import cause_of_death, now
from nightgate.settings import read_settings

POLL_SECONDS = 2.0


@dataclass(frozen=True)
class SlotRow:
    """One place in a queue."""

    slot: str
    pipeline: str
    night: date
    run_id: str
    attempt: int
    priority: int
    requested_at: datetime
    granted_at: datetime | None
    position: int
    """0 for holders of the slot, then from 1 in the order of the queue."""


def acquire(
    db: Database,
    run_id: str,
    attempt: int,
    slot: str,
    priority: int = 0,
    *,
    on_wait: Callable[[str], None] | None = None,
    seconds: float = POLL_SECONDS,
) -> None:
    """Wait for the slot and hold it until the attempt ends. The highest priority goes first, then the oldest request.

    Args:
        on_wait: called with a sentence that says what it waits for, whenever that changes.

    Raises:
        RegistryError: another attempt has taken over meanwhile, or another process ended the run.
        ConfigurationError: NIGHTGATE_SLOT_LIMITS or another setting is invalid.
    """
    limit = read_settings().slot_limits.get(slot, 1)
    reported = None
    while why := db.write(lambda session: _acquire_or_wait(session, run_id, attempt, slot, priority, limit)):
        if why != reported and on_wait is not None:
            on_wait(why)
        reported = why
        time.sleep(seconds)


def queue(db: Database) -> list[SlotRow]:
    """Holders and waiting runs of every slot, in the order of the queue."""

    def work(session: Session) -> list[SlotRow]:
        rows = session.execute(
            sa.select(SlotRequest, Run.pipeline, Run.night)
            .join(Run, Run.run_id == SlotRequest.run_id)
            .where(SlotRequest.released_at.is_(None))
            .order_by(SlotRequest.slot, *_ORDER)
        ).all()
        found: list[SlotRow] = []
        waiting: dict[str, int] = {}
        for request, pipeline, night in rows:
            if request.granted_at is None:
                waiting[request.slot] = waiting.get(request.slot, 0) + 1
            found.append(
                SlotRow(
                    slot=request.slot,
                    pipeline=pipeline,
                    night=night,
                    run_id=request.run_id,
                    attempt=request.attempt,
                    priority=request.priority,
                    requested_at=request.requested_at,
                    granted_at=request.granted_at,
                    position=0 if request.granted_at else waiting[request.slot],
                )
            )
        return found

    return db.read(work)


# Holders first.
_ORDER = (
    SlotRequest.granted_at.is_(None),
    SlotRequest.priority.desc(),
    SlotRequest.requested_at,
    SlotRequest.run_id,
)


def _acquire_or_wait(session: Session, run_id: str, attempt: int, slot: str, priority: int, limit: int) -> str:
    """What the run waits for; '' once it holds the slot."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(sa.text("SELECT pg_advisory_xact_lock(7203151, hashtext(:slot))"), {"slot": slot})
    fenced(session, run_id, attempt)
    moment = now(session)
    own = session.get(SlotRequest, (run_id, attempt))
    if own is None:
        own = SlotRequest(run_id=run_id, attempt=attempt, slot=slot, priority=priority, requested_at=moment)
        session.add(own)
        session.flush()
    if own.granted_at is not None:
        return ""
    places = _places(session, slot, moment, asker=run_id)
    holders = [run for request, run in places if request.granted_at is not None]
    ahead = [run for request, run in places if request.granted_at is None]
    position = [run.run_id for run in ahead].index(run_id)
    if len(holders) + position < limit:
        own.granted_at = moment
        return ""
    held = ", ".join(f"{run.pipeline} ({run.run_id})" for run in holders)
    return f"waiting for slot {slot}: {position} ahead in the queue" + (f", held by {held}" if held else "")


def _places(session: Session, slot: str, moment: datetime, *, asker: str) -> list[tuple[SlotRequest, Run]]:
    """Holders, then waiting runs in order; requests of dead attempts are released."""
    rows = session.execute(
        sa.select(SlotRequest, Run, Attempt)
        .join(Run, Run.run_id == SlotRequest.run_id)
        .join(Attempt, (Attempt.run_id == SlotRequest.run_id) & (Attempt.attempt == SlotRequest.attempt))
        .where(SlotRequest.slot == slot, SlotRequest.released_at.is_(None))
        .order_by(*_ORDER)
    ).all()
    places = []
    for request, run, attempt in rows:
        is_current = run.status == "running" and run.attempt == attempt.attempt
        if not is_current or (run.run_id != asker and cause_of_death(attempt, moment)):
            request.released_at = moment
        else:
            places.append((request, run))
    return places
