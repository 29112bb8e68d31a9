"""The registry: numbered versions, the champion among them, and how it is moved by hand.

Files lie under home/models/<pipeline>/v0001 (`nightgate.models.version_folder`), rows in the metrics database
(`nightgate.runs.records`); a version counts when it has a row (`nightgate.registry.register`).

    classifier = load_champion("reviews")
    classifier.predict(["Fits well", "Broke at once"])
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from nightgate.database.transactions import Database
from nightgate.errors import ModelError, RegistryError
from nightgate.gate import sanity_checks
from nightgate.home import Home, existing_home
from nightgate.models import serving_check
from nightgate.models.classifier import Classifier
from nightgate.registry import anchors, freezes, versions
from nightgate.registry.promotion import promote, roll_back
from nightgate.registry.versions import VersionRow, champions_before, quarantined, require_pipeline
from nightgate.runs.run_row import read_run

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
        champion = versions.champion(db, pipeline)
        if champion is None:
            raise _no_champion(db, pipeline)
    return Classifier.open(champion.folder(opened), device=device)


def resolve_version(db: Database, pipeline: str, text: str | int) -> VersionRow:
    """The version that `text` names: a number (`3`, `v3`), `champion`, or `previous`, the one that a rollback takes.

    Raises:
        RegistryError: there is none; what there is is listed.
    """
    name = str(text).strip().lower()
    if name == "champion":
        champion = versions.champion(db, pipeline)
        if champion is None:
            raise _no_champion(db, pipeline)
        return champion
    if name == "previous":
        return _row(db, pipeline, previous_champion(db, pipeline))
    number = re.fullmatch(r"v?0*([0-9]{1,9})", name, re.ASCII)
    rows = versions.versions(db, pipeline)
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
    """The version that a rollback brings back: the last champion before this one that can be.

    Raises:
        RegistryError: there is none.
    """
    champion = versions.champion(db, pipeline)
    if champion is None:
        raise _no_champion(db, pipeline)
    before = db.read(lambda session: champions_before(session, pipeline))
    for version, flaw in before:
        if not flaw:
            return version
    flaws = "".join(f"; version {version} {flaw}" for version, flaw in before)
    none = "champion before it" if not before else "champion before it that can be brought back"
    raise RegistryError(
        f"there is nothing to roll back to: version {champion.version} of {pipeline} has no {none}{flaws}",
        next_step=f"choose one of `nightgate versions {pipeline}` by its number; "
        f"`nightgate promote {pipeline} VERSION --reason TEXT` makes it the champion",
    )


def _row(db: Database, pipeline: str, version: int) -> VersionRow:
    return next(row for row in versions.versions(db, pipeline) if row.version == version)


def _listed(rows: Sequence[VersionRow]) -> str:
    numbers = sorted(row.version for row in rows)
    if numbers == list(range(numbers[0], numbers[-1] + 1)) and len(numbers) > 2:
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))


def _no_champion(db: Database, pipeline: str) -> RegistryError:
    """Why a pipeline has no champion: nobody knows it, it has no version, or none was promoted."""
    rows = versions.versions(db, pipeline)
    if rows:
        return RegistryError(
            f"{pipeline} has no champion yet: none of its versions ({_listed(rows)}) was promoted",
            next_step=f"run `nightgate run {pipeline}`, or `nightgate promote {pipeline} VERSION --reason TEXT`",
        )
    require_pipeline(db, pipeline)
    return RegistryError(
        f"{pipeline} has no champion yet: none of its runs has completed a candidate",
        next_step=f"run `nightgate run {pipeline}`; `nightgate history {pipeline}` says what became of the others",
    )


# --- moving the champion by hand ---

TEXTS = ("fits well, would buy it again", "it broke at once", "fine")
"""What a version is tried on before it reigns. What it makes of them does not matter, only that it does."""


def promote_by_hand(
    db: Database,
    home: Home,
    pipeline: str,
    version: int | str,
    *,
    reason: str,
    by: str,
    move_anchor: bool = False,
    despite_quarantine: bool = False,
) -> str:
    """Make a version the champion, whatever the gate said; gives the sentence that tells it.

    Args:
        version: as `resolve_version` takes it.
        reason: stored with the promotion, as is `by`, who asked for it.
        move_anchor: no candidate may fall behind this version from now on. It becomes the anchor in any case where
            there is none, or one with other labels. Of the champion it moves the anchor alone.
        despite_quarantine: promote it although a rollback has taken it down, and release it.

    Raises:
        RegistryError: no such version, it is champion already, quarantined, without files, or the reason is blank.
        ModelError: its files are missing, altered or cannot be loaded.
        PromotionLostError: the champion was moved by somebody else in the meantime.
    """
    by, reason = freezes.said(by, reason)
    row = resolve_version(db, pipeline, version)
    champion, anchor = versions.champion(db, pipeline), versions.anchor(db, pipeline)
    reigns = champion is not None and champion.version == row.version
    if reigns and not (move_anchor and (anchor is None or anchor.version != row.version)):
        raise RegistryError(
            f"version {row.version} is the champion of {pipeline} already",
            next_step=f"choose another; `nightgate versions {pipeline}` lists them",
        )
    waited = read_run(db, row.run_id).status == "waiting"
    if row.quarantined_at is not None and not despite_quarantine:
        # Before the model is opened, which takes seconds.
        raise quarantined(RegistryError, row)
    # Before the swap: a champion that cannot be loaded would fail in front of those who use it.
    Classifier.open(row.folder(home), device="cpu").predict(TEXTS)
    if reigns:
        return _anchor_alone(db, row, anchor, reason=reason, by=by)
    promote(
        db,
        pipeline,
        row.version,
        expected=champion.version if champion else None,
        by=by,
        reason=reason,
        moves_anchor=move_anchor,
        despite_quarantine=despite_quarantine,
    )
    before = f"in place of version {champion.version}" if champion else "the first one"
    told = f"version {row.version} is the champion of {pipeline} now, {before}"
    if anchor is not None and _anchor_version(db, pipeline) != anchor.version:
        told += f"; it is the anchor too, in place of version {anchor.version}"
    if waited and read_run(db, row.run_id).status == "promoted":
        told += f"; its run {row.run_id}, which waited for an approval, has ended as promoted"
    log.info("%s (promoted by %s: %s)", told, by, reason)
    return told


def _anchor_alone(db: Database, champion: VersionRow, anchor: VersionRow | None, *, reason: str, by: str) -> str:
    """Make the champion the anchor as well, whatever became of the one before."""
    anchors.move(db, champion.pipeline, champion.version, by=by, reason=reason)
    told = f"version {champion.version}, the champion of {champion.pipeline}, is the anchor now"
    told += f", in place of version {anchor.version}" if anchor else ""
    log.info("%s (moved by %s: %s)", told, by, reason)
    return told


def rollback(db: Database, home: Home, pipeline: str, *, reason: str, by: str) -> str:
    """Bring back the champion before the current one, quarantine that one and freeze the pipeline: tomorrow's candidate
    has seen the same rows. Gives the sentences that tell it. See `promote_by_hand`.

    Raises:
        RegistryError: there is nothing to roll back to, or the reason is blank.
        ModelError: a fresh process cannot serve that champion, or its files are missing or altered.
    """
    by, reason = freezes.said(by, reason)
    # First who reigns: the swap notices if that has changed by the time at which the one before is known.
    champion, anchor = versions.champion(db, pipeline), versions.anchor(db, pipeline)
    row = _row(db, pipeline, previous_champion(db, pipeline))
    assert champion is not None, "a previous champion has one after it"
    _must_serve(row, home)
    roll_back(db, pipeline, row.version, expected=champion.version, by=by, reason=reason)
    told = (
        f"version {row.version} is the champion of {pipeline} now, in place of version {champion.version}, "
        "which is quarantined"
    )
    if anchor is not None and _anchor_version(db, pipeline) != anchor.version:
        told += f"; the anchor is version {_anchor_version(db, pipeline)}"
    told += f". No run promotes itself until `nightgate unfreeze {pipeline} --reason TEXT`"
    log.info("%s (rolled back by %s: %s)", told, by, reason)
    return told


def freeze(db: Database, pipeline: str, *, reason: str, by: str) -> str:
    """Keep the pipeline's runs from promoting themselves; gives the sentence that tells it. See `freezes.freeze`."""
    freezes.freeze(db, pipeline, by=by, reason=reason)
    return f"{pipeline} is frozen: its nights go on and are held until `nightgate unfreeze {pipeline} --reason TEXT`"


def unfreeze(db: Database, pipeline: str, *, reason: str, by: str) -> str:
    """Let them promote themselves again; gives the sentence that tells it. See `freezes.unfreeze`."""
    ended = freezes.unfreeze(db, pipeline, by=by, reason=reason)
    return f"{pipeline} is not frozen any more; it was {ended}"


def _must_serve(row: VersionRow, home: Home) -> None:
    """The gate's serving check, for what comes back in a hurry. By hand a version is promoted without."""
    who = f"version {row.version} of {row.pipeline}"
    if flaw := sanity_checks.unserved(serving_check.check_version(row.folder(home), TEXTS), who):
        raise ModelError(
            flaw,
            next_step=f"restore its folder from a backup, or choose another: nightgate promote {row.pipeline} VERSION "
            "--reason TEXT",
        )


def _anchor_version(db: Database, pipeline: str) -> int | None:
    anchor = versions.anchor(db, pipeline)
    return anchor.version if anchor else None
