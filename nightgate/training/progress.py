"""Progress of a training, shown as a line, as a share of the whole, and in a file for `nightgate status`."""

from __future__ import annotations

import json
import logging
import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from nightgate.training.protocol import Progress

log = logging.getLogger(__name__)

TRAINING_SHARE = 0.95
"""Share of an epoch that is training; the rest is a forward pass over validation rows, a tenth of all by default."""

PROGRESS_FILE = "progress.json"
SECONDS_BETWEEN_FILES = 5.0


@dataclass(frozen=True)
class Recorded:
    """The last record of `record_progress`."""

    attempt: int
    at: datetime
    """Aware, UTC, by the clock of the machine that trains."""
    progress: Progress


def record_progress(run_dir: Path, attempt: int, progress: Progress) -> None:
    """Write progress to the run's folder, for `nightgate status`: 300 bytes, at most every few seconds.

    A disk that cannot be written to does not stop the training.
    """
    path = run_dir / PROGRESS_FILE
    now = time.time()
    try:
        # abs: the file's time is the file server's, whose clock may be ahead.
        if abs(now - path.stat().st_mtime) < SECONDS_BETWEEN_FILES:
            return
    except OSError:
        pass
    record = {"attempt": attempt, "at": datetime.fromtimestamp(now, UTC).isoformat(), "progress": progress.to_json()}
    # Not flushed to the disk: progress is worth nothing after a power cut.
    draft = path.with_name(f".{PROGRESS_FILE}.{os.getpid()}")
    try:
        draft.write_text(json.dumps(record), encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        log.debug("the progress of %s was not written: %s", run_dir.name, error)


def read_progress(run_dir: Path) -> Recorded | None:
    """The last record; None where there is none that this version can read."""
    try:
        record = json.loads((run_dir / PROGRESS_FILE).read_text(encoding="utf-8"))
        at = datetime.fromisoformat(record["at"])
        return Recorded(int(record["attempt"]), at, Progress.from_json(record["progress"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def progress_line(progress: Progress) -> str:
    """One line: `epoch 1/3, step 40/75, loss 1.21, 53 examples/s, 2,280 tokens/s, 0:20 left`."""
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
        parts.append(f"{_rate(progress.examples_per_second)} examples/s")
    if progress.tokens_per_second is not None:
        parts.append(f"{_rate(progress.tokens_per_second)} tokens/s")
    if progress.eta_seconds is not None:
        minutes, seconds = divmod(round(progress.eta_seconds), 60)
        hours, minutes = divmod(minutes, 60)
        parts.append((f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}") + " left")
    return ", ".join(parts)


def done_share(progress: Progress) -> float:
    """The share of all epochs that is done, 0 to 1; 0 before the first step."""
    if not (progress.epoch and progress.epochs):
        return 0.0
    if progress.phase == "save":
        within = 1.0
    elif progress.phase == "evaluate":
        within = TRAINING_SHARE + (1 - TRAINING_SHARE) * progress.done / max(progress.total, 1)
    else:
        steps = max(progress.total_steps / progress.epochs, 1)
        within = TRAINING_SHARE * (progress.step / steps - (progress.epoch - 1))
    return (progress.epoch - 1 + within) / progress.epochs


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
