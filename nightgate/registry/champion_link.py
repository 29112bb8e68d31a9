"""The symbolic link `home/models/<pipeline>/champion` to the champion's folder, for programs without database access.

The database decides, and Nightgate never reads the link. The link is replaced atomically, so it always leads to a
complete version; after a crash it may lead to the previous champion until `repair` (every night and
`nightgate reconcile`).
"""

from __future__ import annotations

import logging
import os
import uuid
from pathlib import Path

from sqlalchemy.orm import Session

from nightgate.database.transactions import Database
from nightgate.database.views import selecting
from nightgate.durable_files import sync
from nightgate.errors import NightgateError, storage_errors
from nightgate.home import Home
from nightgate.runs.lifecycle import lock_pipeline

log = logging.getLogger(__name__)

NAME = "champion"


def link_path(home: Home, pipeline_name: str) -> Path:
    """The path of the link, whether or not it exists."""
    return home.models / pipeline_name / NAME


def disagreement(db: Database, home: Home, pipeline_name: str) -> str:
    """How the link differs from the database; '' if it does not."""
    wanted = db.read(lambda session: _wanted(session, home, pipeline_name))
    link = link_path(home, pipeline_name)
    found = str(link.readlink()) if link.is_symlink() else None
    if wanted == found:
        return ""
    leads = f"leads to {found}" if found is not None else "is no link" if os.path.lexists(link) else "is missing"
    return f"{link} {leads}; the champion is {wanted or 'not set'}"


def repair(db: Database, home: Home, pipeline_name: str) -> str:
    """Point the link to the champion; returns what was wrong, '' if nothing was.

    Raises:
        StorageError: the disk is full, read-only or not ours.
        DatabaseError: the database cannot be used.
    """
    wrong = disagreement(db, home, pipeline_name)

    def swap(session: Session) -> None:
        # Under the lock: of two processes that promoted, the one that writes last has read the last champion.
        lock_pipeline(session, pipeline_name)
        _point(link_path(home, pipeline_name), _wanted(session, home, pipeline_name))

    if wrong:
        with storage_errors(home.models):
            db.write(swap)
    return wrong


def update(db: Database, pipeline_name: str) -> str:
    """Repair the link, but only log what prevents it: a promotion does not fail for its link."""
    try:
        return repair(db, db.home, pipeline_name)
    except (OSError, NightgateError) as error:
        link, cause = link_path(db.home, pipeline_name), getattr(error, "reason", error)
        log.warning("%s is out of date, `nightgate reconcile` repairs it: %s", link, cause)
        return ""


def _wanted(session: Session, home: Home, pipeline_name: str) -> str | None:
    """The champion's folder, relative to the folder of the link."""
    query = "SELECT path FROM champion_timeline WHERE pipeline = :pipeline AND valid_to IS NULL"
    path = session.scalar(selecting(query, {"pipeline": pipeline_name}))
    return os.path.relpath(home.absolute(path), home.models / pipeline_name) if path is not None else None


def _point(link: Path, target: str | None) -> None:
    for left in link.parent.glob(f".{NAME}-*"):  # left by a killed process: the lock excludes a live one
        left.unlink()
    if target is None:
        link.unlink(missing_ok=True)
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    draft = link.with_name(f".{NAME}-{uuid.uuid4().hex}")
    draft.symlink_to(target, target_is_directory=True)
    draft.replace(link)
    sync(link.parent)
