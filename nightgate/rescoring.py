"""Versions on the test rows of a night that they were not scored on: asked for by hand, and stored nowhere."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from nightgate import clean
from nightgate.database import Database
from nightgate.errors import RegistryError, SnapshotError
from nightgate.gate.evidence import Labels, Mask
from nightgate.home import Home
from nightgate.jobs import ScoreJob
from nightgate.progress import progress_line
from nightgate.schema import GateSide, Run, Snapshot
from nightgate.snapshots import open_snapshot
from nightgate.version_files import verify_version
from nightgate.version_rows import VersionRow

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rescored:
    """A version on the test rows of a night's snapshot, in their order."""

    predictions: Labels
    """Class indices by the night's label names."""
    trained_on: Mask | None
    """As in `nightgate.gate.Side`."""
    unknown_line: str


def rescore(
    db: Database, home: Home, run_id: str, versions: Mapping[str, VersionRow], fingerprints: tuple[str, ...]
) -> dict[str, Rescored]:
    """Score versions, by whatever name, on the test rows that the run was decided on.

    Args:
        fingerprints: of these rows, in the order of the run's evidence.

    Raises:
        RegistryError: retention has removed a version's files.
        ModelError: a version is altered or knows other labels.
        NonFiniteLossError: a version gives a row a logit that is NaN or infinite.
        SnapshotError: the night's snapshot is missing, damaged or another one.
        TrainingError: the scoring process ended without a result.
    """
    # Here and not above: most comparisons and replays score nothing.
    from nightgate import supervisor
    from nightgate.judging import read_predictions

    folders = {name: version.folder(home) for name, version in versions.items()}
    for folder in folders.values():
        verify_version(folder)
    config, snapshot = _config_and_snapshot(db, home, run_id)
    if tuple(open_snapshot(snapshot).rows("test", ["fingerprint"])["fingerprint"]) != fingerprints:
        raise SnapshotError(
            f"the test rows of {snapshot} are not those that run {run_id} was decided on",
            next_step="restore that folder from a backup",
        )
    with tempfile.TemporaryDirectory(prefix="nightgate-rescore-") as out:
        job = ScoreJob(pipeline=config, snapshot=snapshot, models=folders, out=Path(out))
        scored = supervisor.score_models(job, on_progress=lambda progress: log.debug("%s", progress_line(progress)))
        predictions = {name: read_predictions(path) for name, path in scored.written.items()}
    found = {}
    for name, version in versions.items():
        line = clean.line_of(db, home, version.pipeline, version.version)
        found[name] = Rescored(predictions[name], *clean.trained_on(line, fingerprints))
    return found


def rescorer(db: Database, home: Home) -> Callable[[str, VersionRow, tuple[str, ...]], Rescored]:
    """`rescore` of one version, as `nightgate.replay` takes it."""

    def score(run_id: str, version: VersionRow, fingerprints: tuple[str, ...]) -> Rescored:
        log.info("scoring version %d on the rows of run %s", version.version, run_id)
        return rescore(db, home, run_id, {"version": version}, fingerprints)["version"]

    return score


def newest_judged(db: Database, pipeline: str) -> str:
    """The newest run of the pipeline whose evidence is stored.

    Raises:
        RegistryError: there is none.
    """
    query = (
        sa.select(Run.run_id)
        .where(Run.pipeline == pipeline, Run.run_id.in_(sa.select(GateSide.run_id)))
        .order_by(Run.data_until.desc(), Run.started_at.desc())
    )
    found = db.read(lambda session: session.scalars(query).first())
    if found is None:
        raise RegistryError(
            f"no night of {pipeline} has stored what it was decided by", next_step=f"run `nightgate run {pipeline}`"
        )
    return found


def _config_and_snapshot(db: Database, home: Home, run_id: str) -> tuple[dict[str, Any], Path]:
    query = (
        sa.select(Run.config, Snapshot.path)
        .join(Snapshot, (Snapshot.pipeline == Run.pipeline) & (Snapshot.snapshot_id == Run.snapshot_id))
        .where(Run.run_id == run_id)
    )
    config, path = db.read(lambda session: session.execute(query).one())
    return config, home.absolute(path)
