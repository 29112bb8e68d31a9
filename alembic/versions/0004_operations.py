"""The night ledger: signs of life, the queue for a slot, approvals, what was announced; and the views that show it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# As in 0001: frozen, like all of a migration.
TIME = sa.String(27).with_variant(sa.DateTime(timezone=True), "postgresql")

# As in 0003, with room for columns at the end.
NIGHTLY_RUNS = """
SELECT r.pipeline, r.night, r.run_id, r.status, r.reason, r.error_type, r.next_step, r.verdict, r.trigger,
       (SELECT CAST(COUNT(*) AS INTEGER) FROM attempt AS a WHERE a.run_id = r.run_id) AS attempts,
       r.scheduled_for, r.data_until, r.snapshot_id, r.rows_new, r.rows_total, r.best_epoch,
       r.test_version, r.test_rows, r.test_f1, r.f1_ci_low, r.f1_ci_high,
       r.champion_version, r.champion_f1, r.f1_delta, v.version AS model_version,
       r.base_model, r.config_hash, r.code_version, d.device, d.precision,
       r.started_at, r.finished_at, {duration} AS duration_seconds, r.prefect_flow_run_id,
       r.dry_run, r.average, r.min_f1, r.test_accuracy, r.test_precision, r.test_recall, r.nonfinite,
       d.engine, d.micro_batches{of_queue}
FROM run AS r
LEFT JOIN model_version AS v ON v.run_id = r.run_id
LEFT JOIN attempt AS d ON d.run_id = r.run_id AND d.attempt = (
    SELECT MAX(known.attempt) FROM attempt AS known WHERE known.run_id = r.run_id AND known.device IS NOT NULL){queue}
"""

NIGHTS = """
SELECT n.* FROM nightly_runs AS n
WHERE n.run_id = (
    SELECT c.run_id FROM run AS c
    WHERE c.pipeline = n.pipeline AND c.night = n.night
    ORDER BY CASE WHEN c.status = 'superseded' THEN 2 WHEN c.dry_run THEN 1 ELSE 0 END, c.started_at DESC, c.run_id DESC
    LIMIT 1)
"""

DURATION = {
    "postgresql": "CAST(ROUND(EXTRACT(EPOCH FROM r.finished_at - r.started_at), 3) AS DOUBLE PRECISION)",
    "sqlite": "ROUND((julianday(r.finished_at) - julianday(r.started_at)) * 86400.0, 3)",
}


QUEUE = "\nLEFT JOIN slot_request AS q ON q.run_id = r.run_id AND q.attempt = r.attempt"

APPROVALS = """
SELECT r.pipeline, r.night, a.run_id, v.version AS model_version, a.requested_at, a.deadline, a.expected_version,
       a.decision, a.decided_by, a.reason, a.decided_at
FROM approval AS a
JOIN run AS r ON r.run_id = a.run_id
LEFT JOIN model_version AS v ON v.run_id = a.run_id
"""

WAIT = {
    "postgresql": "CAST(ROUND(EXTRACT(EPOCH FROM q.granted_at - q.requested_at), 3) AS DOUBLE PRECISION)",
    "sqlite": "ROUND((julianday(q.granted_at) - julianday(q.requested_at)) * 86400.0, 3)",
}


def upgrade() -> None:
    op.add_column("attempt", sa.Column("process_space", sa.Text(), nullable=True))
    op.add_column("attempt", sa.Column("heartbeat_at", TIME, nullable=True))
    op.add_column("run", sa.Column("announced_at", TIME, nullable=True))
    # What ended before there were announcements is no news.
    op.execute("UPDATE run SET announced_at = finished_at")
    op.create_table(
        "slot_request",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("slot", sa.Text(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("requested_at", TIME, nullable=False),
        sa.Column("granted_at", TIME, nullable=True),
        sa.Column("released_at", TIME, nullable=True),
        sa.ForeignKeyConstraint(
            ["run_id", "attempt"],
            ["attempt.run_id", "attempt.attempt"],
            name=op.f("fk_slot_request_run_id_attempt"),
            ondelete="RESTRICT",
            onupdate="RESTRICT",
        ),
        sa.PrimaryKeyConstraint("run_id", "attempt", name=op.f("pk_slot_request")),
    )
    op.create_index(op.f("ix_slot_request_slot_released_at"), "slot_request", ["slot", "released_at"])
    op.create_table(
        "approval",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("requested_at", TIME, nullable=False),
        sa.Column("deadline", TIME, nullable=False),
        sa.Column("expected_version", sa.Integer(), nullable=True),
        sa.Column("decision", sa.Text(), nullable=True),
        sa.Column("decided_by", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("decided_at", TIME, nullable=True),
        sa.CheckConstraint(
            "decision IN ('approved', 'rejected', 'timed_out', 'superseded')", name=op.f("ck_approval_decision")
        ),
        sa.ForeignKeyConstraint(
            ["run_id"], ["run.run_id"], name=op.f("fk_approval_run_id"), ondelete="RESTRICT", onupdate="RESTRICT"
        ),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_approval")),
    )
    _replace_runs(with_queue=True)
    op.execute(f"CREATE VIEW approvals AS {APPROVALS.strip()}")


def downgrade() -> None:
    op.execute("DROP VIEW approvals")
    _drop_runs()
    op.drop_table("approval")
    op.drop_table("slot_request")
    op.drop_column("run", "announced_at")
    for column in ("process_space", "heartbeat_at"):
        op.drop_column("attempt", column)
    _create_runs("CREATE VIEW", with_queue=False)


def _replace_runs(*, with_queue: bool) -> None:
    # Replaced in place on PostgreSQL: dropped, a view would lose who may read it. SQLite knows no such thing.
    in_place = op.get_context().dialect.name == "postgresql"
    if not in_place:
        _drop_runs()
    _create_runs("CREATE OR REPLACE VIEW" if in_place else "CREATE VIEW", with_queue=with_queue)


def _create_runs(create: str, *, with_queue: bool) -> None:
    engine = op.get_context().dialect.name
    of_queue = f",\n       q.slot, {WAIT[engine]} AS slot_wait_seconds, r.announced_at"
    runs = NIGHTLY_RUNS.format(
        duration=DURATION[engine], of_queue=of_queue if with_queue else "", queue=QUEUE if with_queue else ""
    )
    op.execute(f"{create} nightly_runs AS {runs.strip()}")
    op.execute(f"{create} nights AS {NIGHTS.strip()}")


def _drop_runs() -> None:
    for name in ("nights", "nightly_runs"):
        op.execute(f"DROP VIEW {name}")
