"""`nightgate doctor`: healthy places are ok, and each problem comes with its remedy."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from alembic import command

from nightgate import doctor
from nightgate.database import alembic_config, database_url, upgrade
from nightgate.doctor import Finding, examine
from nightgate.home import Home
from tests.night import nightgate


@pytest.fixture
def healthy(home: Home) -> Home:
    upgrade(database_url(home))
    return home


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def found(check: str) -> Finding:
    [finding] = [one for one in examine() if one.check == check]
    return finding


@pytest.mark.usefixtures("healthy")
def test_a_healthy_home_has_no_problems() -> None:
    findings = examine()
    assert [one for one in findings if one.status == "problem"] == []
    checks = {one.check for one in findings}
    assert {"python", "sqlalchemy", "fastapi", "prefect", "torch", "home", "disk", "database", "device"} <= checks
    assert {"pipeline sample", "pipeline amazon-reviews-multi", "pipeline template"} <= checks


@pytest.mark.parametrize(
    ("package", "version", "said"),
    [
        ("sqlalchemy", "2.1.0", "never creates a scheduled run"),
        ("sqlalchemy", "2.1.0b1", "never creates a scheduled run"),
        ("fastapi", "0.151.0", "fails at import"),
        ("prefect", "3.9.0", "written and tested for 3.8"),
    ],
)
@pytest.mark.usefixtures("healthy")
def test_a_version_that_breaks_silently_is_a_problem_with_the_pin_as_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: str, version: str, said: str
) -> None:
    installed = tmp_path / "site" / f"{package}-{version}.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    finding = found(package)
    assert finding.status == "problem"
    assert version in finding.found
    assert said in finding.found
    assert finding.remedy == f"pip install '{package}{doctor.KNOWN_BAD[package][0]}'"


def test_a_home_without_database_is_told_to_make_one(home: Home) -> None:
    finding = found("database")
    assert finding.status == "problem"
    assert f"there is no database at {home.root / 'metrics.db'}" in finding.found
    assert "nightgate db upgrade" in finding.remedy


def test_a_database_at_an_older_revision_is_a_problem(home: Home) -> None:
    command.upgrade(alembic_config(database_url(home)), "0001")
    finding = found("database")
    assert finding.status == "problem"
    assert "is at revision 0001" in finding.found
    assert "nightgate db upgrade" in finding.remedy


@pytest.mark.usefixtures("healthy")
def test_an_unreachable_database_is_a_problem_that_shows_no_password(
    monkeypatch: pytest.MonkeyPatch, closed_port: int
) -> None:
    pytest.importorskip("psycopg", reason="no PostgreSQL driver: pip install 'nightgate[dev]'")
    monkeypatch.setenv("NIGHTGATE_DATABASE_URL", f"postgres://me:hush-hush@127.0.0.1:{closed_port}/metrics")
    finding = found("database")
    assert finding.status == "problem"
    assert "cannot be reached" in finding.found
    assert "NIGHTGATE_DATABASE_URL" in finding.remedy
    assert "hush-hush" not in f"{finding}"


@pytest.mark.usefixtures("healthy")
def test_a_server_that_was_configured_must_answer(monkeypatch: pytest.MonkeyPatch, closed_port: int) -> None:
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{closed_port}/api")
    finding = found("prefect server")
    assert finding.status == "problem"
    assert f"127.0.0.1:{closed_port}" in finding.found
    assert finding.remedy == "start it, or unset PREFECT_API_URL"


def test_a_home_that_is_a_file_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("NIGHTGATE_HOME", str(tmp_path / "taken"))
    finding = found("home")
    assert finding.status == "problem"
    assert "cannot be the home" in finding.found
    assert "NIGHTGATE_HOME" in finding.remedy


@pytest.mark.usefixtures("healthy")
def test_a_pipeline_file_with_a_problem_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text('name = "broken"\n[training]\nepochs = 0\n')
    monkeypatch.setenv("NIGHTGATE_PIPELINES", str(tmp_path / "broken.toml"))
    finding = found("pipeline broken")
    assert finding.status == "problem"
    assert "training.epochs" in finding.found


def test_the_command_ends_with_exit_1_and_the_remedies_where_there_is_a_problem(tmp_path: Path) -> None:
    done = nightgate("doctor", "--format", "json", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    [problem] = [one for one in json.loads(done.stdout) if one["status"] == "problem"]
    assert problem["check"] == "database"
    assert problem["remedy"] == "run `nightgate db upgrade`"


@pytest.mark.usefixtures("healthy")
def test_the_command_ends_with_exit_0_where_there_is_none(tmp_path: Path) -> None:
    done = nightgate("doctor", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "answers, at this version's revision" in done.stdout
