"""Joined deltas hold the same snapshots in fewer files, and a kill while they are joined breaks nothing."""

from __future__ import annotations

import io
import shutil
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest

from nightgate.data.columns import take
from nightgate.data.deltas import TAKEN
from nightgate.data.refresh import refresh
from nightgate.data.snapshots import Snapshot, open_snapshot, row_sums, snapshot_id
from nightgate.errors import SnapshotError
from nightgate.home import Home
from nightgate.registry import compaction
from nightgate.registry.compaction import compact, read_forest
from tests.support import reviews
from tests.support.stopping import Killed, killed_at

NIGHTS = 12
PIPELINE = "kettles"


def write_source(folder: Path, number: int) -> None:
    """New rows in a file of their own; in the first file some rows are edited, deleted, or copy another's text."""
    first = pd.DataFrame(reviews.rows(120))
    first.loc[number, "text"] += f" Edited in night {number}."
    first.loc[50:53, "text"] = f"Written again in every night, now in {number}."
    first.drop(index=range(100, 100 + number)).to_csv(folder / "first.csv", index=False)
    new = pd.DataFrame(reviews.rows(200)).iloc[120 + 5 * number : 125 + 5 * number]
    new.to_csv(folder / f"night-{number:02d}.csv", index=False)


def take_in(home: Home, source: Path, number: int) -> Snapshot:
    write_source(source, number)
    pipeline = reviews.pipeline(reviews.files(source / "*.csv"))
    return refresh(pipeline, reviews.night(number), home).snapshot


def identity(snapshot: Snapshot) -> str:
    index = snapshot.chain().index()
    return snapshot_id(row_sums(take(index, index["state"] == TAKEN)), snapshot.manifest["rules"])


@pytest.fixture
def nights(home: Home, tmp_path: Path) -> dict[int, Snapshot]:
    """Snapshots of twelve nights; all but those of three were removed."""
    (tmp_path / "source").mkdir()
    found = {number: take_in(home, tmp_path / "source", number) for number in range(NIGHTS)}
    for number, snapshot in found.items():
        if number not in {1, 6, NIGHTS - 1}:
            shutil.rmtree(snapshot.path)
    return {number: found[number] for number in (1, 6, NIGHTS - 1)}


def deltas(home: Home) -> list[Path]:
    return sorted((home.snapshots / PIPELINE / "deltas").iterdir())


def test_joined_deltas_hold_the_same_snapshots(
    nights: dict[int, Snapshot], home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = home.snapshots / PIPELINE
    before = {number: reviews.all_rows(snapshot) for number, snapshot in nights.items()}
    other = Home(tmp_path / "other", home.id)
    shutil.copytree(home.root, other.root)
    places = len(nights[11].chain().index(superseded=True)["place"])
    assert not compact(folder)
    assert len(deltas(home)) == NIGHTS

    monkeypatch.setattr(compaction, "MOST_UNUSED", 1)
    monkeypatch.setattr(compaction, "LARGE", 100)
    assert compact(folder)
    assert len(deltas(home)) == 3
    for number, snapshot in nights.items():
        found = open_snapshot(snapshot.path, verify=True)
        pd.testing.assert_frame_equal(reviews.all_rows(found), before[number])
        assert identity(found) == found.id == snapshot.id
    # What came and went between two snapshots is gone.
    assert len(open_snapshot(nights[11].path).chain().index(superseded=True)["place"]) < places
    assert not compact(folder)

    source = tmp_path / "source"
    joined, apart = (take_in(one, source, NIGHTS) for one in (home, other))
    assert joined.id == apart.id
    pd.testing.assert_frame_equal(reviews.all_rows(joined), reviews.all_rows(apart))
    assert joined.manifest["rows_duplicate"] == apart.manifest["rows_duplicate"]


def test_a_large_first_delta_is_not_written_again_for_a_few_small_ones(
    nights: dict[int, Snapshot], home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "MOST_UNUSED", 1)
    monkeypatch.setattr(compaction, "LARGE", 1)
    shutil.rmtree(nights[1].path)
    first = deltas(home)[0]
    files = {path.name: path.stat().st_ino for path in first.iterdir()}
    assert compact(home.snapshots / PIPELINE)
    assert {path.name: path.stat().st_ino for path in first.iterdir()} == files
    assert len(deltas(home)) == 3
    assert identity(open_snapshot(nights[6].path, verify=True)) == nights[6].id


@pytest.mark.parametrize("damaged", ["manifest.json", "delta.json", "index.parquet", "texts.parquet"])
def test_what_is_damaged_stays_as_it_is_and_keeps_nothing_else_from_being_joined(
    nights: dict[int, Snapshot], home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: str
) -> None:
    monkeypatch.setattr(compaction, "MOST_UNUSED", 0)
    monkeypatch.setattr(compaction, "LARGE", 100)
    file = nights[6].path / damaged if damaged == "manifest.json" else deltas(home)[4] / damaged
    whole = file.read_bytes()
    file.chmod(0o644)
    file.write_bytes(silently_flipped(file) if damaged == "texts.parquet" else whole[:-9])
    first = reviews.all_rows(nights[1])
    compact(home.snapshots / PIPELINE)
    take_in(home, tmp_path / "source", NIGHTS)
    compact(home.snapshots / PIPELINE)
    pd.testing.assert_frame_equal(reviews.all_rows(open_snapshot(nights[1].path)), first)
    assert len(open_snapshot(nights[1].path).chain().deltas) == 1
    with pytest.raises(SnapshotError, match=damaged):
        open_snapshot(nights[6].path)
    file.write_bytes(whole)
    assert open_snapshot(nights[6].path).id == nights[6].id


def silently_flipped(file: Path) -> bytes:
    """The bytes of a Parquet file with one flipped bit, of which reading does not tell."""
    whole, texts = file.read_bytes(), pd.read_parquet(file)
    for place in range(4, len(whole)):
        flipped = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
        with suppress(OSError, ValueError):
            if not pd.read_parquet(io.BytesIO(flipped)).equals(texts):
                return flipped
    raise AssertionError("reading tells of every flipped bit")


@pytest.mark.slow
def test_after_many_nights_there_are_few_deltas_and_the_rows_of_a_single_refresh(home: Home, tmp_path: Path) -> None:
    source, folder = tmp_path / "source", home.snapshots / PIPELINE
    source.mkdir()
    rows_of_all = pd.DataFrame(reviews.rows(2500))
    kept: list[Path] = []
    for number in range(150):
        rows_of_all.loc[number * 10, "text"] += f" Edited in night {number}."
        rows_of_all[:1000].to_csv(source / "first.csv", index=False)
        rows_of_all[1000 + 10 * number : 1010 + 10 * number].to_csv(source / f"night-{number:03d}.csv", index=False)
        last = refresh(reviews.pipeline(reviews.files(source / "*.csv")), reviews.night(number), home).snapshot
        kept.append(last.path)
        if len(kept) > 30:
            shutil.rmtree(kept.pop(0))
        compact(folder)
        assert len(deltas(home)) <= 30 + compaction.MOST_UNUSED + 2
    for path in kept:
        found = open_snapshot(path, verify=True)
        assert identity(found) == found.id
    index = open_snapshot(kept[-1]).chain().index(superseded=True)
    # Of 150 edits those that no kept snapshot has are gone; so are those that are not joined yet.
    assert len(index["place"]) <= 2500 + 30 + compaction.MOST_UNUSED + 2 + 30
    anew = Home(tmp_path / "anew", home.id)
    (anew.snapshots / PIPELINE).mkdir(parents=True)
    shutil.copytree(folder / "splits", anew.snapshots / PIPELINE / "splits")
    fresh = refresh(reviews.pipeline(reviews.files(source / "*.csv")), reviews.night(149), anew).snapshot
    assert set(reviews.all_rows(fresh)["text"]) == set(reviews.all_rows(open_snapshot(kept[-1]))["text"])


def test_a_last_snapshot_that_was_removed_from_outside_is_written_again(
    nights: dict[int, Snapshot], home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "MOST_UNUSED", 1)
    for snapshot in nights.values():
        shutil.rmtree(snapshot.path)
    assert compact(home.snapshots / PIPELINE)
    pipeline = reviews.pipeline(reviews.files(tmp_path / "source" / "*.csv"))
    assert refresh(pipeline, reviews.night(NIGHTS), home).snapshot.id == nights[NIGHTS - 1].id


@pytest.mark.faults
@pytest.mark.parametrize("stop", range(16))
def test_a_kill_while_deltas_are_joined_breaks_no_snapshot(
    nights: dict[int, Snapshot], home: Home, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at each rename and each removal in turn."""
    monkeypatch.setattr(compaction, "MOST_UNUSED", 1)
    folder = home.snapshots / PIPELINE
    with killed_at(stop, (Path, "rename"), (Path, "replace"), (shutil, "rmtree")):
        try:
            compact(folder)
        except Killed:
            pass
        else:
            pytest.skip("there is no such step")
    for snapshot in nights.values():
        assert identity(open_snapshot(snapshot.path, verify=True)) == snapshot.id
    compact(folder)
    for snapshot in nights.values():
        assert identity(open_snapshot(snapshot.path, verify=True)) == snapshot.id
    assert {path.name for path in deltas(home)} == set(read_forest(folder).chains)
