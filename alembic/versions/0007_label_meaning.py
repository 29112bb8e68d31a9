"""The meaning of labels becomes part of the test version, and runs note how many labels were corrected.

Stored test versions and the keys made of them are computed again from each run's configuration, so that nights before
and after the upgrade compare. `alembic upgrade --sql`, which sees no rows, cannot do this: `nightgate history` then
shows a break at the upgrade.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

MEANING = ("label", "values")
"""Entries of the rules that are new."""
KEY_LENGTH = len("m-0123456789ab")
RUN = sa.table(
    "run",
    *map(sa.column, ("run_id", "pipeline", "snapshot_id", "test_version", "metric_key", "average", "started_at")),
    *(sa.column(name, sa.JSON()) for name in ("label_names", "config")),
)
SNAPSHOT = sa.table(
    "snapshot", *map(sa.column, ("pipeline", "snapshot_id", "test_version")), sa.column("manifest", sa.JSON())
)


# As in 0005, with room for a column at the end.
NIGHTLY_RUNS = """
SELECT r.pipeline, r.night, r.run_id, r.status, r.reason, r.error_type, r.next_step, r.verdict, r.trigger,
       (SELECT CAST(COUNT(*) AS INTEGER) FROM attempt AS a WHERE a.run_id = r.run_id) AS attempts,
       r.scheduled_for, r.data_until, r.snapshot_id, r.rows_new, r.rows_total, r.best_epoch,
       r.test_version, r.test_rows, r.test_f1, r.f1_ci_low, r.f1_ci_high,
       r.champion_version, r.champion_f1, r.f1_delta, v.version AS model_version,
       r.base_model, r.config_hash, r.code_version, d.device, d.precision,
       r.started_at, r.finished_at, {duration} AS duration_seconds, r.prefect_flow_run_id,
       r.dry_run, r.average, r.min_f1, r.test_accuracy, r.test_precision, r.test_recall, r.nonfinite,
       d.engine, d.micro_batches, q.slot, {wait} AS slot_wait_seconds, r.announced_at,
       r.window_start, r.test_rows_all, r.test_f1_all, r.rows_left_out, r.detectable_gain, r.champion_fresh_f1,
       r.champion_fresh_rows, r.fresh_ci_low, r.fresh_ci_high, r.anchor_version, r.anchor_f1, r.metric_key{corrected}
FROM run AS r
LEFT JOIN model_version AS v ON v.run_id = r.run_id
LEFT JOIN attempt AS d ON d.run_id = r.run_id AND d.attempt = (
    SELECT MAX(known.attempt) FROM attempt AS known WHERE known.run_id = r.run_id AND known.device IS NOT NULL)
LEFT JOIN slot_request AS q ON q.run_id = r.run_id AND q.attempt = r.attempt
"""

# As in 0005.
NIGHTS = """
SELECT n.* FROM nightly_runs AS n
WHERE n.run_id = (
    SELECT c.run_id FROM run AS c
    WHERE c.pipeline = n.pipeline AND c.night = n.night
    ORDER BY CASE WHEN c.status = 'superseded' THEN 2 WHEN c.dry_run THEN 1 ELSE 0 END, c.started_at DESC, c.run_id DESC
    LIMIT 1)
"""

DURATION = {
    "postgresql": "CAST(ROUND(EXTRACT(EPOCH FROM r.finished_at - r.started_at), 3) AS DOUBLE PRECISION)",
    "sqlite": "ROUND((julianday(r.finished_at) - julianday(r.started_at)) * 86400.0, 3)",
}
WAIT = {
    "postgresql": "CAST(ROUND(EXTRACT(EPOCH FROM q.granted_at - q.requested_at), 3) AS DOUBLE PRECISION)",
    "sqlite": "ROUND((julianday(q.granted_at) - julianday(q.requested_at)) * 86400.0, 3)",
}


def upgrade() -> None:
    op.add_column("run", sa.Column("labels_corrected", sa.Integer(), nullable=True))
    # Replaced in place on PostgreSQL: dropped, a view would lose who may read it. SQLite knows no such thing.
    in_place = op.get_context().dialect.name == "postgresql"
    if not in_place:
        _drop_views()
    _create_views("CREATE OR REPLACE VIEW" if in_place else "CREATE VIEW", ",\n       r.labels_corrected")
    _compute_again(with_meaning=True)


def downgrade() -> None:
    _compute_again(with_meaning=False)
    _drop_views()
    op.drop_column("run", "labels_corrected")
    _create_views("CREATE VIEW", "")


def _create_views(create: str, corrected: str) -> None:
    engine = op.get_context().dialect.name
    runs = NIGHTLY_RUNS.format(duration=DURATION[engine], wait=WAIT[engine], corrected=corrected)
    for name, query in (("nightly_runs", runs), ("nights", NIGHTS)):
        op.execute(f"{create} {name} AS {query.strip()}")


def _drop_views() -> None:
    for name in ("nights", "nightly_runs"):
        op.execute(f"DROP VIEW {name}")


def _compute_again(*, with_meaning: bool) -> None:
    """Replace the test versions and keys that the other release computed, of runs and their snapshots."""
    if op.get_context().as_sql:
        return
    connection = op.get_bind()
    rules = {
        (row.pipeline, row.snapshot_id): row.manifest.get("rules") for row in connection.execute(sa.select(SNAPSHOT))
    }
    for run in connection.execute(
        sa.select(RUN).where(RUN.c.snapshot_id.is_not(None)).order_by(RUN.c.started_at)
    ).all():
        place = (run.pipeline, run.snapshot_id)
        if not rules[place]:
            continue
        plain = {name: rule for name, rule in rules[place].items() if name not in (*MEANING, "classes")}
        before, after = _version(plain), _version(plain | _meaning(run.config["data"]))
        if not with_meaning:
            before, after = after, before
        of_snapshot = (SNAPSHOT.c.pipeline == run.pipeline) & (SNAPSHOT.c.snapshot_id == run.snapshot_id)
        for table, row in ((SNAPSHOT, of_snapshot), (RUN, RUN.c.run_id == run.run_id)):
            connection.execute(sa.update(table).where(row, table.c.test_version == before).values(test_version=after))
        key = run.metric_key or ""
        if key.startswith(_key(run, before)):
            marked = key[KEY_LENGTH:]
            connection.execute(
                sa.update(RUN).where(RUN.c.run_id == run.run_id).values(metric_key=_key(run, after) + marked)
            )


def _version(rules: Mapping[str, Any]) -> str:
    return f"t-{hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()[:10]}"


def _meaning(data: Mapping[str, Any]) -> dict[str, Any]:
    labels = data["labels"]
    pairs = labels.items() if isinstance(labels, Mapping) else [(label, label) for label in labels]
    return {"label": data["label"], "values": {_canonical(value): str(label).strip() for value, label in pairs}}


def _canonical(value: object) -> str:
    text = str(value).strip()
    if re.fullmatch(r"-?[0-9]+\.0+", text):
        return text.split(".")[0]
    return text.lower() if text.lower() in {"true", "false"} else text


def _key(run: Any, test_version: str) -> str:
    gate = run.config["gate"]
    window = gate["test_window"]
    days = int(window[:-1]) * {"d": 86_400, "w": 604_800, "h": 3_600}[window[-1]] / 86_400 if window else 0.0
    facts = [1, test_version, sorted(run.label_names), run.average, [days, gate["min_test_rows"]] if window else []]
    return f"m-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]}"
