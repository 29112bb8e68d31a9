"""What errors of the drivers mean for a user: by SQLSTATE of PostgreSQL, by result code of SQLite."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import NamedTuple

UPGRADE = "run `nightgate db upgrade`"


class Failure(NamedTuple):
    message: str
    """With {name} for the database and {detail} for the driver's own words."""
    next_step: str
    transient: bool = False
    """It may pass, so that another try makes sense."""


_AGAIN = "then run the same command again"
_READ_ONLY = Failure("{name} is read-only", "give this user the right to write it, or correct NIGHTGATE_DATABASE_URL")
_FULL = Failure("the disk of {name} is full", f"free some space there, {_AGAIN}")
_OUTDATED = Failure("{name} lacks a table or column of this version: {detail}", UPGRADE)
_OCCUPIED = Failure(
    "{name} has another object of that name: {detail}", "give Nightgate a database or schema of its own"
)
_UNAVAILABLE = Failure("{name} is not available: {detail}", f"check its server, {_AGAIN}", True)
_REFUSED = Failure(
    "{name} refuses the connection: {detail}", "check user, password and database in NIGHTGATE_DATABASE_URL"
)
_BUSY = Failure("{name} is locked by another process", f"end the process that holds it, {_AGAIN}", True)
_MISSING = Failure(
    "{name} cannot be opened",
    "make its folder and give this user the right to write there, or correct NIGHTGATE_DATABASE_URL",
    True,
)
_FORBIDDEN = Failure(
    "{name} cannot be opened by this user, who may not read it, or not write to the files beside it: {detail}",
    "give this user the right to read the file and to write to its folder",
)
_DAMAGED = Failure(
    "{name} is not a SQLite database, or it is damaged: {detail}",
    f"restore it from a backup, or move it away and {UPGRADE} for an empty one",
)

_POSTGRESQL_FAILURES = {
    "25006": _READ_ONLY,
    "42501": Failure(
        "{name} forbids this: {detail}",
        "use another user in the URL; `nightgate db grant-reader ROLE` lets a role read",
    ),
    "53100": _FULL,
    **dict.fromkeys(("42P01", "42703", "3F000"), _OUTDATED),
    **dict.fromkeys(("42P07", "42710"), _OCCUPIED),
    **dict.fromkeys(("25P03", "57P01", "57P02", "57P03", "57P05", "55P03", "53300", "55006"), _UNAVAILABLE),
}
"""By SQLSTATE."""
_SQLITE_FAILURES = {
    sqlite3.SQLITE_BUSY: _BUSY,
    sqlite3.SQLITE_LOCKED: _BUSY,
    sqlite3.SQLITE_READONLY: _READ_ONLY,
    sqlite3.SQLITE_PERM: _READ_ONLY,
    sqlite3.SQLITE_NOTADB: _DAMAGED,
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_FULL: _FULL,
    sqlite3.SQLITE_CANTOPEN: _MISSING,
    sqlite3.SQLITE_IOERR: Failure(
        "{name} cannot be read or written: {detail}", f"check its disk: if it is full, free some space there, {_AGAIN}"
    ),
}
"""By primary result code."""
_FORBIDDING = {
    *(sqlite3.SQLITE_READONLY_DIRECTORY, sqlite3.SQLITE_READONLY_RECOVERY),
    *(sqlite3.SQLITE_READONLY_CANTINIT, sqlite3.SQLITE_READONLY_CANTLOCK),
}
"""Extended result codes: a user who may only read meets files of a writer, or of one that was killed."""


def _is_forbidden(path: Path | None) -> bool:
    """Whether the SQLite file is there and cannot be opened: waiting does not help."""
    try:
        return path is not None and (path.is_dir() or (path.exists() and not os.access(path.parent, os.W_OK)))
    except OSError as error:
        return isinstance(error, PermissionError)


def postgresql_failure(cause: BaseException | None, detail: str, *, lost: bool) -> Failure | None:
    """What an error of psycopg means; None: a programming error.

    Args:
        detail: the driver's own words, without secrets.
        lost: the connection broke.
    """
    state = getattr(cause, "sqlstate", None) or ""
    if state in _POSTGRESQL_FAILURES:
        return _POSTGRESQL_FAILURES[state]
    if lost or state[:2] in {"08", "40"}:
        return _UNAVAILABLE
    refusals = (
        *("authentication failed", "no password supplied", "does not exist", "pg_hba.conf", "permission denied"),
        *("is not permitted to log in", "not currently accepting connections"),
    )
    if state[:2] in {"28", "3D"} or any(text in detail.lower() for text in refusals):
        return _REFUSED
    kind = type(cause).__name__
    if kind == "ProgrammingError" and not state:
        return Failure("{name} cannot be queried: {detail}", "check the options of NIGHTGATE_DATABASE_URL")
    if kind in {"OperationalError", "ConnectionTimeout", "InterfaceError"} and not state:
        return Failure("{name} cannot be reached: {detail}", "start its server or correct NIGHTGATE_DATABASE_URL", True)
    return None


def sqlite_failure(cause: sqlite3.Error, detail: str, path: Path | None) -> Failure | None:
    """What an error of SQLite on the file at `path` means; None: a programming error."""
    code = getattr(cause, "sqlite_errorcode", 0)
    if code in _FORBIDDING or (code & 0xFF == sqlite3.SQLITE_CANTOPEN and _is_forbidden(path)):
        return _FORBIDDEN
    if code & 0xFF in _SQLITE_FAILURES:
        return _SQLITE_FAILURES[code & 0xFF]
    if "no such table" in detail or "no such column" in detail:
        return _OUTDATED
    return _OCCUPIED if "already exists" in detail else None
