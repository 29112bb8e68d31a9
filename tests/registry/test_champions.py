"""Registration, manual promotion, rollback and loading of versions, on real files and both databases."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion

from nightgate.config.pipeline import Pipeline
from nightgate.data.snapshots import Snapshot
from nightgate.database.schema import ModelVersion
from nightgate.database.transactions import Database
from nightgate.errors import (
    CrashedError,
    DatabaseError,
    ModelError,
    NightgateError,
    PromotionLostError,
    RegistryError,
    StorageError,
)
from nightgate.home import Home
from nightgate.metrics.bootstrap import Interval
from nightgate.metrics.confusion import Scores
from nightgate.models import serving_check, version_folder
from nightgate.models.classifier import Classifier
from nightgate.pipeline_files import check_pipeline
from nightgate.registry import champions, freezes, versions
from nightgate.registry import register as registration
from nightgate.registry.register import Candidate
from nightgate.runs import lifecycle, records
from nightgate.runs.run_row import read_run
from nightgate.schedule import Night
from tests.support import night_rows
from tests.support.trained import write_trained_model

pytestmark = pytest.mark.process

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
    """The candidate of a run that has trained two epochs."""
    pipeline = pipeline_of(name)
    moment = MONDAY + timedelta(days=night)
    run = night_rows.open_run(db, pipeline, Night(moment.date(), "backfill", moment, moment))
    for epoch in (1, 2):
        report = night_rows.report(epoch, step=600 * epoch, training_loss=1.0049 - epoch / 10, validation_loss=1.0616)
        records.record_epoch(db, run.run_id, run.attempt, report, night_rows.scores(0.5268 + epoch / 100))
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


def register(db: Database, home: Home, best_model: Path, count: int = 1, name: str = "reviews") -> list[int]:
    found = []
    for night in range(count):
        candidate = completed_run(db, home, best_model, night=night, name=name)
        found.append(registration.register_candidate(db, home, candidate).version)
    return found


def promote(db: Database, home: Home, version: int) -> str:
    return champions.promote_manually(db, home, "reviews", version, reason="looks right", by="ada")


def roll_back(database: Database) -> int:
    """Roll back without the serving check, which takes seconds; returns the version that is champion again."""
    night_rows.roll_back(database, champions.previous_champion(database, "reviews"), champion(database))
    return champion(database)


def champion(db: Database) -> int:
    return night_rows.champion(db).version


# --- registering ---


def test_the_first_candidate_becomes_version_1_with_manifest_and_card(
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
    assert row.size_bytes == sum(file.stat().st_size for file in trained.iterdir())
    card = (home.absolute(row.path) / "README.md").read_text()
    assert "| Training Loss | Epoch | Step | Validation Loss | Accuracy | F1 | Precision | Recall |" in card
    assert "| 0.9049 | 1.0 | 600 | 1.0616 |" in card
    assert "F1 (weighted): 0.6000 (95 % interval 0.5700 to 0.6300)" in card


def test_a_version_records_its_ancestor_base_model_and_environment(
    database: Database, home: Home, trained: Path
) -> None:
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


def test_the_same_run_again_gets_the_same_version_and_writes_nothing(
    database: Database, home: Home, trained: Path
) -> None:
    candidate = completed_run(database, home, trained)
    first = registration.register_candidate(database, home, candidate)
    before = {file: file.stat().st_mtime_ns for file in home.models.rglob("*")}
    assert registration.register_candidate(database, home, candidate) == first
    assert {file: file.stat().st_mtime_ns for file in home.models.rglob("*")} == before


def test_a_second_attempt_with_other_weights_cannot_use_the_version_of_the_first(
    database: Database, home: Home, trained: Path, tmp_path: Path
) -> None:
    candidate = completed_run(database, home, trained)
    registration.register_candidate(database, home, candidate)
    other = write_trained_model(tmp_path / "other", LABELS, sharpness=3)
    with pytest.raises(RegistryError, match="attempt 1") as caught:
        registration.register_candidate(database, home, replace(candidate, best_model=other))
    assert "--force" in caught.value.next_step


def test_registering_again_fails_if_the_version_is_damaged_and_does_not_repair_it(
    database: Database, home: Home, trained: Path
) -> None:
    candidate = completed_run(database, home, trained)
    path = home.absolute(registration.register_candidate(database, home, candidate).path)
    # A new file each time in these tests: versions of one trained folder share theirs.
    (path / "config.json").unlink()
    (path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"config\.json"):
        registration.register_candidate(database, home, candidate)
    assert (path / "config.json").read_text() == "{}"


def test_an_ended_run_cannot_register(database: Database, home: Home, trained: Path) -> None:
    candidate = completed_run(database, home, trained)
    lifecycle.finish_run(database, candidate.run_id, candidate.attempt, status="cancelled", reason="stopped")
    with pytest.raises(RegistryError):
        registration.register_candidate(database, home, candidate)
    assert versions.versions(database, "reviews") == []
    assert list((home.models / "reviews").iterdir()) == []


def test_a_full_disk_leaves_neither_a_version_nor_a_row(
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
        with pytest.raises(StorageError):
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


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_the_error_for_a_missing_version_lists_those_that_exist(database: Database, home: Home, trained: Path) -> None:
    completed_run(database, home, trained)
    with pytest.raises(RegistryError) as caught:
        champions.resolve_version(database, "reviews", "1")
    assert "nightgate run reviews" in caught.value.next_step
    register(database, home, trained, 3)
    for text in ("9", "0", "-1", "newest", "", "champion", "previous"):
        with pytest.raises(RegistryError, match="1 to 3") as caught:
            champions.resolve_version(database, "reviews", text)
        assert caught.value.next_step
    for text in ("1", "champion", "previous"):
        with pytest.raises(RegistryError, match="'reviews'"):
            champions.resolve_version(database, "review", text)


# --- moving the champion ---


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_every_manual_change_is_described_in_a_sentence(
    database: Database, home: Home, trained: Path, snapshot: SnapshotAssertion
) -> None:
    register(database, home, trained, 3)
    waiting = registration.register_candidate(database, home, completed_run(database, home, trained, night=3))
    night_rows.await_approval(database, read_run(database, waiting.run_id))
    why = {"reason": "fit", "by": "ada"}
    sentences = [
        promote(database, home, 1),
        promote(database, home, 2),
        champions.promote_manually(database, home, "reviews", 2, move_anchor=True, **why),
        promote(database, home, waiting.version).replace(waiting.run_id, "RUN"),
        champions.promote_manually(database, home, "reviews", 3, move_anchor=True, **why),
    ]
    with pytest.raises(RegistryError, match="version 3"):
        champions.promote_manually(database, home, "reviews", 3, move_anchor=True, **why)
    sentences.append(champions.rollback(database, home, "reviews", **why))
    champions.unfreeze(database, "reviews", **why)
    sentences.append(champions.freeze(database, "reviews", **why))
    assert sentences == snapshot


def test_a_manual_promotion_is_stored_with_who_and_why(database: Database, home: Home, trained: Path) -> None:
    register(database, home, trained, 2)
    promote(database, home, 1)
    champions.promote_manually(database, home, "reviews", "v2", reason=" looks right ", by="ada")
    row = night_rows.champion(database)
    assert (row.version, row.promoted_by, row.reason) == (2, "ada", "looks right")


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_the_champion_a_missing_version_and_a_blank_name_or_reason_are_not_promoted(
    database: Database, home: Home, trained: Path
) -> None:
    register(database, home, trained, 2)
    promote(database, home, 1)
    for version, reason, by, named in (
        ("1", "again", "ada", "version 1"),
        ("champion", "again", "ada", "version 1"),
        ("7", "why not", "ada", "version 7"),
        ("2", "  \n", "ada", "reason"),
        ("2", "why not", " ", "name"),
    ):
        with pytest.raises(RegistryError, match=named) as caught:
            champions.promote_manually(database, home, "reviews", version, reason=reason, by=by)
        assert caught.value.next_step
    assert champion(database) == 1


def test_an_altered_version_is_not_promoted(database: Database, home: Home, trained: Path) -> None:
    register(database, home, trained, 2)
    promote(database, home, 1)
    weights = home.models / "reviews" / "v0002" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.unlink()
    weights.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        promote(database, home, 2)
    assert champion(database) == 1


def test_a_manual_promotion_fails_if_the_champion_changes_meanwhile(
    database: Database, home: Home, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(database, home, trained, 3)
    promote(database, home, 1)
    opens = Classifier.open

    def another_promotion_is_faster(path: Path, **options: Any) -> Any:
        night_rows.promote(database, 2, 1)
        return opens(path, **options)

    monkeypatch.setattr(Classifier, "open", another_promotion_is_faster)
    with pytest.raises(PromotionLostError):
        promote(database, home, 3)
    assert champion(database) == 2


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_a_rollback_restores_the_previous_champion(database: Database, home: Home, trained: Path) -> None:
    register(database, home, trained, 3)
    for version in (1, 2, 3):
        promote(database, home, version)
    champions.rollback(database, home, "reviews", reason="3 is rude", by="ada")
    row = night_rows.champion(database)
    assert (row.promoted_by, row.reason) == ("ada", "3 is rude")
    link = home.models / "reviews" / "champion"
    assert (str(link.readlink()), version_folder.verify_version(link)["version"]) == ("v0002", 2)


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_a_rollback_fails_if_a_fresh_process_cannot_serve_the_previous_champion(
    database: Database, home: Home, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(database, home, trained, 2)
    promote(database, home, 1)
    promote(database, home, 2)
    script = home.root / "probe.py"
    script.write_text("import sys; sys.exit('the driver is gone')")
    monkeypatch.setattr(serving_check, "SCRIPT", script)
    with pytest.raises(CrashedError, match="the driver is gone"):
        champions.rollback(database, home, "reviews", reason="worse", by="ada")
    answers = ({"model": "it", "flaw": "its weights lack all"}, {"latency_ms": {}})
    script.write_text(f"import json\nfor answer in {answers!r}: print(json.dumps(answer))")
    with pytest.raises(ModelError, match="its weights lack all") as caught:
        champions.rollback(database, home, "reviews", reason="worse", by="ada")
    assert "nightgate promote reviews VERSION" in caught.value.next_step
    assert champion(database) == 2
    assert freezes.frozen(database, "reviews") is None


def test_a_quarantined_version_is_promoted_manually_only_if_it_is_released(
    database: Database, home: Home, trained: Path
) -> None:
    register(database, home, trained, 2)
    promote(database, home, 1)
    promote(database, home, 2)
    roll_back(database)
    with pytest.raises(RegistryError, match="version 2") as caught:
        promote(database, home, 2)
    assert "--despite-quarantine" in caught.value.next_step
    champions.promote_manually(database, home, "reviews", 2, reason="it was not", by="ada", despite_quarantine=True)
    assert champion(database) == 2


def test_repeated_rollbacks_go_further_back_and_skip_quarantined_versions(
    database: Database, home: Home, trained: Path
) -> None:
    register(database, home, trained, 4)
    for version in (1, 2, 3):
        promote(database, home, version)
    assert [roll_back(database), roll_back(database)] == [2, 1]
    with pytest.raises(RegistryError, match="version 1") as caught:
        champions.rollback(database, home, "reviews", reason="worse", by="ada")
    assert "nightgate versions reviews" in caught.value.next_step
    promote(database, home, 4)
    assert roll_back(database) == 1
    assert [row.status for row in versions.versions(database, "reviews")] == ["champion", *["quarantined"] * 3]


def test_a_rollback_undoes_a_promotion_of_a_former_champion(database: Database, home: Home, trained: Path) -> None:
    register(database, home, trained, 2)
    for version in (1, 2, 1):
        promote(database, home, version)
    assert champions.previous_champion(database, "reviews") == 2


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_a_rollback_needs_a_champion_a_reason_and_the_files_of_the_previous_champion(
    database: Database, home: Home, trained: Path
) -> None:
    register(database, home, trained, 2)
    with pytest.raises(RegistryError, match="no champion"):
        champions.rollback(database, home, "reviews", reason="worse", by="ada")
    promote(database, home, 1)
    promote(database, home, 2)
    with pytest.raises(RegistryError, match="reason"):
        champions.rollback(database, home, "reviews", reason=" ", by="ada")
    (home.models / "reviews" / "v0001").rename(home.models / "lost")
    with pytest.raises(ModelError, match="v0001"):
        champions.rollback(database, home, "reviews", reason="worse", by="ada")
    assert champion(database) == 2


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
def test_the_error_says_why_a_champion_cannot_be_loaded(
    database: Database, home: Home, trained: Path, tmp_path: Path
) -> None:
    def fails(kind: type[NightgateError], named: str, pipeline: str = "reviews", root: Path = home.root) -> None:
        with pytest.raises(kind, match=named) as caught:
            champions.load_champion(pipeline, home=root)
        assert caught.value.next_step

    fails(RegistryError, "nowhere", root=tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    fails(RegistryError, "'reviews'")
    register(database, home, trained)
    fails(RegistryError, "'reviews'", pipeline="revews")
    fails(RegistryError, "nightgate promote reviews VERSION")
    promote(database, home, 1)
    (home.models / "reviews" / "v0001" / "model.safetensors").unlink()
    fails(ModelError, r"model\.safetensors")
    (home.models / "reviews").rename(home.models / "gone")
    fails(ModelError, "v0001")


def test_without_a_database_the_error_names_the_command_that_makes_one(home: Home) -> None:
    with pytest.raises(DatabaseError) as caught:
        champions.load_champion("reviews", home=home.root)
    assert "db upgrade" in caught.value.next_step
