"""`nightgate db backup`: one verified file, of a database that others use, that replaces nothing."""

from __future__ import annotations

import shlex
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nightgate.cli.app import app
from nightgate.database import backup
from nightgate.database.connection import make_engine
from nightgate.database.transactions import Database
from nightgate.errors import ConfigurationError, DatabaseError
from nightgate.registry import freezes
from tests.support import night_rows

ON_SQLITE = pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)


@ON_SQLITE
def test_the_copy_is_one_private_file_with_what_was_committed(
    database: Database, migrated_url: str, tmp_path: Path
) -> None:
    night_rows.held_version(database)
    target = tmp_path / "copies" / "metrics.db"
    target.parent.mkdir()
    with make_engine(migrated_url).connect() as writer:
        # Not yet in the file itself, but in the log beside it.
        writer.exec_driver_sql("INSERT INTO setting VALUES ('committed', '1')")
        writer.commit()
        writer.exec_driver_sql("INSERT INTO setting VALUES ('pending', '1')")
        done = CliRunner().invoke(app, ["db", "backup", str(target)])
        writer.rollback()
    assert done.exit_code == 0, done.stderr
    assert [path.name for path in target.parent.iterdir()] == ["metrics.db"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    with closing(sqlite3.connect(target)) as copy:
        assert copy.execute("SELECT COUNT(*) FROM nights").fetchone() == (1,)
        assert copy.execute("SELECT key FROM setting WHERE key IN ('committed', 'pending')").fetchall() == [
            ("committed",)
        ]
    with Database.open(database.home, f"sqlite:///{target}") as restored:
        assert freezes.freeze(restored, "reviews", by="ada", reason="a restored database takes writes")


@ON_SQLITE
def test_a_file_is_not_replaced_and_a_folder_not_made(database: Database, migrated_url: str, tmp_path: Path) -> None:
    there = tmp_path / "metrics-of-monday.db"
    there.write_bytes(b"monday")
    done = CliRunner().invoke(app, ["db", "backup", str(there)])
    assert (done.exit_code, there.read_bytes()) == (2, b"monday")
    with pytest.raises(ConfigurationError):
        backup.back_up(migrated_url, tmp_path / "not mounted" / "metrics.db")
    assert not (tmp_path / "not mounted").exists()
    assert database.home.root.is_dir()


@ON_SQLITE
def test_a_damaged_database_leaves_no_copy(database: Database, migrated_url: str, tmp_path: Path) -> None:
    night_rows.held_version(database)
    with closing(sqlite3.connect(database.name)) as connection:
        connection.execute("DELETE FROM run")  # its children stay: foreign keys are off here
        connection.commit()
    with pytest.raises(DatabaseError, match="without their parent"):
        backup.back_up(migrated_url, tmp_path / "copy.db")
    assert not list(tmp_path.glob("*copy.db*"))


@pytest.mark.database
@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
def test_for_postgresql_it_prints_the_command_without_the_password(
    database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert database.dialect == "postgresql"
    url = "postgresql://me:hush%40hush@db.example:5433/metrics?sslmode=require&password=hush2"
    monkeypatch.setenv("NIGHTGATE_DATABASE_URL", url)
    done = CliRunner().invoke(app, ["db", "backup", str(tmp_path / "the copy.dump")])
    assert done.exit_code == 1
    assert shlex.split(done.stdout) == [
        "pg_dump",
        "--format=custom",
        f"--file={tmp_path / 'the copy.dump'}",
        "postgresql://me@db.example:5433/metrics?sslmode=require",
    ]
    assert "hush" not in done.output
