"""The metrics database: transactions with retries, checks when it is opened, and its migrations.

SQLite by default (`metrics.db` in the home), PostgreSQL by `NIGHTGATE_DATABASE_URL`. A transaction is a function of a
session, so that it can be retried while the database is locked or briefly unavailable. Transactions that follow each
other share a connection. None is kept between those that are minutes apart: SQLite's WAL file would stay beside the
database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from nightgate.database import earlier, schema
from nightgate.database.connection import (
    IdleConnection,
    database_errors,
    database_url,
    make_engine,
    missing_file,
    parse_url,
    retry,
    sqlite_path,
    unchanged,
)
from nightgate.database.failures import UPGRADE
from nightgate.database.views import readers_kept
from nightgate.database_urls import safe_url
from nightgate.errors import DatabaseError, storage_errors
from nightgate.home import Home

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")

PATIENCE = 30.0
"""Seconds for which a transaction is retried."""
ANALYSED_ROWS = 400
"""Rows of an index that SQLite looks at for its statistics: a millisecond for two years of 50 pipelines."""
_CHANGED = """
SELECT relname FROM pg_stat_user_tables
WHERE schemaname = current_schema() AND relname = ANY(:tables) AND n_mod_since_analyze > 50 + n_live_tup / 50
"""
_MIGRATION_LOCK = 7_203_150_315


# --- transactions ---


class Database:
    """The metrics database, ready for transactions."""

    def __init__(self, home: Home, url: URL, *, patience: float = PATIENCE) -> None:
        self.home = home
        self.patience = patience
        self._url = url
        self._engine = make_engine(url, keep=True)
        self._known: dict[Any, Any] = {}
        """What committed transactions have found that never changes, for those after them: see `slice_ids`."""
        self._idle = IdleConnection(self._engine)
        self._writer = self._engine.execution_options(writes=True)
        # By default each query of a PostgreSQL transaction sees what others have committed by then.
        snapshot = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        self._reader = self._engine.execution_options(**snapshot if self.dialect == "postgresql" else {})

    @classmethod
    def open(
        cls,
        home: Home,
        url: str | None = None,
        *,
        check: bool = True,
        any_home: bool = False,
        patience: float = PATIENCE,
    ) -> Database:
        """Open the database at `url`, or the one that the environment names.

        Args:
            check: require this version's revision, and paths relative to `home`.
            any_home: skip the check of the home, for readers of metrics that use no files.

        Raises:
            DatabaseError: it is missing, unreachable, another program's, at another revision or of another home.
        """
        database = cls(home, parse_url(url or database_url(home)), patience=patience)
        try:
            if check:
                database._check_revision()
                if not any_home:
                    database._check_home()
        except BaseException:
            database.close()
            raise
        return database

    def __repr__(self) -> str:
        return f"Database({self.name})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def name(self) -> str:
        """The URL without secrets."""
        return safe_url(self._url)

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`."""
        return self._engine.dialect.name

    def write(self, work: Callable[[Session], T]) -> T:
        """Run `work` in one transaction and commit. A retry runs it again, so it must have no side effects.

        `work` must be idempotent, for example by an id of its own: a connection lost during the commit leaves
        unknown whether it took place.

        Raises:
            DatabaseError: the database stays locked or unavailable, or refuses.
        """
        return self._transaction(self._writer, work)

    def read(self, work: Callable[[Session], T]) -> T:
        """Run `work` in one read-only transaction that sees a single state of the database.

        Raises:
            DatabaseError: the database stays locked or unavailable, or refuses.
        """
        return self._transaction(self._reader, work)

    def frame(self, query: str | sa.Select[Any], parameters: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """The rows of a query with parameters written as `:name`."""
        import pandas as pd

        statement = sa.text(query) if isinstance(query, str) else query
        return self.read(lambda session: pd.read_sql_query(statement, session.connection(), params=parameters))

    def gather_statistics(self) -> None:
        """Let the engine count the rows by which it plans queries, where that takes milliseconds.

        SQLite looks at a few hundred rows of each index. PostgreSQL samples the tables of which a fiftieth has changed:
        it does so itself, but only some time after a tenth has.

        Raises:
            DatabaseError: the database stays locked or unavailable.
        """

        def work(session: Session) -> None:
            if self.dialect == "sqlite":
                session.execute(sa.text(f"PRAGMA analysis_limit = {ANALYSED_ROWS}"))
                session.execute(sa.text("ANALYZE"))
                return
            changed = session.scalars(sa.text(_CHANGED), {"tables": list(schema.METADATA.tables)}).all()
            if changed:
                session.execute(sa.text(f"ANALYZE (SKIP_LOCKED) {', '.join(changed)}"))

        self.disconnect()  # PostgreSQL counts the changes of a connection at its end, or once a second
        self.write(work)

    def is_blank(self) -> bool:
        """Whether it has no tables: a SQLite file that is missing or empty, or an empty database of a server.

        Raises:
            DatabaseError: it cannot be read.
        """
        if missing_file(self._url):
            return True
        return self.read(lambda session: not sa.inspect(session.connection()).get_table_names())

    def close(self) -> None:
        self._idle.stop()
        self._engine.dispose()

    def disconnect(self) -> None:
        """Close the connection that no transaction uses, which otherwise happens soon after the last one."""
        self._engine.pool.dispose()

    def _transaction(self, engine: Engine, work: Callable[[Session], T]) -> T:
        def once() -> T:
            try:
                known = dict(self._known)
                with unchanged(self._url), Session(engine, expire_on_commit=False, info={"known": known}) as session:
                    with session.begin():
                        found = work(session)
                    self._known = session.info["known"]
                return found
            finally:
                self._idle.begins()

        return retry(self._url, self.patience, once)

    def _check_revision(self) -> None:
        if path := missing_file(self._url):
            raise DatabaseError(f"there is no database at {path}", next_step=UPGRADE)
        revision, ours = self.read(lambda session: _state(session.connection(), self.name))
        if revision != schema.HEAD:
            raise _wrong_revision(self._url, revision, ours=ours)

    def home_id(self) -> str | None:
        """The id of the home that its paths are relative to; None: no night has been recorded."""
        found: str | None = self.read(
            lambda session: session.scalar(sa.text("SELECT value FROM reading WHERE key = 'home_id'"))
        )
        return found

    def _check_home(self) -> None:
        known = self.home_id()
        if known is None:
            with suppress(IntegrityError):  # another worker recorded its home first
                self.write(lambda session: session.add(schema.Setting(key="home_id", value=self.home.id)))
            known = self.home_id()
        if known != self.home.id:
            raise DatabaseError(
                f"the database {self.name} belongs to home {known}, "
                f"but {self.home.root} is home {self.home.id}: its paths would be wrong",
                next_step="set NIGHTGATE_HOME to the folder that the other workers share, "
                "or NIGHTGATE_DATABASE_URL to a database of this home's own",
            )


# --- migrations ---


def upgrade(url: str, *, patience: float = PATIENCE) -> tuple[str | None, str]:
    """Create the database or migrate it to this version's revision; returns the old and the new revision.

    Concurrent upgrades run one after the other.

    Raises:
        DatabaseError: it is unreachable, read-only, another program's, or was written by a newer version.
    """
    from alembic import command

    config = alembic_config(url, patience=patience)
    with database_errors(parse_url(url)):
        command.upgrade(config, "head")
    return config.attributes.get("revision"), schema.HEAD


def prepare(home: Home) -> None:
    """Create the SQLite database on first use; a PostgreSQL database needs an explicit `nightgate db upgrade`.

    Raises:
        DatabaseError: the home has versions, whose database was lost: a new one would forget their champion.
    """
    url = database_url(home)
    path = missing_file(parse_url(url))
    if path is None:
        return
    if any(home.models.glob("*/v[0-9]*")):
        raise DatabaseError(
            f"there is no database at {path}, though the home has versions of earlier nights",
            next_step="restore it from a backup (docs/restore.md); for an empty one: nightgate db upgrade",
        )
    upgrade(url)


def alembic_config(url: str, *, patience: float = PATIENCE) -> Any:
    """Alembic's configuration for the database at `url`, in a checkout or an installed package."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    # As attributes, because options are printed and interpolated, and a URL may hold a password.
    config.attributes.update(url=url, patience=patience)
    return config


def migrations_folder() -> Path:
    """`nightgate/_migrations` of an installed package, or `alembic/` beside the package in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "_migrations", package.parent / "alembic"):
        if (folder / "env.py").is_file():
            return folder
    raise DatabaseError(f"the migrations are missing beside {package}", next_step="install nightgate again")


@contextmanager
def migrating(url: str, *, patience: float = PATIENCE) -> Iterator[tuple[Connection, str | None]]:
    """A transaction that holds the migration lock, with the revision that it found."""
    parsed = parse_url(url)
    engine = make_engine(parsed, create=True, foreign_keys=False).execution_options(writes=True)
    path = sqlite_path(parsed)
    if path:
        with storage_errors(path):
            is_there = path.parent.is_dir()
        if not is_there:
            raise DatabaseError(
                f"the folder of {path} does not exist", next_step="create it, or correct NIGHTGATE_DATABASE_URL"
            )
        # SQLite would make it with mode 0644 at most, whatever the umask grants a group; it reports what fails.
        with suppress(OSError):
            path.touch()

    def begin() -> Connection:
        connection = engine.connect()
        try:
            connection.begin()
            if engine.dialect.name == "postgresql":
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
        except BaseException:
            connection.close()
            raise
        return connection

    connection = retry(parsed, patience, begin)
    with database_errors(parsed), connection:
        revision, ours = _state(connection, safe_url(parsed))
        if revision is not None and not (ours and revision in {earlier.REVISION, *_known_revisions()}):
            raise _wrong_revision(parsed, revision, ours=ours)
        with readers_kept(connection):
            yield connection, revision
        if engine.dialect.name == "sqlite" and (
            broken := connection.exec_driver_sql("PRAGMA foreign_key_check").first()
        ):
            raise DatabaseError(
                f"the migration would leave a row of {broken[0]} without its parent; nothing was changed",
                next_step="restore the database from a backup, or report this with the table's name",
            )
        connection.commit()


def _state(connection: Connection, name: str) -> tuple[str | None, bool]:
    """The revision of the database, None for a blank one, and whether its tables are Nightgate's.

    Raises:
        DatabaseError: it holds several revisions.
    """
    tables, views = sa.inspect(connection).get_table_names(), sa.inspect(connection).get_view_names()
    if "alembic_version" not in tables:
        return None, not tables
    query = "SELECT version_num FROM alembic_version"
    if "reading" in views:  # a reader may have rights on the views alone
        query = "SELECT value FROM reading WHERE key = 'revision'"
    revisions = sorted(connection.exec_driver_sql(query).scalars())
    if len(revisions) > 1:
        raise _several_revisions(name, revisions)
    revision = revisions[0] if revisions else None
    return revision, {"setting", "run"} <= set(tables) or revision is None


def _known_revisions() -> set[str]:
    from alembic.script import ScriptDirectory

    return {script.revision for script in ScriptDirectory(str(migrations_folder())).walk_revisions()}


def _several_revisions(name: str, revisions: list[str]) -> DatabaseError:
    unknown = [revision for revision in revisions if revision not in _known_revisions()]
    doubt = f", of which this package does not know {', '.join(unknown)}" if unknown else ""
    remove = f"DELETE FROM alembic_version WHERE version_num = '{unknown[0]}'" if unknown else ""
    return DatabaseError(
        f"alembic_version of the database {name} holds {len(revisions)} revisions instead of one "
        f"({', '.join(revisions)}){doubt}",
        next_step="restore the database from a backup" + (f", or remove what is not ours: {remove}" if remove else ""),
    )


def _wrong_revision(url: URL, revision: str | None, *, ours: bool) -> DatabaseError:
    name = f"the database {safe_url(url)}"
    if revision is None:
        return DatabaseError(f"{name} has no tables of Nightgate", next_step=UPGRADE)
    if not ours:
        return DatabaseError(
            f"{name} belongs to another program (its revision is {revision})",
            next_step="give Nightgate a database of its own in NIGHTGATE_DATABASE_URL, not Prefect's",
        )
    if revision in earlier.TOO_OLD:
        return DatabaseError(
            f"{name} is at revision {revision}, of before the first release; this version moves revision "
            f"{earlier.REVISION} only",
            next_step=f"run `nightgate db upgrade` of Nightgate's commit {earlier.COMMIT} first, then that of this one",
        )
    if revision in {earlier.REVISION, *_known_revisions()}:
        return DatabaseError(f"{name} is at revision {revision}, this version needs {schema.HEAD}", next_step=UPGRADE)
    return DatabaseError(
        f"{name} was written by a newer Nightgate: it is at revision {revision}, this version's is {schema.HEAD}",
        next_step="upgrade the package: pip install --upgrade nightgate",
    )
