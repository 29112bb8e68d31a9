"""Move a database of before the first release, at revision 0016, into the tables of this version."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from nightgate.database.schema import METADATA

REVISION = "0016"
"""The last revision of before the first release."""
TOO_OLD = {f"{number:04}" for number in range(1, int(REVISION))}
COMMIT = "9ae906d"
"""A commit whose `nightgate db upgrade` migrates those to it."""

_VIEWS = (
    "anchor_timeline approvals champion_evaluation_slices champion_evaluations champion_timeline confusion data_checks "
    "data_drift epoch_metrics epoch_results forgotten_rows freezes gate_checks gate_sides joint_outcomes label_votes "
    "metric_history model_versions nightly_runs nights promotions quarantined_rows refresh_counts refreshes seed_runs "
    "seed_studies slice_metrics snapshots"
)
_STUBS = """
SELECT c.relname, string_agg(format('CAST(NULL AS %s) AS %I', format_type(a.atttypid, a.atttypmod), a.attname), ', '
                             ORDER BY a.attnum)
FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0
WHERE c.relkind = 'v' AND c.relname = ANY(:views) AND c.relnamespace = CAST(current_schema() AS regnamespace)
GROUP BY c.relname
"""
_SECONDS = {
    "sqlite": "ROUND((julianday(finished_at) - julianday(started_at)) * 86400.0, 3)",
    "postgresql": "ROUND(EXTRACT(EPOCH FROM finished_at - started_at), 3)",
}


@contextmanager
def moved(connection: Connection, revision: str | None) -> Iterator[None]:
    """Around the migrations, in their transaction: set the rows of such a database aside, and fill the new tables.

    On PostgreSQL the views keep their grants and the views of others that select from them.
    """
    if revision != REVISION:
        yield
        return
    _release_views(connection)
    earlier = [name for name in sa.inspect(connection).get_table_names() if name != "alembic_version"]
    for name in earlier:
        connection.exec_driver_sql(f"CREATE TABLE earlier_{name} AS SELECT * FROM {name}")
    _drop(connection, earlier)
    connection.exec_driver_sql("DELETE FROM alembic_version")
    yield
    for table in METADATA.sorted_tables:
        if table.name in earlier:
            _fill(connection, table)
    _drop(connection, [f"earlier_{name}" for name in earlier])


def _release_views(connection: Connection) -> None:
    """Make the tables free to be dropped: on PostgreSQL a view selects NULLs until the migration replaces it."""
    if connection.dialect.name == "postgresql":
        for name, columns in connection.execute(sa.text(_STUBS), {"views": _VIEWS.split()}).all():
            connection.execute(sa.text(f"CREATE OR REPLACE VIEW {name} AS SELECT {columns}"))
    else:
        for name in _VIEWS.split():
            connection.exec_driver_sql(f"DROP VIEW {name}")


def _drop(connection: Connection, tables: list[str]) -> None:
    # All in one statement where there are foreign keys to heed.
    together = connection.dialect.name == "postgresql"
    for some in [", ".join(tables)] if together else tables:
        connection.exec_driver_sql(f"DROP TABLE {some}")


def _fill(connection: Connection, table: sa.Table) -> None:
    """Copy the columns that both tables have, and what follows from others."""
    before = {column["name"] for column in sa.inspect(connection).get_columns(f"earlier_{table.name}")}
    values = {column.name: column.name for column in table.columns if column.name in before}
    if table.name in {"run", "attempt"}:
        values["duration_seconds"] = _SECONDS[connection.dialect.name]
    columns, selected = ", ".join(values), ", ".join(values.values())
    connection.exec_driver_sql(f"INSERT INTO {table.name} ({columns}) SELECT {selected} FROM earlier_{table.name}")
