"""Runs training and scoring in a process of its own and watches it, so that its crash, hang or hunger stays its own.

    for report in train(job): record(report)      # the result is the generator's return value

The child never outlives its parent: leaving the generator in any way stops it, and when the parent is killed the
child sees the end of its standard input.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import nightgate
from nightgate.errors import (
    ERRORS_BY_TYPE,
    CrashedError,
    NightgateError,
    OutOfMemoryError,
    StalledError,
    TrainingError,
    storage_errors,
)
from nightgate.jobs import EpochReport, Progress, ScoreJob, TrainJob, TrainResult, write_job

log = logging.getLogger(__name__)

SECONDS_TO_STOP = 10.0
"""Between SIGTERM and SIGKILL."""
SECONDS_BETWEEN_LINES = 10.0
"""Between two lines of progress in the log."""
STEPS_BEFORE_STALLED = 10

_CHILD_ENVIRONMENT = {
    # Idle OpenMP threads sleep instead of spinning: beside a busy neighbour on two cores that halves the step's time.
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # Seconds of silence after which the hub counts as unreachable.
    "HF_HUB_ETAG_TIMEOUT": "10",
    "HF_HUB_DOWNLOAD_TIMEOUT": "30",
    "TRANSFORMERS_VERBOSITY": "error",
    "PYTHONUNBUFFERED": "1",
}


def train(
    job: TrainJob,
    *,
    python: str = sys.executable,
    on_progress: Callable[[Progress], None] | None = None,
    stall_seconds: float = 120.0,
    start_seconds: float = 600.0,
) -> Generator[EpochReport, None, TrainResult]:
    """Train in a child process, yield each epoch's report, return the result.

    The child is never more than one epoch ahead of the caller. Reports of epochs that earlier attempts finished come
    first, with their own attempt. `stall_seconds` without progress (or ten steps, if longer) count as a hang, and
    `start_seconds` while it loads or saves.

    Raises:
        TrainingError: NonFiniteLossError, OutOfMemoryError, CrashedError, StalledError, or the child's own words.
        DataError, ModelError, StorageError: as `nightgate.training.train`.
    """
    folder = job.attempt_dir
    with _Child(job, folder / "job.json", folder / "log.txt", python) as child:
        for event in child.events(on_progress, stall_seconds, start_seconds):
            if event["event"] == "result":
                return TrainResult.from_json(_facts(event))
            report = EpochReport.from_json(_facts(event))
            yield report
            child.tell(f"recorded {report.epoch}")
    raise AssertionError("the child ended with neither result nor error")


def score_models(
    job: ScoreJob,
    *,
    python: str = sys.executable,
    on_progress: Callable[[Progress], None] | None = None,
    stall_seconds: float = 120.0,
    start_seconds: float = 600.0,
) -> dict[str, Path]:
    """Score models in a child process: name to npz with `logits` and `labels`, as `nightgate.scoring.score_models`.

    Raises:
        TrainingError, DataError, ModelError, StorageError: as `train`.
    """
    with _Child(job, job.out / "score.json", job.out / "score.log", python) as child:
        for event in child.events(on_progress, stall_seconds, start_seconds):
            return {name: Path(path) for name, path in event["written"].items()}
    raise AssertionError("the child ended with neither result nor error")


class _Child:
    """A running `nightgate.worker`; leaving the context stops it."""

    def __init__(self, job: TrainJob | ScoreJob, job_file: Path, log_file: Path, python: str) -> None:
        self.job_file, self.log_file = write_job(job, job_file), log_file
        with storage_errors(log_file), log_file.open("ab") as stderr:
            self.process = subprocess.Popen(
                # -P: a file of the working directory must not shadow a module.
                [python, "-P", "-m", "nightgate.worker", str(self.job_file)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=_environment(),
            )
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._heard_at = time.monotonic()
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
        # The consumer was away: its time is not the child's silence.
        self._heard_at = time.monotonic()
        try:
            self.process.stdin.write(line.encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # It has ended; what it said last is still to be read.

    def events(
        self, on_progress: Callable[[Progress], None] | None, stall_seconds: float, start_seconds: float
    ) -> Iterator[dict[str, Any]]:
        """Events `epoch` and `result`; progress and log records are dealt with here, errors are raised."""
        steady = stall_seconds
        limit = start_seconds
        trained = False
        printed_at = time.monotonic()
        while True:
            try:
                # Short waits: exceptions that a thread is sent from outside come through between them.
                line = self._lines.get(timeout=0.5)
            except queue.Empty:
                silent = time.monotonic() - self._heard_at
                if silent > limit:
                    self._stalled(silent)
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
                    logging.getLogger(event["name"]).log(event["level"], "%s", event["message"])
                case "error":
                    raise self._failed(event)
                case "progress":
                    progress = Progress.from_json(_facts(event))
                    if progress.phase in ("train", "evaluate"):
                        steady = max(stall_seconds, STEPS_BEFORE_STALLED * (progress.step_seconds or 0))
                        limit, trained = steady, True
                    else:
                        limit = start_seconds
                    if time.monotonic() - printed_at >= SECONDS_BETWEEN_LINES:
                        printed_at = time.monotonic()
                        log.info("%s", progress_line(progress))
                    if on_progress is not None:
                        on_progress(progress)
                case _:
                    # Behind a saved epoch the next one starts at once; behind a repeated report the loading goes on.
                    limit = steady if trained else limit
                    yield event

    def stop(self) -> None:
        """End the child, politely first; after this it is gone."""
        process = self.process
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
            process.wait()
            self._reader.join()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                with suppress(BrokenPipeError):
                    pipe.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._heard_at = time.monotonic()
            self._lines.put(line)
        self._lines.put(None)

    def _stalled(self, silent: float) -> None:
        self.process.send_signal(signal.SIGUSR1)
        time.sleep(1.0)
        self.process.kill()
        self.process.wait()
        raise StalledError(
            f"the training process made no step for {silent:.0f} s and was killed",
            next_step=f"see where it hung at the end of {self.log_file}, then run the same command again: "
            "it goes on from the last checkpoint",
        )

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
        return CrashedError(
            f"the training process {how} without a word" + (f"; its last log lines: {last}" if last else ""),
            next_step=f"see {self.log_file}, {again}",
        )


def progress_line(progress: Progress) -> str:
    """One line for the log: `epoch 1/3, step 40/75, loss 1.21, 53 examples/s, 0:20 left`."""
    parts = [f"epoch {progress.epoch}/{progress.epochs}"] if progress.epoch else []
    if progress.phase == "train":
        parts.append(f"step {progress.step}/{progress.total_steps}")
    else:
        parts.append(progress.detail or {"evaluate": "evaluating", "save": "saving"}.get(progress.phase, "loading"))
        if progress.total:
            parts.append(f"{progress.done}/{progress.total}")
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.4g}")
    if progress.examples_per_second is not None:
        parts.append(f"{progress.examples_per_second:.3g} examples/s")
    if progress.eta_seconds is not None:
        minutes, seconds = divmod(round(progress.eta_seconds), 60)
        hours, minutes = divmod(minutes, 60)
        parts.append((f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}") + " left")
    return ", ".join(parts)


def _environment() -> dict[str, str]:
    # What the child does not need it does not get: no database, no orchestrator.
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PREFECT_") and name != "NIGHTGATE_DATABASE_URL"
    }
    code = str(Path(nightgate.__file__).parents[1])
    path = os.pathsep.join(part for part in (code, kept.get("PYTHONPATH", "")) if part)
    return {**_CHILD_ENVIRONMENT, **kept, "PYTHONPATH": path}


def _facts(event: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name != "event"}


def _last_lines(path: Path, count: int = 4) -> list[str]:
    try:
        text = path.read_bytes()[-20_000:].decode(errors="replace")
    except OSError:
        return []
    return [line.strip()[:200] for line in text.splitlines() if line.strip()][-count:]
