"""The life of a run, what it records, and the champion, on both engines."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from nightgate.database.transactions import Database
from nightgate.errors import PromotionLostError, RegistryError
from nightgate.gate.decision import Decision, Verdict
from nightgate.registry import approvals, versions
from nightgate.registry.promotion import add_version, promote_candidate
from nightgate.runs import lifecycle, records
from nightgate.runs.liveness import Owner
from nightgate.runs.run_row import RunRow
from tests.support import night_rows
from tests.support.night_rows import one as run_row
from tests.support.night_rows import opened, promote, promote_itself, roll_back


def one(database: Database, query: str) -> dict[str, Any]:
    [row] = database.frame(query).to_dict("records")
    return {str(key): value for key, value in row.items()}


def record_epoch(database: Database, run: RunRow, f1: float = 0.6) -> None:
    """Record epoch 1 of the current attempt with all its details."""
    report, scores = night_rows.report(1, run.attempt), night_rows.scores(f1)
    slices, confusion = night_rows.slices(f1), night_rows.confusion()
    records.record_epoch(database, run.run_id, run.attempt, report, scores, slices, confusion)


def record_decision(database: Database, run: RunRow, decision: Decision) -> None:
    evidence, made_by = night_rows.evidence(), {"candidate": run.run_id}
    details = (night_rows.scores(), night_rows.slices(), night_rows.confusion())
    records.record_decision(database, run.run_id, run.attempt, decision, evidence, made_by, *details)


# --- opening ---


def test_a_night_without_a_run_gets_one(database: Database) -> None:
    run = opened(database, prefect_flow_run_id="flow-1")
    assert (run.attempt, run.ended, run.status) == (1, False, "running")
    assert run.run_id.startswith("reviews-20260301-")
    assert run.data_until == night_rows.night().data_until
    row = run_row(database, run.run_id)
    assert (row["trigger"], row["attempts"], row["prefect_flow_run_id"]) == ("schedule", 1, "flow-1")
    assert row["config_hash"] == night_rows.pipeline().config_hash


@pytest.mark.parametrize("status", ["held", "skipped", "waiting"])
def test_a_night_that_has_ended_stays_as_it_is(database: Database, status: str) -> None:
    first = opened(database)
    lifecycle.finish_run(database, first.run_id, 1, status, reason="because")
    again = opened(database)
    assert again == replace(first, status=status, reason="because")


@pytest.mark.parametrize("options", [{"force": True}, {"day": 1}])
def test_force_and_another_night_open_a_new_run(database: Database, options: dict[str, Any]) -> None:
    first = opened(database)
    lifecycle.finish_run(database, first.run_id, 1, "held")
    other = opened(database, **options)
    assert other.run_id != first.run_id
    assert not other.ended


def test_a_retry_of_a_forced_prefect_run_opens_no_further_run(database: Database) -> None:
    options: dict[str, Any] = {"force": True, "prefect_flow_run_id": "flow-1"}
    lifecycle.finish_run(database, opened(database).run_id, 1, "held")
    first = opened(database, **options, owner=Owner.here())
    second = opened(database, **options)
    assert (second.run_id, second.attempt, second.status) == (first.run_id, 2, "running")
    lifecycle.finish_run(database, first.run_id, 2, "held", reason="because")
    assert opened(database, **options) == replace(second, status="held", reason="because")
    assert opened(database, **options | {"prefect_flow_run_id": "flow-2"}).run_id != first.run_id


@pytest.mark.parametrize("status", ["failed", "cancelled", "running"])
def test_a_run_that_failed_was_cancelled_or_died_is_resumed(database: Database, status: str) -> None:
    first = opened(database)
    records.record_snapshot(database, first.run_id, 1, night_rows.refreshed(database))
    if status != "running":
        lifecycle.finish_run(database, first.run_id, 1, status, reason="no", error_type="crashed", next_step="again")
    later = replace(night_rows.night(), data_until=night_rows.night().data_until + timedelta(hours=5))
    second = night_rows.open_run(database, night_rows.pipeline(), later)
    assert (second.run_id, second.attempt, second.status) == (first.run_id, 2, "running")
    assert second.data_until == first.data_until
    assert second.snapshot == "snapshots/reviews/s-0011223344556677"
    row = run_row(database, first.run_id)
    assert (row["attempts"], row["trigger"], row["status"]) == (2, "retry", "running")
    assert (row["reason"], row["error_type"], row["next_step"], row["duration_seconds"]) == (None, None, None, None)
    attempts = database.frame("SELECT status, trigger, error_type FROM attempt ORDER BY attempt").to_dict("records")
    assert [row["status"] for row in attempts] == ["failed" if status == "running" else status, "running"]
    assert attempts[0]["error_type"] == "crashed"


def test_rows_that_made_a_night_fail_are_read_again(database: Database) -> None:
    first = opened(database)
    records.record_snapshot(database, first.run_id, 1, night_rows.refreshed(database))
    lifecycle.finish_run(database, first.run_id, 1, "failed", reason="one class only", error_type="data")
    assert opened(database).snapshot is None


def test_another_configuration_is_another_run_and_the_dead_one_ends_as_failed(database: Database) -> None:
    first = opened(database)
    second = night_rows.open_run(database, night_rows.pipeline(learning_rate=1e-5), night_rows.night())
    assert (second.run_id == first.run_id, second.attempt) == (False, 1)
    row = run_row(database, first.run_id)
    assert (row["status"], row["error_type"]) == ("failed", "crashed")


def test_a_run_ends_dead_runs_of_its_own_pipeline_as_failed(database: Database) -> None:
    other = night_rows.open_run(database, night_rows.pipeline("other"), night_rows.night())
    dead = opened(database)
    opened(database, day=1)
    assert run_row(database, other.run_id)["status"] == "running"
    row = run_row(database, dead.run_id)
    assert (row["status"], row["error_type"]) == ("failed", "crashed")
    assert f"pid {night_rows.dead_owner().pid} on " in row["reason"]
    assert row["next_step"] == "run that night again: nightgate run reviews --night 2026-03-01"
    assert row["duration_seconds"] >= 0


def test_a_dry_run_does_not_keep_the_night_from_running(database: Database) -> None:
    rehearsal = opened(database, dry_run=True)
    lifecycle.finish_run(database, rehearsal.run_id, 1, "held")
    real = opened(database)
    assert (real.run_id == rehearsal.run_id, real.ended, real.dry_run) == (False, False, False)


def test_a_second_run_is_superseded_and_names_the_first(database: Database) -> None:
    first = opened(database, owner=Owner.here())
    second = opened(database, day=1)
    assert (second.status, second.ended) == ("superseded", True)
    assert f"run {first.run_id} (process {os.getpid()} on " in run_row(database, second.run_id)["reason"]
    assert run_row(database, first.run_id)["status"] == "running"


_write = Database.write


def twice(database: Database, work: Callable[[Any], Any]) -> Any:
    """The commit took place, and the connection broke before its answer came."""
    _write(database, work)
    return _write(database, work)


def test_opening_again_after_a_lost_answer_changes_nothing(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    first = opened(database)
    lifecycle.finish_run(database, first.run_id, 1, "failed")
    monkeypatch.setattr(Database, "write", twice)
    second = opened(database)
    assert second.attempt == 2
    records.record_snapshot(database, second.run_id, 2, night_rows.refreshed(database))
    record_epoch(database, second)
    record_decision(database, second, night_rows.decision())
    promote_itself(database, second, add_version(database, second.run_id, 2, str))
    assert run_row(database, second.run_id)["status"] == "promoted"
    assert run_row(database, second.run_id)["attempts"] == 2
    third = opened(database, day=1)
    lifecycle.finish_run(database, third.run_id, 1, "held", reason="not fit")
    counts = {table: len(database.frame(f"SELECT * FROM {table}")) for table in ("epoch", "gate_check", "promotion")}
    assert counts == {"epoch": 1, "gate_check": 2, "promotion": 1}


@pytest.mark.parametrize(("decide", "status"), [(approvals.approve, "promoted"), (approvals.reject, "held")])
def test_a_decision_whose_answer_was_lost_can_be_made_again(
    decide: Callable[..., RunRow], status: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = night_rows.judged_version(database)
    night_rows.await_approval(database, run)
    monkeypatch.setattr(Database, "write", twice)
    assert decide(database, run.run_id, by="anna", reason="looked at it").status == status
    assert run_row(database, run.run_id)["status"] == status
    assert database.frame("SELECT decided_by FROM approvals")["decided_by"].tolist() == ["anna"]


# --- fences ---


def writes(database: Database, run_id: str) -> list[Callable[[], Any]]:
    """Every way in which attempt 1 writes to its run."""
    return [
        lambda: lifecycle.record_attempt(database, run_id, 1, device="cpu"),
        lambda: records.record_snapshot(database, run_id, 1, night_rows.refreshed(database)),
        lambda: records.record_epoch(database, run_id, 1, night_rows.report(1), night_rows.scores()),
        lambda: records.record_training(database, run_id, 1, night_rows.trained()),
        lambda: records.record_decision(database, run_id, 1, night_rows.decision()),
        lambda: add_version(database, run_id, 1, str),
        lambda: lifecycle.finish_run(database, run_id, 1, "failed", reason="late"),
        lambda: promote_candidate(database, "reviews", 1, expected=None, run_id=run_id, attempt=1, reason="late"),
    ]


@pytest.mark.parametrize(
    ("end", "why"), [(False, "attempt 2 has taken over"), (True, "the run has ended as cancelled")]
)
def test_an_attempt_writes_nothing_once_another_has_taken_over_or_the_run_has_ended(
    database: Database, end: bool, why: str
) -> None:
    first = opened(database)
    if end:
        lifecycle.finish_run(database, first.run_id, 1, "cancelled", reason="stopped")
    else:
        opened(database)
    before = run_row(database, first.run_id)
    for write in writes(database, first.run_id):
        with pytest.raises(RegistryError, match=why):
            write()
    assert run_row(database, first.run_id) == before
    assert database.frame("SELECT * FROM model_version").empty
    assert database.frame("SELECT * FROM epoch").empty


def test_a_run_that_does_not_exist_is_named(database: Database) -> None:
    with pytest.raises(RegistryError, match="no-such-run"):
        lifecycle.record_attempt(database, "no-such-run", 1, device="cpu")


# --- what a night records ---


def test_a_snapshot_and_its_quarantined_rows_are_recorded_once(database: Database) -> None:
    run = opened(database)
    for _ in range(2):
        records.record_snapshot(database, run.run_id, 1, night_rows.refreshed(database))
    row = run_row(database, run.run_id)
    assert (row["snapshot_id"], row["rows_new"], row["rows_total"]) == ("s-0011223344556677", 40, 100)
    snapshot = one(database, "SELECT * FROM snapshots")
    assert (snapshot["rows_train"], snapshot["rows_validation"], snapshot["rows_test"]) == (80, 10, 10)
    assert (snapshot["path"], snapshot["runs"]) == ("snapshots/reviews/s-0011223344556677", 1)
    quarantined = database.frame("SELECT * FROM quarantined_rows ORDER BY position")
    assert list(quarantined["origin"]) == ["reviews.csv:1", "reviews.csv:2"]
    assert set(quarantined["reason"]) == {"empty_text"}


def test_the_previous_snapshot_is_the_newest_that_still_exists(database: Database) -> None:
    assert records.previous_snapshot(database, "reviews") is None
    for day, snapshot_id in enumerate(["s-00000000000000aa", "s-00000000000000bb"]):
        run = opened(database, day)
        records.record_snapshot(database, run.run_id, 1, night_rows.refreshed(database, snapshot_id))
        lifecycle.finish_run(database, run.run_id, 1, "held")
    folder = database.home.snapshots / "reviews"
    assert records.previous_snapshot(database, "reviews") == folder / "s-00000000000000bb"
    before = night_rows.night(1).data_until
    assert records.previous_snapshot(database, "reviews", before) == folder / "s-00000000000000aa"
    (folder / "s-00000000000000bb" / "manifest.json").unlink()
    assert records.previous_snapshot(database, "reviews") == folder / "s-00000000000000aa"


def test_an_epoch_is_recorded_with_its_details_and_not_overwritten(database: Database) -> None:
    run = opened(database)
    for f1 in (0.6, 0.7):
        record_epoch(database, run, f1)
    epoch = one(database, "SELECT * FROM metric_history")
    assert (epoch["f1"], epoch["precision"], epoch["nonfinite"]) == (0.6, 0.6, "")
    slices = database.frame("SELECT * FROM slice_metrics ORDER BY slice_value")
    assert list(slices["support"]) == [10, 0]
    assert list(slices["f1"]) == [0.6, 0.6]
    cells = database.frame("SELECT true_label, predicted_label, count FROM confusion ORDER BY count")
    assert [tuple(row) for row in cells.to_numpy()] == [
        ("bad", "good", 1),
        ("good", "bad", 2),
        ("good", "good", 3),
        ("bad", "bad", 4),
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_null_and_named(database: Database, value: float) -> None:
    run = opened(database)
    report = night_rows.report(1, validation_loss=value, learning_rate=value)
    records.record_epoch(database, run.run_id, 1, report, night_rows.scores(value, macro=0.5))
    query = "SELECT * FROM metric_history WHERE validation_loss IS NULL AND learning_rate IS NULL AND f1 IS NULL"
    found = one(database, query)
    named = "validation_loss, accuracy, f1_weighted, precision_weighted, recall_weighted, learning_rate"
    assert found["nonfinite"] == named
    assert found["f1_macro"] == 0.5
    record_decision(database, run, night_rows.decision("hold", value))
    row = one(database, "SELECT * FROM nightly_runs WHERE test_f1 IS NULL")
    assert row["nonfinite"] == "test_f1, test_f1_all"


def test_a_missing_metric_is_null_and_not_called_non_finite(database: Database) -> None:
    run = opened(database)
    records.record_epoch(database, run.run_id, 1, night_rows.report(1), night_rows.scores(None, support=0))
    assert one(database, "SELECT f1, nonfinite FROM metric_history") == {"f1": None, "nonfinite": ""}


def test_an_epoch_whose_row_was_lost_is_recorded_under_the_attempt_that_trained_it(database: Database) -> None:
    first = opened(database)
    second = opened(database)
    records.record_epoch(database, first.run_id, second.attempt, night_rows.report(1, attempt=1), night_rows.scores())
    records.record_epoch(database, first.run_id, second.attempt, night_rows.report(2, attempt=2), night_rows.scores())
    rows = database.frame("SELECT epoch, attempt FROM epoch_results ORDER BY epoch")
    assert rows.to_numpy().tolist() == [[1, 1], [2, 2]]


def test_how_an_attempt_trained_is_recorded(database: Database) -> None:
    run = opened(database)
    lifecycle.record_attempt(database, run.run_id, 1, threads=4, resumed_from_epoch=0, restarts=1)
    records.record_training(database, run.run_id, 1, night_rows.trained(best_epoch=3))
    row = run_row(database, run.run_id)
    assert (row["device"], row["precision"], row["best_epoch"]) == ("cpu", "fp32", 3)
    columns = "threads, resumed_from_epoch, precision_reason, engine, engine_reason, micro_batches, restarts"
    assert one(database, f"SELECT {columns} FROM attempt") == {
        "threads": 2,
        "resumed_from_epoch": 0,
        "precision_reason": "there is no GPU",
        "engine": "packed",
        "engine_reason": "packed: the model takes an attention of our own",
        "micro_batches": 1,
        "restarts": 1,
    }


def test_the_decision_comes_with_its_checks_and_both_sides(database: Database) -> None:
    run = opened(database)
    records.record_training(database, run.run_id, 1, night_rows.trained(best_epoch=2))
    record_decision(database, run, night_rows.decision("promote", 0.6, 0.55))
    row = run_row(database, run.run_id)
    assert (row["verdict"], row["best_epoch"], row["test_f1"], row["champion_f1"]) == ("promote", 2, 0.6, 0.55)
    assert row["f1_delta"] == pytest.approx(0.05)
    assert (row["f1_ci_low"], row["f1_ci_high"], row["test_rows"]) == (0.5, 0.7, 10)
    checks = database.frame("SELECT check_name, outcome, rows_used FROM gate_checks ORDER BY position")
    assert list(checks["check_name"]) == ["min_f1", "beats_champion"]
    assert list(checks["outcome"]) == ["passed", "not_run"]
    assert set(database.frame("SELECT split FROM confusion")["split"]) == {"test"}


# --- versions and the champion ---


def test_versions_of_a_pipeline_count_up_from_1_and_a_run_has_one(database: Database) -> None:
    placed: list[int] = []

    def place(number: int) -> str:
        placed.append(number)
        return f"v{number}"

    first = opened(database)
    assert [add_version(database, first.run_id, 1, place) for _ in range(2)] == [1, 1]
    lifecycle.finish_run(database, first.run_id, 1, "held")
    second = opened(database, day=1)
    assert add_version(database, second.run_id, 1, place) == 2
    assert placed == [1, 2]
    other = night_rows.open_run(database, night_rows.pipeline("other"), night_rows.night())
    assert add_version(database, other.run_id, 1, str) == 1
    rows = versions.versions(database, "reviews")
    assert [(row.version, row.path, row.status) for row in rows] == [(1, "v1", "held"), (2, "v2", "held")]


def test_a_version_that_cannot_be_placed_takes_no_number(database: Database) -> None:
    run = opened(database)

    def full(number: int) -> str:
        raise OSError(f"no space for {number}")

    with pytest.raises(OSError, match="no space for 1"):
        add_version(database, run.run_id, 1, full)
    assert add_version(database, run.run_id, 1, str) == 1


def test_a_run_promotes_itself_in_one_transaction(database: Database) -> None:
    run, version = night_rows.judged_version(database)
    promote_itself(database, run, version)
    row = run_row(database, run.run_id)
    assert (row["status"], row["model_version"]) == ("promoted", 1)
    champion = night_rows.champion(database)
    assert (champion.version, champion.run_id, champion.status) == (1, run.run_id, "champion")
    assert (champion.f1, champion.promoted_by, champion.reason, champion.valid_to) == (0.6, "gate", "fit", None)
    assert champion.data_until == night_rows.night().data_until


def test_a_promotion_that_expects_another_champion_loses_and_changes_nothing(database: Database) -> None:
    night_rows.held_version(database, 0)
    run, version = night_rows.judged_version(database, 1)
    promote(database, 1)
    before = database.frame("SELECT * FROM promotion")
    for expected in (None, 2):
        with pytest.raises(PromotionLostError, match="but now there is version 1"):
            promote_itself(database, run, version, expected)
    assert database.frame("SELECT * FROM promotion").equals(before)
    assert run_row(database, run.run_id)["status"] == "running"


def test_the_champion_of_every_instant_is_known(database: Database) -> None:
    for day in range(3):
        night_rows.held_version(database, day)
    promote(database, 1)
    promote(database, 2, 1)
    roll_back(database, 1, 2)
    promotions = night_rows.promotions(database)
    assert [row.version for row in promotions] == [1, 2, 1]
    for earlier, later in itertools.pairwise(promotions):
        assert later.valid_from == earlier.valid_to
    for row in promotions:
        at = versions.champion(database, "reviews", at=row.valid_from)
        assert at is not None
        assert at.version == row.version
    assert versions.champion(database, "reviews", at=promotions[0].valid_from - timedelta(microseconds=1)) is None
    assert versions.champion(database, "other") is None
    statuses = {row.version: row.status for row in versions.versions(database, "reviews")}
    assert statuses == {1: "champion", 2: "quarantined", 3: "held"}
    audit = database.frame("SELECT kind, model_version, replaced_version FROM promotions ORDER BY promoted_at")
    assert list(audit["kind"]) == ["promote", "promote", "rollback"]
    assert list(audit["replaced_version"])[1:] == [1, 2]


def test_a_version_that_does_not_exist_or_is_champion_already_is_not_promoted(database: Database) -> None:
    night_rows.held_version(database)
    promote(database, 1)
    with pytest.raises(RegistryError, match=r"no version 9(?s:.*)nightgate versions reviews"):
        promote(database, 9, 1)
    with pytest.raises(RegistryError, match="is the champion already"):
        promote(database, 1, 1)


def test_a_retried_run_whose_version_a_person_promoted_meanwhile_loses_its_promotion(database: Database) -> None:
    run, version = night_rows.judged_version(database)
    promote(database, version)
    with pytest.raises(PromotionLostError, match="is the champion already"):
        promote_itself(database, run, version, version)


def test_an_older_model_than_the_champion_is_promoted_manually_only(database: Database) -> None:
    night_rows.held_version(database, 5)
    promote(database, 1)
    run, version = night_rows.judged_version(database, 2)
    with pytest.raises(
        PromotionLostError, match=r"an older model does not replace it(?s:.*)nightgate promote reviews 2"
    ):
        promote_itself(database, run, version, 1)
    lifecycle.finish_run(database, run.run_id, 1, "held")
    promote(database, version, 1)
    assert night_rows.champion(database).version == version


def test_a_model_as_old_as_the_champion_may_replace_it(database: Database) -> None:
    night_rows.held_version(database, 1)
    promote(database, 1)
    forced = opened(database, day=1, force=True)
    records.record_decision(database, forced.run_id, 1, night_rows.decision())
    promote_itself(database, forced, add_version(database, forced.run_id, 1, str), 1)
    assert run_row(database, forced.run_id)["status"] == "promoted"


@pytest.mark.parametrize(
    ("verdict", "options", "why"), [("hold", {}, "its verdict is hold"), ("promote", {"dry_run": True}, "is a dry run")]
)
def test_a_dry_run_and_a_run_with_another_verdict_may_not_promote(
    database: Database, verdict: Verdict, options: dict[str, Any], why: str
) -> None:
    run, version = night_rows.judged_version(database, verdict=verdict, **options)
    with pytest.raises(PromotionLostError, match=why):
        promote_itself(database, run, version)


def test_a_run_may_not_promote_the_version_of_another(database: Database) -> None:
    night_rows.held_version(database)
    run, _ = night_rows.judged_version(database, 1)
    with pytest.raises(PromotionLostError, match="may not promote version 1"):
        promote_itself(database, run, 1, None)


def test_a_run_that_other_rows_refer_to_cannot_be_deleted(database: Database) -> None:
    night_rows.held_version(database)
    with pytest.raises(IntegrityError):
        database.write(lambda session: session.execute(sa.text("DELETE FROM run")))


def test_a_run_without_a_snapshot_sees_what_its_night_sees_when_it_is_resumed(database: Database) -> None:
    night = night_rows.night()
    early = replace(night, data_until=night.data_until - timedelta(hours=3), scheduled_for=None, trigger="manual")
    first = night_rows.open_run(database, night_rows.pipeline(), early)
    lifecycle.finish_run(database, first.run_id, 1, "failed", reason="no rows", error_type="data")
    again = night_rows.open_run(database, night_rows.pipeline(), night)
    assert (again.run_id, again.attempt) == (first.run_id, 2)
    assert again.data_until == night.data_until


@pytest.mark.parametrize("dialect", [pytest.param("postgresql", marks=pytest.mark.database)])
def test_a_fence_sees_a_takeover_that_was_committed_while_it_waited(database: Database, dialect: str) -> None:
    del dialect
    run = opened(database)
    with ThreadPoolExecutor() as pool, database._engine.connect() as other:
        other.execute(sa.text("UPDATE run SET attempt = 2 WHERE run_id = :run"), {"run": run.run_id})
        zombie = pool.submit(lifecycle.finish_run, database, run.run_id, 1, "failed", reason="zombie")
        time.sleep(1)  # it waits for the row's lock now
        other.commit()
        with pytest.raises(RegistryError, match="attempt 2 has taken over"):
            zombie.result()
    assert run_row(database, run.run_id)["status"] == "running"
