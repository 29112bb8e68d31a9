"""Rows of forgotten ids leave all deltas, and stay out of later snapshots and golden sets, whatever the source has."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from nightgate.config.pipeline import Pipeline
from nightgate.data.columns import take
from nightgate.data.deltas import TAKEN
from nightgate.data.golden_rows import golden_set
from nightgate.data.refresh import Refreshed, refresh
from nightgate.data.snapshots import SPLITS, Snapshot, open_snapshot, row_sums, snapshot_id
from nightgate.data.tip import keep_out
from nightgate.errors import SnapshotError
from nightgate.home import Home
from nightgate.registry.compaction import read_forest
from nightgate.registry.redaction import in_deltas, redact_deltas, rows_of
from tests.support import reviews
from tests.support.stopping import Killed, killed_at

PERSON = "00007"
WORDS = "Kim from Lund"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three files. PERSON wrote in two of them: a review that was edited later, and that somebody else has copied."""
    folder = tmp_path / "source"
    folder.mkdir()
    rows = pd.DataFrame(reviews.rows())
    rows.loc[7, "text"] = f"I am {WORDS}: it boils."
    rows[:40].to_csv(folder / "a.csv", index=False)
    rows.loc[60, "text"] = f"I am {WORDS}: it broke."
    rows[40:80].to_csv(folder / "b.csv", index=False)
    rows[80:].to_csv(folder / "c.csv", index=False)
    return folder


def pipeline(source: Path, **changes: Any) -> Pipeline:
    return reviews.pipeline(reviews.files(source / "*.csv"), data__time="created_at", **changes)


def take_in(source: Path, home: Home, number: int) -> Refreshed:
    return refresh(pipeline(source), reviews.night(number), home)


@pytest.fixture
def nights(source: Path, home: Home) -> list[Snapshot]:
    """On the second night PERSON's review has another text, which a row of b.csv has too, and a later time."""
    first = take_in(source, home, 0).snapshot
    rows = pd.read_csv(source / "a.csv", dtype=str)
    rows.loc[7, ["text", "created_at"]] = [f"I am {WORDS}: it broke.", "2026-03-01T05:00:00Z"]
    rows.to_csv(source / "a.csv", index=False)
    return [first, take_in(source, home, 1).snapshot]


def rows_in(snapshot: Snapshot) -> pd.DataFrame:
    return pd.concat([snapshot.rows(split) for split in SPLITS]).set_index("row_id").sort_index()


def texts_on_disk(home: Home) -> Iterator[str]:
    for path in home.snapshots.rglob("*.parquet"):
        yield pd.read_parquet(path).to_csv()


def test_no_version_of_the_rows_stays_and_a_copy_by_another_takes_their_place(
    nights: list[Snapshot], source: Path, home: Home
) -> None:
    folder = home.snapshots / "kettles"
    others = [rows_in(snapshot).drop(index=PERSON) for snapshot in nights]
    assert [rows_of(snapshot, {PERSON}).total() for snapshot in nights] == [1, 1]
    assert in_deltas(read_forest(folder), {PERSON}) == (2, {f"I am {WORDS}: it boils.", f"I am {WORDS}: it broke."})
    keep_out(folder, {PERSON})
    redact_deltas(folder, {PERSON})
    # The other row's own copy of the text is his.
    assert not [held for held in texts_on_disk(home) if "it boils" in held and WORDS in held]
    assert not [held for held in texts_on_disk(home) if f",{PERSON}," in held]
    for snapshot, before in zip(nights, others, strict=True):
        found = open_snapshot(snapshot.path, verify=True)
        pd.testing.assert_frame_equal(rows_in(found), before)
        assert (found.id, found.manifest["redacted"]["rows"]) == (snapshot.id, 1)
        assert found.manifest["rows_total"] == sum(found.manifest["rows"].values()) == len(before)
        index = found.chain().index()
        remaining = snapshot_id(row_sums(take(index, index["state"] == TAKEN)), found.manifest["rules"])
        assert found.manifest["redacted"]["remaining"] == remaining != found.id
    assert in_deltas(read_forest(folder), {PERSON}) == (0, set())

    after = take_in(source, home, 2)
    assert set(rows_in(after.snapshot).index) == set(others[1].index) | {"00060"}
    assert rows_in(after.snapshot).loc["00060", "text"] == f"I am {WORDS}: it broke."
    parts = {Path(part.part).name: part for part in after.parts}
    assert [parts[name].unchanged for name in ("a.csv", "b.csv", "c.csv")] == [False, False, True]
    assert (parts["a.csv"].rows_seen, parts["a.csv"].taken, parts["a.csv"].deleted) == (40, 39, 1)
    assert in_deltas(read_forest(folder), {PERSON}) == (0, set())
    again = take_in(source, home, 3)
    assert again.snapshot.id == after.snapshot.id
    assert all(part.unchanged for part in again.parts)


def test_a_copy_takes_their_place_though_only_what_is_new_in_a_table_is_read(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = pd.DataFrame(reviews.rows()).assign(gone=0)
    rows.loc[[7, 60], "text"] = f"I am {WORDS}: it broke."
    with closing(sqlite3.connect(tmp_path / "shop.db")) as connection:
        rows.to_sql("reviews", connection, index=False)
    monkeypatch.setenv("SHOP", f"sqlite:///{tmp_path / 'shop.db'}")
    table = {"kind": "sql", "url_env": "SHOP", "table": "reviews"}
    found = reviews.pipeline(table, data__time="created_at", data__updated="created_at", data__deleted="gone")
    snapshot = refresh(found, reviews.NIGHT, home).snapshot
    [taken] = {PERSON, "00060"} & set(rows_in(snapshot).index)
    [other] = {PERSON, "00060"} - {taken}
    keep_out(snapshot.path.parent, {taken})
    redact_deltas(snapshot.path.parent, {taken})
    after = rows_in(refresh(found, reviews.NIGHT, home).snapshot)
    assert set(after.index) == set(rows_in(open_snapshot(snapshot.path)).index) | {other}


def test_without_ids_of_its_own_a_row_is_forgotten_by_its_fingerprint(source: Path, home: Home) -> None:
    found = pipeline(source).model_copy(update={"data": pipeline(source).data.model_copy(update={"id": None})})
    snapshot = refresh(found, reviews.NIGHT, home).snapshot
    row_id = rows_in(snapshot).query("text == 'I am Kim from Lund: it boils.'").index[0]
    assert rows_of(snapshot, {row_id}).total() == 1
    keep_out(snapshot.path.parent, {row_id})
    redact_deltas(snapshot.path.parent, {row_id})
    assert row_id not in rows_in(open_snapshot(snapshot.path)).index
    assert not [held for held in texts_on_disk(home) if "it boils" in held]
    after = refresh(found, reviews.NIGHT, home)
    assert row_id not in rows_in(after.snapshot).index
    assert sum(part.deleted for part in after.parts) == 1


def test_forgotten_rows_are_in_no_golden_set_and_no_quarantine(source: Path, home: Home) -> None:
    bad = pd.read_csv(source / "a.csv", dtype=str)[7:9].assign(stars="3")
    bad.to_csv(source / "bad.csv", index=False)
    keep_out(home.snapshots / "kettles", {PERSON})
    found = pipeline(source, data__golden=str(source / "a.csv"))
    after = refresh(found, reviews.NIGHT, home)
    assert [row.row_id for row in after.quarantined] == ["00008"]
    golden = golden_set(found, home, after.snapshot, reviews.NIGHT)
    assert PERSON not in set(golden.rows()["row_id"])
    assert len(golden.rows()) == 39


@pytest.mark.faults
@pytest.mark.parametrize("stop", range(10))
def test_a_kill_while_deltas_are_redacted_is_made_good_by_the_same_call(
    nights: list[Snapshot], source: Path, home: Home, stop: int
) -> None:
    """Stopped at each rename and each removal in turn."""
    folder = home.snapshots / "kettles"
    keep_out(folder, {PERSON})
    with killed_at(stop, (Path, "rename"), (Path, "replace"), (shutil, "rmtree")):
        try:
            redact_deltas(folder, {PERSON})
        except Killed:
            pass
        else:
            pytest.skip("there is no such step")
    for snapshot in nights:
        open_snapshot(snapshot.path, verify=True)
    redact_deltas(folder, {PERSON})
    assert not [held for held in texts_on_disk(home) if "it boils" in held or f",{PERSON}," in held]
    for snapshot in nights:
        assert open_snapshot(snapshot.path, verify=True).manifest["redacted"]["rows"] == 1
    assert {path.name for path in (folder / "deltas").iterdir()} == set(read_forest(folder).chains)
    assert len(read_forest(folder).chains) == 2
    assert "00060" in rows_in(take_in(source, home, 2).snapshot).index


def test_a_damaged_list_of_forgotten_ids_is_an_error(source: Path, home: Home) -> None:
    keep_out(home.snapshots / "kettles", {PERSON})
    (home.snapshots / "kettles" / "forgotten.json").write_text("[")
    with pytest.raises(SnapshotError, match=r"forgotten\.json") as caught:
        refresh(pipeline(source), reviews.NIGHT, home)
    assert "forget" in caught.value.next_step
