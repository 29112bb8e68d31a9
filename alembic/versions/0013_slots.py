"""Slots are locks in the home: an attempt has the name of its slot and its wait, and the table of the queue goes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

# As in 0001: frozen, like all of a migration.
TIME = sa.String(27).with_variant(sa.DateTime(timezone=True), "postgresql")

# As in 0012, with the slot of the attempt. Room for columns at the end.
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
       r.labels_corrected, r.rows_trained, r.label_revision, r.reasons
FROM run AS r
LEFT JOIN model_version AS v ON v.run_id = r.run_id
LEFT JOIN attempt AS d ON d.run_id = r.run_id AND d.attempt = (
    SELECT MAX(known.attempt) FROM attempt AS known WHERE known.run_id = r.run_id AND known.device IS NOT NULL)
LEFT JOIN {queue} AS q ON q.run_id = r.run_id AND q.attempt = r.attempt
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

DURATION = {
    "postgresql": "CAST(ROUND(EXTRACT(EPOCH FROM r.finished_at - r.started_at), 3) AS DOUBLE PRECISION)",
    "sqlite": "ROUND((julianday(r.finished_at) - julianday(r.started_at)) * 86400.0, 3)",
}
WAIT = {
    "postgresql": "CAST(ROUND(EXTRACT(EPOCH FROM q.granted_at - q.requested_at), 3) AS DOUBLE PRECISION)",
    "sqlite": "ROUND((julianday(q.granted_at) - julianday(q.requested_at)) * 86400.0, 3)",
}
OF_ATTEMPT = "FROM slot_request AS q WHERE q.run_id = attempt.run_id AND q.attempt = attempt.attempt"


def upgrade() -> None:
    engine = op.get_context().dialect.name
    op.add_column("attempt", sa.Column("slot", sa.Text()))
    op.add_column("attempt", sa.Column("slot_wait_seconds", sa.Double()))
    wait = f"(SELECT {WAIT[engine]} {OF_ATTEMPT})"
    op.execute(f"UPDATE attempt SET slot = (SELECT q.slot {OF_ATTEMPT}), slot_wait_seconds = {wait}")
    # Replaced in place on PostgreSQL: dropped, a view would lose who may read it. SQLite knows no such thing.
    if engine != "postgresql":
        _drop_views()
    _create_views(
        "CREATE OR REPLACE VIEW" if engine == "postgresql" else "CREATE VIEW", "attempt", "q.slot_wait_seconds"
    )
    op.drop_table("slot_request")


def downgrade() -> None:
    op.create_table(
        "slot_request",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("slot", sa.Text(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("requested_at", TIME, nullable=False),
        sa.Column("granted_at", TIME),
        sa.Column("released_at", TIME),
        sa.ForeignKeyConstraint(
            ["run_id", "attempt"],
            ["attempt.run_id", "attempt.attempt"],
            name=op.f("fk_slot_request_run_id_attempt"),
            onupdate="RESTRICT",
            ondelete="RESTRICT",
        ),
        sa.PrimaryKeyConstraint("run_id", "attempt", name=op.f("pk_slot_request")),
    )
    op.create_index(op.f("ix_slot_request_slot_released_at"), "slot_request", ["slot", "released_at"])
    _drop_views()
    _create_views("CREATE VIEW", "slot_request", WAIT[op.get_context().dialect.name])
    op.drop_column("attempt", "slot_wait_seconds")
    op.drop_column("attempt", "slot")


def _create_views(create: str, queue: str, wait: str) -> None:
    runs = NIGHTLY_RUNS.format(duration=DURATION[op.get_context().dialect.name], wait=wait, queue=queue)
    for name, query in (("nightly_runs", runs), ("nights", NIGHTS)):
        op.execute(f"{create} {name} AS {query.strip()}")


def _drop_views() -> None:
    for name in ("nights", "nightly_runs"):
        op.execute(f"DROP VIEW {name}")
