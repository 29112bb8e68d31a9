"""`run.min_f1` may be NULL: a threshold that follows from the test rows is not known before they are judged."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

# The views of 0007, for SQLite: it drops a column only when no view uses it.
NIGHTLY_RUNS = """
SELECT r.pipeline, r.night, r.run_id, r.status, r.reason, r.error_type, r.next_step, r.verdict, r.trigger,
       (SELECT CAST(COUNT(*) AS INTEGER) FROM attempt AS a WHERE a.run_id = r.run_id) AS attempts,
       r.scheduled_for, r.data_until, r.snapshot_id, r.rows_new, r.rows_total, r.best_epoch,
       r.test_version, r.test_rows, r.test_f1, r.f1_ci_low, r.f1_ci_high,
       r.champion_version, r.champion_f1, r.f1_delta, v.version AS model_version,
       r.base_model, r.config_hash, r.code_version, d.device, d.precision,
       r.started_at, r.finished_at,
       ROUND((julianday(r.finished_at) - julianday(r.started_at)) * 86400.0, 3) AS duration_seconds,
       r.prefect_flow_run_id,
       r.dry_run, r.average, r.min_f1, r.test_accuracy, r.test_precision, r.test_recall, r.nonfinite,
       d.engine, d.micro_batches, q.slot,
       ROUND((julianday(q.granted_at) - julianday(q.requested_at)) * 86400.0, 3) AS slot_wait_seconds,
       r.announced_at, r.window_start, r.test_rows_all, r.test_f1_all, r.rows_left_out, r.detectable_gain,
       r.champion_fresh_f1, r.champion_fresh_rows, r.fresh_ci_low, r.fresh_ci_high, r.anchor_version, r.anchor_f1,
       r.metric_key, r.labels_corrected
FROM run AS r
LEFT JOIN model_version AS v ON v.run_id = r.run_id
LEFT JOIN attempt AS d ON d.run_id = r.run_id AND d.attempt = (
    SELECT MAX(known.attempt) FROM attempt AS known WHERE known.run_id = r.run_id AND known.device IS NOT NULL)
LEFT JOIN slot_request AS q ON q.run_id = r.run_id AND q.attempt = r.attempt
"""
NIGHTS = """
SELECT n.* FROM nightly_runs AS n
WHERE n.run_id = (
    SELECT c.run_id FROM run AS c
    WHERE c.pipeline = n.pipeline AND c.night = n.night
    ORDER BY CASE WHEN c.status = 'superseded' THEN 2 WHEN c.dry_run THEN 1 ELSE 0 END, c.started_at DESC, c.run_id DESC
    LIMIT 1)
"""


def upgrade() -> None:
    _make_nullable(True)


def downgrade() -> None:
    op.execute("UPDATE run SET min_f1 = 0 WHERE min_f1 IS NULL")
    _make_nullable(False)


def _make_nullable(nullable: bool) -> None:
    if op.get_context().dialect.name == "postgresql":
        op.alter_column("run", "min_f1", nullable=nullable)
        return
    # SQLite cannot change a column, so that another takes its place.
    for name in ("nights", "nightly_runs"):
        op.execute(f"DROP VIEW {name}")
    default = None if nullable else "0"
    op.add_column("run", sa.Column("min_f1_copy", sa.Double(), nullable=nullable, server_default=default))
    op.execute("UPDATE run SET min_f1_copy = min_f1")
    op.drop_column("run", "min_f1")
    op.execute("ALTER TABLE run RENAME COLUMN min_f1_copy TO min_f1")
    for name, query in (("nightly_runs", NIGHTLY_RUNS), ("nights", NIGHTS)):
        op.execute(f"CREATE VIEW {name} AS {query.strip()}")
