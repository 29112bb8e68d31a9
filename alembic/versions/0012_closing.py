"""When everything that follows the end of a run was done."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

# As in 0001: frozen, like all of a migration.
TIME = sa.String(27).with_variant(sa.DateTime(timezone=True), "postgresql")


def upgrade() -> None:
    op.add_column("run", sa.Column("closed_at", TIME, nullable=True))
    # What ended before this was recorded stays as it is.
    op.execute("UPDATE run SET closed_at = COALESCE(finished_at, started_at) WHERE status <> 'running'")


def downgrade() -> None:
    op.drop_column("run", "closed_at")
