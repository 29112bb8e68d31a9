"""What pages show, from their data to the file: compact, whole, safe with any text, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from datetime import UTC, date, datetime, timedelta
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
import time_machine
from sqlalchemy.orm import Session
from typer.testing import CliRunner

from nightgate.cli.app import app
from nightgate.database.schema import Attempt, Run
from nightgate.database.transactions import Database, prepare
from nightgate.errors import ConfigurationError
from nightgate.home import Home
from nightgate.pages import data
from nightgate.pages.columns import by_column
from nightgate.pages.data import largest_fall, page_of
from nightgate.pages.page import as_html, write_page, write_page_of_all
from nightgate.registry import freezes
from tests.support.first_night import copy_first_night
from tests.support.years import insert_nights

EVIL = "</script><script>alert(1)</script><!-- 'é\u202e\x1b[0m"


def data_of(page: str) -> dict[str, Any]:
    """The data inside a page."""
    [found] = re.findall(r'<script id="data" type="application/json">(.*?)</script>', page, flags=re.DOTALL)
    return dict(json.loads(found))


# --- columns ---


def test_columns_store_repeated_texts_once_and_empty_ones_not_at_all() -> None:
    frame = pd.DataFrame(
        {
            "night": [date(2026, 1, 5), date(2026, 1, 6), date(2026, 1, 7)],
            "status": ["held", "held", None],
            "f1": [0.612345678, np.nan, np.inf],
            "rows": pd.array([3, None, 5], dtype="Int64"),
            "at": [pd.Timestamp("2026-01-05 03:15", tz="UTC"), pd.NaT, datetime(2026, 1, 7, tzinfo=UTC)],
            "alarm": [None, None, None],
        }
    )
    stored = by_column(frame, list(frame.columns))
    assert json.loads(json.dumps(stored)) == {
        "rows": 3,
        "columns": {
            "night": ["2026-01-05", "2026-01-06", "2026-01-07"],
            "status": {"of": ["held"], "at": [0, 0, None]},
            "f1": [0.6123, None, None],
            "rows": [3, None, 5],
            "at": ["2026-01-05T03:15Z", None, "2026-01-07T00:00Z"],
        },
    }


# --- falls ---


def noisy(*levels: tuple[float, int]) -> pd.Series[float]:
    """Scores around each level for so many nights, the same every time."""
    noise = np.random.default_rng(0).normal(0, 0.004, sum(nights for _, nights in levels))
    return pd.Series(np.concatenate([np.full(nights, level) for level, nights in levels]) + noise)


def test_the_largest_fall_begins_on_the_night_from_which_scores_are_lower() -> None:
    f1 = noisy((0.60, 40), (0.45, 30), (0.44, 30))
    f1[[12, 38, 45]] = np.nan  # nights that failed
    fall = largest_fall(f1, pd.Series(0, f1.index))
    assert fall is not None
    assert (fall["n"], fall["since"]) == (40, 32)  # one of the seven nights before had no score
    assert fall["before"] == pytest.approx(0.60, abs=0.005)
    assert fall["after"] == pytest.approx(0.45, abs=0.005)


def test_noise_is_no_fall_and_scores_that_are_not_comparable_are_not_compared() -> None:
    steady = noisy((0.6, 100))
    assert largest_fall(steady, pd.Series(0, steady.index)) is None
    broken = noisy((0.6, 50), (0.4, 50))
    assert largest_fall(broken, pd.Series([0] * 50 + [1] * 50)) is None


# --- a pipeline ---


@pytest.mark.database
def test_a_page_has_all_that_the_views_have_of_its_nights(database: Database) -> None:
    name, _ = insert_nights(database, pipelines=2, nights=60)
    on_gpu = sa.update(Attempt).values(device="NVIDIA H200", busy_seconds=60.0)
    database.write(lambda session: session.execute(on_gpu))
    database.write(lambda session: session.execute(sa.update(Run).values(training_reason="due again")))
    page = page_of(database, name)
    query = "SELECT run_id, night, status, test_f1 FROM nights WHERE pipeline = :name ORDER BY night"
    nights = database.frame(query, {"name": name})
    stored = page["nights"]["columns"]
    assert page["nights"]["rows"] == len(nights) == len(stored["night"])
    assert stored["night"] == [str(night) for night in nights["night"]]
    assert "due again" in json.dumps(stored["training_reason"])
    assert stored["test_f1"] == [None if pd.isna(f1) else round(f1, 4) for f1 in nights["test_f1"]]

    def number(query: str) -> int:
        counting = f"SELECT COUNT(*) FROM {query} AND x.run_id IN (SELECT run_id FROM nights)"
        return int(database.frame(counting, {"name": name}).to_numpy()[0, 0])

    assert page["epochs"]["rows"] == number("epoch_results AS x WHERE x.pipeline = :name") > 0
    cells = number("confusion AS x WHERE x.pipeline = :name AND x.split = 'test' AND x.count > 0")
    assert page["confusion"]["rows"] == cells > 0
    scores = number(
        "slice_results AS x WHERE x.pipeline = :name AND x.split = 'test' AND x.is_best AND x.f1 IS NOT NULL"
    )
    assert sum(value is not None for one in page["slices"] for value in one["f1"]) == scores > 0
    assert page["slices"][0]["name"] == "label"
    # Runs that another of the same night replaced cost the same.
    costs = database.frame("SELECT run_id, gpu_seconds FROM nightly_runs WHERE pipeline = :name", {"name": name})
    months = page["months"]["columns"]
    assert len(costs) > len(nights) == sum(months["nights"])
    assert sum(months["gpu_seconds"]) == costs["gpu_seconds"].sum() > 0
    assert months["month"] == sorted({night[:7] for night in stored["night"]}, reverse=True)
    assert page["champions"]["rows"] == 6
    assert page["champions"]["columns"]["valid_to"][-1] is None
    for part in ("epochs", "confusion", "changes"):
        places = page[part]["columns"].get("n", [])
        assert places == sorted(places)
        assert all(0 <= place < len(nights) for place in places)


@pytest.mark.database
def test_since_leaves_earlier_nights_out_and_a_year_is_the_default(database: Database) -> None:
    [name] = insert_nights(database, pipelines=1, nights=370)
    year = page_of(database, name)
    assert (year["nights"]["rows"], year["earlier"]["nights"]) == (365, [5])
    assert f"report {name} --since {year['earlier']['first'][0]}" in as_html("Nights", year)
    everything = page_of(database, name, date.fromisoformat(year["earlier"]["first"][0]))
    assert everything["nights"]["rows"] == 370
    assert "--since" not in as_html("Nights", everything)
    later = page_of(database, name, date(2027, 3, 1))
    assert later["nights"]["columns"]["night"][0] == "2027-03-01"
    assert set(later["epochs"]["columns"]["n"]) <= set(range(later["nights"]["rows"]))
    assert page_of(database, "unknown")["nights"]["rows"] == 0
    page, newest = database.home.page(name), later["nights"]["columns"]["night"][-1]
    write_page(database, page, name)
    before = page.read_bytes()
    since = date.fromisoformat(newest) + timedelta(days=1)
    for write in (partial(write_page, pipeline=name), write_page_of_all):
        with pytest.raises(ConfigurationError, match=newest) as refused:
            write(database, page, since=since)
        assert f"--since {newest}" in str(refused.value.next_step)
    assert page.read_bytes() == before


@pytest.mark.database
def test_a_new_definition_of_the_score_is_not_named_beside_its_part_and_slices_left_out_are_counted(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    [name] = insert_nights(database, pipelines=1, nights=8)

    def work(session: Session) -> None:
        for day, changed in ((3, {"metric_key": "m-1", "test_version": "t-1"}), (6, {"metric_key": "m-2"})):
            session.execute(
                sa.update(Run).where(Run.run_id.in_([f"{name}-{later:04}" for later in range(day, 8)])).values(changed)
            )

    database.write(work)
    page = page_of(database, name)
    changes = page["changes"]["columns"]
    kinds = [changes["kind"]["of"][at] for at in changes["kind"]["at"]] if "of" in changes["kind"] else changes["kind"]
    assert [one for one in zip(changes["n"], kinds, strict=True) if one[1] != "champion"] == [
        (3, "test_version"),
        (6, "metric"),
    ]
    assert (len(page["slices"]), page["slices_left_out"]) == (8, 0)
    monkeypatch.setattr(data, "MOST_SLICES", 5)
    page = page_of(database, name)
    assert (len(page["slices"]), page["slices_left_out"]) == (5, 3)


@pytest.mark.database
def test_the_page_of_all_has_every_pipeline_those_that_need_somebody_first(database: Database) -> None:
    calm, open_, frozen = insert_nights(database, pipelines=3, nights=30)
    freezes.freeze(database, frozen, by="ada", reason="until the labels are checked")
    write_page(database, database.home.page(open_), open_)
    page = database.home.page()
    [newest] = database.frame("SELECT MAX(night) AS night FROM nights")["night"]
    with time_machine.travel(f"{newest}T12:00+00:00"):
        write_page_of_all(database, page)
    shown = data_of(page.read_text())["pipelines"]
    assert [one["pipeline"] for one in shown] == [frozen, calm, open_]
    assert [bool(one["needs"]) for one in shown] == [True, False, False]
    assert f"nightgate unfreeze {frozen}" in shown[0]["remedy"]
    assert [one["page"] for one in shown] == [None, None, f"{open_}/history.html"]
    query = "SELECT night, test_f1, champion_version FROM nights WHERE pipeline = :name ORDER BY night"
    for one in shown:
        nights = database.frame(query, {"name": one["pipeline"]})
        assert one["nights"]["columns"]["night"] == [str(night) for night in nights["night"]]
        assert one["night"] == str(nights["night"].iloc[-1])


# --- the file ---


class _Loads(HTMLParser):
    """Addresses that a page loads, handlers and inline styles, which its policy would refuse."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        loading = {"src", "srcset", "data", "style", "background"}
        self.found += [one for one in attrs if one[0] in loading or one[0].startswith("on")]
        assert tag not in {"link", "iframe", "base", "object", "img"}


def test_a_text_cannot_leave_its_place_and_the_policy_allows_its_own_scripts_alone() -> None:
    name = EVIL
    page = as_html(f"Nights of {name}", {"kind": "pipeline", "nights": {"rows": 0, "columns": {}}, "reason": EVIL})
    assert "alert(1)</script>" not in page
    assert data_of(page)["reason"] == EVIL
    assert "\x1b" not in page
    loads = _Loads()
    loads.feed(page)
    assert loads.found == []
    [policy] = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert "http" not in policy
    inside = re.findall(r"<script>(.*?)</script>|<style>(.*?)</style>", page, flags=re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256((a or b).encode()).digest()).decode() for a, b in inside]
    assert len(hashes) == 3
    assert sorted(re.findall(r"'sha256-([^']*)'", policy)) == sorted(hashes)


@pytest.mark.database
def test_a_page_links_reports_that_are_there_but_not_from_elsewhere(database: Database, tmp_path: Path) -> None:
    [name] = insert_nights(database, pipelines=1, nights=3)
    report = database.home.report(f"{name}-0001")
    report.parent.mkdir(parents=True)
    report.write_text("report")
    page = database.home.page(name)
    write_page(database, page, name)
    links = data_of(page.read_text())["nights"]["columns"]["report"]
    assert links == [None, f"../../runs/{name}-0001/report.html", None]
    assert (page.parent / links[1]).is_file()
    write_page(database, tmp_path / "elsewhere.html", name)
    assert data_of((tmp_path / "elsewhere.html").read_text())["nights"]["columns"]["report"] == [None] * 3


# --- the command ---


@pytest.mark.parametrize(
    ("arguments", "next_step"),
    [
        ([], "--all"),
        (["sample", "--all"], "--all"),
        (["--all", "--examples", "3", "--output", "page.html"], "name the pipeline"),
        (["sample", "--examples", "3"], "--output"),
        (["no-such"], "sample"),
    ],
)
def test_what_no_page_can_be_made_of_is_refused(arguments: list[str], next_step: str) -> None:
    done = CliRunner().invoke(app, ["report", *arguments])
    assert done.exit_code == 2
    assert next_step in done.stderr


def test_where_no_page_can_be_is_an_error(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(home)
    monkeypatch.setenv("NIGHTGATE_HOME", str(home.root))
    here = tmp_path / "here"
    (here / "folder").mkdir(parents=True)
    (here / "file").write_text("as it was")
    monkeypatch.chdir(here)
    nowhere = ["file/page.html", "/proc/x/page.html", "a" * 300]
    of_page = [(["report", "--all", "--output"], place) for place in ["folder", ".", *nowhere]]
    for command, place in [*of_page, *((["db", "export"], place) for place in nowhere)]:
        done = CliRunner().invoke(app, [*command, place])
        assert done.exit_code == 2, (command, place)
        assert place in done.stderr
        assert "next: name a" in done.stderr
    assert {path.name for path in here.rglob("*")} == {"folder", "file"}
    assert (here / "file").read_text() == "as it was"


@pytest.mark.process
def test_a_night_leaves_its_pipelines_page_and_examples_come_only_when_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    night = copy_first_night(tmp_path / "home")
    page = night.home / "reports" / "small" / "history.html"
    assert data_of(page.read_text())["nights"]["rows"] == 1
    monkeypatch.setenv("NIGHTGATE_HOME", str(night.home))
    page.unlink()
    done = CliRunner().invoke(app, ["report", "small"])
    assert (done.exit_code, done.stdout.strip()) == (0, str(page))
    plain = data_of(page.read_text())
    assert "examples" not in plain
    shown = tmp_path / "with texts.html"
    done = CliRunner().invoke(app, ["report", "small", "--examples", "4", "--output", str(shown)])
    assert done.exit_code == 0, done.stderr
    assert (page.stat().st_mode & 0o044, shown.stat().st_mode & 0o777) == (0o044, 0o600)
    examples = data_of(shown.read_text())["examples"]
    assert 1 <= examples["rows"] <= 4
    assert set(examples["columns"]) == {"true_label", "predicted_label", "text"}
    assert all(text and text not in page.read_text() for text in examples["columns"]["text"])
