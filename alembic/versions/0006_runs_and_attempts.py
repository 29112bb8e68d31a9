"""What runs and attempts record since the gate: rows trained on, corrected labels, inputs, what follows their end.

`nightly_runs`, `nights` and `model_versions` gain columns; in `nights` a later try that failed or was cancelled no
longer hides a run that has a result. `run.min_f1` may be NULL: a threshold that follows from the test rows is not known
before they are judged.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# As in 0001: frozen, like all of a migration.
TIME = sa.String(27).with_variant(sa.DateTime(timezone=True), "postgresql")

COLUMNS = {
    # Clock ticks from the boot to the start of the process, which no setting of the clock changes.
    "attempt": (("owner_ticks", sa.BigInteger()),),
    "run": (
        ("labels_corrected", sa.Integer()),
        ("rows_trained", sa.Integer()),
        ("inputs", sa.JSON()),
        # When everything that follows the end of the run was done.
        ("closed_at", TIME),
    ),
}

# As in 0005, with room for columns at the end.
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
       r.champion_fresh_rows, r.fresh_ci_low, r.fresh_ci_high, r.anchor_version, r.anchor_f1, r.metric_key{more}
FROM run AS r
LEFT JOIN model_version AS v ON v.run_id = r.run_id
LEFT JOIN attempt AS d ON d.run_id = r.run_id AND d.attempt = (
    SELECT MAX(known.attempt) FROM attempt AS known WHERE known.run_id = r.run_id AND known.device IS NOT NULL)
LEFT JOIN slot_request AS q ON q.run_id = r.run_id AND q.attempt = r.attempt
"""

# As in 0005, with an order of its own.
NIGHTS = """
SELECT n.* FROM nightly_runs AS n
WHERE n.run_id = (
    SELECT c.run_id FROM run AS c
    WHERE c.pipeline = n.pipeline AND c.night = n.night
    ORDER BY {order}, c.started_at DESC, c.run_id DESC
    LIMIT 1)
"""
# What broke counts for a night that has no result, and a dry run for one that nothing else has run.
ORDER = """CASE WHEN c.status = 'superseded' THEN 3 WHEN c.dry_run THEN 2
                          WHEN c.status IN ('failed', 'cancelled', 'missed') THEN 1 ELSE 0 END"""
EARLIER_ORDER = "CASE WHEN c.status = 'superseded' THEN 2 WHEN c.dry_run THEN 1 ELSE 0 END"

# As in 0005, with room for columns at the end.
MODEL_VERSIONS = """
SELECT v.pipeline, v.version, v.run_id, r.night,
       CASE WHEN EXISTS (SELECT 1 FROM promotion AS p WHERE p.pipeline = v.pipeline AND p.version = v.version
                         AND p.valid_to IS NULL) THEN 'champion'
            WHEN v.quarantined_at IS NOT NULL THEN 'quarantined'
            WHEN EXISTS (SELECT 1 FROM promotion AS p WHERE p.pipeline = v.pipeline AND p.version = v.version)
            THEN 'former'
            ELSE 'held' END AS status,
       v.path, r.test_f1, r.f1_ci_low, r.f1_ci_high, r.test_rows, r.test_version, r.best_epoch, r.snapshot_id,
       r.data_until, r.base_model, r.config_hash, r.code_version, v.created_at, v.attempt,
       v.started_from, v.base_model_revision, v.size_bytes, v.quarantined_at, v.quarantined_by, v.quarantine_reason,
       v.files_removed_at{more}
FROM model_version AS v
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


def upgrade() -> None:
    # Replaced in place on PostgreSQL: dropped, a view would lose who may read it. SQLite knows no such thing.
    in_place = op.get_context().dialect.name == "postgresql"
    if not in_place:
        _drop_views()
    for table, columns in COLUMNS.items():
        for name, kind in columns:
            op.add_column(table, sa.Column(name, kind, nullable=True))
    # What ended before this was recorded stays as it is.
    op.execute("UPDATE run SET closed_at = COALESCE(finished_at, started_at) WHERE status <> 'running'")
    _make_min_f1(nullable=True)
    create = "CREATE OR REPLACE VIEW" if in_place else "CREATE VIEW"
    _create_views(create, ",\n       r.labels_corrected, r.rows_trained", ORDER, ", r.rows_trained, r.average")


def downgrade() -> None:
    _drop_views()
    op.execute("UPDATE run SET min_f1 = 0 WHERE min_f1 IS NULL")
    _make_min_f1(nullable=False)
    for table, columns in COLUMNS.items():
        for name, _ in columns:
            op.drop_column(table, name)
    _create_views("CREATE VIEW", "", EARLIER_ORDER, "")


def _make_min_f1(*, nullable: bool) -> None:
    if op.get_context().dialect.name == "postgresql":
        op.alter_column("run", "min_f1", nullable=nullable)
        return
    # SQLite cannot change a column, so that another takes its place; no view may use it then.
    default = None if nullable else "0"
    op.add_column("run", sa.Column("min_f1_copy", sa.Double(), nullable=nullable, server_default=default))
    op.execute("UPDATE run SET min_f1_copy = min_f1")
    op.drop_column("run", "min_f1")
    op.execute("ALTER TABLE run RENAME COLUMN min_f1_copy TO min_f1")


def _create_views(create: str, of_runs: str, order: str, of_versions: str) -> None:
    engine = op.get_context().dialect.name
    runs = NIGHTLY_RUNS.format(duration=DURATION[engine], wait=WAIT[engine], more=of_runs)
    versions = MODEL_VERSIONS.format(more=of_versions)
    for name, query in (("nightly_runs", runs), ("nights", NIGHTS.format(order=order)), ("model_versions", versions)):
        op.execute(f"{create} {name} AS {query.strip()}")


def _drop_views() -> None:
    for name in ("nights", "nightly_runs", "model_versions"):
        op.execute(f"DROP VIEW {name}")
