"""Copy the metrics database while nights run: `nightgate db backup FILE`."""

from __future__ import annotations

import errno
import os
import shlex
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Literal

from sqlalchemy.engine import URL

from nightgate.database import earlier
from nightgate.database.connection import (
    database_errors,
    make_engine,
    missing_file,
    parse_url,
    retry,
    sqlite_path,
    unchanged,
)
from nightgate.database.transactions import PATIENCE
from nightgate.durable_files import replacing
from nightgate.errors import ConfigurationError, DatabaseError, output_errors


def back_up(url: str, target: Path) -> None:
    """Copy the SQLite database at `url` to the new file `target`, readable by its owner alone, and verify the copy.

    The copy is one state of the database, in one file.

    Raises:
        ConfigurationError: `target` exists, or its folder does not.
        DatabaseError: there is no database, it stays locked, or it is damaged; no file is left behind.
        StorageError: the disk is full, read-only or not ours.
    """
    parsed = parse_url(url)
    source = sqlite_path(parsed)
    assert source is not None, "a server's database is copied by `dump_command`"
    if missing_file(parsed):
        raise DatabaseError(f"there is no database at {source}", next_step="check NIGHTGATE_HOME")
    with output_errors(target):
        if target.exists():
            raise ConfigurationError(f"{target} exists already", next_step="name a file that does not exist")
        if not target.parent.is_dir():
            raise ConfigurationError(f"there is no folder {target.parent}", next_step="make it, or name another")
    _copy_verified(parsed, source, target)


def earlier_copy(url: str) -> Path | None:
    """The file beside a SQLite database to which an upgrade that moves it copies it first; None for a server."""
    path = sqlite_path(parse_url(url))
    return path and path.with_name(f"{path.stem}-{earlier.REVISION}{path.suffix}")


def keep_earlier(url: str) -> None:
    """Copy a SQLite database that is about to be moved, in place of the copy that a failed try left.

    Raises:
        DatabaseError, StorageError: as `back_up`.
    """
    parsed = parse_url(url)
    if (source := sqlite_path(parsed)) and (copy := earlier_copy(url)):
        _copy_verified(parsed, source, copy)


def _copy_verified(parsed: URL, source: Path, target: Path) -> None:
    with output_errors(target), database_errors(parsed), replacing(target) as draft:
        draft.touch(mode=0o600)
        retry(parsed, PATIENCE, partial(_copy, parsed, draft))
        with closing(sqlite3.connect(draft)) as copy:
            damage = damage_of(copy.execute, "integrity_check")
        if damage:
            raise DatabaseError(f"the database {source} is damaged: {damage}", next_step="nightgate doctor --deep")


def dump_command(url: str, target: Path) -> str:
    """The command that copies a PostgreSQL database, without its password; '' for SQLite."""
    parsed = parse_url(url)
    if sqlite_path(parsed):
        return ""
    query = {key: value for key, value in parsed.query.items() if key not in {"password", "sslpassword"}}
    # Not `set`, which keeps a password that is None.
    bare = URL.create("postgresql", parsed.username, None, parsed.host, parsed.port, parsed.database, query)
    address = bare.render_as_string(hide_password=False)
    return shlex.join(["pg_dump", "--format=custom", f"--file={target}", address])


def _copy(url: URL, target: Path) -> None:
    with unchanged(url), closing(make_engine(url).raw_connection()) as connection:
        source: sqlite3.Connection = connection.driver_connection  # type: ignore[assignment]
        # In a transaction of its own, so that a lock is an error after the usual wait: `backup` would wait for ever.
        source.execute("BEGIN")
        source.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
        with closing(sqlite3.connect(target)) as copy:
            try:
                source.backup(copy)
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_FULL:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
                raise
            # One file: in WAL mode it would need others beside it, even to be read.
            copy.execute("PRAGMA journal_mode = DELETE")


def damage_of(execute: Callable[[str], Iterable[Any]], check: Literal["integrity_check", "quick_check"]) -> str:
    """What SQLite finds wrong with a file, by queries on it; '' if it is whole."""
    if flaws := [str(line) for (line,) in execute(f"PRAGMA {check}(3)") if line != "ok"]:
        return "; ".join(flaws)
    orphans = [str(row[0]) for row in execute("PRAGMA foreign_key_check")]
    return f"{len(orphans)} rows without their parent, in {', '.join(sorted(set(orphans)))}" if orphans else ""
