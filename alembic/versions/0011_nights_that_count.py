"""In the view `nights`, a later try that failed or was cancelled no longer hides a run that has a result."""

from __future__ import annotations

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

# As in 0005, with an order of its own.
NIGHTS = """
SELECT n.* FROM nightly_runs AS n
WHERE n.run_id = (
    SELECT c.run_id FROM run AS c
    WHERE c.pipeline = n.pipeline AND c.night = n.night
    ORDER BY {order}, c.started_at DESC, c.run_id DESC
    LIMIT 1)
"""
# What broke counts for a night that has no result, and a dry run for one that nothing else has run.
ORDER = """CASE WHEN c.status = 'superseded' THEN 3 WHEN c.dry_run THEN 2
                          WHEN c.status IN ('failed', 'cancelled', 'missed') THEN 1 ELSE 0 END"""
EARLIER_ORDER = "CASE WHEN c.status = 'superseded' THEN 2 WHEN c.dry_run THEN 1 ELSE 0 END"


def upgrade() -> None:
    _replace(ORDER)


def downgrade() -> None:
    _replace(EARLIER_ORDER)


def _replace(order: str) -> None:
    # Replaced in place on PostgreSQL: dropped, a view would lose who may read it. SQLite knows no such thing.
    in_place = op.get_context().dialect.name == "postgresql"
    if not in_place:
        op.execute("DROP VIEW nights")
    query = NIGHTS.format(order=order).strip()
    op.execute(f"{'CREATE OR REPLACE VIEW' if in_place else 'CREATE VIEW'} nights AS {query}")
