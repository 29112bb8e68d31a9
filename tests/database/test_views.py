"""The views as a SQL contract: their columns and rows, by plain SELECTs on both engines."""

from __future__ import annotations

import copy
import json
import re
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from nightgate.database import schema
from nightgate.database.shared_values import document_id
from nightgate.database.transactions import Database
from nightgate.database.views import VIEWS, kind_of
from nightgate.frames.reader import tidy
from nightgate.operations import reconciliation
from nightgate.registry import approvals, promotion
from nightgate.runs import lifecycle, records
from tests.support import night_rows
from tests.support.years import insert_nights

COLUMNS = {
    "metric_history": "pipeline night run_id attempt epoch step training_loss validation_loss accuracy f1 precision "
    "recall average f1_weighted f1_macro learning_rate examples_per_second nonfinite recorded_at tokens_per_second",
    "epoch_results": "pipeline night run_id attempt epoch step training_loss validation_loss accuracy f1 precision "
    "recall average f1_weighted f1_macro learning_rate examples_per_second nonfinite recorded_at tokens_per_second",
    "nightly_runs": "pipeline night run_id status reason error_type next_step verdict trigger attempts scheduled_for "
    "data_until snapshot_id rows_new rows_total best_epoch test_version test_rows test_f1 f1_ci_low f1_ci_high "
    "champion_version champion_f1 f1_delta model_version base_model config_hash code_version device precision "
    "started_at finished_at duration_seconds prefect_flow_run_id engine micro_batches slot slot_wait_seconds",
    "approvals": "pipeline night run_id model_version requested_at deadline decision decided_by reason decided_at",
    "gate_checks": "pipeline night run_id check_name slice_name slice_value metric candidate_value champion_value "
    "threshold ci_low ci_high rows_used outcome reason",
    "slice_metrics": "pipeline night run_id attempt epoch split slice_name slice_value support accuracy f1 precision "
    "recall",
    "epoch_metrics": "pipeline night run_id attempt epoch split metric value reason",
    "confusion": "run_id epoch split true_label predicted_label count",
    "champion_timeline": "pipeline model_version run_id valid_from valid_to promoted_by reason",
    "model_versions": "pipeline version run_id path",
    "promotions": "pipeline",
    "snapshots": "pipeline snapshot_id rows_total files_removed_at rows_redacted",
    "forgotten_rows": "pipeline id_hash forgotten_by begun_at finished_at snapshots rows_redacted golden_rows "
    "quarantined_rows versions",
    "data_drift": "pipeline night run_id reference statistic slice_name distance value threshold tonight_value "
    "reference_value rows_used reference_rows outcome reason",
    "quarantined_rows": "pipeline night run_id reason first_night last_night resolved_night",
    "refresh_counts": "pipeline night run_id part rows_seen rows_taken rows_merged rows_replaced rows_deleted "
    "rows_quarantined rows_conflicting rows_future rows_outside rows_vanished bytes modified unchanged",
    "data_checks": "pipeline night run_id check_name value threshold outcome reason allowed_by allowed_reason",
    "label_votes": "pipeline night run_id fingerprint label votes chosen",
    "champion_evaluations": "pipeline model_version evaluated_at rows_from rows_to rows f1 f1_ci_low f1_ci_high "
    "accuracy alarm role reason snapshot_id run_id min_f1 promotion_f1 fall announced_at",
    "champion_evaluation_slices": "pipeline model_version role snapshot_id slice_name slice_value support f1",
    "attempts": "pipeline night run_id attempt status trigger error_type reason host device precision precision_reason "
    "threads engine engine_reason micro_batches restarts resumed_from_epoch epochs epochs_lost gpu_seconds slot "
    "slot_wait_seconds code_version prefect_flow_run_id started_at finished_at heartbeat_at duration_seconds",
    "slice_results": "pipeline night run_id attempt epoch split slice_name slice_value support accuracy f1 precision "
    "recall is_best test_version",
    "night_changes": "pipeline night run_id kind name before after before_run_id",
    "settings": "pipeline config_hash setting value",
    "run_documents": "pipeline night run_id started_at snapshot_id config_hash config label_names classes environment",
    "test_sets": "pipeline test_set_id kind num_rows label_names base_id places fingerprints labels seen_at groups "
    "slices",
    "test_predictions": "pipeline night run_id attempt side kind test_set_id model_run_id labels",
    "reading": "key value",
}
COLUMNS["nights"] = COLUMNS["nightly_runs"]


@pytest.mark.parametrize("view", COLUMNS)
def test_a_view_has_its_columns_by_name_without_quotes(database: Database, view: str) -> None:
    """`precision` and `trigger` are SQL keywords."""
    for column in COLUMNS[view].split():
        database.frame(f"SELECT {column} FROM {view} WHERE {column} IS NOT NULL ORDER BY {column}")
    database.frame(f"SELECT {', '.join(COLUMNS[view].split())} FROM {view} AS v")


def test_times_are_timestamptz_on_postgresql_and_sortable_text_on_sqlite(database: Database) -> None:
    night_rows.open_run(database, night_rows.pipeline(), night_rows.night())
    query = "SELECT night, data_until FROM nightly_runs"
    night, data_until = database.read(lambda session: session.execute(sa.text(query)).one())
    if database.dialect == "sqlite":
        assert (night, data_until) == ("2026-03-01", "2026-03-01T03:15:00.000000Z")
    else:
        assert (night, data_until) == (night_rows.FIRST_NIGHT, datetime(2026, 3, 1, 3, 15, tzinfo=UTC))
        types = "SELECT data_type FROM information_schema.columns WHERE column_name = 'data_until'"
        assert set(database.frame(types)["data_type"]) == {"timestamp with time zone"}


@pytest.mark.parametrize(("average", "expected"), [("weighted", 0.6), ("macro", 0.5)])
def test_f1_precision_and_recall_are_the_averages_of_the_pipeline(
    database: Database, average: str, expected: float
) -> None:
    opened = night_rows.open_run(database, night_rows.pipeline(average=average), night_rows.night())
    records.record_epoch(database, opened.run_id, 1, night_rows.report(1), night_rows.scores(0.6), night_rows.slices())
    for view in ("metric_history", "epoch_results"):
        [row] = database.frame(f"SELECT * FROM {view}").to_dict("records")
        assert (row["average"], row["f1_weighted"], row["f1_macro"]) == (average, 0.6, 0.5)
        assert row["f1"] == row["precision"] == row["recall"] == expected
    assert set(database.frame("SELECT f1 FROM slice_metrics")["f1"]) == {expected}


# For each attempt the epoch that it resumed from (None: not recorded), its epochs and its status; then the expected
# (epoch, attempt) pairs.
HISTORIES: dict[str, tuple[list[tuple[int | None, list[int], str]], list[tuple[int, int]]]] = {
    "one attempt": ([(0, [1, 2, 3], "held")], [(1, 1), (2, 1), (3, 1)]),
    "resumes after a crash": ([(0, [1], "failed"), (1, [2, 3], "held")], [(1, 1), (2, 2), (3, 2)]),
    "resumes from an unrecorded epoch": ([(0, [1], "failed"), (None, [2], "running")], [(1, 1), (2, 2)]),
    "starts again from an earlier epoch": (
        [(0, [1, 2, 3], "failed"), (1, [2, 3, 4], "held")],
        [(1, 1), (2, 2), (3, 2), (4, 2)],
    ),
    "starts again from the base": ([(0, [1, 2, 3], "failed"), (0, [1, 2, 3], "held")], [(1, 2), (2, 2), (3, 2)]),
    "starts again and ends earlier": ([(0, [1, 2, 3, 4], "failed"), (1, [2], "held")], [(1, 1), (2, 2)]),
    "is running again": ([(0, [1, 2, 3], "failed"), (0, [1], "running")], [(1, 2)]),
    "died before its first epoch": ([(0, [1, 2], "failed"), (0, [], "failed")], [(1, 1), (2, 1)]),
    "has only just begun": ([(0, [1, 2], "failed"), (None, [], "running")], [(1, 1), (2, 1)]),
    "had nothing left to train": ([(0, [1, 2], "failed"), (2, [], "held")], [(1, 1), (2, 1)]),
    "ended where an earlier attempt was ahead": ([(0, [1, 2, 3], "failed"), (2, [], "held")], [(1, 1), (2, 1)]),
    "resumed from beyond its rows": ([(0, [1, 2, 3], "failed"), (3, [2], "held")], [(1, 1), (2, 2)]),
    "three attempts": (
        [(0, [1, 2], "failed"), (1, [2, 3], "failed"), (2, [3, 4], "promoted")],
        [(1, 1), (2, 2), (3, 3), (4, 3)],
    ),
    "three attempts, the last one from the first": (
        [(0, [1, 2], "failed"), (2, [3, 4], "failed"), (1, [2, 3], "held")],
        [(1, 1), (2, 3), (3, 3)],
    ),
}


@pytest.mark.parametrize("name", HISTORIES)
def test_epoch_results_are_the_epochs_that_led_to_the_last_attempt(database: Database, name: str) -> None:
    attempts, expected = HISTORIES[name]
    opened = None
    for number, (resumed_from, epochs, status) in enumerate(attempts, 1):
        opened = night_rows.open_run(database, night_rows.pipeline(), night_rows.night())
        assert opened.attempt == number
        lifecycle.record_attempt(database, opened.run_id, number, resumed_from_epoch=resumed_from)
        for epoch in epochs:
            report = night_rows.report(epoch, number)
            scores = night_rows.scores()
            details = (night_rows.slices(), night_rows.confusion())
            records.record_epoch(database, opened.run_id, number, report, scores, *details)
        if status == "promoted":
            records.record_decision(database, opened.run_id, number, night_rows.decision())
            version = promotion.add_version(database, opened.run_id, number, str)
            promoting: dict[str, Any] = {"expected": None, "by": "gate", "reason": "fit"}
            promotion.promote_candidate(database, "reviews", version, run_id=opened.run_id, attempt=number, **promoting)
        elif status != "running":
            lifecycle.finish_run(database, opened.run_id, number, status)
    rows = database.frame("SELECT epoch, attempt FROM epoch_results ORDER BY epoch")
    assert [tuple(row) for row in rows.to_numpy().tolist()] == expected
    recorded = sum(len(epochs) for _, epochs, _ in attempts)
    assert len(database.frame("SELECT * FROM metric_history")) == recorded
    for view in ("confusion", "slice_results"):
        found = database.frame(f"SELECT DISTINCT epoch, attempt FROM {view} ORDER BY epoch")
        assert [tuple(row) for row in found.to_numpy().tolist()] == expected
    counts = database.frame("SELECT attempt, epochs, epochs_lost FROM attempts ORDER BY attempt")
    assert [tuple(row) for row in counts.to_numpy().tolist()] == [
        (number, len(epochs), len(epochs) - sum(attempt == number for _, attempt in expected))
        for number, (_, epochs, _) in enumerate(attempts, 1)
    ]


def test_rows_written_once_per_run_are_those_of_the_last_attempt(database: Database) -> None:
    for attempt, snapshot in ((1, "s-00000000000000aa"), (2, "s-00000000000000bb")):
        opened = night_rows.open_run(database, night_rows.pipeline(), night_rows.night())
        refreshed = night_rows.refreshed(database, snapshot, bad_rows=attempt)
        records.record_snapshot(database, opened.run_id, attempt, refreshed)
        records.record_training(database, opened.run_id, attempt, night_rows.trained(best_epoch=attempt))
        details = {"slices": night_rows.slices(), "confusion": night_rows.confusion()}
        records.record_decision(database, opened.run_id, attempt, night_rows.decision(), **details)
        lifecycle.finish_run(database, opened.run_id, attempt, "failed")
    assert set(database.frame("SELECT attempt FROM gate_checks")["attempt"]) == {2}
    assert len(database.frame("SELECT * FROM gate_checks")) == 2
    assert database.frame("SELECT DISTINCT epoch, split FROM confusion").to_numpy().tolist() == [[2, "test"]]
    assert len(database.frame("SELECT * FROM confusion")) == 4
    found = database.frame("SELECT DISTINCT attempt, epoch, split, is_best FROM slice_results")
    assert found.to_numpy().tolist() == [[2, 2, "test", True]]
    assert len(database.frame("SELECT * FROM quarantined_rows")) == 2
    assert len(database.frame("SELECT * FROM snapshots")) == 2


def counting_run(database: Database) -> str:
    [row] = database.frame("SELECT run_id FROM nights").to_dict("records")
    return str(row["run_id"])


def test_the_newest_run_of_a_night_that_was_not_superseded_counts(database: Database) -> None:
    pipeline, night = night_rows.pipeline(), night_rows.night()
    only = night_rows.superseded(database, pipeline, night)
    later = night_rows.superseded(database, pipeline, night)
    assert counting_run(database) == later.run_id != only.run_id
    first = night_rows.open_run(database, pipeline, night)
    assert counting_run(database) == first.run_id
    lifecycle.finish_run(database, first.run_id, 1, "held")
    night_rows.superseded(database, pipeline, night)
    assert counting_run(database) == first.run_id
    rehearsal = night_rows.open_run(database, pipeline, night, dry_run=True)
    lifecycle.finish_run(database, rehearsal.run_id, 1, "held")
    assert counting_run(database) == first.run_id
    forced = night_rows.open_run(database, pipeline, night, force=True)
    assert counting_run(database) == forced.run_id
    lifecycle.finish_run(database, forced.run_id, 1, "failed", reason="the disk is full")
    assert counting_run(database) == first.run_id, "it has a result"
    assert len(database.frame("SELECT * FROM nightly_runs")) == 6


def test_a_dry_run_counts_for_a_night_that_nothing_else_has_run(database: Database) -> None:
    rehearsal = night_rows.open_run(database, night_rows.pipeline(), night_rows.night(), dry_run=True)
    night_rows.superseded(database, night_rows.pipeline(), night_rows.night())
    assert counting_run(database) == rehearsal.run_id


def test_a_promotion_counts_before_a_forced_run_that_followed_it(database: Database) -> None:
    first, version = night_rows.judged_version(database)
    night_rows.promote_itself(database, first, version)
    forced = night_rows.opened(database, force=True)
    lifecycle.finish_run(database, forced.run_id, 1, "held")
    assert counting_run(database) == first.run_id


def test_each_pipeline_and_night_has_one_row(database: Database) -> None:
    for name in ("reviews", "other"):
        for day in range(3):
            opened = night_rows.open_run(database, night_rows.pipeline(name), night_rows.night(day))
            lifecycle.finish_run(database, opened.run_id, 1, "held")
    found = database.frame("SELECT pipeline, night FROM nights ORDER BY pipeline, night")
    assert len(found) == 6
    assert list(found["pipeline"]) == ["other"] * 3 + ["reviews"] * 3


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_the_run_that_counts_is_found_by_an_index(database: Database) -> None:
    """Ranked in a window, PostgreSQL ranked all runs again for each slice: 12 s with 200 nights of ten pipelines."""
    plan = database.frame("EXPLAIN QUERY PLAN SELECT * FROM nights")["detail"]
    lookups = [line for line in plan if re.match(r"\w+ c\b", line)]
    assert lookups == ["SEARCH c USING INDEX ix_run_pipeline_night (pipeline=? AND night=?)"]


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
@pytest.mark.parametrize("view", ["data_checks", "data_drift", "refresh_counts", "slice_results"])
def test_sqlite_reads_the_rows_of_a_run_that_a_query_finds_by_an_index(database: Database, view: str) -> None:
    """It reads all runs where the parts of a UNION ALL have columns of other affinity."""
    query = f"EXPLAIN QUERY PLAN SELECT * FROM {view} WHERE run_id = (SELECT MAX(run_id) FROM nightly_runs)"
    assert not database.frame(query)["detail"].str.contains(f"CO-ROUTINE {view}|SCAN {view}").any()


def test_the_length_of_a_run_is_in_seconds(database: Database) -> None:
    opened = night_rows.open_run(database, night_rows.pipeline(), night_rows.night())
    assert database.frame("SELECT duration_seconds FROM nightly_runs").iloc[0, 0] is None
    began = datetime(2026, 3, 1, 23, 59, 58, 250_000, tzinfo=UTC)
    database.write(lambda session: session.execute(sa.update(schema.Run).values(started_at=began)))
    ended = datetime(2026, 3, 2, 1, 0, 0, tzinfo=UTC)
    database.write(lambda session: session.get_one(schema.Run, opened.run_id).finish(ended))
    assert database.frame("SELECT duration_seconds FROM nightly_runs").iloc[0, 0] == 3601.75


def test_gpu_seconds_are_those_of_all_attempts_on_a_gpu(database: Database) -> None:
    for number, device in enumerate(("cpu", "NVIDIA H200", "NVIDIA H200", None), 1):
        opened = night_rows.open_run(database, night_rows.pipeline(), night_rows.night())
        lifecycle.finish_run(database, opened.run_id, number, "failed")
        row = sa.update(schema.Attempt).filter_by(attempt=number).values(device=device, busy_seconds=10.0**number)
        database.write(lambda session, row=row: session.execute(row))  # type: ignore[misc]
    assert list(database.frame("SELECT gpu_seconds FROM attempts ORDER BY attempt")["gpu_seconds"]) == [0, 100, 1000, 0]
    [row] = database.frame("SELECT month, gpu_seconds, labels FROM nights").to_numpy().tolist()
    assert row == ["2026-03", 1100.0, '["bad","good"]']


def test_a_gpu_that_waits_or_whose_process_is_dead_costs_nothing(database: Database) -> None:
    began = datetime.now(UTC) - timedelta(hours=2)

    def set_attempt(run: Any, **facts: Any) -> None:
        change = sa.update(schema.Attempt).filter_by(run_id=run.run_id).values(device="NVIDIA H200", **facts)
        database.write(lambda session: session.execute(change))

    def gpu_seconds(run: Any) -> float:
        query = "SELECT a.gpu_seconds, n.gpu_seconds AS total FROM attempts AS a JOIN nightly_runs AS n "
        [row] = database.frame(f"{query} ON n.run_id = a.run_id WHERE a.run_id = :id", {"id": run.run_id}).to_numpy()
        assert row[0] == row[1]
        return float(row[0])

    waits, _ = night_rows.judged_version(database)
    set_attempt(waits, started_at=began, slot_wait_seconds=600.0)
    night_rows.await_approval(database, waits)
    assert gpu_seconds(waits) == pytest.approx(6600, abs=30)
    set_attempt(waits, started_at=began - timedelta(hours=10))
    approvals.reject(database, waits.run_id, by="ada", reason="no")
    assert gpu_seconds(waits) == pytest.approx(6600, abs=30)

    dead = night_rows.opened(database, 1)
    set_attempt(dead, started_at=began, heartbeat_at=began + timedelta(seconds=1000))
    cancelled = night_rows.opened(database, 2)
    assert gpu_seconds(dead) == 1000
    set_attempt(cancelled, started_at=began, heartbeat_at=began + timedelta(seconds=500))
    reconciliation.cancel(database, cancelled, "its run was cancelled in Prefect", deployed=True)
    assert gpu_seconds(cancelled) == 500
    hasty = night_rows.opened(database, 3)
    set_attempt(hasty, slot_wait_seconds=600.0)
    lifecycle.finish_run(database, hasty.run_id, 1, "held")
    assert gpu_seconds(hasty) == 0


def test_device_and_engine_are_those_of_the_last_attempt_that_had_one(database: Database) -> None:
    first = night_rows.open_run(database, night_rows.pipeline(), night_rows.night())
    records.record_training(database, first.run_id, 1, night_rows.trained())
    night_rows.open_run(database, night_rows.pipeline(), night_rows.night())
    query = "SELECT device, precision, engine, micro_batches, attempts FROM nights"
    [row] = database.frame(query).to_dict("records")
    assert row == {"device": "cpu", "precision": "fp32", "engine": "packed", "micro_batches": 1, "attempts": 2}


@pytest.mark.parametrize("view", ["metric_history", "epoch_results", "nightly_runs", "nights"])
def test_later_columns_are_at_the_end(database: Database, view: str) -> None:
    later = (
        "nonfinite engine micro_batches slot slot_wait_seconds announced_at window_start test_rows_all test_f1_all "
        "rows_left_out detectable_gain champion_fresh_f1 champion_fresh_rows fresh_ci_low fresh_ci_high "
        "anchor_version anchor_f1 metric_key labels_corrected rows_trained label_revision reasons month "
        "gpu_seconds labels scoring_precision training started_from training_reason"
        if view.startswith("night")
        else "support tokens_per_second compute_precision"
    ).split()
    assert list(database.frame(f"SELECT * FROM {view}").columns)[-len(later) :] == later


CHANGED: dict[str, tuple[str, str, Any]] = {
    "code_version": ("code", "code_version", "0.2.0"),
    "base_model": ("base_model", "base_model", "another"),
    "base_model_revision": ("base_model", "base_model_revision", "c0ffee"),
    "test_version": ("test_version", "test_version", "t-1"),
    "labels": ("labels", "labels", '["1", "2"]'),
    "average": ("average", "average", "macro"),
    "metric_key": ("metric", "metric_key", "m-1"),
    "device": ("device", "device", "NVIDIA H200"),
    "precision": ("device", "precision", "bf16"),
    "scoring_precision": ("precision", "scoring_precision", "bf16"),
    "rows_total": ("rows", "rows_total", 4000),
    "training": ("training", "training", "continued"),
}


def test_changes_are_those_of_each_night_from_the_one_with_a_version_before(database: Database) -> None:
    names = insert_nights(database, pipelines=2, nights=49)
    for number, (fact, (_, _, value)) in enumerate(CHANGED.items()):
        day = night_rows.night(3 + 4 * number).date

        def change(session: Any, fact: str = fact, value: Any = value, day: Any = day) -> None:
            runs = sa.select(schema.Run.run_id).where(schema.Run.pipeline == names[0], schema.Run.night >= day)
            table: Any = schema.Run
            if fact in {"device", "precision", "scoring_precision"}:
                table = schema.Attempt
            elif fact == "base_model_revision":
                table = schema.ModelVersion
            column, value = ("label_names", ["1", "2"]) if fact == "labels" else (fact, value)
            session.execute(sa.update(table).where(table.run_id.in_(runs)).values({column: value}))

        database.write(change)
    # Documents of another night on: a setting that changes the result, one that does not, one that goes and one that
    # comes; and those of another release, which lacks a setting with its default and has another.
    documents = [
        (
            {"training": {"learning_rate": 5e-5, "keep": "newest", "old": 1}, "schedule": {"cron": "15 3 * * *"}},
            "2.10.0",
        ),
        ({"training": {"learning_rate": 1e-5, "replay": 4.0, "new": 1}, "schedule": {"cron": "15 4 * * *"}}, "2.11.0"),
    ]

    def set_documents(session: Any) -> None:
        for day, (config, torch) in zip((0, 20), documents, strict=True):
            environment = {"python": "3.11.7", "libraries": {"torch": torch}}
            runs = sa.select(schema.Run.run_id).filter(schema.Run.night >= night_rows.night(day).date)
            for table, column, content in (
                (schema.Run, "config_id", config),
                (schema.ModelVersion, "environment_id", environment),
            ):
                given = copy.deepcopy(content)
                for name in ("old", "new"):
                    given.get("training", {}).pop(name, None)
                number = document_id(session, content, given.copy)
                session.execute(sa.update(table).where(table.run_id.in_(runs)).values({column: number}))

    database.write(set_documents)
    # By less than a tenth: no change.
    fewer = sa.update(schema.Run).filter_by(pipeline=names[1], night=night_rows.night(8).date).values(rows_total=3299)
    database.write(lambda session: session.execute(fewer))
    # A dry run changes no pipeline.
    alone = {"pipeline": names[1], "night": night_rows.night(30).date}
    rehearsal = sa.update(schema.Run).filter_by(**alone).values(rows_total=9000, dry_run=True)
    database.write(lambda session: session.execute(rehearsal))
    query = (
        "SELECT n.*, v.base_model_revision FROM nights AS n JOIN model_versions AS v ON v.run_id = n.run_id "
        "WHERE NOT n.dry_run ORDER BY n.pipeline, n.night"
    )
    frame = tidy(database.frame(query)).astype(object)
    frame["training"] = frame["training"].fillna("full")
    nights: Any = frame.where(frame.notna(), None).to_dict("records")
    reigns: Any = tidy(database.frame("SELECT * FROM champion_timeline")).to_dict("records")

    def in_force(night: dict[str, Any]) -> str | None:
        moment = night["started_at"]
        for one in reigns:
            began = one["pipeline"] == night["pipeline"] and one["valid_from"] <= moment
            if began and not one["valid_to"] <= moment:
                return str(one["model_version"])
        return None

    expected: list[tuple[Any, ...]] = []
    for before, after in pairwise(nights):
        if before["pipeline"] != after["pipeline"]:
            continue
        for fact, (kind, name, _) in CHANGED.items():
            old, new = before[fact], after[fact]
            if old != new and (fact != "rows_total" or abs(new - old) > old / 10):
                expected.append((after["run_id"], kind, name, None if old is None else str(old), str(new)))
        if in_force(before) != in_force(after):
            expected.append((after["run_id"], "champion", "champion_version", in_force(before), in_force(after)))
    for name in names:
        first = next(one for one in nights if one["pipeline"] == name and one["night"] >= night_rows.night(20).date)
        for kind, fact, old, new in (
            ("setting", "training.learning_rate", "5e-05", "1e-05"),
            ("setting", "training.keep", '"newest"', None),
            ("setting", "training.replay", None, "4.0"),
            ("setting", "schedule.cron", '"15 3 * * *"', '"15 4 * * *"'),
            ("library", "torch", "2.10.0", "2.11.0"),
        ):
            expected.append((first["run_id"], kind, fact, old, new))
    found = database.frame("SELECT run_id, kind, name, before, after FROM night_changes").astype(object)
    rows = [tuple(None if pd.isna(value) else value for value in row) for row in found.itertuples(index=False)]
    assert sorted(rows, key=str) == sorted(expected, key=str)
    assert {kind for _, kind, *_ in rows} == {
        *(kind for kind, *_ in CHANGED.values()),
        "champion",
        "setting",
        "library",
    }
    found = database.frame("SELECT pipeline, setting, value FROM settings ORDER BY pipeline, setting")
    assert [tuple(row) for row in found.to_numpy().tolist()] == [
        (name, *setting)
        for name in names
        for setting in (
            ("schedule.cron", '"15 4 * * *"'),
            ("training.learning_rate", "1e-05"),
            ("training.new", "1"),
            ("training.replay", "4.0"),
        )
    ]


def test_a_run_stores_which_of_its_settings_are_defaults(database: Database) -> None:
    night_rows.open_run(database, night_rows.pipeline(learning_rate=1e-5), night_rows.night())
    query = sa.select(schema.DocumentValue.name, schema.DocumentValue.is_default)
    found = database.read(lambda session: dict(session.execute(query).tuples().all()))
    names = ("training.replay", "gate.confidence", "predict.source", "training.learning_rate", "data.labels")
    assert [found[name] for name in names] == [True, True, True, False, False]


def test_what_a_reader_needs_is_in_views(database: Database) -> None:
    opened = night_rows.opened(database)
    records.record_snapshot(database, opened.run_id, 1, night_rows.refreshed(database))
    assert dict(database.frame("SELECT key, value FROM reading").to_numpy().tolist()) == {
        "home_id": database.home.id,
        "revision": schema.HEAD,
    }
    [row] = database.frame("SELECT * FROM run_documents").to_dict("records")
    assert json.loads(str(row["config"])) == night_rows.pipeline().record()
    assert json.loads(str(row["label_names"])) == ["bad", "good"]


DUCKDB = {
    "integer": {"BIGINT", "INTEGER"},
    "number": {"DOUBLE"},
    "date": {"DATE"},
    "boolean": {"BOOLEAN", "BIGINT"},
    "bytes": {"BLOB"},
    "text": {"VARCHAR"},
    "json": {"VARCHAR"},
    "time": {"VARCHAR"},
}


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_duckdb_reads_every_view_of_a_sqlite_file_with_types(migrated_url: str) -> None:
    duckdb = pytest.importorskip("duckdb")
    scanner = pytest.importorskip("duckdb_extension_sqlite_scanner")
    [extension] = Path(scanner.__file__).parent.rglob("*.duckdb_extension")
    with duckdb.connect(config={"allow_unsigned_extensions": "true"}) as connection:
        connection.execute(f"LOAD '{extension}'")
        connection.execute(f"ATTACH '{make_url(migrated_url).database}' AS home (TYPE sqlite, READ_ONLY)")
        found = {
            (view, name, kind)
            for view in VIEWS
            for name, kind, *_ in connection.execute(f"DESCRIBE home.{view}").fetchall()
        }
    assert {one for one in found if one[2] not in DUCKDB[kind_of(*one[:2])]} == set()
