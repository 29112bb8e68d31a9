"""How an attempt computed: engine, parts of a batch, restarts, tokens a second; and the views that show it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# As in 0002, with room for columns at the end.
METRIC_HISTORY = """
SELECT r.pipeline, r.night, e.run_id, e.attempt, e.epoch, e.step, e.training_loss, e.validation_loss, e.accuracy,
       CASE r.average WHEN 'macro' THEN e.f1_macro ELSE e.f1_weighted END AS f1,
       CASE r.average WHEN 'macro' THEN e.precision_macro ELSE e.precision_weighted END AS precision,
       CASE r.average WHEN 'macro' THEN e.recall_macro ELSE e.recall_weighted END AS recall,
       r.average, e.f1_weighted, e.f1_macro, e.learning_rate, e.examples_per_second, e.nonfinite, e.recorded_at,
       e.support{of_epoch}
FROM epoch AS e
JOIN run AS r ON r.run_id = e.run_id
"""

COUNTS = """
NOT EXISTS (
    SELECT 1 FROM attempt AS later
    WHERE later.run_id = e.run_id AND later.attempt > e.attempt AND (
        EXISTS (SELECT 1 FROM epoch AS own
                WHERE own.run_id = later.run_id AND own.attempt = later.attempt AND own.epoch <= e.epoch)
        OR (later.resumed_from_epoch < e.epoch AND (
            later.status NOT IN ('running', 'failed', 'cancelled')
            OR EXISTS (SELECT 1 FROM epoch AS own
                       WHERE own.run_id = later.run_id AND own.attempt = later.attempt)))))
"""

NIGHTLY_RUNS = """
SELECT r.pipeline, r.night, r.run_id, r.status, r.reason, r.error_type, r.next_step, r.verdict, r.trigger,
       (SELECT CAST(COUNT(*) AS INTEGER) FROM attempt AS a WHERE a.run_id = r.run_id) AS attempts,
       r.scheduled_for, r.data_until, r.snapshot_id, r.rows_new, r.rows_total, r.best_epoch,
       r.test_version, r.test_rows, r.test_f1, r.f1_ci_low, r.f1_ci_high,
       r.champion_version, r.champion_f1, r.f1_delta, v.version AS model_version,
       r.base_model, r.config_hash, r.code_version, d.device, d.precision,
       r.started_at, r.finished_at, {duration} AS duration_seconds, r.prefect_flow_run_id,
       r.dry_run, r.average, r.min_f1, r.test_accuracy, r.test_precision, r.test_recall, r.nonfinite{of_attempt}
FROM run AS r
LEFT JOIN model_version AS v ON v.run_id = r.run_id
LEFT JOIN attempt AS d ON d.run_id = r.run_id AND d.attempt = (
    SELECT MAX(known.attempt) FROM attempt AS known WHERE known.run_id = r.run_id AND known.device IS NOT NULL)
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


def upgrade() -> None:
    op.add_column("attempt", sa.Column("engine", sa.Text(), nullable=True))
    op.add_column("attempt", sa.Column("engine_reason", sa.Text(), nullable=True))
    op.add_column("attempt", sa.Column("micro_batches", sa.Integer(), nullable=True))
    op.add_column("attempt", sa.Column("restarts", sa.Integer(), server_default="0", nullable=False))
    op.add_column("epoch", sa.Column("tokens_per_second", sa.Double(), nullable=True))
    # Replaced in place on PostgreSQL: dropped, a view would lose who may read it, and could not go while another stands
    # on it. SQLite knows neither.
    in_place = op.get_context().dialect.name == "postgresql"
    if not in_place:
        _drop_views()
    _create_views(
        "CREATE OR REPLACE VIEW" if in_place else "CREATE VIEW",
        of_epoch=", e.tokens_per_second",
        of_attempt=", d.engine, d.micro_batches",
    )


def downgrade() -> None:
    _drop_views()
    for column in ("engine", "engine_reason", "micro_batches", "restarts"):
        op.drop_column("attempt", column)
    op.drop_column("epoch", "tokens_per_second")
    _create_views("CREATE VIEW", of_epoch="", of_attempt="")


def _create_views(create: str, *, of_epoch: str, of_attempt: str) -> None:
    history = METRIC_HISTORY.format(of_epoch=of_epoch)
    runs = NIGHTLY_RUNS.format(duration=DURATION[op.get_context().dialect.name], of_attempt=of_attempt)
    views = {
        "metric_history": history,
        "epoch_results": f"{history} WHERE {COUNTS}",
        "nightly_runs": runs,
        "nights": NIGHTS,
    }
    for name, query in views.items():
        op.execute(f"{create} {name} AS {query.strip()}")


def _drop_views() -> None:
    for name in ("nights", "nightly_runs", "epoch_results", "metric_history"):
        op.execute(f"DROP VIEW {name}")
