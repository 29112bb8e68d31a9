"""`nightgate check`: it says what the night then does, beside simple models, and writes nothing."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score
from typer.testing import CliRunner

from nightgate.analysis.power import newest_power
from nightgate.cli.app import app
from nightgate.config.gate import Gate
from nightgate.config.pipeline import Pipeline
from nightgate.data.refresh import refresh
from nightgate.database.transactions import Database
from nightgate.home import Home
from nightgate.schedule import tonight
from nightgate.setup.baseline import commonest_f1, tfidf
from nightgate.setup.check import FAILS, check
from tests.support import reviews
from tests.support.judged_nights import Model, judged_night


def values(pipeline: Pipeline, db: Database | None = None) -> dict[tuple[str, str], Any]:
    return {(fact.about, fact.name): fact.value for fact in check(pipeline, db)}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def found_by(pipeline: Pipeline, home: Home) -> dict[tuple[str, str], Any]:
    """The same facts of a real refresh."""
    refreshed = refresh(pipeline, tonight(pipeline.schedule), home)
    facts = {("rows", "taken"): refreshed.rows_total, ("rows", "seen"): sum(one.rows_seen for one in refreshed.parts)}
    facts |= {("split", split): count for split, count in refreshed.snapshot.manifest["rows"].items()}
    counts = refreshed.snapshot.manifest["label_counts"].values()
    return facts | {("label", label): sum(one[label] for one in counts) for label in pipeline.data.label_names}


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_it_finds_what_the_night_then_takes_in(database: Database, tmp_path: Path) -> None:
    rows = reviews.rows(400)
    write(tmp_path / "a.csv", [*rows[:300], rows[5] | {"id": "x", "stars": 9}, rows[6] | {"id": "y", "text": " "}])
    pipeline = reviews.pipeline(reviews.files(tmp_path / "*.csv"), data__time="created_at", data__slices=["shop"])
    first = values(pipeline)
    assert not database.home.snapshots.exists() or not list(database.home.snapshots.iterdir())
    assert first.items() >= found_by(pipeline, database.home).items()
    assert (first["quarantine", "unknown_label"], first["quarantine", "empty_text"]) == (1, 1)
    assert (first["column", "slices"], first["time", "last"]) == ("shop", "2026-02-28T23:00:00+00:00")

    # On the next night a text is edited, which would give its row another split by hash, and rows are new.
    edited = [row | {"text": f"{row['text']} Edited."} for row in rows[:300]]
    write(tmp_path / "a.csv", edited)
    write(tmp_path / "b.csv", rows[300:])
    before = tree(database.home.root)
    with_memory, without = values(pipeline, database), values(pipeline)
    assert tree(database.home.root) == before
    splits = [("split", name) for name in ("train", "validation", "test")]
    assert [with_memory[key] for key in splits] != [without[key] for key in splits]
    assert with_memory.items() >= found_by(pipeline, database.home).items()


def test_a_data_check_that_would_end_the_night_fails_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = reviews.rows(200)
    write(tmp_path / "a.csv", [*rows, *(row | {"id": f"{n}", "stars": 7} for n, row in enumerate(rows[:60]))])
    source = f'{{ kind = "files", paths = ["{tmp_path / "a.csv"}"] }}'
    (tmp_path / "kettles.toml").write_text(
        f'name = "kettles"\n[data]\nsource = {source}\nid = "id"\nlabel = "stars"\nlabels = [1, 5]\n'
        "near_duplicates = false\n[split]\nvalidation = 0.2\ntest = 0.2\n"
    )
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["check", "kettles.toml", "--format", "json"])
    assert done.exit_code == 1
    facts = {(one["about"], one["name"]): one["value"] for one in json.loads(done.stdout)}
    assert (facts["data check", "quarantined"], facts["data check", "repeated_text"]) == (FAILS, "passed")
    assert "--allow-failed-check quarantined" in done.stderr
    assert not (tmp_path / "home").exists()
    passed = CliRunner().invoke(app, ["check", "kettles.toml", "--format", "csv"])
    assert passed.stdout.startswith("about,name,value,note")


@pytest.mark.parametrize("average", ["weighted", "macro"])
def test_the_baselines_are_scored_as_candidates_are(average: Any) -> None:
    rng = np.random.default_rng(3)
    labels = rng.choice(3, 900, p=[0.2, 0.5, 0.3])
    words = np.array(["dreadful", "fair", "lovely"])
    # A tenth of the texts say what another label would.
    said = np.where(rng.random(900) < 0.1, rng.permutation(labels), labels)
    texts = [f"{words[one]} kettle {rng.integers(50)}" for one in said]
    true, gate = labels[600:], Gate(average=average)
    commonest, constant = commonest_f1(true, 3, gate)
    assert commonest == 1
    assert constant == pytest.approx(f1_score(true, np.ones(300), average=average, zero_division=0))
    found = tfidf(texts[:600], labels[:600], texts[600:], true, 3, gate)
    assert found.f1.value == pytest.approx(f1_score(true, said[600:], average=average), abs=0.03)
    assert found.f1.interval is not None
    assert 0 < found.disagreement < 0.2


def test_texts_without_words_have_a_baseline_too() -> None:
    texts, labels = ["+", "-"] * 40, np.array([0, 1] * 40)
    assert tfidf(texts, labels, texts, labels, 2, Gate()).f1.value == 1.0


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_what_the_gate_could_see_comes_from_the_newest_night_that_compared_models(
    database: Database, tmp_path: Path
) -> None:
    write(tmp_path / "a.csv", reviews.rows(300))
    pipeline = reviews.pipeline(reviews.files(tmp_path / "a.csv"), name="reviews", gate__confidence=0.9)
    key = ("gate", "smallest detectable gain")
    guessed = values(pipeline)[key]
    judged_night(database, 1, Model("second", 0.65), judged_night(database, 0, Model("first", 0.7)))
    found = values(pipeline, database)
    rows = found["gate", "test rows"]
    power = newest_power(database, "reviews", {"gate.confidence": 0.9})
    assert found[key] == pytest.approx(power.detectable_with(rows))
    assert found[key] != guessed
