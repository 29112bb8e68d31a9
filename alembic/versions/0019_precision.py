"""In which precision scores were computed: of the test rows, of the champion's evaluations and of seeds."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("attempt", sa.Column("scoring_precision", sa.Text()))
    for table in ("champion_evaluation", "seed_run"):
        op.add_column(table, sa.Column("precision", sa.Text()))
