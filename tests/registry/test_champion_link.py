"""The link `champion` beside the versions: it follows promotions, and the database when it says something else."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from nightgate.database.transactions import Database
from nightgate.errors import StorageError
from nightgate.operations import database_checks
from nightgate.registry import champion_link, promotion, versions
from tests.support import night_rows


@pytest.fixture
def link(database: Database) -> Path:
    """Where the link is, of a pipeline with two versions and their folders."""
    for day in range(2):
        version = night_rows.held_version(database, day)
        (database.home.models / "reviews" / f"v{version:04d}").mkdir(parents=True)
    return champion_link.link_path(database.home, "reviews")


def promote(database: Database, version: int, expected: int | None) -> None:
    promotion.promote(database, "reviews", version, expected=expected, by="ada", reason="fit")


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_the_link_follows_every_promotion_and_is_relative(database: Database, link: Path) -> None:
    assert not link.is_symlink()
    for version, expected in ((1, None), (2, 1), (1, 2)):
        promote(database, version, expected)
        assert str(link.readlink()) == f"v{version:04d}"
        assert link.resolve().is_dir()
    assert {path.name for path in link.parent.iterdir()} == {"champion", "v0001", "v0002"}


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda link: link.unlink(), "is missing, and v0001 reigns"),
        (lambda link: (link.unlink(), link.symlink_to("v0002")), "leads to v0002, and v0001 reigns"),
        (lambda link: (link.unlink(), link.symlink_to("v0099")), "leads to v0099, and v0001 reigns"),
        (lambda link: (link.unlink(), link.write_text("v0001")), "is no link, and v0001 reigns"),
        (lambda link: link.with_name(".champion-0123").symlink_to("v0002"), ""),
    ],
    ids=["missing", "another", "dangling", "a file", "a draft"],
)
def test_a_link_that_says_something_else_is_repaired_from_the_database(
    database: Database, link: Path, harm: object, told: str
) -> None:
    promote(database, 1, None)
    assert callable(harm)
    harm(link)
    assert champion_link.disagreement(database, database.home, "reviews").removeprefix(f"{link} ") == told
    assert champion_link.repair(database, database.home, "reviews").removeprefix(f"{link} ") == told
    assert str(link.readlink()) == "v0001"
    assert champion_link.repair(database, database.home, "reviews") == ""


def test_what_a_killed_process_left_of_a_link_goes_with_the_next_one(database: Database, link: Path) -> None:
    link.with_name(".champion-0123").symlink_to("v0002")
    promote(database, 1, None)
    assert {path.name for path in link.parent.iterdir()} == {"champion", "v0001", "v0002"}


def test_a_link_where_nobody_reigns_is_removed(database: Database, link: Path) -> None:
    link.symlink_to("v0001")
    assert champion_link.repair(database, database.home, "reviews") == f"{link} leads to v0001, and nobody reigns"
    assert not link.is_symlink()
    assert champion_link.repair(database, database.home, "unheard-of") == ""


def test_a_link_that_cannot_be_written_stops_no_promotion(
    database: Database, link: Path, caplog: pytest.LogCaptureFixture
) -> None:
    link.mkdir()
    promote(database, 1, None)
    row = versions.champion(database, "reviews")
    assert row is not None
    assert row.version == 1
    [told] = warnings_of(caplog)
    assert f"{link} is not up to date, `nightgate reconcile` repairs it" in told
    [finding] = list(database_checks._pointers(database, database.home))
    assert (finding.status, finding.remedy) == ("warning", "nightgate reconcile")
    assert finding.found == f"{link} is no link, and v0001 reigns"
    link.rmdir()
    assert champion_link.update(database, "reviews") == f"{link} is missing, and v0001 reigns"
    assert list(database_checks._pointers(database, database.home)) == []


def test_a_disk_that_is_full_is_told_in_words(database: Database, link: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import os

    promote(database, 1, None)
    link.unlink()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "symlink_to", full)
    with pytest.raises(StorageError, match="No space left"):
        champion_link.repair(database, database.home, "reviews")
