"""Why a night trained or did not: a column of `nightly_runs` and `nights`."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

# As in 0011, with room for columns at the end.
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
       r.labels_corrected, r.rows_trained, r.label_revision{more}
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

DURATION = {
    "postgresql": "CAST(ROUND(EXTRACT(EPOCH FROM r.finished_at - r.started_at), 3) AS DOUBLE PRECISION)",
    "sqlite": "ROUND((julianday(r.finished_at) - julianday(r.started_at)) * 86400.0, 3)",
}
WAIT = {
    "postgresql": "CAST(ROUND(EXTRACT(EPOCH FROM q.granted_at - q.requested_at), 3) AS DOUBLE PRECISION)",
    "sqlite": "ROUND((julianday(q.granted_at) - julianday(q.requested_at)) * 86400.0, 3)",
}


def upgrade() -> None:
    op.add_column("run", sa.Column("reasons", sa.Text()))
    # Replaced in place on PostgreSQL: dropped, a view would lose who may read it. SQLite knows no such thing.
    in_place = op.get_context().dialect.name == "postgresql"
    if not in_place:
        _drop_views()
    _create_views("CREATE OR REPLACE VIEW" if in_place else "CREATE VIEW", ", r.reasons")


def downgrade() -> None:
    _drop_views()
    op.drop_column("run", "reasons")
    _create_views("CREATE VIEW", "")


def _create_views(create: str, more: str) -> None:
    engine = op.get_context().dialect.name
    runs = NIGHTLY_RUNS.format(duration=DURATION[engine], wait=WAIT[engine], more=more)
    for name, query in (("nightly_runs", runs), ("nights", NIGHTS)):
        op.execute(f"{create} {name} AS {query.strip()}")


def _drop_views() -> None:
    for name in ("nights", "nightly_runs"):
        op.execute(f"DROP VIEW {name}")
