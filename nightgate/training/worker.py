"""Entry point of the training process, `python -m nightgate.training.worker JOB.json`.

`nightgate.training.supervisor` starts it. Events are JSON lines on standard output, logs and stacks go to standard
error. On standard input the parent sends `recorded N` when it has stored epoch N, or the N-th window of texts to
predict; the end of standard input means that the parent is gone, and ends this process. SIGINT is left to the parent;
SIGTERM ends it at once, which is always safe.
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
from nightgate.training.protocol import EpochReport, PredictJob, Progress, ScoreJob, TrainJob, read_job

SECONDS_BETWEEN_PROGRESS = 1.0


class _Parent:
    """Pipes to the supervisor; also the thread-safe `Listener` of the training loop.

    Of several processes in one training, rank 0 alone sends.
    """

    def __init__(self, events: int) -> None:
        self._events = events
        self._silent = os.environ.get("RANK", "0") != "0"
        self._write_lock, self._progress_lock = threading.Lock(), threading.Lock()
        self._acknowledged = threading.Condition()
        self._recorded = 0
        self._sent = 0
        self._last_progress = ("", "")
        self._progress_at = 0.0

    def send(self, event: str, **facts: Any) -> None:
        if self._silent:
            return
        line = json.dumps({"event": event, **facts}).encode() + b"\n"
        with self._write_lock:
            try:
                while line:
                    line = line[os.write(self._events, line) :]
            except BrokenPipeError:
                os._exit(1)

    def progress(self, progress: Progress) -> None:
        now, what = time.monotonic(), (progress.phase, progress.detail)
        with self._progress_lock:
            if what == self._last_progress and now - self._progress_at < SECONDS_BETWEEN_PROGRESS:
                return
            self._last_progress, self._progress_at = what, now
        self.send("progress", **progress.to_json())

    def epoch_done(self, report: EpochReport) -> None:
        # An epoch's row is committed before the next epoch ends: never run further ahead than that.
        if self._silent:
            return
        with self._acknowledged:
            self._acknowledged.wait_for(lambda: self._recorded >= self._sent)
            self._sent = report.epoch
        self.send("epoch", **report.to_json())

    def wait_beyond(self, number: int) -> int:
        """Wait until the parent has stored more than `number`; returns how many."""
        with self._acknowledged:
            self._acknowledged.wait_for(lambda: self._recorded > number)
            return self._recorded

    def listen(self) -> None:
        """Read the parent's acknowledgements until it is gone, then end this process."""
        if self._silent:
            return
        buffer = b""
        # os.read, not sys.stdin: a thread in a buffered reader blocks the interpreter's exit.
        while chunk := os.read(0, 4096):
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                with self._acknowledged:
                    self._recorded = int(line.removeprefix(b"recorded "))
                    self._acknowledged.notify_all()
        os._exit(1)


class _ToParent(logging.Handler):
    """Sends records to the night's log: Nightgate's own from INFO on, those of libraries from WARNING on.

    A library's message that repeats at every step is sent once; this process's own log has all of them.
    """

    def __init__(self, parent: _Parent) -> None:
        super().__init__()
        self.parent = parent
        self._sent: set[tuple[str, str]] = set()
        self.addFilter(logs.belongs_to_night)
        logs.protect(self)

    def emit(self, record: logging.LogRecord) -> None:
        name, message = record.name, record.getMessage().rstrip()
        if not logs.is_ours(name):
            if (name, message) in self._sent:
                return
            self._sent.add((name, message))
        self.parent.send("log", level=record.levelno, name=name, message=message)


def main(arguments: list[str]) -> int:
    """Run the job in the file that the only argument names; 0 when done, 1 when an error was sent."""
    # Output of libraries must not mix with the events.
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
        elif isinstance(job, PredictJob):
            _predict(job, parent)
        else:
            _score(job, parent)
    except Exception as error:
        known = as_nightgate_error(error)
        if not isinstance(error, NightgateError):
            # The traceback goes to log.txt; run as a module, __name__ would be __main__.
            logging.getLogger("nightgate.training.worker").debug("failed", exc_info=error)
        # It is stored and shown, and a library's message may quote an address with its password.
        message = logs.without_secrets(known.reason)
        parent.send("error", error_type=known.error_type, message=message, next_step=known.next_step)
        return 1
    return 0


def as_nightgate_error(error: Exception) -> NightgateError:
    """The error as one that the parent can restore; its next step is empty where only the log has more."""
    if isinstance(error, NightgateError) and error.error_type in ERRORS_BY_TYPE:
        return error
    first_line = (str(error).strip().splitlines() or [""])[0]
    if is_out_of_memory(error):
        return OutOfMemoryError(
            f"not enough memory: {first_line or type(error).__name__}",
            next_step="free memory there, or lower training.eval_batch_size, max_length or batch_size",
        )
    try:
        with storage_errors(Path(getattr(error, "filename", None) or ".")):
            raise error
    except StorageError as storage:
        return storage
    except Exception:  # noqa: BLE001 - not about the disk
        return ERRORS_BY_TYPE["training"](f"{type(error).__name__}: {first_line}")


def _train(job: TrainJob, parent: _Parent) -> None:
    from nightgate.engine import distributed
    from nightgate.training.loop import train

    world = distributed.connect()
    parent.send("result", **train(job, parent, world).to_json())
    world.close()


def _predict(job: PredictJob, parent: _Parent) -> None:
    from nightgate.training.scoring import open_for_prediction

    predict, done = open_for_prediction(job, parent.progress), 0
    parent.send("ready")
    while True:
        done = parent.wait_beyond(done)
        predict()
        parent.send("window", number=done)


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
