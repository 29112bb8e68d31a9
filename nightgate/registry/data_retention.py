"""Remove old snapshots and the folders of old runs, as `[retention]` of the pipeline file says; their rows in the
database stay.

A snapshot's row is marked before its files are removed; the next sweep finishes one that was interrupted.
"""

from __future__ import annotations

import logging
import shutil
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from nightgate.config.pipeline import Pipeline, Retention
from nightgate.data.snapshots import ONE_FILE
from nightgate.data.tip import hold_data, read_tip
from nightgate.database.gate_schema import SeedStudy
from nightgate.database.refresh_schema import Refresh
from nightgate.database.schema import ModelVersion, Run, Snapshot
from nightgate.database.transactions import Database
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

    def mark(session: Session) -> tuple[list[str], list[str], list[str], set[str]] | None:
        lock_pipeline(session, name)
        if session.scalar(sa.select(Run.run_id).where(Run.pipeline == name, Run.status == "running").limit(1)):
            return None  # it may be reading its rows, or taking up a snapshot that nothing has used for long
        kept = kept_snapshots(session, name, pipeline.retention)
        rows = session.scalars(sa.select(Snapshot).where(Snapshot.pipeline == name).order_by(Snapshot.recorded_at))
        going, removed, known = [], [], set()
        for row in rows:
            known.add(row.snapshot_id)
            if row.files_removed_at is None and row.snapshot_id not in kept:
                row.files_removed_at = datetime.now(UTC)
                going.append(row.snapshot_id)
            if row.files_removed_at is not None:
                removed.append(row.path)
        return going, removed, _old_runs(session, db.home.runs, pipeline), known

    marked = db.write(mark)
    if marked is None:
        return []
    going, removed, runs, known = marked
    folder = db.home.snapshots / name
    for path in (*map(db.home.absolute, removed), *_unknown(folder, known)):
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

    newest = sa.select(Run.config["retention"]).where(Run.pipeline == name).order_by(Run.started_at.desc()).limit(1)
    runs = sa.select(Run.snapshot_id, Run.run_id, Run.night, Run.rows_new).where(Run.pipeline == name)
    refreshes = sa.select(Refresh.snapshot_id, Refresh.night, Refresh.rows_new).where(Refresh.pipeline == name)

    def work(session: Session) -> list[dict[str, Any]]:
        used: dict[str, list[sa.Row[Any]]] = {}
        for run in session.execute(runs.order_by(Run.started_at)):
            used.setdefault(run.snapshot_id, []).append(run)
        # The first of each snapshot is the last that is written here.
        made = {one.snapshot_id: one for one in session.execute(refreshes.order_by(Refresh.started_at.desc()))}
        limits = retention or Retention.model_validate(session.scalar(newest) or {})
        kept = kept_snapshots(session, name, limits)
        return [
            {
                "snapshot_id": row.snapshot_id,
                "night": first.night if first else None,
                "rows": row.rows_total - row.rows_redacted,
                "rows_new": first.rows_new if first else None,
                "bytes": row.manifest.get("bytes")
                or sum(file["bytes"] for file in row.manifest.get("files", {}).values()),
                "kept": f"removed {row.files_removed_at:%Y-%m-%d}"
                if row.files_removed_at
                else kept.get(row.snapshot_id, "until the next night ends"),
                "runs": len(users),
                "run_ids": " ".join(run.run_id for run in users),
                "rows_redacted": row.rows_redacted,
                "data_until": row.data_until,
                "path": row.path,
            }
            for row in session.scalars(
                sa.select(Snapshot).where(Snapshot.pipeline == name).order_by(Snapshot.recorded_at)
            )
            for users in [used.get(row.snapshot_id, [])]
            for first in [users[0] if users else made.get(row.snapshot_id)]
        ]

    frame = pd.DataFrame(db.read(work))
    return frame.astype({"rows_new": "Int64"}) if len(frame) else frame


def kept_snapshots(session: Session, name: str, retention: Retention) -> dict[str, str]:
    """Why each snapshot of a pipeline is kept, by id; one that may be removed is not in it."""
    newest = (
        sa.select(Snapshot.snapshot_id)
        .outerjoin(Run, (Run.pipeline == Snapshot.pipeline) & (Run.snapshot_id == Snapshot.snapshot_id))
        .where(Snapshot.pipeline == name, Snapshot.files_removed_at.is_(None))
        .group_by(Snapshot.snapshot_id, Snapshot.recorded_at)
        .order_by(sa.func.coalesce(sa.func.max(Run.data_until), Snapshot.recorded_at).desc())
        .limit(retention.snapshots)
    )
    last = (
        sa.select(Run.snapshot_id)
        .where(Run.pipeline == name, Run.snapshot_id.is_not(None))
        .order_by(Run.data_until.desc())
        .limit(1)
    )
    studies = sa.select(SeedStudy).where(SeedStudy.pipeline == name, SeedStudy.finished_at.is_(None))
    return {
        # However many refreshes come after it: the new rows of the next night are counted from it.
        **dict.fromkeys(session.scalars(last), "the last night"),
        **dict.fromkeys(session.scalars(newest), "newest"),
        **{study.snapshot_id: f"seed study {study.study_id}" for study in session.scalars(studies)},
        **{snapshot: f"run {run_id} can go on" for run_id, snapshot in _unfinished(session, name) if snapshot},
        **dict(_of_versions(session, name)),
    }


def _of_versions(session: Session, name: str) -> Iterator[tuple[str, str]]:
    """The snapshot of each version that has files, with the reason.

    Of its ancestors' snapshots, those of earlier releases too: only their rows show what the version has seen.
    """
    query = (
        sa.select(
            ModelVersion.version,
            ModelVersion.started_from,
            ModelVersion.files_removed_at,
            Snapshot.snapshot_id,
            Snapshot.manifest["format"].as_integer().label("format"),
        )
        .join(Run, Run.run_id == ModelVersion.run_id)
        .join(Snapshot, (Snapshot.pipeline == Run.pipeline) & (Snapshot.snapshot_id == Run.snapshot_id))
        .where(ModelVersion.pipeline == name)
        .order_by(ModelVersion.version)
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


def _unfinished(session: Session, name: str) -> set[tuple[str, str | None]]:
    """Runs, each with its snapshot, that are at work or wait, or that a claim of their night would resume."""
    query = (
        sa.select(Run.night, Run.dry_run, Run.run_id, Run.snapshot_id, Run.status)
        .where(Run.pipeline == name, Run.status.not_in(("superseded", "missed")))
        .order_by(Run.started_at, Run.run_id)
    )
    runs = session.execute(query).all()
    latest = {(run.night, run.dry_run): run for run in runs}.values()
    going_on = [run for run in latest if run.status in RESUMABLE]
    going_on += [run for run in runs if run.status in {"running", "waiting"}]
    return {(run.run_id, run.snapshot_id) for run in going_on}


def _old_runs(session: Session, runs: Path, pipeline: Pipeline) -> list[str]:
    """Runs that are done for good and have a folder, beyond the newest; never that of a version that must stay."""
    name = pipeline.name
    query = sa.select(Run.run_id, Run.closed_at).where(Run.pipeline == name).order_by(Run.started_at.desc(), Run.run_id)
    with_folder = [row for row in session.execute(query) if (runs / row.run_id).is_dir()]
    of_needed = sa.select(ModelVersion.run_id).where(
        ModelVersion.pipeline == name, ModelVersion.version.in_(needed(session, name))
    )
    kept = {*session.scalars(of_needed), *(run_id for run_id, _ in _unfinished(session, name))}
    old = with_folder[pipeline.retention.runs :]
    return [row.run_id for row in old if row.closed_at is not None and row.run_id not in kept]
