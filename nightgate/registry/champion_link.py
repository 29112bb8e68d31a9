"""`home/models/<pipeline>/champion`: a link to the version that reigns, for whoever cannot ask the database.

The database is the truth, and nothing of ours reads the link. It is swapped at once, so that it always leads to a whole
version; after a crash it may lead to the champion before, until `repair` (every night and `nightgate reconcile`).
"""

from __future__ import annotations

import logging
import os
import uuid
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.orm import Session

from nightgate.database.schema import ModelVersion, Promotion
from nightgate.database.transactions import Database
from nightgate.durable_files import sync
from nightgate.errors import NightgateError, storage_errors
from nightgate.home import Home
from nightgate.runs.lifecycle import lock_pipeline

log = logging.getLogger(__name__)

NAME = "champion"


def pointer_path(home: Home, pipeline_name: str) -> Path:
    """Where the link is, or would be."""
    return home.models / pipeline_name / NAME


def disagreement(db: Database, home: Home, pipeline_name: str) -> str:
    """Where the link leads, and who reigns, if these differ; '' if not."""
    wanted = db.read(lambda session: _wanted(session, home, pipeline_name))
    found = _found(pointer_path(home, pipeline_name))
    if wanted == found:
        return ""
    leads = f"leads to {found}" if found is not None else "is no link" if _exists(home, pipeline_name) else "is missing"
    reigns = f"{wanted} reigns" if wanted is not None else "nobody reigns"
    return f"{pointer_path(home, pipeline_name)} {leads}, and {reigns}"


def repair(db: Database, home: Home, pipeline_name: str) -> str:
    """Let the link say what the database says; gives what was wrong, '' if nothing was.

    Raises:
        StorageError: the disk is full, read-only or not ours.
        DatabaseError: the database cannot be used.
    """
    wrong = disagreement(db, home, pipeline_name)

    def swap(session: Session) -> None:
        # Under the lock: of two that have promoted, the one that writes last has read the last champion.
        lock_pipeline(session, pipeline_name)
        _point(pointer_path(home, pipeline_name), _wanted(session, home, pipeline_name))

    if wrong:
        with storage_errors(home.models):
            db.write(swap)
    return wrong


def follow(db: Database, pipeline_name: str) -> str:
    """As `repair`, but what stands in its way is only told in the log: the champion has moved all the same."""
    try:
        return repair(db, db.home, pipeline_name)
    except (OSError, NightgateError) as error:
        link, told = pointer_path(db.home, pipeline_name), getattr(error, "reason", error)
        log.warning("%s is not up to date, `nightgate reconcile` repairs it: %s", link, told)
        return ""


def _wanted(session: Session, home: Home, pipeline_name: str) -> str | None:
    """What the link should hold: the champion's folder, relative to the link's own."""
    path = session.scalar(
        sa.select(ModelVersion.path)
        .join(Promotion, (Promotion.pipeline == ModelVersion.pipeline) & (Promotion.version == ModelVersion.version))
        .where(Promotion.pipeline == pipeline_name, Promotion.valid_to.is_(None))
    )
    return os.path.relpath(home.absolute(path), home.models / pipeline_name) if path is not None else None


def _found(link: Path) -> str | None:
    return str(link.readlink()) if link.is_symlink() else None


def _exists(home: Home, pipeline_name: str) -> bool:
    return os.path.lexists(pointer_path(home, pipeline_name))


def _point(link: Path, target: str | None) -> None:
    for left in link.parent.glob(f".{NAME}-*"):  # by a process that was killed: the lock says that none is at work
        left.unlink()
    if target is None:
        link.unlink(missing_ok=True)
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    draft = link.with_name(f".{NAME}-{uuid.uuid4().hex}")
    draft.symlink_to(target, target_is_directory=True)
    draft.replace(link)
    sync(link.parent)
