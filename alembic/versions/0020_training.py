"""How a run trains: in full, or on from a version."""

from __future__ import annotations

from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for column in ("training TEXT", "started_from INTEGER", "training_reason TEXT"):
        op.execute(f"ALTER TABLE run ADD COLUMN {column}")
