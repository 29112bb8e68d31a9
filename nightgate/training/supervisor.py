"""Supervision of the child process that trains or scores: a first hang restarts it; a crash, a second hang or a lack
of memory becomes an error.

    for report in train(job): record(report)      # the result is the generator's return value

The child never outlives its parent: leaving the generator in any way stops it, and when the parent is killed the
child sees the end of its standard input.
"""

from __future__ import annotations

import json
import logging
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from nightgate import logs
from nightgate.errors import (
    ERRORS_BY_TYPE,
    CrashedError,
    NightgateError,
    OutOfMemoryError,
    StalledError,
    TrainingError,
    storage_errors,
)
from nightgate.training import launch
from nightgate.training.progress import progress_line
from nightgate.training.protocol import (
    EpochReport,
    Job,
    Progress,
    ScoreJob,
    ScoreResult,
    TrainJob,
    TrainResult,
    kind_of,
    write_job,
)

log = logging.getLogger(__name__)

SECONDS_TO_STOP = 10.0
"""Between SIGTERM and SIGKILL."""
SECONDS_BETWEEN_LINES = 10.0
"""Between two lines of progress in the log."""
SECONDS_BETWEEN_CHECKS = 0.5
SECONDS_TO_DUMP = 1.0
"""For the stacks of a stalled process."""
STEPS_BEFORE_STALLED = 10
AGAIN = "then run the same command again: it resumes from what was saved"
LIFE = "the %s process ended after %.2f s%s"
DEALT = ", in %.2f s of which its epochs were scored and stored"
"""Log lines that `benchmarks.orchestration` reads."""


def train(
    job: TrainJob,
    *,
    python: str = sys.executable,
    on_progress: Callable[[Progress], None] | None = None,
    on_restart: Callable[[str], None] | None = None,
    stall_seconds: float = 60.0,
    start_seconds: float = 600.0,
) -> Generator[EpochReport, None, TrainResult]:
    """Train in a child process, yield each epoch's report, return the result.

    The child is never more than one epoch ahead of the caller. Reports of epochs that earlier attempts finished come
    first, with their own attempt. `stall_seconds` without a step (or ten times the median step, if longer) count as a
    hang, and `start_seconds` while it loads or saves. A child that hangs is stopped and resumes from the last
    checkpoint once, which is reported to `on_restart`; the second hang is an error.

    Raises:
        TrainingError: NonFiniteLossError, OutOfMemoryError, CrashedError, StalledError, or another error of the child.
        DataError, ModelError, StorageError: as `nightgate.training.loop.train`.
    """
    yielded = resumed_from = 0
    with closing(watched(job, python, on_progress, on_restart, stall_seconds, start_seconds)) as events:
        for child, event in events:
            if event["event"] == "result":
                result = TrainResult.from_json(_facts(event))
                # A restarted child resumes from epochs of this very attempt.
                return replace(result, resumed_from=min(result.resumed_from, resumed_from))
            report = EpochReport.from_json(_facts(event))
            if report.epoch > yielded:
                yield report
                yielded = report.epoch
                resumed_from = yielded if report.attempt != job.attempt else resumed_from
            child.send(f"recorded {report.epoch}")
    raise AssertionError("the child ended with neither result nor error")


def score_models(
    job: ScoreJob,
    *,
    python: str = sys.executable,
    on_progress: Callable[[Progress], None] | None = None,
    on_restart: Callable[[str], None] | None = None,
    stall_seconds: float = 60.0,
    start_seconds: float = 600.0,
) -> ScoreResult:
    """Score models in a child process by `nightgate.training.scoring.score_models`.

    A child that hangs is stopped and started again, once.

    Raises:
        TrainingError, DataError, ModelError, StorageError: as `train`.
    """
    with closing(watched(job, python, on_progress, on_restart, stall_seconds, start_seconds)) as events:
        for _, event in events:
            return ScoreResult.from_json(_facts(event))
    raise AssertionError("the child ended with neither result nor error")


class _StallError(Exception):
    """The child makes no progress; the message says for how long, and at which point."""


class _StallTimer:
    """Time without progress of the child, and its limit.

    A message alone is no progress: the step or row that it reports must have changed.
    """

    def __init__(self, stall_seconds: float, start_seconds: float) -> None:
        self._stall_seconds, self._start_seconds = stall_seconds, start_seconds
        self._step_limit: float | None = None
        """Limit between two steps; None before the first one."""
        self._limit, self._idle = start_seconds, 0.0
        self._checked_at = time.monotonic()
        self._last = Progress("load", detail="starting")

    def on_progress(self, progress: Progress) -> None:
        last, self._last = self._last, progress
        if _position(progress) != _position(last):
            self._idle = 0.0
        if progress.phase in ("train", "evaluate"):
            self._step_limit = max(self._stall_seconds, STEPS_BEFORE_STALLED * (progress.step_seconds or 0))
            self._limit = self._step_limit
        else:
            self._limit = self._start_seconds

    def on_epoch(self, epoch: int) -> None:
        self._idle = 0.0
        self._checked_at = time.monotonic()
        # After a saved epoch the next one starts at once; after a repeated report loading continues.
        if self._step_limit is not None and self._last.epoch <= epoch:
            self._limit = self._step_limit

    def check(self) -> None:
        """Raise _StallError past the limit."""
        now = time.monotonic()
        # Not the child's: time that this process spent in its caller, or stopped (Ctrl-Z stops both).
        self._idle += min(now - self._checked_at, 2 * SECONDS_BETWEEN_CHECKS)
        self._checked_at = now
        if self._idle > self._limit:
            raise _StallError(f"{self._idle:.0f} s ({progress_line(self._last)})")


def _position(progress: Progress) -> tuple[Any, ...]:
    return progress.phase, progress.detail, progress.epoch, progress.step, progress.done


def watched(
    job: Job,
    python: str,
    on_progress: Callable[[Progress], None] | None,
    on_restart: Callable[[str], None] | None,
    stall_seconds: float,
    start_seconds: float,
) -> Generator[tuple[_Child, dict[str, Any]]]:
    """Events of the child, and the child itself: one that stalls is replaced once."""
    stalls: list[str] = []
    while True:
        with _Child(job, python) as child:
            try:
                for event in child.events(on_progress, _StallTimer(stall_seconds, start_seconds)):
                    yield child, event
            except _StallError as stall:
                stalls.append(str(stall))
                child.kill_with_stacks(f"it made no step for {stall}")
        why = f"the {child.name} process made no step for {stalls[0]}"
        if len(stalls) > 1 or child.process.poll() is None:
            again = f", and, started again, for {stalls[1]}" if len(stalls) > 1 else ", and cannot be killed"
            raise StalledError(
                f"{why}{again}",
                next_step=f"see the stacks of its threads in {child.log_file}, {AGAIN}",
            )
        log.warning("%s: stopped, the stacks of its threads are in %s; starting it again, once", why, child.log_file)
        if on_restart is not None:
            on_restart(why)


class _Child:
    """A running `nightgate.training.worker`; leaving the context stops it."""

    def __init__(self, job: Job, python: str) -> None:
        kind = kind_of(job)
        if isinstance(job, TrainJob):
            job_file, self.log_file = job.attempt_dir / "job.json", job.attempt_dir / "log.txt"
        else:
            job_file, self.log_file = job.out / f"{kind}.json", job.out / f"{kind}.log"
        self.name = {"train": "training", "score": "scoring", "predict": "prediction"}[kind]
        self.count = launch.processes() if isinstance(job, TrainJob) else 1
        write_job(job, job_file)
        environment = launch.environment(self.count)
        self._began, self._caller_seconds = time.monotonic(), 0.0
        with storage_errors(self.log_file), self.log_file.open("ab") as stderr:
            self.process = subprocess.Popen(
                launch.command(python, job_file, self.count),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment,
            )
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name="nightgate-worker-events", daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def send(self, line: str) -> None:
        assert self.process.stdin is not None
        # Of a child that has ended, the last lines are still to be read.
        with suppress(BrokenPipeError):
            self.process.stdin.write(line.encode() + b"\n")
            self.process.stdin.flush()

    def events(self, on_progress: Callable[[Progress], None] | None, timer: _StallTimer) -> Generator[dict[str, Any]]:
        """Events `epoch` and `result`; progress and log records are processed here, errors are raised."""
        printed_at = time.monotonic()
        while True:
            timer.check()
            try:
                # Short waits: an exception set in this thread from outside is raised between them.
                line = self._lines.get(timeout=SECONDS_BETWEEN_CHECKS)
            except queue.Empty:
                continue
            if line is None:
                raise self._end()
            try:
                event = json.loads(line)
            except ValueError:
                log.debug("the %s process printed: %r", self.name, line[:200])
                continue
            match event["event"]:
                case "log":
                    _relog(event["name"], event["level"], event["message"])
                case "error":
                    raise self._failed(event)
                case "progress":
                    progress = Progress.from_json(_facts(event))
                    logs.set_epoch(progress.epoch or None)
                    timer.on_progress(progress)
                    if time.monotonic() - printed_at >= SECONDS_BETWEEN_LINES:
                        printed_at = time.monotonic()
                        log.info("%s", progress_line(progress))
                    if on_progress is not None:
                        on_progress(progress)
                case _:
                    logs.set_epoch(event.get("epoch"))
                    yielded_at = time.monotonic()
                    yield event
                    self._caller_seconds += time.monotonic() - yielded_at
                    timer.on_epoch(event.get("epoch", 0))

    def kill_with_stacks(self, why: str) -> None:
        """Write `why` and the stacks of the child's threads to its log, then kill it."""
        with suppress(OSError), self.log_file.open("a", encoding="utf-8") as log_file:
            log_file.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}Z {log.name}: {why}: all its threads:\n")
        workers = self._workers()
        # SIGCONT: a process that was stopped from outside could not answer.
        for number in (signal.SIGUSR1, signal.SIGCONT):
            for worker in workers:
                with suppress(psutil.NoSuchProcess):
                    worker.send_signal(number)
        time.sleep(SECONDS_TO_DUMP)
        for process in [self.process, *workers]:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def _workers(self) -> list[psutil.Process]:
        """The processes that train: the child, or those that `torchrun` started."""
        with suppress(psutil.NoSuchProcess):
            child = psutil.Process(self.process.pid)
            return [child] if self.count == 1 else child.children(recursive=True)
        return []

    def stop(self) -> None:
        """End the child by SIGTERM, then by SIGKILL; only the kernel can keep it alive after this."""
        process, workers = self.process, self._workers()
        try:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(SECONDS_TO_STOP)
                except subprocess.TimeoutExpired:
                    log.warning("the %s process %d ignores SIGTERM, killing it", self.name, process.pid)
        finally:
            # Also when a second Ctrl-C ends the wait.
            if process.poll() is None:
                process.kill()
            for worker in workers if self.count > 1 else []:
                # Workers of a killed `torchrun` live on, and hold the pipes.
                with suppress(psutil.NoSuchProcess):
                    worker.kill()
            self._close()

    def _close(self) -> None:
        process = self.process
        try:
            process.wait(SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            # In a driver or a network file system that does not answer: waiting longer would hang the night too.
            log.error("the %s process %d was killed and does not end", self.name, process.pid)
            return
        dealt = DEALT % self._caller_seconds if self.name == "training" else ""
        log.info(LIFE, self.name, time.monotonic() - self._began, dealt)
        self._reader.join()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _failed(self, event: dict[str, Any]) -> NightgateError:
        error = ERRORS_BY_TYPE.get(event["error_type"], TrainingError)
        next_step = event["next_step"] or f"read the traceback at the end of {self.log_file}"
        return error(event["message"], next_step=next_step)

    def _end(self) -> NightgateError:
        """The error of a child that ended without result or error."""
        who = f"the {self.name} process"
        try:
            code = self.process.wait(SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            return CrashedError(f"{who} closed its output but runs on", next_step=f"see {self.log_file}")
        if code == -signal.SIGKILL:
            size = "batch_size" if self.name == "training" else "eval_batch_size"
            return OutOfMemoryError(
                f"{who} was killed (SIGKILL), most likely by the system for lack of memory",
                next_step=f"free memory, or lower training.{size} or training.max_length, {AGAIN}",
            )
        how = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code} and no result"
        last = " | ".join(_last_lines(self.log_file))
        if self.count > 1:
            who = f"one of the {self.count} training processes, or torchrun,"
        return CrashedError(
            f"{who} {how}" + (f"; its last log lines: {last}" if last else ""),
            next_step=f"see {self.log_file}, {AGAIN}",
        )


def _relog(name: str, level: int, message: str) -> None:
    """Log a record of the child under its own name, if that is one that a night's log has.

    The logger's level is not asked: the child has filtered already, and transformers may be silenced here.
    """
    if not logs.is_of_a_library(name):
        name, message = log.name, f"{name}: {message}"
    logger = logging.getLogger(name)
    logger.handle(logger.makeRecord(name, level, __file__, 0, message, (), None))


def _facts(event: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name != "event"}


def _last_lines(path: Path, count: int = 4) -> list[str]:
    try:
        text = path.read_bytes()[-20_000:].decode(errors="replace")
    except OSError:
        return []
    return [line.strip()[:200] for line in text.splitlines() if line.strip()][-count:]
