"""Queries for versions, champions and anchors, now or at any earlier instant.

`nightgate.registry.promotion` changes them.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from nightgate.database.gate_schema import GateCheck
from nightgate.database.schema import ModelVersion, Promotion
from nightgate.database.transactions import Database
from nightgate.database.views import selecting
from nightgate.errors import RegistryError
from nightgate.home import Home


@dataclass(frozen=True)
class VersionRow:
    pipeline: str
    version: int
    run_id: str
    night: date
    status: str
    """champion, quarantined (by a rollback), former (once champion) or held (never promoted)."""
    path: str
    """Relative to the home; `folder(home)` is the absolute path."""
    f1: float | None
    """On the test rows of its night, with the pipeline's average."""
    f1_ci_low: float | None
    f1_ci_high: float | None
    test_rows: int | None
    test_version: str | None
    best_epoch: int | None
    snapshot_id: str | None
    data_until: datetime
    base_model: str
    config_hash: str
    code_version: str
    created_at: datetime
    started_from: int | None
    """The version that training continued from; None: the base model."""
    base_model_revision: str | None
    size_bytes: int | None
    """Of the model's files."""
    quarantined_at: datetime | None
    quarantined_by: str | None
    quarantine_reason: str | None
    files_removed_at: datetime | None
    valid_from: datetime | None = None
    """When it became champion (or anchor); None in a list of versions."""
    valid_to: datetime | None = None
    promoted_by: str | None = None
    promoting_run_id: str | None = None
    """The run that promoted it; None for a manual promotion or a rollback."""
    reason: str | None = None
    training: str | None = None
    """'full' or 'continued'; None in an earlier release."""
    dry_run: bool = False

    def folder(self, home: Home) -> Path:
        """The folder of its files.

        Raises:
            RegistryError: retention has removed them.
        """
        if self.files_removed_at is not None:
            raise files_removed(RegistryError, self.pipeline, self.version, self.files_removed_at)
        return home.absolute(self.path)


def files_removed(error: type[RegistryError], pipeline: str, version: int, moment: datetime) -> RegistryError:
    """The error for a version whose files retention has removed."""
    return error(
        f"version {version} of {pipeline} has no files: retention removed them on {moment:%Y-%m-%d}",
        next_step=f"choose a version of `nightgate versions {pipeline}` that has its files; "
        "[retention] says how many are kept",
    )


def quarantined(error: type[RegistryError], row: VersionRow | ModelVersion) -> RegistryError:
    """The error for promoting a version that a rollback quarantined."""
    assert row.quarantined_at is not None, "it is quarantined"
    return error(
        f"version {row.version} of {row.pipeline} is quarantined since {row.quarantined_at:%Y-%m-%d %H:%M} UTC by "
        f"{row.quarantined_by}: {row.quarantine_reason}",
        next_step=f"choose another, or release it: nightgate promote {row.pipeline} {row.version} "
        "--despite-quarantine --reason TEXT",
    )


_VERSION = (
    "v.pipeline, v.version, v.run_id, v.night, v.status, v.path, v.test_f1 AS f1, v.f1_ci_low, v.f1_ci_high, "
    "v.test_rows, v.test_version, v.best_epoch, v.snapshot_id, v.data_until, v.base_model, v.config_hash, "
    "v.code_version, v.created_at, v.started_from, v.base_model_revision, v.size_bytes, v.quarantined_at, "
    "v.quarantined_by, v.quarantine_reason, v.files_removed_at, v.training, v.dry_run"
)
_CHAMPION = (
    f"SELECT {_VERSION}, t.promoted_at AS valid_from, t.ended_at AS valid_to, t.promoted_by, t.promoting_run_id, "
    "t.reason FROM promotions AS t "
    "JOIN model_versions AS v ON v.pipeline = t.pipeline AND v.version = t.model_version WHERE t.pipeline = :pipeline"
)
_ANCHOR = (
    f"SELECT {_VERSION}, t.valid_from, t.valid_to, t.moved_by AS promoted_by, t.reason FROM anchor_timeline AS t "
    "JOIN model_versions AS v ON v.pipeline = t.pipeline AND v.version = t.model_version WHERE t.pipeline = :pipeline"
)


def champion(db: Database, pipeline_name: str, at: datetime | None = None) -> VersionRow | None:
    """The champion now or at the instant `at` (aware), if there was one."""
    return _at(db, _CHAMPION, "t.promoted_at", "t.ended_at", pipeline_name, at)


def anchor(db: Database, pipeline_name: str, at: datetime | None = None) -> VersionRow | None:
    """The anchor now or at the instant `at` (aware), if there was one."""
    return _at(db, _ANCHOR, "t.valid_from", "t.valid_to", pipeline_name, at)


def versions(db: Database, pipeline_name: str) -> list[VersionRow]:
    """Every version of the pipeline, oldest first."""
    query = f"SELECT {_VERSION} FROM model_versions AS v WHERE v.pipeline = :pipeline ORDER BY v.version"
    return _rows(db, query, {"pipeline": pipeline_name})


def _at(db: Database, query: str, begin: str, end: str, pipeline_name: str, at: datetime | None) -> VersionRow | None:
    parameters: dict[str, Any] = {"pipeline": pipeline_name} | ({} if at is None else {"at": at})
    then = f"{end} IS NULL" if at is None else f"{begin} <= :at AND ({end} > :at OR {end} IS NULL)"
    rows = _rows(db, f"{query} AND {then}", parameters)
    return rows[0] if rows else None


def _rows(db: Database, query: str, parameters: dict[str, Any]) -> list[VersionRow]:
    statement = selecting(query, parameters)
    return db.read(lambda session: [VersionRow(**row._mapping) for row in session.execute(statement)])


def known_pipelines(db: Database) -> list[str]:
    """Names of the pipelines that have runs or refreshes."""
    query = sa.text("SELECT pipeline FROM nightly_runs UNION SELECT pipeline FROM refreshes")
    return db.read(lambda session: sorted(session.scalars(query)))


def require_pipeline(db: Database, pipeline_name: str) -> None:
    """Check that the database knows the pipeline.

    Raises:
        RegistryError: the pipeline never had a run; the known ones are listed.
    """
    known = known_pipelines(db)
    if pipeline_name in known:
        return
    near = difflib.get_close_matches(pipeline_name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise RegistryError(
        f"the database knows no pipeline {pipeline_name!r}; {hint}known: {', '.join(known) or 'none'}",
        next_step=f"name one of them, or run `nightgate run {pipeline_name}`",
    )


# --- inside a transaction ---


def open_promotion(session: Session, pipeline_name: str) -> Promotion | None:
    """The promotion of the current champion, if there is one."""
    query = sa.select(Promotion).where(Promotion.pipeline == pipeline_name, Promotion.valid_to.is_(None))
    return session.scalars(query).one_or_none()


def failed_checks(session: Session, run_id: str) -> list[str]:
    """Names of the checks that a run's candidate did not pass, in the order of the gate."""
    own = GateCheck.run_id == run_id
    newest = sa.select(sa.func.max(GateCheck.attempt)).where(own).scalar_subquery()
    query = (
        sa.select(GateCheck.check_name, GateCheck.outcome)
        .where(own, GateCheck.attempt == newest, GateCheck.outcome.in_(("failed", "underpowered")))
        .order_by(GateCheck.position)
    )
    names = [name if outcome == "failed" else f"{name} (underpowered)" for name, outcome in session.execute(query)]
    return list(dict.fromkeys(names))


def champions_before(session: Session, pipeline_name: str) -> list[tuple[int, str]]:
    """Targets of a rollback: earlier champions, newest first, each with why it cannot be restored ('' if it can).

    A rollback undoes a promotion: after promotions of 1, 2 and 3 and a rollback to 2, the one before is 1, not 3.
    """
    session.flush()
    query = (
        "SELECT p.model_version, p.kind, v.quarantined_at, v.files_removed_at FROM promotions AS p "
        "JOIN model_versions AS v ON v.pipeline = p.pipeline AND v.version = p.model_version "
        "WHERE p.pipeline = :pipeline ORDER BY p.promoted_at"
    )
    found = session.execute(selecting(query, {"pipeline": pipeline_name}))
    flaws: dict[int, str] = {}
    stack: list[int] = []
    for version, kind, quarantined_at, removed_at in found:
        flaws[version] = "is quarantined" if quarantined_at else "has no files" if removed_at else ""
        if kind == "rollback":
            while stack and stack[-1] != version:
                stack.pop()
        if not stack or stack[-1] != version:
            stack.append(version)
    current, before = stack[-1:], stack[-2::-1]
    return [(version, flaws[version]) for version in dict.fromkeys(before) if version not in current]
