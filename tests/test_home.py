"""The home's folder and everything that is made in it belong to its owner, or to a group by a setting."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flows.server.connection import make_password
from nightgate.database.connection import database_url
from nightgate.database.transactions import Database, upgrade
from nightgate.engine.base_model_folder import local_folder
from nightgate.errors import ConfigurationError, ModelError, RegistryError
from nightgate.home import existing_home, open_home
from nightgate.operations.doctor import access_finding
from nightgate.pipeline_files import load_pipeline
from tests.support.first_night import first_night

pytestmark = pytest.mark.process


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A folder that every user reaches, which those of pytest are not."""
    place = Path(tempfile.mkdtemp(prefix="nightgate-home-"))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


def modes(home: Path) -> dict[str, int]:
    return {str(path.relative_to(home)): stat.S_IMODE(path.lstat().st_mode) for path in [home, *home.rglob("*")]}


def shell(line: str) -> None:
    subprocess.run(line, shell=True, check=True)


def test_several_first_commands_of_a_home_agree_on_its_id_and_password(tmp_path: Path) -> None:
    for number in range(5):
        root = tmp_path / str(number)
        with ThreadPoolExecutor(8) as pool:
            homes = list(pool.map(lambda _, root=root: open_home(root), range(8)))
            passwords = list(pool.map(make_password, homes))
        assert len({home.id for home in homes}) == 1
        assert set(passwords) == {(root / "server-password").read_text().strip()}
        assert stat.S_IMODE((root / "server-password").stat().st_mode) == 0o600
        assert sorted(path.name for path in root.iterdir() if path.is_file()) == ["home.json", "server-password"]


@pytest.mark.parametrize(("access", "closed_to"), [("owner", 0o077), ("group", 0o007)])
def test_a_database_its_journal_and_folders_are_for_the_owner_or_a_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, access: str, closed_to: int
) -> None:
    monkeypatch.setenv("NIGHTGATE_HOME_ACCESS", access)
    home = open_home(tmp_path / "new" / "home")
    upgrade(database_url(home))
    with Database.open(home) as db:
        db.frame("SELECT 1")
        found = modes(home.root)
    assert {"metrics.db", "home.json", "snapshots", "runs", "models"} <= set(found)
    assert {path: oct(mode) for path, mode in found.items() if mode & closed_to} == {}
    if access == "group":
        assert found["."] == 0o2770
        assert (found["runs"], found["metrics.db"]) == (0o2770, 0o660)


def test_a_reader_keeps_the_umask_of_its_process(tmp_path: Path) -> None:
    open_home(tmp_path / "home")
    os.umask(0o022)
    existing_home(tmp_path / "home", only_read=True)
    assert os.umask(0o022) == 0o022
    existing_home(tmp_path / "home")
    assert os.umask(0o022) == 0o077


def test_an_empty_folder_that_was_made_for_the_home_is_closed_and_one_in_use_is_left(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "used" / "thing").mkdir(parents=True)
    assert modes(open_home(tmp_path / "empty").root)["."] == 0o700
    assert modes(open_home(tmp_path / "used").root)["."] == 0o755


def test_a_whole_night_leaves_nothing_that_others_can_read() -> None:
    home = first_night().home
    found = {path: mode for path, mode in modes(home).items() if not (home / path).is_symlink()}
    assert any(path.startswith("models/") for path in found)
    assert any(path.startswith("snapshots/") for path in found)
    assert {path: oct(mode) for path, mode in found.items() if mode & 0o077} == {}


def test_doctor_reports_a_home_that_is_open_with_the_command_that_closes_it(
    open_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = open_home(open_place / "my home").root
    assert access_finding(home).status == "ok"
    (home / "runs" / "log.txt").write_text("a log")
    shell(f"chmod -R go=rX '{home}'")
    finding = access_finding(home)
    assert finding.status == "warning"
    shell(finding.remedy)
    assert access_finding(home).status == "ok"
    assert not any(mode & 0o077 for mode in modes(home).values())

    monkeypatch.setenv("NIGHTGATE_HOME_ACCESS", "group")
    finding = access_finding(home)
    assert finding.status == "warning"
    shell(finding.remedy)
    assert access_finding(home).status == "ok"
    assert modes(home)["runs"] == 0o2770


def test_a_home_inside_a_closed_folder_is_closed(open_place: Path) -> None:
    home = open_home(open_place / "inside" / "home").root
    home.chmod(0o755)
    assert access_finding(home).status == "warning"
    home.parent.chmod(0o700)
    assert access_finding(home).status == "ok"


def test_a_path_of_an_unknown_user_is_one_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTGATE_HOME", "~no-such-user/home")
    with pytest.raises(RegistryError, match="~no-such-user"):
        existing_home()
    with pytest.raises(ConfigurationError, match="~no-such-user"):
        load_pipeline("~no-such-user/reviews.toml")
    with pytest.raises(ModelError, match="~no-such-user"):
        local_folder("~no-such-user/model")
