"""The steps of a night up to its model: slot, refresh, fine-tuning, epochs, and the numbered version.

Each takes the run and what earlier steps returned: frozen values of ids, numbers and paths.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial

import numpy as np

from nightgate import locks
from nightgate.analysis import seed_study
from nightgate.data import refresh as data
from nightgate.data.snapshots import Snapshot, open_snapshot
from nightgate.data.tip import hold_data
from nightgate.errors import DataError, ModelError, RegistryError, SnapshotError, TrainingError
from nightgate.metrics import classification, confusion
from nightgate.models import version_folder
from nightgate.night import reasons, starting
from nightgate.night.champion_evaluation import evaluate_champion
from nightgate.night.closing import close_ended
from nightgate.night.drift import drift_of
from nightgate.night.run import NightRun
from nightgate.night.values import Evaluated, Judged, Trained
from nightgate.provenance import base_model_revision, environment
from nightgate.registry import approvals, register, versions
from nightgate.registry.register import Candidate
from nightgate.registry.versions import VersionRow
from nightgate.runs import inputs, lifecycle, records
from nightgate.runs.run_row import RunRow
from nightgate.settings import read_settings
from nightgate.training import supervisor
from nightgate.training.predictions import read_predictions
from nightgate.training.protocol import EpochReport, Progress, TrainJob, TrainResult

log = logging.getLogger(__name__)

LATE = timedelta(hours=1)
"""After its instant, a night over rows without times warns that it sees later ones."""


@contextmanager
def slot(run: NightRun) -> Iterator[None]:
    """Hold the pipeline's slot. Under the work queue of the slot, which has the same limit, it is free at once."""
    resources = run.pipeline.resources
    if not resources.slot:
        yield
        return
    lifecycle.record_attempt(run.db, run.run_id, run.attempt, slot=resources.slot)
    began = time.monotonic()
    with locks.hold(
        run.home,
        locks.SLOT + resources.slot,
        holder=str(run),
        limit=read_settings().slot_limit(resources.slot),
        priority=resources.priority,
        on_wait=log.info,
        check=run.heartbeat.check,
    ):
        waited = round(time.monotonic() - began, 3)
        lifecycle.record_attempt(run.db, run.run_id, run.attempt, slot_wait_seconds=waited)
        yield


def refresh(run: NightRun) -> Snapshot:
    """Read the source into an immutable snapshot. A resumed run keeps the snapshot that it began with."""
    if run.snapshot_path is not None:
        # What writes its rows anew, as retention, may have begun while no run was at work.
        with hold_data(run.home, run.pipeline.name, run.run_id, run.heartbeat.check):
            snapshot = open_snapshot(run.snapshot_path)
        log.info("resuming with %s", snapshot)
        return snapshot
    due = run.night.scheduled_for
    if not run.pipeline.data.has_times and due is not None and run.data_until - due > LATE:
        log.warning(
            "this night sees the rows as they are now, not as they were at %s UTC: data.time names no column",
            f"{due:%Y-%m-%d %H:%M}",
        )
    night = replace(run.night, data_until=run.data_until)
    with hold_data(run.home, run.pipeline.name, run.run_id, run.heartbeat.check):
        previous = records.previous_snapshot(run.db, run.pipeline.name, before=run.data_until)
        try:
            # A night again may be one whose files were found damaged.
            verify = run.force or run.attempt > 1
            refreshed = data.refresh(
                run.pipeline,
                night,
                run.home,
                previous,
                verify=verify,
                allowed=run.allowed.checks,
                recorded=partial(records.has_refresh, run.db, run.pipeline.name),
            )
        except DataError as error:
            records.record_failed_refresh(run.db, run.run_id, run.attempt, error, run.allowed)
            raise
        drift = drift_of(run.db, run.pipeline, refreshed.snapshot, run.data_until)
        records.record_snapshot(run.db, run.run_id, run.attempt, refreshed, run.allowed, drift)
    return refreshed.snapshot


def evaluate(run: NightRun, snapshot: Snapshot) -> Evaluated:
    """Evaluate champion and anchor on rows that came since they were chosen. A failure is for `decide` to judge."""
    try:
        found = evaluate_champion(
            run.db,
            run.pipeline,
            snapshot,
            run_id=run.run_id,
            on_progress=run.while_ours(),
            on_restart=run.record_restart,
        )
    except (ModelError, RegistryError, SnapshotError, TrainingError) as error:
        log.warning("the champion was not evaluated: %s", error.reason)
        return Evaluated(None, error.reason)
    return Evaluated(found)


def decide(run: NightRun, snapshot: Snapshot, evaluated: Evaluated) -> RunRow | None:
    """End the night if it has no reason to train; None: the run goes on.

    A run that goes on supersedes candidates of earlier nights that still wait for an approval.

    Raises:
        ModelError: the champion's evaluation, on which it depends, has failed.
    """
    in_spreads = run.pipeline.gate.margin_unit == "seed_spread"
    spread = seed_study.newest_spread(run.db, run.pipeline) if in_spreads else None
    found = inputs.inputs(run.pipeline, run.home, snapshot.id, spread)
    decision = reasons.decide(reasons.gather(run, snapshot, found, evaluated.alarms), run.pipeline.schedule)
    records.record_reasons(run.db, run.run_id, run.attempt, found, str(decision), evaluated.champion)
    log.info("%s: %s", "trains" if decision.train else "skipped", decision)
    if decision.undecided:
        raise ModelError(
            f"the champion was not evaluated, and a reason of train_on may hold: {evaluated.flaw}",
            next_step=f"mend it and retry, or train without it: nightgate run {run.pipeline.name} --force",
        )
    if not decision.train:
        # Of a night that has a result already, which the row of another alarm must not hide.
        return run.finish("superseded" if run.alarm else "skipped", str(decision))
    if not run.dry_run and approvals.supersede_before(run.db, run.run_id, run.attempt):
        close_ended(run.db, run.pipeline.name, run.pipeline)
    return None


def fine_tune(
    run: NightRun,
    snapshot: Snapshot,
    on_epoch: Callable[[EpochReport], object],
    on_progress: Callable[[Progress], None] | None = None,
) -> Trained:
    """Train in a child process. One that stalls is started again once, and the attempt's row counts it.

    Args:
        on_epoch: Called with each epoch once its checkpoint is on disk, and with those that earlier attempts finished
            first, so that a row that was lost with its process is written after all. An error of it stops the
            training, which keeps its last checkpoint.
        on_progress: Called about once a second; it must not take long.

    Raises:
        TrainingError: The training ran out of memory, crashed or stalled, or a loss is not finite.
        ModelError: The base model or the champion cannot be used.
    """
    champion = versions.champion(run.db, run.pipeline.name)
    if champion is not None:
        # Now and not after the training: with a damaged champion no night can end.
        version_folder.verify_version(run.home.absolute(champion.path))
    start = starting.choose(run, snapshot)
    if start.reason:
        log.info("%s", start)
        started_from = start.version.version if start.version else None
        records.record_start(run.db, run.run_id, run.attempt, started_from, start.reason)
    result = _train(run, _train_job(run, snapshot, start.version), on_epoch, on_progress)
    records.record_training(run.db, run.run_id, run.attempt, result)
    if start.version is not None:
        return Trained(result, start.version.version, start.version.base_model_revision)
    settings = run.pipeline.training
    return Trained(result, None, base_model_revision(settings.base_model, settings.base_model_revision))


def _train_job(run: NightRun, snapshot: Snapshot, start: VersionRow | None) -> TrainJob:
    return TrainJob(
        run_dir=run.directory,
        attempt=run.attempt,
        snapshot=snapshot.path,
        pipeline=run.pipeline.record(),
        data_until=run.data_until.isoformat(),
        start_from=None if start is None else run.home.absolute(start.path),
    )


def _train(
    run: NightRun,
    job: TrainJob,
    on_epoch: Callable[[EpochReport], object],
    on_progress: Callable[[Progress], None] | None,
) -> TrainResult:
    results = []

    def reports() -> Generator[EpochReport]:
        results.append(
            (yield from supervisor.train(job, on_progress=run.while_ours(on_progress), on_restart=run.record_restart))
        )

    with closing(reports()) as epochs:
        for report in epochs:
            on_epoch(report)
    [result] = results
    return result


def describe_epoch(run: NightRun, report: EpochReport) -> str:
    """Epoch, F1 by the pipeline's average and validation loss."""
    f1 = report.scores.f1(run.pipeline.gate.average)
    shown = "no F1" if f1 is None else f"F1 {f1:.4f}"
    return f"epoch {report.epoch}: {shown}, validation loss {report.validation_loss:.4f}"


def record_epoch(run: NightRun, snapshot: Snapshot, report: EpochReport) -> None:
    """Store an epoch's metrics on the validation rows, in all and by class and slice: committed at once."""
    rows = snapshot.rows("validation")
    references = rows["label"].to_numpy(dtype=np.int64)
    predictions = read_predictions(report.predictions)
    names = run.pipeline.data.label_names
    records.record_epoch(
        run.db,
        run.run_id,
        run.attempt,
        report,
        report.scores,
        classification.slice_scores(rows, references, predictions, len(names), names),
        confusion.confusion_counts(references, predictions, len(names)),
    )
    accuracy = report.scores.accuracy or 0.0
    log.info("%s, accuracy %.4f, training loss %.4f", describe_epoch(run, report), accuracy, report.training_loss)


def register_candidate(run: NightRun, snapshot: Snapshot, trained: Trained, judged: Judged) -> int:
    """Make the candidate a numbered version that plain transformers can open, whatever the verdict."""
    measured, result = judged.decision.measured, trained.result
    candidate = Candidate(
        pipeline=run.pipeline,
        run_id=run.run_id,
        attempt=run.attempt,
        snapshot=snapshot,
        best_model=result.best_model,
        best_epoch=result.best_epoch,
        test=judged.test,
        test_interval=measured.candidate.interval if measured else None,
        decision=judged.decision,
        started_from=trained.started_from,
        base_model_revision=trained.base_model_revision,
        environment=environment(result.device, result.precision),
    )
    return register.register_candidate(run.db, run.home, candidate).version
