"""The view `nights` reads the runs once: with a query for each run, time grew with the square of their number."""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

# A dry run counts only for a night that nothing else has run.
NIGHTS = """
SELECT n.* FROM nightly_runs AS n
WHERE n.run_id IN (
    SELECT ranked.run_id FROM (
        SELECT c.run_id, ROW_NUMBER() OVER (
            PARTITION BY c.pipeline, c.night
            ORDER BY CASE WHEN c.status = 'superseded' THEN 2 WHEN c.dry_run THEN 1 ELSE 0 END,
                     c.started_at DESC, c.run_id DESC) AS place
        FROM run AS c) AS ranked
    WHERE ranked.place = 1)
"""

# As in 0005.
EARLIER_NIGHTS = """
SELECT n.* FROM nightly_runs AS n
WHERE n.run_id = (
    SELECT c.run_id FROM run AS c
    WHERE c.pipeline = n.pipeline AND c.night = n.night
    ORDER BY CASE WHEN c.status = 'superseded' THEN 2 WHEN c.dry_run THEN 1 ELSE 0 END, c.started_at DESC, c.run_id DESC
    LIMIT 1)
"""


def upgrade() -> None:
    _replace(NIGHTS)


def downgrade() -> None:
    _replace(EARLIER_NIGHTS)


def _replace(query: str) -> None:
    # Replaced in place on PostgreSQL: dropped, a view would lose who may read it. SQLite knows no such thing.
    in_place = op.get_context().dialect.name == "postgresql"
    if not in_place:
        op.execute("DROP VIEW nights")
    op.execute(f"{'CREATE OR REPLACE VIEW' if in_place else 'CREATE VIEW'} nights AS {query.strip()}")
