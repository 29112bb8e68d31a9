"""The champion and the anchor on rows that came since they were chosen: `champion_evaluations`, and by slice."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

# As in 0001: frozen, like all of a migration.
TIME = sa.String(27).with_variant(sa.DateTime(timezone=True), "postgresql")

CHAMPION_EVALUATIONS = """
SELECT e.pipeline, e.model_version, e.evaluated_at, e.rows_from, e.rows_to, e.rows, e.f1, e.f1_ci_low, e.f1_ci_high,
       e.accuracy, NULLIF(e.alarms, '') AS alarm, e.role, e.reason, e.snapshot_id, e.run_id, e.min_f1, e.promotion_f1,
       e.fall, e.announced_at
FROM champion_evaluation AS e
"""

CHAMPION_EVALUATION_SLICES = """
SELECT e.pipeline, e.model_version, e.evaluated_at, e.role, e.snapshot_id, s.slice_name, s.slice_value, s.support,
       s.accuracy, s.f1, s.precision, s.recall
FROM champion_evaluation_slice AS s
JOIN champion_evaluation AS e ON e.pipeline = s.pipeline AND e.snapshot_id = s.snapshot_id
    AND e.model_version = s.model_version AND e.role = s.role
"""


def upgrade() -> None:
    texts = ("pipeline", "snapshot_id", "role")
    key = ("pipeline", "snapshot_id", "model_version", "role")
    op.create_table(
        "champion_evaluation",
        *(sa.Column(name, sa.Text(), nullable=False) for name in texts),
        _version(),
        sa.Column("run_id", sa.Text()),
        sa.Column("evaluated_at", TIME, nullable=False),
        *(sa.Column(name, TIME) for name in ("rows_from", "rows_to", "announced_at")),
        sa.Column("rows", sa.Integer(), nullable=False),
        *(sa.Column(name, sa.Double()) for name in ("f1", "f1_ci_low", "f1_ci_high", "accuracy", "min_f1")),
        *(sa.Column(name, sa.Double()) for name in ("promotion_f1", "fall")),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("alarms", "reason")),
        sa.Column("policy", sa.JSON(), nullable=False),
        sa.CheckConstraint("role IN ('champion', 'anchor')", name=op.f("ck_champion_evaluation_role")),
        _of("champion_evaluation", ("pipeline", "model_version"), "model_version", ("pipeline", "version")),
        _of("champion_evaluation", ("run_id",), "run", ("run_id",)),
        sa.PrimaryKeyConstraint(*key, name=op.f("pk_champion_evaluation")),
    )
    op.create_table(
        "champion_evaluation_slice",
        *(sa.Column(name, sa.Text(), nullable=False) for name in (*texts, "slice_name", "slice_value")),
        _version(),
        sa.Column("support", sa.Integer(), nullable=False),
        *(sa.Column(name, sa.Double()) for name in ("accuracy", "f1", "precision", "recall")),
        _of("champion_evaluation_slice", key, "champion_evaluation", key),
        sa.PrimaryKeyConstraint(*key, "slice_name", "slice_value", name=op.f("pk_champion_evaluation_slice")),
    )
    op.execute(f"CREATE VIEW champion_evaluations AS {CHAMPION_EVALUATIONS.strip()}")
    op.execute(f"CREATE VIEW champion_evaluation_slices AS {CHAMPION_EVALUATION_SLICES.strip()}")


def downgrade() -> None:
    for view in ("champion_evaluation_slices", "champion_evaluations"):
        op.execute(f"DROP VIEW {view}")
    for table in ("champion_evaluation_slice", "champion_evaluation"):
        op.drop_table(table)


def _version() -> sa.Column[int]:
    return sa.Column("model_version", sa.Integer(), autoincrement=False, nullable=False)


def _of(table: str, columns: tuple[str, ...], parent: str, names: tuple[str, ...]) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        columns,
        [f"{parent}.{name}" for name in names],
        name=op.f(f"fk_{table}_{'_'.join(columns)}"),
        ondelete="RESTRICT",
        onupdate="RESTRICT",
    )
