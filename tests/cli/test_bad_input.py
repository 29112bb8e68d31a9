"""Bad input ends with an error and its next step, an exit code, no traceback, and a row with the same.

Each class of error runs once through the real command line; the rest runs in process.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import socket
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from nightgate.cli.app import app
from nightgate.config.pipeline import Pipeline
from nightgate.database.transactions import Database, upgrade
from nightgate.errors import ConfigurationError, DataError, ModelError
from nightgate.home import Home
from nightgate.night import steps
from nightgate.night.night import run_night
from nightgate.night.run import open_night
from nightgate.operations import readiness
from nightgate.operations.reconciliation import unannounced
from nightgate.pipeline_files import load_pipeline
from nightgate.runs import claim
from nightgate.schedule import Night, chosen_night, scheduled_night
from tests.support.first_night import copy_first_night, first_night
from tests.support.night import NIGHT as DATE
from tests.support.night import command, nightgate
from tests.support.reviews import NIGHT, files, pipeline, rows

pytestmark = pytest.mark.process


@pytest.fixture
def upgraded(home: Home) -> Home:
    upgrade(f"sqlite:///{home.root / 'metrics.db'}")
    return home


def the_row(home: Path) -> dict[str, Any]:
    with closing(sqlite3.connect(home / "metrics.db")) as connection:
        connection.row_factory = sqlite3.Row
        [row] = connection.execute("SELECT * FROM nightly_runs ORDER BY started_at DESC LIMIT 1").fetchall()
        return dict(row)


def num_runs(home: Path) -> int:
    with closing(sqlite3.connect(home / "metrics.db")) as connection:
        return int(connection.execute("SELECT COUNT(*) FROM run").fetchone()[0])


def a_model(folder: Path) -> dict[str, str]:
    """The setting of a folder that is taken for a base model until it is loaded."""
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / "config.json").write_text("{}")
    return {"training__base_model": str(folder / "model")}


def assert_reported(done: subprocess.CompletedProcess[str], *details: str) -> None:
    """The command failed with exit 1 and stated the error with its next step once, without a traceback."""
    assert done.returncode == 1, done
    assert (done.stderr.count("error: "), done.stderr.count("next: ")) == (1, 1), done.stderr
    for detail in details:
        assert detail in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


# --- data ---


def _csv(content: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / "reviews.csv").write_text(content, encoding="utf-8")
        return folder / "reviews.csv"

    return write


def _table(changed: Callable[[dict[str, Any]], dict[str, Any]], count: int = 120) -> Callable[[Path], Path]:
    """A file of reviews, each one changed."""

    def write(folder: Path) -> Path:
        lines = [json.dumps(changed(row)) for row in rows(count)]
        (folder / "reviews.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return folder / "reviews.jsonl"

    return write


def _missing(folder: Path) -> Path:
    return folder / "nowhere.csv"


def _truncated(folder: Path) -> Path:
    whole = gzip.compress("\n".join(json.dumps(row) for row in rows()).encode())
    (folder / "reviews.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    return folder / "reviews.jsonl.gz"


def _other_encoding(folder: Path) -> Path:
    text = "id,text,stars\n1,Café crème,5\n2,Käse,1\n"
    (folder / "reviews.csv").write_bytes(text.encode("cp1252"))
    return folder / "reviews.csv"


def _without_test_rows(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"side": "validation" if int(row["id"]) % 5 == 0 else "train"}


UNREADY: dict[str, tuple[Callable[[Path], Path], dict[str, Any], str]] = {
    "a missing file": (_missing, {}, "nowhere.csv"),
    "an empty file": (_csv(""), {}, "reviews.csv"),
    "a truncated file": (_truncated, {}, "reviews.jsonl.gz"),
    "another encoding": (_other_encoding, {}, "utf-8"),
    "a file that lacks a column": (_csv("id,review,stars\n1,fine,5\n"), {}, "'text'"),
    "JSON lines that lack a column": (_table(lambda row: row), {"data__slices": ["store"]}, "'store'"),
    "a missing golden file": (_csv("id,text,stars\n1,fine,5\n"), {"data__golden": "gold.csv"}, "data.golden: no file"),
    "a missing folder": (_table(lambda row: row), {"training__base_model": "./no-such-model"}, "./no-such-model"),
    "a folder of no model": (_table(lambda row: row), {"training__base_model": "."}, "no config.json"),
    "a missing package": (_table(lambda row: row), {"training__base_model": "package:no_such/model"}, "'no_such'"),
    "an offline hub": (_table(lambda row: row), {"training__base_model": "missing/no-such"}, "HF_HUB_OFFLINE"),
}


@pytest.mark.parametrize(("write", "changes", "detail"), UNREADY.values(), ids=UNREADY.keys())
def test_what_costs_nothing_to_see_is_refused_before_the_night_is_claimed(
    upgraded: Home, tmp_path: Path, write: Callable[[Path], Path], changes: dict[str, Any], detail: str
) -> None:
    with pytest.raises(ConfigurationError) as raised:
        run_night(pipeline(files(write(tmp_path)), **(a_model(tmp_path) | changes)), NIGHT)
    assert detail in raised.value.reason
    assert raised.value.next_step
    assert num_runs(upgraded.root) == 0


def test_columns_that_only_later_rows_of_json_lines_have_are_no_problem(tmp_path: Path) -> None:
    late = _table(lambda row: row if int(row["id"]) < 110 else row | {"shade": "red"})(tmp_path)
    wanted = pipeline(files(late), data__slices=["shade"], **a_model(tmp_path))
    readiness.examine(wanted, None).check()


def test_all_that_is_missing_is_reported_together(tmp_path: Path) -> None:
    wanted = pipeline(files(_missing(tmp_path)), training__base_model="./no-such-model")
    with pytest.raises(ConfigurationError) as raised:
        readiness.examine(wanted, None).check()
    file, model = raised.value.problems
    assert "nowhere.csv" in file
    assert "./no-such-model" in model


def test_a_metric_that_fails_is_named_before_the_night_is_claimed(tmp_path: Path, upgraded: Home) -> None:
    (tmp_path / "broken.py").write_text("import nowhere_to_be_found\n")
    metrics = [str(tmp_path / "broken.py"), "mae"]
    wanted = pipeline(files(_table(lambda row: row)(tmp_path)), training__metrics=metrics, **a_model(tmp_path))
    with pytest.raises(ConfigurationError, match="nowhere_to_be_found") as raised:
        run_night(wanted, NIGHT)
    assert "broken.py" in raised.value.reason
    assert num_runs(upgraded.root) == 0


def test_a_scheduled_night_that_cannot_begin_is_recorded_as_missed_and_runs_when_it_can(
    upgraded: Home, tmp_path: Path
) -> None:
    wanted = pipeline(files(tmp_path / "reviews.jsonl"), **a_model(tmp_path))
    due = scheduled_night(wanted.schedule, NIGHT.data_until)
    _table(lambda row: row)(tmp_path)
    with open_night(wanted, scheduled_night(wanted.schedule, NIGHT.data_until - timedelta(days=3))) as earlier:
        earlier.finish("held", "not better")
    (tmp_path / "reviews.jsonl").unlink()
    for _ in range(2):
        with pytest.raises(ConfigurationError):
            run_night(wanted, due)
        row = the_row(upgraded.root)
        assert (row["status"], row["night"]) == ("missed", str(due.date))
        assert "reviews.jsonl" in row["reason"]
        assert f"nightgate run kettles --night {due.date}" in row["next_step"]
        assert num_runs(upgraded.root) == 4, "two more nights were due since the earlier one"
    with Database.open(upgraded) as db:
        assert due.date not in [one.night for one in unannounced(db)], "its flow announces that it failed"
    _table(lambda row: row)(tmp_path)
    with suppress(KeyboardInterrupt), open_night(wanted, due) as run:
        assert run.ended is None
        raise KeyboardInterrupt


def test_a_night_that_has_read_its_rows_goes_on_without_their_file(upgraded: Home, tmp_path: Path) -> None:
    wanted = pipeline(files(_table(lambda row: row)(tmp_path)), **a_model(tmp_path))
    with suppress(KeyboardInterrupt), open_night(wanted, NIGHT) as first:
        steps.refresh(first)
        raise KeyboardInterrupt
    (tmp_path / "reviews.jsonl").unlink()
    with Database.open(upgraded) as db:
        assert claim.goes_on_with_snapshot(db, wanted, NIGHT)
    with suppress(KeyboardInterrupt), open_night(wanted, NIGHT) as again:
        assert (again.run_id, again.attempt) == (first.run_id, 2)
        raise KeyboardInterrupt
    with pytest.raises(ConfigurationError), open_night(wanted, NIGHT, force=True):
        pass


BAD_DATA: dict[str, tuple[Callable[[Path], Path], dict[str, Any], str]] = {
    "a header and no rows": (_csv("id,text,stars\n"), {}, "no rows"),
    "labels outside the list only": (_table(lambda row: row | {"stars": 9}), {}, "'9'"),
    "one class only": (_table(lambda row: row | {"stars": 5}), {}, "'5'"),
    "fewer rows than classes": (_csv("id,text,stars\n1,fine,5\n"), {}, "1 usable"),
    "an empty test split": (_table(_without_test_rows), {"split__column": "side"}, "test"),
}


@pytest.mark.parametrize(("write", "changes", "detail"), BAD_DATA.values(), ids=BAD_DATA.keys())
def test_unusable_data_fails_the_night_with_its_reason_and_next_step(
    upgraded: Home, tmp_path: Path, write: Callable[[Path], Path], changes: dict[str, Any], detail: str
) -> None:
    with pytest.raises(DataError) as raised:
        run_night(pipeline(files(write(tmp_path)), **a_model(tmp_path), **changes), NIGHT)
    assert detail in raised.value.reason
    assert raised.value.next_step
    row = the_row(upgraded.root)
    assert (row["status"], row["error_type"]) == ("failed", "data")
    assert (row["reason"], row["next_step"]) == (raised.value.reason, raised.value.next_step)
    assert not list((upgraded.snapshots).rglob("*.parquet")), "no snapshot of unusable data"


def written(folder: Path, source: Path) -> Path:
    """The file of a pipeline over `source`, with a folder that looks like a base model."""
    path = folder / "reviews.toml"
    path.write_text(
        f'name = "reviews"\n[data]\nsource = {{ kind = "files", paths = ["{source}"] }}\n'
        'text = "text"\nlabel = "stars"\nlabels = [1, 5]\n'
        f'[training]\nbase_model = "{a_model(folder)["training__base_model"]}"\n'
    )
    return path


def test_the_command_line_reports_bad_data(tmp_path: Path, environment: Path) -> None:
    path = written(tmp_path, _table(lambda row: row | {"stars": 9})(tmp_path))
    assert_reported(nightgate("run", path, "--no-prefect", cwd=tmp_path), "'9'")
    row = the_row(environment)
    assert (row["status"], row["error_type"]) == ("failed", "data")
    assert row["next_step"]


@pytest.mark.parametrize("options", [("--no-prefect",), ()])
def test_the_command_line_refuses_what_is_missing_with_exit_2_before_there_is_a_home_or_a_server(
    tmp_path: Path, environment: Path, options: tuple[str, ...]
) -> None:
    done = nightgate("run", written(tmp_path, _missing(tmp_path)), *options, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert (done.stderr.count("error: "), done.stderr.count("next: ")) == (1, 1), done.stderr
    assert "nowhere.csv" in done.stderr
    assert "server" not in done.stderr
    assert not environment.exists()


@pytest.mark.parametrize("arguments", [("history", "--run"), ("quarantine", "--reason")])
@pytest.mark.usefixtures("upgraded")
def test_an_argument_that_is_not_utf_8_is_an_error_in_words(arguments: tuple[str, str]) -> None:
    command_name, option = arguments
    done = CliRunner().invoke(app, [command_name, "sample", option, os.fsdecode(b"\xff")])
    assert (done.exit_code, "not UTF-8" in done.stderr) == (2, True), done


def test_a_refresh_of_a_source_that_lacks_a_column_is_refused_as_a_night_is(tmp_path: Path, environment: Path) -> None:
    path = written(tmp_path, _table(lambda row: row | {"stars": 5})(tmp_path))
    path.write_text(path.read_text().replace('label = "stars"', 'label = "star"'), encoding="utf-8")
    for arguments in (("refresh", path), ("run", path, "--no-prefect")):
        done = nightgate(*arguments, cwd=tmp_path)
        assert (done.returncode, "did you mean 'stars'?" in done.stderr) == (2, True), done.stderr
    assert not environment.exists()


# --- stored files with a flipped byte ---


def small(settings: dict[str, Any] | None = None) -> tuple[Pipeline, Night]:
    """The pipeline of the first night, and that night."""
    wanted = load_pipeline(first_night().pipeline, settings)
    return wanted, chosen_night(wanted.schedule, date.fromisoformat(DATE))


def test_a_snapshot_with_a_flipped_byte_is_reported_and_written_again(upgraded: Home, tmp_path: Path) -> None:
    wanted, night = small()
    with suppress(KeyboardInterrupt), open_night(wanted, night) as first:
        snapshot = steps.refresh(first)
        raise KeyboardInterrupt
    [texts] = snapshot.path.parent.glob("deltas/*/texts.parquet")
    flip_a_byte(texts)
    arguments = ("run", first_night().pipeline, "--night", DATE, "--no-prefect")
    assert_reported(nightgate(*arguments, cwd=tmp_path), "texts.parquet")
    row = the_row(upgraded.root)
    assert (row["status"], row["error_type"], row["attempts"]) == ("failed", "snapshot", 2)
    with suppress(KeyboardInterrupt), open_night(wanted, night) as again:
        assert again.run_id == first.run_id
        assert steps.refresh(again).id == snapshot.id
        raise KeyboardInterrupt
    assert len(list(snapshot.path.parent.glob("*.damaged-*"))) == 1


def test_a_champion_with_a_flipped_byte_classifies_nothing(environment: Path, tmp_path: Path) -> None:
    first = copy_first_night(environment)
    flip_a_byte(environment / "models/small/v0001/model.safetensors")
    assert_reported(nightgate("predict", "small", "a text", cwd=tmp_path), "model.safetensors")
    # The next night cannot compare with it, and fails before training.
    done = nightgate("run", first.pipeline, "--night", "2026-01-06", "--no-prefect", cwd=tmp_path)
    assert_reported(done, "model.safetensors")
    row = the_row(environment)
    assert (row["night"], row["status"], row["error_type"]) == ("2026-01-06", "failed", "model")
    assert row["next_step"]


# --- base models ---


@pytest.mark.slow
def test_a_base_model_that_cannot_be_loaded_fails_the_night(upgraded: Home, tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        run_night(*small({"training.base_model": a_model(tmp_path)["training__base_model"]}))
    row = the_row(upgraded.root)
    assert (row["status"], row["error_type"]) == ("failed", "model")
    assert row["next_step"]


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--no-prefect",), ()])
def test_a_mistyped_setting_in_a_home_with_nights_leaves_no_failed_night(
    environment: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    first = copy_first_night(environment)
    setting = "training.base_model=./no-such-model"
    done = nightgate("run", first.pipeline, "--night", "2026-01-06", *options, "--set", setting, cwd=tmp_path)
    assert done.returncode == 2, done
    assert "./no-such-model" in done.stderr
    assert "server" not in done.stderr
    assert num_runs(environment) == 1
    again = nightgate("run", first.pipeline, "--night", DATE, *options, "--set", setting, cwd=tmp_path)
    assert (again.returncode, "had ended before" in again.stderr) == (0, True), "there is nothing to do for that night"


# --- databases ---


@pytest.fixture(scope="module")
def unreachable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    """A night whose database does not answer: it retries for half a minute while other tests run."""
    pytest.importorskip("psycopg", reason="no PostgreSQL driver: pip install 'nightgate[dev]'")
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    folder = tmp_path_factory.mktemp("unreachable")
    with subprocess.Popen(
        command("run", first_night().pipeline, "--night", DATE, "--no-prefect"),
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "NIGHTGATE_HOME": str(folder / "home"),
            "NIGHTGATE_DATABASE_URL": f"postgresql://me:hush-hush@127.0.0.1:{port}/metrics",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.kill()


def _older(path: Path) -> str:
    return _at(path, "0017")


def _newer(path: Path) -> str:
    return _at(path, "9999")


def _at(path: Path, revision: str) -> str:
    upgrade(f"sqlite:///{path}")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", [revision])
    return f"sqlite:///{path}"


def _blank(path: Path) -> str:
    path.touch()
    return f"sqlite:///{path}"


def _garbage(path: Path) -> str:
    path.write_bytes(b"this is not a database " * 200)
    return f"sqlite:///{path}"


def _read_only(path: Path) -> str:
    upgrade(f"sqlite:///{path}")
    return f"sqlite:///file:{path}?mode=ro"


@pytest.mark.usefixtures("unreachable")
@pytest.mark.parametrize(
    ("make", "remedy"),
    [
        (_older, "nightgate db upgrade"),
        (_newer, "pip install --upgrade nightgate"),
        (_blank, "nightgate db upgrade"),
        (_garbage, "backup"),
        (_read_only, "NIGHTGATE_DATABASE_URL"),
    ],
)
def test_an_unusable_database_ends_the_night_before_it_begins(
    tmp_path: Path, make: Callable[[Path], str], remedy: str
) -> None:
    url = make(tmp_path / "metrics.db")
    arguments = ("run", first_night().pipeline, "--night", DATE, "--no-prefect")
    assert_reported(nightgate(*arguments, cwd=tmp_path, env={"NIGHTGATE_DATABASE_URL": url}), "metrics.db", remedy)


# --- homes and disks ---


def test_a_second_run_of_a_night_at_work_is_superseded_and_names_the_first(upgraded: Home, tmp_path: Path) -> None:
    wanted, night = small()
    arguments = ("run", first_night().pipeline, "--night", DATE, "--no-prefect")
    with suppress(KeyboardInterrupt), open_night(wanted, night) as first:
        done = nightgate(*arguments, cwd=tmp_path)
        raise KeyboardInterrupt
    assert done.returncode == 0, done.stderr
    assert "SUPERSEDED" in done.stdout
    assert first.run_id in done.stdout
    assert "Traceback" not in done.stderr
    with closing(sqlite3.connect(upgraded.root / "metrics.db")) as connection:
        found = connection.execute("SELECT status FROM nightly_runs ORDER BY started_at").fetchall()
    assert found == [("cancelled",), ("superseded",)]


@pytest.mark.parametrize("arguments", [("run", "sample", "--no-prefect"), ("history", "sample"), ("db", "upgrade")])
def test_a_home_that_is_a_file_is_an_error(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "taken").write_text("a file")
    done = nightgate(*arguments, cwd=tmp_path, env={"NIGHTGATE_HOME": str(tmp_path / "taken")})
    assert_reported(done, str(tmp_path / "taken"), "NIGHTGATE_HOME")


def mounted(folder: Path, options: str, script: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script with a small file system at `folder`, which ends with the script."""
    if shutil.which("unshare") is None:
        pytest.skip("no `unshare` here to mount a small disk with")
    folder.mkdir()
    mount = f"mount -t tmpfs -o {options} tmpfs {folder}"
    run = ["unshare", "--mount", *([] if os.getuid() == 0 else ["--map-root-user"])]
    probe = subprocess.run([*run, "sh", "-c", mount], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {probe.stderr.strip()}")
    return subprocess.run(
        [*run, "sh", "-c", f"{mount} && {script}"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **env},
        cwd=folder.parent,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_home_on_a_read_only_disk_is_an_error(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    upgrading = " ".join(command("db", "upgrade"))
    done = mounted(disk, "ro,size=1m", upgrading, NIGHTGATE_HOME=str(disk / "home"))
    assert_reported(done, str(disk / "home"), "NIGHTGATE_HOME")


def _fill(disk: Path, left: str) -> str:
    """A shell command that fills the disk but for `left` KiB."""
    free = f"$(($(df --output=avail -k {disk} | tail -1) - {left}))"
    return f"head -c {free}K /dev/zero > {disk}/filler"


@pytest.mark.faults
@pytest.mark.parametrize(
    ("left", "detail"),
    [("120", "is full"), ("8", "metrics.db")],
    ids=lambda value: value if not value.isdigit() else f"{value} KiB left",
)
def test_a_full_disk_fails_the_night_and_the_same_command_completes_it_once_there_is_space(
    tmp_path: Path, left: str, detail: str
) -> None:
    """Only the work since the last checkpoint is lost, and no half-written file counts."""
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    # Enough for the whole night without the filler.
    path = first_night().pipeline
    night = " ".join(command("run", path, "--night", DATE, "--no-prefect", "--set", "training.epochs=1"))
    home = disk / "home"
    script = (
        f"{' '.join(command('db', 'upgrade'))} >&2 && {_fill(disk, left)} && "
        f"({night}; echo first $?) && rm {disk}/filler && "
        f"find {home} -name '*.tmp' -o -name '*.draft' -o -name '.staging-*' && "
        f"({night}; echo second $?) && cp -r {home} {kept}"
    )
    done = mounted(disk, "size=40m", script, NIGHTGATE_HOME=str(home))
    first, _, second = done.stdout.partition("first ")
    assert second.startswith("1\n"), f"{done.stdout} {done.stderr}"
    assert "PROMOTED" not in first
    assert "Traceback" not in done.stderr
    assert detail in done.stderr
    assert "space" in done.stderr.partition("next: ")[2]
    assert str(home) not in second.partition("Night ")[0], f"half-written files are left: {second}"
    assert second.rstrip().endswith("second 0"), done.stderr
    assert the_row(kept)["status"] == "promoted"


# --- last: the night that has retried all along ---


@pytest.mark.slow
def test_an_unreachable_database_is_reported_without_its_password(unreachable: subprocess.Popen[str]) -> None:
    output, errors = unreachable.communicate(timeout=90)
    done = subprocess.CompletedProcess([], unreachable.returncode, output, errors)
    assert_reported(done, "postgresql://me:***@127.0.0.1")
    assert "hush-hush" not in output + errors
