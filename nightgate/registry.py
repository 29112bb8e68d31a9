"""The registry: numbered versions, the champion among them, and how it is moved by hand.

Files lie under home/models/<pipeline>/v0001 (`nightgate.version_files`), rows in the metrics database
(`nightgate.ledger`); a version counts when it has a row (`nightgate.registration`).

    classifier = load_champion("reviews")
    classifier.predict(["Fits well", "Broke at once"])
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import sqlalchemy as sa

from nightgate import ledger, schema
from nightgate.classifier import Classifier, Prediction
from nightgate.database import Database
from nightgate.errors import RegistryError
from nightgate.home import Home, existing_home
from nightgate.ledger import VersionRow
from nightgate.registration import Candidate, register_candidate
from nightgate.version_files import verify_version

__all__ = [
    "Candidate",
    "Classifier",
    "Prediction",
    "load_champion",
    "previous_champion",
    "promote_by_hand",
    "register_candidate",
    "resolve_version",
    "rollback",
    "verify_version",
]

log = logging.getLogger(__name__)


# --- finding ---


def load_champion(pipeline: str, *, home: str | Path | None = None, device: str | None = None) -> Classifier:
    """The pipeline's champion, verified and loaded.

    Args:
        home: default `NIGHTGATE_HOME`, else `.nightgate/`.
        device: as PyTorch names it; None takes a GPU where there is one.

    Raises:
        RegistryError: there is no home, no such pipeline, or no champion yet.
        ModelError: the champion's folder is missing, incomplete or altered.
        DatabaseError: the metrics database cannot be read.
    """
    opened = existing_home(home)
    with Database.open(opened) as db:
        champion = ledger.champion(db, pipeline)
        if champion is None:
            raise _no_champion(db, pipeline)
    return Classifier.open(opened.absolute(champion.path), device=device)


def resolve_version(db: Database, pipeline: str, text: str | int) -> VersionRow:
    """The version that `text` names: a number (`3`, `v3`), `champion`, or `previous`, the one that a rollback takes.

    Raises:
        RegistryError: there is none; what there is is listed.
    """
    name = str(text).strip().lower()
    if name == "champion":
        champion = ledger.champion(db, pipeline)
        if champion is None:
            raise _no_champion(db, pipeline)
        return champion
    if name == "previous":
        return _row(db, pipeline, previous_champion(db, pipeline))
    number = re.fullmatch(r"v?0*([0-9]{1,9})", name, re.ASCII)
    rows = ledger.versions(db, pipeline)
    for row in rows:
        if number and row.version == int(number[1]):
            return row
    if not rows:
        raise _no_champion(db, pipeline)
    if not number:
        raise RegistryError(
            f"{str(text)!r} is not a version of {pipeline}",
            next_step=f"write champion, previous or one of {_listed(rows)}",
        )
    raise RegistryError(
        f"{pipeline} has no version {number[1]}; it has {_listed(rows)}",
        next_step=f"choose one of them; `nightgate versions {pipeline}` says more",
    )


def previous_champion(db: Database, pipeline: str) -> int:
    """The version that reigned before the current champion, as a rollback sees it.

    A rollback undoes a promotion: after promotions of 1, 2 and 3 and a rollback to 2, the one before is 1, not 3.

    Raises:
        RegistryError: there is none.
    """

    table = schema.Promotion
    reigns = sa.select(table.version, table.kind).where(table.pipeline == pipeline).order_by(table.valid_from)
    stack: list[int] = []
    for version, kind in db.read(lambda session: session.execute(reigns).all()):
        if kind == "rollback":
            while stack and stack[-1] != version:
                stack.pop()
        if not stack or stack[-1] != version:
            stack.append(version)
    if not stack:
        raise _no_champion(db, pipeline)
    if len(stack) < 2:
        raise RegistryError(
            f"there is nothing to roll back to: version {stack[-1]} of {pipeline} has no champion before it",
            next_step=f"choose a version by hand: `nightgate promote {pipeline} VERSION --reason TEXT`",
        )
    return stack[-2]


def _row(db: Database, pipeline: str, version: int) -> VersionRow:
    return next(row for row in ledger.versions(db, pipeline) if row.version == version)


def _listed(rows: Sequence[VersionRow]) -> str:
    numbers = sorted(row.version for row in rows)
    if numbers == list(range(numbers[0], numbers[-1] + 1)) and len(numbers) > 2:
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))


def _no_champion(db: Database, pipeline: str) -> RegistryError:
    """Why a pipeline has no champion: nobody knows it, it has no version, or none was promoted."""
    rows = ledger.versions(db, pipeline)
    if rows:
        return RegistryError(
            f"{pipeline} has no champion yet: none of its versions ({_listed(rows)}) was promoted",
            next_step=f"run `nightgate run {pipeline}`, or `nightgate promote {pipeline} VERSION --reason TEXT`",
        )
    known = db.read(lambda session: session.scalars(sa.select(schema.Run.pipeline).distinct()).all())
    if pipeline in known:
        return RegistryError(
            f"{pipeline} has no champion yet: none of its runs has completed a candidate",
            next_step=f"run `nightgate run {pipeline}`; `nightgate history {pipeline}` says what became of the others",
        )
    near = difflib.get_close_matches(pipeline, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return RegistryError(
        f"the database knows no pipeline {pipeline!r}; {hint}known: {', '.join(sorted(known)) or 'none'}",
        next_step=f"name one of them, or run `nightgate run {pipeline}`",
    )


# --- moving the champion by hand ---


def promote_by_hand(db: Database, home: Home, pipeline: str, version: int | str, *, reason: str, by: str) -> str:
    """Make a version the champion, whatever the gate said; gives the sentence that tells it.

    Args:
        version: as `resolve_version` takes it.
        reason: stored with the promotion, as is `by`, who asked for it.

    Raises:
        RegistryError: no such version, it is champion already, or the reason is blank.
        ModelError: its files are missing, altered or cannot be loaded.
        PromotionLostError: the champion was moved by somebody else in the meantime.
    """
    _check_reason(reason, by)
    row = resolve_version(db, pipeline, version)
    champion = ledger.champion(db, pipeline)
    if champion is not None and champion.version == row.version:
        raise RegistryError(
            f"version {row.version} is the champion of {pipeline} already",
            next_step=f"choose another; `nightgate versions {pipeline}` lists them",
        )
    return _move(db, home, pipeline, row, champion, kind="promote", reason=reason, by=by)


def rollback(db: Database, home: Home, pipeline: str, *, reason: str, by: str) -> str:
    """Bring back the champion before the current one; gives the sentence that tells it. See `promote_by_hand`.

    Raises:
        RegistryError: there is nothing to roll back to, or the reason is blank.
    """
    _check_reason(reason, by)
    champion = ledger.champion(db, pipeline)
    if champion is None:
        raise _no_champion(db, pipeline)
    row = _row(db, pipeline, previous_champion(db, pipeline))
    return _move(db, home, pipeline, row, champion, kind="rollback", reason=reason, by=by)


def _move(
    db: Database,
    home: Home,
    pipeline: str,
    row: VersionRow,
    champion: VersionRow | None,
    *,
    kind: Literal["promote", "rollback"],
    reason: str,
    by: str,
) -> str:
    # Before the swap: a champion that cannot be loaded would fail in front of those who use it.
    Classifier.open(home.absolute(row.path), device="cpu").predict(["a text to try it on"])
    ledger.promote(
        db,
        pipeline,
        row.version,
        expected=champion.version if champion else None,
        run_id=None,
        attempt=None,
        by=by.strip(),
        reason=reason.strip(),
        kind=kind,
    )
    before = f"in place of version {champion.version}" if champion else "the first one"
    told = f"version {row.version} is the champion of {pipeline} now, {before}"
    log.info("%s (%s by %s: %s)", told, kind, by.strip(), reason.strip())
    return told


def _check_reason(reason: str, by: str) -> None:
    if not reason.strip():
        raise RegistryError(
            "the reason is blank", next_step="say why with --reason TEXT: it is stored with who and when"
        )
    if not by.strip():
        raise RegistryError("nobody is named for this promotion", next_step="say who asks for it")
