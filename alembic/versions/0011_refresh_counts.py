"""What a refresh counts and checks: rows of each part, data checks, votes on labels; the quarantine becomes a state.

`refresh_counts`, `data_checks` and `label_votes` are new. `nightly_runs`, `nights` and `quarantined_rows` gain columns.
Of a source row that could not be used, one row a reason is kept instead of one a night. `alembic upgrade --sql`, which
sees no rows, begins with an empty quarantine.
"""

from __future__ import annotations

import hashlib
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

# As in 0001: frozen, like all of a migration.
TIME = sa.String(27).with_variant(sa.DateTime(timezone=True), "postgresql")

PLACES = ("taken", "merged", "replaced", "deleted", "quarantined", "conflicting", "future", "outside")

# As in 0006, with room for columns at the end.
NIGHTLY_RUNS = """
SELECT r.pipeline, r.night, r.run_id, r.status, r.reason, r.error_type, r.next_step, r.verdict, r.trigger,
       (SELECT CAST(COUNT(*) AS INTEGER) FROM attempt AS a WHERE a.run_id = r.run_id) AS attempts,
       r.scheduled_for, r.data_until, r.snapshot_id, r.rows_new, r.rows_total, r.best_epoch,
       r.test_version, r.test_rows, r.test_f1, r.f1_ci_low, r.f1_ci_high,
       r.champion_version, r.champion_f1, r.f1_delta, v.version AS model_version,
       r.base_model, r.config_hash, r.code_version, d.device, d.precision,
       r.started_at, r.finished_at, {duration} AS duration_seconds, r.prefect_flow_run_id,
       r.dry_run, r.average, r.min_f1, r.test_accuracy, r.test_precision, r.test_recall, r.nonfinite,
       d.engine, d.micro_batches, q.slot, {wait} AS slot_wait_seconds, r.announced_at,
       r.window_start, r.test_rows_all, r.test_f1_all, r.rows_left_out, r.detectable_gain, r.champion_fresh_f1,
       r.champion_fresh_rows, r.fresh_ci_low, r.fresh_ci_high, r.anchor_version, r.anchor_f1, r.metric_key,
       r.labels_corrected, r.rows_trained{more}
FROM run AS r
LEFT JOIN model_version AS v ON v.run_id = r.run_id
LEFT JOIN attempt AS d ON d.run_id = r.run_id AND d.attempt = (
    SELECT MAX(known.attempt) FROM attempt AS known WHERE known.run_id = r.run_id AND known.device IS NOT NULL)
LEFT JOIN slot_request AS q ON q.run_id = r.run_id AND q.attempt = r.attempt
"""

# As in 0006.
NIGHTS = """
SELECT n.* FROM nightly_runs AS n
WHERE n.run_id = (
    SELECT c.run_id FROM run AS c
    WHERE c.pipeline = n.pipeline AND c.night = n.night
    ORDER BY CASE WHEN c.status = 'superseded' THEN 3 WHEN c.dry_run THEN 2
                          WHEN c.status IN ('failed', 'cancelled', 'missed') THEN 1 ELSE 0 END,
             c.started_at DESC, c.run_id DESC
    LIMIT 1)
"""

# As in 0002.
EARLIER_QUARANTINED_ROWS = """
SELECT r.pipeline, r.night, q.run_id, q.origin, q.row_id, q.reason, q.detail, q.excerpt, q.position
FROM quarantined_row AS q
JOIN run AS r ON r.run_id = q.run_id
WHERE NOT EXISTS (SELECT 1 FROM quarantined_row AS later WHERE later.run_id = q.run_id AND later.attempt > q.attempt)
"""

QUARANTINED_ROWS = """
SELECT q.pipeline, q.last_night AS night, q.run_id, q.origin, q.row_id, q.reason, q.detail, q.excerpt, q.position,
       q.part, q.first_night, q.last_night, q.resolved_night
FROM quarantine AS q
"""

OF_LAST_ATTEMPT = """
FROM {table} AS c
JOIN run AS r ON r.run_id = c.run_id
WHERE NOT EXISTS (SELECT 1 FROM {table} AS later WHERE later.run_id = c.run_id AND later.attempt > c.attempt)
"""

REFRESH_COUNTS = f"""
SELECT r.pipeline, r.night, c.run_id, c.attempt, c.position, c.part, c.rows_seen,
       {", ".join(f"c.rows_{place}" for place in PLACES)}, c.rows_vanished, c.bytes, c.modified, c.unchanged
{OF_LAST_ATTEMPT.format(table="refresh_count").strip()}
"""

DATA_CHECKS = f"""
SELECT r.pipeline, r.night, c.run_id, c.attempt, c.position, c.check_name, c.value, c.threshold, c.outcome, c.reason,
       c.allowed_by, c.allowed_reason
{OF_LAST_ATTEMPT.format(table="data_check").strip()}
"""

LABEL_VOTES = """
SELECT v.pipeline, r.night, v.run_id, v.fingerprint, v.label, v.votes, v.chosen
FROM label_vote AS v
JOIN run AS r ON r.run_id = v.run_id
"""

DURATION = {
    "postgresql": "CAST(ROUND(EXTRACT(EPOCH FROM r.finished_at - r.started_at), 3) AS DOUBLE PRECISION)",
    "sqlite": "ROUND((julianday(r.finished_at) - julianday(r.started_at)) * 86400.0, 3)",
}
WAIT = {
    "postgresql": "CAST(ROUND(EXTRACT(EPOCH FROM q.granted_at - q.requested_at), 3) AS DOUBLE PRECISION)",
    "sqlite": "ROUND((julianday(q.granted_at) - julianday(q.requested_at)) * 86400.0, 3)",
}

QUARANTINE = sa.table(
    "quarantine",
    *map(sa.column, ("pipeline", "row_key", "reason", "run_id", "attempt", "position", "origin", "part", "row_id")),
    *map(sa.column, ("detail", "excerpt")),
    *(sa.column(name, sa.Date()) for name in ("first_night", "last_night", "resolved_night")),
)
QUARANTINED_ROW = sa.table(
    "quarantined_row",
    *map(sa.column, ("run_id", "attempt", "position", "origin", "row_id", "reason", "detail", "excerpt")),
)
RUN = sa.table("run", sa.column("run_id"), sa.column("pipeline"), sa.column("night", sa.Date()))


def upgrade() -> None:
    _create_tables()
    op.add_column("run", sa.Column("label_revision", sa.Integer()))
    if not op.get_context().as_sql:
        _make_state()
    # Replaced in place on PostgreSQL: dropped, a view would lose who may read it. SQLite knows no such thing.
    in_place = op.get_context().dialect.name == "postgresql"
    if not in_place:
        _drop_views("nights", "nightly_runs", "quarantined_rows")
    create = "CREATE OR REPLACE VIEW" if in_place else "CREATE VIEW"
    _create_views(create, ", r.label_revision", QUARANTINED_ROWS)
    op.drop_table("quarantined_row")
    for name, query in (
        ("refresh_counts", REFRESH_COUNTS),
        ("data_checks", DATA_CHECKS),
        ("label_votes", LABEL_VOTES),
    ):
        op.execute(f"CREATE VIEW {name} AS {query.strip()}")


def downgrade() -> None:
    _drop_views("nights", "nightly_runs", "quarantined_rows", "refresh_counts", "data_checks", "label_votes")
    op.drop_column("run", "label_revision")
    op.create_table(
        "quarantined_row",
        sa.Column("run_id", sa.Text(), nullable=False),
        *(sa.Column(name, sa.Integer(), nullable=False) for name in ("attempt", "position")),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("row_id", sa.Text()),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("reason", "detail", "excerpt")),
        _of_attempt("quarantined_row"),
        sa.PrimaryKeyConstraint("run_id", "attempt", "position", name="pk_quarantined_row"),
    )
    names = ", ".join(column.name for column in QUARANTINED_ROW.columns)
    op.execute(f"INSERT INTO quarantined_row ({names}) SELECT {names} FROM quarantine")
    for table in ("quarantine", "refresh_count", "data_check", "label_vote"):
        op.drop_table(table)
    _create_views("CREATE VIEW", "", EARLIER_QUARANTINED_ROWS)


def _create_tables() -> None:
    attempt = ("run_id", sa.Text()), ("attempt", sa.Integer()), ("position", sa.Integer())
    op.create_table(
        "refresh_count",
        *(sa.Column(name, kind, nullable=False) for name, kind in attempt),
        sa.Column("part", sa.Text(), nullable=False),
        *(sa.Column(f"rows_{place}", sa.Integer(), nullable=False) for place in ("seen", *PLACES, "vanished")),
        sa.Column("bytes", sa.BigInteger()),
        sa.Column("modified", TIME),
        sa.Column("unchanged", sa.Boolean(), nullable=False),
        sa.CheckConstraint(
            f"rows_seen = {' + '.join(f'rows_{place}' for place in PLACES)}", name=op.f("ck_refresh_count_balance")
        ),
        _of_attempt("refresh_count"),
        sa.PrimaryKeyConstraint("run_id", "attempt", "position", name="pk_refresh_count"),
    )
    op.create_table(
        "data_check",
        *(sa.Column(name, kind, nullable=False) for name, kind in attempt),
        sa.Column("check_name", sa.Text(), nullable=False),
        sa.Column("value", sa.Double()),
        sa.Column("threshold", sa.Double()),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("outcome", "reason")),
        *(sa.Column(name, sa.Text()) for name in ("allowed_by", "allowed_reason")),
        sa.CheckConstraint("outcome IN ('passed', 'failed', 'allowed', 'not_run')", name=op.f("ck_data_check_outcome")),
        _of_attempt("data_check"),
        sa.PrimaryKeyConstraint("run_id", "attempt", "check_name", name="pk_data_check"),
    )
    op.create_table(
        "label_vote",
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("pipeline", "fingerprint", "label")),
        sa.Column("votes", sa.Integer(), nullable=False),
        sa.Column("chosen", sa.Boolean(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"], ["run.run_id"], name="fk_label_vote_run_id", onupdate="RESTRICT", ondelete="RESTRICT"
        ),
        sa.PrimaryKeyConstraint("pipeline", "fingerprint", "label", name="pk_label_vote"),
    )
    op.create_table(
        "quarantine",
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("pipeline", "row_key", "reason")),
        *(sa.Column(name, kind, nullable=False) for name, kind in attempt),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("origin", "part")),
        sa.Column("row_id", sa.Text()),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("detail", "excerpt")),
        *(sa.Column(name, sa.Date(), nullable=False) for name in ("first_night", "last_night")),
        sa.Column("resolved_night", sa.Date()),
        _of_attempt("quarantine"),
        sa.PrimaryKeyConstraint("pipeline", "row_key", "reason", name="pk_quarantine"),
    )


def _of_attempt(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["run_id", "attempt"],
        ["attempt.run_id", "attempt.attempt"],
        name=f"fk_{table}_run_id_attempt",
        onupdate="RESTRICT",
        ondelete="RESTRICT",
    )


def _make_state() -> None:
    """One row per source row and reason of all nights; resolved on the first later night that did not find it."""
    connection = op.get_bind()
    query = (
        sa.select(RUN.c.pipeline, RUN.c.night, QUARANTINED_ROW)
        .join(QUARANTINED_ROW, QUARANTINED_ROW.c.run_id == RUN.c.run_id)
        .order_by(RUN.c.night, QUARANTINED_ROW.c.run_id, QUARANTINED_ROW.c.attempt)
    )
    state: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in connection.execute(query).mappings():
        key = hashlib.sha256((row["row_id"] or f"\n{row['origin']}").encode("utf-8", "replace")).hexdigest()[:32]
        facts = {name: row[name] for name in ("pipeline", *(column.name for column in QUARANTINED_ROW.columns))}
        before = state.get((row["pipeline"], key, row["reason"]))
        first = before["first_night"] if before else row["night"]
        nights = {"first_night": first, "last_night": row["night"], "resolved_night": None}
        state[row["pipeline"], key, row["reason"]] = facts | nights | {"row_key": key, "part": ""}
    if state:
        connection.execute(sa.insert(QUARANTINE), list(state.values()))
    op.execute(
        "UPDATE quarantine SET resolved_night = (SELECT MIN(r.night) FROM run AS r WHERE r.pipeline = "
        "quarantine.pipeline AND r.night > quarantine.last_night AND r.snapshot_id IS NOT NULL)"
    )


def _create_views(create: str, of_runs: str, quarantined: str) -> None:
    engine = op.get_context().dialect.name
    runs = NIGHTLY_RUNS.format(duration=DURATION[engine], wait=WAIT[engine], more=of_runs)
    for name, query in (("nightly_runs", runs), ("nights", NIGHTS), ("quarantined_rows", quarantined)):
        op.execute(f"{create} {name} AS {query.strip()}")


def _drop_views(*names: str) -> None:
    for name in names:
        op.execute(f"DROP VIEW {name}")
