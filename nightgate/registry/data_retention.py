"""Remove old snapshots and the folders of old runs, as `[retention]` of the pipeline file says; their rows in the
database stay.

A snapshot's row is marked before its files are removed; the next sweep finishes one that was interrupted.
"""

from __future__ import annotations

import logging
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from nightgate.config.pipeline import Pipeline, Retention
from nightgate.data.snapshots import ONE_FILE
from nightgate.data.tip import hold_data, read_tip
from nightgate.database.schema import ModelVersion, Run, Snapshot
from nightgate.database.transactions import Database
from nightgate.database.views import selecting
from nightgate.registry.compaction import compact
from nightgate.registry.retention import needed
from nightgate.runs.claim import RESUMABLE
from nightgate.runs.lifecycle import lock_pipeline

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

_ABANDONED_AFTER = 24 * 3600.0
"""Seconds after which a snapshot that is not in the database is no one's."""


def sweep(db: Database, pipeline: Pipeline) -> list[str]:
    """Remove the snapshots and run folders that `[retention]` does not keep; returns the ids of the snapshots.

    Raises:
        DatabaseError: the database cannot be used.
    """
    with hold_data(db.home, pipeline.name, "retention"):
        return _sweep(db, pipeline)


def _sweep(db: Database, pipeline: Pipeline) -> list[str]:
    name = pipeline.name

    def mark(session: Session) -> tuple[list[str], list[str], list[str], set[str], set[str]] | None:
        lock_pipeline(session, name)
        if session.scalar(sa.select(Run.run_id).where(Run.pipeline == name, Run.status == "running").limit(1)):
            return None  # it may be reading its rows, or taking up a snapshot that nothing has used for long
        kept = kept_snapshots(session, name, pipeline.retention)
        rows = session.scalars(sa.select(Snapshot).where(Snapshot.pipeline == name).order_by(Snapshot.recorded_at))
        going, removed, known, there = [], [], set(), set()
        for row in rows:
            known.add(row.snapshot_id)
            if row.files_removed_at is None and row.snapshot_id not in kept:
                row.files_removed_at = datetime.now(UTC)
                going.append(row.snapshot_id)
            if row.files_removed_at is not None:
                removed.append(row.path)
            else:
                there.add(row.snapshot_id)
        return going, removed, _old_runs(session, db.home.runs, pipeline), known, there

    marked = db.write(mark)
    if marked is None:
        return []
    going, removed, runs, known, there = marked
    folder = db.home.snapshots / name
    # What was found damaged and written again is kept as long as that.
    damaged = (path for path in folder.glob("s-*.damaged-*") if path.name.partition(".")[0] not in there)
    for path in (*map(db.home.absolute, removed), *_unknown(folder, known), *damaged):
        if path.parent == folder and path.is_dir():
            # By one step, so that a reader never finds half a snapshot under its name.
            path.rename(folder / f".removed-{path.name}-{uuid.uuid4().hex[:8]}")
    for left in [*folder.glob(".removed-*"), *(db.home.runs / run_id for run_id in runs)]:
        shutil.rmtree(left, ignore_errors=True)
    compact(folder)
    if going or runs:
        log.info("retention removed %d snapshots and the folders of %d runs of %s", len(going), len(runs), name)
    return going


def _unknown(folder: Path, known: set[str]) -> Iterator[Path]:
    """Snapshots that a refresh wrote which was killed before it committed them, and found other rows when it was
    repeated.
    """
    known = known | {night.snapshot for night in read_tip(folder).nights}
    for path in folder.glob(f"s-{'?' * 16}"):
        if path.name not in known and time.time() - path.stat().st_mtime > _ABANDONED_AFTER:
            yield path


def listing(db: Database, name: str, retention: Retention | None = None) -> pd.DataFrame:
    """Every snapshot of a pipeline, oldest first: its first night, or that of the refresh that made it, rows, bytes,
    the runs that used it, and `kept`: why it is kept, or when it was or will be removed.

    Args:
        retention: None: as it was for the newest run.
    """
    import pandas as pd

    named = {"pipeline": name}
    newest = selecting(
        "SELECT config FROM run_documents WHERE pipeline = :pipeline ORDER BY started_at DESC LIMIT 1", named
    )
    refreshes = selecting(
        "SELECT snapshot_id, night, rows_new FROM refreshes WHERE pipeline = :pipeline ORDER BY started_at DESC", named
    )
    snapshots = selecting("SELECT * FROM snapshots WHERE pipeline = :pipeline ORDER BY recorded_at", named)

    def work(session: Session) -> list[dict[str, Any]]:
        used: dict[str, list[sa.Row[Any]]] = {}
        for run in _runs(session, name):
            used.setdefault(run.snapshot_id, []).append(run)
        # The first of each snapshot is the last that is written here.
        made = {one.snapshot_id: one for one in session.execute(refreshes)}
        config = session.execute(newest).scalar()
        limits = retention or Retention.model_validate(config["retention"] if config else {})
        kept = kept_snapshots(session, name, limits)
        return [
            {
                "snapshot_id": row.snapshot_id,
                "night": first.night if first else None,
                "rows": row.rows_total - row.rows_redacted,
                "rows_new": first.rows_new if first else None,
                "bytes": row.bytes or 0,
                "kept": f"removed {row.files_removed_at:%Y-%m-%d}"
                if row.files_removed_at
                else kept.get(row.snapshot_id, "until the next night ends"),
                "runs": len(users),
                "run_ids": " ".join(run.run_id for run in users),
                "rows_redacted": row.rows_redacted,
                "data_until": row.data_until,
                "path": row.path,
            }
            for row in session.execute(snapshots)
            for users in [used.get(row.snapshot_id, [])]
            for first in [users[0] if users else made.get(row.snapshot_id)]
        ]

    frame = pd.DataFrame(db.read(work))
    return frame.astype({"rows_new": "Int64"}) if len(frame) else frame


def kept_snapshots(session: Session, name: str, retention: Retention) -> dict[str, str]:
    """Why each snapshot of a pipeline is kept, by id; one that may be removed is not in it."""
    runs = _runs(session, name)
    used = sorted((run for run in runs if run.snapshot_id), key=lambda run: run.data_until)
    until = {run.snapshot_id: run.data_until for run in used}
    there = session.execute(
        selecting(
            "SELECT snapshot_id, recorded_at FROM snapshots WHERE pipeline = :pipeline AND files_removed_at IS NULL",
            {"pipeline": name},
        )
    ).all()
    newest = sorted(there, key=lambda row: until.get(row.snapshot_id, row.recorded_at), reverse=True)
    studies = session.execute(
        selecting(
            "SELECT study_id, snapshot_id FROM seed_studies WHERE pipeline = :pipeline "
            "AND (finished_at IS NULL OR started_at > finished_at)",  # it may grow
            {"pipeline": name},
        )
    )
    return {
        # However many refreshes come after it: the new rows of the next night are counted from it.
        **{run.snapshot_id: "the last night" for run in used[-1:]},
        **{row.snapshot_id: "newest" for row in newest[: retention.snapshots]},
        **{study.snapshot_id: f"seed study {study.study_id}" for study in studies},
        **{run.snapshot_id: f"run {run.run_id} can go on" for run in _unfinished(runs) if run.snapshot_id},
        **dict(_of_versions(session, name)),
    }


def _runs(session: Session, name: str) -> Sequence[sa.Row[Any]]:
    """Every run of a pipeline, oldest first."""
    session.flush()
    query = selecting(
        "SELECT run_id, night, dry_run, status, snapshot_id, rows_new, data_until FROM nightly_runs "
        "WHERE pipeline = :pipeline ORDER BY started_at, run_id",
        {"pipeline": name},
    )
    return session.execute(query).all()


def _of_versions(session: Session, name: str) -> Iterator[tuple[str, str]]:
    """The snapshot of each version that has files, with the reason.

    Of its ancestors' snapshots, those of earlier releases too: only their rows show what the version has seen.
    """
    query = selecting(
        "SELECT v.version, v.started_from, v.files_removed_at, s.snapshot_id, s.format FROM model_versions AS v "
        "JOIN snapshots AS s ON s.pipeline = v.pipeline AND s.snapshot_id = v.snapshot_id "
        "WHERE v.pipeline = :pipeline ORDER BY v.version",
        {"pipeline": name},
    )
    versions = {row.version: row for row in session.execute(query)}
    for row in versions.values():
        if row.files_removed_at is not None:
            continue
        yield row.snapshot_id, f"version {row.version}"
        ancestor = versions.get(row.started_from)
        while ancestor is not None:
            if ancestor.format in {None, ONE_FILE}:
                yield ancestor.snapshot_id, f"version {row.version}"
            ancestor = versions.get(ancestor.started_from)


def _unfinished(runs: Sequence[sa.Row[Any]]) -> list[sa.Row[Any]]:
    """Of `_runs`, those that are at work or wait, or that a claim of their night would resume."""
    begun = [run for run in runs if run.status not in {"superseded", "missed"}]
    latest = {(run.night, run.dry_run): run for run in begun}.values()
    going_on = [run for run in latest if run.status in RESUMABLE]
    return going_on + [run for run in begun if run.status in {"running", "waiting"}]


def _old_runs(session: Session, runs: Path, pipeline: Pipeline) -> list[str]:
    """Runs that are done for good and have a folder, beyond the newest; never that of a version that must stay."""
    name = pipeline.name
    query = sa.select(Run.run_id, Run.closed_at).where(Run.pipeline == name).order_by(Run.started_at.desc(), Run.run_id)
    with_folder = [row for row in session.execute(query) if (runs / row.run_id).is_dir()]
    of_needed = sa.select(ModelVersion.run_id).where(
        ModelVersion.pipeline == name, ModelVersion.version.in_(needed(session, name))
    )
    kept = {*session.scalars(of_needed), *(run.run_id for run in _unfinished(_runs(session, name)))}
    old = with_folder[pipeline.retention.runs :]
    return [row.run_id for row in old if row.closed_at is not None and row.run_id not in kept]
