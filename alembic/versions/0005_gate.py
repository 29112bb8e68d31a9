"""The gate: what models are judged on and what they said, anchors, freezes, quarantined versions, seed studies."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# As in 0001: frozen, like all of a migration.
TIME = sa.String(27).with_variant(sa.DateTime(timezone=True), "postgresql")
SIDE = "side IN ('candidate', 'champion', 'anchor')"
KIND = "kind IN ('test', 'golden')"
SCOPE = "scope IN ('window', 'all', 'golden', 'slice')"

RUN_COLUMNS = {
    "window_start": TIME,
    "test_rows_all": sa.Integer(),
    "test_f1_all": sa.Double(),
    "rows_left_out": sa.Integer(),
    "detectable_gain": sa.Double(),
    "champion_fresh_f1": sa.Double(),
    "champion_fresh_rows": sa.Integer(),
    "fresh_ci_low": sa.Double(),
    "fresh_ci_high": sa.Double(),
    "anchor_version": sa.Integer(),
    "anchor_f1": sa.Double(),
    "metric_key": sa.Text(),
}
VERSION_COLUMNS = {
    "started_from": sa.Integer(),
    "base_model_revision": sa.Text(),
    "environment": sa.JSON(),
    "size_bytes": sa.BigInteger(),
    "quarantined_at": TIME,
    "quarantined_by": sa.Text(),
    "quarantine_reason": sa.Text(),
    "files_removed_at": TIME,
}

# As in 0004, with room for columns at the end.
NIGHTLY_RUNS = """
SELECT r.pipeline, r.night, r.run_id, r.status, r.reason, r.error_type, r.next_step, r.verdict, r.trigger,
       (SELECT CAST(COUNT(*) AS INTEGER) FROM attempt AS a WHERE a.run_id = r.run_id) AS attempts,
       r.scheduled_for, r.data_until, r.snapshot_id, r.rows_new, r.rows_total, r.best_epoch,
       r.test_version, r.test_rows, r.test_f1, r.f1_ci_low, r.f1_ci_high,
       r.champion_version, r.champion_f1, r.f1_delta, v.version AS model_version,
       r.base_model, r.config_hash, r.code_version, d.device, d.precision,
       r.started_at, r.finished_at, {duration} AS duration_seconds, r.prefect_flow_run_id,
       r.dry_run, r.average, r.min_f1, r.test_accuracy, r.test_precision, r.test_recall, r.nonfinite,
       d.engine, d.micro_batches, q.slot, {wait} AS slot_wait_seconds, r.announced_at{of_gate}
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

DURATION = {
    "postgresql": "CAST(ROUND(EXTRACT(EPOCH FROM r.finished_at - r.started_at), 3) AS DOUBLE PRECISION)",
    "sqlite": "ROUND((julianday(r.finished_at) - julianday(r.started_at)) * 86400.0, 3)",
}
WAIT = {
    "postgresql": "CAST(ROUND(EXTRACT(EPOCH FROM q.granted_at - q.requested_at), 3) AS DOUBLE PRECISION)",
    "sqlite": "ROUND((julianday(q.granted_at) - julianday(q.requested_at)) * 86400.0, 3)",
}

# As in 0002, with a status and columns more.
MODEL_VERSIONS = """
SELECT v.pipeline, v.version, v.run_id, r.night,
       CASE WHEN EXISTS (SELECT 1 FROM promotion AS p WHERE p.pipeline = v.pipeline AND p.version = v.version
                         AND p.valid_to IS NULL) THEN 'champion'
            {quarantined}
            WHEN EXISTS (SELECT 1 FROM promotion AS p WHERE p.pipeline = v.pipeline AND p.version = v.version)
            THEN 'former'
            ELSE 'held' END AS status,
       v.path, r.test_f1, r.f1_ci_low, r.f1_ci_high, r.test_rows, r.test_version, r.best_epoch, r.snapshot_id,
       r.data_until, r.base_model, r.config_hash, r.code_version, v.created_at, v.attempt{of_gate}
FROM model_version AS v
JOIN run AS r ON r.run_id = v.run_id
"""

NEW_VIEWS = {
    "anchor_timeline": """
SELECT a.pipeline, a.version AS model_version, a.valid_from, a.valid_to, a.run_id AS moving_run_id, a.moved_by, a.reason
FROM anchor AS a
""",
    "freezes": """
SELECT f.pipeline, f.frozen_at, f.frozen_by, f.reason, f.ended_at, f.ended_by, f.end_reason
FROM pipeline_freeze AS f
""",
    # Of these, each attempt that comes to it writes all again: the last one counts.
    "gate_sides": """
SELECT r.pipeline, r.night, g.run_id, g.side, g.version AS model_version, g.data_until, g.flaw, g.rows_trained_on,
       g.calibration_error, g.nonfinite_rows, g.latency_ms, g.size_bytes, g.logit_difference, g.serving_flaw, g.attempt
FROM gate_side AS g
JOIN run AS r ON r.run_id = g.run_id
WHERE NOT EXISTS (SELECT 1 FROM gate_side AS later WHERE later.run_id = g.run_id AND later.attempt > g.attempt)
""",
    "joint_outcomes": """
SELECT r.pipeline, r.night, j.run_id, j.scope, j.slice_name, j.slice_value, j.reference, j.true_label,
       j.reference_label, j.candidate_label, j.count, j.attempt
FROM joint_outcome AS j
JOIN run AS r ON r.run_id = j.run_id
WHERE NOT EXISTS (SELECT 1 FROM joint_outcome AS later WHERE later.run_id = j.run_id AND later.attempt > j.attempt)
""",
    "seed_studies": """
SELECT s.pipeline, s.study_id, s.snapshot_id, s.config_hash, s.code_version, s.average, s.num_seeds, s.f1_mean,
       s.f1_spread, s.started_at, s.finished_at
FROM seed_study AS s
""",
    "seed_runs": """
SELECT s.pipeline, n.study_id, n.seed, n.best_epoch, n.validation_f1, n.test_f1, n.test_accuracy, n.error,
       n.duration_seconds, n.recorded_at
FROM seed_run AS n
JOIN seed_study AS s ON s.study_id = n.study_id
""",
}


def upgrade() -> None:
    for name, kind in RUN_COLUMNS.items():
        op.add_column("run", sa.Column(name, kind, nullable=True))
    for name, kind in VERSION_COLUMNS.items():
        op.add_column("model_version", sa.Column(name, kind, nullable=True))
    _create_evidence()
    _create_reigns()
    _create_studies()
    _replace_views(of_gate=True)
    for name, query in NEW_VIEWS.items():
        op.execute(f"CREATE VIEW {name} AS {query.strip()}")


def downgrade() -> None:
    for name in NEW_VIEWS:
        op.execute(f"DROP VIEW {name}")
    _drop_views()
    for table in (
        *("seed_run", "seed_study", "pipeline_freeze", "anchor"),
        *("joint_outcome", "gate_side", "test_prediction", "test_set"),
    ):
        op.drop_table(table)
    for name in VERSION_COLUMNS:
        op.drop_column("model_version", name)
    for name in RUN_COLUMNS:
        op.drop_column("run", name)
    _create_views("CREATE VIEW", of_gate=False)


def _create_evidence() -> None:
    op.create_table(
        "test_set",
        _words("pipeline"),
        _words("test_set_id"),
        _words("kind"),
        sa.Column("num_rows", sa.Integer(), nullable=False),
        sa.Column("label_names", sa.JSON(), nullable=False),
        *(sa.Column(name, sa.LargeBinary(), nullable=False) for name in ("fingerprints", "labels", "seen_at")),
        sa.Column("groups", sa.LargeBinary(), nullable=True),
        sa.Column("slices", sa.LargeBinary(), nullable=False),
        sa.Column("recorded_at", TIME, nullable=False),
        sa.CheckConstraint(KIND, name=op.f("ck_test_set_kind")),
        sa.PrimaryKeyConstraint("pipeline", "test_set_id", name=op.f("pk_test_set")),
    )
    op.create_table(
        "test_prediction",
        *_of_attempt("test_prediction"),
        *map(_words, ("side", "kind", "pipeline", "test_set_id", "model_run_id")),
        sa.Column("labels", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint(SIDE, name=op.f("ck_test_prediction_side")),
        sa.CheckConstraint(KIND, name=op.f("ck_test_prediction_kind")),
        _key("test_prediction", "pipeline test_set_id", "test_set"),
        _key("test_prediction", "model_run_id", "run", "run_id"),
        sa.PrimaryKeyConstraint("run_id", "attempt", "side", "kind", name=op.f("pk_test_prediction")),
    )
    op.create_index(op.f("ix_test_prediction_model_run_id"), "test_prediction", ["model_run_id"])
    op.create_table(
        "gate_side",
        *_of_attempt("gate_side"),
        _words("side"),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("data_until", TIME, nullable=True),
        _words("flaw"),
        sa.Column("rows_trained_on", sa.Integer(), nullable=True),
        sa.Column("calibration_error", sa.Double(), nullable=True),
        sa.Column("nonfinite_rows", sa.Integer(), nullable=False),
        sa.Column("latency_ms", sa.Double(), nullable=True),
        sa.Column("size_bytes", sa.BigInteger(), nullable=True),
        sa.Column("logit_difference", sa.Double(), nullable=True),
        _words("serving_flaw"),
        sa.Column("facts", sa.JSON(), nullable=False),
        sa.CheckConstraint(SIDE, name=op.f("ck_gate_side_side")),
        sa.PrimaryKeyConstraint("run_id", "attempt", "side", name=op.f("pk_gate_side")),
    )
    keys = ("scope", "slice_name", "slice_value", "reference", "true_label", "reference_label", "candidate_label")
    op.create_table(
        "joint_outcome",
        *_of_attempt("joint_outcome"),
        *map(_words, keys),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.CheckConstraint(SCOPE, name=op.f("ck_joint_outcome_scope")),
        sa.PrimaryKeyConstraint("run_id", "attempt", *keys, name=op.f("pk_joint_outcome")),
    )


def _create_reigns() -> None:
    op.create_table(
        "anchor",
        _words("anchor_id"),
        _words("pipeline"),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=True),
        _words("moved_by"),
        _words("reason"),
        sa.Column("valid_from", TIME, nullable=False),
        sa.Column("valid_to", TIME, nullable=True),
        sa.CheckConstraint("valid_to > valid_from", name=op.f("ck_anchor_order")),
        _key("anchor", "pipeline version", "model_version"),
        _key("anchor", "run_id", "run"),
        sa.PrimaryKeyConstraint("anchor_id", name=op.f("pk_anchor")),
    )
    op.create_table(
        "pipeline_freeze",
        _words("freeze_id"),
        _words("pipeline"),
        sa.Column("frozen_at", TIME, nullable=False),
        _words("frozen_by"),
        _words("reason"),
        sa.Column("ended_at", TIME, nullable=True),
        sa.Column("ended_by", sa.Text(), nullable=True),
        sa.Column("end_reason", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("freeze_id", name=op.f("pk_pipeline_freeze")),
    )
    for name, table, condition in (
        ("uq_anchor_open", "anchor", "valid_to IS NULL"),
        ("uq_pipeline_freeze_open", "pipeline_freeze", "ended_at IS NULL"),
    ):
        open_only = {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}
        op.create_index(name, table, ["pipeline"], unique=True, **open_only)


def _create_studies() -> None:
    op.create_table(
        "seed_study",
        *map(_words, ("study_id", "pipeline", "snapshot_id", "config_hash", "code_version", "average")),
        sa.Column("num_seeds", sa.Integer(), nullable=False),
        sa.Column("f1_mean", sa.Double(), nullable=True),
        sa.Column("f1_spread", sa.Double(), nullable=True),
        sa.Column("started_at", TIME, nullable=False),
        sa.Column("finished_at", TIME, nullable=True),
        _key("seed_study", "pipeline snapshot_id", "snapshot"),
        sa.PrimaryKeyConstraint("study_id", name=op.f("pk_seed_study")),
    )
    op.create_table(
        "seed_run",
        _words("study_id"),
        sa.Column("seed", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("best_epoch", sa.Integer(), nullable=True),
        *(sa.Column(name, sa.Double(), nullable=True) for name in ("validation_f1", "test_f1", "test_accuracy")),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("duration_seconds", sa.Double(), nullable=True),
        sa.Column("recorded_at", TIME, nullable=False),
        _key("seed_run", "study_id", "seed_study"),
        sa.PrimaryKeyConstraint("study_id", "seed", name=op.f("pk_seed_run")),
    )


def _words(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), nullable=False)


def _of_attempt(table: str) -> tuple[sa.schema.SchemaItem, ...]:
    number = sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False)
    return _words("run_id"), number, _key(table, "run_id attempt", "attempt")


def _key(table: str, columns: str, target: str, referred: str = "") -> sa.ForeignKeyConstraint:
    """A foreign key that never lets a parent go, to columns of the same names unless `referred` says otherwise."""
    names = columns.split()
    return sa.ForeignKeyConstraint(
        names,
        [f"{target}.{name}" for name in (referred or columns).split()],
        name=op.f(f"fk_{table}_{'_'.join(names)}"),
        ondelete="RESTRICT",
        onupdate="RESTRICT",
    )


def _replace_views(*, of_gate: bool) -> None:
    # Replaced in place on PostgreSQL: dropped, a view would lose who may read it. SQLite knows no such thing.
    in_place = op.get_context().dialect.name == "postgresql"
    if not in_place:
        _drop_views()
    _create_views("CREATE OR REPLACE VIEW" if in_place else "CREATE VIEW", of_gate=of_gate)


def _create_views(create: str, *, of_gate: bool) -> None:
    engine = op.get_context().dialect.name
    runs = NIGHTLY_RUNS.format(
        duration=DURATION[engine], wait=WAIT[engine], of_gate=_listed("r", RUN_COLUMNS) if of_gate else ""
    )
    shown = [name for name in VERSION_COLUMNS if name != "environment"]
    versions = MODEL_VERSIONS.format(
        quarantined="WHEN v.quarantined_at IS NOT NULL THEN 'quarantined'" if of_gate else "",
        of_gate=_listed("v", shown) if of_gate else "",
    )
    for name, query in (("nightly_runs", runs), ("nights", NIGHTS), ("model_versions", versions)):
        op.execute(f"{create} {name} AS {query.strip()}")


def _listed(table: str, columns: list[str] | dict[str, sa.types.TypeEngine[object]]) -> str:
    return "".join(f",\n       {table}.{name}" for name in columns)


def _drop_views() -> None:
    for name in ("nights", "nightly_runs", "model_versions"):
        op.execute(f"DROP VIEW {name}")
