"""Drift of each night's new rows, against the champion's training rows and those of last week."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

DATA_DRIFT = """
SELECT r.pipeline, r.night, d.run_id, d.attempt, d.reference, d.statistic, d.slice_name, d.distance, d.value,
       d.threshold, d.tonight_value, d.reference_value, d.rows_used, d.reference_rows, d.outcome, d.reason
FROM drift_statistic AS d
JOIN run AS r ON r.run_id = d.run_id
"""


def upgrade() -> None:
    keys = ("reference", "statistic", "slice_name")
    op.create_table(
        "drift_statistic",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in (*keys, "distance")),
        *(sa.Column(name, sa.Double()) for name in ("value", "threshold", "tonight_value", "reference_value")),
        *(sa.Column(name, sa.Integer(), nullable=False) for name in ("rows_used", "reference_rows")),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("outcome", "reason")),
        sa.CheckConstraint("reference IN ('champion', 'last_week')", name=op.f("ck_drift_statistic_reference")),
        sa.CheckConstraint("outcome IN ('passed', 'warning')", name=op.f("ck_drift_statistic_outcome")),
        sa.ForeignKeyConstraint(
            ["run_id", "attempt"],
            ["attempt.run_id", "attempt.attempt"],
            name=op.f("fk_drift_statistic_run_id_attempt"),
            ondelete="RESTRICT",
            onupdate="RESTRICT",
        ),
        sa.PrimaryKeyConstraint("run_id", "attempt", *keys, name=op.f("pk_drift_statistic")),
    )
    op.execute(f"CREATE VIEW data_drift AS {DATA_DRIFT.strip()}")


def downgrade() -> None:
    op.execute("DROP VIEW data_drift")
    op.drop_table("drift_statistic")
