"""Gather what a report shows of one night from the database and the snapshots, as it was recorded.

No model is loaded and no score computed. What is gone becomes a note, never an error: every night gets a report,
however it ended.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import sqlalchemy as sa
from sqlalchemy.orm import Session

from nightgate.analysis.seed_study import newest_study
from nightgate.config.pipeline import Pipeline
from nightgate.database.gate_schema import SeedStudy
from nightgate.database.schema import Attempt, ModelVersion, Promotion, Run
from nightgate.database.transactions import Database
from nightgate.errors import SnapshotError
from nightgate.frames.epochs import own_metrics
from nightgate.frames.nights import read_history
from nightgate.frames.reader import select
from nightgate.home import Home
from nightgate.reports.shares import SnapshotShares, read_shares
from nightgate.reports.training_diagnosis import EarlierNight, EpochFacts, Finding, MachineFacts, diagnose

EARLIER_NIGHTS = 14
"""Earlier nights whose speed is compared with tonight's."""

Row = Mapping[str, Any]
"""A row of a view; missing values are None, never NaN."""


@dataclass(frozen=True)
class Champion:
    """A version that is or was champion."""

    version: int
    path: Path
    run_id: str
    snapshot_id: str | None
    since: datetime


@dataclass(frozen=True)
class ReportFacts:
    run: Row
    """Of `nightly_runs`."""
    pipeline: Pipeline
    """As it was configured for this run."""
    label_names: tuple[str, ...]
    report_path: Path
    """Where the HTML file is or will be."""
    page_path: Path
    """Where the page of the pipeline's history is or will be."""
    epochs: tuple[Row, ...] = ()
    """Of `epoch_results`, by epoch."""
    own_metrics: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    """As `nightgate.frames.epochs.own_metrics`."""
    checks: tuple[Row, ...] = ()
    """Of `gate_checks`, in their order."""
    broken_data: tuple[Row, ...] = ()
    """Of `data_checks`, those that failed, allowed ones too."""
    confusion: tuple[tuple[int, ...], ...] = ()
    """Test rows by true and predicted label, in the order of `label_names`; empty where nothing was scored on test."""
    slices: tuple[Row, ...] = ()
    """Of `slice_metrics` on the test rows; classes are slices named `label`."""
    attempts: tuple[Row, ...] = ()
    """Of the table `attempt`, by number."""
    approval: Row | None = None
    """Of `approvals`."""
    quarantined: Mapping[str, int] | None = None
    """Quarantined rows by reason."""
    drift: tuple[Row, ...] = ()
    """Of `data_drift`, by statistic."""
    evaluation: Row | None = None
    """Of `champion_evaluations`, the champion's on the run's snapshot."""
    champion: Champion | None = None
    """The champion that the night was judged against, or when it began if it was not judged."""
    current_champion: Champion | None = None
    tonight: SnapshotShares | None = None
    before: SnapshotShares | None = None
    """Of the champion's snapshot."""
    shares_note: str = ""
    """Why one of the two is missing."""
    seed_study: Row | None = None
    """Of the table `seed_study`: the newest of this configuration with enough seeds when the run ended."""
    findings: tuple[Finding, ...] = ()
    model_path: Path | None = None
    """Of the version that this night made."""


def gather(home: Home, run_id: str, *, snapshots: bool = True) -> ReportFacts:
    """The facts of one run, of any status.

    Args:
        snapshots: False does not read the snapshots' rows, which take most of the time.

    Raises:
        DatabaseError: the database cannot be used.
    """
    with Database.open(home, keep=True) as db:
        run = _one(db, "SELECT * FROM nightly_runs WHERE run_id = :run", run_id)
        assert run is not None, f"there is no run {run_id}"
        stored = db.read(lambda session: _stored(session, run_id))
        pipeline: Pipeline = stored["pipeline"]
        epochs = _rows(db, "SELECT * FROM epoch_results WHERE run_id = :run ORDER BY epoch", run_id)
        scored = read_history(db, run["pipeline"], run=run_id, slices=True)
        cells = _rows(db, "SELECT * FROM confusion WHERE run_id = :run AND split = 'test'", run_id)
        drift = "SELECT * FROM data_drift WHERE run_id = :run ORDER BY statistic, slice_name, reference"
        evaluated = (
            "SELECT e.* FROM champion_evaluations AS e JOIN nightly_runs AS r ON r.pipeline = e.pipeline "
            "AND r.snapshot_id = e.snapshot_id "
            "WHERE r.run_id = :run AND e.role = 'champion' ORDER BY e.evaluated_at DESC"
        )
        broken = "SELECT * FROM data_checks WHERE run_id = :run AND outcome IN ('failed', 'allowed') ORDER BY position"
        open_then = (
            "SELECT q.reason, COUNT(*) AS count FROM quarantined_rows AS q JOIN nightly_runs AS r "
            "ON r.pipeline = q.pipeline AND r.night >= q.first_night "
            "AND (q.resolved_night IS NULL OR q.resolved_night > r.night) "
            "WHERE r.run_id = :run GROUP BY q.reason ORDER BY COUNT(*) DESC, q.reason"
        )
        quarantined = _rows(db, open_then, run_id)
        champion = _champion(home, stored["champion"])
        tonight, before, note = _shares(home, db, run, champion) if snapshots else (None, None, "")
        return ReportFacts(
            run=run,
            pipeline=pipeline,
            label_names=stored["label_names"],
            report_path=home.report(run_id),
            page_path=home.page(run["pipeline"]),
            epochs=epochs,
            own_metrics=own_metrics(db, run_id),
            checks=_rows(db, "SELECT * FROM gate_checks WHERE run_id = :run ORDER BY position", run_id),
            broken_data=_rows(db, broken, run_id),
            confusion=_matrix(stored["label_names"], cells),
            slices=_records(scored[scored["split"] == "test"]),
            attempts=stored["attempts"],
            approval=_one(db, "SELECT * FROM approvals WHERE run_id = :run", run_id),
            quarantined={str(row["reason"]): int(row["count"]) for row in quarantined},
            drift=_rows(db, drift, run_id),
            evaluation=_one(db, evaluated, run_id),
            champion=champion,
            current_champion=_champion(home, stored["current"]),
            tonight=tonight,
            before=before,
            shares_note=note,
            seed_study=stored["seed_study"],
            findings=_findings(run, stored, epochs, _earlier(db, run, pipeline)),
            model_path=home.absolute(stored["model_path"]) if stored["model_path"] else None,
        )


def epoch_facts(epochs: Iterable[Row]) -> list[EpochFacts]:
    """The columns of `epoch_results` that the diagnosis and the curves use."""
    names = ("epoch", "training_loss", "validation_loss", "f1", "examples_per_second")
    return [EpochFacts(*(epoch.get(name) for name in names)) for epoch in epochs]  # type: ignore[arg-type]


def _findings(
    run: Row, stored: Mapping[str, Any], epochs: Iterable[Row], earlier: tuple[EarlierNight, ...]
) -> tuple[Finding, ...]:
    training = stored["pipeline"].training
    machine = MachineFacts(
        device=run["device"],
        precision=run["precision"],
        restarts=sum(attempt["restarts"] for attempt in stored["attempts"]),
        micro_batches=run["micro_batches"],
        slot=run.get("slot") or "",
        train_rows=run["rows_trained"],
        earlier=earlier,
    )
    return tuple(diagnose(epoch_facts(epochs), run["min_f1"], training, machine))


def _stored(session: Session, run_id: str) -> dict[str, Any]:
    """What no view shows."""
    run = session.get_one(Run, run_id)
    attempts = session.scalars(sa.select(Attempt).where(Attempt.run_id == run_id).order_by(Attempt.attempt))
    champions = (
        sa.select(Promotion, ModelVersion, Run.snapshot_id)
        .join(ModelVersion, (ModelVersion.pipeline == Promotion.pipeline) & (ModelVersion.version == Promotion.version))
        .join(Run, Run.run_id == ModelVersion.run_id)
        .where(Promotion.pipeline == run.pipeline)
        .order_by(Promotion.valid_from.desc())
        .limit(1)
    )
    # Only a night that was judged has recorded its champion.
    if run.champion_version is not None:
        met = champions.where(Promotion.version == run.champion_version)
    else:
        met = champions.where(
            Promotion.valid_from <= run.started_at,
            sa.or_(Promotion.valid_to.is_(None), Promotion.valid_to > run.started_at),
        )
    pipeline = Pipeline.model_validate(run.config)
    study = newest_study(session, pipeline, before=run.finished_at)
    return {
        "pipeline": pipeline,
        "label_names": tuple(map(str, run.label_names)),
        "attempts": tuple(map(_as_row, attempts)),
        "seed_study": _as_row(study) if study else None,
        "model_path": session.scalar(sa.select(ModelVersion.path).where(ModelVersion.run_id == run_id)),
        "champion": session.execute(met).first(),
        "current": session.execute(champions.where(Promotion.valid_to.is_(None))).first(),
    }


def _as_row(stored: Attempt | SeedStudy) -> Row:
    return {name.key: getattr(stored, name.key) for name in stored.__mapper__.attrs}


def _champion(home: Home, found: Any) -> Champion | None:
    if found is None:
        return None
    promotion, version, snapshot_id = found
    return Champion(version.version, home.absolute(version.path), version.run_id, snapshot_id, promotion.valid_from)


def _shares(
    home: Home, db: Database, run: Row, champion: Champion | None
) -> tuple[SnapshotShares | None, SnapshotShares | None, str]:
    """Tonight's snapshot, the champion's, and why one of them is missing."""
    if run["snapshot_id"] is None:
        return None, None, "The night ended before its snapshot."
    tonight = _read(home, db, run["pipeline"], run["snapshot_id"])
    if tonight is None:
        return None, None, f"Tonight's snapshot {run['snapshot_id']} is gone or cannot be read."
    if champion is None:
        return tonight, None, "There was no champion to compare with."
    name = f"the champion (version {champion.version})"
    if champion.snapshot_id == run["snapshot_id"]:
        return tonight, None, f"{name[0].upper()}{name[1:]} was trained on the same snapshot."
    before = _read(home, db, run["pipeline"], champion.snapshot_id)
    if before is None:
        return tonight, None, f"The snapshot of {name}, {champion.snapshot_id}, is gone or cannot be read."
    return tonight, before, ""


def _read(home: Home, db: Database, pipeline: str, snapshot_id: str | None) -> SnapshotShares | None:
    query = "SELECT path FROM snapshots WHERE pipeline = :pipeline AND snapshot_id = :snapshot"
    for path in db.frame(query, {"pipeline": pipeline, "snapshot": snapshot_id})["path"]:
        with suppress(SnapshotError):
            return read_shares(home.absolute(str(path)))
    return None


def _earlier(db: Database, run: Row, pipeline: Pipeline) -> tuple[EarlierNight, ...]:
    """The speed of the nights before with the same amount of work per example."""

    def alike(session: Session) -> list[str]:
        query = (
            sa.select(Run.run_id, Run.config)
            .where(Run.pipeline == run["pipeline"], Run.night < run["night"], Run.best_epoch.is_not(None))
            .order_by(Run.night.desc(), Run.started_at.desc())
            .limit(EARLIER_NIGHTS)
        )
        same = {name: getattr(pipeline.training, name) for name in ("base_model", "max_length", "batch_size")}
        return [
            run_id
            for run_id, config in session.execute(query)
            if {name: config["training"].get(name) for name in same} == same
        ]

    runs = db.read(alike)
    if not runs:
        return ()
    names = {f"run_{place}": run_id for place, run_id in enumerate(runs)}
    query = (
        "SELECT e.run_id, r.device, r.precision, e.examples_per_second FROM epoch_results AS e "
        "JOIN nightly_runs AS r ON r.run_id = e.run_id "
        f"WHERE e.run_id IN ({', '.join(f':{name}' for name in names)}) AND e.examples_per_second > 0"
    )
    speeds: dict[tuple[str, str, str], list[float]] = {}
    for row in _records(db.frame(query, names)):
        if row["device"] and row["precision"]:
            key = (row["run_id"], row["device"], row["precision"])
            speeds.setdefault(key, []).append(float(row["examples_per_second"]))
    return tuple(
        EarlierNight(device, precision, statistics.median(found)) for (_, device, precision), found in speeds.items()
    )


def _matrix(labels: tuple[str, ...], cells: Iterable[Row]) -> tuple[tuple[int, ...], ...]:
    counts = {(cell["true_label"], cell["predicted_label"]): int(cell["count"]) for cell in cells}
    matrix = tuple(tuple(counts.get((true, guess), 0) for guess in labels) for true in labels)
    return matrix if any(map(any, matrix)) else ()


def _one(db: Database, query: str, run_id: str) -> Row | None:
    found = _rows(db, query, run_id)
    return found[0] if found else None


def _rows(db: Database, query: str, run_id: str) -> tuple[Row, ...]:
    return _records(select(db, query, {"run": run_id}))


def _records(frame: pd.DataFrame) -> tuple[Row, ...]:
    return tuple({str(name): _plain(value) for name, value in row.items()} for row in frame.to_dict("records"))


def _plain(value: Any) -> Any:
    """A value without NumPy and pandas types; None for what is missing or not finite."""
    if value is None or value is pd.NaT or value is pd.NA:
        return None
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, pd.Timestamp):
        return value.to_pydatetime(warn=False)
    return value.item() if hasattr(value, "item") else value
