"""Versions and the champion: who reigns, who reigned, and the one transaction that changes it.

A promotion names the champion that it expects to replace. If somebody else was faster, it loses and nothing changes.
A unique index allows one open reign per pipeline, whatever any program does.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from nightgate.database import Database
from nightgate.errors import PromotionLostError, RegistryError
from nightgate.runs import end, fenced, lock_pipeline
from nightgate.schema import ModelVersion, Promotion, Run


@dataclass(frozen=True)
class VersionRow:
    pipeline: str
    version: int
    run_id: str
    night: date
    status: str
    """champion, former (it reigned once) or held (it never did)."""
    path: str
    """As stored: relative to the home. `home.absolute(path)` is the folder."""
    f1: float | None
    """On the test rows of its night, by the pipeline's average."""
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
    valid_from: datetime | None = None
    """Of the reign that was asked for; None in a list of versions."""
    valid_to: datetime | None = None
    promoted_by: str | None = None
    reason: str | None = None


def add_version(db: Database, run_id: str, attempt: int, place: Callable[[int], str]) -> int:
    """Give the run's model the next number of its pipeline. A run has one version: asking again gives the same.

    `place(version)` moves the finished folder to where it belongs and gives its path relative to the home. It is called
    once, inside the transaction: a folder that has a number but no row belongs to a process that died in between.

    Raises:
        RegistryError: the run has ended or another attempt has taken over.
    """
    placed: dict[int, str] = {}

    def work(session: Session) -> int:
        name = session.scalar(sa.select(Run.pipeline).where(Run.run_id == run_id))
        lock_pipeline(session, name or "")
        run = fenced(session, run_id, attempt)
        known = session.scalar(sa.select(ModelVersion.version).where(ModelVersion.run_id == run_id))
        if known is not None:
            return known
        highest = sa.select(sa.func.max(ModelVersion.version)).where(ModelVersion.pipeline == run.pipeline)
        version = (session.scalar(highest) or 0) + 1
        if version not in placed:
            if placed:
                raise RegistryError(
                    f"the number of run {run_id}'s version was taken by another run while the database was away",
                    next_step=f"run the night again: nightgate run {run.pipeline} --night {run.night}",
                )
            placed[version] = place(version)
        session.add(
            ModelVersion(
                pipeline=run.pipeline,
                version=version,
                run_id=run_id,
                attempt=attempt,
                path=placed[version],
                created_at=datetime.now(UTC),
            )
        )
        return version

    return db.write(work)


def promote(
    db: Database,
    pipeline_name: str,
    version: int,
    *,
    expected: int | None,
    run_id: str | None = None,
    attempt: int | None = None,
    by: str,
    reason: str,
    kind: Literal["promote", "rollback"] = "promote",
    approval: Callable[[Session], None] | None = None,
) -> None:
    """Make `version` the champion in place of `expected` (None: there is no champion), in one transaction.

    With `run_id` and `attempt` a run promotes its own version: its row moves from running to promoted with it, and what
    only a person may do is refused: an older model than the champion, a run that was not judged fit, a dry run.
    With `approval` the run waits for a person: it writes down in the same transaction what that person said.

    Raises:
        PromotionLostError: somebody else moved the champion, or the run may no longer promote.
        RegistryError: there is no such version, or it reigns already.
    """
    assert (run_id is None) == (attempt is None), "a run promotes under its attempt"
    promotion_id = uuid.uuid4().hex

    def work(session: Session) -> None:
        lock_pipeline(session, pipeline_name)
        own = Promotion.promotion_id == promotion_id if run_id is None else Promotion.run_id == run_id
        if session.scalar(sa.select(Promotion.promotion_id).where(own, Promotion.version == version)):
            return  # an earlier try was committed, and its answer was lost
        run = None
        if run_id is not None and attempt is not None:
            state: Literal["running", "waiting"] = "waiting" if approval else "running"
            run = fenced(session, run_id, attempt, PromotionLostError, status=state)
        candidate = session.get(ModelVersion, (pipeline_name, version))
        if candidate is None:
            raise RegistryError(
                f"pipeline {pipeline_name} has no version {version}",
                next_step=f"choose one of `nightgate versions {pipeline_name}`",
            )
        reign = session.scalars(
            sa.select(Promotion).where(Promotion.pipeline == pipeline_name, Promotion.valid_to.is_(None))
        ).one_or_none()
        reigning = reign.version if reign else None
        if reigning != expected:
            raise _lost(pipeline_name, version, expected, reigning)
        if reigning == version:
            raise RegistryError(f"version {version} of pipeline {pipeline_name} is the champion already")
        if run is not None:
            _may_promote_itself(session, run, candidate, reign)
        moment = datetime.now(UTC)
        if reign is not None:
            # A clock that was set back must not make a reign that ends before it began.
            moment = max(moment, reign.valid_from + timedelta(microseconds=1))
            closed = session.execute(
                sa.update(Promotion)
                .where(Promotion.promotion_id == reign.promotion_id, Promotion.valid_to.is_(None))
                .values(valid_to=moment)
                .execution_options(synchronize_session=False)
            )
            if closed.rowcount != 1:  # type: ignore[attr-defined]
                raise _lost(pipeline_name, version, expected, None)
        session.add(
            Promotion(
                promotion_id=promotion_id,
                pipeline=pipeline_name,
                version=version,
                replaced_version=expected,
                kind=kind,
                run_id=run_id,
                promoted_by=by,
                reason=reason,
                valid_from=moment,
            )
        )
        if run is not None:
            end(session, run, "promoted", moment, reason)
        if approval is not None:
            approval(session)
        session.flush()

    try:
        db.write(work)
    except IntegrityError:
        # The unique index: a program that does not take our lock has opened a reign meanwhile.
        row = champion(db, pipeline_name)
        raise _lost(pipeline_name, version, expected, row.version if row else None) from None


def _may_promote_itself(session: Session, run: Run, candidate: ModelVersion, reign: Promotion | None) -> None:
    by_hand = f"promote it by hand if you mean it: nightgate promote {run.pipeline} {candidate.version} --reason ..."
    if candidate.run_id != run.run_id:
        raise PromotionLostError(f"run {run.run_id} may not promote version {candidate.version} of {candidate.run_id}")
    if run.dry_run:
        raise PromotionLostError(f"run {run.run_id} is a dry run: it may not promote", next_step=by_hand)
    if run.verdict != "promote":
        raise PromotionLostError(
            f"run {run.run_id} may not promote: its verdict is {run.verdict or 'not recorded'}", next_step=by_hand
        )
    if reign is None:
        return
    newer = session.execute(
        sa.select(Run.data_until)
        .join(ModelVersion, ModelVersion.run_id == Run.run_id)
        .where(ModelVersion.pipeline == reign.pipeline, ModelVersion.version == reign.version)
    ).scalar_one()
    if run.data_until < newer:
        raise PromotionLostError(
            f"version {candidate.version} has seen rows up to {run.data_until:%Y-%m-%d %H:%M} UTC, "
            f"the champion (version {reign.version}) up to {newer:%Y-%m-%d %H:%M}: an older model does not replace it",
            next_step=by_hand,
        )


def _lost(pipeline_name: str, version: int, expected: int | None, reigning: int | None) -> PromotionLostError:
    def told(number: int | None) -> str:
        return f"version {number}" if number is not None else "no champion"

    return PromotionLostError(
        f"version {version} of pipeline {pipeline_name} was not promoted: it expected to replace {told(expected)}, "
        f"but now there is {told(reigning)}",
        next_step=f"look at `nightgate champion {pipeline_name}` and decide again",
    )


# --- reading ---

_VERSION = (
    "v.pipeline, v.version, v.run_id, v.night, v.status, v.path, v.test_f1 AS f1, v.f1_ci_low, v.f1_ci_high, "
    "v.test_rows, v.test_version, v.best_epoch, v.snapshot_id, v.data_until, v.base_model, v.config_hash, "
    "v.code_version, v.created_at"
)


def champion(db: Database, pipeline_name: str, at: datetime | None = None) -> VersionRow | None:
    """The version that reigns, or reigned at the instant `at` (aware). None: there was none."""
    moment = "c.valid_to IS NULL" if at is None else "c.valid_from <= :at AND (c.valid_to > :at OR c.valid_to IS NULL)"
    rows = _rows(
        db,
        f"SELECT {_VERSION}, c.valid_from, c.valid_to, c.promoted_by, c.reason FROM champion_timeline AS c "
        "JOIN model_versions AS v ON v.pipeline = c.pipeline AND v.version = c.model_version "
        f"WHERE c.pipeline = :pipeline AND {moment}",
        {"pipeline": pipeline_name} | ({} if at is None else {"at": at}),
    )
    return rows[0] if rows else None


def reigns(db: Database, pipeline_name: str) -> list[VersionRow]:
    """Every reign, newest first: what a rollback looks back on."""
    return _rows(
        db,
        f"SELECT {_VERSION}, c.valid_from, c.valid_to, c.promoted_by, c.reason FROM champion_timeline AS c "
        "JOIN model_versions AS v ON v.pipeline = c.pipeline AND v.version = c.model_version "
        "WHERE c.pipeline = :pipeline ORDER BY c.valid_from DESC",
        {"pipeline": pipeline_name},
    )


def versions(db: Database, pipeline_name: str) -> list[VersionRow]:
    """Every version of the pipeline, oldest first."""
    query = f"SELECT {_VERSION} FROM model_versions AS v WHERE v.pipeline = :pipeline ORDER BY v.version"
    return _rows(db, query, {"pipeline": pipeline_name})


def _rows(db: Database, query: str, parameters: dict[str, Any]) -> list[VersionRow]:
    time = Run.started_at.type
    statement = sa.text(query).columns(
        night=sa.Date(), data_until=time, created_at=time, valid_from=time, valid_to=time
    )
    if "at" in parameters:
        statement = statement.bindparams(sa.bindparam("at", type_=time))
    return db.read(lambda session: [VersionRow(**row._mapping) for row in session.execute(statement, parameters)])
