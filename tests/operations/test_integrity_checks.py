"""`nightgate doctor` on an earlier home of six nights: whole at first, then each kind of damage is found."""

from __future__ import annotations

import json
import shutil
import sqlite3
import tarfile
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from nightgate.database.schema import ModelVersion, Run
from nightgate.database.transactions import Database, upgrade
from nightgate.home import Home, existing_home
from nightgate.operations import integrity_checks
from nightgate.operations.findings import Finding

FIXTURE = Path(__file__).parents[1] / "fixtures" / "earlier_home.tar.xz"


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(FIXTURE) as archive:
        archive.extractall(folder, filter="data")
    upgrade(f"sqlite:///{folder / 'home' / 'metrics.db'}")
    return folder / "home"


@pytest.fixture
def lived_in(environment: Path, earlier: Path) -> Home:
    """A home with a champion (version 1), four other versions and the folders of their runs."""
    shutil.copytree(earlier, environment, symlinks=True)
    return existing_home()


def problems(*, status: str = "problem") -> list[Finding]:
    return [one for one in integrity_checks.examine() if one.status == status]


def version_folder(home: Home, number: int) -> Path:
    return home.models / "small" / f"v{number:04}"


def test_a_whole_home_has_a_line_for_each_check(lived_in: Home) -> None:
    findings = list(integrity_checks.examine())
    assert [(one.status, one.check) for one in findings] == [
        ("ok", "database file"),
        ("ok", "champions"),
        ("ok", "versions"),
    ]
    assert lived_in.root.is_dir()


def test_a_champion_with_an_altered_file_is_a_problem(lived_in: Home) -> None:
    weights = version_folder(lived_in, 1) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.chmod(0o600)
    weights.write_bytes(content)
    [finding] = problems()
    assert finding.check == "champions"
    assert str(weights) in finding.found
    # Versions that are not champion are not read: theirs may be hundreds of gigabytes.
    shutil.rmtree(weights.parent)
    version_folder(lived_in, 3).rename(weights.parent)
    assert {one.check for one in problems()} == {"champions", "versions"}


def test_what_is_large_is_read_to_its_end_only_when_asked_for(lived_in: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = version_folder(lived_in, 1) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    weights.chmod(0o600)
    weights.write_bytes(content[:-1] + b"x")
    monkeypatch.setattr(integrity_checks, "READ_AT_ONCE", {"database file": 0, "champions": 0})
    remedies = {one.check: (one.status, one.remedy) for one in integrity_checks.examine()}
    unread = ("ok", "nightgate doctor --deep")
    assert remedies == {"database file": unread, "champions": unread, "versions": ("ok", "")}
    [database, champions, _] = integrity_checks.examine(deep=True)
    assert (database.status, champions.status) == ("ok", "problem")
    # A file of another size is found without reading it.
    weights.write_bytes(content[:-1])
    [altered] = problems()
    assert (altered.check, str(weights) in altered.found) == ("champions", True)


def test_a_missing_folder_is_a_problem_unless_retention_removed_it(lived_in: Home) -> None:
    shutil.rmtree(version_folder(lived_in, 3))
    [finding] = problems()
    assert finding.check == "versions"
    assert "models/small/v0003" in finding.found
    with Database.open(lived_in) as db:
        moment = sa.select(ModelVersion.created_at).limit(1).scalar_subquery()
        removed = sa.update(ModelVersion).where(ModelVersion.version == 3).values(files_removed_at=moment)
        db.write(lambda session: session.execute(removed))
    assert problems() == []


def test_a_folder_without_a_row_is_a_warning_where_the_database_knows_its_run(lived_in: Home) -> None:
    shutil.copytree(version_folder(lived_in, 3), version_folder(lived_in, 9))
    assert problems() == []
    [finding] = problems(status="warning")
    assert (finding.check, "models/small/v0009" in finding.found) == ("versions", True)


def test_a_database_that_is_older_than_its_home_is_a_problem(lived_in: Home) -> None:
    (lived_in.runs / "small-20260112-c0ffee").mkdir()
    newer = version_folder(lived_in, 6)
    newer.mkdir()
    (newer / "nightgate.json").write_text(json.dumps({"run_id": "small-20260112-c0ffee"}))
    [finding] = problems()
    assert finding.check == "database age"
    assert "models/small/v0006" in finding.found
    assert "runs/small-20260112-c0ffee" in finding.found
    assert "docs/restore.md" in finding.remedy


def test_a_home_of_another_database_is_compared_with_none(lived_in: Home) -> None:
    shutil.rmtree(version_folder(lived_in, 3))
    (lived_in.root / "home.json").write_text('{"id": "0123456789"}')
    assert [one.check for one in integrity_checks.examine()] == ["database file"]


def execute(home: Home, statement: str) -> None:
    connection = sqlite3.connect(home.root / "metrics.db")
    connection.execute(statement)
    connection.commit()
    connection.close()


def test_rows_without_their_parent_are_a_problem(lived_in: Home) -> None:
    with Database.open(lived_in) as db:
        run_id = db.read(lambda session: session.scalars(sa.select(Run.run_id).order_by(Run.run_id)).first())
    execute(lived_in, f"DELETE FROM run WHERE run_id = '{run_id}'")
    [finding] = [one for one in problems() if one.check == "database file"]
    assert "without their parent" in finding.found
    assert "docs/restore.md" in finding.remedy


def test_a_damaged_page_is_a_problem(lived_in: Home) -> None:
    path = lived_in.root / "metrics.db"
    content = bytearray(path.read_bytes())
    with Database.open(lived_in) as db:
        pages: Any = db.frame("SELECT rootpage FROM sqlite_master WHERE name = 'slice_metric'")
        size: Any = db.frame("PRAGMA page_size").iloc[0, 0]
    at = (int(pages["rootpage"].iloc[0]) - 1) * int(size)
    content[at + 8 : at + 200] = bytes(192)
    path.write_bytes(content)
    [finding] = [one for one in problems() if one.check == "database file"]
    assert "damaged" in finding.found
