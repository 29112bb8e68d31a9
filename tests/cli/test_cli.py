"""The command line as its users meet it: exit codes, what is on stdout, what is on stderr, help."""

from __future__ import annotations

import csv
import io
import json
import re
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import typer.main

from nightgate.cli.app import app
from tests.support.first_night import FirstNight, copy_first_night
from tests.support.night import NIGHT, nightgate

Run = Callable[..., subprocess.CompletedProcess[str]]
HEADER = "| Training Loss | Epoch | Step | Validation Loss | Accuracy | F1 | Precision | Recall |"


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> FirstNight:
    """Night one, in a home that this module may change."""
    return copy_first_night(tmp_path_factory.mktemp("cli") / "home")


@pytest.fixture(scope="module")
def run(first: FirstNight) -> Run:
    """`nightgate ...` in that home."""

    def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        return nightgate(*arguments, cwd=first.home.parent, env={"NIGHTGATE_HOME": str(first.home)}, **options)

    return run


@pytest.fixture(scope="module")
def forced(first: FirstNight, run: Run) -> subprocess.CompletedProcess[str]:
    """The same night once more, with another recipe and a gate that nobody passes."""
    settings = ("--set", "training.epochs=1", "--set", "gate.min_f1=0.99")
    return run("run", first.pipeline, "--night", NIGHT, "--no-prefect", "--force", "--fail-on-held", *settings)


def rows(home: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(home / "metrics.db")) as connection:
        return connection.execute(query).fetchall()


def records(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """What a command printed with --format json."""
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


def test_every_command_of_this_step_is_there() -> None:
    reading = {"status", "history", "champion", "versions", "predict", "doctor"}
    deciding = {"promote", "rollback", "freeze", "unfreeze", "approve", "reject", "reconcile"}
    of_the_gate = {"compare", "push", "export", "seeds", "gate replay", "gate power"}
    assert {name for name, _ in commands()} == reading | deciding | of_the_gate | {
        "run",
        "serve",
        "deploy",
        "db upgrade",
    }


@pytest.mark.parametrize(("name", "command"), commands(), ids=[name for name, _ in commands()])
def test_every_command_and_option_has_help(name: str, command: Any) -> None:
    assert command.help, name
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"{name} {parameter.name}"


def test_help_is_asked_for_with_exit_0_and_needed_with_exit_2(run: Run) -> None:
    asked, needed = run("--help"), run()
    assert (asked.returncode, needed.returncode) == (0, 2)
    assert "promotion gate" in asked.stdout


def test_the_version_is_told(run: Run) -> None:
    from nightgate import __version__

    assert run("--version").stdout == f"nightgate {__version__}\n"


@pytest.mark.parametrize(
    "arguments", [("bogus",), ("history",), ("promote", "small", "1"), ("history", "small", "--x")]
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
    assert "epoch 1: F1 " not in first.done.stdout
    assert "Traceback" not in first.done.stderr
    assert "it/s]" not in first.done.stderr


def test_what_the_night_suggests_to_ask_the_database_can_be_run(first: FirstNight) -> None:
    lines = first.done.stdout.splitlines()
    command = lines[lines.index("Ask the database:") + 1].strip()
    found = subprocess.run(command, shell=True, cwd=first.pipeline.parent, capture_output=True, text=True, check=True)
    assert "2026-01-05" in found.stdout
    assert "validation_loss" in found.stdout


def test_the_same_command_on_a_night_that_ended_tells_it_and_does_nothing(first: FirstNight, run: Run) -> None:
    before = rows(first.home, "SELECT run_id, attempts, status FROM nightly_runs")
    done = run("run", first.pipeline, "--night", NIGHT, "--no-prefect")
    assert done.returncode == 0
    assert HEADER in done.stdout
    assert "had ended before" in done.stderr
    assert "--force opens a new run" in done.stderr
    assert rows(first.home, "SELECT run_id, attempts, status FROM nightly_runs") == before


def test_force_opens_a_new_run_for_a_night_that_ended(
    first: FirstNight, forced: subprocess.CompletedProcess[str]
) -> None:
    assert "HELD" in forced.stdout
    found = rows(first.home, f"SELECT status FROM nightly_runs WHERE night = '{NIGHT}' ORDER BY started_at")
    assert found == [("promoted",), ("held",)]


def test_a_held_night_ends_with_exit_3_where_that_was_asked_for(
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
    assert "is below min_f1 0.9900" in forced.stdout


def test_a_dry_run_does_everything_but_promote(first: FirstNight, tmp_path: Path, environment: Path) -> None:
    done = nightgate("run", first.pipeline, "--night", NIGHT, "--no-prefect", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = rows(environment, "SELECT status, verdict, dry_run, model_version FROM nightly_runs")
    assert found == [("held", "promote", 1, 1)]
    assert "dry run, not promoted" in done.stdout
    assert "nightgate promote small 1 --reason TEXT" in done.stdout
    assert rows(environment, "SELECT * FROM champion_timeline") == []
    assert "See it in the Prefect UI:\n" in done.stdout


# --- reading ---


def test_history_lists_the_nights_since_a_date(run: Run) -> None:
    nights = records(run("history", "small", "--since", NIGHT, "--format", "json"))
    assert [night["night"] for night in nights] == [NIGHT]
    assert records(run("history", "small", "--since", "2026-01-06", "--format", "json")) == []


def test_history_shows_the_epochs_of_a_run_in_the_published_shape(first: FirstNight, run: Run) -> None:
    run_id = rows(first.home, "SELECT run_id FROM nightly_runs ORDER BY started_at LIMIT 1")[0][0]
    lines = run("history", "small", "--run", run_id, "--epochs").stdout.splitlines()
    assert lines[0] == HEADER
    assert len(lines) == 4
    epochs = records(run("history", "small", "--run", run_id, "--format", "json"))
    assert [epoch["epoch"] for epoch in epochs] == [1, 2]
    assert f"| {epochs[0]['training_loss']:.4f} | 1.0 | {epochs[0]['step']} |" in lines[2]


def test_history_breaks_a_run_down_by_slices_and_classes(run: Run) -> None:
    done = run("history", "small", "--run", "latest", "--slices", "--format", "csv")
    found = list(csv.DictReader(io.StringIO(done.stdout)))
    assert {row["slice_name"] for row in found} == {"label", "product"}
    assert {row["split"] for row in found} == {"validation", "test"}


@pytest.mark.parametrize("command", ["history", "champion", "versions"])
def test_what_is_asked_of_a_pipeline_nobody_knows_is_empty_and_said_on_stderr(run: Run, command: str) -> None:
    done = run(command, "nobody")
    assert (done.returncode, done.stdout) == (0, "")
    assert "nobody" in done.stderr


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


def test_champion_at_a_time_tells_who_reigned_then(run: Run) -> None:
    assert records(run("champion", "small", "--at", "2020-01-01", "--format", "json")) == []
    assert len(records(run("champion", "small", "--at", "2999-01-01T00:00+01:00", "--format", "json"))) == 1
    assert records(run("champion", "small", "--at", "0300-01-01", "--format", "json")) == []
    for beyond in ("0001-01-01T00:00+01:00", "9999-12-31T23:59-01:00"):
        refused = run("champion", "small", "--at", beyond)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert f"'{beyond}' lies outside the years 1 to 9999 in UTC" in refused.stderr
    wrong = run("champion", "small", "--at", "yesterday")
    assert wrong.returncode == 2
    assert "'yesterday' is not a time" in wrong.stderr


def test_a_run_that_does_not_exist_is_said(run: Run) -> None:
    done = run("history", "small", "--run", "small-20200101-000000")
    assert (done.returncode, done.stdout) == (1, "")
    assert "pipeline small has no run small-20200101-000000" in done.stderr


def test_a_reader_of_a_pipe_that_leaves_is_no_error(first: FirstNight) -> None:
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


def test_predict_classifies_arguments_for_eyes(run: Run) -> None:
    lines = run("predict", "small", "Fits well", "Broke at once").stdout.splitlines()
    assert lines[0].split() == ["label", "probability", "text"]
    assert [line.split(maxsplit=2)[2] for line in lines[1:]] == ["Fits well", "Broke at once"]


def test_predict_classifies_lines_of_standard_input_for_programs(run: Run) -> None:
    found = records(run("predict", "small", "--format", "json", input="Fits well\r\n\nBroke at once"))
    assert [row["text"] for row in found] == ["Fits well", "Broke at once"]
    assert {row["label"] for row in found} <= {"1", "2", "3", "4", "5"}
    assert all(0.2 <= row["probability"] <= 1 for row in found)


def test_predict_without_text_or_champion_says_so(run: Run) -> None:
    nothing = run("predict", "small", input="")
    assert nothing.returncode == 2
    assert "there is no text to classify" in nothing.stderr
    nobody = run("predict", "smal", "a text")
    assert nobody.returncode == 1
    assert "did you mean 'small'?" in nobody.stderr


# --- moving the champion ---


@pytest.mark.usefixtures("forced")
def test_a_version_is_promoted_and_rolled_back_by_hand_with_the_reason(first: FirstNight, run: Run) -> None:
    promoted = run("promote", "small", "2", "--reason", "it reads better")
    assert promoted.stdout == "version 2 is the champion of small now, in place of version 1\n", promoted.stderr
    assert records(run("champion", "small", "--format", "json"))[0]["version"] == 2
    rolled = run("rollback", "small", "--reason", "it did not")
    assert rolled.stdout == (
        "version 1 is the champion of small now, in place of version 2, which is quarantined. "
        "No run promotes itself until `nightgate unfreeze small --reason TEXT`\n"
    ), rolled.stderr
    query = "SELECT model_version, kind, reason FROM promotions ORDER BY promoted_at"
    assert rows(first.home, query)[1:] == [(2, "promote", "it reads better"), (1, "rollback", "it did not")]
    states = {row["version"]: row["status"] for row in records(run("versions", "small", "--format", "json"))}
    assert states == {1: "champion", 2: "quarantined"}
    thawed = run("unfreeze", "small", "--reason", "its rows are mended")
    assert thawed.stdout.startswith("small is no longer frozen; it was frozen since "), thawed.stderr
    refused = run("promote", "small", "2", "--reason", "after all")
    assert "quarantined since" in refused.stderr
    released = run("promote", "small", "2", "--reason", "after all", "--despite-quarantine", "--anchor")
    assert released.stdout.endswith("in place of version 1; it is the anchor too, in place of version 1\n")


def test_a_pipeline_is_frozen_and_let_go_by_hand(run: Run) -> None:
    frozen = run("freeze", "small", "--reason", "look at the labels")
    assert frozen.stdout.startswith("small is frozen: "), frozen.stderr
    again = run("freeze", "small", "--reason", "twice")
    assert again.returncode == 1
    assert ": look at the labels\n  next: " in again.stderr
    assert run("unfreeze", "small", "--reason", "looked").returncode == 0
    assert "small is not frozen" in run("unfreeze", "small", "--reason", "looked").stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("promote", "small", "77", "--reason", "x"), "small has no version 77"),
        (("promote", "small", "champion", "--reason", "x"), "is the champion of small already"),
        (("promote", "small", "2", "--reason", " "), "the reason is blank"),
        (("rollback", "nobody", "--reason", "x"), "the database knows no pipeline 'nobody'"),
        (("freeze", "nobody", "--reason", "x"), "the database knows no pipeline 'nobody'"),
        (("unfreeze", "small", "--reason", " "), "the reason is blank"),
    ],
)
def test_a_promotion_that_cannot_be_is_refused_in_words(run: Run, arguments: tuple[str, ...], said: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert "next: " in done.stderr


# --- database and settings ---


def test_db_upgrade_makes_the_database_and_says_when_there_is_nothing_to_do(tmp_path: Path, environment: Path) -> None:
    made, again = nightgate("db", "upgrade", cwd=tmp_path), nightgate("db", "upgrade", cwd=tmp_path)
    assert (made.returncode, again.returncode) == (0, 0)
    assert "from blank to revision " in made.stdout
    assert "already at revision " in again.stdout
    assert str(environment / "metrics.db") in again.stdout


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("training.epoch=2", "training.epoch: unknown; did you mean training.epochs?"),
        ("num_train_epochs=2", "num_train_epochs: unknown; Nightgate calls it training.epochs"),
        ("training.epochs=many", "training.epochs: "),
        ("training.epochs=0", "greater than or equal to 1"),
        ("gate.min_f1=1.5", "less than or equal to 1"),
        ("retention.runs=3", "does not act on it yet"),
        ("training.epochs", "write it as table.field=value"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_before_anything_is_done(
    tmp_path: Path, environment: Path, setting: str, said: str
) -> None:
    done = nightgate("run", "sample", "--no-prefect", "--set", setting, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not environment.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nobody",), "there is no pipeline 'nobody'"),
        (("missing/file.toml",), "there is no pipeline file missing/file.toml"),
        (("sample", "--night", "5 January"), "'5 January' is not a date"),
        (("sample", "--night", "2999-01-05"), "still to come"),
    ],
)
def test_a_pipeline_or_night_that_cannot_be_ends_with_exit_2(
    tmp_path: Path, environment: Path, arguments: tuple[str, ...], said: str
) -> None:
    done = nightgate("run", *arguments, "--no-prefect", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert not environment.exists()
