"""Find and load versions, and the manual commands on them: promote, roll back, freeze and unfreeze.

    classifier = load_champion("reviews")
    classifier.predict(["Fits well", "Broke at once"])

Files are in home/models/<pipeline>/v0001 (`nightgate.models.version_folder`); a version exists once it has a row in the
metrics database (`nightgate.registry.register`).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from nightgate.config.training import Precision
from nightgate.database.transactions import Database
from nightgate.errors import ModelError, RegistryError
from nightgate.gate import sanity_checks
from nightgate.home import Home, existing_home
from nightgate.models import serving_check
from nightgate.models.classifier import Classifier
from nightgate.registry import anchors, freezes, versions
from nightgate.registry.promotion import promote, roll_back
from nightgate.registry.versions import VersionRow, champions_before, failed_checks, quarantined, require_pipeline
from nightgate.runs.run_row import read_run

log = logging.getLogger(__name__)


# --- finding ---


def load_champion(
    pipeline: str, *, home: str | Path | None = None, device: str | None = None, precision: Precision | None = None
) -> Classifier:
    """The pipeline's champion, verified and loaded.

    Args:
        home: default `NIGHTGATE_HOME`, else `.nightgate/`.
        device: as PyTorch names it; None uses a GPU if there is one.
        precision: 'auto', 'bf16', 'fp16' or 'fp32', as `training.precision`; None uses that of the champion.

    Raises:
        RegistryError: there is no home, no such pipeline, or no champion yet.
        ModelError: the champion's folder is missing, incomplete or altered.
        DatabaseError: the metrics database cannot be read.
    """
    opened = existing_home(home, only_read=True)
    with Database.open(opened) as db:
        champion = _champion(db, pipeline)
    return Classifier.open(champion.folder(opened), device=device, precision=precision)


def resolve_version(db: Database, pipeline: str, text: str | int) -> VersionRow:
    """The version that `text` names: a number (`3`, `v3`), `champion`, or `previous`, the target of a rollback.

    Raises:
        RegistryError: there is no such version; the existing ones are listed.
    """
    name = str(text).strip().lower()
    if name == "champion":
        return _champion(db, pipeline)
    if name == "previous":
        name = str(previous_champion(db, pipeline))
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
        next_step=f"choose one of `nightgate versions {pipeline}`",
    )


def previous_champion(db: Database, pipeline: str) -> int:
    """The target of a rollback: the newest earlier champion that is not quarantined and has its files.

    Raises:
        RegistryError: there is none.
    """
    champion = _champion(db, pipeline)
    before = db.read(lambda session: champions_before(session, pipeline))
    for version, flaw in before:
        if not flaw:
            return version
    flaws = "".join(f"; version {version} {flaw}" for version, flaw in before)
    raise RegistryError(
        f"there is nothing to roll back to: version {champion.version} of {pipeline} has no usable champion before it"
        f"{flaws}",
        next_step=f"choose one of `nightgate versions {pipeline}` by its number; "
        f"`nightgate promote {pipeline} VERSION --reason TEXT` makes it the champion",
    )


def _champion(db: Database, pipeline: str) -> VersionRow:
    champion = versions.champion(db, pipeline)
    if champion is None:
        raise _no_champion(db, pipeline)
    return champion


def _listed(rows: Sequence[VersionRow]) -> str:
    numbers = sorted(row.version for row in rows)
    if numbers == list(range(numbers[0], numbers[-1] + 1)) and len(numbers) > 2:
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))


def _no_champion(db: Database, pipeline: str) -> RegistryError:
    """The error for a pipeline without a champion: it is unknown, has no version, or none was promoted."""
    rows = versions.versions(db, pipeline)
    if rows:
        return RegistryError(
            f"{pipeline} has no champion yet: none of its versions ({_listed(rows)}) was promoted",
            next_step=f"run `nightgate run {pipeline}`, or `nightgate promote {pipeline} VERSION --reason TEXT`",
        )
    require_pipeline(db, pipeline)
    return RegistryError(
        f"{pipeline} has no champion yet: none of its runs has completed a candidate",
        next_step=f"run `nightgate run {pipeline}`; `nightgate history {pipeline}` shows how the others ended",
    )


# --- manual changes of the champion ---

TEXTS = ("fits well, would buy it again", "it broke at once", "fine")
"""A version must predict these before it becomes champion; any label will do."""


def promote_manually(
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
    """Make a version the champion whatever its verdict; returns a sentence for the user.

    Args:
        version: as for `resolve_version`.
        reason: stored with the promotion, as is its author `by`.
        move_anchor: make the version the anchor, too. It becomes the anchor in any case if there is none or one with
            other labels. For the current champion only the anchor moves.
        despite_quarantine: release a quarantined version and promote it.

    Raises:
        RegistryError: no such version, it is champion already, quarantined, without files, or the reason is blank.
        ModelError: its files are missing, altered or cannot be loaded.
        PromotionLostError: the champion was changed in the meantime.
    """
    by, reason = freezes.require_reason(by, reason)
    row = resolve_version(db, pipeline, version)
    champion, anchor = versions.champion(db, pipeline), versions.anchor(db, pipeline)
    is_champion = champion is not None and champion.version == row.version
    if is_champion and not (move_anchor and (anchor is None or anchor.version != row.version)):
        raise RegistryError(
            f"version {row.version} is the champion of {pipeline} already",
            next_step=f"choose another; `nightgate versions {pipeline}` lists them",
        )
    waited = read_run(db, row.run_id).status == "waiting"
    if row.quarantined_at is not None and not despite_quarantine:
        # Before the model is opened, which takes seconds.
        raise quarantined(RegistryError, row)
    # Before the swap: a champion that cannot be loaded would fail for its users.
    Classifier.open(row.folder(home), device="cpu").predict(TEXTS)
    if is_champion:
        anchors.move(db, pipeline, row.version, by=by, reason=reason)
        result = f"version {row.version}, the champion of {pipeline}, is the anchor now"
        result += f", in place of version {anchor.version}" if anchor else ""
        log.info("%s (moved by %s: %s)", result, by, reason)
        return result
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
    result = f"version {row.version} is the champion of {pipeline} now, {before}"
    if failed := db.read(lambda session: failed_checks(session, row.run_id)):
        result += f", despite failed checks: {', '.join(failed)}"
    moved = versions.anchor(db, pipeline)
    if anchor and moved and moved.version != anchor.version:
        result += f"; it is the anchor too, in place of version {anchor.version}"
    if waited and read_run(db, row.run_id).status == "promoted":
        result += f"; its run {row.run_id}, which waited for an approval, has ended as promoted"
    log.info("%s (promoted by %s: %s)", result, by, reason)
    return result


def rollback(db: Database, home: Home, pipeline: str, *, reason: str, by: str) -> str:
    """Restore the previous champion, quarantine the current one and freeze the pipeline.

    Returns a sentence for the user. The previous champion must pass the gate's serving check first.

    Raises:
        RegistryError: there is nothing to roll back to, or the reason is blank.
        ModelError: a fresh process cannot serve that champion, or its files are missing or altered.
    """
    by, reason = freezes.require_reason(by, reason)
    # The champion is read first: the swap fails if it changes before the previous one is known.
    champion, anchor = _champion(db, pipeline), versions.anchor(db, pipeline)
    row = resolve_version(db, pipeline, "previous")
    who = f"version {row.version} of {pipeline}"
    if flaw := sanity_checks.unserved(serving_check.check_version(row.folder(home), TEXTS), who):
        raise ModelError(
            flaw,
            next_step=f"restore its folder from a backup, or choose another: nightgate promote {pipeline} VERSION "
            "--reason TEXT",
        )
    roll_back(db, pipeline, row.version, expected=champion.version, by=by, reason=reason)
    result = (
        f"version {row.version} is the champion of {pipeline} now, in place of version {champion.version}, "
        "which is quarantined"
    )
    moved = versions.anchor(db, pipeline)
    if anchor and moved and moved.version != anchor.version:
        result += f"; the anchor is version {moved.version}"
    result += f". No run promotes itself until `nightgate unfreeze {pipeline} --reason TEXT`"
    log.info("%s (rolled back by %s: %s)", result, by, reason)
    return result


def freeze(db: Database, pipeline: str, *, reason: str, by: str) -> str:
    """Hold all candidates of the pipeline until `unfreeze`; returns a sentence for the user."""
    freezes.freeze(db, pipeline, by=by, reason=reason)
    return f"{pipeline} is frozen: its nights run and are held until `nightgate unfreeze {pipeline} --reason TEXT`"


def unfreeze(db: Database, pipeline: str, *, reason: str, by: str) -> str:
    """End the pipeline's freeze; returns a sentence for the user."""
    ended = freezes.unfreeze(db, pipeline, by=by, reason=reason)
    return f"{pipeline} is no longer frozen; it was {ended}"
