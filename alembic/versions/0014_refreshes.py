"""Refreshes on their own: their rows in `refresh`, and what they find in the tables that held what nights found.

`refreshes` is new. In `refresh_counts`, `data_checks`, `data_drift`, `label_votes` and `quarantined_rows` the `run_id`
is that of a run, or the `refresh_id` of a refresh that belongs to no night.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

# As in 0001: frozen, like all of a migration.
TIME = sa.String(27).with_variant(sa.DateTime(timezone=True), "postgresql")

PLACES = ("taken", "merged", "replaced", "deleted", "quarantined", "conflicting", "future", "outside")

REFRESHES = """
SELECT f.pipeline, f.night, f.refresh_id, f.status, f.reason, f.error_type, f.next_step, f.data_until, f.snapshot_id,
       f.rows_new, f.rows_total, f.label_revision, f.started_at, f.finished_at, f.prefect_flow_run_id
FROM refresh AS f
"""

RUN = "run"
RUN_OR_REFRESH = """(
    SELECT run_id, pipeline, night FROM run UNION ALL SELECT refresh_id AS run_id, pipeline, night FROM refresh)"""

OF_LAST_ATTEMPT = """
FROM {table} AS c
JOIN {of} AS r ON r.run_id = c.run_id
WHERE NOT EXISTS (SELECT 1 FROM {table} AS later WHERE later.run_id = c.run_id AND later.attempt > c.attempt)
"""

# As in 0010 and 0011, but for what the rows belong to.
VIEWS = {
    "refresh_counts": f"""
SELECT r.pipeline, r.night, c.run_id, c.attempt, c.position, c.part, c.rows_seen,
       {", ".join(f"c.rows_{place}" for place in PLACES)}, c.rows_vanished, c.bytes, c.modified, c.unchanged
{OF_LAST_ATTEMPT.replace("{table}", "refresh_count").strip()}
""",
    "data_checks": f"""
SELECT r.pipeline, r.night, c.run_id, c.attempt, c.position, c.check_name, c.value, c.threshold, c.outcome, c.reason,
       c.allowed_by, c.allowed_reason
{OF_LAST_ATTEMPT.replace("{table}", "data_check").strip()}
""",
    "label_votes": """
SELECT v.pipeline, r.night, v.run_id, v.fingerprint, v.label, v.votes, v.chosen
FROM label_vote AS v
JOIN {of} AS r ON r.run_id = v.run_id
""",
    "data_drift": """
SELECT r.pipeline, r.night, d.run_id, d.attempt, d.reference, d.statistic, d.slice_name, d.distance, d.value,
       d.threshold, d.tonight_value, d.reference_value, d.rows_used, d.reference_rows, d.outcome, d.reason
FROM drift_statistic AS d
JOIN {of} AS r ON r.run_id = d.run_id
""",
}

ATTEMPT = (("run_id", "attempt"), ("attempt.run_id", "attempt.attempt"))
PARENTS = {
    "refresh_count": ATTEMPT,
    "data_check": ATTEMPT,
    "drift_statistic": ATTEMPT,
    "quarantine": ATTEMPT,
    "label_vote": (("run_id",), ("run.run_id",)),
}
"""Tables whose rows may now belong to a refresh, and what their foreign keys were."""


def upgrade() -> None:
    op.create_table(
        "refresh",
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("refresh_id", "pipeline")),
        sa.Column("night", sa.Date(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        *(sa.Column(name, sa.Text()) for name in ("reason", "error_type", "next_step")),
        sa.Column("data_until", TIME, nullable=False),
        sa.Column("snapshot_id", sa.Text()),
        *(sa.Column(name, sa.Integer()) for name in ("rows_new", "rows_total", "label_revision")),
        *(sa.Column(name, TIME, nullable=False) for name in ("started_at", "finished_at")),
        sa.Column("prefect_flow_run_id", sa.Text()),
        sa.CheckConstraint("status IN ('completed', 'failed')", name=op.f("ck_refresh_status")),
        sa.ForeignKeyConstraint(
            ["pipeline", "snapshot_id"],
            ["snapshot.pipeline", "snapshot.snapshot_id"],
            name="fk_refresh_pipeline_snapshot_id",
            ondelete="RESTRICT",
            onupdate="RESTRICT",
        ),
        sa.PrimaryKeyConstraint("refresh_id", name="pk_refresh"),
    )
    op.create_index("ix_refresh_pipeline_started_at", "refresh", ["pipeline", "started_at"])
    for table, (columns, _) in PARENTS.items():
        if _is_postgresql():
            op.drop_constraint(f"fk_{table}_{'_'.join(columns)}", table, type_="foreignkey")
        else:
            _rebuild(table, with_parent=False)
    _create_views(RUN_OR_REFRESH)
    op.execute(f"CREATE VIEW refreshes AS {REFRESHES.strip()}")


def downgrade() -> None:
    op.execute("DROP VIEW refreshes")
    _create_views(RUN)
    for table, (columns, parent) in PARENTS.items():
        op.execute(f"DELETE FROM {table} WHERE run_id IN (SELECT refresh_id FROM refresh)")
        if _is_postgresql():
            name = f"fk_{table}_{'_'.join(columns)}"
            known, keys = parent[0].split(".")[0], [column.split(".")[1] for column in parent]
            op.create_foreign_key(name, table, known, columns, keys, ondelete="RESTRICT", onupdate="RESTRICT")
        else:
            _rebuild(table, with_parent=True)
    op.drop_table("refresh")


def _is_postgresql() -> bool:
    return op.get_context().dialect.name == "postgresql"


def _create_views(of: str) -> None:
    for name, query in VIEWS.items():
        if not _is_postgresql():
            op.execute(f"DROP VIEW {name}")
        # Replaced in place on PostgreSQL: dropped, a view would lose who may read it. SQLite knows no such thing.
        create = "CREATE OR REPLACE VIEW" if _is_postgresql() else "CREATE VIEW"
        op.execute(f"{create} {name} AS {query.format(table=name, of=of).strip()}")


def _rebuild(table: str, *, with_parent: bool) -> None:
    """Make a table of SQLite anew, which can neither drop nor add a constraint.

    Without a rename, which would check views of users that read ours.
    """
    op.execute(f"CREATE TABLE kept_{table} AS SELECT * FROM {table}")
    op.drop_table(table)
    columns, parent = PARENTS[table]
    of_parent = sa.ForeignKeyConstraint(
        columns, parent, name=f"fk_{table}_{'_'.join(columns)}", onupdate="RESTRICT", ondelete="RESTRICT"
    )
    op.create_table(table, *_columns(table), *([of_parent] if with_parent else []))
    op.execute(f"INSERT INTO {table} SELECT * FROM kept_{table}")
    op.drop_table(f"kept_{table}")


def _columns(table: str) -> tuple[sa.Column[object] | sa.Constraint, ...]:
    """Columns, checks and key of a table, as in 0010 and 0011."""
    attempt = _texts("run_id") + _numbers("attempt")
    match table:
        case "refresh_count":
            return (
                *attempt,
                *_numbers("position"),
                *_texts("part"),
                *_numbers(*(f"rows_{place}" for place in ("seen", *PLACES, "vanished"))),
                sa.Column("bytes", sa.BigInteger()),
                sa.Column("modified", TIME),
                sa.Column("unchanged", sa.Boolean(), nullable=False),
                sa.CheckConstraint(
                    f"rows_seen = {' + '.join(f'rows_{place}' for place in PLACES)}",
                    name=op.f("ck_refresh_count_balance"),
                ),
                sa.PrimaryKeyConstraint("run_id", "attempt", "position", name="pk_refresh_count"),
            )
        case "data_check":
            outcomes = "outcome IN ('passed', 'failed', 'allowed', 'not_run')"
            return (
                *attempt,
                *_numbers("position"),
                *_texts("check_name"),
                sa.Column("value", sa.Double()),
                sa.Column("threshold", sa.Double()),
                *_texts("outcome", "reason"),
                *(sa.Column(name, sa.Text()) for name in ("allowed_by", "allowed_reason")),
                sa.CheckConstraint(outcomes, name=op.f("ck_data_check_outcome")),
                sa.PrimaryKeyConstraint("run_id", "attempt", "check_name", name="pk_data_check"),
            )
        case "drift_statistic":
            keys = ("reference", "statistic", "slice_name")
            return (
                *attempt,
                *_texts(*keys, "distance"),
                *(sa.Column(name, sa.Double()) for name in ("value", "threshold", "tonight_value", "reference_value")),
                *_numbers("rows_used", "reference_rows"),
                *_texts("outcome", "reason"),
                sa.CheckConstraint("reference IN ('champion', 'last_week')", name=op.f("ck_drift_statistic_reference")),
                sa.CheckConstraint("outcome IN ('passed', 'warning')", name=op.f("ck_drift_statistic_outcome")),
                sa.PrimaryKeyConstraint("run_id", "attempt", *keys, name=op.f("pk_drift_statistic")),
            )
        case "label_vote":
            return (
                *_texts("pipeline", "fingerprint", "label"),
                *_numbers("votes"),
                sa.Column("chosen", sa.Boolean(), nullable=False),
                *_texts("run_id"),
                sa.PrimaryKeyConstraint("pipeline", "fingerprint", "label", name="pk_label_vote"),
            )
        case _:
            return (
                *_texts("pipeline", "row_key", "reason"),
                *attempt,
                *_numbers("position"),
                *_texts("origin", "part"),
                sa.Column("row_id", sa.Text()),
                *_texts("detail", "excerpt"),
                *(sa.Column(name, sa.Date(), nullable=False) for name in ("first_night", "last_night")),
                sa.Column("resolved_night", sa.Date()),
                sa.PrimaryKeyConstraint("pipeline", "row_key", "reason", name="pk_quarantine"),
            )


def _texts(*names: str) -> tuple[sa.Column[object], ...]:
    return tuple(sa.Column(name, sa.Text(), nullable=False) for name in names)


def _numbers(*names: str) -> tuple[sa.Column[object], ...]:
    return tuple(sa.Column(name, sa.Integer(), nullable=False) for name in names)
