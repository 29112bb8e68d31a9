"""The steps of a night, each one call: what the Prefect tasks wrap and `nightgate run --no-prefect` calls bare.

    with open_night(pipeline, night) as run:      # a row in SQL first, whatever comes
        take_slot(run)                            # pipelines that are due together take turns
        refresh_data(run)                         # source -> immutable snapshot
        if not skip_without_news(run):
            for epoch in fine_tune(run):          # a process of its own; yields after each epoch
                record_epoch(run, score_epoch(run, epoch))      # metrics -> SQL, before the next epoch ends
            score_on_test(run)                    # candidate, champion and anchor on the same rows
            try_serving(run)                      # the saved model in a fresh process, without our code
            judge(run)                            # evidence, checks and verdict -> SQL
            register_candidate(run)               # a numbered version, held ones too
            settle(run)                           # promoted, held, or waiting for a person

A `NightRun` carries what the steps hand on. Leaving the block by an exception settles the run's row: failed with its
reason, or cancelled when a person or a signal stopped it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nightgate.config import Pipeline
from nightgate.config_types import duration
from nightgate.data import refresh
from nightgate.data.snapshots import open_snapshot
from nightgate.errors import (
    DataError,
    PromotionLostError,
)
from nightgate.home import Home
from nightgate.metrics import classification, confusion
from nightgate.metrics.confusion import Scores
from nightgate.models import version_folder
from nightgate.night.evidence import score_on_test, try_serving
from nightgate.night.run import NightRun, open_night
from nightgate.night.verdict import judge
from nightgate.provenance import base_model_revision, environment
from nightgate.registry import approvals, freezes, promotion, register, retention, versions
from nightgate.registry.register import Candidate
from nightgate.runs import lifecycle, records, slot_queue
from nightgate.runs.skip import skip_reason
from nightgate.schedule import Night
from nightgate.training import supervisor
from nightgate.training.checkpoints import remove_checkpoints
from nightgate.training.predictions import read_predictions
from nightgate.training.protocol import EpochReport, Progress, TrainJob

log = logging.getLogger(__name__)


def run_night(pipeline: Pipeline, night: Night, *, force: bool = False, dry_run: bool = False) -> NightRun:
    """One night without Prefect: the same calls as `flows.nightly`, bare."""
    with open_night(pipeline, night, force=force, dry_run=dry_run, on_end=write_report) as run:
        if run.is_open:
            take_slot(run)
            refresh_data(run)
            if not skip_without_news(run, force=force):
                with closing(fine_tune(run)) as epochs:
                    for epoch in epochs:
                        record_epoch(run, score_epoch(run, epoch))
                score_on_test(run)
                try_serving(run)
                judge(run)
                register_candidate(run)
                settle(run)
    return run


def take_slot(run: NightRun, on_wait: Callable[[str], None] | None = None) -> None:
    """Wait until the pipeline's slot is free; it is let go of with the end of the run.

    Args:
        on_wait: told in a sentence what it waits for, whenever that changes.
    """
    resources = run.pipeline.resources

    def tell(why: str) -> None:
        log.info("%s", why)
        if on_wait is not None:
            on_wait(why)

    if resources.slot:
        slot_queue.acquire(run.db, run.run_id, run.attempt, resources.slot, resources.priority, on_wait=tell)


def refresh_data(run: NightRun) -> None:
    """Read the source into an immutable snapshot. A resumed run keeps the snapshot that it began with."""
    if run.snapshot_path is not None:
        run.snapshot = open_snapshot(run.snapshot_path)
        log.info("going on with snapshot %s", run.snapshot.id)
        return
    previous = records.previous_snapshot(run.db, run.pipeline.name, before=run.data_until)
    night = replace(run.night, data_until=run.data_until)
    try:
        refreshed = refresh.refresh(run.pipeline, night, run.home, previous)
    except DataError as error:
        # The night on which one wants to see them.
        records.record_quarantined(run.db, run.run_id, run.attempt, error.quarantined)
        raise
    records.record_snapshot(run.db, run.run_id, run.attempt, refreshed)
    run.snapshot = refreshed.snapshot


def skip_without_news(run: NightRun, *, force: bool = False) -> bool:
    """End a scheduled night as skipped if it would only repeat the last one; else the run goes to work.

    What a person starts is run. An approval that nobody gave until now is superseded by the night that goes to work.
    """
    if run.night.trigger == "schedule" and not (force or run.dry_run or run.attempt > 1):
        reason = skip_reason(run.db, run.run_id, run.pipeline.schedule.max_skips)
        if reason:
            lifecycle.finish_run(run.db, run.run_id, run.attempt, "skipped", reason=reason)
            run.status, run.reason = "skipped", reason
            log.info("skipped: %s", reason)
            return True
    if not run.dry_run:
        for passed in approvals.supersede_before(run.db, run.run_id, run.attempt):
            _publish(run.home, passed)
    return False


def fine_tune(run: NightRun, on_progress: Callable[[Progress], None] | None = None) -> Generator[EpochReport]:
    """Train in a process of its own; yield each epoch once its checkpoint is on disk.

    Epochs that an earlier attempt finished come again first, so that a row that was lost in between is written after
    all. Closing the iterator stops the training and keeps its last checkpoint. A process that stands still is started
    again once, and the attempt's row says so.

    Args:
        on_progress: told about once a second where the training stands; it must not take long.

    Raises:
        TrainingError: it ran out of memory, crashed, stalled, or a loss is not finite.
        ModelError: the base model or the champion cannot be used.
    """
    start_from = None
    champion = versions.champion(run.db, run.pipeline.name)
    if champion is not None:
        # Before the training and not only behind it: with a damaged champion the night cannot end.
        version_folder.verify_version(run.home.absolute(champion.path))
    if run.pipeline.training.start_from == "champion":
        if champion is None:
            log.info("there is no champion to start from yet: starting from %s", run.pipeline.training.base_model)
        else:
            start_from = run.home.absolute(champion.path)
            run.started_from, run.started_revision = champion.version, champion.base_model_revision
    job = TrainJob(
        run_dir=run.directory,
        attempt=run.attempt,
        snapshot=run.snapshot.path,
        pipeline=run.pipeline.record(),
        data_until=run.data_until.isoformat(),
        start_from=start_from,
    )
    run.trained = yield from supervisor.train(
        job, on_progress=run.while_ours(on_progress), on_restart=run.count_restart
    )
    records.record_training(run.db, run.run_id, run.attempt, run.trained)


@dataclass(frozen=True)
class ScoredEpoch:
    """An epoch with its metrics on the validation rows."""

    report: EpochReport
    scores: Scores
    f1: float | None
    """By the pipeline's average."""
    predictions: NDArray[np.int64]

    def __str__(self) -> str:
        f1 = "no F1" if self.f1 is None else f"F1 {self.f1:.4f}"
        return f"epoch {self.report.epoch}: {f1}, validation loss {self.report.validation_loss:.4f}"


def score_epoch(run: NightRun, report: EpochReport) -> ScoredEpoch:
    """An epoch's metrics, with its predictions as they were stored."""
    predictions = read_predictions(report.predictions)
    return ScoredEpoch(report, report.scores, report.scores.f1(run.pipeline.gate.average), predictions)


def record_epoch(run: NightRun, scored: ScoredEpoch) -> None:
    """Store what one epoch showed, in all and by class and slice: committed at once."""
    rows = run.snapshot.rows("validation")
    references = rows["label"].to_numpy(dtype=np.int64)
    names = run.pipeline.data.label_names
    report, predictions = scored.report, scored.predictions
    records.record_epoch(
        run.db,
        run.run_id,
        run.attempt,
        report,
        scored.scores,
        classification.slice_scores(rows, references, predictions, len(names), names),
        confusion.confusion_counts(references, predictions, len(names)),
    )
    if report.attempt == run.attempt:
        # Now, and not when the training has ended: a night that fails is asked first what it ran on.
        lifecycle.record_attempt(
            run.db,
            run.run_id,
            run.attempt,
            device=report.device,
            precision=report.precision,
            engine=report.engine,
            engine_reason=report.engine_reason,
        )
    log.info("%s, accuracy %.4f, training loss %.4f", scored, scored.scores.accuracy or 0.0, report.training_loss)


def register_candidate(run: NightRun) -> None:
    """Make the candidate a numbered version that plain transformers can open. Held ones are versions too."""
    measured, training = run.decision.measured, run.pipeline.training
    candidate = Candidate(
        pipeline=run.pipeline,
        run_id=run.run_id,
        attempt=run.attempt,
        snapshot=run.snapshot,
        best_model=run.trained.best_model,
        best_epoch=run.trained.best_epoch,
        test=run.test_scores,
        test_interval=measured.candidate.interval if measured else None,
        decision=run.decision,
        started_from=run.started_from,
        base_model_revision=run.started_revision
        if run.started_from is not None
        else base_model_revision(training.base_model, training.base_model_revision),
        environment=environment(run.trained.device, run.trained.precision),
    )
    run.version = register.register_candidate(run.db, run.home, candidate).version


def settle(run: NightRun) -> None:
    """Promote in one transaction that names champion and anchor as it expects them, hold, or wait for a person; then
    tidy up.
    """
    decision, name = run.decision, run.pipeline.name
    by_hand = f"nightgate promote {name} {run.version} --reason TEXT"
    frozen = freezes.frozen(run.db, name)
    if decision.verdict != "promote":
        # Here and not above: with the report, whose imports nobody waits for here.
        from nightgate.night import next_steps

        _hold(run, decision.reason, next_steps.of_held_night(run))
    elif run.dry_run:
        _hold(run, f"dry run, not promoted: {decision.reason}", by_hand)
    elif frozen is not None:
        _hold(run, f"{frozen}; else it would have been promoted: {decision.reason}", frozen.remedy)
    elif run.pipeline.gate.approval:
        _wait_for_approval(run)
    else:
        _promote(run)
    remove_checkpoints(run.directory)
    retention.sweep(run.db, run.home, run.pipeline)


def _promote(run: NightRun) -> None:
    measured = run.decision.measured
    try:
        promotion.promote_candidate(
            run.db,
            run.pipeline.name,
            run.version,
            expected=run.champion.version if run.champion else None,
            expected_anchor=run.anchor.version if run.anchor else None,
            run_id=run.run_id,
            attempt=run.attempt,
            reason=run.decision.reason,
            moves_anchor=measured is not None and measured.moves_anchor,
        )
        run.status, run.reason = "promoted", run.decision.reason
    except PromotionLostError as error:
        # Not a failure of this night: somebody moved the champion or the anchor after it was scored.
        _hold(run, f"would have been promoted, but {error.reason}", error.next_step)


def _hold(run: NightRun, reason: str, next_step: str) -> None:
    lifecycle.finish_run(run.db, run.run_id, run.attempt, "held", reason=reason, next_step=next_step)
    run.status, run.reason = "held", reason


def _wait_for_approval(run: NightRun) -> None:
    expected = run.champion.version if run.champion else None
    patience = duration(run.pipeline.gate.approval_timeout)
    assert patience is not None, "a duration that may not be empty"
    reason = f"{approvals.WAITS}{run.decision.reason}"
    next_step = approvals.command(run.pipeline.name, run.run_id)
    approvals.request(
        run.db, run.run_id, run.attempt, expected=expected, patience=patience, reason=reason, next_step=next_step
    )
    run.status, run.reason = "waiting", reason


def write_report(run: NightRun) -> str:
    """Save the report beside the run; gives it as markdown. '' where it could not be made: the night has ended well."""
    return _publish(run.home, run.run_id)


def _publish(home: Home, run_id: str) -> str:
    from nightgate.reports import report

    return report.publish_if_possible(home, run_id)
