"""Seed studies in the database: one snapshot and configuration trained with several seeds, to measure the spread of F1.

    study = open_study(db, pipeline, num_seeds=5)         # seeds without a score: study.missing
    record_score(db, study, score)                        # as soon as a seed is scored
    finish_study(db, study.study_id)                      # mean and spread of all its seeds
    newest_spread(db, pipeline)                           # the unit of the gate's margin

A study is identified by snapshot, configuration (without the seed and the gate's policy) and code. Opened again, it
trains only what is missing, and can grow. `nightgate.analysis.seed_runs` trains the seeds, each in full: those that go
on from one version share its luck. A study opens no run and changes neither champion nor nights.
"""

from __future__ import annotations

import hashlib
import logging
import statistics
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from nightgate.config.gate import Gate
from nightgate.config.pipeline import Pipeline
from nightgate.database.gate_schema import SeedRun, SeedStudy
from nightgate.database.schema import Run, Snapshot
from nightgate.database.transactions import Database
from nightgate.database.views import selecting
from nightgate.errors import ConfigurationError, DataError
from nightgate.home import Home
from nightgate.logs import without_secrets
from nightgate.provenance import code_version
from nightgate.runs.lifecycle import lock_pipeline

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

LEAST_SEEDS = 3
"""Fewest seeds whose spread the gate uses: that of two is too uncertain."""
_MOST_SEEDS = 2**32


@dataclass(frozen=True)
class Study:
    """A study to train, independent of the machine: paths are relative to the home."""

    study_id: str
    pipeline: Pipeline
    home: str
    """Path of the home on the machine that opened the study."""
    home_id: str
    snapshot_id: str
    snapshot: str
    """Path relative to the home."""
    data_until: str
    """ISO time with an offset, from which `train_window` counts back."""
    seeds: tuple[int, ...]
    missing: tuple[int, ...]
    """Seeds that have no score yet."""

    def __str__(self) -> str:
        return f"{self.pipeline.name}: {len(self.missing)} of {len(self.seeds)} seeds"

    def record_of(self, seed: int) -> dict[str, Any]:
        """The resolved configuration with this seed."""
        record = self.pipeline.record()
        record["training"]["seed"] = seed
        return record


@dataclass(frozen=True)
class SeedScore:
    """Scores of one seed, F1 by the pipeline's average."""

    seed: int
    best_epoch: int
    validation_f1: float | None
    """F1 of the best epoch."""
    test_f1: float | None
    test_accuracy: float | None
    duration_seconds: float
    precision: str | None = None
    """Of the test scores; None: of an earlier version, which scored in fp32."""


def config_hash(pipeline: Pipeline) -> str:
    """The pipeline's hash without what no score of a study depends on: seed, own metrics, the gate's policy, and
    `start_from`, because every seed trains in full."""
    record = pipeline.record()
    record["training"] |= {"seed": 0, "metrics": [], "start_from": "base"}
    record["gate"] = Gate(average=pipeline.gate.average).model_dump(mode="json")
    return Pipeline.model_validate(record).config_hash


def seeds_of(pipeline: Pipeline, num_seeds: int) -> tuple[int, ...]:
    """The configured seed and those that follow it."""
    return tuple((pipeline.training.seed + step) % _MOST_SEEDS for step in range(num_seeds))


def open_study(db: Database, pipeline: Pipeline, num_seeds: int, night: date | None = None) -> Study:
    """Open the study of the newest snapshot on disk, or of a night's, and store its row.

    Raises:
        DataError: no such snapshot is on disk.
        ConfigurationError: the snapshot has another test version than this configuration.
    """
    of_config, code = config_hash(pipeline), code_version()
    seeds = seeds_of(pipeline, num_seeds)

    def work(session: Session) -> tuple[str, Snapshot, list[int]]:
        # Before the snapshot is chosen: retention, which marks what it removes under this lock, then knows the study.
        lock_pipeline(session, pipeline.name)
        snapshot = _snapshot(session, db.home, pipeline, night)
        identity = hashlib.sha256("\n".join((pipeline.name, snapshot.snapshot_id, of_config, code)).encode())
        study_id = f"{pipeline.name}-{identity.hexdigest()[:12]}"
        row = session.get(SeedStudy, study_id)
        if row is None:
            row = SeedStudy(
                study_id=study_id,
                pipeline=pipeline.name,
                snapshot_id=snapshot.snapshot_id,
                config_hash=of_config,
                code_version=code,
                average=pipeline.gate.average,
                num_seeds=0,
                started_at=datetime.now(UTC),
            )
            session.add(row)
            session.flush()
        query = sa.select(SeedRun.seed).where(SeedRun.study_id == study_id, SeedRun.test_f1.is_not(None))
        scored = list(session.scalars(query))
        if row.finished_at is not None and not set(seeds).issubset(scored):
            row.started_at = datetime.now(UTC)  # it grows: retention keeps its snapshot until it is finished again
        return study_id, snapshot, scored

    study_id, snapshot, scored = db.write(work)
    return Study(
        study_id=study_id,
        pipeline=pipeline,
        home=str(db.home.root),
        home_id=db.home.id,
        snapshot_id=snapshot.snapshot_id,
        snapshot=snapshot.path,
        data_until=str(snapshot.manifest["data_until"]),
        seeds=seeds,
        missing=tuple(seed for seed in seeds if seed not in scored),
    )


def record_score(db: Database, study: Study, score: SeedScore) -> None:
    """Store the scores of a seed; a seed that has a score already keeps it."""
    _record(db, study, **asdict(score))
    f1 = "no F1" if score.test_f1 is None else f"F1 {score.test_f1:.4f}"
    log.info("seed %d: %s on the test rows, best epoch %d", score.seed, f1, score.best_epoch)


def record_failure(db: Database, study: Study, seed: int, error: Exception) -> None:
    """Store why a seed failed; the study retries it when it is opened again."""
    reason = without_secrets(str(error) or type(error).__name__)
    _record(db, study, seed, error=reason)
    log.warning("seed %d failed: %s", seed, reason)


def finish_study(db: Database, study_id: str) -> SeedStudy:
    """Store mean and spread of all seeds that have a score; unchanged if there are no new ones."""

    def work(session: Session) -> SeedStudy:
        row = session.get_one(SeedStudy, study_id, with_for_update=True)
        scores = sa.select(SeedRun.test_f1).where(SeedRun.study_id == study_id, SeedRun.test_f1.is_not(None))
        found = [f1 for f1 in session.scalars(scores) if f1 is not None]
        if row.finished_at is not None and row.num_seeds == len(found):
            row.started_at = min(row.started_at, row.finished_at)
            return row
        row.num_seeds = len(found)
        row.f1_mean = statistics.fmean(found) if found else None
        row.f1_spread = statistics.stdev(found) if len(found) > 1 else None
        row.finished_at = datetime.now(UTC)
        return row

    return db.write(work)


def read_study(db: Database, study_id: str) -> pd.DataFrame:
    """The rows of a study in `seed_runs`, ordered by seed."""
    from nightgate.frames.reader import select

    return select(db, "SELECT * FROM seed_runs WHERE study_id = :study ORDER BY seed", {"study": study_id})


def newest_study(db: Database, pipeline: Pipeline, *, before: datetime | None = None) -> dict[str, Any] | None:
    """The newest finished study of this configuration with at least `LEAST_SEEDS` seeds, before an instant (aware): a
    row of `seed_studies`.

    Labels, data and training must be the same. The snapshot may differ, as it does every night: the spread is a
    property of the configuration.
    """
    query = (
        "SELECT * FROM seed_studies WHERE pipeline = :pipeline AND config_hash = :config_hash "
        f"AND num_seeds >= {LEAST_SEEDS} AND f1_spread IS NOT NULL AND finished_at IS NOT NULL "
        f"{'' if before is None else 'AND finished_at <= :before '}ORDER BY finished_at DESC, study_id LIMIT 1"
    )
    given = {"pipeline": pipeline.name, "config_hash": config_hash(pipeline)}
    statement = selecting(query, given if before is None else given | {"before": before})
    found = db.read(lambda session: session.execute(statement).mappings().first())
    return None if found is None else dict(found)


def newest_spread(db: Database, pipeline: Pipeline) -> float | None:
    """Standard deviation of F1 between the seeds of `newest_study`; None: there is none."""
    found = newest_study(db, pipeline)
    return found["f1_spread"] if found else None


def describe_margin(gate: Gate, spread: float) -> str:
    """The gate's margin in relation to a spread, in words."""
    if gate.margin_unit == "seed_spread":
        return f"a margin of {gate.margin:g} times the spread is {gate.margin * spread:.4f}"
    if not spread:
        return f"a margin of {gate.margin:.4f} cannot be compared with a spread of 0: all seeds have the same F1"
    return f"a margin of {gate.margin:.4f} is {gate.margin / spread:.1f} times the spread"


def _record(db: Database, study: Study, seed: int, **facts: Any) -> None:
    def work(session: Session) -> None:
        # Serialises two processes on one study, which would both find no row and add one.
        lock_pipeline(session, study.pipeline.name)
        known = session.get(SeedRun, (study.study_id, seed))
        if known is None or known.test_f1 is None:
            blank = dict.fromkeys(("best_epoch", "validation_f1", "test_f1", "test_accuracy", "error", "precision"))
            row = blank | {"duration_seconds": None} | facts
            session.merge(SeedRun(study_id=study.study_id, seed=seed, recorded_at=datetime.now(UTC), **row))

    db.write(work)


def _snapshot(session: Session, home: Home, pipeline: Pipeline, night: date | None) -> Snapshot:
    """The snapshot of the night, or the newest one that is on disk."""
    from nightgate.data.rules import split_version

    query = (
        sa.select(Snapshot)
        .join(Run, (Run.pipeline == Snapshot.pipeline) & (Run.snapshot_id == Snapshot.snapshot_id))
        .where(Run.pipeline == pipeline.name, Snapshot.files_removed_at.is_(None))
        .order_by(Run.data_until.desc(), Run.started_at.desc())
    )
    if night is not None:
        query = query.where(Run.night == night)
    found = session.scalars(query).all()
    snapshot = next((one for one in found if (home.absolute(one.path) / "manifest.json").is_file()), None)
    if snapshot is None:
        of_night, again = ("", "") if night is None else (f" of the night of {night}", f" --night {night}")
        raise DataError(
            f"pipeline {pipeline.name} has no snapshot{of_night} on disk to train seeds on",
            next_step=f"run a night first: nightgate run {pipeline.name}{again}",
        )
    version = split_version(pipeline)
    if snapshot.test_version != version:
        raise ConfigurationError(
            f"snapshot {snapshot.snapshot_id} of pipeline {pipeline.name} has test version {snapshot.test_version}, "
            f"this configuration has {version}",
            next_step="run a night with this configuration first, or restore [data] and [split] of that night",
        )
    return snapshot
