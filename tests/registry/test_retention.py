"""Retention keeps the files of versions in use and of the newest, within a disk limit; rows are never removed."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from nightgate.config.pipeline import Pipeline, Retention
from nightgate.database.schema import ModelVersion
from nightgate.database.transactions import Database
from nightgate.errors import RegistryError
from nightgate.registry import champions, retention, versions
from nightgate.registry.retention import choose
from tests.support import night_rows
from tests.support.night_rows import promote, roll_back

MB = 10**6


# --- which ---


@pytest.mark.parametrize(
    ("models", "disk", "needed", "going"),
    [
        (5, "", set(), []),
        (6, "", set(), []),
        (2, "", set(), [1, 2, 3]),
        (2, "", {1}, [2, 3]),
        (2, "", {1, 5}, [2, 3]),
        (1, "", {1, 2, 3, 4}, []),
        (5, "50MB", set(), []),
        (5, "49MB", set(), [1]),
        (5, "30MB", {1}, [2, 3]),
        (2, "10MB", set(), [1, 2, 3, 4]),
        (2, "20MB", {1}, [2, 3, 4]),
        (2, "30MB", {1}, [2, 3]),
        (5, "9MB", {3}, [1, 2, 4, 5]),
        (5, "1TB", set(), []),
    ],
)
def test_the_oldest_are_removed_first_and_needed_ones_never(
    models: int, disk: str, needed: set[int], going: list[int]
) -> None:
    sizes = dict.fromkeys((3, 1, 2, 5, 4), 10 * MB)
    assert choose(sizes, needed, set(), Retention(models=models, disk=disk)) == going


@pytest.mark.parametrize(
    ("models", "disk", "going"),
    [
        (1, "", [4]),
        (2, "", []),
        (5, "40MB", [4]),
        (5, "30MB", [4, 5]),
        (5, "29MB", [1, 4, 5]),
        (1, "20MB", [1, 4, 5]),
        (5, "1MB", [1, 2, 4, 5]),
    ],
)
def test_former_champions_are_removed_only_for_the_disk_limit_and_last(
    models: int, disk: str, going: list[int]
) -> None:
    sizes = dict.fromkeys((1, 2, 3, 4, 5), 10 * MB)
    assert choose(sizes, {3}, {1, 2, 3}, Retention(models=models, disk=disk)) == going


def test_needed_versions_over_the_disk_limit_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    assert choose({}, set(), set(), Retention(models=1, disk="1MB")) == []
    assert choose({1: 10 * MB, 2: 10 * MB}, {1, 2}, set(), Retention(disk="15MB")) == []
    [record] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "20.0 MB" in record.getMessage()
    assert "15MB" in record.getMessage()


# --- on disk ---


def pipeline(models: int = 1, disk: str = "") -> Pipeline:
    return night_rows.pipeline().model_copy(update={"retention": Retention(models=models, disk=disk)})


def folder(database: Database, version: int) -> Path:
    return database.home.models / "reviews" / f"v{version:04d}"


def write(database: Database, version: int) -> None:
    """Write a version's folder with read-only files, as registration does."""
    (folder(database, version) / "sub").mkdir(parents=True)
    for name in ("model.safetensors", "sub/config.json"):
        (folder(database, version) / name).write_bytes(bytes(MB // 2))
        (folder(database, version) / name).chmod(0o444)


@pytest.fixture
def six(database: Database) -> Database:
    """Versions 1 to 6 of ended runs, with files: 3, 4 and 5 were promoted, 5 is champion and 3 the anchor."""
    for day in range(6):
        write(database, night_rows.held_version(database, day))
    for version, expected in ((3, None), (4, 3), (5, 4)):
        promote(database, version, expected)
    return database


def kept(database: Database) -> list[int]:
    """Versions that have files, on disk and by their rows."""
    there = [row.version for row in versions.versions(database, "reviews") if folder(database, row.version).is_dir()]
    assert there == [row.version for row in versions.versions(database, "reviews") if row.files_removed_at is None]
    names = {path.name for path in (database.home.models / "reviews").iterdir()}
    assert names == {"champion", *(folder(database, version).name for version in there)}
    return there


def test_champion_anchor_the_target_of_a_rollback_and_the_newest_are_kept(six: Database) -> None:
    assert retention.sweep(six, six.home, pipeline(models=1)) == [1, 2]
    assert kept(six) == [3, 4, 5, 6]
    assert len(versions.versions(six, "reviews")) == 6
    assert retention.sweep(six, six.home, pipeline(models=1)) == []


def test_former_champions_and_anchors_are_kept_for_repeated_rollbacks(six: Database) -> None:
    promote(six, 6, 5, moves_anchor=True)
    assert retention.sweep(six, six.home, pipeline(models=1)) == [1, 2]
    assert kept(six) == [3, 4, 5, 6]
    for champion, before in ((6, 5), (5, 4), (4, 3)):
        assert champions.previous_champion(six, "reviews") == before
        roll_back(six, before, champion)
        retention.sweep(six, six.home, pipeline(models=1))
        assert night_rows.anchor(six).version == 3


def test_a_later_sweep_removes_former_champions_for_the_disk_limit(six: Database) -> None:
    promote(six, 6, 5, moves_anchor=True)
    assert retention.sweep(six, six.home, pipeline(models=20, disk="3MB")) == [1, 2, 3]
    assert kept(six) == [4, 5, 6]
    assert retention.sweep(six, six.home, pipeline(models=20, disk="1MB")) == [4]
    assert kept(six) == [5, 6]


def test_a_quarantined_version_is_kept_no_longer_than_others(six: Database) -> None:
    roll_back(six, 4, 5)
    assert retention.sweep(six, six.home, pipeline(models=1)) == [1, 2, 5]
    assert kept(six) == [3, 4, 6]


def test_candidates_that_are_judged_or_wait_for_approval_are_kept(six: Database) -> None:
    opened, version = night_rows.judged_version(six, 6)
    write(six, version)
    night_rows.await_approval(six, opened, 5)
    _, judged = night_rows.judged_version(six, 7)
    write(six, judged)
    newest = night_rows.held_version(six, 8, name="other")
    assert newest == 1
    assert retention.sweep(six, six.home, pipeline(models=1)) == [1, 2, 6]
    assert kept(six) == [3, 4, 5, 7, 8]


def test_over_the_disk_limit_even_the_newest_are_removed_but_none_that_is_needed(six: Database) -> None:
    assert retention.sweep(six, six.home, pipeline(models=20, disk="4MB")) == [1, 2]
    assert retention.sweep(six, six.home, pipeline(models=20, disk="1MB")) == [6]
    assert kept(six) == [3, 4, 5]


def test_using_a_version_without_files_is_an_error(six: Database) -> None:
    retention.sweep(six, six.home, pipeline(models=1))
    [row, *_] = versions.versions(six, "reviews")
    assert row.status == "held"
    for use in (
        lambda: row.folder(six.home),
        lambda: promote(six, 1, 5),
        lambda: champions.promote_manually(six, six.home, "reviews", 1, reason="why not", by="ada"),
    ):
        with pytest.raises(RegistryError, match="version 1 of reviews") as caught:
            use()
        assert "nightgate versions reviews" in caught.value.next_step


def test_a_rollback_skips_quarantined_versions_and_those_without_files(six: Database) -> None:
    promote(six, 6, 5, moves_anchor=True)
    roll_back(six, 5, 6)
    assert champions.previous_champion(six, "reviews") == 4
    roll_back(six, 4, 5)
    promote(six, 1, 4)
    promote(six, 2, 1)
    retention.sweep(six, six.home, pipeline(models=1, disk="4MB"))
    assert kept(six) == [1, 2, 3, 4]
    roll_back(six, 1, 2)
    assert champions.previous_champion(six, "reviews") == 4
    retention.sweep(six, six.home, pipeline(models=1, disk="1MB"))
    assert kept(six) == [1, 3, 4]


def test_without_a_target_for_a_rollback_the_error_lists_the_reasons(database: Database) -> None:
    for day in range(3):
        write(database, night_rows.held_version(database, day))
    promote(database, 1, None)
    promote(database, 2, 1, moves_anchor=True)
    promote(database, 3, 2, moves_anchor=True)
    retention.sweep(database, database.home, pipeline(models=1, disk="2MB"))
    assert kept(database) == [2, 3]
    roll_back(database, 2, 3)
    with pytest.raises(RegistryError, match="version 1 has no files"):
        champions.previous_champion(database, "reviews")


def test_a_folder_that_cannot_be_removed_is_logged_and_removed_by_the_next_sweep(
    six: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def busy(*_: object) -> None:
        raise OSError(16, "Device or resource busy")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", busy)
        assert retention.sweep(six, six.home, pipeline(models=1)) == [1, 2]
    assert str(folder(six, 1)) in caplog.text
    (six.home.models / "reviews" / ".removed-v0009-01234567").mkdir()
    retention.sweep(six, six.home, pipeline(models=1))
    assert kept(six) == [3, 4, 5, 6]


@pytest.mark.parametrize("path", ["models", "models/reviews", "models/other/v0001", "runs", "."])
def test_a_row_with_the_path_of_another_folder_removes_nothing(six: Database, path: str) -> None:
    (six.home.models / "other" / "v0001").mkdir(parents=True)

    def change_path(session: Session) -> None:
        session.get_one(ModelVersion, ("reviews", 1)).path = path

    six.write(change_path)
    retention.sweep(six, six.home, pipeline(models=1))
    assert (six.home.models / "other" / "v0001").is_dir()
    assert folder(six, 1).is_dir()
    assert folder(six, 6).is_dir()
    assert not folder(six, 2).exists()


def test_the_next_version_keeps_its_folder_while_one_that_a_killed_registration_left_is_removed(six: Database) -> None:
    source = six.home.runs / "model.safetensors"
    source.write_bytes(b"x")

    def register(*_: object) -> None:
        if not folder(six, 7).exists():
            folder(six, 7).mkdir()
            os.link(source, folder(six, 7) / "model.safetensors")

    register()
    # As soon as the sweep has no lock any more.
    sa.event.listen(Engine, "commit", register)
    try:
        retention.sweep(six, six.home, pipeline(models=6))
    finally:
        sa.event.remove(Engine, "commit", register)
    assert folder(six, 7).is_dir()
    retention.sweep(six, six.home, pipeline(models=6))
    assert not folder(six, 7).exists()
