"""The checks of `nightgate doctor` on what is stored: whether database and home are whole and agree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from humanize import naturalsize
from sqlalchemy.orm import Session

from nightgate.database.backup import damage_of
from nightgate.database.transactions import Database
from nightgate.database.views import selecting
from nightgate.errors import DatabaseError, ModelError, NightgateError
from nightgate.gate.wording import listed
from nightgate.home import Home, find_home
from nightgate.models.version_folder import read_manifest, verify_version
from nightgate.operations.database_checks import RESTORE, opened
from nightgate.operations.findings import Finding

SHOWN = 3
"""Names in a finding; others are counted."""
READ_AT_ONCE = {"database file": 50_000_000, "champions": 500_000_000}
"""Bytes that are always read: some 0.4 s for SQLite's checks, as much for SHA-256."""
DEEP = "nightgate doctor --deep"
VersionRows = Sequence[sa.Row[Any]]


def examine(*, deep: bool = False) -> Iterator[Finding]:
    """Compare database and home with themselves and with each other.

    Args:
        deep: read every byte of the database file and of the champions, also beyond READ_AT_ONCE.

    Raises:
        NightgateError: the database cannot be read to its end.
    """
    try:
        home = find_home()
        db = opened(home)
    except NightgateError:
        return  # a finding of `database_checks`
    if db is None:
        return
    with db:
        file = _database_file(db, deep) if db.dialect == "sqlite" else None  # a server checks its own
        if file:
            yield file
        if file and file.status == "problem":
            return  # other queries may fail
        if home is None or db.home_id() not in {None, home.id}:
            return
        folders = sorted(folder for folder in home.models.glob("*/v[0-9]*") if folder.is_dir())
        runs = sorted(folder for folder in home.runs.glob("*") if folder.is_dir())
        # After the folders: a run has its row first, so that a night that begins now is known.
        rows = db.read(_versions)
        yield from _champions(home, rows, deep)
        yield from _without_folder(home, rows)
        yield from _without_row(db, home, rows, folders, runs)
        if names := db.read(_half_forgotten):
            remedy = "give the same `nightgate forget PIPELINE --id ID` again"
            yield Finding("problem", "forgotten rows", f"{listed(names, SHOWN)}: removal was interrupted", remedy)


def _half_forgotten(session: Session) -> list[str]:
    """Pipelines with an id whose rows are not gone everywhere, and who asked for it."""
    query = selecting("SELECT * FROM forgotten_rows WHERE finished_at IS NULL ORDER BY begun_at")
    found = session.execute(query)
    return [f"{row.pipeline}, begun {row.begun_at:%Y-%m-%d %H:%M} UTC by {row.forgotten_by}" for row in found]


def _versions(session: Session) -> VersionRows:
    query = selecting(
        "SELECT pipeline, run_id, path, size_bytes, files_removed_at, status FROM model_versions "
        "ORDER BY pipeline, version"
    )
    return session.execute(query).all()


def _database_file(db: Database, deep: bool) -> Finding:
    """Whether SQLite finds its file whole."""
    size = Path(db.name).stat().st_size
    if size > READ_AT_ONCE["database file"] and not deep:
        return Finding("ok", "database file", f"{naturalsize(size)}, too large to read each time", DEEP)
    try:
        damage = db.read(lambda session: damage_of(session.connection().exec_driver_sql, "quick_check"))
    except DatabaseError as error:
        damage = error.reason
    if damage:
        remedy = f"restore it from a backup ({RESTORE})"
        return Finding("problem", "database file", f"{db.name} is damaged: {damage}", remedy)
    return Finding("ok", "database file", f"{naturalsize(size)}, whole: pages, constraints, foreign keys")


def _champions(home: Home, rows: VersionRows, deep: bool) -> Iterator[Finding]:
    """Whether the folder of each champion is that of its row, with every file as it was registered."""
    verified = []
    # A missing folder is found with those of other versions.
    champions = [row for row in rows if row.status == "champion" and home.absolute(row.path).is_dir()]
    size = sum(row.size_bytes or 0 for row in champions)
    is_read = deep or size <= READ_AT_ONCE["champions"]
    for row in champions:
        folder = home.absolute(row.path)
        try:
            manifest = verify_version(folder, contents=is_read)
        except ModelError as error:
            yield Finding("problem", "champions", f"{row.pipeline}: {error.reason}", error.next_step)
            continue
        if manifest["run_id"] == row.run_id:
            verified.append(row)
        else:
            found = f"{row.pipeline}: {folder} is of run {manifest['run_id']}, in the database of run {row.run_id}"
            yield Finding("problem", "champions", found, f"restore home and database of the same time ({RESTORE})")
    if verified:
        what = f"SHA-256 of {naturalsize(size)} is right" if is_read else "names and sizes of their files are right"
        names = listed([row.pipeline for row in verified], SHOWN)
        yield Finding("ok", "champions", f"{names}: {what}", "" if is_read else DEEP)


def _without_folder(home: Home, rows: VersionRows) -> Iterator[Finding]:
    kept = [row.path for row in rows if row.files_removed_at is None]
    if missing := [path for path in kept if not home.absolute(path).is_dir()]:
        remedy = f"restore them from a backup ({RESTORE}), or set NIGHTGATE_HOME to the folder that other workers share"
        yield Finding("problem", "versions", f"{home.root} lacks {listed(missing, SHOWN)} of the database", remedy)
    else:
        yield Finding("ok", "versions", f"{len(kept)} with their folders")


def _without_row(
    db: Database, home: Home, rows: VersionRows, folders: Sequence[Path], runs: Sequence[Path]
) -> Iterator[Finding]:
    """Folders that the database does not have: left by a crash, or newer than the database."""
    paths = {row.path for row in rows}
    strays = {folder: _run_of(folder) for folder in folders if home.relative(folder) not in paths}
    known = db.read(_known_runs)
    left = [home.relative(folder) for folder, run_id in strays.items() if run_id in known]
    newer = [home.relative(folder) for folder, run_id in strays.items() if run_id not in known]
    newer += [home.relative(folder) for folder in runs if folder.name not in known]
    if left:
        found = f"{listed(left, SHOWN)} without a row: its registration was killed"
        remedy = "the next night removes it, or moves it to orphans/ if it holds the only copy of its weights"
        yield Finding("warning", "versions", found, remedy)
    if newer:
        unknown = listed(newer, SHOWN)
        found = f"the home holds {unknown}, of runs that the database does not have: it is older than the home"
        remedy = f"restore home and database of the same time ({RESTORE}); to go on with these, move the folders away"
        yield Finding("problem", "database age", found, remedy)


def _run_of(folder: Path) -> str:
    """The run that made the version in a folder; '' if its manifest cannot be read."""
    try:
        return str(read_manifest(folder)["run_id"])
    except (ModelError, KeyError):
        return ""


def _known_runs(session: Session) -> set[str]:
    query = "SELECT run_id FROM nightly_runs UNION ALL SELECT 'seeds-' || study_id FROM seed_studies"
    return {*session.scalars(sa.text(query))}
