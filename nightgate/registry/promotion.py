"""Number versions and change the champion, each in one transaction with everything that depends on it.

A promotion names the champion that it expects to replace, and a run's promotion also the anchor that the run was judged
against. If either has changed, it fails and changes nothing. A unique index allows one open promotion per pipeline, for
any program that writes to the database. `nightgate.registry.versions` reads what is written here.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from nightgate.database.schema import ModelVersion, Promotion, Run
from nightgate.database.shared_values import document_id
from nightgate.database.transactions import Database
from nightgate.errors import PromotionLostError, RegistryError
from nightgate.registry import anchors, champion_link, freezes
from nightgate.registry.versions import champion, failed_checks, files_removed, open_promotion, quarantined
from nightgate.runs.lifecycle import end, fence, fenced, lock_pipeline, record_decided

# Built once: that takes longer than to execute them.
_PIPELINE_OF = sa.select(Run.pipeline).where(Run.run_id == sa.bindparam("run_id"))
_VERSIONS = sa.select(
    sa.select(ModelVersion.version).where(ModelVersion.run_id == sa.bindparam("run_id")).scalar_subquery(),
    sa.select(sa.func.max(ModelVersion.version))
    .where(ModelVersion.pipeline == sa.bindparam("pipeline"))
    .scalar_subquery(),
)
"""The version of a run, and the newest one of its pipeline."""


def add_version(
    db: Database,
    run_id: str,
    attempt: int,
    place: Callable[[int], str],
    *,
    started_from: int | None = None,
    base_model_revision: str | None = None,
    environment: dict[str, Any] | None = None,
    size_bytes: int | None = None,
) -> int:
    """Number the run's model. Idempotent: a second call for the same run returns the same version.

    Args:
        place: moves the finished folder to its final place and returns its path relative to the home. It is called once
            per number, inside the transaction: a numbered folder without a row was left by a crash in between.
        started_from: the version that training continued from; None: the base model.
        base_model_revision: the commit of the base model, or a hash of its weights if it has none.
        environment: Python, libraries, machine and device of the training, as JSON.
        size_bytes: of the model's files.

    Raises:
        RegistryError: the run has ended or another attempt has taken over.
    """
    placed: dict[int, str] = {}

    def work(session: Session) -> int:
        name = session.scalar(_PIPELINE_OF, {"run_id": run_id})
        lock_pipeline(session, name or "")
        run = fence(session, run_id, attempt)
        known, highest = session.execute(_VERSIONS, {"run_id": run_id, "pipeline": run.pipeline}).one()
        if known is not None:
            return int(known)
        version = (highest or 0) + 1
        if version not in placed:
            if placed:
                raise RegistryError(
                    f"another run got the number of run {run_id}'s version while the database was away",
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
                started_from=started_from,
                base_model_revision=base_model_revision,
                environment_id=None if environment is None else document_id(session, environment),
                size_bytes=size_bytes,
            )
        )
        return version

    return db.write(work)


@dataclass(frozen=True)
class _Swap:
    """A change of the champion: `version` in place of `expected` (None: there is no champion)."""

    pipeline: str
    version: int
    expected: int | None
    by: str
    kind: Literal["promote", "rollback"] = "promote"
    run_id: str | None = None
    promotion_id: str = field(default_factory=lambda: uuid.uuid4().hex)


def promote_candidate(
    db: Database,
    pipeline: str,
    version: int,
    *,
    run_id: str,
    attempt: int,
    expected: int | None,
    expected_anchor: int | None = None,
    by: str = "gate",
    reason: str,
    approved: str | None = None,
    moves_anchor: bool = False,
) -> None:
    """Make a run's own version the champion in place of `expected`, and end the run as promoted.

    Args:
        expected_anchor: the anchor that the run was judged against; None: unknown, and not compared.
        approved: the reason that `by` gave for approving a waiting run, which is promoted despite a freeze.

    Raises:
        PromotionLostError: the champion or the anchor has changed, or the run may not promote.
    """
    swap = _Swap(pipeline, version, expected, by, run_id=run_id)

    def work(session: Session) -> None:
        status: Literal["running", "waiting"] = "running" if approved is None else "waiting"
        run, row = fenced(session, run_id, attempt, PromotionLostError, status=status)
        candidate, champion = _compare(session, swap)
        _require_permission(session, run, candidate, champion, expected_anchor, approved=approved is not None)
        moment = _swap_champion(session, swap, champion, _usable(candidate, reason, False, PromotionLostError))
        anchors.update_after_promotion(
            session, candidate, moment, asked=moves_anchor, by=by, reason=reason, run_id=run_id
        )
        end(session, run, "promoted", moment, reason, attempt=row)
        if approved is not None:
            record_decided(session, run_id, "approved", by, approved, moment)

    _commit(db, swap, work)


def promote(
    db: Database,
    pipeline: str,
    version: int,
    *,
    expected: int | None,
    by: str,
    reason: str,
    moves_anchor: bool = False,
    despite_quarantine: bool = False,
) -> None:
    """Make a version the champion in place of `expected`, as a manual decision.

    The promotion's reason names the checks that it failed. If its run waits for an approval, the run ends as promoted.

    Args:
        moves_anchor: make the version the anchor, too. It becomes the anchor in any case if there is none or one with
            other labels.
        despite_quarantine: release the version from its quarantine; the promotion's reason says so.

    Raises:
        PromotionLostError: the champion has changed.
        RegistryError: there is no such version, it is the champion, is quarantined, or retention removed its files.
    """
    swap = _Swap(pipeline, version, expected, by)

    def work(session: Session) -> None:
        candidate, champion = _compare(session, swap)
        why = _despite(session, candidate, _usable(candidate, reason, despite_quarantine, RegistryError))
        moment = _swap_champion(session, swap, champion, why)
        anchors.update_after_promotion(session, candidate, moment, asked=moves_anchor, by=by, reason=why)
        _end_waiting(session, candidate, moment, by, reason)

    _commit(db, swap, work)


def roll_back(db: Database, pipeline: str, version: int, *, expected: int, by: str, reason: str) -> None:
    """Make a version the champion in place of `expected`, quarantine that one and freeze the pipeline.

    Raises:
        PromotionLostError: the champion has changed.
        RegistryError: there is no such version, it is the champion, is quarantined, or retention removed its files.
    """
    swap = _Swap(pipeline, version, expected, by, kind="rollback")

    def work(session: Session) -> None:
        candidate, champion = _compare(session, swap)
        usable = _usable(candidate, reason, False, RegistryError)
        moment = _swap_champion(session, swap, champion, _despite(session, candidate, usable))
        bad = _version(session, pipeline, expected)
        bad.quarantined_at, bad.quarantined_by, bad.quarantine_reason = moment, by, reason
        why = f"rolled back from version {expected} to {version}: {reason}"
        anchors.restore_after_rollback(session, expected, candidate, moment, by=by, reason=why)
        freezes.begin(session, pipeline, moment, by, why)
        anchors.update_after_promotion(session, candidate, moment, asked=False, by=by, reason=reason)
        _end_waiting(session, candidate, moment, by, reason)

    _commit(db, swap, work)


def _commit(db: Database, swap: _Swap, work: Callable[[Session], None]) -> None:
    """Do the `work` of a swap under the pipeline's lock, exactly once even if retried; then update the link."""

    def once(session: Session) -> None:
        lock_pipeline(session, swap.pipeline)
        own = Promotion.run_id == swap.run_id if swap.run_id else Promotion.promotion_id == swap.promotion_id
        if session.scalar(sa.select(Promotion.promotion_id).where(own, Promotion.version == swap.version)):
            return  # an earlier try was committed, and its answer was lost
        work(session)
        session.flush()

    try:
        db.write(once)
    except IntegrityError:
        # The unique index: a program without our lock has changed the champion meanwhile.
        row = champion(db, swap.pipeline)
        raise _lost(swap, row.version if row else None) from None
    champion_link.update(db, swap.pipeline)


# --- inside the transaction ---


def _compare(session: Session, swap: _Swap) -> tuple[ModelVersion, Promotion | None]:
    """The new champion and the promotion that it replaces, which must be that of the expected champion."""
    candidate = _version(session, swap.pipeline, swap.version)
    current = open_promotion(session, swap.pipeline)
    found = current.version if current else None
    if found != swap.expected:
        raise _lost(swap, found)
    if found == swap.version:
        # Of a run that is retried, a person may have promoted the version meanwhile: its night has not failed.
        error = PromotionLostError if swap.run_id else RegistryError
        raise error(f"version {swap.version} of pipeline {swap.pipeline} is the champion already")
    return candidate, current


def _swap_champion(session: Session, swap: _Swap, current: Promotion | None, reason: str) -> datetime:
    """Close the `current` promotion and open the next one; returns the instant of both."""
    moment = datetime.now(UTC)
    if current is not None:
        # A clock that was set back must not make a promotion that ends before it began.
        moment = max(moment, current.valid_from + timedelta(microseconds=1))
        closed = session.execute(
            sa.update(Promotion)
            .where(Promotion.promotion_id == current.promotion_id, Promotion.valid_to.is_(None))
            .values(valid_to=moment)
            .execution_options(synchronize_session=False)
        )
        if closed.rowcount != 1:  # type: ignore[attr-defined]
            # A program without our lock was faster.
            raise _lost(swap, None)
    session.add(
        Promotion(
            promotion_id=swap.promotion_id,
            pipeline=swap.pipeline,
            version=swap.version,
            replaced_version=swap.expected,
            kind=swap.kind,
            run_id=swap.run_id,
            promoted_by=swap.by,
            reason=reason,
            valid_from=moment,
        )
    )
    return moment


def _version(session: Session, pipeline_name: str, version: int) -> ModelVersion:
    found = session.get(ModelVersion, (pipeline_name, version))
    if found is None:
        raise RegistryError(
            f"pipeline {pipeline_name} has no version {version}",
            next_step=f"choose one of `nightgate versions {pipeline_name}`",
        )
    return found


def _end_waiting(session: Session, candidate: ModelVersion, moment: datetime, by: str, reason: str) -> None:
    """End the candidate's waiting run as promoted, so that it is not held at its deadline."""
    run = session.get_one(Run, candidate.run_id, with_for_update=True, populate_existing=True)
    if run.status == "waiting":
        record_decided(session, run.run_id, "approved", by, reason, moment)
        end(session, run, "promoted", moment, f"promoted manually by {by}: {reason}")


def _usable(candidate: ModelVersion, reason: str, despite_quarantine: bool, error: type[RegistryError]) -> str:
    """Check that the version may become champion, and release it from quarantine if asked; returns the reason to store.

    The reason records the release.
    """
    name, version = candidate.pipeline, candidate.version
    if candidate.files_removed_at is not None:
        raise files_removed(error, name, version, candidate.files_removed_at)
    if candidate.quarantined_at is None:
        return reason
    if not despite_quarantine:
        raise quarantined(error, candidate)
    since = f"{candidate.quarantined_at:%Y-%m-%d %H:%M} UTC by {candidate.quarantined_by}"
    recorded = f"{reason} (released from the quarantine since {since}: {candidate.quarantine_reason})"
    candidate.quarantined_at = candidate.quarantined_by = candidate.quarantine_reason = None
    return recorded


def _despite(session: Session, candidate: ModelVersion, reason: str) -> str:
    """The reason to store for a promotion without the gate: it names the checks that the version failed."""
    failed = failed_checks(session, candidate.run_id)
    return f"{reason} (despite failed checks: {', '.join(failed)})" if failed else reason


def _require_permission(
    session: Session,
    run: Run,
    candidate: ModelVersion,
    champion: Promotion | None,
    expected_anchor: int | None,
    *,
    approved: bool,
) -> None:
    """Check that the run may promote its version without a manual decision.

    Raises:
        PromotionLostError: the anchor has moved, the verdict is not to promote, it is a dry run, the champion saw newer
            rows, or the pipeline is frozen.
    """
    anyway = f"to promote it anyway: nightgate promote {run.pipeline} {candidate.version} --reason TEXT"
    # A manual decision may move the anchor alone, after the candidate was judged.
    anchor = anchors.open_version(session, run.pipeline)
    if None not in {expected_anchor, anchor} and anchor != expected_anchor:
        raise PromotionLostError(
            f"version {candidate.version} of pipeline {run.pipeline} was not promoted: it was judged against the "
            f"anchor version {expected_anchor}, but now that is version {anchor}",
            next_step=f"the next night is judged against version {anchor}; {anyway}",
        )
    if candidate.run_id != run.run_id:
        raise PromotionLostError(f"run {run.run_id} may not promote version {candidate.version} of {candidate.run_id}")
    if run.dry_run:
        raise PromotionLostError(
            f"run {run.run_id} is a dry run: it may not promote", next_step="run the same without --dry-run"
        )
    if run.verdict != "promote":
        raise PromotionLostError(
            f"run {run.run_id} may not promote: its verdict is {run.verdict or 'not recorded'}", next_step=anyway
        )
    if champion is not None:
        seen = sa.select(Run.data_until).join(ModelVersion, ModelVersion.run_id == Run.run_id)
        newer = session.scalars(seen.filter_by(pipeline=champion.pipeline, version=champion.version)).one()
        if run.data_until < newer:
            raise PromotionLostError(
                f"version {candidate.version} has seen rows up to {run.data_until:%Y-%m-%d %H:%M} UTC, "
                f"the champion (version {champion.version}) up to {newer:%Y-%m-%d %H:%M}: "
                "an older model does not replace it",
                next_step=anyway,
            )
    freeze = freezes.current(session, run.pipeline)
    if freeze is not None and not approved:
        raise PromotionLostError(f"{run.pipeline} is {freeze}", next_step=f"{freeze.remedy}; {anyway}")


def _lost(swap: _Swap, found: int | None) -> PromotionLostError:
    def named(number: int | None) -> str:
        return f"version {number}" if number is not None else "no champion"

    return PromotionLostError(
        f"version {swap.version} of pipeline {swap.pipeline} was not promoted: it expected to replace "
        f"{named(swap.expected)}, but now there is {named(found)}",
        next_step=f"look at `nightgate champion {swap.pipeline}` and decide again",
    )
