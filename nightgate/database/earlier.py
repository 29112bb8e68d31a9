"""Move a database of before the first release, at revision 0016, into the tables of this version."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session

from nightgate.database.schema import METADATA
from nightgate.database.shared_values import document_id

REVISION = "0016"
"""The last revision of before the first release."""
TOO_OLD = {f"{number:04}" for number in range(1, int(REVISION))}
COMMIT = "9ae906d"
"""A commit whose `nightgate db upgrade` migrates those to it."""

_TABLES = (
    "anchor approval attempt champion_evaluation champion_evaluation_slice confusion_cell data_check drift_statistic "
    "epoch epoch_metric forgotten gate_check gate_side joint_outcome label_vote model_version pipeline_freeze "
    "promotion quarantine refresh refresh_count run seed_run seed_study setting slice_metric snapshot test_prediction "
    "test_set"
)
"""The tables of that revision: others in the database are not Nightgate's, and stay as they are."""
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
WHERE c.relkind = 'v' AND c.relname = ANY(:views)
    AND c.relnamespace = CAST(quote_ident(current_schema()) AS regnamespace)
GROUP BY c.relname
"""
_SECONDS = {
    "sqlite": "ROUND((julianday({end}) - julianday(started_at)) * 86400.0, 3)",
    "postgresql": "ROUND(EXTRACT(EPOCH FROM {end} - started_at), 3)",
}
_BUSY_UNTIL = "CASE WHEN heartbeat_at < finished_at OR finished_at IS NULL THEN heartbeat_at ELSE finished_at END"
_JSON = {
    "sqlite": ("json_group_object", "json", "{}"),
    "postgresql": ("json_object_agg", "", "CAST({} AS JSON)"),
}
"""What makes an object of keys and values, what tells SQLite that a value is JSON, and what tells PostgreSQL so."""
_ATTEMPT = "JOIN attempt AS a ON a.run_id = o.run_id AND a.attempt = o.attempt"
_SLICE = "JOIN slice AS n ON n.slice_name = o.slice_name AND n.slice_value = o.slice_value"
_DOCUMENT = "(SELECT d.document_id FROM earlier_document AS d WHERE d.content = CAST(o.{column} AS TEXT))"


def _label(row: str, column: str) -> str:
    return f"JOIN slice AS {row} ON {row}.slice_name = 'label' AND {row}.slice_value = o.{column}"


_SCORES = "o.support, o.accuracy, o.f1, o.precision, o.recall"
_FILLED = {
    "slice": """
INSERT INTO slice (slice_name, slice_value)
SELECT slice_name, slice_value FROM earlier_slice_metric
UNION SELECT slice_name, slice_value FROM earlier_joint_outcome
UNION SELECT slice_name, slice_value FROM earlier_champion_evaluation_slice
UNION SELECT 'label', true_label FROM earlier_confusion_cell
UNION SELECT 'label', true_label FROM earlier_joint_outcome
UNION SELECT 'label', candidate_label FROM earlier_joint_outcome
UNION SELECT 'label', reference_label FROM earlier_joint_outcome WHERE reference_label <> ''""",
    "slice_metric": f"""
INSERT INTO slice_metric (attempt_id, slice_id, epoch, is_test, support, accuracy, f1, precision, recall)
SELECT a.attempt_id, n.slice_id, o.epoch, o.split = 'test', {_SCORES}
FROM earlier_slice_metric AS o {_ATTEMPT} {_SLICE}""",
    "epoch_metric": f"""
INSERT INTO epoch_metric (attempt_id, epoch, is_test, metric, value, reason)
SELECT a.attempt_id, o.epoch, o.split = 'test', o.metric, o.value, o.reason
FROM earlier_epoch_metric AS o {_ATTEMPT}""",
    "champion_evaluation_slice": f"""
INSERT INTO champion_evaluation_slice (evaluation_id, slice_id, support, accuracy, f1, precision, recall)
SELECT e.evaluation_id, n.slice_id, {_SCORES} FROM earlier_champion_evaluation_slice AS o {_SLICE}
JOIN champion_evaluation AS e ON e.pipeline = o.pipeline AND e.snapshot_id = o.snapshot_id
    AND e.model_version = o.model_version AND e.role = o.role""",
}
"""Tables that are filled by a statement of their own."""
_COUNTS = {
    "confusion_matrix": (
        "attempt_id, epoch, is_test",
        ("t", "p"),
        f"""
SELECT a.attempt_id, o.epoch, o.split = 'test' AS is_test, t.slice_id AS t, p.slice_id AS p, o.count AS counts
FROM earlier_confusion_cell AS o {_ATTEMPT} {_label("t", "true_label")} {_label("p", "predicted_label")}""",
    ),
    "joint_outcome": (
        "attempt_id, scope, reference",
        ("s", "t", "r", "c"),
        f"""
SELECT a.attempt_id, o.scope, o.reference, n.slice_id AS s, t.slice_id AS t, COALESCE(r.slice_id, 0) AS r,
       c.slice_id AS c, o.count AS counts
FROM earlier_joint_outcome AS o {_ATTEMPT} {_SLICE} {_label("t", "true_label")} {_label("c", "candidate_label")}
LEFT {_label("r", "reference_label")}""",
    ),
}
"""Tables of counts in JSON: their key, the keys of each level of the JSON, and the counts one by one."""


@contextmanager
def moved(connection: Connection, revision: str | None) -> Iterator[None]:
    """Around the migrations, in their transaction: set the rows of such a database aside, and fill the new tables.

    On PostgreSQL the views keep their grants and the views of others that select from them.
    """
    if revision != REVISION:
        yield
        return
    tables = _TABLES.split()
    _release_views(connection)
    if connection.dialect.name == "postgresql":  # a copy alone would let others write rows that it does not have
        connection.exec_driver_sql(f"LOCK TABLE {', '.join(tables)} IN ACCESS EXCLUSIVE MODE")
    for name in tables:
        connection.exec_driver_sql(f"CREATE TABLE earlier_{name} AS SELECT * FROM {name}")
    _drop(connection, tables)
    connection.exec_driver_sql("DELETE FROM alembic_version")
    yield
    _fill_documents(connection)
    for table in METADATA.sorted_tables:
        if table.name in _FILLED:
            connection.exec_driver_sql(_FILLED[table.name])
        elif table.name in _COUNTS:
            connection.exec_driver_sql(_counts(connection, table.name))
        elif table.name in tables:
            _fill(connection, table)
    _drop(connection, ["earlier_document", *(f"earlier_{name}" for name in tables)])


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


def _fill_documents(connection: Connection) -> None:
    """Store each configuration and environment once, and its number beside its earlier text."""
    connection.exec_driver_sql("CREATE TABLE earlier_document (content TEXT, document_id INTEGER)")
    texts = connection.exec_driver_sql(
        "SELECT CAST(config AS TEXT) FROM earlier_run UNION SELECT CAST(environment AS TEXT) FROM earlier_model_version"
    )
    insert = sa.text("INSERT INTO earlier_document VALUES (:content, :number)")
    with Session(connection) as session:
        for text in texts.scalars().all():
            if text not in {None, "null"}:
                session.execute(insert, {"content": text, "number": document_id(session, json.loads(text))})


def _fill(connection: Connection, table: sa.Table) -> None:
    """Copy the columns that both tables have, and what follows from others."""
    before = {column["name"] for column in sa.inspect(connection).get_columns(f"earlier_{table.name}")}
    values = {column.name: f"o.{column.name}" for column in table.columns if column.name in before}
    if table.name in {"run", "attempt"}:
        seconds = _SECONDS[connection.dialect.name]
        values["duration_seconds"] = seconds.format(end="finished_at")
    if table.name == "attempt":  # until the last heartbeat: the next follows within 15 seconds, or the process is idle
        busy = f"{seconds.format(end=_BUSY_UNTIL)} - COALESCE(slot_wait_seconds, 0)"
        values["busy_seconds"] = f"CASE WHEN {busy} > 0 THEN {busy} ELSE 0 END"
    for number, column in (("config_id", "config"), ("environment_id", "environment")):
        if column in before:
            values[number] = _DOCUMENT.format(column=column)
    if table.name == "run":  # as it is written now, so that no night seems to have other labels than the one before
        values["label_names"] = _JSON[connection.dialect.name][2].format(
            """REPLACE(CAST(o.label_names AS TEXT), '", "', '","')"""
        )
    columns, selected = ", ".join(values), ", ".join(values.values())
    connection.exec_driver_sql(f"INSERT INTO {table.name} ({columns}) SELECT {selected} FROM earlier_{table.name} AS o")


def _counts(connection: Connection, table: str) -> str:
    """The statement that packs counts into JSON, level by level from the innermost."""
    group, as_json, _ = _JSON[connection.dialect.name]
    place, keys, query = _COUNTS[table]
    for level in reversed(range(len(keys))):
        columns = ", ".join([place, *keys[:level]])
        packed = f"{group}(CAST({keys[level]} AS TEXT), {as_json}(counts))"
        query = f"SELECT {columns}, {packed} AS counts FROM ({query}) AS x GROUP BY {columns}"
    return f"INSERT INTO {table} ({place}, counts) {query}"
