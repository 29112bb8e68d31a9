"""The champion on rows that came since it was chosen: which rows count, when an alarm is raised, and what is kept."""

from __future__ import annotations

import csv
import shutil
import threading
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nightgate.config.pipeline import Pipeline
from nightgate.data.refresh import refresh
from nightgate.database.connection import database_url
from nightgate.database.transactions import Database, upgrade
from nightgate.home import Home, open_home
from nightgate.metrics import classification
from nightgate.night import champion_evaluation
from nightgate.night.champion_evaluation import evaluate_champion, evaluate_newest, newest_snapshot
from nightgate.night.night import run_night
from nightgate.pipeline_files import check_pipeline
from nightgate.registry import data_retention
from nightgate.registry.champions import load_champion
from nightgate.runs.evaluations import Evaluation
from nightgate.schedule import chosen_night, tonight
from nightgate.training.protocol import ScoreJob, ScoreResult
from nightgate.training.scoring import score_models
from tests.support.tiny import tiny_pipeline, write_tiny_reviews

pytestmark = pytest.mark.process

GATE = {"policy": "threshold_only", "max_calibration_error": 1.0, "max_share_gap": 1.0, "max_latency_ratio": 100.0}


class Site:
    """A pipeline `tiny` whose night of 5 January promoted version 1; rows are appended to its file."""

    def __init__(self, home: Path, folder: Path, pipeline: Pipeline) -> None:
        self.home: Home = open_home(home)
        self.file, self.pipeline = folder / "reviews.csv", pipeline
        self._draws = folder / "more.csv"

    def rows(self, seed: int, num_rows: int) -> list[dict[str, str]]:
        write_tiny_reviews(self._draws, num_rows, seed)
        found = list(csv.DictReader(self._draws.read_text(encoding="utf-8").splitlines()))
        return [row | {"id": f"{seed}-{row['id']}", "text": f"{row['text']} {seed}"} for row in found]

    def add(self, rows: list[dict[str, str]]) -> None:
        """Rows that the file has by their ids are replaced."""
        held = {row["id"]: row for row in csv.DictReader(self.file.read_text(encoding="utf-8").splitlines())}
        held |= {row["id"]: row for row in rows}
        with self.file.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["id", "text", "stars"])
            writer.writeheader()
            writer.writerows(held.values())

    def evaluate(self, **settings: Any) -> Evaluation:
        """The champion on what the file holds now."""
        snapshot = refresh(self.pipeline, tonight(self.pipeline.schedule), self.home).snapshot
        pipeline = self.pipeline.model_copy(update={"gate": self.pipeline.gate.model_copy(update=settings)})
        with Database.open(self.home) as db:
            [found] = evaluate_champion(db, pipeline, snapshot)
        return found


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Pipeline]]:
    folder = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NIGHTGATE_HOME", str(folder / "home"))
        upgrade(database_url(open_home()))
        pipeline = tiny_pipeline(folder, rows=1500, epochs=2)
        pipeline = check_pipeline(pipeline.model_dump(mode="json", exclude_unset=True) | {"gate": GATE}, "tiny")
        ended = run_night(pipeline, chosen_night(pipeline.schedule, date(2026, 1, 5)))
        assert ended.status == "promoted", ended.reason
        yield folder, pipeline


@pytest.fixture
def site(first: tuple[Path, Pipeline], environment: Path, tmp_path: Path) -> Site:
    folder, pipeline = first
    shutil.copytree(folder / "home", environment, symlinks=True)
    shutil.copy(folder / "reviews.csv", tmp_path)
    source = pipeline.data.source.model_copy(update={"paths": (str(tmp_path / "reviews.csv"),)})
    data = pipeline.data.model_copy(update={"source": source})
    return Site(environment, tmp_path, pipeline.model_copy(update={"data": data}))


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of rows of each scoring, which this process does as its child would."""
    counts: list[int] = []

    def score(job: ScoreJob, **_: Any) -> ScoreResult:
        counts.append(sum(len(places) for places in (job.places or {}).values()))
        return score_models(job, lambda _: None)

    monkeypatch.setattr(champion_evaluation.supervisor, "score_models", score)
    return counts


def test_rows_count_from_when_their_label_is_known_are_scored_once_and_a_fall_raises_the_alarm(
    site: Site, scored: list[int]
) -> None:
    # Straight after the promotion nothing has come.
    none = site.evaluate()
    assert (none.rows, none.f1, none.alarms) == (0, None, ())

    day_6 = site.rows(6, 130)
    site.add([row | {"stars": ""} for row in day_6[:10]] + day_6[10:])
    first = site.evaluate()
    assert (first.rows, first.alarms, first.model_version, first.role) == (120, (), 1, "champion")
    assert first.rows_from is not None
    assert first.rows_to is not None
    assert first.rows_from < first.rows_to
    names = site.pipeline.data.label_names
    labels = {"1": "bad", "2": "middling", "3": "good"}
    predicted = [one.label for one in load_champion("tiny").predict([row["text"] for row in day_6[10:]])]
    true = np.array([names.index(labels[row["stars"]]) for row in day_6[10:]])
    own = classification.score(true, np.array([names.index(name) for name in predicted]), len(names))
    assert (first.f1, first.accuracy) == (pytest.approx(own.f1_weighted), pytest.approx(own.accuracy))
    assert site.evaluate() == first
    # On other terms it is judged again, by the same predictions.
    stricter = site.evaluate(min_f1=0.99)
    assert (stricter.f1, stricter.alarms, stricter.min_f1) == (first.f1, ("below_min_f1",), 0.99)

    # Late labels of rows that an earlier snapshot had without them.
    site.add(day_6)
    assert site.evaluate().rows == 130

    site.add([row | {"stars": str(int(row["stars"]) % 3 + 1)} for row in site.rows(8, 120)])
    fallen = site.evaluate()
    assert (fallen.rows, fallen.alarms) == (250, ("champion_dropped",))
    assert fallen.fall is not None
    assert fallen.fall > 4.5
    assert scored == [120, 10, 120]

    # Predictions are kept to save time alone: without them all rows are scored again.
    [stored] = site.home.runs.glob("*/evaluation/predictions.npz")
    stored.write_bytes(b"damaged")
    again = site.evaluate(min_f1=0.99)
    assert (again.rows, again.f1, again.fall) == (fallen.rows, fallen.f1, fallen.fall)
    assert scored == [120, 10, 120, 250]
    # Of another machine, with another precision: for a new row all are scored again.
    with np.load(stored) as kept:
        np.savez(stored, **(dict(kept) | {"precision": "bf16"}))
    site.add(site.rows(9, 1))
    assert (site.evaluate().rows, scored[4:]) == (251, [1, 251])
    with Database.open(site.home) as db:
        found = db.frame("SELECT rows, precision FROM champion_evaluations ORDER BY rows_to")
        assert found["rows"].tolist() == [0, 120, 130, 250, 251]
        assert found["precision"].dropna().tolist() == ["fp32"] * 4, "none without rows"
        slices = db.frame("SELECT * FROM champion_evaluation_slices WHERE slice_name = 'label'")
        assert slices.groupby("snapshot_id")["support"].sum()[fallen.snapshot_id] == 250


def test_retention_waits_for_an_evaluation_on_its_own(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deltas that are joined, or a snapshot that is removed, between opening and scoring it would end it."""
    site.add(site.rows(6, 20))
    refresh(site.pipeline, tonight(site.pipeline.schedule), site.home)
    score = champion_evaluation.supervisor.score_models
    with Database.open(site.home) as db:
        sweep = threading.Thread(target=data_retention.sweep, args=(db, site.pipeline))

        def beside_a_sweep(job: Any, **options: Any) -> Any:
            sweep.start()
            sweep.join(1)
            assert sweep.is_alive()
            return score(job, **options)

        monkeypatch.setattr(champion_evaluation.supervisor, "score_models", beside_a_sweep)
        [found] = evaluate_newest(db, site.pipeline)
        assert (found.rows, found.is_whole) == (20, True)
        sweep.join(60)
        assert not sweep.is_alive()


@pytest.mark.usefixtures("scored")
def test_rows_that_the_version_learnt_or_was_chosen_by_do_not_count(site: Site) -> None:
    snapshot = newest_snapshot(site.home, "tiny")
    learnt, judged = snapshot.rows("train").iloc[0], snapshot.rows("test").iloc[0]
    added = [
        {"id": learnt["row_id"], "text": "quite another text under the same id", "stars": "1"},
        {"id": judged["row_id"], "text": "one more text under the id of a test row", "stars": "1"},
        {"id": "new", "text": f"{learnt['text'].upper()}!!", "stars": "1"},
        {"id": "newer", "text": learnt["text"], "stars": "1"},
    ]
    site.add(added)
    assert site.evaluate().rows == 0
    site.add(site.rows(7, 30))
    model = site.home.models / "tiny" / "v0001"
    model.rename(model.with_name("away"))
    broken = site.evaluate()
    assert (broken.rows, broken.f1, broken.alarms) == (30, None, ())
    assert "cannot be used" in broken.reason
    # It is not evaluated until it has its files.
    model.with_name("away").rename(model)
    few = site.evaluate()
    assert (few.rows, few.alarms) == (30, ())
    assert few.f1 is not None
    assert "30 of 100 rows" in few.reason
