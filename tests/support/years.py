"""Years of made-up nights of several pipelines, inserted in bulk: the size at which commands that read are measured."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from nightgate.database import gate_schema, schema
from nightgate.database.shared_values import document_id, slice_ids
from nightgate.database.transactions import Database
from tests.support import night_rows

EPOCHS = 5
NIGHTS_AS_CHAMPION = 10
"""Every tenth night is promoted."""

_SLICES = (
    *(("label", value) for value in ("1", "2", "3", "4", "5")),
    *(("product", value) for value in ("boots", "shirts", "trousers")),
)
_DETAILS = (
    "INSERT INTO confusion_matrix (attempt_id, epoch, is_test, counts) "
    "SELECT a.attempt_id, e.epoch, false, :confusion FROM epoch AS e "
    "JOIN attempt AS a ON a.run_id = e.run_id AND a.attempt = e.attempt",
    "INSERT INTO confusion_matrix (attempt_id, epoch, is_test, counts) "
    "SELECT a.attempt_id, r.best_epoch, true, :confusion FROM run AS r "
    "JOIN attempt AS a ON a.run_id = r.run_id AND a.attempt = r.attempt WHERE r.best_epoch IS NOT NULL",
    "INSERT INTO slice_metric (attempt_id, slice_id, epoch, is_test, support, accuracy, f1, precision, recall) "
    "SELECT a.attempt_id, s.slice_id, e.epoch, false, 70, 0.6, 0.6, 0.6, 0.6 FROM epoch AS e "
    "JOIN attempt AS a ON a.run_id = e.run_id AND a.attempt = e.attempt CROSS JOIN slice AS s WHERE s.slice_name <> ''",
    "INSERT INTO slice_metric (attempt_id, slice_id, epoch, is_test, support, accuracy, f1, precision, recall) "
    "SELECT a.attempt_id, s.slice_id, r.best_epoch, true, 90, 0.6, 0.6, 0.6, 0.6 FROM run AS r "
    "JOIN attempt AS a ON a.run_id = r.run_id AND a.attempt = r.attempt CROSS JOIN slice AS s "
    "WHERE r.best_epoch IS NOT NULL AND s.slice_name <> ''",
    "INSERT INTO gate_check (run_id, attempt, check_name, slice_name, slice_value, position, metric, candidate_value, "
    "champion_value, threshold, ci_low, ci_high, rows_used, outcome, reason) "
    "SELECT r.run_id, r.attempt, 'slice_f1', s.slice_name, s.slice_value, 1, 'f1', 0.6, 0.6, 0.5, 0.5, 0.7, 90, "
    "'passed', 'no class or slice fell behind' "
    "FROM run AS r CROSS JOIN slice AS s WHERE r.best_epoch IS NOT NULL AND s.slice_name <> ''",
    "INSERT INTO joint_outcome (attempt_id, scope, reference, counts) "
    "SELECT a.attempt_id, 'window', 'champion', :joint FROM run AS r "
    "JOIN attempt AS a ON a.run_id = r.run_id AND a.attempt = r.attempt WHERE r.champion_version IS NOT NULL",
)
"""Rows that are many times the nights, made by the database."""


def insert_nights(db: Database, *, pipelines: int, nights: int) -> list[str]:
    """Insert nights of several pipelines; returns their names.

    Every night has five epochs in one attempt (every seventh in two), every tenth is promoted, every twentieth failed,
    and every fifteenth has a superseded run and a dry run beside the one that counts.
    """
    names = [f"p{number:02}" for number in range(pipelines)]
    rows: dict[type[schema.Base], list[dict[str, Any]]] = {}
    for name in names:
        for day in range(nights):
            for table, row in _night(name, day, nights):
                rows.setdefault(table, []).append(row)

    def work(session: sa.orm.Session) -> None:
        config_id = document_id(session, night_rows.pipeline().record())
        for run in rows[schema.Run]:
            run["config_id"] = config_id
        for table in schema.METADATA.sorted_tables:
            for model, some in rows.items():
                if model.__table__ is table:
                    session.execute(sa.insert(model), some)
        ids = slice_ids(session, [*_SLICES, ("", "")])
        labels = [str(number) for (name, _), number in ids.items() if name == "label"]
        confusion = {true: dict.fromkeys(labels, 7) for true in labels}
        joint = {ids["", ""]: {true: {other: dict.fromkeys(labels, 3) for other in labels} for true in labels}}
        counts = {"confusion": json.dumps(confusion), "joint": json.dumps(joint)}
        for statement in _DETAILS:
            found = re.findall(r":(\w+)", statement)
            cast = sa.text(re.sub(r":(\w+)", r"CAST(:\1 AS JSON)" if db.dialect == "postgresql" else r":\1", statement))
            session.execute(cast, {name: counts[name] for name in found})

    db.write(work)
    if db.dialect == "postgresql":
        db.write(lambda session: session.execute(sa.text("ANALYZE")))
    return names


def _night(name: str, day: int, nights: int) -> Iterator[tuple[type[schema.Base], dict[str, Any]]]:
    pipeline, night = night_rows.pipeline(name), night_rows.night(day)
    run_id, started = f"{name}-{day:04}", night.data_until
    ended, attempt = started + timedelta(hours=1), 2 if day % 7 == 0 else 1
    failed, promoted = day % 20 == 19, day % NIGHTS_AS_CHAMPION == 0
    champion = None if day == 0 else (day - 1) // NIGHTS_AS_CHAMPION * NIGHTS_AS_CHAMPION + 1
    snapshot = f"s-{day:016}"
    yield (
        schema.Snapshot,
        {
            "pipeline": name,
            "snapshot_id": snapshot,
            "path": f"snapshots/{name}/{snapshot}",
            "test_version": "t-0011223344",
            **dict.fromkeys(("rows_train", "rows_validation", "rows_test"), 1000),
            **dict.fromkeys(("rows_duplicate", "rows_quarantined"), 3),
            "rows_total": 3000,
            "data_until": started,
            "manifest": {"id": snapshot, "rows": {"train": 1000, "validation": 1000, "test": 1000}},
            "recorded_at": started,
        },
    )
    of_all: dict[str, Any] = {
        "pipeline": name,
        "night": night.date,
        "attempt": 1,
        "trigger": "schedule",
        "dry_run": False,
        "data_until": started,
        "scheduled_for": started,
        "nonfinite": "",
        "average": "weighted",
        "min_f1": 0.5,
        "label_names": ["1", "2", "3", "4", "5"],
        "base_model": pipeline.training.base_model,
        "config_hash": "c0ffee",
        "code_version": "0.1.0",
        "started_at": started,
        "finished_at": ended,
        "duration_seconds": 3600.0,
    }
    judged: dict[str, Any] = {
        "snapshot_id": snapshot,
        "rows_new": 50,
        "rows_total": 3000,
        "best_epoch": EPOCHS,
        "test_version": "t-0011223344",
        "test_rows": 1000,
        **dict.fromkeys(("test_accuracy", "test_f1", "test_precision", "test_recall"), 0.6 + day / 10_000),
        "f1_ci_low": 0.55,
        "f1_ci_high": 0.65,
        "champion_version": champion,
        "champion_f1": 0.59 if champion else None,
        "f1_delta": 0.01 if champion else None,
        "verdict": "promote" if promoted else "hold",
        "metric_key": "f1/weighted",
    }
    status = "failed" if failed else "promoted" if promoted else "held"
    reason = "a reason in a sentence of the usual length, with figures"
    counting = {"run_id": run_id, "status": status, "reason": reason, "attempt": attempt}
    yield schema.Run, of_all | (dict.fromkeys(judged) if failed else judged) | counting
    if day % 15 == 14:
        beside = {"superseded": ended, "held": ended + timedelta(hours=1)}
        for other, moment in beside.items():
            extra = {"run_id": f"{run_id}-{other}", "status": other, "dry_run": other == "held", "started_at": moment}
            yield schema.Run, of_all | dict.fromkeys(judged) | {"reason": reason} | extra
            yield schema.Attempt, _attempt(f"{run_id}-{other}", 1, other, moment)
    for number in range(1, attempt + 1):
        end = status if number == attempt else "failed"
        yield schema.Attempt, _attempt(run_id, number, end, started, resumed_from_epoch=0 if number == 1 else 2)
        for epoch in range(1 if number == 1 else 3, EPOCHS + 1 if number == attempt else 3):
            yield schema.Epoch, _epoch(run_id, number, epoch, started + timedelta(minutes=epoch))
    if failed:
        return
    version = day + 1
    placed = {"pipeline": name, "version": version, "run_id": run_id, "attempt": attempt, "created_at": ended}
    yield schema.ModelVersion, placed | {"path": f"models/{name}/v{version:04d}", "size_bytes": 470_000_000}
    if promoted:
        last = day + NIGHTS_AS_CHAMPION >= nights
        until = None if last else night_rows.night(day + NIGHTS_AS_CHAMPION).data_until + timedelta(hours=1)
        yield (
            schema.Promotion,
            {
                "promotion_id": run_id,
                "pipeline": name,
                "version": version,
                "replaced_version": champion,
                "kind": "promote",
                "run_id": run_id,
                "promoted_by": "gate",
                "reason": reason,
                "valid_from": ended,
                "valid_to": until,
            },
        )
    sides = ("candidate", "champion") if champion else ("candidate",)
    for side in sides:
        facts: dict[str, Any] = {"trained_on": [], "unknown_line": "", "served": None}
        row = {"run_id": run_id, "attempt": attempt, "side": side, "nonfinite_rows": 0, "facts": facts}
        yield gate_schema.GateSide, row | dict.fromkeys(("flaw", "serving_flaw"), "")


def _attempt(run_id: str, number: int, status: str, started: Any, **facts: Any) -> dict[str, Any]:
    return {
        "run_id": run_id,
        "attempt": number,
        "status": status,
        "trigger": "schedule",
        "host": "here",
        "pid": 1,
        "device": "cpu",
        "precision": "fp32",
        "engine": "packed",
        "micro_batches": 1,
        "restarts": 0,
        "resumed_from_epoch": None,
        "code_version": "0.1.0",
        "started_at": started,
        "finished_at": started + timedelta(hours=1),
        "duration_seconds": 3600.0,
    } | facts


def _epoch(run_id: str, attempt: int, epoch: int, recorded: Any) -> dict[str, Any]:
    scores = ("accuracy", "f1_weighted", "f1_macro", "precision_weighted", "precision_macro", "recall_weighted")
    return {
        "run_id": run_id,
        "attempt": attempt,
        "epoch": epoch,
        "step": 100 * epoch,
        "training_loss": 1 / epoch,
        "validation_loss": 1.1,
        "support": 1000,
        **dict.fromkeys((*scores, "recall_macro"), 0.6),
        "learning_rate": 1e-5,
        "examples_per_second": 50.0,
        "tokens_per_second": 2000.0,
        "nonfinite": "",
        "recorded_at": recorded,
    }
