"""The start of an attempt's process in clock ticks since the boot, which no setting of the clock changes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("attempt", sa.Column("owner_ticks", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    op.drop_column("attempt", "owner_ticks")
