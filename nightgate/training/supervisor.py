"""Runs training and scoring in a process of its own and watches it, so that its crash, hang or hunger stays its own.

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
from nightgate.training.protocol import EpochReport, Progress, ScoreJob, ScoreResult, TrainJob, TrainResult, write_job

log = logging.getLogger(__name__)

SECONDS_TO_STOP = 10.0
"""Between SIGTERM and SIGKILL."""
SECONDS_BETWEEN_LINES = 10.0
"""Between two lines of progress in the log."""
SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_TO_DUMP = 1.0
"""For the stacks of a process that stands still."""
STEPS_BEFORE_STALLED = 10
LIFE = "the %s process ended after %.2f s%s"
DEALT = ", in %.2f s of which its epochs were scored and stored"
"""What `benchmarks.orchestration` reads: the rest of a night is ours."""


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
    hang, and `start_seconds` while it loads or saves. A child that hangs is stopped and goes on from the last
    checkpoint once, which `on_restart` is told; the second time is an error.

    Raises:
        TrainingError: NonFiniteLossError, OutOfMemoryError, CrashedError, StalledError, or the child's own words.
        DataError, ModelError, StorageError: as `nightgate.training.loop.train`.
    """
    yielded = resumed_from = 0
    with closing(_watched(job, python, on_progress, on_restart, stall_seconds, start_seconds)) as events:
        for child, event in events:
            if event["event"] == "result":
                result = TrainResult.from_json(_facts(event))
                # A child that was started again went on from epochs of this very attempt.
                return replace(result, resumed_from=min(result.resumed_from, resumed_from))
            report = EpochReport.from_json(_facts(event))
            if report.epoch > yielded:
                yield report
                yielded = report.epoch
                resumed_from = yielded if report.attempt != job.attempt else resumed_from
            child.tell(f"recorded {report.epoch}")
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
    """Score models in a child process, as `nightgate.training.scoring.score_models`.

    A child that hangs is stopped and scores anew, once.

    Raises:
        TrainingError, DataError, ModelError, StorageError: as `train`.
    """
    with closing(_watched(job, python, on_progress, on_restart, stall_seconds, start_seconds)) as events:
        for _, event in events:
            return ScoreResult.from_json(_facts(event))
    raise AssertionError("the child ended with neither result nor error")


class _StallError(Exception):
    """The child stands still: for how long, and where."""


class _Patience:
    """For how long the child has made no progress, and for how long it may.

    A message alone is no progress: the place that it tells of must have moved.
    """

    def __init__(self, stall_seconds: float, start_seconds: float) -> None:
        self._stall_seconds, self._start_seconds = stall_seconds, start_seconds
        self._steady: float | None = None
        """How long between two steps; None before the first one."""
        self._limit, self._still = start_seconds, 0.0
        self._looked_at = time.monotonic()
        self._last = Progress("load", detail="starting")

    def saw(self, progress: Progress) -> None:
        last, self._last = self._last, progress
        if _place(progress) != _place(last):
            self._still = 0.0
        if progress.phase in ("train", "evaluate"):
            self._steady = max(self._stall_seconds, STEPS_BEFORE_STALLED * (progress.step_seconds or 0))
            self._limit = self._steady
        else:
            self._limit = self._start_seconds

    def saw_epoch(self, epoch: int) -> None:
        self._still = 0.0
        self._looked_at = time.monotonic()
        # Behind a saved epoch the next one starts at once; behind a repeated report the loading goes on.
        if self._steady is not None and self._last.epoch <= epoch:
            self._limit = self._steady

    def look(self) -> None:
        """Raises _StallError when the time is up."""
        now = time.monotonic()
        # Time in which this process was with its caller, or stopped (Ctrl-Z stops both), is not the child's.
        self._still += min(now - self._looked_at, 2 * SECONDS_BETWEEN_LOOKS)
        self._looked_at = now
        if self._still > self._limit:
            raise _StallError(f"{self._still:.0f} s ({progress_line(self._last)})")


def _place(progress: Progress) -> tuple[Any, ...]:
    return progress.phase, progress.detail, progress.epoch, progress.step, progress.done


def _watched(
    job: TrainJob | ScoreJob,
    python: str,
    on_progress: Callable[[Progress], None] | None,
    on_restart: Callable[[str], None] | None,
    stall_seconds: float,
    start_seconds: float,
) -> Generator[tuple[_Child, dict[str, Any]]]:
    """What the child says, and who it is: one that stalls is replaced once."""
    stood: list[str] = []
    while True:
        with _Child(job, python) as child:
            try:
                for event in child.events(on_progress, _Patience(stall_seconds, start_seconds)):
                    yield child, event
            except _StallError as stall:
                stood.append(str(stall))
                child.end_with_stacks(f"made no step for {stall}")
        if len(stood) > 1 or child.process.poll() is None:
            again = f", and, started again, for {stood[1]}" if len(stood) > 1 else ", and cannot be killed"
            raise StalledError(
                f"the training process made no step for {stood[0]}{again}",
                next_step=f"see where its threads stood in {child.log_file}, then run the same command again: "
                "it goes on from the last checkpoint",
            )
        why = f"the training process made no step for {stood[0]}"
        log.warning("%s: stopped, see where its threads stood in %s; starting it again, once", why, child.log_file)
        if on_restart is not None:
            on_restart(why)


class _Child:
    """A running `nightgate.training.worker`; leaving the context stops it."""

    def __init__(self, job: TrainJob | ScoreJob, python: str) -> None:
        if isinstance(job, TrainJob):
            job_file, self.log_file = job.attempt_dir / "job.json", job.attempt_dir / "log.txt"
        else:
            job_file, self.log_file = job.out / "score.json", job.out / "score.log"
        self._name = "training" if isinstance(job, TrainJob) else "scoring"
        # Scoring is for one.
        self.count = launch.processes() if isinstance(job, TrainJob) else 1
        write_job(job, job_file)
        environment = launch.environment(self.count)
        self._began, self._dealing = time.monotonic(), 0.0
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

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(line.encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # It has ended; what it said last is still to be read.

    def events(self, on_progress: Callable[[Progress], None] | None, patience: _Patience) -> Generator[dict[str, Any]]:
        """Events `epoch` and `result`; progress and log records are dealt with here, errors are raised."""
        printed_at = time.monotonic()
        while True:
            patience.look()
            try:
                # Short waits: exceptions that a thread is sent from outside come through between them.
                line = self._lines.get(timeout=SECONDS_BETWEEN_LOOKS)
            except queue.Empty:
                continue
            if line is None:
                raise self._end()
            try:
                event = json.loads(line)
            except ValueError:
                log.debug("the training process said: %r", line[:200])
                continue
            match event["event"]:
                case "log":
                    _repeat(event["name"], event["level"], event["message"])
                case "error":
                    raise self._failed(event)
                case "progress":
                    progress = Progress.from_json(_facts(event))
                    logs.set_epoch(progress.epoch or None)
                    patience.saw(progress)
                    if time.monotonic() - printed_at >= SECONDS_BETWEEN_LINES:
                        printed_at = time.monotonic()
                        log.info("%s", progress_line(progress))
                    if on_progress is not None:
                        on_progress(progress)
                case _:
                    logs.set_epoch(event.get("epoch"))
                    handed_on = time.monotonic()
                    yield event
                    self._dealing += time.monotonic() - handed_on
                    patience.saw_epoch(event.get("epoch", 0))

    def end_with_stacks(self, why: str) -> None:
        """Kill the child; its log gets the stacks of its threads first, behind a line that says why."""
        with suppress(OSError), self.log_file.open("a", encoding="utf-8") as log_file:
            log_file.write(
                f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}Z nightgate.training.supervisor: it {why}: all its threads:\n"
            )
        workers = self._workers()
        # SIGCONT: one that was stopped from outside could not answer.
        for number in (signal.SIGUSR1, signal.SIGCONT):
            for worker in workers:
                with suppress(psutil.NoSuchProcess):
                    worker.send_signal(number)
        time.sleep(SECONDS_TO_DUMP)
        for process in [self.process, *workers]:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def _workers(self) -> list[psutil.Process]:
        """The processes that train: the child itself, or those that `torchrun` started."""
        with suppress(psutil.NoSuchProcess):
            child = psutil.Process(self.process.pid)
            return [child] if self.count == 1 else child.children(recursive=True)
        return []

    def stop(self) -> None:
        """End the child, politely first; after this it is gone, unless the kernel itself holds it."""
        process, workers = self.process, self._workers()
        try:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(SECONDS_TO_STOP)
                except subprocess.TimeoutExpired:
                    log.warning("the training process %d ignores SIGTERM, killing it", process.pid)
        finally:
            # Also when a second Ctrl-C cuts the wait short.
            if process.poll() is None:
                process.kill()
            for worker in workers if self.count > 1 else []:
                # Those of a `torchrun` that was killed live on, and hold the pipes.
                with suppress(psutil.NoSuchProcess):
                    worker.kill()
            self._clear_up()

    def _clear_up(self) -> None:
        process = self.process
        try:
            process.wait(SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            # In a driver or a network file system that does not answer: waiting on would hang the night as well.
            log.error("the training process %d does not even end when it is killed", process.pid)
            return
        dealt = DEALT % self._dealing if self._dealing else ""
        log.info(LIFE, self._name, time.monotonic() - self._began, dealt)
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
        try:
            code = self.process.wait(SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            return CrashedError("the training process closed its output but lives on", next_step=f"see {self.log_file}")
        again = "then run the same command again: it goes on from the last checkpoint"
        if code == -signal.SIGKILL:
            return OutOfMemoryError(
                "the training process was killed (SIGKILL), most likely by the system for lack of memory",
                next_step=f"free memory, or lower training.batch_size or training.max_length, {again}",
            )
        how = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        last = " | ".join(_last_lines(self.log_file))
        who = "the training process" if self.count == 1 else f"one of the {self.count} training processes, or torchrun,"
        return CrashedError(
            f"{who} {how} without a word" + (f"; its last log lines: {last}" if last else ""),
            next_step=f"see {self.log_file}, {again}",
        )


def _repeat(name: str, level: int, message: str) -> None:
    """Log what the child said under the name that it was said under, if that is one that the log of a night has.

    Past the logger's own level: the child has chosen what is worth telling, and transformers may be silenced here.
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
