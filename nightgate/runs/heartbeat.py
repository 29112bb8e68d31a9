"""A sign of life in the row of the attempt that this process works on, and word of it when the run is lost."""

from __future__ import annotations

import contextvars
import logging
import threading
from types import TracebackType
from typing import Self

import sqlalchemy as sa
from sqlalchemy.orm import Session

from nightgate.database.schema import Attempt
from nightgate.database.transactions import Database
from nightgate.errors import NightgateError, RegistryError
from nightgate.runs.lifecycle import fenced
from nightgate.runs.liveness import BEAT_SECONDS, now

log = logging.getLogger(__name__)


class Heartbeat:
    """Renews the attempt's row from a thread of its own while the block runs.

    with Heartbeat(db, run_id, attempt) as heartbeat:
        heartbeat.check()       # raises once the run was given to another attempt, or was ended from outside
    """

    def __init__(self, db: Database, run_id: str, attempt: int, *, seconds: float = BEAT_SECONDS) -> None:
        self._db, self._run_id, self._attempt, self._seconds = db, run_id, attempt, seconds
        self._lost: RegistryError | None = None
        self._ended = threading.Event()
        # What it logs belongs to this night, as what is logged here does.
        in_context = contextvars.copy_context().run
        self._thread = threading.Thread(
            target=in_context, args=(self._keep_beating,), name="nightgate-heartbeat", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        # A beat that waits for a database that is away must not hold up the end of the night.
        self._thread.join(2.0)

    def check(self) -> None:
        """Raises what `fenced` would.

        Raises:
            RegistryError: another attempt has taken over, or the run has ended.
        """
        if self._lost is not None:
            raise self._lost

    def _keep_beating(self) -> None:
        while not self._ended.wait(self._seconds):
            try:
                self._db.write(self._beat)
            except RegistryError as error:
                self._lost = error
                return
            except NightgateError as error:
                log.debug("no heartbeat of run %s: %s", self._run_id, error)

    def _beat(self, session: Session) -> None:
        fenced(session, self._run_id, self._attempt)
        session.execute(
            sa.update(Attempt)
            .where(Attempt.run_id == self._run_id, Attempt.attempt == self._attempt)
            .values(heartbeat_at=now(session))
        )
