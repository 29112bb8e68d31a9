"""The link `champion` beside the versions follows promotions, and is repaired from the database."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nightgate.database.transactions import Database
from nightgate.errors import StorageError
from nightgate.operations import database_checks
from nightgate.registry import champion_link
from tests.support import night_rows
from tests.support.night_rows import promote


@pytest.fixture
def link(database: Database) -> Path:
    """The path of the link of a pipeline with two versions and their folders."""
    for day in range(2):
        version = night_rows.held_version(database, day)
        (database.home.models / "reviews" / f"v{version:04d}").mkdir(parents=True)
    return champion_link.link_path(database.home, "reviews")


def test_the_link_follows_every_promotion_and_is_relative(database: Database, link: Path) -> None:
    assert not link.is_symlink()
    for version, expected in ((1, None), (2, 1), (1, 2)):
        promote(database, version, expected)
        assert str(link.readlink()) == f"v{version:04d}"
        assert link.resolve().is_dir()
    assert {path.name for path in link.parent.iterdir()} == {"champion", "v0001", "v0002"}


@pytest.mark.parametrize(
    ("harm", "found"),
    [
        (lambda link: link.unlink(), "missing"),
        (lambda link: (link.unlink(), link.symlink_to("v0002")), "v0002"),
        (lambda link: (link.unlink(), link.symlink_to("v0099")), "v0099"),
        (lambda link: (link.unlink(), link.write_text("v0001")), "no link"),
    ],
    ids=["missing", "another", "dangling", "a file"],
)
def test_a_wrong_link_is_repaired_from_the_database(
    database: Database, link: Path, harm: Callable[[Path], object], found: str
) -> None:
    promote(database, 1)
    harm(link)
    wrong = champion_link.disagreement(database, database.home, "reviews")
    assert found in wrong
    assert "v0001" in wrong
    assert champion_link.repair(database, database.home, "reviews") == wrong
    assert str(link.readlink()) == "v0001"
    assert champion_link.repair(database, database.home, "reviews") == ""


def test_a_promotion_removes_the_draft_of_a_killed_process(database: Database, link: Path) -> None:
    link.with_name(".champion-0123").symlink_to("v0002")
    promote(database, 1)
    assert {path.name for path in link.parent.iterdir()} == {"champion", "v0001", "v0002"}


def test_a_link_without_a_champion_is_removed(database: Database, link: Path) -> None:
    link.symlink_to("v0001")
    assert "v0001" in champion_link.repair(database, database.home, "reviews")
    assert not link.is_symlink()
    assert champion_link.repair(database, database.home, "unknown") == ""


def test_a_promotion_succeeds_although_the_link_cannot_be_written(
    database: Database, link: Path, caplog: pytest.LogCaptureFixture
) -> None:
    link.mkdir()
    promote(database, 1)
    assert night_rows.champion(database).version == 1
    [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert str(link) in warning
    assert "nightgate reconcile" in warning
    [finding] = list(database_checks._champion_links(database, database.home))
    assert (finding.status, finding.remedy) == ("warning", "nightgate reconcile")
    assert finding.found == champion_link.disagreement(database, database.home, "reviews")
    link.rmdir()
    assert "missing" in champion_link.update(database, "reviews")
    assert list(database_checks._champion_links(database, database.home)) == []


def test_a_full_disk_is_a_storage_error(database: Database, link: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    promote(database, 1)
    link.unlink()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "symlink_to", full)
    with pytest.raises(StorageError, match="No space left"):
        champion_link.repair(database, database.home, "reviews")
