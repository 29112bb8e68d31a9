"""Golden rows: frozen on the first night or read from a file, and never replaced silently."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import shutil
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nightgate.config.pipeline import Pipeline
from nightgate.data.golden_rows import GoldenSet, golden_rows, golden_set
from nightgate.data.refresh import refresh
from nightgate.data.snapshots import open_snapshot, write_snapshot
from nightgate.data.tip import hold_data
from nightgate.errors import DataError, SnapshotError
from nightgate.home import Home, open_home
from nightgate.label_meaning import LabelMeaning
from tests.support import reviews

pytestmark = pytest.mark.process

Tonight = Callable[..., GoldenSet]


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pipeline(source: Path, **changes: Any) -> Pipeline:
    columns = {"data__time": "created_at", "data__group": "product", "data__slices": ["shop"]}
    return reviews.pipeline(reviews.files(source), **(columns | changes))


@pytest.fixture
def tonight(tmp_path: Path, home: Home) -> Tonight:
    """Returns the golden set of a night whose source has the given rows."""

    def make(rows: list[dict[str, Any]], meaning_on: Any = lambda _: None, **changes: Any) -> GoldenSet:
        configured = pipeline(written(tmp_path / "rows.jsonl", rows), **changes)
        snapshot = refresh(configured, reviews.NIGHT, home).snapshot
        return golden_set(configured, home, snapshot, reviews.NIGHT, meaning_on)

    return make


# --- frozen ---


@pytest.mark.parametrize("limit", [64, 1000])
def test_the_first_night_freezes_test_rows_with_all_their_columns(limit: int, tonight: Tonight, home: Home) -> None:
    found = tonight(reviews.rows(600), data__golden_rows=limit)
    [snapshot] = (home.snapshots / "kettles").glob("s-*")
    test = open_snapshot(snapshot).rows("test").head(limit)
    assert found.note.startswith(f"{len(test)} test rows")
    assert found.path.parent == home.golden / "kettles"
    pd.testing.assert_frame_equal(found.rows(), test)
    assert list(found.rows()) == ["row_id", "fingerprint", "text", "label", "time", "group", "slice_shop"]


def test_later_nights_open_the_same_rows_when_the_source_has_changed(tonight: Tonight) -> None:
    first = tonight(reviews.rows(600))
    other = [{**row, "text": f"Another pan, number {index}"} for index, row in enumerate(reviews.rows(900))]
    later = tonight(other, data__golden_rows=100, split__seed=7)
    assert (later.id, later.path, later.note) == (first.id, first.path, "")
    pd.testing.assert_frame_equal(later.rows(), first.rows())


def test_other_labels_freeze_other_rows_and_the_first_rows_stay(tonight: Tonight) -> None:
    first = tonight(reviews.rows(600))
    worded = tonight(reviews.rows(600), data__labels={"1": "bad", "5": "good"})
    assert worded.path != first.path
    assert "bad, good" in worded.note
    again = tonight(reviews.rows(600))
    assert (again.id, again.path, again.note) == (first.id, first.path, "")


def test_labels_that_mean_something_else_freeze_other_rows(tonight: Tonight) -> None:
    first = tonight(reviews.rows(600))
    swapped = tonight(reviews.rows(600), data__labels={"5": "1", "1": "5"})
    assert swapped.path != first.path
    assert "mean something else" in swapped.note
    both = swapped.rows().merge(first.rows(), on="fingerprint")
    assert len(both) == len(first.rows())
    assert (both["label_x"] != both["label_y"]).all()
    again = tonight(reviews.rows(600))
    assert (again.path, again.note) == (first.path, "")


def test_rows_that_an_earlier_release_froze_stay_while_their_labels_mean_the_same(tonight: Tonight, home: Home) -> None:
    first = tonight(reviews.rows(600))
    # It named the folder by the labels alone, and stored nothing else of them.
    stored = open_snapshot(first.path)
    facts = {"label_names": ["1", "5"], "frozen": "2026-02-01"}
    name = f"frozen-{hashlib.sha256(json.dumps(['1', '5']).encode()).hexdigest()[:10]}"
    frame = stored.rows("test").assign(split="test")
    earlier = write_snapshot(home.golden / "kettles", frame, {"labels": ["1", "5"]}, facts, name=name)
    shutil.rmtree(first.path)
    asked: list[date] = []

    def meaning_on(night: date) -> LabelMeaning:
        asked.append(night)
        return LabelMeaning("stars", {"1": "1", "5": "5"})

    kept = tonight(reviews.rows(600), meaning_on=meaning_on)
    assert (kept.path, kept.note, asked) == (earlier.path, "", [date(2026, 2, 1)])
    swapped = tonight(reviews.rows(600), meaning_on=meaning_on, data__labels={"5": "1", "1": "5"})
    assert swapped.path != earlier.path


def test_labels_in_another_order_renumber_the_same_rows(tonight: Tonight) -> None:
    first = tonight(reviews.rows(600))
    turned = tonight(reviews.rows(600), data__labels=[5, 1])
    assert (turned.path, turned.note) == (first.path, "")
    assert (turned.rows()["label"].to_numpy() == 1 - first.rows()["label"].to_numpy()).all()
    assert list(turned.rows(["text"])) == ["text"]


def test_damaged_frozen_rows_are_reported_and_not_replaced(tonight: Tonight) -> None:
    first = tonight(reviews.rows(600))
    file = first.path / "rows.parquet"
    content = file.read_bytes()
    file.chmod(0o644)
    file.write_bytes(content[:-1] + b"x")
    damaged = tonight(reviews.rows(600))
    assert (damaged.id, damaged.path) == ("", None)
    assert "rows.parquet" in damaged.note
    assert "restore the folder" in damaged.note
    assert "--force" not in damaged.note
    with pytest.raises(SnapshotError):
        first.rows()
    file.write_bytes(content)
    assert tonight(reviews.rows(600)).id == first.id
    shutil.rmtree(first.path)
    assert tonight(reviews.rows(600)).id == first.id, "the same rows have the same id"


def _freeze(root: str, source: str, seed: int, gate: Any, found: Any) -> None:
    home = open_home(root)
    configured = pipeline(Path(source), split__seed=seed)
    with hold_data(home, configured.name, f"seed {seed}"):
        snapshot = refresh(configured, reviews.NIGHT, home).snapshot
    gate.wait()
    frozen = golden_set(configured, home, snapshot, reviews.NIGHT)
    found.put((frozen.id, golden_rows(frozen.path, frozen.label_names)["fingerprint"].tolist()))  # type: ignore[arg-type]


def test_processes_that_freeze_at_once_all_get_the_same_rows(tmp_path: Path, home: Home) -> None:
    source = written(tmp_path / "rows.jsonl", reviews.rows(600))
    context = multiprocessing.get_context("fork")
    gate, found = context.Barrier(4), context.Queue()
    processes = [
        context.Process(target=_freeze, args=(str(home.root), str(source), seed, gate, found)) for seed in range(4)
    ]
    for process in processes:
        process.start()
    answers = [found.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert all(answer == answers[0] for answer in answers)
    assert len(list((home.golden / "kettles").iterdir())) == 1


# --- of a file ---


def test_a_file_is_read_like_the_source_and_its_rows_are_stored_by_content(
    tonight: Tonight, tmp_path: Path, home: Home
) -> None:
    rows = [{**row, "text": f"Golden &amp; shiny, number {index}"} for index, row in enumerate(reviews.rows(100))]
    golden = written(tmp_path / "golden.jsonl", rows)
    found = tonight(reviews.rows(), data__golden=str(golden), data__golden_rows=80)
    frame = found.rows()
    assert found.note == ""
    assert len(frame) == 80
    assert frame["fingerprint"].is_monotonic_increasing
    assert frame["text"].str.fullmatch(r"Golden & shiny, number \d+").all()
    assert list(frame) == ["row_id", "fingerprint", "text", "label", "time", "group", "slice_shop"]
    again = tonight(reviews.rows(), data__golden=str(golden), data__golden_rows=80)
    assert (again.id, again.path) == (found.id, found.path)
    written(golden, rows[:70])
    fewer = tonight(reviews.rows(), data__golden=str(golden), data__golden_rows=80)
    assert fewer.path != found.path
    assert len(fewer.rows()) == 70
    assert len(list((home.golden / "kettles").iterdir())) == 2


def test_a_golden_file_is_written_as_the_source_is(tmp_path: Path, home: Home) -> None:
    rows = pd.DataFrame(reviews.rows())
    for name in ("rows.csv", "golden.csv"):
        rows.to_csv(tmp_path / name, sep=";", index=False, encoding="utf-16")
    source = reviews.files(tmp_path / "rows.csv", delimiter=";", encoding="utf-16")
    configured = reviews.pipeline(source, data__golden=str(tmp_path / "golden.csv"))
    snapshot = refresh(configured, reviews.NIGHT, home).snapshot
    assert len(golden_set(configured, home, snapshot, reviews.NIGHT, lambda _: None).rows()) == 120


def test_rows_of_the_file_that_cannot_be_used_are_counted(tonight: Tonight, tmp_path: Path) -> None:
    rows = reviews.rows(100)
    rows[3]["stars"], rows[4]["stars"], rows[5]["text"] = 9, 9, " "
    rows[6]["created_at"] = (reviews.NIGHT.data_until + timedelta(days=1)).isoformat()
    golden = written(tmp_path / "golden.jsonl", [*rows, rows[0]])
    found = tonight(reviews.rows(), data__golden=str(golden))
    assert len(found.rows()) == 96
    parts = (str(golden), "1 later than 2026-03-01 03:15", f"2 unknown_label ({golden}:4", f"1 empty_text ({golden}:6")
    assert all(part in found.note for part in parts)


def test_a_golden_file_needs_no_split_column(tonight: Tonight, tmp_path: Path) -> None:
    sides = ("train", "validation", "test")
    rows = [{**row, "side": sides[index % 4 % 3]} for index, row in enumerate(reviews.rows())]
    golden = written(tmp_path / "golden.jsonl", reviews.rows(70))
    assert len(tonight(rows, split__column="side", data__golden=str(golden)).rows()) == 70


@pytest.mark.parametrize(
    ("content", "detail", "next_step"),
    [
        (None, "no file", "data.golden"),
        ("", "empty", "data.golden"),
        ('{"text": "a"}\n', "no column", "name the columns"),
        (json.dumps({**reviews.rows(1)[0], "stars": 9}), "1 unknown_label", "the labels"),
    ],
)
def test_an_unusable_file_is_an_error_with_a_next_step(
    tonight: Tonight, tmp_path: Path, content: str | None, detail: str, next_step: str
) -> None:
    golden = tmp_path / "golden.jsonl"
    if content is not None:
        golden.write_text(content)
    with pytest.raises(DataError, match=r"^data\.golden: .*golden\.jsonl") as caught:
        tonight(reviews.rows(), data__golden=str(golden))
    assert detail in str(caught.value)
    assert next_step in caught.value.next_step


def test_golden_rows_are_numbered_by_the_given_label_names(tonight: Tonight, tmp_path: Path) -> None:
    golden = written(tmp_path / "golden.jsonl", reviews.rows(70))
    found = tonight(reviews.rows(), data__golden=str(golden))
    turned = golden_rows(found.path, ["5", "1"], ["label"])["label"].to_numpy()
    assert (turned == 1 - found.rows()["label"].to_numpy()).all()
    assert turned.dtype == np.int64
