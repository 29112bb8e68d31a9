"""Record the results of a night's steps in the database, each in one transaction.

    record_snapshot(db, run_id, attempt, refreshed)
    record_start(db, run_id, attempt, started_from, reason)
    record_epoch(db, run_id, attempt, report, ...)    # when the epoch is evaluated, not at the end
    record_training(db, run_id, attempt, trained)
    record_decision(db, run_id, attempt, decision, ...)

Idempotent: what is recorded already is not overwritten. `nightgate.runs.claim` starts runs,
`nightgate.runs.lifecycle` ends them, and `nightgate.registry.promotion` changes versions and champions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from nightgate.config.checks import NONE_ALLOWED, Allowed
from nightgate.database.data_schema import DriftRow
from nightgate.database.gate_schema import GateCheck, JointOutcome
from nightgate.database.refresh_schema import Refresh
from nightgate.database.schema import Attempt, Epoch, Run, Snapshot
from nightgate.database.shared_values import add_rows, is_recorded, merge_rows, slice_ids, update_row
from nightgate.database.transactions import Database
from nightgate.errors import DataError
from nightgate.gate.joint_counts import JointCounts, joint_outcomes
from nightgate.metrics.comparability import metric_key
from nightgate.runs import evidence_store, refresh_records
from nightgate.runs.epoch_details import add_details
from nightgate.runs.lifecycle import Fenced, fence
from nightgate.runs.refresh_records import Finder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from nightgate.data.refresh import Refreshed
    from nightgate.gate.decision import Check, Decision, Measured
    from nightgate.gate.evidence import Evidence
    from nightgate.metrics.classification import SliceScore
    from nightgate.metrics.confusion import Scores
    from nightgate.metrics.drift import DriftStatistic
    from nightgate.runs.evaluations import Evaluation
    from nightgate.training.protocol import EpochReport, MetricValue, TrainResult
_NUMBER = sa.select(Attempt.attempt_id).where(
    Attempt.run_id == sa.bindparam("run_id"), Attempt.attempt == sa.bindparam("attempt")
)
_CONFIG = sa.select(Run.config).where(Run.run_id == sa.bindparam("run_id"))


def record_snapshot(
    db: Database,
    run_id: str,
    attempt: int,
    refreshed: Refreshed,
    allowed: Allowed = NONE_ALLOWED,
    drift: Sequence[tuple[str, DriftStatistic]] = (),
) -> None:
    """Record the run's snapshot, its row counts, data checks, quarantined rows and drift.

    Args:
        drift: of its new rows, each statistic with the name of its reference; a run keeps what it recorded first.
    """

    def work(session: Session) -> None:
        run = fence(session, run_id, attempt)
        _add_snapshot(db, session, run.pipeline, refreshed)
        refresh_records.add_refreshed(session, Finder.of(run), refreshed, allowed)
        update_row(session, Run, _counts_of(refreshed), run_id=run_id)
        if drift and not is_recorded(session, DriftRow, run_id=run_id):
            _add_drift(session, Finder.of(run), drift)

    db.write(work)


def record_refresh(
    db: Database,
    refresh: Refresh,
    found: Refreshed | DataError,
    allowed: Allowed,
    drift: Sequence[tuple[str, DriftStatistic]] = (),
) -> None:
    """Record a refresh on its own, as it ended, and all that it found."""
    finder = Finder(refresh.refresh_id, 1, refresh.pipeline, refresh.night)

    def work(session: Session) -> None:
        if session.get(Refresh, refresh.refresh_id) is not None:
            return  # an earlier try was committed, and its answer was lost
        if isinstance(found, DataError):
            refresh_records.add_found(session, finder, found.quarantined, found.parts, found.checks, allowed)
        else:
            _add_snapshot(db, session, refresh.pipeline, found)
            refresh_records.add_refreshed(session, finder, found, allowed)
            for name, value in _counts_of(found).items():
                setattr(refresh, name, value)
            _add_drift(session, finder, drift)
        refresh.finished_at = datetime.now(UTC)
        session.merge(refresh)

    db.write(work)


def _counts_of(refreshed: Refreshed) -> dict[str, Any]:
    """Columns of `run` and of `refresh`."""
    counts = {"rows_new": refreshed.rows_new, "rows_total": refreshed.rows_total}
    return counts | {"snapshot_id": refreshed.snapshot.id, "label_revision": refreshed.relabelled}


def _add_snapshot(db: Database, session: Session, pipeline_name: str, refreshed: Refreshed) -> None:
    snapshot, manifest = refreshed.snapshot, refreshed.snapshot.manifest
    key = {"pipeline": pipeline_name, "snapshot_id": snapshot.id}
    if is_recorded(session, Snapshot, **key):
        # Retention may have removed it, and tonight's rows are the same.
        update_row(session, Snapshot, {"files_removed_at": None}, **key)
        return
    row = key | {
        "path": db.home.relative(snapshot.path),
        "test_version": manifest["test_version"],
        "rows_total": manifest["rows_total"],
        **{f"rows_{split}": count for split, count in manifest["rows"].items()},
        "rows_duplicate": manifest["rows_duplicate"],
        "rows_quarantined": manifest["rows_quarantined"],
        **{name: _time(manifest.get(name)) for name in ("data_until", "first_time", "last_time")},
        "manifest": manifest,
        "recorded_at": datetime.now(UTC),
    }
    add_rows(session, Snapshot, [row])


def record_reasons(
    db: Database,
    run_id: str,
    attempt: int,
    inputs: dict[str, str],
    reasons: str,
    champion: Evaluation | None = None,
) -> None:
    """Record what the run's result depends on, for which reasons it trains or does not, and how the champion did."""

    values: dict[str, Any] = {"inputs": inputs, "reasons": reasons}
    if champion is not None:
        values |= {"champion_fresh_f1": champion.f1, "champion_fresh_rows": champion.rows}
        values |= {"fresh_ci_low": champion.f1_ci_low, "fresh_ci_high": champion.f1_ci_high}

    def work(session: Session) -> None:
        fence(session, run_id, attempt)
        update_row(session, Run, values, run_id=run_id)

    db.write(work)


def record_failed_refresh(
    db: Database, run_id: str, attempt: int, error: DataError, allowed: Allowed = NONE_ALLOWED
) -> None:
    """Record the counts, data checks and quarantined rows of a refresh that failed."""

    def work(session: Session) -> None:
        run = fence(session, run_id, attempt)
        refresh_records.add_found(session, Finder.of(run), error.quarantined, error.parts, error.checks, allowed)

    db.write(work)


def _add_drift(session: Session, finder: Finder, found: Sequence[tuple[str, DriftStatistic]]) -> None:
    place = {"run_id": finder.run_id, "attempt": finder.attempt}
    rows = [place | {"reference": name, "outcome": one.outcome} | vars(one) for name, one in found]
    add_rows(session, DriftRow, rows)


def previous_snapshot(
    db: Database, pipeline_name: str, before: datetime | None = None, *, of_refreshes: bool = False
) -> Path | None:
    """The folder of the newest snapshot of a night of the pipeline that still exists.

    Args:
        before: aware; only snapshots of runs with an earlier `data_until`, so that a backfill is not compared with a
            later night.
        of_refreshes: those of refreshes on their own too.
    """

    def work(session: Session) -> list[str]:
        found: list[tuple[datetime, datetime, str]] = []
        for of in (Run, Refresh) if of_refreshes else (Run,):
            query = (
                sa.select(of.data_until, of.started_at, Snapshot.path)
                .join(Snapshot, (of.pipeline == Snapshot.pipeline) & (of.snapshot_id == Snapshot.snapshot_id))
                .where(of.pipeline == pipeline_name)
            )
            found += session.execute(query if before is None else query.where(of.data_until < before)).tuples()
        return [path for *_, path in sorted(found, reverse=True)]

    folders = (db.home.absolute(path) for path in dict.fromkeys(db.read(work)))
    return next((folder for folder in folders if (folder / "manifest.json").is_file()), None)


def has_refresh(db: Database, pipeline_name: str, until: datetime) -> bool:
    """Whether a run or refresh of the pipeline with this `data_until` has recorded its snapshot."""
    queries = [
        sa.select(of.snapshot_id).where(
            of.pipeline == pipeline_name, of.data_until == until, of.snapshot_id.is_not(None)
        )
        for of in (Run, Refresh)
    ]
    return db.read(lambda session: any(session.scalar(query.limit(1)) is not None for query in queries))


def record_epoch(
    db: Database,
    run_id: str,
    attempt: int,
    report: EpochReport,
    scores: Scores,
    slices: Sequence[SliceScore] = (),
    confusion: NDArray[np.int64] | None = None,
) -> None:
    """Record an epoch, its scores on the validation rows, and on what its attempt computes: a night that fails later
    has these facts too.

    Args:
        attempt: the current attempt; `report.attempt` trained the epoch, and may be an earlier one whose row was lost.
        confusion: counts [labels, labels], rows are true labels.

    Raises:
        RegistryError: `attempt` is not the run's current one, or the run has ended.
    """
    values: dict[str, float | None] = {
        "training_loss": report.training_loss,
        "validation_loss": report.validation_loss,
        **vars(scores),
        "learning_rate": report.learning_rate,
        "examples_per_second": report.examples_per_second,
        "tokens_per_second": report.tokens_per_second,
    }
    key = {"run_id": run_id, "attempt": report.attempt, "epoch": report.epoch}
    others = {"step": report.step, "nonfinite": _nonfinite(values), "recorded_at": datetime.now(UTC)}

    def work(session: Session) -> None:
        run = fence(session, run_id, attempt)
        if not merge_rows(session, Epoch, [key | values | others]):
            return  # it is recorded
        number = run.attempt_id
        if report.attempt != attempt:
            number = session.scalars(_NUMBER, {"run_id": run_id, "attempt": report.attempt}).one()
        elif any(getattr(run, name) != value for name, value in _machine_of(report).items()):
            update_row(session, Attempt, _machine_of(report), attempt_id=number)
        found = (slices, confusion, report.metrics)
        add_details(session, run, number, report.epoch, *found, is_test=False)

    db.write(work)


def record_start(db: Database, run_id: str, attempt: int, started_from: int | None, reason: str | None) -> None:
    """Record, before it trains, which version the run goes on from, and why; None: it trains in full."""
    training = "full" if started_from is None else "continued"
    values = {"training": training, "started_from": started_from, "training_reason": reason}

    def work(session: Session) -> None:
        fence(session, run_id, attempt)
        update_row(session, Run, values, run_id=run_id)

    db.write(work)


def record_training(db: Database, run_id: str, attempt: int, trained: TrainResult) -> None:
    """Record how the attempt trained, and its best epoch."""
    machine = _machine_of(trained) | {"threads": trained.threads, "micro_batches": trained.micro_batches}
    machine |= {"precision_reason": trained.precision_reason, "resumed_from_epoch": trained.resumed_from}

    def work(session: Session) -> None:
        run = fence(session, run_id, attempt)
        result = {"best_epoch": trained.best_epoch, "rows_trained": trained.rows_trained}
        update_row(session, Run, result | {"training": run.training or "full"}, run_id=run_id)
        update_row(session, Attempt, machine, attempt_id=run.attempt_id)

    db.write(work)


def _machine_of(of: EpochReport | TrainResult) -> dict[str, Any]:
    """Columns of `attempt`."""
    return {name: getattr(of, name) for name in ("device", "precision", "engine", "engine_reason")}


def record_decision(
    db: Database,
    run_id: str,
    attempt: int,
    decision: Decision,
    evidence: Evidence | None = None,
    made_by: Mapping[str, str] | None = None,
    scores: Scores | None = None,
    slices: Sequence[SliceScore] = (),
    confusion: NDArray[np.int64] | None = None,
    metrics: Sequence[MetricValue] = (),
) -> None:
    """Record the verdict, its reason and checks, the measurements on the test rows, and the evidence.

    Args:
        evidence: None if nothing could be measured.
        made_by: by side of the evidence, the run that trained its model; None: only joint outcomes are stored of it.
        scores, slices, confusion: of the candidate, which is the best epoch, on the rows of the verdict.
        metrics: the pipeline's own, which are of all test rows.
    """
    outcomes = joint_outcomes(evidence, decision.measured) if evidence else []
    # Before the transaction that keeps others from writing.
    packed = evidence_store.pack(db, run_id, evidence) if evidence and made_by else None

    def work(session: Session) -> None:
        run = fence(session, run_id, attempt)
        values: dict[str, Any] = {"verdict": decision.verdict, "reason": decision.reason}
        if evidence is not None:
            policy = session.execute(_CONFIG, {"run_id": run_id}).scalar_one()["gate"]
            values |= _measured(run, evidence, decision.measured, scores, policy)
        place = {"run_id": run_id, "attempt": attempt}
        is_known = is_recorded(session, GateCheck, **place)
        if evidence is not None and packed is not None and made_by is not None and not is_known:
            evidence_store.add(session, run, evidence, packed, made_by)
            values["labels_corrected"] = packed.labels_corrected
            update_row(session, Attempt, {"scoring_precision": evidence.precision}, attempt_id=run.attempt_id)
        update_row(session, Run, values, run_id=run_id)
        if is_known:
            return
        add_rows(session, GateCheck, [_check_row(place, *numbered) for numbered in enumerate(decision.checks)])
        if run.best_epoch is not None:
            add_details(session, run, run.attempt_id, run.best_epoch, slices, confusion, metrics, is_test=True)
        if evidence is not None and outcomes:
            _add_outcomes(session, run.attempt_id, outcomes, evidence.label_names)

    db.write(work)


def _check_row(place: dict[str, Any], position: int, check: Check) -> dict[str, Any]:
    columns = {name: value for name, value in vars(check).items() if name not in {"name", "brief"}}
    return place | {"position": position, "check_name": check.name} | columns


def _add_outcomes(session: Session, number: int, outcomes: Sequence[JointCounts], label_names: Sequence[str]) -> None:
    labels = [("label", name) for name in label_names]
    ids = slice_ids(session, [*labels, *((one.slice_name, one.slice_value) for one in outcomes)])
    keys = {-1: "0"} | {index: str(ids[label]) for index, label in enumerate(labels)}
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for one in outcomes:
        counts: dict[str, Any] = {}
        for (true, reference, candidate), count in one.counts.items():
            counts.setdefault(keys[true], {}).setdefault(keys[reference], {})[keys[candidate]] = count
        place = {"attempt_id": number, "scope": one.scope, "reference": one.reference, "counts": {}}
        row = rows.setdefault((one.scope, one.reference), place)
        row["counts"][str(ids[one.slice_name, one.slice_value])] = counts
    add_rows(session, JointOutcome, list(rows.values()))


def _measured(
    run: Fenced, evidence: Evidence, measured: Measured, scores: Scores | None, policy: Mapping[str, Any]
) -> dict[str, Any]:
    """The columns of `run` that say what was measured."""
    ours, theirs = measured.candidate, measured.champion
    low, high = ours.interval or (None, None)
    champion_f1 = theirs.f1 if theirs else None
    values: dict[str, float | None] = {
        "test_accuracy": scores.accuracy if scores else None,
        "test_f1": ours.f1,
        "test_precision": scores.precision(run.average) if scores else None,
        "test_recall": scores.recall(run.average) if scores else None,
        "f1_ci_low": low,
        "f1_ci_high": high,
        "champion_f1": champion_f1,
        "f1_delta": ours.f1 - champion_f1 if ours.f1 is not None and champion_f1 is not None else None,
        "min_f1": measured.min_f1,
        "test_f1_all": measured.candidate_all.f1,
        "detectable_gain": measured.detectable_gain,
        "anchor_f1": measured.anchor.f1 if measured.anchor else None,
    }
    window = (policy["test_window"], policy["min_test_rows"])
    return values | {
        "nonfinite": _nonfinite(values),
        "test_version": evidence.test_version,
        "test_rows": ours.rows,
        "test_rows_all": measured.candidate_all.rows,
        "window_start": measured.window_start,
        "rows_left_out": measured.left_out,
        "champion_version": evidence.champion.version if evidence.champion else None,
        "anchor_version": evidence.anchor.version if evidence.anchor else None,
        "metric_key": metric_key(evidence.test_version, evidence.label_names, run.average, *window),
    }


def _nonfinite(values: dict[str, float | None]) -> str:
    """The names of NaN and infinite values, whose columns are NULL."""
    return ", ".join(name for name, value in values.items() if value is not None and not math.isfinite(value))


def _time(text: str | None) -> datetime | None:
    if not text:
        return None
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
