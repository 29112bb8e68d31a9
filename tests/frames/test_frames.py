"""`nightgate.history`, the champion and the versions as frames, and the published table from a plain SELECT."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

import nightgate
from benchmarks.cookbook import questions
from nightgate.cli.app import app
from nightgate.database.transactions import Database
from nightgate.errors import ConfigurationError
from nightgate.frames import epochs, fleet, nights
from nightgate.registry import freezes, promotion
from nightgate.runs import evaluations, records
from nightgate.runs.evaluations import Evaluation
from nightgate.runs.lifecycle import finish_run
from tests.support import night_rows

PUBLISHED_TABLE = """\
| Training Loss | Epoch | Step | Validation Loss | Accuracy | F1 | Precision | Recall |
|:-:|:-:|:-:|:-:|:-:|:-:|:-:|:-:|
| 1.0049 | 1.0 | 2500 | 1.0616 | 0.5352 | 0.5268 | 0.5347 | 0.5352 |
| 0.9172 | 2.0 | 5000 | 1.0763 | 0.5432 | 0.5412 | 0.5444 | 0.5432 |
| 0.8285 | 3.0 | 7500 | 1.1077 | 0.5408 | 0.5428 | 0.5494 | 0.5408 |
| 0.7361 | 4.0 | 10000 | 1.1743 | 0.5342 | 0.5399 | 0.5531 | 0.5342 |
| 0.6538 | 5.0 | 12500 | 1.2436 | 0.5422 | 0.5435 | 0.5452 | 0.5422 |"""

PUBLISHED_QUERY = (
    "SELECT training_loss, epoch, step, validation_loss, accuracy, f1, precision, recall "
    "FROM epoch_results WHERE run_id = :run_id ORDER BY epoch"
)


def published_run(database: Database, day: int = 0) -> str:
    opened = night_rows.open_run(database, night_rows.pipeline(), night_rows.night(day))
    for training_loss, epoch, step, validation_loss, accuracy, f1, precision, recall in night_rows.PUBLISHED:
        records.record_epoch(
            database,
            opened.run_id,
            1,
            night_rows.report(epoch, step=step, training_loss=training_loss, validation_loss=validation_loss),
            night_rows.scores(f1, accuracy=accuracy, precision_weighted=precision, recall_weighted=recall),
            night_rows.slices(f1),
        )
    records.record_training(database, opened.run_id, 1, night_rows.trained(best_epoch=3))
    decision, evidence = night_rows.decision(), night_rows.evidence()
    details = {"scores": night_rows.scores(), "slices": night_rows.slices(0.5)}
    records.record_decision(database, opened.run_id, 1, decision, evidence, **details)
    finish_run(database, opened.run_id, 1, "held", reason="a rehearsal")
    return opened.run_id


def test_the_published_table_comes_back_from_a_plain_select(database: Database) -> None:
    rows = database.frame(PUBLISHED_QUERY, {"run_id": published_run(database)})
    assert [tuple(row) for row in rows.itertuples(index=False)] == list(night_rows.PUBLISHED)
    for found in (rows, nightgate.history("reviews", epochs=True)):
        assert epochs.published_table(found) == PUBLISHED_TABLE


@pytest.mark.parametrize("missing", [None, math.nan, pd.NA])
def test_a_missing_value_is_printed_as_n_a(missing: Any) -> None:
    names = ("training_loss", "epoch", "step", "validation_loss", "accuracy", "f1", "precision", "recall")
    frame = pd.DataFrame([dict.fromkeys(names, missing) | {"epoch": 1, "step": 7}], dtype=object)
    assert epochs.published_table(frame).splitlines()[-1] == "| n/a | 1.0 | 7 | n/a | n/a | n/a | n/a | n/a |"


def test_a_loss_that_is_not_finite_is_printed_as_missing(database: Database) -> None:
    opened = night_rows.open_run(database, night_rows.pipeline(), night_rows.night())
    report = night_rows.report(1, training_loss=math.nan)
    records.record_epoch(database, opened.run_id, 1, report, night_rows.scores(None, support=0))
    table = epochs.published_table(nightgate.history("reviews", epochs=True))
    assert table.splitlines()[-1] == "| n/a | 1.0 | 100 | 1.1000 | n/a | n/a | n/a | n/a |"


@pytest.mark.usefixtures("database")
def test_no_epochs_are_a_table_without_rows() -> None:
    table = epochs.published_table(nightgate.history("reviews", epochs=True))
    assert table.splitlines() == PUBLISHED_TABLE.splitlines()[:2]


def test_history_has_one_row_per_night_with_the_same_types_on_both_engines(database: Database) -> None:
    for day in range(3):
        published_run(database, day)
    nights = nightgate.history("reviews")
    assert list(nights["night"]) == [date(2026, 3, 1), date(2026, 3, 2), date(2026, 3, 3)]
    assert nights["scheduled_for"].iloc[0] == datetime(2026, 3, 1, 3, 15, tzinfo=UTC)
    assert str(nights["finished_at"].dtype).endswith("UTC]")
    assert [str(nights[name].dtype) for name in ("dry_run", "attempts", "model_version")] == ["bool", "Int64", "Int64"]
    assert list(nights["model_version"].isna()) == [True] * 3
    assert nightgate.history("unknown").empty


def test_since_excludes_earlier_nights(database: Database) -> None:
    for day in range(3):
        published_run(database, day)
    for since in (date(2026, 3, 2), "2026-03-02"):
        assert list(nightgate.history("reviews", since=since)["night"]) == [date(2026, 3, 2), date(2026, 3, 3)]
    epochs = nightgate.history("reviews", epochs=True, since="2026-03-02")
    assert len(epochs) == 10
    assert set(epochs["night"]) == {date(2026, 3, 2), date(2026, 3, 3)}
    assert list(nightgate.history("reviews", until="2026-03-02")["night"]) == [date(2026, 3, 1), date(2026, 3, 2)]
    night_rows.held_version(database, name="other")
    newest = [("other", date(2026, 3, 1)), ("reviews", date(2026, 3, 3))]
    assert list(nightgate.history(limit=1)[["pipeline", "night"]].itertuples(index=False, name=None)) == newest
    assert list(nightgate.history(until="2026-03-02", limit=1)["night"]) == [date(2026, 3, 1), date(2026, 3, 2)]


def test_one_run_is_found_by_id_or_as_the_latest(database: Database) -> None:
    runs = [published_run(database, day) for day in range(2)]
    assert set(nightgate.history("reviews", run=runs[0])["run_id"]) == {runs[0]}
    assert set(nightgate.history("reviews", run="latest")["run_id"]) == {runs[1]}
    assert set(nightgate.history("reviews", epochs=True)["run_id"]) == {runs[1]}
    for wrong in ({"pipeline": "reviews", "run": "unknown"}, {"pipeline": "other", "run": runs[0]}):
        with pytest.raises(ConfigurationError, match="nightgate history"):
            nightgate.history(**wrong)
    with pytest.raises(ConfigurationError, match="nightgate history reviews"):
        nightgate.history("other", run=runs[0])


def test_the_latest_run_is_of_the_newest_night_that_has_epochs(database: Database) -> None:
    judged = published_run(database)
    skipped = night_rows.open_run(database, night_rows.pipeline(), night_rows.night(1))
    finish_run(database, skipped.run_id, 1, "skipped", reason="too few new rows")
    for found in (nightgate.epochs("reviews"), nightgate.slices(run="latest"), nightgate.checks("reviews")):
        assert set(found["run_id"]) == {judged}
    for options in (["--epochs"], ["--slices"], ["--run", "latest"]):
        done = CliRunner().invoke(app, ["history", "reviews", *options])
        assert (done.exit_code, bool(done.stdout)) == (0, True)
        assert all(part in done.stderr for part in (judged, skipped.run_id, "too few new rows"))
    done = CliRunner().invoke(app, ["history", "--run", skipped.run_id])
    assert (done.exit_code, done.stdout, "too few new rows" in done.stderr) == (0, "", True)
    done = CliRunner().invoke(app, ["history", "reviews", "--epochs", "--until", "2026-03-01"])
    assert (done.exit_code, done.stderr) == (0, "")


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize(
    "wrong", [{"since": "junk"}, {"until": "2026-13-01"}, {"limit": 0}, {"since": "2026-03-02", "until": "2026-03-01"}]
)
def test_a_date_or_limit_that_is_none_is_refused_with_the_next_step(wrong: dict[str, Any]) -> None:
    ask: Any
    for ask in (nightgate.history, nightgate.epochs, nightgate.slices, nightgate.checks, nightgate.changes):
        with pytest.raises(ConfigurationError, match="next: ") as refused:
            ask("reviews", **wrong)
        assert all(str(value) in str(refused.value) for value in wrong.values())
    with pytest.raises(ConfigurationError, match="next: "):
        nightgate.champion("reviews", at="junk")
    with pytest.raises(ConfigurationError, match="next: "):
        nightgate.history("reviews", epochs=True, slices=True)


def test_a_run_without_epochs_is_explained_by_its_status(database: Database) -> None:
    run = night_rows.open_run(database, night_rows.pipeline(), night_rows.night())
    finish_run(database, run.run_id, run.attempt, "failed", reason="no rows", next_step="bring rows")
    for name in ("latest", None, run.run_id):
        assert nightgate.history("reviews", run=name, epochs=True).empty
        found = nights.why_no_epochs("reviews", name)
        assert all(part in found for part in (run.run_id, "2026-03-01", "failed: no rows", "next: bring rows"))
    assert nights.why_no_epochs("other", "latest") == ""


def test_slices_are_those_of_the_best_epoch_and_of_the_test(database: Database) -> None:
    runs = [published_run(database, day) for day in range(2)]
    slices = nightgate.history("reviews", slices=True)
    assert set(slices["run_id"]) == {runs[1]}
    found = slices[["epoch", "split", "slice_name", "slice_value", "f1"]].to_numpy().tolist()
    assert found == [
        [3, "validation", "label", "bad", 0.5428],
        [3, "validation", "label", "good", 0.5428],
        [3, "test", "label", "bad", 0.5],
        [3, "test", "label", "good", 0.5],
    ]
    assert len(nightgate.history("reviews", slices=True, since="2026-03-01")) == 8


def test_history_can_be_read_from_another_machine(
    database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    published_run(database)
    monkeypatch.setenv("NIGHTGATE_HOME", str(tmp_path / "analyst"))
    assert len(nightgate.history("reviews")) == 1


def test_the_champion_and_the_versions_come_as_frames(database: Database) -> None:
    assert nightgate.champion("reviews").empty
    for day in range(2):
        night_rows.held_version(database, day)
    promotion.promote(database, "reviews", 1, expected=None, by="anna", reason="first")
    promotion.promote(database, "reviews", 2, expected=1, by="ben", reason="second")
    [now] = nightgate.champion("reviews").to_dict("records")
    assert (now["version"], now["status"], now["promoted_by"], now["test_f1"]) == (2, "champion", "ben", 0.6)
    before = now["valid_from"].to_pydatetime() - timedelta(microseconds=1)
    [then] = nightgate.champion("reviews", at=before).to_dict("records")
    assert (then["version"], then["promoted_by"]) == (1, "anna")
    assert list(nightgate.versions("reviews")["version"]) == [1, 2]


def test_all_pipelines_say_how_they_do_and_who_needs_somebody(database: Database) -> None:
    first = night_rows.open_run(database, night_rows.pipeline(), night_rows.night())
    finish_run(database, first.run_id, first.attempt, "failed", reason="it was long ago")
    version = night_rows.held_version(database, 1)
    night_rows.promote(database, version)
    until = night_rows.night(2).data_until
    alarm = Evaluation("reviews", "s-2", version, "champion", until, until, until, 240, "", alarms=("drifted",))
    evaluations.record(database, alarm, {}, (), "weighted")
    freezes.freeze(database, "reviews", by="ada", reason="rude answers")
    for name, status in (("broken", "failed"), ("quiet", "skipped")):
        run = night_rows.open_run(database, night_rows.pipeline(name), night_rows.night())
        finish_run(database, run.run_id, run.attempt, status, reason="no rows", next_step="bring rows")
    waiting, _ = night_rows.judged_version(database, name="strict")
    night_rows.await_approval(database, waiting)
    broken, quiet, reviews, strict = fleet.records(fleet.read_fleet(database, date(2026, 3, 4)))
    assert (broken["needs"], broken["remedy"]) == ("night 2026-03-01 failed: no rows", "bring rows")
    assert (quiet["needs"], quiet["remedy"], quiet["scores"], quiet["champion_version"]) == ("", "", [None], None)
    assert (reviews["status"], reviews["scores"], reviews["champion_version"]) == ("held", [None, 0.6], version)
    assert reviews["needs"] == f"champion: drifted; frozen since {datetime.now(UTC):%Y-%m-%d} by ada: rude answers"
    assert reviews["remedy"] == "nightgate run reviews"
    assert strict["needs"].startswith("night 2026-03-01 waiting: ")
    asked = database.frame(questions()["Which pipelines need somebody today?"].replace("'2026-01-05'", "'2026-03-04'"))
    assert list(zip(asked["pipeline"], asked["need"], strict=True)) == [
        ("broken", "last night failed"),
        ("reviews", "alarm"),
        ("reviews", "frozen by ada"),
        ("strict", "approval"),
    ]


def test_a_pipeline_without_a_night_for_three_of_its_usual_gaps_needs_somebody(database: Database) -> None:
    for name, days in (("once", (0,)), ("nightly", (0, 1, 2, 9, 10)), ("weekly", (0, 7, 14))):
        for day in days:
            run = night_rows.open_run(database, night_rows.pipeline(name), night_rows.night(day))
            finish_run(database, run.run_id, run.attempt, "skipped", reason="no rows")

    def needing(day: date) -> dict[str, tuple[str, str]]:
        rows = fleet.records(fleet.read_fleet(database, day))
        found = {row["pipeline"]: (row["needs"], row["remedy"]) for row in rows if row["needs"]}
        asked = database.frame(questions()["Which pipelines need somebody today?"].replace("2026-01-05", str(day)))
        assert found == {row["pipeline"]: (row["need"], row["next_step"]) for row in fleet.records(asked)}
        return found

    assert list(needing(date(2026, 3, 14))) == ["once"]
    assert needing(date(2026, 3, 15))["nightly"] == ("no night for 4 days", "nightgate doctor")
    assert "weekly" not in needing(date(2026, 4, 5))
    assert needing(date(2026, 4, 6))["weekly"] == ("no night for 22 days", "nightgate doctor")
