"""Background thread that renews the attempt's heartbeat and notices when the run was ended or taken over."""

from __future__ import annotations

import contextvars
import logging
import threading
from types import TracebackType
from typing import Self

from sqlalchemy.orm import Session

from nightgate.database.schema import Attempt
from nightgate.database.shared_values import update_row
from nightgate.database.transactions import Database
from nightgate.errors import NightgateError, RegistryError
from nightgate.runs.lifecycle import fence
from nightgate.runs.liveness import BEAT_SECONDS, now

log = logging.getLogger(__name__)


class Heartbeat:
    """Context manager that renews the attempt's heartbeat from a thread.

    with Heartbeat(db, run_id, attempt) as heartbeat:
        heartbeat.check()       # raises once another attempt has taken over or another process ended the run
    """

    def __init__(self, db: Database, run_id: str, attempt: int, *, seconds: float = BEAT_SECONDS) -> None:
        self._db, self._run_id, self._attempt, self._seconds = db, run_id, attempt, seconds
        self._lost: RegistryError | None = None
        self._ended = threading.Event()
        # The thread logs in the context of this night.
        in_context = contextvars.copy_context().run
        self._thread = threading.Thread(
            target=in_context, args=(self._renew_until_ended,), name="nightgate-heartbeat", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        # A heartbeat that waits for an unavailable database must not delay the end of the night.
        self._thread.join(2.0)

    def check(self) -> None:
        """Raise the error of the last heartbeat, if it was refused.

        Raises:
            RegistryError: another attempt has taken over, or the run has ended.
        """
        if self._lost is not None:
            raise self._lost

    def _renew_until_ended(self) -> None:
        while not self._ended.wait(self._seconds):
            try:
                self._db.write(self._renew)
            except RegistryError as error:
                self._lost = error
                return
            except NightgateError as error:
                log.debug("no heartbeat of run %s: %s", self._run_id, error)

    def _renew(self, session: Session) -> None:
        fence(session, self._run_id, self._attempt)
        beat = {"heartbeat_at": now(session)}
        update_row(session, Attempt, beat, run_id=self._run_id, attempt=self._attempt)
