"""The command line: exit codes, stdout, stderr and help."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import typer.main
from typer.testing import CliRunner

from nightgate.cli import read
from nightgate.cli.app import app
from tests.support.first_night import FirstNight, copy_first_night, held_night
from tests.support.night import NIGHT, nightgate

pytestmark = pytest.mark.process

Run = Callable[..., subprocess.CompletedProcess[str]]
HEADER = "| Training Loss | Epoch | Step | Validation Loss | Accuracy | F1 | Precision | Recall |"


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> FirstNight:
    """Night one, in a home that this module may change."""
    return copy_first_night(tmp_path_factory.mktemp("cli") / "home")


@pytest.fixture(scope="module")
def run(first: FirstNight) -> Run:
    """`nightgate ...` in that home: nights in their own process, other commands in this one, without the imports."""

    def run(*arguments: object, input: str | None = None) -> subprocess.CompletedProcess[str]:
        environment = {"NIGHTGATE_HOME": str(first.home)}
        if arguments[:1] == ("run",):
            return nightgate(*arguments, cwd=first.home.parent, env=environment)
        done = CliRunner().invoke(app, [str(argument) for argument in arguments], input=input, env=environment)
        return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="module")
def forced(first: FirstNight) -> subprocess.CompletedProcess[str]:
    """The same night again in that home, with another recipe and a gate that no candidate passes."""
    held = held_night()
    shutil.rmtree(first.home)
    shutil.copytree(held.home, first.home, symlinks=True)
    return held.done


def rows(home: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(home / "metrics.db")) as connection:
        return connection.execute(query).fetchall()


def records(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """The rows that a command printed with --format json."""
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


# --- help ---


def commands() -> list[tuple[str, Any]]:
    group = typer.main.get_command(app)
    found = []
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        nested = getattr(command, "commands", {})
        found += [(f"{name} {inner}", one) for inner, one in nested.items()] or [(name, command)]
    return found


def test_no_command_is_lost() -> None:
    reading = {"status", "history", "champion", "versions", "report", "predict", "doctor"}
    deciding = {"promote", "rollback", "freeze", "unfreeze", "approve", "reject", "reconcile"}
    on_data = {"init", "check", "refresh", "evaluate", "snapshots", "quarantine", "forget"}
    of_the_gate = {"compare", "push", "export", "seeds", "gate replay", "gate power"}
    assert {name for name, _ in commands()} == reading | deciding | on_data | of_the_gate | {
        "run",
        "serve",
        "deploy",
        "db upgrade",
        "db backup",
        "db export",
        "db grant-reader",
    }


@pytest.mark.parametrize(("name", "command"), commands(), ids=[name for name, _ in commands()])
def test_every_command_and_option_has_help(name: str, command: Any) -> None:
    assert command.help, name
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"{name} {parameter.name}"


@pytest.mark.parametrize("arguments", [(), ("gate",), ("db",), *(tuple(name.split()) for name, _ in commands())])
def test_help_is_not_cut_at_80_columns(arguments: tuple[str, ...]) -> None:
    found = CliRunner().invoke(app, [*arguments, "--help"], env={"COLUMNS": "80"}, prog_name="nightgate")
    assert found.exit_code == 0
    text = found.output.replace("tcp://...", "").replace("]...", "").replace("}...", "")
    assert "..." not in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_status_asks_no_server_where_there_can_be_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise ConnectionRefusedError

    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket, "create_connection", refused)
    assert not read.may_have_server()
    (tmp_path / "prefect.toml").touch()
    assert read.may_have_server()
    (tmp_path / "prefect.toml").unlink()
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    assert read.may_have_server()
    monkeypatch.delenv("PREFECT_API_URL")
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: socket.socket())
    assert read.may_have_server()


def test_help_without_a_command_ends_with_exit_2(run: Run) -> None:
    assert run().returncode == 2


def test_the_version_is_printed(run: Run) -> None:
    from nightgate import __version__

    assert run("--version").stdout == f"nightgate {__version__}\n"


@pytest.mark.parametrize(
    "arguments", [("bogus",), ("champion",), ("promote", "small", "1"), ("history", "small", "--x")]
)
def test_bad_usage_ends_with_exit_2_and_nothing_on_stdout(run: Run, arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Error: " in done.stderr


# --- a night ---


def test_a_promoted_night_ends_with_exit_0_the_epoch_table_and_the_verdict(first: FirstNight) -> None:
    out = first.done.stdout
    assert "Night 2026-01-05 of small: PROMOTED" in out
    lines = out.splitlines()
    table = lines.index(HEADER)
    assert lines[table + 1] == "|:-:|:-:|:-:|:-:|:-:|:-:|:-:|:-:|"
    for number, line in enumerate(lines[table + 2 : table + 4], 1):
        cells = line.strip("| ").split(" | ")
        assert cells[1] == f"{number}.0"
        assert cells[2].isdigit()
        assert all(len(cell.partition(".")[2]) == 4 for place, cell in enumerate(cells) if place not in (1, 2))
    assert "Verdict: promote" in out
    [not_run] = [line for line in lines if line.startswith("  not_run") and "beats_champion" in line]
    assert "no champion yet" in not_run
    assert "Champion: version 1 at " in out


def test_progress_is_on_stderr_without_bars_or_tracebacks(first: FirstNight) -> None:
    assert "epoch 1: F1 " in first.done.stderr
    assert "verdict" not in first.done.stderr
    assert "epoch 1: F1 " not in first.done.stdout
    assert "Traceback" not in first.done.stderr
    assert "it/s]" not in first.done.stderr


def test_what_the_night_suggests_to_ask_the_database_can_be_run(first: FirstNight) -> None:
    lines = first.done.stdout.splitlines()
    command = lines[lines.index("Ask the database:") + 1].strip()
    found = subprocess.run(command, shell=True, cwd=first.pipeline.parent, capture_output=True, text=True, check=True)
    assert "2026-01-05" in found.stdout
    assert "validation_loss" in found.stdout


def test_the_same_command_on_a_night_that_ended_prints_it_and_does_nothing(first: FirstNight, run: Run) -> None:
    before = rows(first.home, "SELECT run_id, attempts, status FROM nightly_runs")
    done = run("run", first.pipeline, "--night", NIGHT, "--no-prefect")
    assert done.returncode == 0
    assert HEADER in done.stdout
    assert "--force" in done.stderr
    assert rows(first.home, "SELECT run_id, attempts, status FROM nightly_runs") == before


def test_force_opens_a_new_run_for_a_night_that_ended(
    first: FirstNight, forced: subprocess.CompletedProcess[str]
) -> None:
    assert "HELD" in forced.stdout
    found = rows(first.home, f"SELECT status FROM nightly_runs WHERE night = '{NIGHT}' ORDER BY started_at")
    assert found == [("promoted",), ("held",)]


def test_a_held_night_ends_with_exit_3_with_fail_on_held(
    first: FirstNight, run: Run, forced: subprocess.CompletedProcess[str]
) -> None:
    assert forced.returncode == 3
    again = ("run", first.pipeline, "--night", NIGHT, "--no-prefect")
    assert run(*again).returncode == 0
    assert run(*again, "--fail-on-held").returncode == 3


def test_set_changes_one_run(first: FirstNight, forced: subprocess.CompletedProcess[str]) -> None:
    query = "SELECT r.config_hash, MAX(e.epoch) FROM epoch_results e JOIN nightly_runs r USING (run_id) GROUP BY run_id"
    found = rows(first.home, f"{query} ORDER BY r.started_at LIMIT 2")
    assert [epochs for _, epochs in found] == [2, 1]
    assert found[0][0] != found[1][0]
    assert "0.9900" in forced.stdout


@pytest.mark.slow
def test_a_dry_run_of_two_nights_does_everything_but_promote(
    first: FirstNight, tmp_path: Path, environment: Path
) -> None:
    nights = ("--night", "2026-01-06", "--night", NIGHT, "--night", NIGHT)
    options = ("--no-prefect", "--dry-run", "--set", "training.epochs=1")
    done = nightgate("run", first.pipeline, *nights, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = rows(
        environment, "SELECT night, status, verdict, dry_run, model_version FROM nightly_runs ORDER BY started_at"
    )
    assert found == [("2026-01-06", "held", "promote", 1, 1), (NIGHT, "held", "promote", 1, 2)]
    assert done.stdout.count("without --dry-run") == 2
    assert "nightgate promote" not in done.stdout
    assert rows(environment, "SELECT * FROM champion_timeline") == []


# --- reading ---


def test_history_lists_the_nights_since_a_date(run: Run) -> None:
    nights = records(run("history", "small", "--since", NIGHT, "--format", "json"))
    assert [night["night"] for night in nights] == [NIGHT]
    assert records(run("history", "small", "--since", "2026-01-06", "--format", "json")) == []
    assert records(run("history", "--until", "2026-01-04", "--format", "json")) == []
    assert records(run("history", "--until", NIGHT, "--limit", "1", "--format", "json")) == nights
    title, *_, row = run("history", "small").stdout.splitlines()
    assert title.startswith(f"small: 1 night, {NIGHT} to {NIGHT}; champion: version 1 since 20")
    assert row.strip("* ").split()[:3] == [NIGHT, nights[0]["status"], f"{nights[0]['test_f1']:.4f}"]
    assert run("history", "--since", NIGHT).stdout == run("history", "small").stdout


def test_history_of_all_pipelines_is_a_line_each(run: Run) -> None:
    head, row, *_ = run("history").stdout.splitlines()
    assert head.split()[:3] == ["pipeline", "last", "night"]
    assert (row.split()[:3], row.split()[4]) == (["!", "small", NIGHT], "1")
    # The night is of a year that is over.
    *_, tally, needs, remedy = run("history").stdout.splitlines()
    assert (tally, needs.startswith("small: no night for ")) == ("1 of 1 need somebody today:", True)
    assert "nightgate doctor" in remedy


def test_a_history_in_parquet_has_the_rows_and_columns_of_json(first: FirstNight, run: Run) -> None:
    arguments = ["history", "small", "--format", "parquet"]
    done = CliRunner().invoke(app, arguments, env={"NIGHTGATE_HOME": str(first.home)})
    [night] = pq.read_table(io.BytesIO(done.stdout_bytes)).to_pylist()
    [same] = records(run("history", "small", "--format", "json"))
    assert list(night) == list(same)
    assert (str(night["night"]), night["run_id"], night["test_f1"]) == (NIGHT, same["run_id"], same["test_f1"])


def test_history_shows_the_epochs_of_a_run_in_the_published_shape(first: FirstNight, run: Run) -> None:
    run_id = rows(first.home, "SELECT run_id FROM nightly_runs ORDER BY started_at LIMIT 1")[0][0]
    lines = run("history", "small", "--run", run_id, "--epochs").stdout.splitlines()
    assert lines[0] == HEADER
    values = rows(
        first.home,
        f"SELECT split, metric, value FROM epoch_metrics WHERE run_id = '{run_id}' ORDER BY split DESC, epoch, metric",
    )
    assert [split for split, *_ in values] == ["validation"] * 6 + ["test"] * 3
    shown = [f"{value:.4f}" for *_, value in values]
    places = ("1", "2", "test")
    assert lines[4:] == [
        *("", "| epoch | f1.macro | f1.weighted | matthews_correlation |", "|:-:|:-:|:-:|:-:|"),
        *(f"| {place} | {' | '.join(shown[3 * at : 3 * at + 3])} |" for at, place in enumerate(places)),
    ]
    card = first.home / "models" / "small" / "v0001" / "README.md"
    page = first.home / "runs" / run_id / "report.html"
    assert f"| test | {' | '.join(shown[6:])} |" in card.read_text()
    assert "matthews_correlation" in card.read_text()
    assert all(value in page.read_text() for value in shown)
    epochs = records(run("history", "small", "--run", run_id, "--format", "json"))
    assert [epoch["epoch"] for epoch in epochs] == [1, 2]
    assert f"| {epochs[0]['training_loss']:.4f} | 1.0 | {epochs[0]['step']} |" in lines[2]


def test_history_breaks_a_run_down_by_slices_and_classes(run: Run) -> None:
    done = run("history", "small", "--run", "latest", "--slices", "--format", "csv")
    found = list(csv.DictReader(io.StringIO(done.stdout)))
    assert {row["slice_name"] for row in found} == {"label", "product"}
    assert {row["split"] for row in found} == {"validation", "test"}


WITHOUT_PIPELINE = {
    "init",
    "status",
    "reconcile",
    "doctor",
    *(name for name, _ in commands() if name.startswith("db ")),
}
BY_FILE = {"run", "check", "refresh", "evaluate", "serve", "deploy", "seeds"}


@pytest.mark.parametrize("name", [name for name, _ in commands() if name not in WITHOUT_PIPELINE])
def test_an_unknown_pipeline_is_an_error_that_suggests_the_nearest(first: FirstNight, name: str) -> None:
    pipeline, *others = dict(commands())[name].params
    assert pipeline.metavar == "PIPELINE"
    required = [one for one in others if one.required]
    given = [value for one in required for value in ("1",) if one.param_type_name == "argument"]
    given += [value for one in required for value in (*one.opts, "a typo") if one.param_type_name == "option"]
    # The first is known by its nights alone, the second by its file.
    for typo, meant in (("smalll", "" if name in BY_FILE else "small"), ("sampel", "sample")):
        arguments = [*name.split(), typo, *given]
        done = CliRunner().invoke(app, arguments, env={"NIGHTGATE_HOME": str(first.home)})
        assert (done.exit_code, done.stdout) == (2, ""), done.stderr
        assert f"no pipeline '{typo}'" in done.stderr
        assert not meant or f"did you mean '{meant}'?" in done.stderr


@pytest.mark.parametrize("command", ["history", "champion", "versions", "snapshots"])
def test_a_pipeline_without_nights_has_no_rows_and_a_hint_on_stderr(run: Run, command: str) -> None:
    done = run(command, "sample")
    assert (done.returncode, done.stdout) == (0, "")
    assert "nightgate run sample" in done.stderr


def test_quarantined_rows_are_listed_with_their_number_by_reason(first: FirstNight, run: Run) -> None:
    counts = dict(rows(first.home, "SELECT reason, COUNT(*) FROM quarantined_rows GROUP BY reason"))
    done = run("quarantine", "small", "--format", "json")
    listed = records(done)
    assert {reason: sum(row["reason"] == reason for row in listed) for reason in counts} == counts
    assert {row["first_night"] for row in listed} == {NIGHT}
    assert {row["resolved_night"] for row in listed} == {None}
    assert all(f"{count:,} {reason}" in done.stderr for reason, count in counts.items())
    [reason, *_] = counts
    limited = records(run("quarantine", "small", "--reason", reason, "--limit", "1", "--format", "json"))
    assert [row["reason"] for row in limited] == [reason]
    assert run("quarantine", "small", "--reason", "no_such_reason").stdout == ""


def test_champion_and_versions_agree_in_every_format(run: Run) -> None:
    [champion] = records(run("champion", "small", "--format", "json"))
    assert (champion["version"], champion["promoted_by"]) == (1, "gate")
    assert Path(champion["path"], "model.safetensors").is_file()
    [row, *_] = csv.DictReader(io.StringIO(run("versions", "small", "--format", "csv").stdout))
    assert float(row["test_f1"]) == champion["test_f1"]
    table = run("versions", "small").stdout.splitlines()
    assert table[0].split()[:4] == ["version", "status", "night", "test_f1"]
    assert f"{champion['test_f1']:.4f}" in table[1]
    assert re.search(r"^version +1$", run("champion", "small").stdout, re.MULTILINE)


def test_snapshots_say_how_many_rows_they_hold_who_used_them_and_why_they_are_kept(first: FirstNight, run: Run) -> None:
    [snapshot, *_] = records(run("snapshots", "small", "--format", "json"))
    [(night, run_id, rows_total, rows_new)] = rows(
        first.home,
        "SELECT night, run_id, rows_total, rows_new FROM nightly_runs WHERE model_version = 1",
    )
    assert (snapshot["night"], snapshot["rows"], snapshot["rows_new"]) == (night, rows_total, rows_new)
    assert run_id in snapshot["run_ids"].split()
    assert snapshot["kept"].startswith("version ")
    deltas = Path(first.home, snapshot["path"]).parent.glob("deltas/*/*.parquet")
    assert snapshot["bytes"] == sum(path.stat().st_size for path in deltas)
    assert snapshot["snapshot_id"] in run("snapshots", "small").stdout


def test_champion_at_a_time_is_the_one_of_that_time(run: Run) -> None:
    assert records(run("champion", "small", "--at", "2020-01-01", "--format", "json")) == []
    assert len(records(run("champion", "small", "--at", "2999-01-01T00:00+01:00", "--format", "json"))) == 1
    assert records(run("champion", "small", "--at", "0300-01-01", "--format", "json")) == []
    for beyond in ("0001-01-01T00:00+01:00", "9999-12-31T23:59-01:00"):
        refused = run("champion", "small", "--at", beyond)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert beyond in refused.stderr
    wrong = run("champion", "small", "--at", "yesterday")
    assert wrong.returncode == 2
    assert "'yesterday'" in wrong.stderr


def test_a_run_that_does_not_exist_is_an_error(run: Run) -> None:
    done = run("history", "small", "--run", "small-20200101-000000")
    assert (done.returncode, done.stdout) == (2, "")
    assert "small-20200101-000000" in done.stderr


def test_a_choice_of_nights_that_cannot_be_is_bad_usage(run: Run) -> None:
    for options, words in (
        (("small", "--since", "2026-02-02", "--until", "2026-01-01"), ("2026-02-02", "2026-01-01")),
        (("--run", "latest"), ("nightgate history PIPELINE --run latest",)),
        (("small", "--epochs", "--slices"), ("epochs", "slices")),
    ):
        done = run("history", *options)
        assert (done.returncode, done.stdout) == (2, "")
        assert all(word in done.stderr for word in words)


def test_a_night_on_which_nothing_changed_is_said_to_be_one(first: FirstNight, run: Run) -> None:
    [(run_id,)] = rows(first.home, "SELECT run_id FROM nightly_runs WHERE model_version = 1")
    for chosen in (("--run", run_id), ("--limit", "1")):
        done = run("history", "small", "--changes", *chosen)
        assert (done.returncode, done.stdout) == (0, "")
        assert "nothing changed" in done.stderr
        assert "nightgate run" not in done.stderr
    assert "nothing changed" not in run("history", "small", "--changes", "--since", "2999-01-01").stderr


def test_a_reader_of_a_pipe_that_ends_is_no_error(first: FirstNight) -> None:
    from tests.support.night import command

    line = " ".join(command("history", "small", "--slices", "--format", "json"))
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{line} | true"],
        cwd=Path(__file__).parents[2],
        env={"PATH": "/usr/bin:/bin", "NIGHTGATE_HOME": str(first.home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


# --- predicting ---


def test_predict_classifies_arguments_in_a_table(run: Run) -> None:
    lines = run("predict", "small", "Fits well", "Broke at once").stdout.splitlines()
    assert lines[0].split() == ["label", "probability", "text"]
    assert [line.split(maxsplit=2)[2] for line in lines[1:]] == ["Fits well", "Broke at once"]


def test_predict_classifies_lines_of_standard_input_blank_ones_too(run: Run) -> None:
    found = records(run("predict", "small", "--format", "json", input="Fits well\r\n\nBroke at once"))
    assert [row["text"] for row in found] == ["Fits well", None, "Broke at once"]
    assert [row["reason"] for row in found] == [None, "empty_text", None]
    assert {row["label"] for row in found[::2]} <= {"1", "2", "3", "4", "5"}
    assert all(0.2 <= row["probability"] <= 1 for row in found[::2])


def test_predict_without_text_is_bad_usage(run: Run) -> None:
    nothing = run("predict", "small", input="")
    assert nothing.returncode == 2
    assert "next: " in nothing.stderr


# --- moving the champion ---


@pytest.mark.usefixtures("forced")
def test_a_version_is_promoted_and_rolled_back_with_the_reason(first: FirstNight, run: Run) -> None:
    promoted = run("promote", "small", "2", "--reason", "it reads better")
    assert "version 2" in promoted.stdout, promoted.stderr
    assert "min_f1" in promoted.stdout
    [champion] = records(run("champion", "small", "--format", "json"))
    assert champion["version"] == 2
    assert "min_f1" in champion["reason"]
    rolled = run("rollback", "small", "--reason", "it did not")
    assert "nightgate unfreeze small --reason TEXT" in rolled.stdout, rolled.stderr
    query = "SELECT model_version, kind, reason FROM promotions ORDER BY promoted_at"
    despite, rollback = rows(first.home, query)[1:]
    assert despite[:2] == (2, "promote")
    assert despite[2].startswith("it reads better (")
    assert rollback == (1, "rollback", "it did not")
    states = {row["version"]: row["status"] for row in records(run("versions", "small", "--format", "json"))}
    assert states == {1: "champion", 2: "quarantined"}
    thawed = run("unfreeze", "small", "--reason", "its rows are mended")
    assert thawed.returncode == 0, thawed.stderr
    refused = run("promote", "small", "2", "--reason", "after all")
    assert refused.returncode == 1
    released = run("promote", "small", "2", "--reason", "after all", "--despite-quarantine", "--anchor")
    assert released.returncode == 0, released.stderr
    assert records(run("champion", "small", "--format", "json"))[0]["version"] == 2


def test_a_pipeline_is_frozen_and_unfrozen(run: Run) -> None:
    frozen = run("freeze", "small", "--reason", "look at the labels")
    assert frozen.returncode == 0, frozen.stderr
    again = run("freeze", "small", "--reason", "twice")
    assert again.returncode == 1
    assert "look at the labels" in again.stderr
    assert run("unfreeze", "small", "--reason", "looked").returncode == 0
    assert run("unfreeze", "small", "--reason", "looked").returncode == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("promote", "small", "77", "--reason", "x"), "77"),
        (("promote", "small", "champion", "--reason", "x"), "champion"),
        (("promote", "small", "2", "--reason", " "), "reason"),
        (("unfreeze", "small", "--reason", " "), "reason"),
    ],
)
def test_an_impossible_change_is_refused_with_the_next_step(run: Run, arguments: tuple[str, ...], words: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert words in done.stderr
    assert "next: " in done.stderr


# --- database and settings ---


def test_db_upgrade_creates_the_database_and_reports_its_revision(tmp_path: Path, environment: Path) -> None:
    made, again = nightgate("db", "upgrade", cwd=tmp_path), nightgate("db", "upgrade", cwd=tmp_path)
    assert (made.returncode, again.returncode) == (0, 0)
    assert "blank" in made.stdout
    assert made.stdout.split()[-1] == again.stdout.split()[-1]
    assert str(environment / "metrics.db") in again.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("sample", "--set", "training.epoch=2"), "training.epochs?"),
        (("sample", "--set", "gate.min_f1=1.5"), "gate.min_f1"),
        (("sample", "--set", "training.epochs"), "--set training.epochs=2"),
        (("missing",), "'missing'"),
        (("missing/file.toml",), "missing/file.toml"),
        (("sample", "--night", "5 January"), "'5 January'"),
        (("sample", "--night", "2026-01-05", "--night", "2999-01-05"), "2999-01-05"),
    ],
)
def test_an_invalid_setting_pipeline_or_night_ends_with_exit_2_and_no_home(
    tmp_path: Path, environment: Path, arguments: tuple[str, ...], words: str
) -> None:
    done = nightgate("run", *arguments, "--no-prefect", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not environment.exists()
