"""The metrics database: transactions that survive a bad moment, checks on opening it, and its migrations.

SQLite by default (`metrics.db` in the home), PostgreSQL by `NIGHTGATE_DATABASE_URL`. A transaction is a function of a
session, so that it can be repeated while the database is locked or briefly absent. No connection is kept between
transactions: a night has few of them, hours apart, and a kept one would be the first thing that a restart breaks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from nightgate.database import schema
from nightgate.database.connection import (
    UPGRADE,
    database_url,
    in_words,
    make_engine,
    parse_url,
    repeat,
    safe_url,
    sqlite_path,
)
from nightgate.errors import DatabaseError
from nightgate.home import Home

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")

PATIENCE = 30.0
"""Seconds that a transaction is repeated for."""
_MIGRATION_LOCK = 7_203_150_315


# --- transactions ---


class Database:
    """The metrics database, ready for transactions."""

    def __init__(self, home: Home, url: URL, *, patience: float = PATIENCE) -> None:
        self.home = home
        self.patience = patience
        self._url = url
        self._engine = make_engine(url)
        self._writer = self._engine.execution_options(writes=True)
        # PostgreSQL would show each query of a transaction what others have committed by then.
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
            check: it must be at this version's revision, and its paths must be relative to `home`.
            any_home: for readers of metrics, which touch no files: do not compare or record the home.

        Raises:
            DatabaseError: it is missing, unreachable, another program's, at another revision or of another home.
        """
        database = cls(home, parse_url(url or database_url(home)), patience=patience)
        if check:
            database._check_revision()
            if not any_home:
                database._check_home()
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
        """Run `work` in one transaction and commit. It runs once per try, so it holds no side effects.

        A connection that is lost during the commit leaves it open whether that took place: `work` must find out
        (an id of its own, a row that is there already) and be content.

        Raises:
            DatabaseError: the database stays locked or absent, or refuses.
        """
        return self._transaction(self._writer, work)

    def read(self, work: Callable[[Session], T]) -> T:
        """Run `work` in one transaction that sees one state of the database. See `write`."""
        return self._transaction(self._reader, work)

    def frame(self, query: str | sa.Select[Any], parameters: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """The rows of a query, with `:name` for parameters."""
        import pandas as pd

        statement = sa.text(query) if isinstance(query, str) else query
        return self.read(lambda session: pd.read_sql_query(statement, session.connection(), params=parameters))

    def close(self) -> None:
        self._engine.dispose()

    def _transaction(self, engine: Engine, work: Callable[[Session], T]) -> T:
        def once() -> T:
            with Session(engine, expire_on_commit=False) as session, session.begin():
                return work(session)

        return repeat(self._url, self.patience, once)

    def _check_revision(self) -> None:
        path = sqlite_path(self._url)
        if path and not path.exists():
            raise DatabaseError(f"there is no database at {path} yet", next_step=UPGRADE)
        revision, ours = self.read(lambda session: _state(session.connection()))
        if revision != schema.HEAD:
            raise _wrong_revision(self._url, revision, ours=ours)

    def _check_home(self) -> None:
        def recorded(session: Session) -> str | None:
            return session.scalar(sa.select(schema.Setting.value).where(schema.Setting.key == "home_id"))

        def record(session: Session) -> str:
            known = recorded(session)
            if known is None:
                session.add(schema.Setting(key="home_id", value=self.home.id))
            return known or self.home.id

        known = self.read(recorded)
        if known is None:
            try:
                known = self.write(record)
            except IntegrityError:  # two workers opened a new database at once
                known = self.read(recorded)
        if known != self.home.id:
            raise DatabaseError(
                f"the database {self.name} belongs to another home than {self.home.root}: "
                f"its paths are relative to home {known}, this is home {self.home.id}",
                next_step="set NIGHTGATE_HOME to the folder that the other workers share, "
                "or NIGHTGATE_DATABASE_URL to a database of this home's own",
            )


# --- migrations ---


def upgrade(url: str, *, patience: float = PATIENCE) -> tuple[str | None, str]:
    """Bring the database to this version's revision; made if it is not there. Gives the old and the new revision.

    Two that upgrade at once take turns, and the second finds nothing to do.

    Raises:
        DatabaseError: it is unreachable, read-only, another program's, or was written by a newer version.
    """
    from alembic import command

    config = alembic_config(url, patience=patience)
    with in_words(parse_url(url)):
        command.upgrade(config, "head")
    return config.attributes.get("revision"), schema.HEAD


def prepare(home: Home) -> None:
    """Make the embedded SQLite database on first use; one on a server is migrated by its owner, on purpose."""
    url = database_url(home)
    path = sqlite_path(parse_url(url))
    if path is not None and not path.exists():
        upgrade(url)


def alembic_config(url: str, *, patience: float = PATIENCE) -> Any:
    """Alembic's configuration for the database at `url`, in a checkout and in an installed package alike."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    # As attributes: options are printed and interpolated, and a URL holds a password.
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
    """One transaction in which one process at a time changes the tables, and the revision that it found."""
    parsed = parse_url(url)
    engine = make_engine(parsed, create=True, foreign_keys=False).execution_options(writes=True)
    path = sqlite_path(parsed)
    if path and not path.parent.is_dir():
        raise DatabaseError(
            f"the folder of {path} does not exist", next_step="make it, or correct NIGHTGATE_DATABASE_URL"
        )

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

    connection = repeat(parsed, patience, begin)
    with in_words(parsed), connection:
        revision, ours = _state(connection)
        if revision is not None and not ours:
            raise _wrong_revision(parsed, revision, ours=ours)
        if revision is not None and revision not in _known_revisions():
            raise _wrong_revision(parsed, revision, ours=ours)
        yield connection, revision
        if engine.dialect.name == "sqlite" and (
            broken := connection.exec_driver_sql("PRAGMA foreign_key_check").first()
        ):
            raise DatabaseError(f"the migration left a row of {broken[0]} without its parent; nothing was changed")
        connection.commit()


def _state(connection: Connection) -> tuple[str | None, bool]:
    """The revision that the database is at, None for a blank one; and whether its tables are ours."""
    tables = set(sa.inspect(connection).get_table_names())
    if "alembic_version" not in tables:
        return None, not tables
    revision = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    return revision, {"setting", "run"} <= tables or revision is None


def _known_revisions() -> set[str]:
    """All revisions that this version's migrations hold."""
    from alembic.script import ScriptDirectory

    return {script.revision for script in ScriptDirectory(str(migrations_folder())).walk_revisions()}


def _wrong_revision(url: URL, revision: str | None, *, ours: bool) -> DatabaseError:
    name = f"the database {safe_url(url)}"
    if revision is None:
        return DatabaseError(f"{name} holds no tables of Nightgate yet", next_step=UPGRADE)
    if not ours:
        return DatabaseError(
            f"{name} belongs to another program (its revision is {revision})",
            next_step="give Nightgate a database of its own in NIGHTGATE_DATABASE_URL; Prefect's is another one",
        )
    if revision in _known_revisions():
        return DatabaseError(f"{name} is at revision {revision}, this version needs {schema.HEAD}", next_step=UPGRADE)
    return DatabaseError(
        f"{name} was written by a newer Nightgate: it is at revision {revision}, this one knows {schema.HEAD}",
        next_step="upgrade the package: pip install --upgrade nightgate",
    )
