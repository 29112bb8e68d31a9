"""The tables.

A migration is frozen: it names its own types and never looks at the models, which move on.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# timestamptz, and text that sorts as time on SQLite, which has no times.
TIME = sa.String(27).with_variant(sa.DateTime(timezone=True), "postgresql")
STATUS = (
    "status IN ('running', 'waiting', 'promoted', 'held', 'skipped', 'superseded', 'missed', 'cancelled', 'failed')"
)


def upgrade() -> None:
    op.create_table(
        "setting",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_setting")),
    )
    op.create_table(
        "snapshot",
        sa.Column("pipeline", sa.Text(), nullable=False),
        sa.Column("snapshot_id", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("test_version", sa.Text(), nullable=False),
        sa.Column("rows_total", sa.Integer(), nullable=False),
        sa.Column("rows_train", sa.Integer(), nullable=False),
        sa.Column("rows_validation", sa.Integer(), nullable=False),
        sa.Column("rows_test", sa.Integer(), nullable=False),
        sa.Column("rows_duplicate", sa.Integer(), nullable=False),
        sa.Column("rows_quarantined", sa.Integer(), nullable=False),
        sa.Column("data_until", TIME, nullable=True),
        sa.Column("first_time", TIME, nullable=True),
        sa.Column("last_time", TIME, nullable=True),
        sa.Column("manifest", sa.JSON(), nullable=False),
        sa.Column("recorded_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("pipeline", "snapshot_id", name=op.f("pk_snapshot")),
    )
    op.create_table(
        "run",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("pipeline", sa.Text(), nullable=False),
        sa.Column("night", sa.Date(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("trigger", sa.Text(), nullable=False),
        sa.Column("dry_run", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("error_type", sa.Text(), nullable=True),
        sa.Column("next_step", sa.Text(), nullable=True),
        sa.Column("verdict", sa.Text(), nullable=True),
        sa.Column("scheduled_for", TIME, nullable=True),
        sa.Column("data_until", TIME, nullable=False),
        sa.Column("snapshot_id", sa.Text(), nullable=True),
        sa.Column("rows_new", sa.Integer(), nullable=True),
        sa.Column("rows_total", sa.Integer(), nullable=True),
        sa.Column("best_epoch", sa.Integer(), nullable=True),
        sa.Column("test_version", sa.Text(), nullable=True),
        sa.Column("test_rows", sa.Integer(), nullable=True),
        sa.Column("test_accuracy", sa.Double(), nullable=True),
        sa.Column("test_f1", sa.Double(), nullable=True),
        sa.Column("test_precision", sa.Double(), nullable=True),
        sa.Column("test_recall", sa.Double(), nullable=True),
        sa.Column("f1_ci_low", sa.Double(), nullable=True),
        sa.Column("f1_ci_high", sa.Double(), nullable=True),
        sa.Column("champion_version", sa.Integer(), nullable=True),
        sa.Column("champion_f1", sa.Double(), nullable=True),
        sa.Column("f1_delta", sa.Double(), nullable=True),
        sa.Column("nonfinite", sa.Text(), nullable=False),
        sa.Column("average", sa.Text(), nullable=False),
        sa.Column("min_f1", sa.Double(), nullable=False),
        sa.Column("label_names", sa.JSON(), nullable=False),
        sa.Column("base_model", sa.Text(), nullable=False),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("config_hash", sa.Text(), nullable=False),
        sa.Column("code_version", sa.Text(), nullable=False),
        sa.Column("started_at", TIME, nullable=False),
        sa.Column("finished_at", TIME, nullable=True),
        sa.Column("prefect_flow_run_id", sa.Text(), nullable=True),
        sa.CheckConstraint("average IN ('weighted', 'macro')", name=op.f("ck_run_average")),
        sa.CheckConstraint(
            STATUS,
            name=op.f("ck_run_status"),
        ),
        sa.CheckConstraint("trigger IN ('schedule', 'manual', 'backfill', 'retry')", name=op.f("ck_run_trigger")),
        sa.CheckConstraint("verdict IN ('promote', 'hold', 'underpowered')", name=op.f("ck_run_verdict")),
        sa.ForeignKeyConstraint(
            ["pipeline", "snapshot_id"],
            ["snapshot.pipeline", "snapshot.snapshot_id"],
            name=op.f("fk_run_pipeline_snapshot_id"),
            onupdate="RESTRICT",
            ondelete="RESTRICT",
        ),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_run")),
    )
    op.create_index(op.f("ix_run_pipeline_night"), "run", ["pipeline", "night"], unique=False)
    op.create_table(
        "attempt",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("trigger", sa.Text(), nullable=False),
        sa.Column("error_type", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("owner_started", TIME, nullable=True),
        sa.Column("device", sa.Text(), nullable=True),
        sa.Column("precision", sa.Text(), nullable=True),
        sa.Column("precision_reason", sa.Text(), nullable=True),
        sa.Column("threads", sa.Integer(), nullable=True),
        sa.Column("resumed_from_epoch", sa.Integer(), nullable=True),
        sa.Column("code_version", sa.Text(), nullable=False),
        sa.Column("prefect_flow_run_id", sa.Text(), nullable=True),
        sa.Column("started_at", TIME, nullable=False),
        sa.Column("finished_at", TIME, nullable=True),
        sa.CheckConstraint(
            STATUS,
            name=op.f("ck_attempt_status"),
        ),
        sa.ForeignKeyConstraint(
            ["run_id"], ["run.run_id"], name=op.f("fk_attempt_run_id"), onupdate="RESTRICT", ondelete="RESTRICT"
        ),
        sa.PrimaryKeyConstraint("run_id", "attempt", name=op.f("pk_attempt")),
    )
    op.create_table(
        "confusion_cell",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("epoch", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("split", sa.Text(), nullable=False),
        sa.Column("true_label", sa.Text(), nullable=False),
        sa.Column("predicted_label", sa.Text(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.CheckConstraint("split IN ('validation', 'test')", name=op.f("ck_confusion_cell_split")),
        sa.ForeignKeyConstraint(
            ["run_id", "attempt"],
            ["attempt.run_id", "attempt.attempt"],
            name=op.f("fk_confusion_cell_run_id_attempt"),
            onupdate="RESTRICT",
            ondelete="RESTRICT",
        ),
        sa.PrimaryKeyConstraint(
            "run_id", "attempt", "epoch", "split", "true_label", "predicted_label", name=op.f("pk_confusion_cell")
        ),
    )
    op.create_table(
        "epoch",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("epoch", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("training_loss", sa.Double(), nullable=True),
        sa.Column("validation_loss", sa.Double(), nullable=True),
        sa.Column("support", sa.Integer(), nullable=False),
        sa.Column("accuracy", sa.Double(), nullable=True),
        sa.Column("f1_weighted", sa.Double(), nullable=True),
        sa.Column("f1_macro", sa.Double(), nullable=True),
        sa.Column("precision_weighted", sa.Double(), nullable=True),
        sa.Column("precision_macro", sa.Double(), nullable=True),
        sa.Column("recall_weighted", sa.Double(), nullable=True),
        sa.Column("recall_macro", sa.Double(), nullable=True),
        sa.Column("learning_rate", sa.Double(), nullable=True),
        sa.Column("examples_per_second", sa.Double(), nullable=True),
        sa.Column("nonfinite", sa.Text(), nullable=False),
        sa.Column("recorded_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id", "attempt"],
            ["attempt.run_id", "attempt.attempt"],
            name=op.f("fk_epoch_run_id_attempt"),
            onupdate="RESTRICT",
            ondelete="RESTRICT",
        ),
        sa.PrimaryKeyConstraint("run_id", "attempt", "epoch", name=op.f("pk_epoch")),
    )
    op.create_table(
        "gate_check",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("check_name", sa.Text(), nullable=False),
        sa.Column("slice_name", sa.Text(), nullable=False),
        sa.Column("slice_value", sa.Text(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("metric", sa.Text(), nullable=False),
        sa.Column("candidate_value", sa.Double(), nullable=True),
        sa.Column("champion_value", sa.Double(), nullable=True),
        sa.Column("threshold", sa.Double(), nullable=True),
        sa.Column("ci_low", sa.Double(), nullable=True),
        sa.Column("ci_high", sa.Double(), nullable=True),
        sa.Column("rows_used", sa.Integer(), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "outcome IN ('passed', 'failed', 'underpowered', 'warning', 'not_run')", name=op.f("ck_gate_check_outcome")
        ),
        sa.ForeignKeyConstraint(
            ["run_id", "attempt"],
            ["attempt.run_id", "attempt.attempt"],
            name=op.f("fk_gate_check_run_id_attempt"),
            onupdate="RESTRICT",
            ondelete="RESTRICT",
        ),
        sa.PrimaryKeyConstraint(
            "run_id", "attempt", "check_name", "slice_name", "slice_value", name=op.f("pk_gate_check")
        ),
    )
    op.create_table(
        "model_version",
        sa.Column("pipeline", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id", "attempt"],
            ["attempt.run_id", "attempt.attempt"],
            name=op.f("fk_model_version_run_id_attempt"),
            onupdate="RESTRICT",
            ondelete="RESTRICT",
        ),
        sa.PrimaryKeyConstraint("pipeline", "version", name=op.f("pk_model_version")),
        sa.UniqueConstraint("run_id", name=op.f("uq_model_version_run_id")),
    )
    op.create_table(
        "quarantined_row",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("row_id", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("excerpt", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id", "attempt"],
            ["attempt.run_id", "attempt.attempt"],
            name=op.f("fk_quarantined_row_run_id_attempt"),
            onupdate="RESTRICT",
            ondelete="RESTRICT",
        ),
        sa.PrimaryKeyConstraint("run_id", "attempt", "position", name=op.f("pk_quarantined_row")),
    )
    op.create_table(
        "slice_metric",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("epoch", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("split", sa.Text(), nullable=False),
        sa.Column("slice_name", sa.Text(), nullable=False),
        sa.Column("slice_value", sa.Text(), nullable=False),
        sa.Column("support", sa.Integer(), nullable=False),
        sa.Column("accuracy", sa.Double(), nullable=True),
        sa.Column("f1", sa.Double(), nullable=True),
        sa.Column("precision", sa.Double(), nullable=True),
        sa.Column("recall", sa.Double(), nullable=True),
        sa.CheckConstraint("split IN ('validation', 'test')", name=op.f("ck_slice_metric_split")),
        sa.ForeignKeyConstraint(
            ["run_id", "attempt"],
            ["attempt.run_id", "attempt.attempt"],
            name=op.f("fk_slice_metric_run_id_attempt"),
            onupdate="RESTRICT",
            ondelete="RESTRICT",
        ),
        sa.PrimaryKeyConstraint(
            "run_id", "attempt", "epoch", "split", "slice_name", "slice_value", name=op.f("pk_slice_metric")
        ),
    )
    op.create_table(
        "promotion",
        sa.Column("promotion_id", sa.Text(), nullable=False),
        sa.Column("pipeline", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("replaced_version", sa.Integer(), nullable=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=True),
        sa.Column("promoted_by", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("valid_from", TIME, nullable=False),
        sa.Column("valid_to", TIME, nullable=True),
        sa.CheckConstraint("kind IN ('promote', 'rollback')", name=op.f("ck_promotion_kind")),
        sa.CheckConstraint("valid_to > valid_from", name=op.f("ck_promotion_order")),
        sa.ForeignKeyConstraint(
            ["pipeline", "replaced_version"],
            ["model_version.pipeline", "model_version.version"],
            name=op.f("fk_promotion_pipeline_replaced_version"),
            onupdate="RESTRICT",
            ondelete="RESTRICT",
        ),
        sa.ForeignKeyConstraint(
            ["pipeline", "version"],
            ["model_version.pipeline", "model_version.version"],
            name=op.f("fk_promotion_pipeline_version"),
            onupdate="RESTRICT",
            ondelete="RESTRICT",
        ),
        sa.ForeignKeyConstraint(
            ["run_id"], ["run.run_id"], name=op.f("fk_promotion_run_id"), onupdate="RESTRICT", ondelete="RESTRICT"
        ),
        sa.PrimaryKeyConstraint("promotion_id", name=op.f("pk_promotion")),
    )
    op.create_index(op.f("ix_promotion_pipeline_valid_from"), "promotion", ["pipeline", "valid_from"], unique=False)
    op.create_index(
        "uq_promotion_champion",
        "promotion",
        ["pipeline"],
        unique=True,
        sqlite_where=sa.text("valid_to IS NULL"),
        postgresql_where=sa.text("valid_to IS NULL"),
    )


def downgrade() -> None:
    op.drop_index(
        "uq_promotion_champion",
        table_name="promotion",
        sqlite_where=sa.text("valid_to IS NULL"),
        postgresql_where=sa.text("valid_to IS NULL"),
    )
    op.drop_index(op.f("ix_promotion_pipeline_valid_from"), table_name="promotion")
    op.drop_table("promotion")
    op.drop_table("slice_metric")
    op.drop_table("quarantined_row")
    op.drop_table("model_version")
    op.drop_table("gate_check")
    op.drop_table("epoch")
    op.drop_table("confusion_cell")
    op.drop_table("attempt")
    op.drop_index(op.f("ix_run_pipeline_night"), table_name="run")
    op.drop_table("run")
    op.drop_table("snapshot")
    op.drop_table("setting")
