"""Refreshes night after night: what is read, counted, edited, deleted, remembered; what a night of before sees."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nightgate.data.columns import take
from nightgate.data.deltas import TAKEN, read_chain
from nightgate.data.refresh import Refreshed, refresh
from nightgate.data.snapshots import Snapshot, open_snapshot, row_sums, write_snapshot
from nightgate.data.tip import read_tip
from nightgate.errors import DataCheckError, DataError
from nightgate.home import Home
from nightgate.schedule import Night
from tests.support import reviews

Rows = list[dict[str, Any]]


class Shop:
    """Files of reviews, refreshed night after night."""

    def __init__(self, folder: Path, home: Home, **changes: Any) -> None:
        self.folder, self.home = folder, home
        folder.mkdir(exist_ok=True)
        source = reviews.files(folder / "*.jsonl")
        off = {f"data__checks__{name}": 1.0 for name in ("max_rows_lost", "max_label_shift", "max_repeated_text")}
        off |= {"data__checks__max_quarantined": 1.0, "data__checks__min_new_rows": 0.0}
        self.pipeline = reviews.pipeline(source, **{"data__time": "created_at", **off, **changes})

    def write(self, name: str, rows: Rows) -> None:
        (self.folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def night(self, day: int = 1, previous: Refreshed | None = None, **more: Any) -> Refreshed:
        refreshed = refresh(self.pipeline, night(day), self.home, previous and previous.snapshot.path, **more)
        self.count_again()
        return refreshed

    def count_again(self) -> None:
        """Compare what is kept of all rows, from which a night goes on, with a count of them."""
        folder = self.home.snapshots / "kettles"
        tip = read_tip(folder)
        assert tip.head is not None
        index = read_chain(folder, tip.head, verify=True).index()
        taken = take(index, index["state"] == TAKEN)
        states, labels = (np.zeros_like(tip.totals[name]) for name in ("states", "labels"))
        np.add.at(states, (index["part"], index["state"]), 1)
        np.add.at(labels, (taken["split"], taken["label"]), 1)
        assert tip.totals == {
            "head": tip.head["sha256"],
            "states": states.tolist(),
            "labels": labels.tolist(),
            "times": [taken["time"].min(), taken["time"].max()],
            "sums": row_sums(taken).tolist(),
        }

    def stored(self) -> int:
        """Bytes of all deltas."""
        files = (self.home.snapshots / "kettles" / "deltas").rglob("*.parquet")
        return sum(path.stat().st_size for path in files)


def night(day: int) -> Night:
    return reviews.night(day - 1)


def rows_of(snapshot: Snapshot) -> pd.DataFrame:
    """All rows by id, with their split."""
    return reviews.all_rows(snapshot).set_index("row_id").sort_index()


def placed(refreshed: Refreshed) -> Counter[str]:
    """Rows of the source by what became of them; their sum is checked by `PartCounts`."""
    names = ("taken", "merged", "replaced", "deleted", "quarantined", "conflicting", "future", "outside")
    return +Counter({name: sum(getattr(part, name) for part in refreshed.parts) for name in names})


@pytest.fixture
def shop(tmp_path: Path, home: Home) -> Callable[..., Shop]:
    return lambda **changes: Shop(tmp_path / "shop", home, **changes)


def test_only_files_that_changed_are_read_and_only_new_texts_are_written(shop: Callable[..., Shop]) -> None:
    kettles = shop()
    kettles.write("a", reviews.rows(1000)[:600])
    kettles.write("b", reviews.rows(1000)[600:990])
    first = kettles.night(1)
    size = kettles.stored()
    assert [(part.unchanged, part.rows_seen, part.taken) for part in first.parts] == [
        (False, 600, 600),
        (False, 390, 390),
    ]
    same = kettles.night(2, first)
    assert (same.snapshot, same.rows_new, kettles.stored()) == (first.snapshot, 0, size)
    assert [part.unchanged for part in same.parts] == [True, True]
    kettles.write("c", reviews.rows(1000)[990:])
    more = kettles.night(3, first)
    assert (more.rows_new, more.rows_total) == (10, 1000)
    assert [part.unchanged for part in more.parts] == [True, True, False]
    assert kettles.stored() - size < size / 4
    # One file rewritten with one row more: its other rows are known.
    size = kettles.stored()
    kettles.write("c", [*reviews.rows(1000)[990:], reviews.rows(1001)[-1]])
    assert kettles.night(4, more).rows_new == 1
    assert kettles.stored() - size < 8_000


def test_chunks_names_and_history_of_the_files_do_not_change_the_id(tmp_path: Path, home: Home) -> None:
    by_day = Shop(tmp_path / "by-day", home)
    for day in range(1, 5):
        by_day.write(f"{day}", reviews.rows(40 * day)[40 * (day - 1) :])
        last = by_day.night(day)
    at_once = Shop(tmp_path / "at-once", home, name="at-once")
    at_once.write("all", reviews.rows(160)[::-1])
    assert refresh(at_once.pipeline, night(4), home).snapshot.id == last.snapshot.id


def test_files_that_are_merged_and_renamed_write_no_text_again(shop: Callable[..., Shop]) -> None:
    kettles = shop()
    rows = sorted(reviews.rows(310), key=lambda row: row["created_at"])
    kettles.write("a", rows[5:150])
    kettles.write("b", rows[150:305])
    kettles.write("stays", [*rows[:5], *rows[305:]])
    first = kettles.night(1)
    size = kettles.stored()
    for name in ("a", "b"):
        (kettles.folder / f"{name}.jsonl").unlink()
    kettles.write("merged", rows[5:305])
    merged = kettles.night(2, first)
    assert merged.snapshot == first.snapshot
    assert {Path(part.part).stem: (part.rows_seen, part.vanished) for part in merged.parts} == {
        "merged": (300, 0),
        "a": (0, 0),
        "b": (0, 0),
        "stays": (10, 0),
    }
    assert kettles.stored() - size < 12_000


def test_edited_corrected_and_deleted_rows_keep_every_split(shop: Callable[..., Shop]) -> None:
    kettles = shop(data__group="product")
    rows = reviews.rows(400)
    kettles.write("a", rows)
    first = kettles.night(1)
    before = rows_of(first.snapshot)["split"]
    changed = [
        {**row, "text": f"Edited: {row['text']}"}
        if at % 4 == 0
        else {**row, "product": f"kettle {(at + 1) % 40}"}
        if at % 4 == 1
        else row
        for at, row in enumerate(rows)
        if at % 10
    ]
    kettles.write("a", changed)
    second = kettles.night(2, first)
    after = rows_of(second.snapshot)["split"]
    common = after.index.intersection(before.index)
    assert (after[common] == before[common]).all()
    assert len(common) == second.rows_total > 250
    # A group that was given another split than the text and the id of its row leaves the row out.
    assert placed(second)["conflicting"] == 360 - second.rows_total
    assert [part.vanished for part in second.parts] == [40]
    # Deleted rows come back to where they were.
    kettles.write("a", rows)
    third = rows_of(kettles.night(3, second).snapshot)["split"]
    assert (third[before.index.intersection(third.index)] == before[before.index.intersection(third.index)]).all()


def test_of_an_id_the_newest_version_counts_whenever_it_is_seen(shop: Callable[..., Shop]) -> None:
    kettles = shop()
    rows = reviews.rows(120)
    edits = [{**row, "text": f"Newer: {row['text']}", "created_at": "2026-02-28T12:00:00Z"} for row in rows[:50]]
    older = [{**row, "text": f"Older: {row['text']}", "created_at": "2025-02-28T12:00:00Z"} for row in rows[:50]]
    kettles.write("a", rows)
    first = kettles.night(1)
    kettles.write("b", edits)
    second = kettles.night(2, first)
    assert placed(second) == {"taken": 120, "replaced": 50}
    assert rows_of(second.snapshot)["text"].str.startswith("Newer").sum() == 50
    kettles.write("c", older)
    third = kettles.night(3, second)
    assert (third.snapshot, third.rows_new) == (second.snapshot, 0)
    assert placed(third) == {"taken": 120, "replaced": 100}
    # Without the edits the version before them counts again.
    (kettles.folder / "b.jsonl").unlink()
    assert kettles.night(4, third).snapshot.id == first.snapshot.id


@pytest.mark.parametrize(
    ("conflicts", "label", "counts"),
    [
        ("majority", "5", {"taken": 121, "merged": 3}),
        ("newest", "1", {"taken": 121, "merged": 3}),
        ("drop", None, {"taken": 120, "conflicting": 4}),
    ],
)
def test_the_label_of_a_text_is_voted(
    conflicts: str, label: str | None, counts: dict[str, int], shop: Callable[..., Shop]
) -> None:
    kettles = shop(data__conflicts=conflicts)
    ballots = [("v1", 5, 1), ("v2", 5, 2), ("v3", 5, 3), ("v4", 1, 4)]
    copies = [
        {
            **reviews.rows(1)[0],
            "id": name,
            "text": "A kettle.",
            "stars": stars,
            "created_at": f"2026-02-{day:02d}T00:00Z",
        }
        for name, stars, day in ballots
    ]
    kettles.write("a", [*reviews.rows(120), *copies])
    refreshed = kettles.night(1)
    assert placed(refreshed) == counts
    [votes] = refreshed.votes
    assert (votes.votes, votes.label) == ({"1": 1, "5": 3}, label)
    found = rows_of(refreshed.snapshot).query("text == 'A kettle.'")["label"].tolist()
    assert found == ([] if label is None else [("1", "5").index(label)])


def test_a_tie_goes_to_the_newest_and_corrected_test_labels_are_counted(shop: Callable[..., Shop]) -> None:
    kettles = shop()
    rows = reviews.rows(200)
    kettles.write("a", rows)
    first = kettles.night(1)
    test = rows_of(first.snapshot).query("split == 'test'")
    other = [
        {**row, "id": f"x{row['id']}", "stars": 6 - row["stars"], "created_at": "2026-02-28T20:00Z"} for row in rows
    ]
    kettles.write("b", [row for row in other if row["id"][1:] in test.index[:7]])
    second = kettles.night(2, first)
    assert second.relabelled == 7
    assert second.snapshot.manifest["test_version"] == first.snapshot.manifest["test_version"]
    assert placed(second) == {"taken": 200, "merged": 7}


def test_rows_of_the_future_come_in_on_their_night_though_their_file_is_unchanged(shop: Callable[..., Shop]) -> None:
    kettles = shop()
    late = [{**row, "id": f"late {row['id']}", "text": f"Late {row['text']}"} for row in reviews.rows(5)]
    for row in late:
        row["created_at"] = "2026-03-02T12:00:00Z"
    far = {**late[0], "id": "far", "text": "Far", "created_at": "2099-01-01T00:00:00Z"}
    kettles.write("a", [*reviews.rows(120), *late, far])
    first = kettles.night(1)
    assert placed(first) == {"taken": 120, "future": 6}
    assert kettles.night(2, first).parts[0].unchanged
    third = kettles.night(3, first)
    assert placed(third) == {"taken": 125, "future": 1}
    assert third.rows_new == 5


def test_a_night_of_before_sees_what_was_known_then(shop: Callable[..., Shop]) -> None:
    kettles = shop()
    rows = reviews.rows(140)
    for row in rows[120:]:
        row["created_at"] = "2026-03-02T12:00:00Z"
    kettles.write("a", rows[:120])
    first = kettles.night(1)
    kettles.write("b", rows[120:])
    fifth = kettles.night(5, first)
    kettles.write("a", [{**row, "text": f"Edited {row['text']}"} for row in rows[:120]])
    sixth = kettles.night(6, fifth)
    tip = (kettles.home.snapshots / "kettles" / "tip.json").read_text()
    # As the refresh of the fifth found them: not as they were edited since, and without rows of later.
    second = kettles.night(2, first)
    assert second.snapshot.id == first.snapshot.id
    third = kettles.night(3, first)
    assert third.snapshot.id == fifth.snapshot.id
    assert kettles.night(6, fifth).snapshot == sixth.snapshot
    assert (
        json.loads(tip)["parts"] == json.loads((kettles.home.snapshots / "kettles" / "tip.json").read_text())["parts"]
    )
    # Rows of a file that is gone by now are counted, though not under its name.
    (kettles.folder / "a.jsonl").unlink()
    kettles.write("c", reviews.rows(280)[140:])
    kettles.night(7, sixth)
    again = kettles.night(3, first)
    assert again.snapshot.id == fifth.snapshot.id
    assert [(part.part.rpartition("/")[2], part.taken) for part in again.parts] == [
        ("(parts that are gone)", 120),
        ("b.jsonl", 20),
        ("c.jsonl", 0),
    ]


def test_a_night_before_all_others_is_read_as_the_source_is_now_and_says_so(
    shop: Callable[..., Shop], caplog: pytest.LogCaptureFixture
) -> None:
    kettles = shop()
    kettles.write("a", reviews.rows(120))
    kettles.night(9)
    early = Night(date(2026, 2, 20), "backfill", datetime(2026, 2, 20, tzinfo=UTC))
    found = refresh(kettles.pipeline, early, kettles.home)
    assert 50 < found.rows_total < 120
    assert any("as they are now" in record.getMessage() for record in caplog.records)
    assert kettles.night(9).rows_total == 120


def test_what_fails_a_check_is_not_consumed(shop: Callable[..., Shop]) -> None:
    kettles = shop(data__checks__max_rows_lost=0.1)
    kettles.write("a", reviews.rows(400))
    kettles.write("b", reviews.rows(500)[400:])
    first = kettles.night(1)
    kettles.write("a", reviews.rows(20))
    for _ in range(2):
        with pytest.raises(DataCheckError, match=r"a\.jsonl") as caught:
            kettles.night(2, first)
    [lost, _] = caught.value.parts
    assert (lost.vanished, lost.rows_seen) == (380, 20)
    assert kettles.night(2, first, allowed=frozenset({"rows"})).rows_total == 120


def test_other_rules_that_fail_leave_what_was_known(shop: Callable[..., Shop]) -> None:
    kettles = shop()
    kettles.write("a", reviews.rows(300))
    first = kettles.night(1)
    # The same rows again: a delta that no snapshot names.
    kettles.write("b", reviews.rows(5))
    second = kettles.night(2, first)
    assert second.snapshot == first.snapshot
    with pytest.raises(DataError):
        shop(data__labels=["good", "bad"]).night(3)
    third = kettles.night(3, second)
    assert (third.snapshot, [part.unchanged for part in third.parts]) == (first.snapshot, [True, True])


def test_other_rules_are_a_new_chain_with_the_splits_of_before(shop: Callable[..., Shop]) -> None:
    kettles = shop()
    rows = reviews.rows(300)
    kettles.write("a", rows)
    before = rows_of(kettles.night(1).snapshot)["split"]
    kettles.write("a", [{**row, "text": f"Edited {row['text']}"} for row in rows])
    sliced = shop(data__slices=["shop"])
    after = rows_of(sliced.night(2).snapshot)
    assert (after["split"] == before).all()
    assert set(after["slice_shop"]) == {"north", "south"}


def test_the_splits_of_a_snapshot_of_an_earlier_release_stay(shop: Callable[..., Shop]) -> None:
    kettles = shop()
    kettles.write("a", reviews.rows(300))
    made = kettles.night(1).snapshot
    rows = reviews.all_rows(made).sort_values("fingerprint")
    turned = rows.assign(split=rows["split"].map({"train": "train", "validation": "test", "test": "validation"}))
    folder = kettles.home.snapshots / "kettles"
    shutil.rmtree(folder)
    facts = {name: made.manifest[name] for name in ("slices", "group", "test_version", "label_names")}
    old = write_snapshot(folder, turned.reset_index(drop=True), made.manifest["rules"], facts)
    edited = [{**row, "text": f"Edited {row['text']}"} if at % 3 else row for at, row in enumerate(reviews.rows(300))]
    kettles.write("a", edited)
    new = refresh(kettles.pipeline, night(2), kettles.home, old.path).snapshot
    assert (rows_of(new)["split"] == rows_of(old)["split"]).all()
    assert new.manifest["test_version"] == old.manifest["test_version"]


@pytest.mark.parametrize("lost", ["tip.json", "splits", "deltas"])
def test_a_lost_or_damaged_state_is_read_again_and_keeps_the_splits(lost: str, shop: Callable[..., Shop]) -> None:
    kettles = shop()
    rows = reviews.rows(300)
    kettles.write("a", rows)
    first = kettles.night(1)
    before = rows_of(first.snapshot)["split"]
    path = kettles.home.snapshots / "kettles" / lost
    if lost == "tip.json":
        path.write_text("{")
    elif lost == "splits":
        shutil.rmtree(path)
    else:
        next(path.rglob("index.parquet")).unlink()
    kettles.write(
        "a", [{**row, "text": f"Edited {row['text']}"} if at % 3 == 0 else row for at, row in enumerate(rows)]
    )
    after = rows_of(kettles.night(2, first).snapshot)
    assert len(after) == 300
    assert (after["split"] == before).all()


def test_a_damaged_tip_does_not_let_lost_rows_pass(shop: Callable[..., Shop]) -> None:
    kettles = shop(data__checks__max_rows_lost=0.1)
    for number, count in enumerate((280, 300), 1):
        kettles.write("a", reviews.rows(count))
        kettles.night(number)
    (kettles.home.snapshots / "kettles" / "tip.json").write_text("{")
    kettles.write("a", reviews.rows(150))
    with pytest.raises(DataCheckError, match="280 rows became 150"):
        kettles.night(3)


def test_chosen_rows_are_read_without_the_others(shop: Callable[..., Shop], tmp_path: Path) -> None:
    kettles = shop(data__id=None, data__group="product")
    kettles.write(
        "a", [{**row, "product": row["product"] if at % 2 else None} for at, row in enumerate(reviews.rows())]
    )
    made = kettles.night(1).snapshot
    whole = made.rows("train")
    assert (whole["row_id"] == whole["fingerprint"]).all()
    assert (whole["group"] == whole["fingerprint"]).sum() > 20
    old = write_snapshot(tmp_path / "old", whole.assign(split="train"), made.manifest["rules"], {"group": True})
    for snapshot in (made, old):
        few = snapshot.rows("train", ["group", "text_key", "time", "label"], at=np.array([3, 0]))
        pd.testing.assert_frame_equal(
            few.drop(columns="text_key"), whole[["group", "time", "label"]].iloc[[3, 0]].reset_index(drop=True)
        )
        assert [f"{key:016x}" for key in few["text_key"]] == [mark[:16] for mark in whole["fingerprint"].iloc[[3, 0]]]
        texts = pd.concat([batch.to_pandas() for batch in snapshot.batches(["text"])])["text"]
        assert set(texts) >= set(whole["text"])


DYING = """
import sys
from tests.data.test_incremental import night
from tests.support import dying
from nightgate.data.refresh import refresh
from nightgate.home import open_home
from nightgate.config.pipeline import Pipeline
home = open_home(sys.argv[1])
death = dying.Death(int(sys.argv[3]), home)
death.begin()
refresh(Pipeline.model_validate_json(sys.argv[2]), night(2), home)
"""


@pytest.mark.faults
@pytest.mark.process
def test_a_refresh_killed_at_any_write_is_followed_by_one_as_if_nothing_had_happened(tmp_path: Path) -> None:
    from nightgate.home import open_home

    kettles = Shop(tmp_path / "shop", open_home(tmp_path / "home"))
    kettles.write("a", reviews.rows(150))
    kettles.night(1)
    kettles.write("b", [{**row, "text": f"Edited {row['text']}"} for row in reviews.rows(60)])
    whole = Shop(tmp_path / "shop", open_home(shutil.copytree(tmp_path / "home", tmp_path / "whole")))
    expected = whole.night(2).snapshot.id
    for at in range(1, 200):
        place = shutil.copytree(tmp_path / "home", tmp_path / f"home-{at}")
        arguments = [sys.executable, "-c", DYING, place, kettles.pipeline.model_dump_json(), str(at)]
        done = subprocess.run([*map(str, arguments)], cwd=Path.cwd(), env=os.environ, check=False, timeout=120)
        again = Shop(tmp_path / "shop", open_home(place)).night(2)
        assert again.snapshot.id == expected, at
        open_snapshot(again.snapshot.path)
        folder = again.snapshot.path.parent
        assert not [path.name for path in folder.rglob(".*") if path.name != ".lock"]
        assert len(list((folder / "deltas").iterdir())) == 2
        shutil.rmtree(place)
        if done.returncode == 0:
            break
    assert at > 20
