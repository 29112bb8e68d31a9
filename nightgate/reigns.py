"""Versions get their numbers, and the champion is moved, in one transaction that changes all that depends on it.

A promotion names the champion that it expects to replace, and one of a run the anchor that the run was judged against.
If somebody else was faster, it loses and nothing changes. A unique index allows one open reign per pipeline, whatever
any program does. `nightgate.version_rows` reads what is written here.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from nightgate import anchors, freezes, pointer
from nightgate.database import Database
from nightgate.errors import PromotionLostError, RegistryError
from nightgate.runs import end, fenced, lock_pipeline, record_decided
from nightgate.schema import ModelVersion, Promotion, Run
from nightgate.version_rows import champion, files_removed, quarantined


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
    """Give the run's model the next number of its pipeline. A run has one version: asking again gives the same.

    `place(version)` moves the finished folder to where it belongs and gives its path relative to the home. It is called
    once, inside the transaction: a folder that has a number but no row belongs to a process that died in between.

    Args:
        started_from: the version that training went on from; None: the base model.
        base_model_revision: the commit of the base model, or a hash of its weights where it has none.
        environment: Python, libraries, machine and device that trained it, as JSON can hold them.
        size_bytes: of the model's files.

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
                started_from=started_from,
                base_model_revision=base_model_revision,
                environment=environment,
                size_bytes=size_bytes,
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
    expected_anchor: int | None = None,
    run_id: str | None = None,
    attempt: int | None = None,
    by: str,
    reason: str,
    kind: Literal["promote", "rollback"] = "promote",
    approval: Callable[[Session], None] | None = None,
    moves_anchor: bool = False,
    despite_quarantine: bool = False,
) -> None:
    """Make `version` the champion in place of `expected` (None: there is no champion), in one transaction.

    With `run_id` and `attempt` a run promotes its own version: its row moves from running to promoted with it, and what
    only a person may do is refused: an older model than the champion, a run that was not judged fit, a dry run, a
    frozen pipeline. With `approval` the run waits for a person: it writes down in the same transaction what that person
    said, and a freeze does not stop a person.

    Without them it is a person who promotes. Where the version's own run waits for a person, that was the word: the run
    ends as promoted, its approval as given.

    A rollback also quarantines `expected`, takes the anchor back from it and freezes the pipeline. Once all that is
    committed the pointer in the home follows.

    Args:
        expected_anchor: with `run_id`, the anchor that the run was judged against; None: that is not known, and
            nothing is compared. Where there is no anchor any more it is no obstacle.
        moves_anchor: the version is the anchor from now on. It is in any case where there is none that it could be
            compared with.
        despite_quarantine: release the version from its quarantine; the promotion's reason tells of it.

    Raises:
        PromotionLostError: somebody else moved the champion or the anchor, or the run may no longer promote.
        RegistryError: there is no such version, it reigns already, is quarantined, or retention removed its files.
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
        candidate = _version(session, pipeline_name, version)
        reign = session.scalars(
            sa.select(Promotion).where(Promotion.pipeline == pipeline_name, Promotion.valid_to.is_(None))
        ).one_or_none()
        reigning = reign.version if reign else None
        if reigning != expected:
            raise _lost(pipeline_name, version, expected, reigning)
        if reigning == version:
            raise RegistryError(f"version {version} of pipeline {pipeline_name} is the champion already")
        if run is not None:
            _require_anchor(session, run, candidate, expected_anchor)
            _may_promote_itself(session, run, candidate, reign)
            if approval is None:
                _require_unfrozen(session, run, candidate)
        why = _usable(candidate, reason, despite_quarantine, PromotionLostError if run is not None else RegistryError)
        moment = datetime.now(UTC)
        if reign is not None:
            # A clock that was set back must not make a reign that ends before it began.
            moment = max(moment, reign.valid_from + timedelta(microseconds=1))
            if not _close(session, reign, moment):
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
                reason=why,
                valid_from=moment,
            )
        )
        if kind == "rollback" and expected is not None:
            _take_down(session, expected, candidate, moment, by, reason)
        anchors.follow(
            session,
            candidate,
            moment,
            asked=moves_anchor,
            by=by,
            reason=why,
            run_id=run_id,
        )
        if run is not None:
            end(session, run, "promoted", moment, reason)
        else:
            _end_waiting(session, candidate, moment, by, reason)
        if approval is not None:
            approval(session)
        session.flush()

    try:
        db.write(work)
    except IntegrityError:
        # The unique index: a program that does not take our lock has opened a reign meanwhile.
        row = champion(db, pipeline_name)
        raise _lost(pipeline_name, version, expected, row.version if row else None) from None
    pointer.follow(db, pipeline_name)


# --- inside the transaction ---


def _version(session: Session, pipeline_name: str, version: int) -> ModelVersion:
    found = session.get(ModelVersion, (pipeline_name, version))
    if found is None:
        raise RegistryError(
            f"pipeline {pipeline_name} has no version {version}",
            next_step=f"choose one of `nightgate versions {pipeline_name}`",
        )
    return found


def _end_waiting(session: Session, candidate: ModelVersion, moment: datetime, by: str, reason: str) -> None:
    """Else it would be held in the end, although its version reigns."""
    run = session.get_one(Run, candidate.run_id, with_for_update=True, populate_existing=True)
    if run.status == "waiting":
        record_decided(session, run.run_id, "approved", by, reason, moment)
        end(session, run, "promoted", moment, f"promoted by hand by {by}: {reason}")


def _close(session: Session, reign: Promotion, moment: datetime) -> bool:
    """False: a program that does not take our lock was faster."""
    closed = session.execute(
        sa.update(Promotion)
        .where(Promotion.promotion_id == reign.promotion_id, Promotion.valid_to.is_(None))
        .values(valid_to=moment)
        .execution_options(synchronize_session=False)
    )
    return bool(closed.rowcount == 1)  # type: ignore[attr-defined]


def _usable(candidate: ModelVersion, reason: str, despite_quarantine: bool, error: type[RegistryError]) -> str:
    """Release the version from its quarantine if that is asked; gives the reason to store, which tells of it."""
    name, version = candidate.pipeline, candidate.version
    if candidate.files_removed_at is not None:
        raise files_removed(error, name, version, candidate.files_removed_at)
    if candidate.quarantined_at is None:
        return reason
    if not despite_quarantine:
        raise quarantined(error, candidate)
    since = f"{candidate.quarantined_at:%Y-%m-%d %H:%M} UTC by {candidate.quarantined_by}"
    told = f"{reason} (released from the quarantine since {since}: {candidate.quarantine_reason})"
    candidate.quarantined_at = candidate.quarantined_by = candidate.quarantine_reason = None
    return told


def _take_down(session: Session, version: int, champion: ModelVersion, moment: datetime, by: str, reason: str) -> None:
    """What a rollback does to the version that reigned, and to what would follow it."""
    bad = _version(session, champion.pipeline, version)
    bad.quarantined_at, bad.quarantined_by, bad.quarantine_reason = moment, by, reason
    told = f"rolled back from version {version} to {champion.version}: {reason}"
    anchors.leave(session, version, champion, moment, by=by, reason=told)
    freezes.begin(session, champion.pipeline, moment, by, told)


def _require_anchor(session: Session, run: Run, candidate: ModelVersion, expected: int | None) -> None:
    """A person may have moved it and left the champion, after the candidate was judged."""
    anchor = anchors.open_version(session, run.pipeline)
    if expected is None or anchor is None or anchor == expected:
        return
    raise PromotionLostError(
        f"version {candidate.version} of pipeline {run.pipeline} was not promoted: it was judged against the anchor "
        f"version {expected}, but now that is version {anchor}",
        next_step=f"the next night is judged against version {anchor}; {_by_hand(run, candidate)}",
    )


def _may_promote_itself(session: Session, run: Run, candidate: ModelVersion, reign: Promotion | None) -> None:
    by_hand = _by_hand(run, candidate)
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


def _require_unfrozen(session: Session, run: Run, candidate: ModelVersion) -> None:
    freeze = freezes.current(session, run.pipeline)
    if freeze is not None:
        raise PromotionLostError(
            f"{run.pipeline} is {freeze}", next_step=f"{freeze.remedy}; {_by_hand(run, candidate)}"
        )


def _by_hand(run: Run, candidate: ModelVersion) -> str:
    return f"promote it by hand if you mean it: nightgate promote {run.pipeline} {candidate.version} --reason ..."


def _lost(pipeline_name: str, version: int, expected: int | None, reigning: int | None) -> PromotionLostError:
    def told(number: int | None) -> str:
        return f"version {number}" if number is not None else "no champion"

    return PromotionLostError(
        f"version {version} of pipeline {pipeline_name} was not promoted: it expected to replace {told(expected)}, "
        f"but now there is {told(reigning)}",
        next_step=f"look at `nightgate champion {pipeline_name}` and decide again",
    )
