"""The steps of a night, each one call: what the Prefect tasks wrap and `nightgate run --no-prefect` calls bare.

    with open_night(pipeline, night) as run:      # a row in SQL first, whatever comes
        refresh_data(run)                         # source -> immutable snapshot
        for epoch in fine_tune(run):              # a process of its own; yields after each epoch
            record_epoch(run, epoch)              # metrics -> SQL, before the next epoch ends
        score_on_test(run)                        # candidate and champion on the same rows
        judge(run)                                # checks and verdict -> SQL
        register_candidate(run)                   # a numbered version, held ones too
        settle(run)                               # promoted or held

A `NightRun` carries what the steps hand on. Leaving the block by an exception settles the run's row: failed with its
reason, or cancelled when a person or a signal stopped it.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nightgate import gate, ledger, metrics, refresh, registry, supervisor
from nightgate.claim import NightRun as NightRun
from nightgate.claim import open_night as open_night
from nightgate.config import Pipeline
from nightgate.errors import (
    DataError,
    NonFiniteLossError,
    PromotionLostError,
)
from nightgate.intervals import f1_difference_interval, f1_interval
from nightgate.jobs import EpochReport, Progress, ScoreJob, TrainJob
from nightgate.nights import Night
from nightgate.snapshots import open_snapshot

log = logging.getLogger(__name__)


def run_night(pipeline: Pipeline, night: Night, *, force: bool = False, dry_run: bool = False) -> NightRun:
    """One night without Prefect: the same calls as `flows.nightly`, bare."""
    with open_night(pipeline, night, force=force, dry_run=dry_run) as run:
        if run.is_open:
            refresh_data(run)
            with closing(fine_tune(run)) as epochs:
                for epoch in epochs:
                    record_epoch(run, epoch)
            score_on_test(run)
            judge(run)
            register_candidate(run)
            settle(run)
    return run


def refresh_data(run: NightRun) -> None:
    """Read the source into an immutable snapshot. A resumed run keeps the snapshot that it began with."""
    if run.snapshot_path is not None:
        run.snapshot = open_snapshot(run.snapshot_path)
        log.info("going on with snapshot %s", run.snapshot.id)
        return
    previous = ledger.previous_snapshot(run.db, run.pipeline.name, before=run.data_until)
    night = replace(run.night, data_until=run.data_until)
    try:
        refreshed = refresh.refresh(run.pipeline, night, run.home, previous)
    except DataError as error:
        # The night on which one wants to see them.
        ledger.record_quarantined(run.db, run.run_id, run.attempt, error.quarantined)
        raise
    ledger.record_snapshot(run.db, run.run_id, run.attempt, refreshed)
    run.snapshot = refreshed.snapshot


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
    champion = ledger.champion(run.db, run.pipeline.name)
    if champion is not None:
        # Before the training and not only behind it: with a damaged champion the night cannot end.
        registry.verify_version(run.home.absolute(champion.path))
    if run.pipeline.training.start_from == "champion":
        if champion is None:
            log.info("there is no champion to start from yet: starting from %s", run.pipeline.training.base_model)
        else:
            start_from = run.home.absolute(champion.path)
            run.started_from = champion.version
    job = TrainJob(
        run_dir=run.directory,
        attempt=run.attempt,
        snapshot=run.snapshot.path,
        pipeline=run.pipeline.record(),
        data_until=run.data_until.isoformat(),
        start_from=start_from,
        cache=run.home.cache,
    )
    run.trained = yield from supervisor.train(job, on_progress=on_progress, on_restart=_count_restarts(run))
    ledger.record_training(run.db, run.run_id, run.attempt, run.trained)


def _count_restarts(run: NightRun) -> Callable[[str], None]:
    def count(_why: str) -> None:
        run.restarts += 1
        ledger.record_attempt(run.db, run.run_id, run.attempt, restarts=run.restarts)

    return count


def record_epoch(run: NightRun, report: EpochReport) -> None:
    """Metrics of one epoch on the validation rows, in all and by class and slice: committed at once."""
    rows = run.snapshot.rows("validation")
    references = rows["label"].to_numpy(dtype=np.int64)
    predictions = read_predictions(report.predictions)
    names = run.pipeline.data.label_names
    scores = metrics.score(references, predictions, len(names))
    ledger.record_epoch(
        run.db,
        run.run_id,
        run.attempt,
        report,
        scores,
        metrics.slice_scores(rows, references, predictions, len(names), names),
        metrics.confusion_counts(references, predictions, len(names)),
    )
    if report.attempt == run.attempt:
        # Now, and not when the training has ended: a night that fails is asked first what it ran on.
        ledger.record_attempt(
            run.db,
            run.run_id,
            run.attempt,
            device=report.device,
            precision=report.precision,
            engine=report.engine,
            engine_reason=report.engine_reason,
        )
    average = run.pipeline.gate.average
    log.info(
        "epoch %d: training loss %.4f, validation loss %.4f, accuracy %.4f, F1 %.4f",
        report.epoch,
        report.training_loss,
        report.validation_loss,
        scores.accuracy or 0.0,
        scores.f1(average) or 0.0,
    )


def score_on_test(run: NightRun) -> None:
    """Score the candidate and the reigning champion on tonight's test rows: the champion's old score is no evidence."""
    models = {"candidate": run.trained.best_model}
    run.champion = ledger.champion(run.db, run.pipeline.name)
    run.champion_flaw = ""
    run.champion_reuse = None
    if run.champion is not None:
        folder = run.home.absolute(run.champion.path)
        known, wanted = registry.verify_version(folder)["label_names"], run.pipeline.data.label_names
        if sorted(known) == sorted(wanted):
            models["champion"] = folder
        else:
            run.champion_flaw = (
                f"the champion (version {run.champion.version}) knows the labels {', '.join(known)} and the "
                f"pipeline has {', '.join(wanted)}, so it cannot be scored on tonight's rows"
            )
    job = ScoreJob(
        pipeline=run.pipeline.record(),
        snapshot=run.snapshot.path,
        models=models,
        out=run.directory / "test",
        cache=run.home.cache,
    )
    scored = supervisor.score_models(job, on_restart=_count_restarts(run))
    found = scored.written
    rows = run.snapshot.rows("test")
    run.predictions = {"candidate": read_predictions(found["candidate"])}
    if run.champion is not None and "champion" in found:
        run.champion_reuse = reuse = gate.Reuse(
            len(rows), scored.reused["champion"], scored.recomputed["champion"], scored.differing["champion"]
        )
        log.info("champion: %s", f"{reuse.reused:,} of {len(rows):,} rows reused, {reuse.recomputed:,} recomputed")
        try:
            run.predictions["champion"] = read_predictions(found["champion"])
        except NonFiniteLossError as error:
            run.champion_flaw = f"the champion (version {run.champion.version}) cannot be compared: {error.reason}"
    run.test_rows = rows
    references = rows["label"].to_numpy(dtype=np.int64)
    names = run.pipeline.data.label_names
    predictions = run.predictions["candidate"]
    run.test_scores = metrics.score(references, predictions, len(names))
    ledger.record_test(
        run.db,
        run.run_id,
        run.attempt,
        run.trained.best_epoch,
        metrics.slice_scores(rows, references, predictions, len(names), names),
        metrics.confusion_counts(references, predictions, len(names)),
    )


def judge(run: NightRun) -> None:
    """Run the gate's checks and store them with the verdict."""
    rows, names, average = run.test_rows, run.pipeline.data.label_names, run.pipeline.gate.average
    references = rows["label"].to_numpy(dtype=np.int64)
    groups = rows["group"].tolist() if "group" in rows else None
    test_version = run.snapshot.manifest["test_version"]

    def measured(name: str, version: int | None, data_until: datetime) -> gate.Measured:
        return gate.Measured(
            f1=metrics.score(references, run.predictions[name], len(names)).f1(average),
            support=len(references),
            test_version=test_version,
            data_until=data_until,
            interval=f1_interval(references, run.predictions[name], len(names), average, groups=groups),
            version=version,
            reuse=run.champion_reuse if name == "champion" else None,
        )

    candidate = measured("candidate", None, run.data_until)
    champion = difference = None
    if run.champion is not None and run.champion_flaw:
        champion = gate.Measured(
            f1=None,
            support=len(references),
            test_version=test_version,
            data_until=run.champion.data_until,
            version=run.champion.version,
            reuse=run.champion_reuse,
        )
    elif run.champion is not None:
        champion = measured("champion", run.champion.version, run.champion.data_until)
        difference = f1_difference_interval(
            references,
            run.predictions["champion"],
            run.predictions["candidate"],
            len(names),
            average,
            groups=groups,
        )
    run.test_interval = candidate.interval
    run.decision = gate.decide(candidate, champion, run.pipeline.gate, difference=difference)
    if run.champion_flaw:
        run.decision = replace(run.decision, reason=f"{run.champion_flaw}; {run.decision.reason}")
    ledger.record_decision(run.db, run.run_id, run.attempt, run.decision, run.test_scores, candidate, champion)
    log.info("verdict: %s: %s", run.decision.verdict, run.decision.reason)


def register_candidate(run: NightRun) -> None:
    """Make the candidate a numbered version that plain transformers can open. Held ones are versions too."""
    candidate = registry.Candidate(
        pipeline=run.pipeline,
        run_id=run.run_id,
        attempt=run.attempt,
        snapshot=run.snapshot,
        best_model=run.trained.best_model,
        best_epoch=run.trained.best_epoch,
        test=run.test_scores,
        test_interval=run.test_interval,
        decision=run.decision,
        started_from=run.started_from,
    )
    run.version = registry.register_candidate(run.db, run.home, candidate).version


def settle(run: NightRun) -> None:
    """Promote in one transaction that names the champion it expects, or hold; then drop the checkpoints."""
    decision = run.decision
    status: str = "held"
    reason = decision.reason
    by_hand = f"nightgate promote {run.pipeline.name} {run.version} --reason TEXT"
    next_step = f"if this version should reign all the same: {by_hand}" if run.champion_flaw else ""
    if decision.verdict == "promote" and run.dry_run:
        reason, next_step = f"dry run, not promoted: {reason}", by_hand
    elif decision.verdict == "promote":
        try:
            ledger.promote(
                run.db,
                run.pipeline.name,
                run.version,
                expected=run.champion.version if run.champion else None,
                run_id=run.run_id,
                attempt=run.attempt,
                by="gate",
                reason=reason,
                kind="promote",
            )
            status = "promoted"
        except PromotionLostError as error:
            # Not a failure of this night: somebody moved the champion after it was scored.
            reason, next_step = f"would have been promoted, but {error.reason}", error.next_step
    if status == "held":
        ledger.finish_run(run.db, run.run_id, run.attempt, status, reason=reason, next_step=next_step)
    run.status, run.reason = status, reason
    remove_checkpoints(run.directory)


def read_predictions(path: Path) -> NDArray[np.int64]:
    """Predicted class indices, shape [rows], of a file of logits.

    Raises:
        NonFiniteLossError: a logit is NaN or infinite. It would count as a prediction like any other.
    """
    with np.load(path, allow_pickle=False) as stored:
        logits = stored["logits"]
    broken = int((~np.isfinite(logits)).any(axis=1).sum())
    if broken:
        raise NonFiniteLossError(
            f"the logits of {broken:,} of {len(logits):,} rows are NaN or infinite ({path})",
            next_step="lower training.learning_rate, or set training.precision = 'fp32'",
        )
    predicted: NDArray[np.int64] = logits.argmax(axis=1)
    return predicted


def remove_checkpoints(run_dir: Path) -> None:
    """What only a resume needs: the weights of a version live on under models/. Predictions and logs stay."""
    for attempt in run_dir.glob("attempt-*"):
        for folder in ("checkpoint", "weights", "best"):
            shutil.rmtree(attempt / folder, ignore_errors=True)
