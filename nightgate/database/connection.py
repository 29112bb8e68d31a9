"""Connections to the metrics database: URLs without leaks, engines for both kinds, and what goes wrong in words.

`nightgate.database.transactions` builds its transactions on these. Nothing here ever shows a password: neither a
message nor the chain of exceptions behind it.
"""

from __future__ import annotations

import logging
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, quote_plus

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.pool import NullPool
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_before_delay, wait_random_exponential

from nightgate.errors import DatabaseError
from nightgate.home import Home
from nightgate.settings import read_settings

log = logging.getLogger(__name__)
T = TypeVar("T")

LOCK_SECONDS = 5
"""Seconds that one try waits for a lock before it is repeated."""
SILENT_SECONDS = 60
"""After which a PostgreSQL server takes the locks of a transaction from a client that is gone without a word: a machine
that is lost, or stands still. Without it they would stay for as long as TCP believes in it, which is hours."""
UPGRADE = "run `nightgate db upgrade`"


# --- where it is ---


def database_url(home: Home) -> str:
    """`NIGHTGATE_DATABASE_URL`, normalised, or the SQLite file of `home`. It may hold a password: see `safe_url`.

    Raises:
        DatabaseError: the URL cannot be read, or its scheme is not one of ours.
    """
    given = read_settings().database_url.get_secret_value()
    url = parse_url(given) if given else URL.create("sqlite", database=str(home.root / "metrics.db"))
    return url.render_as_string(hide_password=False)


def parse_url(text: str) -> URL:
    """A URL with the driver that Nightgate uses: psycopg 3 or the sqlite3 of Python.

    Raises:
        DatabaseError: see `database_url`. The message never holds the URL's password.
    """
    scheme, separator, _ = text.partition("://")
    examples = "write sqlite:////path/metrics.db or postgresql://user:password@host/database"
    if not separator or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        raise DatabaseError("NIGHTGATE_DATABASE_URL is not a URL: it has no scheme before ://", next_step=examples)
    if scheme not in {"sqlite", "sqlite+pysqlite", "postgres", "postgresql", "postgresql+psycopg"}:
        raise DatabaseError(f"cannot use a database of the kind {scheme!r}", next_step=examples)
    driver = "sqlite" if scheme.startswith("sqlite") else "postgresql+psycopg"
    try:
        url = sa.make_url(text).set(drivername=driver)
    # The exception quotes what it could not read, which may be a piece of the password.
    except (ArgumentError, ValueError):
        raise DatabaseError(
            f"NIGHTGATE_DATABASE_URL cannot be read: {safe_url(text)}",
            next_step=f"{examples}, with @ : / and % of a password written as %40 %3A %2F %25",
        ) from None
    if driver == "sqlite" and (url.database or ":memory:") in {":memory:", "file::memory:"}:
        raise DatabaseError(
            "a database in memory would be gone with the process that made it",
            next_step="write sqlite:////path/metrics.db, or leave NIGHTGATE_DATABASE_URL out",
        )
    return url


def safe_url(url: str | URL) -> str:
    """`url` for logs and errors: user, host and database, but no secret."""
    if isinstance(url, str):
        scheme, separator, _ = url.partition("://")
        try:
            url = sa.make_url(url)
        except (ArgumentError, ValueError):
            return f"{scheme}://***" if separator else "***"
    if url.get_backend_name() == "sqlite":
        return url.database or "sqlite"
    kept = {key: value for key, value in url.query.items() if key in {"host", "port", "dbname", "user", "sslmode"}}
    return url.set(query=kept, drivername=url.get_backend_name()).render_as_string(hide_password=True)


def _scrub(text: str, url: URL) -> str:
    """`text` without the secrets of `url`, on one line."""
    secrets = [url.password, *(url.query.get(key) for key in ("password", "sslpassword", "passfile"))]
    for secret in secrets:
        for value in (secret,) if isinstance(secret, str) else secret or ():
            for written in {value, quote(value), quote(value, safe=""), quote_plus(value)} - {""}:
                text = text.replace(written, "***")
    return " ".join(text.split())[:500]


def make_engine(url: str | URL, *, create: bool = False, foreign_keys: bool = True) -> Engine:
    """An engine that keeps no connections. Nothing is opened yet.

    Args:
        create: make a SQLite file that is not there. Without it an absent file is an error, not an empty database.
        foreign_keys: False while migrations rebuild tables of SQLite, which would drop their children's rows.
    """
    url = parse_url(url) if isinstance(url, str) else url
    try:
        if url.get_backend_name() == "sqlite":
            target = _sqlite_target(url, create=create)
            engine = sa.create_engine(
                "sqlite://",
                creator=lambda: sqlite3.connect(target, timeout=LOCK_SECONDS, uri=True, check_same_thread=False),
                poolclass=NullPool,
                hide_parameters=True,
            )
            _prepare_sqlite(engine, foreign_keys=foreign_keys)
        else:
            defaults = {"connect_timeout": "10", "application_name": "nightgate"}
            url = url.update_query_dict({key: value for key, value in defaults.items() if key not in url.query})
            engine = sa.create_engine(url, poolclass=NullPool, hide_parameters=True)
            _prepare_postgresql(engine)
    except ModuleNotFoundError as error:
        raise DatabaseError(
            f"the PostgreSQL driver is not installed ({error.name})", next_step="pip install 'psycopg[binary]'"
        ) from None
    return engine


def sqlite_path(url: URL) -> Path | None:
    """The file of a SQLite URL; None for a server."""
    if url.get_backend_name() != "sqlite" or not url.database:
        return None
    return Path(url.database.removeprefix("file:")).expanduser().absolute()


def _sqlite_target(url: URL, *, create: bool) -> str:
    database = url.database or ""
    query = {key: str(value) for key, value in url.query.items() if key != "uri"}
    query.setdefault("mode", "rwc" if create else "rw")
    if not database.startswith("file:"):
        database = f"file:{quote(str(Path(database).expanduser().absolute()))}"
    return f"{database}?{'&'.join(f'{key}={value}' for key, value in query.items())}"


def _prepare_sqlite(engine: Engine, *, foreign_keys: bool) -> None:
    def connected(connection: Any, record: Any) -> None:
        del record
        # Python's own transactions begin deferred and too late; `began` does it instead.
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout = {LOCK_SECONDS * 1000}")
        connection.execute(f"PRAGMA foreign_keys = {'ON' if foreign_keys else 'OFF'}")
        if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            try:
                connection.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_READONLY:
                    raise
        connection.execute("PRAGMA synchronous = NORMAL")

    def began(connection: Connection) -> None:
        # A deferred transaction that reads and then writes fails at once when another has written in between,
        # without waiting for its turn: writers queue at BEGIN.
        writes = connection.get_execution_options().get("writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    sa.event.listen(engine, "connect", connected)
    sa.event.listen(engine, "begin", began)


def _prepare_postgresql(engine: Engine) -> None:
    def began(connection: Connection) -> None:
        # For this transaction only, so that a pooler in between hands on nothing of ours.
        connection.exec_driver_sql(
            f"SELECT set_config('TimeZone', 'UTC', true), set_config('lock_timeout', '{LOCK_SECONDS}s', true), "
            f"set_config('idle_in_transaction_session_timeout', '{SILENT_SECONDS}s', true)"
        )

    sa.event.listen(engine, "begin", began)


# --- what went wrong ---


@dataclass(frozen=True)
class _Trouble:
    message: str
    next_step: str
    passing: bool = False
    """It may be gone in a moment: worth another try."""


_PASSING = {"25P03", "57P01", "57P02", "57P03", "57P05", "55P03", "53300", "55006"}
"""States of PostgreSQL that another try may not meet."""


def _explain(error: BaseException | None, url: URL) -> _Trouble | None:
    """What an exception of the driver means for a user; None for any other, and for what is a mistake of ours."""
    if not isinstance(error, SQLAlchemyError | sqlite3.Error) or isinstance(error, IntegrityError):
        return None
    name = f"the database {safe_url(url)}"
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, sqlite3.Error):
        return _explain_sqlite(cause, name)
    words = _scrub(str(cause), url)
    state = getattr(cause, "sqlstate", None) or ""
    lost = isinstance(error, DBAPIError) and error.connection_invalidated
    if state == "25006":
        return _read_only(name)
    if state == "42501":
        return _Trouble(f"{name} forbids this: {words}", "grant this user the right, or use another user in the URL")
    if state in {"42P01", "42703", "3F000"}:
        return _Trouble(f"{name} lacks what this version needs: {words}", UPGRADE)
    if state in {"42P07", "42710"}:
        return _Trouble(
            f"{name} holds something else of that name: {words}", "give Nightgate a database or schema of its own"
        )
    if state == "53100":
        return _Trouble(f"the disk of {name} is full", "free some space there, then run the same command again")
    if lost or state[:2] in {"08", "40"} or state in _PASSING:
        return _Trouble(
            f"{name} is not available: {words}", "look at its server, then run the same command again", True
        )
    refused = ("authentication failed", "no password supplied", "does not exist", "pg_hba.conf", "permission denied")
    if state[:2] in {"28", "3D"} or any(text in words for text in refused):
        return _Trouble(
            f"{name} refuses the connection: {words}", "check user, password and database in NIGHTGATE_DATABASE_URL"
        )
    if type(cause).__name__ == "ProgrammingError" and not state:
        return _Trouble(f"{name} cannot be asked: {words}", "check the options of NIGHTGATE_DATABASE_URL")
    if type(cause).__name__ in {"OperationalError", "ConnectionTimeout", "InterfaceError"} and not state:
        return _Trouble(
            f"{name} cannot be reached: {words}", "start its server or correct NIGHTGATE_DATABASE_URL", True
        )
    return None


def _explain_sqlite(cause: sqlite3.Error, name: str) -> _Trouble | None:
    code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
    if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        return _Trouble(
            f"{name} is locked by another process", "end what holds it, then run the same command again", True
        )
    if code in {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM}:
        return _read_only(name)
    if code == sqlite3.SQLITE_CANTOPEN:
        step = "make its folder and give this user the right to write there, or correct NIGHTGATE_DATABASE_URL"
        return _Trouble(f"{name} cannot be opened", step, True)
    if code in {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT}:
        return _Trouble(
            f"{name} is not a SQLite database, or it is damaged: {cause}",
            f"restore it from a backup, or move it away and {UPGRADE} for an empty one",
        )
    if code == sqlite3.SQLITE_FULL:
        return _Trouble(f"the disk of {name} is full", "free some space there, then run the same command again")
    if code == sqlite3.SQLITE_IOERR:
        return _Trouble(
            f"{name} cannot be read or written: {cause}",
            "look at the disk that holds it: where it is full, free some space there and run the same command again",
        )
    if "no such table" in str(cause) or "no such column" in str(cause):
        return _Trouble(f"{name} lacks what this version needs: {cause}", UPGRADE)
    if "already exists" in str(cause):
        return _Trouble(f"{name} holds something else of that name: {cause}", "give Nightgate a database of its own")
    return None


def _read_only(name: str) -> _Trouble:
    return _Trouble(f"{name} is read-only", "give this user the right to write it, or correct NIGHTGATE_DATABASE_URL")


@contextmanager
def in_words(url: URL, patience: float = 0) -> Iterator[None]:
    """Turn errors of the driver into a DatabaseError that says what to do, and for how long it was tried."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error) as error:
        trouble = _explain(error, url)
        if trouble is None:
            raise
        waited = f" (tried for {patience:.0f} s)" if trouble.passing and patience >= 1 else ""
        # From None: a driver's own text may quote the connection string.
        raise DatabaseError(trouble.message + waited, next_step=trouble.next_step) from None


def repeat(url: URL, patience: float, work: Callable[[], T]) -> T:
    """The result of `work()`, which is retried with back-off for up to `patience` seconds after errors that may pass.

    Raises:
        DatabaseError: the last error, or the first one that does not pass.
    """

    def passing(error: BaseException) -> bool:
        trouble = _explain(error, url)
        return trouble is not None and trouble.passing

    def tell(state: RetryCallState) -> None:
        trouble = _explain(state.outcome.exception(), url) if state.outcome else None
        if trouble is not None:
            # The first four tries take less than a second together.
            level = logging.WARNING if state.attempt_number > 4 else logging.DEBUG
            log.log(level, "%s; trying again", trouble.message)

    # Jitter: clients that were refused together should not come back together.
    retrying = Retrying(
        retry=retry_if_exception(passing),
        wait=wait_random_exponential(multiplier=0.05, min=0.025, max=2),
        stop=stop_before_delay(patience),
        before_sleep=tell,
        reraise=True,
    )
    with in_words(url, patience):
        return retrying(work)
