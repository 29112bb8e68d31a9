"""The training process: `python -m nightgate.training.worker JOB.json`, started and watched by
`nightgate.training.supervisor`.

One JSON object per line on standard output (events), logs and stacks on standard error. On standard input the parent
says `recorded N` when it has dealt with epoch N; the end of standard input means that the parent is gone, and this
process ends with it. SIGINT is the parent's business; SIGTERM ends the process at once, which is safe at any moment.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from nightgate import logs
from nightgate.errors import (
    ERRORS_BY_TYPE,
    NightgateError,
    OutOfMemoryError,
    StorageError,
    is_out_of_memory,
    storage_errors,
)
from nightgate.training.protocol import EpochReport, Progress, ScoreJob, TrainJob, read_job

SECONDS_BETWEEN_PROGRESS = 1.0


class _Parent:
    """The other end of the pipes; also the `Listener` of the training loop, whose threads may all speak at once.

    Of several processes at one training only the first one talks to it.
    """

    def __init__(self, events: int) -> None:
        self._events = events
        self._silent = os.environ.get("RANK", "0") != "0"
        self._writing, self._saying = threading.Lock(), threading.Lock()
        self._dealt = threading.Condition()
        self._recorded = 0
        self._sent = 0
        self._said = ("", "")
        self._said_at = 0.0

    def send(self, event: str, **facts: Any) -> None:
        if self._silent:
            return
        line = json.dumps({"event": event, **facts}).encode() + b"\n"
        with self._writing:
            try:
                while line:
                    line = line[os.write(self._events, line) :]
            except BrokenPipeError:
                os._exit(1)

    def progress(self, progress: Progress) -> None:
        now, what = time.monotonic(), (progress.phase, progress.detail)
        with self._saying:
            if what == self._said and now - self._said_at < SECONDS_BETWEEN_PROGRESS:
                return
            self._said, self._said_at = what, now
        self.send("progress", **progress.to_json())

    def epoch_done(self, report: EpochReport) -> None:
        # An epoch's row is to be committed before the next epoch ends: never run further ahead than that.
        if self._silent:
            return
        with self._dealt:
            self._dealt.wait_for(lambda: self._recorded >= self._sent)
            self._sent = report.epoch
        self.send("epoch", **report.to_json())

    def listen(self) -> None:
        """Read what the parent says until it is gone, then end this process."""
        if self._silent:
            return
        buffer = b""
        # os.read, not sys.stdin: a thread inside a buffered reader blocks the interpreter's end.
        while chunk := os.read(0, 4096):
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                with self._dealt:
                    self._recorded = int(line.removeprefix(b"recorded "))
                    self._dealt.notify_all()
        os._exit(1)


class _ToParent(logging.Handler):
    """What belongs into the log of the night: our own records from INFO on, those of libraries from WARNING on.

    A library that repeats itself at every step is quoted once; all of it is in this process's own file.
    """

    def __init__(self, parent: _Parent) -> None:
        super().__init__()
        self.parent = parent
        self._quoted: set[tuple[str, str]] = set()
        self.addFilter(logs.belongs_to_night)
        logs.protect(self)

    def emit(self, record: logging.LogRecord) -> None:
        name, message = record.name, record.getMessage().rstrip()
        if not logs.is_ours(name):
            if (name, message) in self._quoted:
                return
            self._quoted.add((name, message))
        self.parent.send("log", level=record.levelno, name=name, message=message)


def main(arguments: list[str]) -> int:
    """Do the job in the file that the only argument names; 0 when done, 1 when it failed in words."""
    # Whatever a library prints must not mix with the events.
    events = os.dup(1)
    os.dup2(2, 1)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = _Parent(events)
    threading.Thread(target=parent.listen, name="parent", daemon=True).start()
    _log_to(parent)
    try:
        job = read_job(Path(arguments[0]))
        parent.progress(Progress("load", detail="starting"))
        if isinstance(job, TrainJob):
            _train(job, parent)
        else:
            _score(job, parent)
    except Exception as error:
        told = in_words(error)
        if not isinstance(error, NightgateError):
            # The traceback is for log.txt; run as a module, __name__ would be __main__.
            logging.getLogger("nightgate.training.worker").debug("failed", exc_info=error)
        # It is stored and shown: the message of a library may quote an address with its password.
        message = logs.without_secrets(told.reason)
        parent.send("error", error_type=told.error_type, message=message, next_step=told.next_step)
        return 1
    return 0


def in_words(error: Exception) -> NightgateError:
    """The error as one that the parent can restore; its next step is empty when the log has to tell."""
    if isinstance(error, NightgateError) and error.error_type in ERRORS_BY_TYPE:
        return error
    said = str(error).strip()
    if is_out_of_memory(error):
        return OutOfMemoryError(
            f"not enough memory: {(said.splitlines() or [type(error).__name__])[0]}",
            next_step="free memory there, or lower training.eval_batch_size, max_length or batch_size",
        )
    try:
        with storage_errors(Path(getattr(error, "filename", None) or ".")):
            raise error
    except StorageError as storage:
        return storage
    except Exception:  # noqa: BLE001 - not about the disk
        first = (said.splitlines() or [""])[0]
        return ERRORS_BY_TYPE["training"](f"{type(error).__name__}: {first}")


def _train(job: TrainJob, parent: _Parent) -> None:
    from nightgate.engine import distributed
    from nightgate.training.loop import train

    world = distributed.connect()
    parent.send("result", **train(job, parent, world).to_json())
    world.close()


def _score(job: ScoreJob, parent: _Parent) -> None:
    from nightgate.training.scoring import score_models

    parent.send("result", **score_models(job, parent.progress).to_json())


def _log_to(parent: _Parent) -> None:
    to_file = logging.StreamHandler(sys.stderr)
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logs.protect(to_file)
    logging.basicConfig(level=logging.WARNING, handlers=[to_file, _ToParent(parent)], force=True)
    logging.captureWarnings(capture=True)
    logging.getLogger("nightgate").setLevel(logging.DEBUG)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    logging.shutdown()
    # Not sys.exit: tearing down torch and CUDA takes seconds and may crash after all is done.
    os._exit(code)
