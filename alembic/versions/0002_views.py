"""The views that users query: the SQL contract. Columns are only ever added, at the end.

One text for both engines. What differs is the length of a run: PostgreSQL subtracts times, SQLite their Julian days.
"""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

METRIC_HISTORY = """
SELECT r.pipeline, r.night, e.run_id, e.attempt, e.epoch, e.step, e.training_loss, e.validation_loss, e.accuracy,
       CASE r.average WHEN 'macro' THEN e.f1_macro ELSE e.f1_weighted END AS f1,
       CASE r.average WHEN 'macro' THEN e.precision_macro ELSE e.precision_weighted END AS precision,
       CASE r.average WHEN 'macro' THEN e.recall_macro ELSE e.recall_weighted END AS recall,
       r.average, e.f1_weighted, e.f1_macro, e.learning_rate, e.examples_per_second, e.nonfinite, e.recorded_at,
       e.support
FROM epoch AS e
JOIN run AS r ON r.run_id = e.run_id
"""

# The line that counts. A later attempt replaces all that lies behind the epoch from which it started, as soon as it has
# an epoch of its own or has finished: its own epochs win, and what an earlier attempt had beyond its end is gone.
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
       r.dry_run, r.average, r.min_f1, r.test_accuracy, r.test_precision, r.test_recall, r.nonfinite
FROM run AS r
LEFT JOIN model_version AS v ON v.run_id = r.run_id
LEFT JOIN attempt AS d ON d.run_id = r.run_id AND d.attempt = (
    SELECT MAX(known.attempt) FROM attempt AS known WHERE known.run_id = r.run_id AND known.device IS NOT NULL)
"""

# A dry run counts only for a night that nothing else has run.
NIGHTS = """
SELECT n.* FROM nightly_runs AS n
WHERE n.run_id = (
    SELECT c.run_id FROM run AS c
    WHERE c.pipeline = n.pipeline AND c.night = n.night
    ORDER BY CASE WHEN c.status = 'superseded' THEN 2 WHEN c.dry_run THEN 1 ELSE 0 END, c.started_at DESC, c.run_id DESC
    LIMIT 1)
"""

# Of these, each attempt that comes to it writes all again: the last one counts.
GATE_CHECKS = """
SELECT r.pipeline, r.night, g.run_id, g.check_name, g.slice_name, g.slice_value, g.metric,
       g.candidate_value, g.champion_value, g.threshold, g.ci_low, g.ci_high, g.rows_used, g.outcome, g.reason,
       g.attempt, g.position
FROM gate_check AS g
JOIN run AS r ON r.run_id = g.run_id
WHERE NOT EXISTS (SELECT 1 FROM gate_check AS later WHERE later.run_id = g.run_id AND later.attempt > g.attempt)
"""

SLICE_METRICS = """
SELECT r.pipeline, r.night, s.run_id, s.attempt, s.epoch, s.split, s.slice_name, s.slice_value, s.support,
       s.accuracy, s.f1, s.precision, s.recall
FROM slice_metric AS s
JOIN run AS r ON r.run_id = s.run_id
"""

CONFUSION = """
SELECT e.run_id, e.epoch, e.split, e.true_label, e.predicted_label, e.count, r.pipeline, r.night, e.attempt
FROM confusion_cell AS e
JOIN run AS r ON r.run_id = e.run_id
WHERE (e.split = 'validation' AND {counts})
   OR (e.split = 'test' AND NOT EXISTS (
       SELECT 1 FROM confusion_cell AS later
       WHERE later.run_id = e.run_id AND later.split = 'test' AND later.attempt > e.attempt))
"""

CHAMPION_TIMELINE = """
SELECT p.pipeline, p.version AS model_version, v.run_id, p.valid_from, p.valid_to, p.promoted_by, p.reason,
       p.kind, v.path
FROM promotion AS p
JOIN model_version AS v ON v.pipeline = p.pipeline AND v.version = p.version
"""

MODEL_VERSIONS = """
SELECT v.pipeline, v.version, v.run_id, r.night,
       CASE WHEN EXISTS (SELECT 1 FROM promotion AS p WHERE p.pipeline = v.pipeline AND p.version = v.version
                         AND p.valid_to IS NULL) THEN 'champion'
            WHEN EXISTS (SELECT 1 FROM promotion AS p WHERE p.pipeline = v.pipeline AND p.version = v.version)
            THEN 'former'
            ELSE 'held' END AS status,
       v.path, r.test_f1, r.f1_ci_low, r.f1_ci_high, r.test_rows, r.test_version, r.best_epoch, r.snapshot_id,
       r.data_until, r.base_model, r.config_hash, r.code_version, v.created_at, v.attempt
FROM model_version AS v
JOIN run AS r ON r.run_id = v.run_id
"""

PROMOTIONS = """
SELECT p.pipeline, p.promotion_id, p.kind, p.version AS model_version, p.replaced_version,
       p.run_id AS promoting_run_id, p.promoted_by, p.reason, p.valid_from AS promoted_at, p.valid_to AS ended_at
FROM promotion AS p
"""

SNAPSHOTS = """
SELECT s.pipeline, s.snapshot_id, s.path, s.test_version, s.rows_total, s.rows_train, s.rows_validation, s.rows_test,
       s.rows_duplicate, s.rows_quarantined, s.data_until, s.first_time, s.last_time, s.recorded_at,
       (SELECT CAST(COUNT(*) AS INTEGER) FROM run AS r
        WHERE r.pipeline = s.pipeline AND r.snapshot_id = s.snapshot_id) AS runs
FROM snapshot AS s
"""

QUARANTINED_ROWS = """
SELECT r.pipeline, r.night, q.run_id, q.origin, q.row_id, q.reason, q.detail, q.excerpt, q.position
FROM quarantined_row AS q
JOIN run AS r ON r.run_id = q.run_id
WHERE NOT EXISTS (SELECT 1 FROM quarantined_row AS later WHERE later.run_id = q.run_id AND later.attempt > q.attempt)
"""

DURATION = {
    "postgresql": "CAST(ROUND(EXTRACT(EPOCH FROM r.finished_at - r.started_at), 3) AS DOUBLE PRECISION)",
    "sqlite": "ROUND((julianday(r.finished_at) - julianday(r.started_at)) * 86400.0, 3)",
}


def upgrade() -> None:
    duration = DURATION[op.get_context().dialect.name]
    views = {
        "metric_history": METRIC_HISTORY,
        "epoch_results": f"{METRIC_HISTORY} WHERE {COUNTS}",
        "nightly_runs": NIGHTLY_RUNS.format(duration=duration),
        "nights": NIGHTS,
        "gate_checks": GATE_CHECKS,
        "slice_metrics": SLICE_METRICS,
        "confusion": CONFUSION.format(counts=COUNTS),
        "champion_timeline": CHAMPION_TIMELINE,
        "model_versions": MODEL_VERSIONS,
        "promotions": PROMOTIONS,
        "snapshots": SNAPSHOTS,
        "quarantined_rows": QUARANTINED_ROWS,
    }
    for name, query in views.items():
        op.execute(f"CREATE VIEW {name} AS {query.strip()}")


def downgrade() -> None:
    for name in (
        "nights",
        "metric_history",
        "epoch_results",
        "nightly_runs",
        "gate_checks",
        "slice_metrics",
        "confusion",
        "champion_timeline",
        "model_versions",
        "promotions",
        "snapshots",
        "quarantined_rows",
    ):
        op.execute(f"DROP VIEW {name}")
