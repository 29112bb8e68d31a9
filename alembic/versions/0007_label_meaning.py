"""The meaning of labels becomes part of the test version.

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


def upgrade() -> None:
    _compute_again(with_meaning=True)


def downgrade() -> None:
    _compute_again(with_meaning=False)


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
