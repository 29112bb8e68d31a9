"""The views that users and commands query, and the types of their columns, which SQLite's views do not all declare."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date, datetime
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Dialect
from sqlalchemy.types import TypeDecorator

from nightgate.database.column_types import UtcTime

Kind = Literal["time", "date", "boolean", "integer", "number", "bytes", "json", "text"]

VIEWS = (
    *(
        "nights",
        "nightly_runs",
        "attempts",
        "night_changes",
        "settings",
        "epoch_results",
        "metric_history",
        "epoch_metrics",
    ),
    *("slice_results", "slice_metrics", "confusion", "gate_checks", "gate_sides", "joint_outcomes"),
    *("model_versions", "champion_timeline", "anchor_timeline", "promotions", "approvals", "freezes"),
    *("champion_evaluations", "champion_evaluation_slices"),
    *("snapshots", "refreshes", "refresh_counts", "data_checks", "data_drift", "label_votes", "quarantined_rows"),
    *("forgotten_rows", "seed_studies", "seed_runs"),
    *("run_documents", "snapshot_documents", "test_sets", "test_predictions", "reading"),
)

_TIMES = """
announced_at begun_at created_at data_until deadline decided_at ended_at evaluated_at files_removed_at finished_at
first_time frozen_at heartbeat_at last_time modified owner_started promoted_at quarantined_at recorded_at requested_at
rows_from rows_to scheduled_for started_at valid_from valid_to window_start
"""
_INTEGERS = """
anchor_version attempt attempts best_epoch bytes champion_fresh_rows champion_version count epoch epochs epochs_lost
expected_version format golden_rows label_revision labels_corrected micro_batches model_version nonfinite_rows num_rows
num_seeds owner_ticks pid position quarantined_rows reference_rows replaced_version restarts resumed_from_epoch rows
rows_conflicting rows_deleted rows_duplicate rows_future rows_left_out rows_merged rows_new rows_outside
rows_quarantined rows_redacted rows_replaced rows_seen rows_taken rows_test rows_total rows_train rows_trained
rows_trained_on rows_used rows_validation rows_vanished runs seed size_bytes snapshots started_from step support
test_rows test_rows_all threads version votes
"""
_NUMBERS = """
accuracy anchor_f1 calibration_error candidate_value champion_f1 champion_fresh_f1 champion_value ci_high ci_low
detectable_gain duration_seconds examples_per_second f1 f1_ci_high f1_ci_low f1_delta f1_macro f1_mean f1_spread
f1_weighted fall fresh_ci_high fresh_ci_low gpu_seconds latency_ms learning_rate logit_difference min_f1 precision
promotion_f1 recall reference_value slot_wait_seconds test_accuracy test_f1 test_f1_all test_precision test_recall
threshold tokens_per_second tonight_value training_loss validation_f1 validation_loss value
"""
_KINDS: dict[str, Kind] = {
    **dict.fromkeys(_TIMES.split(), "time"),
    **dict.fromkeys(("night", "first_night", "last_night", "resolved_night"), "date"),
    **dict.fromkeys(("chosen", "dry_run", "is_best", "unchanged"), "boolean"),
    **dict.fromkeys(_INTEGERS.split(), "integer"),
    **dict.fromkeys(_NUMBERS.split(), "number"),
    **dict.fromkeys(("classes", "config", "environment", "facts", "label_names", "manifest"), "json"),
}
_OTHERS: dict[str, Kind] = {
    # Of arithmetic, such as fp32.
    **{
        f"{view}.precision": "text"
        for view in (
            *("nights", "nightly_runs", "attempts", "gate_checks", "gate_sides", "joint_outcomes", "test_predictions"),
            *("champion_evaluations", "seed_runs"),
        )
    },
    **dict.fromkeys(("settings.value", "reading.value"), "text"),
    **{f"test_sets.{name}": "bytes" for name in ("places", "fingerprints", "labels", "seen_at", "groups", "slices")},
    "test_predictions.labels": "bytes",
}


def kind_of(view: str, column: str) -> Kind:
    """The type of a column that a view has."""
    return _OTHERS.get(f"{view}.{column}") or _KINDS.get(column, "text")


class _JsonText(TypeDecorator[Any]):
    """JSON that a view gives as text."""

    impl = sa.Text
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        del dialect
        return None if value is None else json.loads(value)


_TYPES: dict[Kind, Any] = {"time": UtcTime(), "date": sa.Date(), "boolean": sa.Boolean(), "json": _JsonText()}


def selecting(query: str, parameters: Mapping[str, Any] | None = None) -> sa.Executable:
    """A query on the views whose rows have Python's types on both engines: aware times, dates, booleans, JSON.

    Args:
        parameters: values of `:name`, times and dates too.
    """
    statement = sa.text(query).bindparams(
        *(sa.bindparam(name, value, type_=_type_of(value)) for name, value in (parameters or {}).items())
    )
    named = _KINDS if "*" in query else [name for name in _KINDS if name in query]
    return statement.columns(**{name: _TYPES[_KINDS[name]] for name in named if _KINDS[name] in _TYPES})


def _type_of(value: Any) -> Any:
    if isinstance(value, datetime):
        return UtcTime()
    return sa.Date() if isinstance(value, date) else None


# --- who may read them ---

_READERS = """
SELECT r.rolname FROM pg_class AS c CROSS JOIN LATERAL aclexplode(c.relacl) AS a JOIN pg_roles AS r ON r.oid = a.grantee
WHERE c.relnamespace = CAST(quote_ident(current_schema()) AS regnamespace) AND c.relname = ANY(:views)
    AND a.privilege_type = 'SELECT' AND a.grantee <> c.relowner
GROUP BY r.rolname HAVING COUNT(DISTINCT c.relname) = :count
"""


@contextmanager
def readers_kept(connection: Connection) -> Iterator[None]:
    """Around migrations: roles of PostgreSQL that may read every view may read the new ones too.

    A new view is its owner's alone. A role that may read some of the views only, or by a grant to PUBLIC, gets no more.
    """
    if connection.dialect.name == "sqlite":
        yield
        return
    before = [name for name in sa.inspect(connection).get_view_names() if name in VIEWS]
    readers = connection.execute(sa.text(_READERS), {"views": before, "count": len(before)}).scalars().all()
    yield
    if new := [name for name in VIEWS if name not in before]:
        for role in readers:
            grant(connection, f"SELECT ON {', '.join(new)}", role)


def grant(connection: Connection, right: str, role: str) -> None:
    """Give a right to a role of PostgreSQL, whatever its name."""
    connection.exec_driver_sql(f"GRANT {right} TO {connection.dialect.identifier_preparer.quote_identifier(role)}")
