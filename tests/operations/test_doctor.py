"""`nightgate doctor`: a healthy machine is ok, and each problem has its remedy."""

from __future__ import annotations

import json
import socket
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from syrupy.assertion import SnapshotAssertion

from nightgate.config.schedule import Schedule
from nightgate.database.connection import database_url, make_engine
from nightgate.database.schema import Attempt
from nightgate.database.transactions import Database, upgrade
from nightgate.home import Home
from nightgate.operations import database_checks, doctor
from nightgate.operations.database_checks import place_findings
from nightgate.operations.doctor import clock_finding, disk_finding, examine
from nightgate.operations.findings import Finding, Seen, file_system_of, is_network
from nightgate.operations.pipeline_checks import daylight_findings
from nightgate.registry import approvals
from tests.support import night_rows
from tests.support.night import nightgate
from tests.support.night_rows import judged_version, night, pipeline
from tests.support.slots import slot_places

pytestmark = pytest.mark.process


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
    assert {"python", "sqlalchemy", "fastapi", "prefect", "torch", "dependencies", "device", "timezones"} <= checks
    assert {"home", "disk", "database", "workers", "runs", "slots"} <= checks
    assert {"pipeline sample", "pipeline amazon-reviews-multi", "pipeline template"} <= checks


@pytest.mark.parametrize(
    ("package", "version"),
    [("sqlalchemy", "2.1.0"), ("sqlalchemy", "2.1.0b1"), ("fastapi", "0.151.0"), ("prefect", "3.9.0")],
)
@pytest.mark.usefixtures("healthy")
def test_a_version_that_breaks_silently_is_a_problem_with_the_pin_as_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: str, version: str
) -> None:
    installed = tmp_path / "site" / f"{package}-{version}.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    finding = found(package)
    assert finding.status == "problem"
    assert version in finding.found
    assert finding.remedy == f"pip install '{package}{doctor.KNOWN_BAD[package][0]}'"


def test_a_missing_database_is_no_problem_before_the_first_night_and_one_at_an_older_revision_is(home: Home) -> None:
    findings = examine()
    assert [one for one in findings if one.status == "problem"] == []
    [blank] = [one for one in findings if one.check == "database"]
    assert "nightgate run sample" in blank.remedy
    upgrade(database_url(home))
    with make_engine(database_url(home)).begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0017'")
    old = found("database")
    assert old.status == "problem"
    assert "0017" in old.found
    assert "nightgate db upgrade" in old.remedy


def test_a_missing_database_is_a_problem_where_the_home_has_runs(home: Home) -> None:
    (home.runs / "sample-20260105-c9ec2f").mkdir()
    [lost] = database_checks.examine().findings
    assert (lost.status, lost.check) == ("problem", "database")
    assert "1 runs" in lost.found
    assert "docs/restore.md" in lost.remedy


def test_several_revisions_are_a_problem_that_names_them(healthy: Home) -> None:
    with make_engine(database_url(healthy)).begin() as connection:
        connection.exec_driver_sql("INSERT INTO alembic_version VALUES ('0123456789ab')")
    finding = found("database")
    assert finding.status == "problem"
    assert "0123456789ab" in finding.found


@pytest.mark.usefixtures("healthy")
def test_an_unreachable_database_is_a_problem_that_shows_no_password(
    monkeypatch: pytest.MonkeyPatch, closed_port: int
) -> None:
    pytest.importorskip("psycopg", reason="no PostgreSQL driver: pip install 'nightgate[dev]'")
    monkeypatch.setenv("NIGHTGATE_DATABASE_URL", f"postgres://me:hush-hush@127.0.0.1:{closed_port}/metrics")
    finding = found("database")
    assert finding.status == "problem"
    assert "NIGHTGATE_DATABASE_URL" in finding.remedy
    assert "hush-hush" not in f"{finding}"


def test_a_home_that_is_a_file_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("NIGHTGATE_HOME", str(tmp_path / "taken"))
    finding = found("home")
    assert finding.status == "problem"
    assert "NIGHTGATE_HOME" in finding.remedy


@pytest.mark.usefixtures("healthy")
def test_a_pipeline_file_with_a_problem_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text('name = "broken"\n[training]\nepochs = 0\n')
    monkeypatch.setenv("NIGHTGATE_PIPELINES", str(tmp_path / "broken.toml"))
    finding = found("pipeline broken")
    assert finding.status == "problem"
    assert "training.epochs" in finding.found


def test_the_command_ends_with_exit_1_and_the_remedies_where_there_is_a_problem(
    home: Home, tmp_path: Path, closed_port: int
) -> None:
    (home.runs / "sample-20260105-c9ec2f").mkdir()
    done = nightgate("doctor", "--format", "json", cwd=tmp_path, env={"PREFECT_SERVER_API_PORT": str(closed_port)})
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    [problem] = [one for one in json.loads(done.stdout) if one["status"] == "problem"]
    assert problem["check"] == "database"
    assert "nightgate db upgrade" in problem["remedy"]
    assert done.stderr.startswith("1 problem")
    assert home.root.is_dir()


def test_the_command_ends_with_exit_0_in_an_empty_place_and_says_what_comes_next(
    environment: Path, tmp_path: Path, closed_port: int
) -> None:
    done = nightgate("doctor", cwd=tmp_path, env={"PREFECT_SERVER_API_PORT": str(closed_port), "NIGHTGATE_HOME": ""})
    assert done.returncode == 0, done.stdout
    assert "problem" not in done.stdout
    assert "nightgate run sample" in done.stdout
    assert not environment.exists()
    assert not (tmp_path / ".nightgate").exists()


# --- the checks themselves ---


def test_a_check_that_raises_is_a_finding_and_the_others_run() -> None:
    def broken() -> Seen:
        raise ZeroDivisionError("of all things")

    findings = examine(broken)
    [finding] = [one for one in findings if one.check == "prefect server"]
    assert finding.status == "problem"
    assert "ZeroDivisionError: of all things" in finding.found
    assert {"python", "device"} <= {one.check for one in findings}


def test_a_check_that_hangs_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "HANG_SECONDS", 0.2)
    examined = threading.Event()

    def hangs() -> Seen:
        examined.wait(60)
        return Seen()

    [finding] = [one for one in examine(hangs) if one.check == "prefect server"]
    examined.set()
    assert finding.status == "problem"


def test_requirements_of_an_installed_package_are_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    installed = tmp_path / "site" / "huggingface_hub-0.1.0.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: huggingface_hub\nVersion: 0.1.0\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    finding = found("dependencies")
    assert finding.status == "problem"
    assert "transformers needs huggingface-hub" in finding.found
    assert "not 0.1.0" in finding.found


# --- this machine ---


def test_no_home_is_made_by_the_doctor(environment: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    finding = found("home")
    assert (finding.status, "nightgate run sample" in finding.remedy) == ("warning", True)
    assert not environment.exists()
    monkeypatch.delenv("NIGHTGATE_HOME")
    monkeypatch.chdir(tmp_path)
    finding = found("home")
    assert finding.status == "warning"
    assert str(tmp_path / ".nightgate") in finding.found
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("free", "status"), [(20.0, "ok"), (5.0, "warning"), (1.5, "warning"), (1.0, "problem"), (0.0, "problem")]
)
def test_a_disk_that_is_nearly_full_is_found(free: float, status: str) -> None:
    assert disk_finding(round(free * doctor.GIB)).status == status


@pytest.mark.parametrize(
    ("memory", "has_driver", "status", "shown"),
    [
        pytest.param(None, False, "ok", "cpu", id="no GPU"),
        pytest.param(None, True, "warning", "NVIDIA driver", id="PyTorch without CUDA"),
        pytest.param((60 * doctor.GIB, 80 * doctor.GIB), True, "ok", "60.0 GiB of 80.0 GiB", id="a free GPU"),
        pytest.param((9 * doctor.GIB, 80 * doctor.GIB), True, "warning", "9.0 GiB of 80.0 GiB", id="a full one"),
    ],
)
def test_the_device_is_shown_with_its_free_memory(
    memory: tuple[int, int] | None, has_driver: bool, status: str, shown: str
) -> None:
    finding = doctor.device_finding("cpu, fp32: as asked", memory, has_driver=has_driver)
    assert (finding.check, finding.status, bool(finding.remedy)) == ("device", status, status != "ok")
    assert shown in finding.found


MOUNTS = [("/", "overlay"), ("/home", "ext4"), ("/srv", "ext4"), ("/srv/shared", "ext4"), ("/srv/shared", "nfs4")]


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/home/me/x", "ext4"), ("/srv/sharedx", "ext4"), ("/srv/shared/home", "nfs4"), ("/tmp", "overlay")],
)
def test_the_file_system_of_a_path_is_that_of_the_innermost_and_latest_mount(path: str, kind: str) -> None:
    assert file_system_of(Path(path), MOUNTS) == kind


def test_file_systems_of_a_network_are_known() -> None:
    assert all(map(is_network, ("nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "ceph", "fuse.glusterfs", "lustre")))
    assert not any(map(is_network, ("ext4", "xfs", "overlay", "tmpfs", "btrfs", "fuse.gocryptfs", "")))


@pytest.mark.parametrize(
    ("home", "database", "problems"),
    [
        ("/srv/shared/home", "/srv/shared/home/metrics.db", 1),
        ("/srv/shared/home", "/home/me/metrics.db", 1),
        ("/home/me/home", "/home/me/home/metrics.db", 0),
        ("/srv/shared/home", None, 0),
    ],
)
def test_sqlite_with_a_home_that_machines_share_is_a_problem(home: str, database: str | None, problems: int) -> None:
    found = list(place_findings(Path(home), Path(database) if database else None, MOUNTS))
    assert [finding.status for finding in found] == ["problem"] * problems
    assert all("NIGHTGATE_DATABASE_URL" in finding.remedy for finding in found)


@pytest.mark.parametrize(
    ("seconds", "status", "shown"),
    [
        (0.2, "ok", "0.2 s behind"),
        (-30, "ok", "30.0 s ahead"),
        (-31, "warning", "31.0 s ahead"),
        (120, "warning", "120.0 s behind"),
        (121, "problem", "121.0 s behind"),
    ],
)
def test_a_clock_that_differs_is_found(seconds: float, status: str, shown: str) -> None:
    finding = clock_finding("the database", timedelta(seconds=seconds))
    assert (finding.status, bool(finding.remedy)) == (status, status != "ok")
    assert finding.found.startswith(shown)


# --- the database ---


def findings_of(check: str) -> list[Finding]:
    return [one for one in examine() if one.check == check]


def test_the_clock_of_a_database_server_is_compared(database: Database) -> None:
    assert [one.status for one in findings_of("clock")] == (["ok"] if database.dialect == "postgresql" else [])
    assert [one.status for one in findings_of("database")] == ["ok"]


SQLITE = pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)


@SQLITE
def test_a_home_of_another_database_is_a_problem(
    database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert [one.status for one in findings_of("home shared")] == ["ok"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "home.json").write_text('{"id": "0123456789"}')
    monkeypatch.setenv("NIGHTGATE_HOME", str(tmp_path / "other"))
    [finding] = findings_of("home shared")
    assert finding.status == "problem"
    assert database.home.id[:8] in finding.found


@SQLITE
def test_two_machines_on_one_sqlite_file_are_a_warning(database: Database) -> None:
    for day, host in enumerate(("north", "south")):
        opened = night_rows.open_run(database, pipeline(f"p{day}"), night(day))

        def move(session: Any, run_id: str = opened.run_id, host: str = host) -> None:
            session.scalars(sa.select(Attempt).filter_by(run_id=run_id)).one().host = host

        database.write(move)
        [finding] = findings_of("workers")
        assert finding.status == ("warning" if day else "ok")
    assert "north, south" in finding.found


@SQLITE
def test_dead_runs_and_overdue_approvals_are_warnings_with_their_command(database: Database) -> None:
    opened, _ = judged_version(database)
    [dead] = findings_of("runs")
    assert (dead.status, dead.remedy) == ("warning", "nightgate reconcile")
    assert opened.run_id in dead.found
    patience = timedelta(seconds=-1)
    approvals.request(
        database, opened.run_id, opened.attempt, expected=None, patience=patience, reason="-", next_step="-"
    )
    other, _ = judged_version(database, name="other")
    approvals.request(database, other.run_id, 1, expected=None, patience=-patience * 60, reason="-", next_step="-")
    overdue, in_time = findings_of("approvals")
    assert (overdue.status, overdue.remedy) == ("warning", "nightgate reconcile")
    assert f"nightgate approve other --run {other.run_id}" in in_time.remedy
    assert [one.status for one in findings_of("runs")] == ["ok"]


@SQLITE
def test_slots_are_shown_with_their_queue(database: Database) -> None:
    assert [one.status for one in findings_of("slots")] == ["ok"]
    with slot_places(database.home, "gpu1", "first", "second"):
        [finding] = findings_of("slots")
    for part in ("gpu1", "1 of 1", "first", "1 waiting"):
        assert part in finding.found
    assert [one.status for one in findings_of("slots")] == ["ok"]


# --- pipelines ---


WANTING = """
name = "wanting"
[data]
source = { kind = "files", paths = ["nothing/*.csv"] }
labels = [1, 2]
[training]
base_model = "package:no_such_package/model"
[schedule]
cron = "30 2 * * *"
timezone = "Europe/Berlin"
"""


@SQLITE
def test_what_a_pipeline_lacks_is_a_problem_once_it_runs_here(
    database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "wanting.toml").write_text(WANTING)
    monkeypatch.setenv("NIGHTGATE_PIPELINES", str(tmp_path))
    by_check = {one.check: one for one in examine()}
    assert by_check["pipeline wanting"].status == "ok"
    assert by_check["model wanting"].status == by_check["data wanting"].status == "warning"
    assert "no_such_package" in by_check["model wanting"].found
    assert "nothing/*.csv" in by_check["data wanting"].found
    assert by_check["schedule wanting"].status == "warning"
    night_rows.open_run(database, pipeline("wanting"), night())
    by_check = {one.check: one for one in examine()}
    assert by_check["model wanting"].status == by_check["data wanting"].status == "problem"


@pytest.mark.usefixtures("healthy")
def test_a_model_of_the_hub_may_be_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    finding = found("model amazon-reviews-multi")
    assert finding.status == "warning"
    assert "HF_HUB_OFFLINE" in finding.found
    folder = cache / "models--microsoft--Multilingual-MiniLM-L12-H384"
    weights = folder / "snapshots" / "0123" / "pytorch_model.bin"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0123")
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(cache))
    finding = found("model amazon-reviews-multi")
    assert (finding.status, str(weights.parent) in finding.found) == ("ok", True)


AUTUMN = datetime(2026, 9, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("cron", "timezone", "dates", "remedy"),
    [
        ("30 2 * * *", "Europe/Berlin", ["2027-03-28", "01:30", "2026-10-25"], "'30 3 * * *'"),
        ("30 1 * * *", "America/New_York", ["2026-11-01"], "'30 3 * * *'"),
        ("0 0 * * *", "America/Santiago", ["2026-09-06", "2026-09-05 at 23:00"], "'0 1 * * *'"),
        ("0 2 * * SUN", "Europe/Berlin", ["2027-03-28"], "'0 3 * * SUN'"),
    ],
)
def test_a_cron_in_an_hour_that_daylight_saving_skips_or_repeats_is_a_warning_with_the_date(
    cron: str, timezone: str, dates: list[str], remedy: str, snapshot: SnapshotAssertion
) -> None:
    [finding] = daylight_findings("x", Schedule(cron=cron, timezone=timezone), AUTUMN)
    assert (finding.status, finding.check) == ("warning", "schedule x")
    assert all(date in finding.found for date in dates)
    assert f"schedule.cron = {remedy}" in finding.remedy
    assert finding.found == snapshot


@pytest.mark.parametrize(
    ("cron", "timezone"),
    [
        ("15 3 * * *", "UTC"),
        ("15 3 * * *", "Europe/Berlin"),
        ("0 3 * * *", "Europe/Berlin"),
        ("30 2 * * *", "Asia/Tokyo"),
        ("30 2 * * MON", "Europe/Berlin"),
        ("59 1 * * *", "Europe/Berlin"),
    ],
)
def test_a_cron_at_other_hours_is_no_warning(cron: str, timezone: str) -> None:
    assert list(daylight_findings("x", Schedule(cron=cron, timezone=timezone), AUTUMN)) == []


@pytest.mark.parametrize(
    ("cron", "timezone", "day"),
    [("30 2 * * *", "Europe/Berlin", "2027-03-27"), ("0 0 * * *", "America/Santiago", "2026-09-05")],
)
def test_prefect_starts_a_skipped_night_at_the_time_of_the_warning(cron: str, timezone: str, day: str) -> None:
    import asyncio

    from prefect.server.schemas.schedules import CronSchedule

    [finding] = daylight_findings("x", Schedule(cron=cron, timezone=timezone), AUTUMN)
    start = datetime.fromisoformat(f"{day}T12:00:00+00:00")
    dates = asyncio.run(CronSchedule(cron=cron, timezone=timezone).get_dates(n=1, start=start))
    assert f"{dates[0]:%H:%M}" in finding.found


# --- with nothing in reach ---


@pytest.mark.faults
def test_with_nothing_that_answers_it_takes_ten_seconds_at_most(home: Home, tmp_path: Path) -> None:
    pytest.importorskip("psycopg", reason="no PostgreSQL driver: pip install 'nightgate[dev]'")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"127.0.0.1:{silent.getsockname()[1]}"
        environment = {
            "NIGHTGATE_DATABASE_URL": f"postgres://me@{place}/metrics",
            "PREFECT_API_URL": f"http://{place}/api",
            "HF_ENDPOINT": f"http://{place}",
            "HF_HUB_OFFLINE": "0",
        }
        usual, _ = timed("doctor", cwd=tmp_path)
        took, done = timed("doctor", "--format", "json", cwd=tmp_path, env=environment)
    assert done.returncode == 1
    by_check = {one["check"]: one for one in json.loads(done.stdout)}
    assert by_check["database"]["status"] == by_check["prefect server"]["status"] == "problem"
    assert place in by_check["model amazon-reviews-multi"]["found"]
    assert home.root.is_dir()
    # All wait in parallel. On a busy machine imports take long.
    assert took < max(10, usual + 5)


def timed(*arguments: str, **options: Any) -> tuple[float, Any]:
    begun = time.monotonic()
    done = nightgate(*arguments, **options)
    return time.monotonic() - begun, done
