"""Gather what a report shows of one night from the database and the snapshots, as it was recorded.

No model is loaded and no score computed. What is gone becomes a note, never an error: every night gets a report,
however it ended.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from nightgate.analysis.seed_study import newest_study
from nightgate.config.pipeline import Pipeline
from nightgate.database.transactions import Database
from nightgate.database.views import selecting
from nightgate.errors import SnapshotError
from nightgate.frames.epochs import own_metrics
from nightgate.frames.nights import read_history
from nightgate.frames.reader import records, select
from nightgate.home import Home
from nightgate.reports.shares import SnapshotShares, read_shares
from nightgate.reports.training_diagnosis import EarlierNight, EpochFacts, Finding, MachineFacts, diagnose

EARLIER_NIGHTS = 14
"""Earlier nights whose speed is compared with tonight's."""
IN_FORCE = "t.promoted_at <= :moment AND (t.ended_at IS NULL OR t.ended_at > :moment)"

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
    """Of `attempts`, by number."""
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
    """Of `seed_studies`: the newest of this configuration with enough seeds when the run ended."""
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
    with Database.open(home) as db:
        run = _one(db, "SELECT * FROM nightly_runs WHERE run_id = :run", run_id)
        assert run is not None, f"there is no run {run_id}"
        documents = selecting("SELECT config, label_names FROM run_documents WHERE run_id = :run", {"run": run_id})
        config, label_names = db.read(lambda session: session.execute(documents).one())
        pipeline = Pipeline.model_validate(config)
        attempts = _rows(db, "SELECT * FROM attempts WHERE run_id = :run ORDER BY attempt", run_id)
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
        version = _one(db, "SELECT path FROM model_versions WHERE run_id = :run", run_id)
        # Only a night that was judged has recorded its champion.
        of_night = "t.model_version = :version" if run["champion_version"] is not None else IN_FORCE
        champion = _champion(db, run, of_night)
        tonight, before, note = _shares(home, db, run, champion) if snapshots else (None, None, "")
        return ReportFacts(
            run=run,
            pipeline=pipeline,
            label_names=tuple(label_names),
            report_path=home.report(run_id),
            page_path=home.page(run["pipeline"]),
            epochs=epochs,
            own_metrics=own_metrics(db, run_id),
            checks=_rows(db, "SELECT * FROM gate_checks WHERE run_id = :run ORDER BY position", run_id),
            broken_data=_rows(db, broken, run_id),
            confusion=_matrix(tuple(label_names), cells),
            slices=tuple(records(scored[scored["split"] == "test"])),
            attempts=attempts,
            approval=_one(db, "SELECT * FROM approvals WHERE run_id = :run", run_id),
            quarantined={str(row["reason"]): int(row["count"]) for row in quarantined},
            drift=_rows(db, drift, run_id),
            evaluation=_one(db, evaluated, run_id),
            champion=champion,
            current_champion=_champion(db, run, "t.ended_at IS NULL"),
            tonight=tonight,
            before=before,
            shares_note=note,
            seed_study=newest_study(db, pipeline, before=run["finished_at"]),
            findings=_findings(run, pipeline, attempts, epochs, _earlier(db, run, pipeline)),
            model_path=home.absolute(version["path"]) if version else None,
        )


def epoch_facts(epochs: Iterable[Row]) -> list[EpochFacts]:
    """The columns of `epoch_results` that the diagnosis and the curves use."""
    names = ("epoch", "training_loss", "validation_loss", "f1", "examples_per_second")
    return [EpochFacts(*(epoch.get(name) for name in names)) for epoch in epochs]  # type: ignore[arg-type]


def _findings(
    run: Row, pipeline: Pipeline, attempts: Iterable[Row], epochs: Iterable[Row], earlier: tuple[EarlierNight, ...]
) -> tuple[Finding, ...]:
    machine = MachineFacts(
        device=run["device"],
        precision=run["precision"],
        restarts=sum(attempt["restarts"] for attempt in attempts),
        micro_batches=run["micro_batches"],
        slot=run.get("slot") or "",
        train_rows=run["rows_trained"],
        earlier=earlier,
    )
    goes_on = run["training"] == "continued"
    return tuple(diagnose(epoch_facts(epochs), run["min_f1"], pipeline.training, machine, goes_on=goes_on))


def _champion(db: Database, run: Row, which: str) -> Champion | None:
    """The last champion of the run's pipeline that meets a condition on its row `t` of `promotions`."""
    query = (
        "SELECT v.version, v.path, v.run_id, v.snapshot_id, t.promoted_at FROM promotions AS t "
        "JOIN model_versions AS v ON v.pipeline = t.pipeline AND v.version = t.model_version "
        f"WHERE t.pipeline = :pipeline AND {which} ORDER BY t.promoted_at DESC LIMIT 1"
    )
    given = {"pipeline": run["pipeline"], "version": run["champion_version"], "moment": run["started_at"]}
    for row in records(select(db, query, given)):
        path = db.home.absolute(row["path"])
        return Champion(row["version"], path, row["run_id"], row["snapshot_id"], row["promoted_at"])
    return None


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

    query = selecting(
        "SELECT r.run_id, d.config FROM nightly_runs AS r JOIN run_documents AS d ON d.run_id = r.run_id "
        "WHERE r.pipeline = :pipeline AND r.night < :night AND r.best_epoch IS NOT NULL "
        "AND COALESCE(r.training, 'full') = :training ORDER BY r.night DESC, r.started_at DESC LIMIT :limit",
        {name: run[name] for name in ("pipeline", "night")}
        | {"training": run["training"] or "full", "limit": EARLIER_NIGHTS},
    )
    same = {name: getattr(pipeline.training, name) for name in ("base_model", "max_length", "batch_size")}
    runs = [
        run_id
        for run_id, config in db.read(lambda session: session.execute(query).all())
        if {name: config["training"].get(name) for name in same} == same
    ]
    if not runs:
        return ()
    names = {f"run_{place}": run_id for place, run_id in enumerate(runs)}
    speed_of = (
        "SELECT e.run_id, r.device, r.precision, e.examples_per_second FROM epoch_results AS e "
        "JOIN nightly_runs AS r ON r.run_id = e.run_id "
        f"WHERE e.run_id IN ({', '.join(f':{name}' for name in names)}) AND e.examples_per_second > 0"
    )
    speeds: dict[tuple[str, str, str], list[float]] = {}
    for row in records(db.frame(speed_of, names)):
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
    return tuple(records(select(db, query, {"run": run_id})))
