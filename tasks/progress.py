"""The progress of a training on its run's page in the UI."""

from __future__ import annotations

import contextvars
import logging
import threading
from types import TracebackType
from typing import Self, cast
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from nightgate.training.progress import done_share, progress_line
from nightgate.training.protocol import Progress

log = logging.getLogger("nightgate.tasks")

SECONDS_BETWEEN_UPDATES = 5.0
SECONDS_TO_END = 5.0
"""Wait for the last update after the training."""


class LiveProgress:
    """A progress artifact that a background thread updates: a server that is slow or away never delays the training.

    with LiveProgress("progress-reviews") as live:
        for ... : live.show(progress)
        live.end("2 epochs")
    """

    def __init__(self, key: str) -> None:
        self._key = key
        self._latest = (0.0, "starting")
        self._ended = threading.Event()
        # The artifact belongs to the task run that this thread is in.
        in_this_run = contextvars.copy_context().run
        self._thread = threading.Thread(
            target=in_this_run, args=(self._keep_updated,), name="nightgate-progress", daemon=True
        )

    def show(self, progress: Progress) -> None:
        self._latest = (100 * done_share(progress), progress_line(progress))

    def end(self, description: str) -> None:
        """Show 100 %, also where the training stopped early."""
        self._latest = (100.0, description)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(SECONDS_TO_END)

    def _keep_updated(self) -> None:
        artifact: UUID | None = None
        shown: tuple[float, str] | None = None
        ended = False
        while not ended:
            ended = self._ended.is_set()
            latest = self._latest
            if latest != shown:
                try:
                    artifact = self._write(artifact, *latest)
                    shown = latest
                except Exception as error:  # noqa: BLE001 - a page that is late must not harm the training
                    log.debug("the run's page does not show the progress: %s", error)
            if not ended:
                self._ended.wait(SECONDS_BETWEEN_UPDATES)

    def _write(self, artifact: UUID | None, percent: float, description: str) -> UUID:
        if artifact is None:
            return cast("UUID", create_progress_artifact(percent, key=self._key, description=description))
        return cast("UUID", update_progress_artifact(artifact, percent, description=description))
