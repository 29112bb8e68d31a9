"""Train and score the seeds of a study, on any machine that has the home; `train_seed` needs no database.

    score = train_seed(study, seed)                       # what a Dask worker does
    run_study(db, study)                                  # all missing seeds, one after the other

    home/runs/seeds-<study>/seed-<n>/score.json           the score, written last; then the checkpoints are removed

An interrupted seed resumes from its last checkpoint when the study runs again.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from nightgate.analysis.seed_study import SeedScore, Study, finish_study, record_failure, record_score
from nightgate.config.pipeline import Pipeline
from nightgate.cpu_threads import pick_threads
from nightgate.data.snapshots import open_snapshot
from nightgate.database.transactions import Database
from nightgate.durable_files import write_whole
from nightgate.errors import StorageError, storage_errors
from nightgate.home import Home, existing_home
from nightgate.metrics import classification
from nightgate.metrics.confusion import Scores
from nightgate.settings import read_settings
from nightgate.training import launch, supervisor
from nightgate.training.checkpoints import remove_checkpoints
from nightgate.training.predictions import read_predictions
from nightgate.training.protocol import EpochReport, Progress, ScoreJob, TrainJob, TrainResult

log = logging.getLogger(__name__)

SCORE_FILE = "score.json"
LOCK_POLL_SECONDS = 1.0

OnProgress = Callable[[Progress], None]


def run_study(db: Database, study: Study) -> None:
    """Train all missing seeds one after the other, and finish the study; a failed seed is recorded and skipped."""
    for seed in study.missing:
        try:
            score = train_seed(study, seed)
        except Exception as error:  # noqa: BLE001 - the other seeds do not depend on this one
            record_failure(db, study, seed, error)
        else:
            record_score(db, study, score)
    finish_study(db, study.study_id)


def train_seed(study: Study, seed: int, on_progress: OnProgress | None = None) -> SeedScore:
    """Train or resume one seed, and score its best epoch on the test rows of the snapshot.

    If another process trains this seed, waits for it and returns its score.

    Raises:
        RegistryError, StorageError: the study's home is not on this machine.
        TrainingError, DataError, ModelError: as `nightgate.training.supervisor.train`.
    """
    home = _home_of(study)
    folder = home.runs / f"seeds-{study.study_id}" / f"seed-{seed}"
    with _seed_lock(folder, seed):
        if (folder / SCORE_FILE).is_file():
            return SeedScore(**json.loads((folder / SCORE_FILE).read_text(encoding="utf-8")))
        began = time.monotonic()
        pipeline = Pipeline.model_validate(study.record_of(seed))
        best, trained = _train(study, pipeline, home, folder, on_progress)
        test, precision = _score(pipeline, home.absolute(study.snapshot), folder, trained.best_model, on_progress)
        score = SeedScore(
            seed=seed,
            best_epoch=trained.best_epoch,
            validation_f1=best.scores.f1(pipeline.gate.average),
            test_f1=test.f1(pipeline.gate.average),
            test_accuracy=test.accuracy,
            duration_seconds=round(time.monotonic() - began, 3),
            precision=precision,
        )
        write_whole(folder / SCORE_FILE, json.dumps(asdict(score)).encode())
        remove_checkpoints(folder)
    return score


def local_workers(num_seeds: int, asked: int = 0) -> tuple[list[dict[str, str]], str]:
    """Environment variables of each worker on this machine, and the reason for their number; one seed per worker.

    Args:
        asked: number of workers; 0: one for each GPU, or for each core without GPUs.
    """
    together = launch.processes()
    if together > 1:
        return [{}], f"one seed at a time: NIGHTGATE_PROCESSES has {together} processes train one model"
    gpus = launch.gpus()
    if gpus:
        count = min(num_seeds, asked or len(gpus))
        reason = f"{_seeds(count)} at a time on {len(gpus)} GPU{'' if len(gpus) == 1 else 's'}"
        return [{"CUDA_VISIBLE_DEVICES": gpus[at % len(gpus)]} for at in range(count)], reason
    cores, why = pick_threads()
    count = min(num_seeds, asked or cores)
    threads = max(1, cores // count)
    reason = f"{_seeds(count)} at a time with {threads} thread{'' if threads == 1 else 's'} each: there are {why}"
    return [{"OMP_NUM_THREADS": str(threads)} for _ in range(count)], reason


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"{count} seeds"


def _home_of(study: Study) -> Home:
    home = existing_home(read_settings().home or study.home)
    if home.id != study.home_id:
        raise StorageError(
            f"the home at {home.root} is not the one of study {study.study_id}, which is at {study.home} on the "
            "machine that started it",
            next_step="set NIGHTGATE_HOME for the workers to the folder that all machines share",
        )
    return home


@contextmanager
def _seed_lock(folder: Path, seed: int) -> Iterator[None]:
    """Hold the lock of a seed: a killed command may have left a worker that still trains it."""
    lock = FileLock(folder / "lock", poll_interval=LOCK_POLL_SECONDS)
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            log.info("another process trains seed %d: waiting for it", seed)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _train(
    study: Study, pipeline: Pipeline, home: Home, folder: Path, on_progress: OnProgress | None
) -> tuple[EpochReport, TrainResult]:
    """Report of the best epoch, and the result of the training."""
    job = TrainJob(
        run_dir=folder,
        # A new number: files of a killed process are never mixed with those of this one.
        attempt=1 + sum(1 for _ in folder.glob("attempt-*")),
        snapshot=home.absolute(study.snapshot),
        pipeline=pipeline.record(),
        data_until=study.data_until,
    )
    result: TrainResult | None = None

    def reports() -> Generator[EpochReport]:
        nonlocal result
        result = yield from supervisor.train(job, on_progress=on_progress)

    with closing(reports()) as found:
        epochs = {report.epoch: report for report in found}
    assert result is not None
    return epochs[result.best_epoch], result


def _score(
    pipeline: Pipeline, snapshot: Path, folder: Path, model: Path, on_progress: OnProgress | None
) -> tuple[Scores, str]:
    """Scores on the test rows, and the precision in which they were computed."""
    job = ScoreJob(
        pipeline=pipeline.record(),
        snapshot=snapshot,
        models={"candidate": model},
        out=folder / "test",
    )
    found = supervisor.score_models(job, on_progress=on_progress)
    # Opened now: a night may have written its deltas anew since the training began.
    references = open_snapshot(snapshot, verify=False).rows("test", ["label"])["label"].to_numpy(dtype=np.int64)
    predictions = read_predictions(found.written["candidate"])
    return classification.score(references, predictions, len(pipeline.data.label_names)), found.precision
