"""Remove the files of old versions, as `[retention]` of the pipeline file says; their rows stay in the database.

The row is marked before the folder is removed, so that nothing is promoted that is about to vanish. The next sweep
finishes one that was interrupted, and removes what a registration left that was interrupted.
"""

from __future__ import annotations

import logging
import shutil
import uuid
from collections.abc import Mapping, Set
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy as sa
from humanize import naturalsize
from sqlalchemy.orm import Session

from nightgate.config.pipeline import Pipeline, Retention
from nightgate.config.values import num_bytes
from nightgate.database.gate_schema import Anchor
from nightgate.database.schema import ModelVersion, Promotion, Run
from nightgate.database.transactions import Database
from nightgate.home import Home
from nightgate.models.version_folder import has_another_copy
from nightgate.registry.versions import champions_before, versions
from nightgate.runs.lifecycle import lock_pipeline

log = logging.getLogger(__name__)


def sweep(db: Database, home: Home, pipeline: Pipeline) -> list[int]:
    """Remove the files of versions that `[retention]` does not keep; returns their numbers, oldest first.

    A folder that cannot be removed is logged, and the next sweep tries again.

    Raises:
        DatabaseError: the database cannot be used.
    """
    models = (home.models / pipeline.name).resolve()
    rows = versions(db, pipeline.name)
    sizes = {row.version: row.size_bytes or 0 for row in rows if row.files_removed_at is None}

    def mark(session: Session) -> list[int]:
        lock_pipeline(session, pipeline.name)
        going = choose(sizes, needed(session, pipeline.name), _former(session, pipeline.name), pipeline.retention)
        for version in going:
            row = session.get_one(ModelVersion, (pipeline.name, version))
            if row.files_removed_at is None:
                row.files_removed_at = datetime.now(UTC)
        for left in _unregistered(session, pipeline.name, models):
            # Under the lock: the next version may get the same number, and its folder must not be removed.
            _remove(left, models)
        return going

    going = db.write(mark)
    for row in rows:
        if row.version in going or row.files_removed_at is not None:
            _remove(home.absolute(row.path), models)
    for left in models.glob(".removed-*"):
        shutil.rmtree(left, ignore_errors=True)
    if going:
        log.info("retention removed the files of versions %s of %s", ", ".join(map(str, going)), pipeline.name)
    return going


def choose(sizes: Mapping[int, int], needed: Set[int], former: Set[int], retention: Retention) -> list[int]:
    """The versions whose files to remove, oldest first.

    All beyond the newest `models` go, then the oldest of these until the rest fits in `disk`, and the oldest of
    `former` if that is not enough.

    Args:
        sizes: bytes of every version that has files, by number.
        needed: versions that stay whatever the limits.
        former: versions that only the `disk` limit removes, after all others.
    """
    newest = set(sorted(sizes)[-retention.models :])
    kept = newest | former
    budget = num_bytes(retention.disk)
    total = sum(sizes.values())
    going: list[int] = []
    for version in sorted(set(sizes) - needed, key=lambda number: (number in former, number in kept, number)):
        if version in kept and (budget is None or total <= budget):
            break
        going.append(version)
        total -= sizes[version]
    if budget is not None and total > budget:
        log.warning("versions that must stay take %s: retention.disk is %s", naturalsize(total), retention.disk)
    return sorted(going)


def needed(session: Session, pipeline_name: str) -> set[int]:
    """The champion, the anchor, the target of a rollback, candidates that are judged or wait for approval, and the
    version that the next night or a running one goes on from."""
    in_use = (
        sa.select(Promotion.version).where(Promotion.pipeline == pipeline_name, Promotion.valid_to.is_(None)),
        sa.select(Anchor.version).where(Anchor.pipeline == pipeline_name, Anchor.valid_to.is_(None)),
        sa.select(ModelVersion.version)
        .join(Run, Run.run_id == ModelVersion.run_id)
        .where(ModelVersion.pipeline == pipeline_name, Run.status.in_(("running", "waiting"))),
        sa.select(Run.started_from).where(
            Run.pipeline == pipeline_name, Run.started_from.is_not(None), Run.status == "running"
        ),
        sa.select(ModelVersion.version)
        .join(Run, Run.run_id == ModelVersion.run_id)
        .where(ModelVersion.pipeline == pipeline_name, Run.dry_run.is_(False))
        .where(sa.exists().where(Run.pipeline == pipeline_name, Run.training_reason.is_not(None)).correlate(None))
        .order_by(Run.night.desc(), ModelVersion.version.desc())
        .limit(1),
    )
    found = {version for query in in_use for version in session.scalars(query)}
    before = next((version for version, flaw in champions_before(session, pipeline_name) if not flaw), None)
    return found if before is None else found | {before}


def _former(session: Session, pipeline_name: str) -> set[int]:
    """Every version that ever was champion or anchor and is not quarantined: targets of repeated rollbacks."""
    return {
        version
        for was in (Promotion, Anchor)
        for version in session.scalars(
            sa.select(was.version)
            .join(ModelVersion, (ModelVersion.pipeline == was.pipeline) & (ModelVersion.version == was.version))
            .where(was.pipeline == pipeline_name, ModelVersion.quarantined_at.is_(None))
        )
    }


def _unregistered(session: Session, pipeline_name: str, models: Path) -> list[Path]:
    """Folders of a registration that was killed. The caller holds the lock, under which no run can begin."""
    if session.scalar(sa.select(Run.run_id).where(Run.pipeline == pipeline_name, Run.status == "running").limit(1)):
        return []  # it may be registering its version
    paths = session.scalars(sa.select(ModelVersion.path).where(ModelVersion.pipeline == pipeline_name))
    known = {Path(path).name for path in paths}
    numbered = [folder for folder in models.glob("v[0-9]*") if folder.name not in known]
    return [*models.glob(".staging-*"), *(folder for folder in numbered if has_another_copy(folder))]


def _remove(folder: Path, models: Path) -> None:
    """Rename a version's folder, so that a reader never finds half a version under its name; the sweep deletes it."""
    if folder.parent != models or not folder.is_dir():
        return
    away = models / f".removed-{folder.name}-{uuid.uuid4().hex[:8]}"
    try:
        folder.rename(away)
    except OSError as error:
        log.warning("retention could not remove %s, the next sweep tries again: %s", folder, error)
