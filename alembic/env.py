"""Alembic's entry point: runs for `alembic upgrade head` in the repository root and for `nightgate db upgrade`.

It migrates the database that `nightgate.database.transactions` names, or else that of `NIGHTGATE_DATABASE_URL` and
`NIGHTGATE_HOME`.
"""

from __future__ import annotations

from typing import Any

from alembic import context

from nightgate.database.backup import keep_earlier
from nightgate.database.connection import database_url, parse_url
from nightgate.database.earlier import REVISION, moved
from nightgate.database.schema import HEAD, METADATA
from nightgate.database.transactions import migrating
from nightgate.home import open_home


def run_migrations() -> None:
    given: dict[Any, Any] = context.config.attributes
    url = given.get("url") or database_url(open_home())
    options: dict[str, Any] = {"target_metadata": METADATA, "compare_type": True}
    if context.is_offline_mode():
        dialect = parse_url(url).get_backend_name()
        context.configure(dialect_name=dialect, literal_binds=True, transactional_ddl=True, **options)
        with context.begin_transaction():
            context.run_migrations()
            make_views()
        return
    patience = {"patience": given["patience"]} if "patience" in given else {}
    with migrating(url, **patience) as (connection, revision):
        given["revision"] = revision
        if revision == REVISION:  # while no one else can write
            keep_earlier(url)
        with moved(connection, revision):
            # SQLite alters a table by rebuilding it, inside the one transaction that `migrating` holds.
            context.configure(connection=connection, render_as_batch=connection.dialect.name == "sqlite", **options)
            context.run_migrations()
            if revision != HEAD == context.get_context().get_current_revision():
                make_views()


def make_views() -> None:
    """Make the views from the tables of the last revision, whatever the revisions before it had."""
    context.script.get_revision("0018").module.make_views()


run_migrations()
