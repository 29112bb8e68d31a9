"""Roles of PostgreSQL that may read the views and no table: `nightgate db grant-reader ROLE`."""

from __future__ import annotations

import shlex

import sqlalchemy as sa
from sqlalchemy.orm import Session

from nightgate.database.transactions import Database
from nightgate.database.views import VIEWS, grant
from nightgate.errors import ConfigurationError, DatabaseError

_UNREADABLE = "SELECT v FROM unnest(CAST(:views AS TEXT[])) AS v WHERE NOT has_table_privilege(:role, v, 'SELECT')"


def grant_reader(db: Database, role: str) -> None:
    """Let a role read every view, and those that later versions add: see `readers_kept`.

    Raises:
        ConfigurationError: the database is a SQLite file, which has no roles, or there is no such role.
        DatabaseError: this user may not grant it.
    """
    if db.dialect == "sqlite":
        raise ConfigurationError(
            f"{db.name} is a file, and SQLite has no roles: anyone who may read the file may read all of it",
            next_step=f"give {role} the right to read the file and its folder, or a copy: nightgate db backup FILE",
        )
    query = sa.text("SELECT 1 FROM pg_roles WHERE rolname = :role").bindparams(role=role)
    if db.read(lambda session: session.scalar(query)) is None:
        create = 'CREATE ROLE "{}" LOGIN'.format(role.replace('"', '""'))
        raise ConfigurationError(
            f"{db.name} has no role {role!r}", next_step=f"create it first: psql -c {shlex.quote(create)}"
        )

    def work(session: Session) -> None:
        connection = session.connection()
        schema = str(session.scalar(sa.select(sa.func.current_schema())))
        grant(connection, f"USAGE ON SCHEMA {connection.dialect.identifier_preparer.quote_identifier(schema)}", role)
        grant(connection, f"SELECT ON {', '.join(VIEWS)}", role)
        # To one who may not grant it, PostgreSQL says so in a warning.
        usable = session.scalar(sa.select(sa.func.has_schema_privilege(role, schema, "USAGE")))
        lacking = [] if usable else [f"USAGE on the schema {schema}"]
        if unreadable := session.scalars(sa.text(_UNREADABLE), {"views": list(VIEWS), "role": role}).all():
            lacking.append(f"SELECT on {', '.join(unreadable)}")
        if lacking:
            raise DatabaseError(
                f"{db.name}: role {role!r} lacks {' and '.join(lacking)}, and this user may not grant it",
                next_step="set NIGHTGATE_DATABASE_URL to one that names the owner of the schema and of the views",
            )

    db.write(work)
