"""The pipeline's own metrics, of each epoch on validation and of the best one on test."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

EPOCH_METRICS = """
SELECT r.pipeline, r.night, m.run_id, m.attempt, m.epoch, m.split, m.metric, m.value, m.reason
FROM epoch_metric AS m
JOIN run AS r ON r.run_id = m.run_id
"""


def upgrade() -> None:
    op.create_table(
        "epoch_metric",
        sa.Column("run_id", sa.Text(), nullable=False),
        *(sa.Column(name, sa.Integer(), nullable=False) for name in ("attempt", "epoch")),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("split", "metric")),
        sa.Column("value", sa.Double()),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.CheckConstraint("split IN ('validation', 'test')", name=op.f("ck_epoch_metric_split")),
        sa.ForeignKeyConstraint(
            ["run_id", "attempt"],
            ["attempt.run_id", "attempt.attempt"],
            name=op.f("fk_epoch_metric_run_id_attempt"),
            ondelete="RESTRICT",
            onupdate="RESTRICT",
        ),
        sa.PrimaryKeyConstraint("run_id", "attempt", "epoch", "split", "metric", name=op.f("pk_epoch_metric")),
    )
    op.execute(f"CREATE VIEW epoch_metrics AS {EPOCH_METRICS.strip()}")


def downgrade() -> None:
    op.execute("DROP VIEW epoch_metrics")
    op.drop_table("epoch_metric")
