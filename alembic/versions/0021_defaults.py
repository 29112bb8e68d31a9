"""Which values of a configuration are the defaults of their settings."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("document_value", sa.Column("is_default", sa.Boolean()))
