"""Connections to the metrics database: its URL, engines for SQLite and PostgreSQL, retries and readable errors.

No message and no chained exception contains a password.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.pool import NullPool, QueuePool
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_before_delay, wait_random_exponential

from nightgate.database.failures import Failure, postgresql_failure, sqlite_failure
from nightgate.database_urls import read_url, safe_url, without_secrets
from nightgate.durable_files import user_path
from nightgate.errors import DatabaseError
from nightgate.home import Home
from nightgate.settings import read_settings

log = logging.getLogger(__name__)
T = TypeVar("T")

LOCK_SECONDS = 5
"""Seconds that one try waits for a lock."""
IDLE_SECONDS = 60
"""Seconds after which PostgreSQL ends a silent client's transaction; its locks would last for hours otherwise."""
LINGER = 1.0
"""Seconds without a transaction after which the connection is closed. Opening one takes SQLite 3 ms of CPU for its
views and its WAL file, and PostgreSQL 8 ms with slow first queries; a night has 50 transactions in a dozen bursts."""


# --- URLs ---


def database_url(home: Home) -> str:
    """`NIGHTGATE_DATABASE_URL`, normalised, or the SQLite file of `home`. It may hold a password: see `safe_url`.

    Raises:
        DatabaseError: the URL is invalid, or its scheme is not supported.
    """
    given = read_settings().database_url.get_secret_value()
    url = parse_url(given) if given else URL.create("sqlite", database=str(home.root / "metrics.db"))
    return url.render_as_string(hide_password=False)


def parse_url(text: str) -> URL:
    """A URL with the driver that Nightgate uses: psycopg 3 or the sqlite3 of Python.

    Raises:
        DatabaseError: the URL is invalid, or its scheme is not supported. The message holds no password.
    """
    scheme, separator, _ = text.partition("://")
    examples = "write sqlite:////path/metrics.db or postgresql://user:password@host/database"
    if not separator or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        raise DatabaseError("NIGHTGATE_DATABASE_URL is not a URL: it has no scheme before ://", next_step=examples)
    if scheme not in {"sqlite", "sqlite+pysqlite", "postgres", "postgresql", "postgresql+psycopg"}:
        raise DatabaseError(f"NIGHTGATE_DATABASE_URL has the unsupported scheme {scheme!r}", next_step=examples)
    driver = "sqlite" if scheme.startswith("sqlite") else "postgresql+psycopg"
    try:
        url = read_url(text).set(drivername=driver)
    # From None: the exception quotes the URL, with parts of the password.
    except (ArgumentError, ValueError):
        raise DatabaseError(
            f"NIGHTGATE_DATABASE_URL cannot be read: {safe_url(text)}",
            next_step=f"{examples}, with @ : / ? # % of a password written as %40 %3A %2F %3F %23 %25",
        ) from None
    if driver == "sqlite" and (url.database or ":memory:") in {":memory:", "file::memory:"}:
        raise DatabaseError(
            "NIGHTGATE_DATABASE_URL names a SQLite database in memory, which ends with its process",
            next_step="write sqlite:////path/metrics.db, or unset NIGHTGATE_DATABASE_URL",
        )
    return url


def make_engine(url: str | URL, *, create: bool = False, keep: bool = False, foreign_keys: bool = True) -> Engine:
    """An engine that closes each connection after its use. Nothing is opened yet.

    Args:
        create: create a missing SQLite file. Otherwise a missing file is an error.
        keep: keep a connection for the next use, until the engine is disposed of.
        foreign_keys: False while migrations rebuild tables of SQLite, which would delete rows of their children.
    """
    parsed = parse_url(url) if isinstance(url, str) else url
    # Without spaces: JSON holds most of what a night stores.
    as_json = partial(json.dumps, separators=(",", ":"))
    options: dict[str, Any] = {"hide_parameters": True, "json_serializer": as_json}
    path = sqlite_path(parsed)
    # A file that this user cannot write may be opened as one that does not change, which has to be looked at each time.
    if keep and (path is None or os.access(path.parent, os.W_OK)):
        options |= {"poolclass": QueuePool, "pool_size": 1, "max_overflow": -1}
    else:
        options |= {"poolclass": NullPool}
    try:
        if parsed.get_backend_name() == "sqlite":
            target = _sqlite_target(parsed, create=create)

            def connect() -> sqlite3.Connection:
                # Only now: whether others may be writing changes with time.
                immutable = "&immutable=1" if unchanging(parsed) else ""
                uri = f"{target}{immutable}"
                return sqlite3.connect(uri, timeout=LOCK_SECONDS, uri=True, check_same_thread=False)

            engine = sa.create_engine(
                "sqlite://",
                creator=connect,
                **options,
            )
            _prepare_sqlite(engine, foreign_keys=foreign_keys)
        else:
            defaults = {"connect_timeout": "10", "application_name": "nightgate"}
            added = {key: value for key, value in defaults.items() if key not in parsed.query}
            engine = sa.create_engine(parsed.update_query_dict(added), **options)
            _prepare_postgresql(engine)
    except ModuleNotFoundError as error:
        raise DatabaseError(
            f"the PostgreSQL driver is not installed ({error.name})", next_step="pip install 'nightgate[postgres]'"
        ) from None
    return engine


def sqlite_path(url: URL) -> Path | None:
    """The file of a SQLite URL; None for a server."""
    if url.get_backend_name() != "sqlite" or not url.database:
        return None
    return user_path(url.database.removeprefix("file:")).absolute()


def missing_file(url: URL) -> Path | None:
    """The file of a SQLite URL, if there is none; where this user may not look, opening it reports why."""
    path = sqlite_path(url)
    try:
        return path if path and not path.exists() else None
    except PermissionError:
        return None


def unchanging(url: URL) -> tuple[int, int] | None:
    """Time and size of a SQLite file that this user cannot write and that no one has open; None for any other database.

    SQLite reads a file in WAL mode only with files beside it, which such a user cannot make, or as immutable. A read as
    immutable is valid if this value is the same before and after it.
    """
    path = sqlite_path(url)
    if path is None or os.access(path.parent, os.W_OK) or not os.access(path, os.R_OK):
        return None
    if Path(f"{path}-wal").exists():
        return None
    found = path.stat()
    return found.st_mtime_ns, found.st_size


def _sqlite_target(url: URL, *, create: bool) -> str:
    database = url.database or ""
    query = {key: str(value) for key, value in url.query.items() if key != "uri"}
    query.setdefault("mode", "rwc" if create else "rw")
    if not database.startswith("file:"):
        database = f"file:{quote(str(user_path(database).absolute()))}"
    return f"{database}?{'&'.join(f'{key}={value}' for key, value in query.items())}"


def _prepare_sqlite(engine: Engine, *, foreign_keys: bool) -> None:
    def connected(connection: Any, record: Any) -> None:
        del record
        # Python's own transactions begin deferred and late; `began` issues BEGIN instead.
        connection.isolation_level = None
        connection.execute(f"PRAGMA foreign_keys = {'ON' if foreign_keys else 'OFF'}")
        if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            try:
                connection.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_READONLY:
                    raise
        connection.execute("PRAGMA synchronous = NORMAL")

    def began(connection: Connection) -> None:
        # A deferred transaction that reads and then writes fails at once if another wrote in between. Writers
        # therefore queue at BEGIN.
        writes = connection.get_execution_options().get("writes")
        # Of the driver itself: SQLAlchemy takes ten times as long.
        connection.connection.cursor().execute("BEGIN IMMEDIATE" if writes else "BEGIN")

    sa.event.listen(engine, "connect", connected)
    sa.event.listen(engine, "begin", began)


def _prepare_postgresql(engine: Engine) -> None:
    def began(connection: Connection) -> None:
        # For this transaction only, so that a connection pooler passes on none of these settings. Compiling a query of
        # 2 ms takes 100 ms.
        connection.exec_driver_sql(
            "SELECT set_config('jit', 'off', true), "
            f"set_config('TimeZone', 'UTC', true), set_config('lock_timeout', '{LOCK_SECONDS}s', true), "
            f"set_config('idle_in_transaction_session_timeout', '{IDLE_SECONDS}s', true)"
        )

    def taken(connection: Any, *_: object) -> None:
        # After a reading transaction SQLAlchemy would ask for READ WRITE, also of a database that is read-only.
        connection.read_only = None

    sa.event.listen(engine, "begin", began)
    sa.event.listen(engine, "checkout", taken)


class IdleConnection:
    """Closes the connection of an engine that no transaction has used for `LINGER` seconds."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._num_ended = 0
        self._has_closer = False

    def begins(self) -> None:
        """A transaction has ended."""
        with self._lock:
            self._num_ended += 1
            if self._has_closer:
                return
            self._has_closer = True
        threading.Thread(target=self._close_later, name="nightgate-disconnect", daemon=True).start()

    def stop(self) -> None:
        """Wait no longer."""
        self._stopped.set()

    def _close_later(self) -> None:
        while True:
            before = self._num_ended
            self._stopped.wait(LINGER)
            with self._lock:
                if self._num_ended == before or self._stopped.is_set():
                    self._has_closer = False
                    break
        self._engine.pool.dispose()


# --- failures ---


def _explain(error: BaseException | None, url: URL) -> Failure | None:
    """What an exception of the driver means for a user; None for other exceptions and for programming errors."""
    if not isinstance(error, SQLAlchemyError | sqlite3.Error) or isinstance(error, IntegrityError):
        return None
    cause = error.orig if isinstance(error, DBAPIError) else error
    detail = without_secrets(str(cause), url)
    if isinstance(cause, sqlite3.Error):
        failure = sqlite_failure(cause, detail, sqlite_path(url))
    else:
        lost = isinstance(error, DBAPIError) and error.connection_invalidated
        failure = postgresql_failure(cause, detail, lost=lost)
    name = f"the database {safe_url(url)}"
    return failure and failure._replace(message=failure.message.format(name=name, detail=detail))


@contextmanager
def database_errors(url: URL, patience: float = 0) -> Iterator[None]:
    """Turn errors of the driver into a DatabaseError with a next step and the time spent on retries."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error) as error:
        failure = _explain(error, url)
        if failure is None:
            raise
        waited = f" (tried for {patience:.0f} s)" if failure.transient and patience >= 1 else ""
        # From None: a driver's own text may quote the connection string.
        raise DatabaseError(failure.message + waited, next_step=failure.next_step) from None


@contextmanager
def unchanged(url: URL) -> Iterator[None]:
    """Check that a file that was read as immutable has not changed meanwhile.

    Raises:
        sqlite3.OperationalError: it has, and another try reads the new content.
    """
    before = unchanging(url)
    try:
        yield
    finally:
        if before is not None and before != unchanging(url):
            error = sqlite3.OperationalError("the file was written while it was read")
            error.sqlite_errorcode = sqlite3.SQLITE_BUSY
            raise error


def retry(url: URL, patience: float, work: Callable[[], T]) -> T:
    """The result of `work()`, retried with back-off for up to `patience` seconds after transient errors.

    Raises:
        DatabaseError: the last transient error, or the first other one.
    """

    def transient(error: BaseException) -> bool:
        failure = _explain(error, url)
        return failure is not None and failure.transient

    def log_retry(state: RetryCallState) -> None:
        failure = _explain(state.outcome.exception(), url) if state.outcome else None
        if failure is not None:
            # The first four tries take less than a second together.
            level = logging.WARNING if state.attempt_number > 4 else logging.DEBUG
            log.log(level, "%s; trying again", failure.message)

    # Jitter, so that clients that failed together do not retry together.
    retrying = Retrying(
        retry=retry_if_exception(transient),
        wait=wait_random_exponential(multiplier=0.05, min=0.025, max=2),
        stop=stop_before_delay(patience),
        before_sleep=log_retry,
        reraise=True,
    )
    with database_errors(url, patience):
        return retrying(work)
