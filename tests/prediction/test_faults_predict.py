"""A prediction that is killed at any point goes on when it is repeated, and one version predicts all of a run."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from nightgate.database.transactions import Database
from nightgate.home import open_home
from nightgate.models.classifier import Classifier
from nightgate.prediction import rows
from nightgate.prediction.predict import predict
from nightgate.registry.champions import promote_manually, resolve_version
from nightgate.training.predicting import predictor
from nightgate.training.protocol import PredictJob
from tests.support.first_night import copy_first_night
from tests.support.night import command, nightgate
from tests.support.stand_in import stand_in

pytestmark = [pytest.mark.process, pytest.mark.faults]

NUM_ROWS = 20_000


@dataclass(frozen=True)
class Site:
    folder: Path
    home: Path
    pipeline: Path
    expected: pa.Table
    """Predictions of an uninterrupted run, without their times."""


def untimed(table: pa.Table) -> pa.Table:
    return table.drop_columns(["predicted_at"]).sort_by("origin")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("kill")
    first = copy_first_night(folder / "home")
    with (folder / "new.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["review_id", "text"])
        writer.writerows([f"n{row}", "" if row % 50 == 7 else f"it broke after {row} days"] for row in range(NUM_ROWS))
    done = nightgate(*arguments(first.pipeline, folder, "whole.parquet"), cwd=folder, env=environment(folder))
    assert done.returncode == 0, done.stderr
    expected = untimed(pq.read_table(folder / "whole.parquet"))
    assert expected.num_rows == NUM_ROWS
    return Site(folder, first.home, first.pipeline, expected)


def arguments(pipeline: Path, folder: Path, output: str) -> list[object]:
    return ["predict", pipeline, "--input", folder / "new.csv", "--output", output]


def environment(folder: Path) -> dict[str, str]:
    return {"NIGHTGATE_HOME": str(folder / "home"), "SHOP_URL": f"sqlite:///{folder / 'shop.db'}"}


def parts(home: Path) -> int:
    return len([*home.glob("predictions/small/*/*.parquet")])


MOMENTS: dict[str, Callable[[Site], bool]] = {
    "rows are read": lambda site: bool([*site.home.glob("predictions/small/*/*.rows")]),
    "one window is done": lambda site: parts(site.home) == 1,
    "all but one are done": lambda site: parts(site.home) == 4,
    "the output is written": lambda site: parts(site.home) == 5,
}


@pytest.mark.parametrize(
    ("moment", "output"),
    [
        ("rows are read", "killed.parquet"),
        ("one window is done", "killed.csv"),
        ("all but one are done", "SHOP_URL:predicted"),
        *(("the output is written", output) for output in ("killed.parquet", "killed.jsonl", "SHOP_URL:predicted")),
    ],
)
def test_a_killed_run_goes_on_and_ends_as_an_uninterrupted_one(site: Site, moment: str, output: str) -> None:
    own = {**os.environ, **environment(site.folder), "PYTHONPATH": str(Path(__file__).parents[2])}
    killed = subprocess.Popen(
        command(*arguments(site.pipeline, site.folder, output)), cwd=site.folder, env=own, stderr=subprocess.DEVNULL
    )
    while not MOMENTS[moment](site):
        assert killed.poll() is None
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    kept, at = parts(site.home), time.time()
    done = nightgate(*arguments(site.pipeline, site.folder, output), cwd=site.folder, env=environment(site.folder))
    assert done.returncode == 0, done.stderr
    found = read(site.folder, output)
    assert untimed(found).cast(site.expected.schema) == site.expected
    times = sorted({moment.timestamp() for moment in found["predicted_at"].to_pylist()})
    # One time a window: those that were done before were not predicted again.
    assert (len(times), sum(one < at for one in times)) == (5, kept)
    assert [*site.home.glob("predictions/small/*")] == []
    assert [*site.folder.glob(".killed*")] == []
    for left in site.folder.glob("killed.*"):
        left.unlink()


def read(folder: Path, output: str) -> pa.Table:
    if output.endswith(".parquet"):
        return pq.read_table(folder / output)
    schema = pq.read_schema(folder / "whole.parquet")
    if output.endswith(".jsonl"):
        import pandas as pd

        lines = (folder / output).read_text(encoding="utf-8").splitlines()
        frame = pd.DataFrame(map(json.loads, lines))
        return pa.Table.from_pandas(
            frame.assign(predicted_at=pd.to_datetime(frame["predicted_at"])), schema, preserve_index=False
        )
    if output.endswith(".csv"):
        options = pa.csv.ConvertOptions(column_types=schema, strings_can_be_null=True)
        return pa.csv.read_csv(folder / output, convert_options=options)
    import sqlite3

    import pandas as pd

    with sqlite3.connect(folder / "shop.db") as connection:
        frame = pd.read_sql_query("SELECT * FROM predicted", connection, parse_dates={"predicted_at": {"utc": True}})
    connection.close()
    return pa.Table.from_pandas(frame, schema, preserve_index=False)


def test_a_promotion_in_the_middle_changes_nothing_of_a_run(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = nightgate(
        *("run", site.pipeline, "--night", "2026-01-06", "--no-prefect", "--set", "gate.min_f1=1.0"),
        cwd=site.folder,
        env=environment(site.folder),
    )
    assert done.returncode == 0, done.stderr
    monkeypatch.setenv("NIGHTGATE_HOME", str(site.home))
    monkeypatch.setattr(rows, "WINDOW_ROWS", 2)
    home = open_home(site.home)

    def texts() -> Iterator[str]:
        yield from ("it broke", "fits well", "fine")
        with Database.open(home) as db:
            promote_manually(db, home, "small", 2, reason="a test", by="ada")
        yield from ("too small", "great", "bad")

    for version in (1, 2):
        lines = texts() if version == 1 else ["fine"] * 3
        predict("small", rows.rows_of_lines(lines, "stdin"), str(tmp_path / "out.parquet"), with_text=True)
        assert set(pq.read_table(tmp_path / "out.parquet")["model_version"].to_pylist()) == {version}


def test_a_process_that_hangs_is_started_again_and_takes_up_its_texts(site: Site, tmp_path: Path) -> None:
    home = open_home(site.home)
    with Database.open(home) as db:
        version = resolve_version(db, "small", 1).folder(home)
    texts = [f"it broke after {row} days" for row in range(70)]
    python = stand_in(tmp_path / "python", hangs=1)
    job = PredictJob(version, tmp_path, 16, len(texts))
    with predictor(job, python=python, stall_seconds=2) as probabilities:
        found = [probabilities(texts[:3]), probabilities(texts[3:])]
    expected = Classifier.open(version, device="cpu").probabilities(texts)
    assert [(len(some), precision) for some, precision in found] == [(3, "fp32"), (67, "fp32")]
    assert abs(found[0][0] - expected[:3]).max() < 1e-5
    assert abs(found[1][0] - expected[3:]).max() < 1e-5


@pytest.mark.skipif(os.geteuid() != 0 or not Path("/proc/mounts").exists(), reason="needs root to mount a small disk")
def test_a_full_disk_loses_nothing_that_is_done(site: Site, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", small], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("this system does not let us mount a small disk")
    try:
        call = arguments(site.pipeline, site.folder, str(small / "out.csv"))
        done = nightgate(*call, cwd=site.folder, env=environment(site.folder))
        assert (done.returncode, done.stderr.count("error: "), done.stderr.count("next: ")) == (1, 1, 1), done.stderr
        assert "No space left" in done.stderr
        assert ([*small.iterdir()], parts(site.home)) == ([], 5)
        subprocess.run(["mount", "-o", "remount,size=40m", small], check=True)
        before = time.time()
        done = nightgate(*call, cwd=site.folder, env=environment(site.folder))
        assert done.returncode == 0, done.stderr
        found = pa.csv.read_csv(small / "out.csv")
        assert found.num_rows == NUM_ROWS
        assert max(moment.timestamp() for moment in found["predicted_at"].to_pylist()) < before
    finally:
        subprocess.run(["umount", small], check=True)
