"""Versions, champion, promotion by hand and rollback, on real files and both databases."""

from __future__ import annotations

import errno
import os
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from nightgate.config import Pipeline
from nightgate.data.snapshots import Snapshot
from nightgate.database.schema import ModelVersion
from nightgate.database.transactions import Database
from nightgate.errors import DatabaseError, ModelError, NightgateError, PromotionLostError, RegistryError, StorageError
from nightgate.home import Home
from nightgate.metrics.bootstrap import Interval
from nightgate.metrics.confusion import Scores
from nightgate.models import serving_check, version_folder
from nightgate.models.classifier import Classifier
from nightgate.pipeline_files import check_pipeline
from nightgate.registry import approvals, champions, freezes, promotion, versions
from nightgate.registry import register as registration
from nightgate.registry.register import Candidate
from nightgate.runs import lifecycle
from nightgate.runs.run_row import RunRow
from nightgate.schedule import Night
from tests.support import night_rows
from tests.support.trained import write_trained_model

LABELS = ("bad", "fine", "good")
MONDAY = datetime(2026, 3, 2, 3, 15, tzinfo=UTC)
SCORES = Scores(1200, 0.61, 0.6, 0.55, 0.6, 0.56, 0.61, 0.55)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trained_model(tmp_path_factory.mktemp("trained"), LABELS)


def pipeline_of(name: str = "reviews") -> Pipeline:
    return check_pipeline(
        {"name": name, "data": {"source": {"kind": "sample"}, "labels": list(LABELS)}, "training": {"max_length": 32}},
        "test",
    )


def completed_run(
    db: Database, home: Home, best_model: Path, *, night: int = 0, name: str = "reviews", verdict: bool = True
) -> Candidate:
    """A run that has trained two epochs; registered next."""
    pipeline = pipeline_of(name)
    moment = MONDAY + timedelta(days=night)
    run = night_rows.open_run(db, pipeline, Night(moment.date(), "backfill", moment, moment))
    for epoch in (1, 2):
        _record_epoch(db, run, epoch)
    manifest = {
        "id": "s-0011223344556677",
        "test_version": "t-0123456789",
        "rows": {"train": 9600, "validation": 1200, "test": 1200},
        "data_until": moment.isoformat(),
    }
    return Candidate(
        pipeline=pipeline,
        run_id=run.run_id,
        attempt=run.attempt,
        snapshot=Snapshot("s-0011223344556677", home.snapshots / name, manifest),
        best_model=best_model,
        best_epoch=2,
        test=SCORES,
        test_interval=Interval(0.57, 0.63),
        decision=night_rows.decision("promote" if verdict else "hold"),
    )


def _record_epoch(db: Database, run: RunRow, epoch: int) -> None:
    """Straight into the table: what `ledger.record_epoch` does is not under test here."""
    from nightgate.database.schema import Epoch

    row = Epoch(
        run_id=run.run_id,
        attempt=run.attempt,
        epoch=epoch,
        step=600 * epoch,
        training_loss=1.0049 - epoch / 10,
        validation_loss=1.0616,
        support=1200,
        accuracy=0.6,
        f1_weighted=0.5268 + epoch / 100,
        f1_macro=0.5,
        precision_weighted=0.5,
        precision_macro=0.5,
        recall_weighted=0.5,
        recall_macro=0.5,
        learning_rate=1e-5,
        examples_per_second=100.0,
        nonfinite="",
        recorded_at=datetime.now(UTC),
    )
    db.write(lambda session: session.add(row))


def register(db: Database, home: Home, best_model: Path, count: int = 1, name: str = "reviews") -> list[int]:
    found = []
    for night in range(count):
        candidate = completed_run(db, home, best_model, night=night, name=name)
        found.append(registration.register_candidate(db, home, candidate).version)
    return found


def promote(db: Database, home: Home, version: int) -> str:
    return champions.promote_manually(db, home, "reviews", version, reason="looks right", by="ada")


def roll_back(database: Database) -> int:
    """Without trying what comes back, which takes a fresh process a few seconds. Gives the version."""
    champion, version = reigning(database), champions.previous_champion(database, "reviews")
    promotion.roll_back(database, "reviews", version, expected=champion, by="ada", reason="worse")
    return version


def reigning(db: Database) -> int | None:
    row = versions.champion(db, "reviews")
    return row.version if row else None


# --- registering ---


def test_a_completed_candidate_becomes_version_1_with_all_its_facts(
    database: Database, home: Home, trained: Path
) -> None:
    candidate = completed_run(database, home, trained)
    row = registration.register_candidate(database, home, candidate)
    assert (row.version, row.path) == (1, "models/reviews/v0001")
    manifest = version_folder.verify_version(home.absolute(row.path))
    assert manifest["run_id"] == candidate.run_id
    assert manifest["night"] == "2026-03-02"
    assert manifest["snapshot"]["id"] == "s-0011223344556677"
    assert manifest["metrics"]["test"] == {
        "rows": 1200,
        "accuracy": 0.61,
        "f1": 0.6,
        "precision": 0.6,
        "recall": 0.61,
        "f1_ci_low": 0.57,
        "f1_ci_high": 0.63,
    }
    assert [epoch["step"] for epoch in manifest["metrics"]["epochs"]] == [600, 1200]
    assert manifest["metrics"]["validation"]["f1"] == pytest.approx(0.5468)
    assert manifest["configuration"] == candidate.pipeline.record()
    assert manifest["verdict"] == "promote"
    assert manifest["libraries"]["torch"]
    assert (row.started_from, row.base_model_revision) == (None, None)
    assert row.size_bytes == sum(file.stat().st_size for file in trained.iterdir())
    card = (home.absolute(row.path) / "README.md").read_text()
    assert "| Training Loss | Epoch | Step | Validation Loss | Accuracy | F1 | Precision | Recall |" in card
    assert "| 0.9049 | 1.0 | 600 | 1.0616 |" in card
    assert "F1: 0.6000 (95 % interval 0.5700 to 0.6300)" in card


def test_a_version_knows_what_it_was_made_from_and_with(database: Database, home: Home, trained: Path) -> None:
    register(database, home, trained)
    environment = {"python": "3.11.7", "libraries": {"torch": "2.9"}, "platform": "Linux", "device": "cpu"}
    candidate = completed_run(database, home, trained, night=1)
    made = replace(candidate, started_from=1, base_model_revision="0123abcd", environment=environment)
    row = registration.register_candidate(database, home, made)
    assert (row.started_from, row.base_model_revision) == (1, "0123abcd")
    manifest = version_folder.verify_version(row.folder(home))
    assert manifest["base_model"]["revision"] == "0123abcd"
    assert manifest["environment"] == environment
    stored = database.read(lambda session: session.get_one(ModelVersion, ("reviews", row.version)).environment)
    assert stored == environment


def test_held_candidates_get_numbers_too_and_numbers_go_on_per_pipeline(
    database: Database, home: Home, trained: Path
) -> None:
    held = completed_run(database, home, trained, night=0, verdict=False)
    assert registration.register_candidate(database, home, held).version == 1
    assert registration.register_candidate(database, home, completed_run(database, home, trained, night=1)).version == 2
    other = completed_run(database, home, trained, name="other")
    assert registration.register_candidate(database, home, other).version == 1
    assert (home.models / "other" / "v0001").is_dir()


def test_the_same_run_again_gets_the_same_version_and_writes_nothing(
    database: Database, home: Home, trained: Path
) -> None:
    candidate = completed_run(database, home, trained)
    first = registration.register_candidate(database, home, candidate)
    before = {file: file.stat().st_mtime_ns for file in home.models.rglob("*")}
    assert registration.register_candidate(database, home, candidate) == first
    assert {file: file.stat().st_mtime_ns for file in home.models.rglob("*")} == before


def test_a_version_holds_the_weights_that_were_scored_or_the_run_is_refused(
    database: Database, home: Home, trained: Path, tmp_path: Path
) -> None:
    candidate = completed_run(database, home, trained)
    registration.register_candidate(database, home, candidate)
    other = write_trained_model(tmp_path / "other", LABELS, sharpness=3)
    with pytest.raises(RegistryError, match="weights of attempt 1") as caught:
        registration.register_candidate(database, home, replace(candidate, best_model=other))
    assert "--force" in caught.value.next_step


def test_a_damaged_version_is_told_not_repaired_when_its_run_registers_again(
    database: Database, home: Home, trained: Path
) -> None:
    candidate = completed_run(database, home, trained)
    path = home.absolute(registration.register_candidate(database, home, candidate).path)
    # A new file each time in these tests: versions of one trained folder share theirs.
    (path / "config.json").unlink()
    (path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"config\.json is altered"):
        registration.register_candidate(database, home, candidate)
    assert (path / "config.json").read_text() == "{}"


def test_a_crash_between_rename_and_commit_costs_nothing(database: Database, home: Home, trained: Path) -> None:
    candidate = completed_run(database, home, trained)
    orphan = home.models / "reviews" / "v0001"
    orphan.mkdir(parents=True)
    row = registration.register_candidate(database, home, candidate)
    assert row.version == 1
    version_folder.verify_version(home.absolute(row.path))
    assert len(list((home.models / "reviews" / "orphans").iterdir())) == 1


def test_an_attempt_that_was_given_up_cannot_register(database: Database, home: Home, trained: Path) -> None:
    candidate = completed_run(database, home, trained)
    lifecycle.finish_run(database, candidate.run_id, candidate.attempt, status="cancelled", reason="stopped")
    with pytest.raises(RegistryError):
        registration.register_candidate(database, home, candidate)
    assert versions.versions(database, "reviews") == []
    assert list((home.models / "reviews").iterdir()) == []


def test_on_a_full_disk_there_is_neither_a_version_nor_a_row(
    database: Database, home: Home, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate = completed_run(database, home, trained)
    real, calls = os.fsync, []

    def full_at_the_manifest(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_at_the_manifest)
        with pytest.raises(StorageError, match="No space left"):
            registration.register_candidate(database, home, candidate)
    assert versions.versions(database, "reviews") == []
    assert list((home.models / "reviews").iterdir()) == []
    assert registration.register_candidate(database, home, candidate).version == 1


# --- finding ---


@pytest.mark.parametrize("text", ["2", "v2", "v0002", " V2 ", 2, "champion"])
def test_a_version_can_be_named_in_several_ways(database: Database, home: Home, trained: Path, text: str | int) -> None:
    register(database, home, trained, 3)
    promote(database, home, 1)
    promote(database, home, 2)
    assert champions.resolve_version(database, "reviews", text).version == 2
    assert champions.resolve_version(database, "reviews", "previous").version == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("9", "has no version 9; it has 1 to 3"),
        ("0", "has no version 0"),
        ("-1", "'-1' is not a version"),
        ("newest", "'newest' is not a version"),
        ("", "'' is not a version"),
        ("champion", "has no champion yet: none of its versions .1 to 3. was promoted"),
        ("previous", "has no champion yet"),
    ],
)
def test_a_version_that_does_not_exist_is_answered_with_those_that_do(
    database: Database, home: Home, trained: Path, text: str, words: str
) -> None:
    register(database, home, trained, 3)
    with pytest.raises(RegistryError, match=words) as caught:
        champions.resolve_version(database, "reviews", text)
    assert caught.value.next_step


def test_an_unknown_pipeline_is_answered_with_the_nearest(database: Database, home: Home, trained: Path) -> None:
    register(database, home, trained)
    for text in ("1", "champion", "previous"):
        with pytest.raises(RegistryError, match="no pipeline 'review'; did you mean 'reviews'"):
            champions.resolve_version(database, "review", text)


def test_a_pipeline_without_a_completed_candidate_says_so(database: Database, home: Home, trained: Path) -> None:
    completed_run(database, home, trained)
    with pytest.raises(RegistryError, match="none of its runs has completed a candidate") as caught:
        champions.resolve_version(database, "reviews", "1")
    assert "nightgate run reviews" in caught.value.next_step


# --- moving the champion ---


def test_a_promotion_by_hand_is_stored_with_who_and_why(database: Database, home: Home, trained: Path) -> None:
    register(database, home, trained, 2)
    told = promote(database, home, 1)
    assert told == "version 1 is the champion of reviews now, the first one"
    told = champions.promote_manually(database, home, "reviews", "v2", reason=" looks right ", by="ada")
    assert told == "version 2 is the champion of reviews now, in place of version 1"
    row = versions.champion(database, "reviews")
    assert row is not None
    assert (row.version, row.promoted_by, row.reason) == (2, "ada", "looks right")


@pytest.mark.parametrize(
    ("version", "reason", "by", "words"),
    [
        ("1", "again", "ada", "version 1 is the champion of reviews already"),
        ("champion", "again", "ada", "already"),
        ("7", "why not", "ada", "no version 7"),
        ("2", "", "ada", "the reason is blank"),
        ("2", "  \n", "ada", "the reason is blank"),
        ("2", "why not", " ", "nobody is named"),
    ],
)
def test_a_promotion_that_makes_no_sense_is_refused_in_words(
    database: Database, home: Home, trained: Path, version: str, reason: str, by: str, words: str
) -> None:
    register(database, home, trained, 2)
    promote(database, home, 1)
    with pytest.raises(RegistryError, match=words) as caught:
        champions.promote_manually(database, home, "reviews", version, reason=reason, by=by)
    assert caught.value.next_step
    assert reigning(database) == 1


def test_an_altered_version_is_not_promoted(database: Database, home: Home, trained: Path) -> None:
    register(database, home, trained, 2)
    promote(database, home, 1)
    weights = home.models / "reviews" / "v0002" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.unlink()
    weights.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.safetensors is altered"):
        promote(database, home, 2)
    assert reigning(database) == 1


def test_whoever_is_second_to_move_the_champion_is_told(
    database: Database, home: Home, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(database, home, trained, 3)
    promote(database, home, 1)
    opens = Classifier.open

    def somebody_else_is_faster(path: Path, **options: Any) -> Any:
        promotion.promote(database, "reviews", 2, expected=1, by="grace", reason="faster")
        return opens(path, **options)

    monkeypatch.setattr(Classifier, "open", somebody_else_is_faster)
    with pytest.raises(PromotionLostError):
        promote(database, home, 3)
    assert reigning(database) == 2


def test_a_rollback_brings_back_the_champion_before(database: Database, home: Home, trained: Path) -> None:
    register(database, home, trained, 3)
    for version in (1, 2, 3):
        promote(database, home, version)
    start = time.perf_counter()
    told = champions.rollback(database, home, "reviews", reason="3 is rude", by="ada")
    print(f"a rollback of a tiny model on {database.dialect} took {time.perf_counter() - start:.2f} s")
    assert told == (
        "version 2 is the champion of reviews now, in place of version 3, which is quarantined. "
        "No run promotes itself until `nightgate unfreeze reviews --reason TEXT`"
    )
    row = versions.champion(database, "reviews")
    assert row is not None
    assert (row.promoted_by, row.reason) == ("ada", "3 is rude")
    link = home.models / "reviews" / "champion"
    assert (str(link.readlink()), version_folder.verify_version(link)["version"]) == ("v0002", 2)


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_a_champion_that_a_fresh_process_cannot_serve_does_not_come_back(
    database: Database, home: Home, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(database, home, trained, 2)
    promote(database, home, 1)
    promote(database, home, 2)
    script = home.root / "serve_alone.py"
    script.write_text("import sys; sys.exit('the driver is gone')")
    monkeypatch.setattr(serving_check, "SCRIPT", script)
    with pytest.raises(ModelError, match=r"version 1 of reviews cannot be served: .*the driver is gone") as caught:
        champions.rollback(database, home, "reviews", reason="worse", by="ada")
    assert "nightgate promote reviews VERSION" in caught.value.next_step
    assert reigning(database) == 2
    assert freezes.frozen(database, "reviews") is None


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_a_rollback_from_the_anchor_says_which_one_it_is_now(database: Database, home: Home, trained: Path) -> None:
    register(database, home, trained, 2)
    promote(database, home, 1)
    told = champions.promote_manually(database, home, "reviews", 2, reason="better", by="ada", move_anchor=True)
    assert told.endswith("in place of version 1; it is the anchor too, in place of version 1")
    told = champions.rollback(database, home, "reviews", reason="worse", by="ada")
    assert "which is quarantined; the anchor is version 1. No run promotes" in told


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_a_promotion_by_hand_tells_of_the_run_that_waited_for_an_approval(
    database: Database, home: Home, trained: Path
) -> None:
    candidate = completed_run(database, home, trained)
    row = registration.register_candidate(database, home, candidate)
    patience = timedelta(hours=1)
    approvals.request(database, row.run_id, 1, expected=None, patience=patience, reason="waits", next_step="approve")
    told = promote(database, home, row.version)
    assert told.endswith(f"; its run {row.run_id}, which waited for an approval, has ended as promoted")


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_the_champion_is_made_the_anchor_without_losing_its_reign(
    database: Database, home: Home, trained: Path
) -> None:
    register(database, home, trained, 2)
    promote(database, home, 1)
    promote(database, home, 2)
    told = champions.promote_manually(database, home, "reviews", 2, reason="1 is lost", by="ada", move_anchor=True)
    assert told == "version 2, the champion of reviews, is the anchor now, in place of version 1"
    assert reigning(database) == 2
    with pytest.raises(RegistryError, match="version 2 is the champion of reviews already"):
        champions.promote_manually(database, home, "reviews", 2, reason="again", by="ada", move_anchor=True)


def test_a_quarantined_version_is_promoted_only_by_who_says_so(database: Database, home: Home, trained: Path) -> None:
    register(database, home, trained, 2)
    promote(database, home, 1)
    promote(database, home, 2)
    roll_back(database)
    with pytest.raises(RegistryError, match="version 2 of reviews is quarantined"):
        promote(database, home, 2)
    champions.promote_manually(database, home, "reviews", 2, reason="it was not", by="ada", despite_quarantine=True)
    assert reigning(database) == 2


def test_rollbacks_go_further_back_and_never_to_what_was_rolled_back(
    database: Database, home: Home, trained: Path
) -> None:
    register(database, home, trained, 4)
    for version in (1, 2, 3):
        promote(database, home, version)
    for expected in (2, 1):
        assert roll_back(database) == reigning(database) == expected
    with pytest.raises(RegistryError, match="nothing to roll back to: version 1"):
        champions.rollback(database, home, "reviews", reason="worse", by="ada")
    promote(database, home, 4)
    assert roll_back(database) == reigning(database) == 1
    assert [row.status for row in versions.versions(database, "reviews")] == ["champion", *["quarantined"] * 3]


def test_a_rollback_after_a_promotion_by_hand_undoes_that(database: Database, home: Home, trained: Path) -> None:
    register(database, home, trained, 2)
    for version in (1, 2, 1):
        promote(database, home, version)
    assert champions.previous_champion(database, "reviews") == 2


def test_a_rollback_without_a_champion_or_a_reason_is_refused(database: Database, home: Home, trained: Path) -> None:
    register(database, home, trained)
    with pytest.raises(RegistryError, match="no champion yet"):
        champions.rollback(database, home, "reviews", reason="worse", by="ada")
    promote(database, home, 1)
    with pytest.raises(RegistryError, match="reason is blank"):
        champions.rollback(database, home, "reviews", reason=" ", by="ada")


def test_a_rollback_to_files_that_are_gone_leaves_the_champion(database: Database, home: Home, trained: Path) -> None:
    register(database, home, trained, 2)
    promote(database, home, 1)
    promote(database, home, 2)
    (home.models / "reviews" / "v0001").rename(home.models / "lost")
    with pytest.raises(ModelError, match="is missing"):
        champions.rollback(database, home, "reviews", reason="worse", by="ada")
    assert reigning(database) == 2


# --- loading ---


def test_the_champion_predicts(database: Database, home: Home, trained: Path) -> None:
    import nightgate

    register(database, home, trained, 2)
    promote(database, home, 2)
    classifier = nightgate.load_champion("reviews", home=home.root)
    assert classifier.version == 2
    assert classifier.max_length == 32
    assert [found.label in LABELS for found in classifier.predict(["good shoes", "it broke"])] == [True, True]


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_what_stands_in_the_way_of_a_champion_is_said_in_words(
    database: Database, home: Home, trained: Path, tmp_path: Path
) -> None:
    def fails(kind: type[NightgateError], words: str, pipeline: str = "reviews", root: Path = home.root) -> None:
        with pytest.raises(kind, match=words) as caught:
            champions.load_champion(pipeline, home=root)
        assert caught.value.next_step

    fails(RegistryError, "no home of Nightgate at", root=tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    fails(RegistryError, "knows no pipeline 'reviews'; known: none")
    register(database, home, trained)
    fails(RegistryError, "did you mean 'reviews'", pipeline="revews")
    fails(RegistryError, "has no champion yet: none of its versions .1. was promoted")
    promote(database, home, 1)
    (home.models / "reviews" / "v0001" / "model.safetensors").unlink()
    fails(ModelError, r"lacks model\.safetensors")
    (home.models / "reviews").rename(home.models / "gone")
    fails(ModelError, "is missing")


def test_without_a_database_the_error_says_how_to_make_one(home: Home) -> None:
    with pytest.raises(DatabaseError, match="no database") as caught:
        champions.load_champion("reviews", home=home.root)
    assert "db upgrade" in caught.value.next_step
