"""Forgotten rows, and snapshots whose files retention removed.

`snapshots` gains columns; `forgotten_rows` is new.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

# As in 0001: frozen, like all of a migration.
TIME = sa.String(27).with_variant(sa.DateTime(timezone=True), "postgresql")

COLUMNS = (
    sa.Column("files_removed_at", TIME),
    sa.Column("rows_redacted", sa.Integer(), nullable=False, server_default="0"),
)

# As in 0002, with room for columns at the end.
SNAPSHOTS = """
SELECT s.pipeline, s.snapshot_id, s.path, s.test_version, s.rows_total, s.rows_train, s.rows_validation, s.rows_test,
       s.rows_duplicate, s.rows_quarantined, s.data_until, s.first_time, s.last_time, s.recorded_at,
       (SELECT CAST(COUNT(*) AS INTEGER) FROM run AS r
        WHERE r.pipeline = s.pipeline AND r.snapshot_id = s.snapshot_id) AS runs{more}
FROM snapshot AS s
"""

FORGOTTEN_ROWS = """
SELECT pipeline, id_hash, forgotten_by, begun_at, finished_at, snapshots, rows_redacted, golden_rows,
       quarantined_rows, versions
FROM forgotten
"""


def upgrade() -> None:
    for column in COLUMNS:
        op.add_column("snapshot", column)
    op.create_table(
        "forgotten",
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("pipeline", "id_hash", "forgotten_by")),
        sa.Column("begun_at", TIME, nullable=False),
        sa.Column("finished_at", TIME),
        *(
            sa.Column(name, sa.Integer(), nullable=False)
            for name in ("snapshots", "rows_redacted", "golden_rows", "quarantined_rows")
        ),
        sa.Column("versions", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("pipeline", "id_hash", name="pk_forgotten"),
    )
    # Replaced in place on PostgreSQL: dropped, a view would lose who may read it. SQLite knows no such thing.
    in_place = op.get_context().dialect.name == "postgresql"
    if not in_place:
        op.execute("DROP VIEW snapshots")
    create = "CREATE OR REPLACE VIEW" if in_place else "CREATE VIEW"
    op.execute(f"{create} snapshots AS {SNAPSHOTS.format(more=', s.files_removed_at, s.rows_redacted').strip()}")
    op.execute(f"CREATE VIEW forgotten_rows AS {FORGOTTEN_ROWS.strip()}")


def downgrade() -> None:
    op.execute("DROP VIEW forgotten_rows")
    op.execute("DROP VIEW snapshots")
    op.drop_table("forgotten")
    for column in COLUMNS:
        op.drop_column("snapshot", column.name)
    op.execute(f"CREATE VIEW snapshots AS {SNAPSHOTS.format(more='').strip()}")
