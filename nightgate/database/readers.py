"""Roles of PostgreSQL that may read the views and no table: `nightgate db grant-reader ROLE`."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.orm import Session

from nightgate.database.transactions import Database
from nightgate.database.views import VIEWS, grant_views
from nightgate.errors import ConfigurationError, DatabaseError


def grant_reader(db: Database, role: str) -> None:
    """Let a role read every view, and those that later versions add: see `grant_views`.

    Raises:
        ConfigurationError: the database is a SQLite file, which has no roles, or there is no such role.
        DatabaseError: this user may not grant it.
    """
    if db.dialect == "sqlite":
        raise ConfigurationError(
            f"{db.name} is a file, and SQLite has no roles: whoever may read the file may read all of it",
            next_step=f"give {role} the right to read the file and its folder, or a copy: nightgate db backup FILE",
        )
    query = sa.text("SELECT 1 FROM pg_roles WHERE rolname = :role").bindparams(role=role)
    if db.read(lambda session: session.scalar(query)) is None:
        raise ConfigurationError(
            f"{db.name} has no role {role!r}", next_step=f"create it first: psql -c 'CREATE ROLE \"{role}\" LOGIN'"
        )

    def work(session: Session) -> None:
        grant_views(session.connection(), [role])
        # To one who may not grant it, PostgreSQL says so in a warning.
        may_read = sa.func.has_table_privilege(role, sa.literal(VIEWS[0]), "SELECT")
        if not session.scalar(sa.select(may_read)):
            raise DatabaseError(
                f"{db.name}: this user may not grant rights on the views",
                next_step="set NIGHTGATE_DATABASE_URL to one that names their owner",
            )

    db.write(work)
