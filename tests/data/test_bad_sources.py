"""What goes wrong with sources night by night: each case is stopped, counted or right, and never goes by unnoticed.

Eight nights of a feed of daily files are refreshed once; each test goes on from a copy. Nothing is trained.
"""

from __future__ import annotations

import contextlib
import csv
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from nightgate.data.refresh import Refreshed, refresh
from nightgate.data.snapshots import SPLITS
from nightgate.errors import DataCheckError, DataError
from nightgate.home import Home
from nightgate.pipeline_files import check_pipeline
from nightgate.schedule import Night

FIRST = date(2026, 3, 1)
NIGHTS = 8
BASE, DAILY = 1_000, 250
RESTS = frozenset({"new_rows"})
"""Allowed where a test is about other things than a night without news."""
Row = dict[str, Any]


def review(number: int) -> Row:
    """Texts that no other review resembles; ten of hundred rows have two stars, twenty three, and so on."""
    words = [f"{word}{number * factor % 9973}" for word, factor in (("kettle", 7), ("lamp", 31), ("chair", 101))]
    stars = 1 + sum(number % 100 >= limit for limit in (5, 15, 35, 60))
    return {"id": f"r{number:05d}", "text": " ".join(words), "stars": stars, "author": f"author {number % 400}"}


@dataclass
class Feed:
    """A folder of daily files, and the nights that read it."""

    folder: Path
    home: Path
    settings: dict[str, Any] = field(default_factory=dict)
    previous: Path | None = None

    def write(self, name: str, rows: Iterable[Row]) -> Path:
        path = self.folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    def read(self, name: str) -> list[Row]:
        return [json.loads(line) for line in (self.folder / f"{name}.jsonl").read_text().splitlines()]

    def edit(self, change: Callable[[Row], Row | None]) -> None:
        """Rewrite all files, a row at a time; None leaves it out."""
        for path in self.folder.glob("*.jsonl"):
            self.write(path.stem, [new for row in self.read(path.stem) if (new := change(row)) is not None])

    def night(self, day: int, **options: Any) -> Refreshed:
        document = {
            "name": "feed",
            "data": {
                # Relative: a copy has the same source.
                "source": {"kind": "files", "paths": ["feed/*"]},
                "id": "id",
                "text": "text",
                "label": "stars",
                "labels": [1, 2, 3, 4, 5],
            },
        }
        pipeline = check_pipeline(document, "feed.toml", self.settings)
        chosen = FIRST + timedelta(days=day)
        until = datetime(chosen.year, chosen.month, chosen.day, 3, 15, tzinfo=UTC)
        with contextlib.chdir(self.folder.parent):
            night = Night(chosen, "backfill", until)
            found = refresh(pipeline, night, Home(self.home, "home"), self.previous, **options)
        self.previous = found.snapshot.path
        return found


def start(folder: Path, **settings: Any) -> Feed:
    feed = Feed(folder / "feed", folder / "home", {key.replace("__", "."): value for key, value in settings.items()})
    feed.folder.mkdir(parents=True)
    feed.write("base", map(review, range(BASE)))
    feed.night(0)
    for day in range(1, NIGHTS):
        feed.write(f"day-{day}", new_rows(day))
        feed.night(day)
    return feed


def new_rows(day: int) -> list[Row]:
    begin = BASE + (day - 1) * DAILY
    return [review(number) for number in range(begin, begin + DAILY)]


@pytest.fixture(scope="module")
def week(tmp_path_factory: pytest.TempPathFactory) -> Feed:
    return start(tmp_path_factory.mktemp("feed"))


@pytest.fixture
def feed(week: Feed, tmp_path: Path) -> Feed:
    assert week.previous is not None
    for name in ("feed", "home"):
        shutil.copytree(week.folder.parent / name, tmp_path / name, copy_function=shutil.copy2)
    copied = tmp_path / "home" / week.previous.relative_to(week.home)
    return Feed(tmp_path / "feed", tmp_path / "home", dict(week.settings), copied)


def stopped(feed: Feed, day: int = NIGHTS, **options: Any) -> tuple[set[str], DataCheckError]:
    """The checks that stop the night, and its error."""
    with pytest.raises(DataCheckError) as caught:
        feed.night(day, **options)
    return {check.name for check in caught.value.checks if check.outcome == "failed"}, caught.value


def sides(refreshed: Refreshed) -> dict[str, str]:
    """The split of each row id."""
    return {row_id: split for split in SPLITS for row_id in refreshed.snapshot.rows(split, ["row_id"])["row_id"]}


def balances(refreshed: Refreshed) -> bool:
    taken = sum(part.taken for part in refreshed.parts)
    return taken == refreshed.rows_total and all(part.rows_seen == part.accounted for part in refreshed.parts)


def test_a_usual_night_goes_through(feed: Feed) -> None:
    feed.write(f"day-{NIGHTS}", new_rows(NIGHTS))
    refreshed = feed.night(NIGHTS)
    assert (refreshed.rows_new, refreshed.rows_total) == (DAILY, BASE + NIGHTS * DAILY)
    assert {check.outcome for check in refreshed.checks if check.name != "missing"} == {"passed"}
    assert balances(refreshed)


def _most_rows_vanish(feed: Feed) -> None:
    feed.edit(lambda row: row if row["id"].endswith("00") or row["id"].endswith("50") else None)


def _a_partition_is_gone(feed: Feed) -> None:
    (feed.folder / "base.jsonl").unlink()


def _a_file_is_cut_in_half(feed: Feed) -> None:
    feed.write("base", feed.read("base")[: BASE // 2])


@pytest.mark.parametrize("breaks", [_most_rows_vanish, _a_partition_is_gone, _a_file_is_cut_in_half])
def test_rows_that_vanish_stop_the_night_and_their_files_are_named(feed: Feed, breaks: Callable[[Feed], None]) -> None:
    kept = feed.folder.with_name("kept")
    shutil.copytree(feed.folder, kept)
    before = feed.previous
    breaks(feed)
    failed, error = stopped(feed)
    assert failed == {"rows", "new_rows"}
    assert "base.jsonl" in error.reason
    assert sum(part.vanished for part in error.parts) >= BASE // 2
    # Nothing was taken in: with the rows back, the next night goes on as if there had been none.
    shutil.rmtree(feed.folder)
    kept.rename(feed.folder)
    assert feed.night(NIGHTS, allowed=RESTS).snapshot.path == before


def test_rows_that_are_meant_to_vanish_are_let_through_for_one_night(feed: Feed) -> None:
    _a_partition_is_gone(feed)
    refreshed = feed.night(NIGHTS, allowed={"rows", "new_rows"})
    assert refreshed.rows_total == (NIGHTS - 1) * DAILY
    assert {check.name for check in refreshed.checks if check.outcome == "allowed"} == {"rows", "new_rows"}
    assert balances(refreshed)
    feed.write(f"day-{NIGHTS + 1}", new_rows(NIGHTS + 1))
    assert feed.night(NIGHTS + 1).rows_total == NIGHTS * DAILY


@pytest.mark.parametrize(
    ("percent", "broken", "expected"),
    [
        (30, {"stars": "great"}, {"quarantined"}),
        (95, {"stars": "great"}, {"quarantined", "new_rows"}),
        (30, {"text": None}, {"quarantined"}),
        (100, {"stars": 1}, {"labels"}),
        (100, {"stars": "moved by one"}, {"labels"}),
        (30, {"text": "No comment."}, {"repeated_text"}),
        (100, {"text": "No comment."}, {"repeated_text", "new_rows"}),
    ],
    ids=["labels", "most labels", "texts", "one label", "labels moved", "one text", "only one text"],
)
def test_new_rows_that_look_broken_stop_the_night(feed: Feed, percent: int, broken: Row, expected: set[str]) -> None:
    rows = [row | broken if at % 100 < percent else row for at, row in enumerate(new_rows(NIGHTS))]
    if broken == {"stars": "moved by one"}:
        rows = [row | {"stars": row["stars"] % 5 + 1} for row in new_rows(NIGHTS)]
    feed.write(f"day-{NIGHTS}", rows)
    failed, error = stopped(feed)
    assert failed == expected
    assert all(f"--allow-failed-check {name}" in error.next_step for name in expected)


def test_a_feed_that_is_delivered_six_times_or_hardly_at_all_stops_the_night(feed: Feed) -> None:
    feed.write(f"day-{NIGHTS}", [row for day in range(6) for row in new_rows(NIGHTS + day)])
    assert stopped(feed)[0] == {"new_rows"}
    feed.write(f"day-{NIGHTS}", new_rows(NIGHTS)[:20])
    assert stopped(feed)[0] == {"new_rows"}


def test_a_daily_feed_that_stops_is_heard_of_until_it_is_allowed_to_rest(feed: Feed) -> None:
    feed.write(f"day-{NIGHTS}", new_rows(NIGHTS))
    feed.night(NIGHTS)
    for day in (NIGHTS + 1, NIGHTS + 2):
        failed, error = stopped(feed, day)
        assert (failed, sum(part.rows_seen for part in error.parts)) == ({"new_rows"}, BASE + NIGHTS * DAILY)
    resting = feed.night(NIGHTS + 2, allowed={"new_rows"})
    assert [(check.name, check.outcome) for check in resting.checks] == [("new_rows", "allowed")]
    assert feed.night(NIGHTS + 3).rows_new == 0
    feed.write(f"day-{NIGHTS + 1}", new_rows(NIGHTS + 1))
    assert feed.night(NIGHTS + 4).rows_new == DAILY


def test_a_source_whose_labels_were_renamed_before_its_first_night_is_stopped(tmp_path: Path) -> None:
    feed = Feed(tmp_path / "feed", tmp_path / "home")
    feed.folder.mkdir()
    rows = [review(number) for number in range(2_000)]
    feed.write("all", [row if at % 20 == 0 else row | {"stars": f"{row['stars']} of 5"} for at, row in enumerate(rows)])
    failed, error = stopped(feed, 0)
    assert failed == {"quarantined"}
    assert len(error.quarantined) == 1_900


@pytest.mark.parametrize("form", ["%d-%m-%Y", "%m/%d/%Y", "%a, %d %b %Y %H:%M:%S +0000", "epoch"])
def test_times_in_another_format_stop_the_night(tmp_path: Path, form: str) -> None:
    feed = Feed(tmp_path / "feed", tmp_path / "home", {"data.time": "at"})
    feed.folder.mkdir()
    moment = datetime(2026, 2, 13, 5, tzinfo=UTC)
    shown = "1770958800" if form == "epoch" else moment.strftime(form)
    rows = [review(number) | {"at": moment.isoformat()} for number in range(500)]
    feed.write("base", rows)
    feed.night(0)
    feed.write("day-1", [row | {"at": shown} for row in new_rows(1)])
    assert stopped(feed, 1)[0] == {"quarantined"}
    # On a first night nothing is usable.
    first = Feed(feed.folder, tmp_path / "another", {"data.time": "at"})
    (feed.folder / "base.jsonl").unlink()
    with pytest.raises(DataError) as caught:
        first.night(0)
    assert {row.reason for row in caught.value.quarantined} == {"bad_time"}


def test_rows_of_the_future_are_counted_and_come_when_it_is_their_time(tmp_path: Path) -> None:
    feed = Feed(tmp_path / "feed", tmp_path / "home", {"data.time": "at"})
    feed.folder.mkdir()
    times = {0: "2099-01-01T00:00:00Z", 1: "2026-03-05T00:00:00Z"}
    feed.write("base", [review(at) | {"at": times.get(at % 50, "2026-02-01T00:00:00Z")} for at in range(500)])
    refreshed = feed.night(0)
    assert sum(part.future for part in refreshed.parts) == 20
    assert balances(refreshed)
    refreshed = feed.night(7)
    assert (sum(part.future for part in refreshed.parts), refreshed.rows_total) == (10, 490)


def test_edited_texts_of_known_ids_change_no_side(feed: Feed) -> None:
    known = sides(feed.night(NIGHTS, allowed=RESTS))
    feed.edit(lambda row: row | {"text": f"{row['text']} edited"} if int(row["id"][1:]) % 5 == 0 else row)
    refreshed = feed.night(NIGHTS + 1)
    assert refreshed.rows_total == BASE + (NIGHTS - 1) * DAILY
    assert sides(refreshed) == known


def test_a_prefix_on_every_text_changes_no_side(feed: Feed) -> None:
    known = sides(feed.night(NIGHTS, allowed=RESTS))
    feed.edit(lambda row: row | {"text": f"Review: {row['text']}"})
    assert sides(feed.night(NIGHTS + 1, allowed={"new_rows"})) == known


def test_a_prefix_on_every_text_stops_a_source_without_ids(tmp_path: Path) -> None:
    feed = start(tmp_path, data__id=None)
    feed.edit(lambda row: row | {"text": f"Review: {row['text']}"})
    assert stopped(feed)[0] == {"new_rows"}


def test_an_edit_that_is_appended_replaces_the_row(feed: Feed) -> None:
    known = sides(feed.night(NIGHTS, allowed=RESTS))
    edits = [review(number) | {"text": f"edited {number} {number * 13}"} for number in range(0, 800, 2)]
    feed.write(f"day-{NIGHTS + 1}", edits)
    refreshed = feed.night(NIGHTS + 1)
    assert refreshed.rows_total == len(known)
    assert sides(refreshed) == known
    assert sum(part.replaced for part in refreshed.parts) == 400
    assert balances(refreshed)


def test_deleted_rows_leave_and_change_no_other_side(feed: Feed) -> None:
    known = sides(feed.night(NIGHTS, allowed=RESTS))
    feed.edit(lambda row: None if int(row["id"][1:]) % 20 == 0 else row)
    left = sides(feed.night(NIGHTS + 1))
    assert len(left) == len(known) * 19 // 20
    assert left.items() <= known.items()


def test_corrected_groups_and_late_copies_change_no_side(tmp_path: Path) -> None:
    feed = start(tmp_path, data__group="author")
    known = sides(feed.night(NIGHTS, allowed=RESTS))
    feed.edit(lambda row: row | {"author": f"corrected {row['author']}"} if int(row["id"][1:]) % 7 == 0 else row)
    late = [review(number) | {"id": f"copy {number}", "author": "somebody"} for number in range(0, 300, 3)]
    feed.write(f"day-{NIGHTS + 1}", late)
    now = sides(feed.night(NIGHTS + 1, allowed={"new_rows"}))
    assert [row_id for row_id, side in now.items() if known.get(row_id, side) != side] == []


def test_a_group_that_holds_most_rows_leaves_each_split_its_share(tmp_path: Path) -> None:
    feed = Feed(tmp_path / "feed", tmp_path / "home", {"data.group": "author"})
    feed.folder.mkdir()
    feed.write("base", [review(at) | ({} if at % 4 == 0 else {"author": "everybody"}) for at in range(2_000)])
    rows = feed.night(0).snapshot.manifest["rows"]
    assert rows["train"] >= 1_500
    assert min(rows.values()) > 20


def test_one_text_with_several_labels_has_that_of_most_rows_and_its_votes_are_known(feed: Feed) -> None:
    same = review(0) | {"text": "exactly what I wanted"}
    feed.write("several", [same | {"id": f"s{at}", "stars": stars} for at, stars in enumerate((5, 5, 1))])
    refreshed = feed.night(NIGHTS, allowed={"new_rows"})
    assert balances(refreshed)
    [votes] = refreshed.votes
    assert (dict(votes.votes), votes.label) == ({"5": 2, "1": 1}, "5")
    key = int(votes.fingerprint[:16], 16)
    feed.write("several", [same | {"id": f"s{at}", "stars": 5} for at in range(3)])
    agreed = feed.night(NIGHTS + 1, allowed={"new_rows"})
    assert not agreed.votes
    assert agreed.counted is not None
    assert key in agreed.counted.tolist()


def test_the_same_bad_rows_are_found_once(feed: Feed) -> None:
    feed.write(f"day-{NIGHTS}", [row | ({"stars": 9} if at < 10 else {}) for at, row in enumerate(new_rows(NIGHTS))])
    assert len(feed.night(NIGHTS).quarantined) == 10
    assert len(feed.night(NIGHTS + 1, allowed=RESTS).quarantined) == 0


def test_a_file_without_its_last_lines_of_a_csv_is_stopped_too(tmp_path: Path) -> None:
    feed = Feed(tmp_path / "feed", tmp_path / "home")
    feed.folder.mkdir()
    path = feed.folder / "all.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(review(0)))
        writer.writeheader()
        writer.writerows(map(review, range(BASE)))
    feed.night(0)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[: BASE // 2 + 1]))
    failed, error = stopped(feed, 1)
    assert failed == {"rows"}
    assert "all.csv" in error.reason
