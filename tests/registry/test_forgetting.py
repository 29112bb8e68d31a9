"""Forgetting: no row, quarantined row, golden row, log or checkpoint of an id stays, and what remains is verified."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from nightgate import locks
from nightgate.cli.app import app
from nightgate.data.batches import hash_of_forgotten
from nightgate.data.refresh import Refreshed, refresh
from nightgate.data.snapshots import SPLITS, Snapshot, open_snapshot, write_snapshot
from nightgate.data.tip import kept_out
from nightgate.data.training_rows import training_rows
from nightgate.database.data_schema import Forgotten
from nightgate.database.schema import ModelVersion, Run
from nightgate.database.transactions import Database
from nightgate.errors import RegistryError, SnapshotError
from nightgate.pages.page import write_page
from nightgate.registry import data_retention, promotion
from nightgate.registry.forgetting import (
    CHECKPOINTS,
    ENTRIES,
    GOLDEN,
    MENTION,
    QUARANTINE,
    REASON,
    SNAPSHOT,
    STRAY,
    find,
    forget,
)
from nightgate.runs import lifecycle, records
from nightgate.sources.source_table import Quarantined
from tests.support import night_rows, reviews
from tests.support.stopping import Killed, killed_at

PERSON = "customer-0004"
TEXT = 'My name is Kim & I said: "call me" about kettle 4, which I bought for my mother in Lund'
RULES = {"normalisation": 1, "labels": ["bad", "good"]}


def rows(number: int, *, first: int = 0) -> pd.DataFrame:
    """Rows of customers 0, 1, ...; row 4, of PERSON, is in train, and so on by turns."""
    numbers = range(first, first + number)
    return pd.DataFrame(
        {
            "split": [SPLITS[(index + 2) % 3] for index in numbers],
            "row_id": [f"customer-{index:04d}" for index in numbers],
            "fingerprint": [f"{index:032x}" for index in numbers],
            "text": [TEXT if index == 4 else f"This is what customer {index} said" for index in numbers],
            "label": pd.Series([index % 2 for index in numbers], dtype="int64"),
        }
    )


def snapshot_of(database: Database, frame: pd.DataFrame) -> Snapshot:
    counts = frame["split"].value_counts()
    facts = {
        "pipeline": "reviews",
        "label_names": ["bad", "good"],
        "rows": {split: int(counts[split]) for split in SPLITS},
        "rows_total": len(frame),
        "rows_duplicate": 0,
        "rows_quarantined": 1,
        "label_counts": {
            split: {
                name: int(((frame["split"] == split) & (frame["label"] == place)).sum())
                for place, name in enumerate(("bad", "good"))
            }
            for split in SPLITS
        },
        "test_version": "t-0011223344",
    }
    return write_snapshot(database.home.snapshots / "reviews", frame, RULES, facts)


@pytest.fixture
def nights(database: Database) -> Database:
    """Three nights of `reviews`: PERSON is in the snapshots of the first two, and all that they left mentions them.

    The first made version 1, from which version 2 of the third continued; the second broke and can go on.
    """
    home = database.home
    for day, frame in enumerate((rows(12), rows(15), rows(12, first=5))):
        opened = night_rows.judged_version(database, day)[0] if day != 1 else night_rows.opened(database, 1, "backfill")
        bad = [Quarantined(f"reviews:{PERSON}", PERSON, "unknown_label", "'7' is no label", TEXT[:200])]
        bad += [Quarantined("r.csv:10", None, "bad_row", f"4 columns: {PERSON},{TEXT}", "x" * 20)]
        bad += [Quarantined("r.csv:11", "customer-0005", "unknown_label", "'8' is no label", "somebody else")]
        snapshot = snapshot_of(database, frame)
        night = Refreshed(snapshot, tuple(bad if day == 1 else ()), 0, len(frame), 0)
        records.record_snapshot(database, opened.run_id, opened.attempt, night)
        attempt = home.runs / opened.run_id / "attempt-1"
        (attempt / "checkpoint" / "epoch-0001").mkdir(parents=True)
        (attempt / "checkpoint" / "epoch-0001" / "state.json").write_text("{}")
        status, reason = ("failed", f"a row is broken: {TEXT}") if day == 1 else ("held", "too bad")
        lifecycle.finish_run(database, opened.run_id, 1, status, reason=reason)
        if day == 1:
            (attempt / "log.txt").write_text(f"before\nrow {TEXT} and more\nafter customer-00041\n")
            (attempt.parent / "log.jsonl").write_text(json.dumps({"message": f"saw {TEXT}", "level": "INFO"}) + "\n")
            (attempt.parent / "report.html").write_text(
                "<p>My name is Kim &amp; I said: &quot;call me&quot; about kettle 4</p>"
            )
    database.write(lambda session: setattr(session.get_one(ModelVersion, ("reviews", 2)), "started_from", 1))
    write_page(database, home.page("reviews"), "reviews")
    assert b"Lund" in home.page("reviews").read_bytes()
    golden = rows(9).query("split == 'train'").assign(split="test")
    write_snapshot(home.golden / "reviews", golden, RULES, {"label_names": ["bad", "good"]}, name="frozen-0011223344")
    stray = home.snapshots / "reviews" / "s-0000000000000000.damaged-01234567"
    stray.mkdir()
    (stray / "rows.parquet").write_text(TEXT)
    killed = home.predictions / "reviews" / "0123"
    killed.mkdir(parents=True)
    (killed / "0.rows").write_text(TEXT)
    return database


def content(home: Path) -> Iterator[bytes]:
    """Everything that files of the home hold: rows as text, too."""
    for path in home.rglob("*"):
        if path.suffix == ".parquet":
            yield pd.read_parquet(path).to_csv().encode()
        elif path.is_file() and not path.name.startswith("metrics.db"):
            yield path.read_bytes()


def in_database(database: Database) -> str:
    tables = [
        database.frame(f"SELECT * FROM {view}") for view in ("quarantined_rows", "nightly_runs", "forgotten_rows")
    ]
    manifests = database.frame("SELECT manifest FROM snapshot")
    return "\n".join(table.to_csv() for table in (*tables, manifests))


def test_nothing_of_the_id_stays_and_all_else_does(nights: Database) -> None:
    home = nights.home
    before = find(nights, "reviews", [PERSON])
    assert {place.what for place in before.places} == {
        *(SNAPSHOT, GOLDEN, STRAY, QUARANTINE, REASON, CHECKPOINTS, MENTION)
    }
    assert before == forget(nights, "reviews", [PERSON], by="ada")
    for held in content(home.root):
        assert PERSON.encode() not in held.replace(b"customer-00041", b"")
        assert b"Lund" not in held
        assert b"Kim" not in held
    assert PERSON not in in_database(nights)
    assert "Lund" not in in_database(nights)

    first, second = (open_snapshot(home.snapshots / "reviews" / name) for name in ids(nights)[:2])
    assert [len(first.rows(split)) for split in SPLITS] == [3, 4, 4]
    assert first.manifest["rows"] == {"train": 3, "validation": 4, "test": 4}
    assert first.manifest["rows_total"] == sum(sum(one.values()) for one in first.manifest["label_counts"].values())
    assert first.manifest["redacted"]["rows"] == 1
    assert len(second.rows("train")) == 4
    golden = open_snapshot(home.golden / "reviews" / "frozen-0011223344")
    assert list(golden.rows("test")["row_id"]) == ["customer-0001", "customer-0007"]
    quarantined = nights.frame("SELECT * FROM quarantined_rows ORDER BY position")
    assert list(quarantined["excerpt"]) == ["(forgotten)", "(forgotten)", "somebody else"]
    assert list(quarantined["reason"]) == ["unknown_label", "bad_row", "unknown_label"]
    assert list(quarantined["origin"]) == ["reviews", "r.csv:10", "r.csv:11"]
    [broken] = nights.frame("SELECT run_id FROM nightly_runs WHERE status = 'failed'")["run_id"]
    assert broken not in {path.parts[-3] for path in home.runs.glob("*/attempt-1/checkpoint")}
    assert len(list(home.runs.glob("*/attempt-1/checkpoint"))) == 2
    log = next(home.runs.glob("*/attempt-1/log.txt")).read_text()
    assert log == "before\nrow (forgotten)\nafter customer-00041\n"
    assert json.loads(next(home.runs.glob("*/log.jsonl")).read_text()) == {
        "message": "saw (forgotten)",
        "level": "INFO",
    }


def ids(database: Database) -> list[str]:
    return list(database.frame("SELECT snapshot_id FROM snapshots ORDER BY recorded_at")["snapshot_id"])


def test_the_audit_row_has_numbers_and_versions_but_neither_id_nor_text(nights: Database) -> None:
    found = forget(nights, "reviews", [PERSON], by="ada")
    assert found.versions == {1: "trained on it", 2: "continued from a version that was trained on it"}
    [row] = nights.frame("SELECT * FROM forgotten_rows").to_dict("records")
    assert row["id_hash"] == hash_of_forgotten(PERSON)
    assert (row["snapshots"], row["rows_redacted"], row["golden_rows"], row["quarantined_rows"]) == (2, 2, 1, 1)
    assert (row["versions"], row["forgotten_by"]) == ("1, 2", "ada")
    assert row["finished_at"] >= row["begun_at"]
    assert list(nights.frame("SELECT rows_redacted FROM snapshots ORDER BY recorded_at")["rows_redacted"]) == [1, 1, 0]
    folder = nights.home.snapshots / "reviews" / ids(nights)[0]
    [file] = folder.glob("rows-*.parquet")
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(SnapshotError, match=file.name):
        open_snapshot(folder)


def test_forgetting_again_changes_nothing_and_an_unknown_id_is_an_error(nights: Database) -> None:
    forget(nights, "reviews", [PERSON], by="ada")
    audit = nights.frame("SELECT * FROM forgotten_rows").drop(columns="finished_at")
    folders = (nights.home.snapshots, nights.home.golden, nights.home.runs)
    files = {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*.*")}
    again = forget(nights, "reviews", [PERSON], by="bob")
    assert (again.places, sorted(again.versions)) == ((), [1, 2])
    assert files == {path: path.stat().st_mtime_ns for path in files}
    pd.testing.assert_frame_equal(audit, nights.frame("SELECT * FROM forgotten_rows").drop(columns="finished_at"))
    with pytest.raises(RegistryError, match="'customer-9999'") as caught:
        forget(nights, "reviews", ["customer-9999"], by="ada")
    assert "data.id" in caught.value.next_step
    assert kept_out(nights.home.snapshots / "reviews") == {hash_of_forgotten(PERSON)}


def test_rows_are_not_forgotten_under_a_run_that_is_at_work(nights: Database) -> None:
    opened = night_rows.opened(nights, 5, "backfill", owner=replace(night_rows.Owner.here()))
    with pytest.raises(RegistryError, match=opened.run_id):
        forget(nights, "reviews", [PERSON], by="ada")
    assert nights.read(lambda session: session.query(Forgotten).count()) == 0
    assert find(nights, "reviews", [PERSON]).places


def test_a_refresh_does_not_wait_where_forgetting_waits_for_a_prediction(nights: Database) -> None:
    home = nights.home
    call = threading.Thread(target=forget, args=(nights, "reviews", [PERSON]), kwargs={"by": "ada"})
    with locks.hold(home, "predict-0123", holder="a prediction that takes hours"):
        call.start()
        while not any(place.waits for place in locks.queue(home, "predict-0123")):
            call.join(0.1)
            assert call.is_alive()
        assert locks.queue(home, "data-reviews") == []
        [audit] = nights.read(lambda session: session.scalars(sa.select(Forgotten)).all())
        assert audit.finished_at is None
    call.join(60)
    assert not any((home.predictions / "reviews").iterdir())


def test_rows_leave_deltas_and_the_memory_of_splits_tells_of_snapshots_that_were_removed(
    database: Database, tmp_path: Path
) -> None:
    frame = pd.DataFrame(reviews.rows())
    for day in range(2):
        frame[: 100 + 10 * day].to_csv(tmp_path / "r.csv", index=False)
        opened, _ = night_rows.judged_version(database, day)
        pipeline = reviews.pipeline(reviews.files(tmp_path / "r.csv"), name="reviews", retention__snapshots=1)
        refreshed = refresh(pipeline, reviews.NIGHT, database.home)
        records.record_snapshot(database, opened.run_id, opened.attempt, refreshed)
        lifecycle.finish_run(database, opened.run_id, 1, "held")
    first = ids(database)[0]
    removed = datetime.now(UTC)
    database.write(lambda session: setattr(session.get_one(ModelVersion, ("reviews", 1)), "files_removed_at", removed))
    assert data_retention.sweep(database, pipeline) == [first]

    row_id, text = refreshed.snapshot.rows("train").sort_values("row_id")[["row_id", "text"]].iloc[0]
    found = forget(database, "reviews", [row_id], by="ada")
    assert {place.what: place.rows for place in found.places} == {ENTRIES: 1, SNAPSHOT: 1}
    assert sorted(found.versions) == [1, 2]
    assert "a snapshot was removed" in found.versions[1]
    assert found.versions[2] == "trained on it"
    snapshot = open_snapshot(refreshed.snapshot.path, verify=True)
    assert row_id not in set(snapshot.rows("train")["row_id"])
    assert not [held for held in content(database.home.root) if text.encode() in held]
    stored = database.frame("SELECT rows_redacted FROM snapshots WHERE files_removed_at IS NULL")
    assert list(stored["rows_redacted"]) == [1]
    assert find(database, "reviews", [row_id]).places == ()


@pytest.mark.parametrize("damaged", ["manifest.json", "delta.json", "texts.parquet"])
def test_damaged_snapshots_are_removed_whole_and_name_the_versions_that_learnt_from_the_row(
    database: Database, tmp_path: Path, damaged: str
) -> None:
    pd.DataFrame(reviews.rows()).to_csv(tmp_path / "r.csv", index=False)
    pipeline = reviews.pipeline(reviews.files(tmp_path / "r.csv"), name="reviews")
    opened, _ = night_rows.judged_version(database, 0)
    refreshed = refresh(pipeline, reviews.NIGHT, database.home)
    records.record_snapshot(database, opened.run_id, opened.attempt, refreshed)
    lifecycle.finish_run(database, opened.run_id, 1, "held")
    row_id, text = refreshed.snapshot.rows("train").sort_values("row_id")[["row_id", "text"]].iloc[0]
    [file] = (database.home.snapshots / "reviews").rglob(damaged)
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:-9])

    found = forget(database, "reviews", [row_id], by="ada")
    assert STRAY in {place.what for place in found.places}
    assert [*found.versions] == [1]
    assert not [held for held in content(database.home.root) if text.encode() in held]
    assert find(database, "reviews", [row_id]).places == ()
    again = refresh(pipeline, reviews.NIGHT, database.home).snapshot
    assert again.manifest["rows_total"] == refreshed.rows_total - 1


@pytest.mark.faults
@pytest.mark.parametrize("stop", range(14))
def test_a_killed_call_is_finished_by_the_same_call(nights: Database, stop: int) -> None:
    """Stopped at each change to the disk or the database in turn."""
    changes = ((Path, "unlink"), (Path, "replace"), (Database, "write"), (shutil, "rmtree"))
    with killed_at(stop, *changes), pytest.raises(Killed):
        forget(nights, "reviews", [PERSON], by="ada")
    forget(nights, "reviews", [PERSON], by="ada")
    assert not [held for held in content(nights.home.root) if b"Lund" in held]
    assert find(nights, "reviews", [PERSON]).places == ()
    [row] = nights.frame("SELECT * FROM forgotten_rows").to_dict("records")
    assert (row["snapshots"], row["rows_redacted"], row["golden_rows"], row["versions"]) == (2, 2, 1, "1, 2")
    assert list(nights.frame("SELECT rows_redacted FROM snapshots ORDER BY recorded_at")["rows_redacted"]) == [1, 1, 0]


def test_a_version_whose_training_left_the_row_out_is_not_named(database: Database, tmp_path: Path) -> None:
    pd.DataFrame(reviews.rows()).to_csv(tmp_path / "r.csv", index=False)
    source = reviews.files(tmp_path / "r.csv")
    for day, limit in enumerate((20, 20, 0)):
        pipeline = reviews.pipeline(source, name="reviews", training__max_train_rows=limit)
        opened = night_rows.open_run(database, pipeline, replace(night_rows.night(day), trigger="backfill"))
        refreshed = refresh(pipeline, reviews.NIGHT, database.home)
        records.record_snapshot(database, opened.run_id, opened.attempt, refreshed)
        records.record_decision(
            database, opened.run_id, 1, night_rows.decision(), night_rows.evidence(), scores=night_rows.scores()
        )
        promotion.add_version(database, opened.run_id, 1, lambda number: f"models/v{number}", size_bytes=1)
        lifecycle.finish_run(database, opened.run_id, 1, "held")
    # It is not known of the second.
    of_first = sa.update(Run).where(Run.night == night_rows.night(0).date).values(rows_trained=20)
    database.write(lambda session: session.execute(of_first))
    chosen = training_rows(refreshed.snapshot, reviews.pipeline(source, training__max_train_rows=20), opened.data_until)
    left_out = refreshed.snapshot.rows("train").query("row_id not in @chosen.row_id")["row_id"].iloc[0]
    assert list(find(database, "reviews", [chosen["row_id"].iloc[0]]).versions) == [1, 2, 3]
    assert list(find(database, "reviews", [left_out]).versions) == [2, 3]


def test_the_command_shows_first_and_names_the_models(nights: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    if nights.dialect == "postgresql":
        pytest.skip("the command finds SQLite in the home")
    monkeypatch.setenv("NIGHTGATE_HOME", str(nights.home.root))
    arguments = ["forget", "reviews", "--id", PERSON, "--format", "json"]
    shown = CliRunner().invoke(app, [*arguments, "--dry-run"])
    assert shown.exit_code == 0, shown.output
    assert "nothing was changed" in shown.stderr
    done = CliRunner().invoke(app, arguments)
    assert json.loads(shown.stdout) == json.loads(done.stdout)
    assert "version 1: trained on it" in done.stderr
    assert CliRunner().invoke(app, ["forget", "reviews", "--id", "customer-9999"]).exit_code == 1
