"""Logs: their context, each line once, and no secrets."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import textwrap
import threading
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nightgate import logs
from nightgate.database.connection import parse_url
from nightgate.database_urls import safe_url
from nightgate.errors import DatabaseError, TrainingError
from nightgate.settings import read_settings, settings_in_force
from nightgate.training import supervisor
from nightgate.training.protocol import TrainJob

pytestmark = pytest.mark.process

PASSWORD = "s3cr%t@pass/word"
DATABASE = "postgresql+psycopg://nightly:s3cr%25t%40pass%2Fword@db.example:5432/metrics?sslmode=require"
HUB_TOKEN = "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz01234567"[:34]

SETTINGS = {
    "NIGHTGATE_DATABASE_URL": DATABASE,
    "SHOP_DB_PASSWORD": "correct horse",
    "PREFECT_API_AUTH_STRING": "admin:open-sesame",
    "OBJECT_STORE_SECRET": "a\nb\"c'd",
    "SHORT_KEY": "abc",
    "NIGHTGATE_WEBHOOK_URL": "https://chat.example/hooks/T0-B1",
}


small_night = partial(logs.night_context, pipeline="small", night="2026-01-05", run_id="r1")


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """A logger of the library, whose level is restored."""
    yield logging.getLogger("nightgate.tests")
    logging.getLogger("nightgate").setLevel(logging.NOTSET)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / logs.FILE).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (f"cannot reach {DATABASE}", "cannot reach postgresql+psycopg://***@db.example:5432/metrics?sslmode=require"),
        (f"the password is {PASSWORD}", "the password is ***"),
        ("cannot reach https://chat.example/hooks/T0-B1", "cannot reach ***"),
        ("postgresql://nightly:s3cr%t@pass/word@db.example", "postgresql://***@db.example"),
        ("postgresql://other:p@ss/w@rd#@db.example/x", "postgresql://***@db.example/x"),
        (f"a token {HUB_TOKEN}.", "a token ***."),
        ("dsn 'host=db password=other user=x'", "dsn 'host=db password=*** user=x'"),
        ("GET http://hub/x?token=abcdef&page=2", "GET http://hub/x?token=***&page=2"),
        ("Authorization: Bearer abcdefgh.ijkl", "Authorization: Bearer ***"),
        ("authorization: basic YWRtaW46b3Blbg==", "authorization: basic ***"),
        ("login admin:open-sesame", "login ***"),
        ("password open-sesame", "password ***"),
        ("open-sesames are not secret", None),
        ("quoted correct+horse and correct%20horse", "quoted *** and ***"),
        ("""{'key': 'a\\nb"c\\'d'}""", "{'key': '***'}"),
        (json.dumps({"key": "a\nb\"c'd"}), '{"key": "***"}'),
        ("mirror at https://me:pw@mirror.example/simple", "mirror at https://***@mirror.example/simple"),
        ("abc is too short to be masked", None),
        ("8,192 tokens, key=label, unk_token=[UNK], https://example.com/@user", None),
    ],
)
@pytest.mark.usefixtures("secrets")
def test_secrets_are_masked_and_nothing_else(text: str, masked: str | None) -> None:
    assert logs.without_secrets(text) == (text if masked is None else masked)


PASSWORDS = st.text(alphabet="ЖЩЯЮ7@/:#?%& \t\"'+=[]", min_size=4, max_size=24)
"""With every character that ends a part of a URL, and letters that no message has."""


@given(password=PASSWORDS)
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.usefixtures("environment")
def test_no_four_characters_of_a_password_that_is_not_quoted_are_shown(password: str) -> None:
    pieces = {password[at : at + 4] for at in range(len(password) - 3)}
    pieces = {piece for piece in pieces if not set("ЖЩЯЮ").isdisjoint(piece)}
    shown: list[str] = []
    for name, url in (
        ("NIGHTGATE_DATABASE_URL", f"postgresql://nightly:{password}@db.example/metrics"),
        ("PREFECT_API_URL", f"http://nightly:{password}@prefect.example:4200/api"),
        ("PREFECT_SERVER_DATABASE_CONNECTION_URL", f"postgresql+asyncpg://nightly:{password}@db.example/prefect"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(name, url)
            shown += [logs.without_secrets(f"cannot use {url}."), str(settings_in_force(read_settings()))]
    url = f"postgresql://nightly:{password}@db.example/metrics"
    shown.append(safe_url(url))
    try:
        # What is not refused is read as it was meant.
        assert parse_url(url).password == unquote(password)
    except DatabaseError as error:
        shown += [str(error), "".join(traceback.format_exception(error))]
    assert [piece for piece in pieces for text in shown if piece in text] == []


@pytest.mark.usefixtures("secrets")
def test_the_password_of_a_database_url_in_an_exception_is_masked(
    logger: logging.Logger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setFormatter(logs.TerminalFormatter())
    with (
        small_night(directory=tmp_path),
        logs.listening(terminal),
    ):
        try:
            try:
                raise OSError(f"no route to {DATABASE}")
            except OSError as error:
                raise ValueError(PASSWORD) from error
        except ValueError:
            logger.exception("cannot log in with %r", {"password": PASSWORD, "token": HUB_TOKEN})
    (line,) = lines(tmp_path)
    printed = capsys.readouterr().err
    for text in (json.dumps(line, ensure_ascii=False), printed):
        assert PASSWORD not in text
        assert "s3cr" not in text
        assert HUB_TOKEN not in text
        assert "no route to postgresql+psycopg://***@db.example:5432/metrics" in text
    assert line["message"] == "cannot log in with {'password': '***', 'token': '***'}"
    assert line["exception"].splitlines()[-1] == "ValueError: ***"


def test_a_line_of_the_file_carries_the_night_and_the_epoch(logger: logging.Logger, tmp_path: Path) -> None:
    logger.warning("before")
    with small_night(attempt=2, directory=tmp_path / "runs" / "r1"):
        logger.info("loading %d rows", 7)
        logs.set_epoch(3)
        logger.debug("of no interest")
        logging.getLogger("transformers.trainer").info("of no interest")
        logging.getLogger("datasets.load").warning("slow\ndisk")
        logs.set_epoch(None)
        logger.error("Grüße")
        # A thread starts without its parent's context.
        thread = threading.Thread(target=logger.warning, args=("from a thread",))
        thread.start()
        thread.join()
    logger.warning("after")
    found = lines(tmp_path / "runs" / "r1")
    night = {"pipeline": "small", "night": "2026-01-05", "run_id": "r1", "attempt": 2}
    assert [{key: line[key] for key in line if key != "time"} for line in found] == [
        {"level": "INFO", "logger": "nightgate.tests", "message": "loading 7 rows", **night, "epoch": None},
        {"level": "WARNING", "logger": "datasets.load", "message": "slow\ndisk", **night, "epoch": 3},
        {"level": "ERROR", "logger": "nightgate.tests", "message": "Grüße", **night, "epoch": None},
        {"level": "WARNING", "logger": "nightgate.tests", "message": "from a thread", **night, "epoch": None},
    ]
    assert all(line["time"].endswith("+00:00") for line in found)


def test_nights_of_one_process_have_their_own_files_and_a_second_attempt_appends(
    logger: logging.Logger, tmp_path: Path
) -> None:
    inside, done = threading.Event(), threading.Event()

    def other_night() -> None:
        with logs.night_context(pipeline="other", night="2026-01-06", run_id="r2", directory=tmp_path / "r2"):
            inside.set()
            done.wait(10)
            logger.warning("of the other night")

    other = threading.Thread(target=other_night)
    other.start()
    assert inside.wait(10)
    for attempt in (1, 2):
        with small_night(attempt=attempt, directory=tmp_path / "r1"):
            logger.warning("of this night")
    done.set()
    other.join(10)
    found = [(line["message"], line["attempt"]) for line in lines(tmp_path / "r1")]
    assert found == [("of this night", 1), ("of this night", 2)]
    assert [(line["message"], line["pipeline"]) for line in lines(tmp_path / "r2")] == [("of the other night", "other")]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device here that is always full")
def test_a_full_disk_stops_the_file_only_and_is_reported_once(
    logger: logging.Logger, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / logs.FILE).symlink_to("/dev/full")
    with small_night(directory=tmp_path):
        logger.warning("one")
        logger.warning("two")
    assert caplog.text.count("No space left on device") == 1
    assert [record.getMessage() for record in caplog.records if record.name == "nightgate.tests"] == ["one", "two"]


def test_a_night_continues_without_a_log_file_if_its_folder_cannot_be_created(
    logger: logging.Logger, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    with small_night(directory=tmp_path / "file" / "r1"):
        logger.warning("goes on")
    assert str(tmp_path / "file" / "r1" / logs.FILE) in caplog.text
    assert "goes on" in caplog.text


def test_a_terminal_gets_each_line_once_in_one_form_with_libraries_that_add_handlers() -> None:
    # As datasets and transformers do at import.
    code = f"""
        import logging, warnings
        for name, propagates in (("datasets", True), ("transformers", False)):
            logging.getLogger(name).addHandler(logging.StreamHandler())
            logging.getLogger(name).propagate = propagates
        from nightgate import logs
        logs.to_stderr()
        log = logging.getLogger("nightgate.night.steps")
        log.info("before the night")
        with logs.night_context(pipeline="small", night="2026-01-05", run_id="r1"):
            logs.set_epoch(2)
            log.info("epoch 2/3, step 7/9")
            log.debug("of no interest")
            log.warning("a batch does not fit")
            logging.getLogger("datasets.load").warning("{HUB_TOKEN} is refused")
            logging.getLogger("transformers.trainer").warning("old weights")
            warnings.warn("deprecated")
            log.info("%d %s", 1)
    """
    ran = python("-c", textwrap.dedent(code), PYTHONWARNINGS="default")
    printed = [line[9:] for line in ran.stderr.splitlines() if line[2:3] == ":"]
    assert printed == [
        "before the night",
        "[small 2026-01-05] epoch 2/3, step 7/9",
        "[small 2026-01-05, epoch 2] warning: a batch does not fit",
        "[small 2026-01-05, epoch 2] warning: *** is refused",
        "[small 2026-01-05, epoch 2] warning: old weights",
        "[small 2026-01-05, epoch 2] warning: <string>:17: UserWarning: deprecated",
    ]
    # Python itself reports a record whose arguments do not match, and nothing ends.
    assert "not enough arguments for format string" in ran.stderr


def python(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **settings}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True, env=env)


def test_records_of_the_training_process_reach_the_night_once_and_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child with the logging of the real one, which warns and fails."""
    monkeypatch.setenv("SHOP_DB_PASSWORD", "correct horse")
    code = f"""
        #!{sys.executable}
        import logging, warnings
        from nightgate import logs
        from nightgate.training import worker
        parent = worker._Parent(1)
        worker._log_to(parent)
        from transformers.utils import logging as theirs
        logger = theirs.get_logger("transformers.tokenization_utils")
        assert logs.adopt_libraries()
        parent.send("progress", phase="train", epoch=2, epochs=3, step=7, total_steps=9)
        for _ in range(3):
            logger.warning("sent {HUB_TOKEN}")
        logger.info("of no interest")
        logging.getLogger("strange.library").warning("odd")
        warnings.warn("deprecated")
        logging.getLogger("nightgate.training.loop").info("fp32 on the CPU")
        logging.getLogger("nightgate.training.loop").debug("for its own file")
        parent.send("error", error_type="training", message="gave up", next_step="")
    """
    python = tmp_path / "python"
    python.write_text(textwrap.dedent(code).lstrip())
    python.chmod(0o755)
    job = TrainJob(tmp_path / "run", 1, tmp_path / "snapshot", {}, "2026-01-05T00:00:00+00:00")
    with (
        small_night(directory=tmp_path / "run"),
        pytest.raises(TrainingError, match="gave up"),
    ):
        next(supervisor.train(job, python=str(python)))
    logging.getLogger("nightgate").setLevel(logging.NOTSET)
    found = [
        (line["level"], line["logger"], line["epoch"], line["message"].partition("UserWarning: ")[2] or line["message"])
        for line in lines(tmp_path / "run")
        if "process ended" not in line["message"]
    ]
    assert found == [
        ("WARNING", "transformers.tokenization_utils", 2, "sent ***"),
        ("WARNING", "nightgate.training.supervisor", 2, "strange.library: odd"),
        ("WARNING", "py.warnings", 2, 'deprecated\n  warnings.warn("deprecated")'),
        ("INFO", "nightgate.training.loop", 2, "fp32 on the CPU"),
    ]
    own = (job.attempt_dir / "log.txt").read_text()
    assert own.count("sent ***") == 3
    assert HUB_TOKEN not in own
    assert "for its own file" in own


@pytest.mark.flow
def test_the_page_of_a_run_has_each_line_once_without_secrets_also_with_extra_loggers(
    prefect_server: str, tmp_path: Path
) -> None:
    code = f"""
        import logging, warnings, sys
        from prefect import flow, task
        from tasks.logs import readable_logs
        from nightgate import logs

        @task
        def fails():
            raise ValueError("{DATABASE}")

        @flow
        def night():
            with readable_logs(), logs.night_context(pipeline="small", night="2026-01-05", run_id="r1"):
                log = logging.getLogger("nightgate.night.steps")
                log.info("verdict: promote")
                logs.set_epoch(2)
                log.info("epoch 2: training loss 1.0")
                log.warning("a batch does not fit")
                logging.getLogger("transformers.trainer").warning("{HUB_TOKEN}")
                logging.getLogger("transformers.trainer").info("of no interest")
                warnings.warn("deprecated")
                fails()

        state = night(return_state=True)
        logging.getLogger("nightgate.night.steps").info("of no run")
        print(state.state_details.flow_run_id)
    """
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(code))
    of_prefect = {
        "PREFECT_API_AUTH_STRING": "",
        "PREFECT_API_URL": prefect_server,
        "PREFECT_LOGGING_EXTRA_LOGGERS": "nightgate,nightgate.night.steps,transformers",
    }
    ran = python(str(script), **SETTINGS | of_prefect)
    messages = _page(prefect_server, ran.stdout.strip())
    page = sorted(message.splitlines()[0] for message in messages)
    ours = [line for line in page if "ask run" not in line and "Finished" not in line and "Beginning" not in line]
    for line in ours:
        assert page.count(line) == 1, page
    expected = [
        "[epoch 2] a batch does not fit",
        "[epoch 2] transformers.trainer: ***",
        "epoch 2: training loss 1.0",
        "verdict: promote",
    ]
    assert [line for line in ours if line in expected] == expected, page
    assert sum("UserWarning: deprecated" in line for line in ours) == 1, page
    assert not any("of no" in line for line in page), page
    for text in ("\n".join(messages), ran.stderr):
        assert "ValueError" in text
        assert "s3cr" not in text
        assert HUB_TOKEN not in text


def _page(api_url: str, run_id: str) -> list[str]:
    import httpx

    query = {"logs": {"flow_run_id": {"any_": [run_id]}}, "limit": 200}
    return [line["message"] for line in httpx.post(f"{api_url}/logs/filter", json=query).json()]
