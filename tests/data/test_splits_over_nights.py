"""No row changes split over nights of a growing, edited source, and no model sees a near-copy of a test row."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest

from nightgate.config.checks import CheckName
from nightgate.data.refresh import refresh
from nightgate.data.rules import SPLITS, rules_of, sides_of
from nightgate.data.snapshots import Snapshot, write_snapshot
from nightgate.home import Home
from nightgate.registry.leakage import Line, keys_of, trained_on
from nightgate.text_rules import canonical_text, fingerprint
from tests.support import reviews
from tests.support.near_copies import near_copy, review

Row = Mapping[str, Any]
ALLOWED = frozenset(get_args(CheckName))
"""All data checks: what these sources do is what they stop."""


class Nights:
    """Refreshes of a source of one file a night."""

    def __init__(self, folder: Path, home: Home, **changes: Any) -> None:
        self.folder, self.home = folder, home
        source = reviews.files(folder / "*.jsonl")
        self.pipeline = reviews.pipeline(source, data__near_duplicates=True, **changes)
        self.snapshots: list[Snapshot] = []

    def take_in(self, rows: Iterable[Row], *, file: str = "rows") -> pd.DataFrame:
        """The rows of the next night's snapshot, with `split`, after the file was written."""
        (self.folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        night = reviews.night(len(self.snapshots))
        self.snapshots.append(refresh(self.pipeline, night, self.home, allowed=ALLOWED).snapshot)
        return reviews.all_rows(self.snapshots[-1])


def row(number: int, text: str, **more: Any) -> Row:
    return {"id": f"r{number}", "text": text, "stars": 5 if number % 3 else 1, **more}


def changed(before: pd.DataFrame, after: pd.DataFrame) -> int:
    """Rows whose id or text is on another side than before."""
    both = (before.merge(after, on=key, suffixes=("_old", "_new")) for key in ("row_id", "fingerprint"))
    return sum(int((rows["split_old"] != rows["split_new"]).sum()) for rows in both)


def missed(snapshots: Iterable[Snapshot], last: Snapshot) -> int:
    """Test rows with an id, a text or letters and digits that an earlier snapshot trained on, but not marked so."""
    seen = pd.concat([reviews.all_rows(one) for one in snapshots])
    seen = seen[seen["split"] != "test"]
    test = last.rows("test")
    known = {name: set(seen[name]) for name in ("row_id", "fingerprint")}
    letters = set(map(canonical_text, seen["text"]))
    mask, why = trained_on(Line(tuple(snapshots)), keys_of(last.path.parent, test))
    assert mask is not None, why
    unclean = test["row_id"].isin(known["row_id"]) | test["fingerprint"].isin(known["fingerprint"])
    unclean |= test["text"].map(canonical_text).isin(letters)
    return int((unclean.to_numpy() & ~mask).sum())


@pytest.mark.parametrize("groups", [False, True])
def test_edits_prefixes_corrections_late_copies_and_deletions_change_no_split(
    tmp_path: Path, home: Home, groups: bool
) -> None:
    random_ = random.Random(11)
    nights = Nights(tmp_path, home, **({"data__group": "shop"} if groups else {}))
    rows = [row(number, review(random_), shop=f"s{number % 60}") for number in range(300)]
    frames = [nights.take_in(rows)]
    rows = [one | {"text": near_copy(one["text"], n, random_)} if n % 5 == 0 else one for n, one in enumerate(rows)]
    frames.append(nights.take_in(rows))
    rows = [one | {"text": f"Read this. {one['text']}"} for one in rows]
    frames.append(nights.take_in(rows))
    rows = [one | {"shop": f"s{random_.randrange(60)}"} if n % 10 == 0 else one for n, one in enumerate(rows)]
    frames.append(nights.take_in(rows))
    late = [row(1000 + n, one["text"], shop=one["shop"]) for n, one in enumerate(rows[:50])]
    frames.append(nights.take_in([*late, *rows]))
    frames.append(nights.take_in([*late, *rows[75:]]))
    assert [changed(before, after) for before in frames for after in frames] == [0] * len(frames) ** 2
    assert min(map(len, frames)) > (200 if groups else 225)
    assert [missed(nights.snapshots[:number], nights.snapshots[-1]) for number in (1, 5)] == [0, 0]


def test_after_an_upgrade_every_row_keeps_its_split_and_of_near_copies_the_training_copy_leaves(
    tmp_path: Path, home: Home
) -> None:
    random_ = random.Random(13)
    nights = Nights(tmp_path, home)
    rows = [row(number, review(random_)) for number in range(500)]
    rows += [row(500 + n, near_copy(one["text"], n, random_)) for n, one in enumerate(rows[:100])]
    old = pd.DataFrame(rows).rename(columns={"id": "row_id"})
    old["fingerprint"] = old["text"].map(fingerprint)
    old = old.drop_duplicates("fingerprint").sort_values("fingerprint", ignore_index=True)
    old["split"] = np.take(SPLITS, sides_of(old["fingerprint"], seed=42, validation=0.2, test=0.2))
    old = old.assign(label=(old["stars"] == 5).astype(int)).drop(columns="stars")
    facts = {"group": False, "rows_total": len(old)}
    before = write_snapshot(home.snapshots / "kettles", old, rules_of(nights.pipeline), facts)

    now = nights.take_in(rows)
    assert changed(old, now) == 0
    gone = old[~old["fingerprint"].isin(now["fingerprint"])]
    assert set(gone["split"]) == {"train", "validation"}

    def pairs(frame: pd.DataFrame) -> list[tuple[str, str]]:
        sides = frame.set_index("row_id")["split"]
        return [
            (sides[f"r{n}"], sides[f"r{500 + n}"]) for n in range(100) if {f"r{n}", f"r{500 + n}"} <= {*sides.index}
        ]

    assert len(gone) == pytest.approx(sum(one != other for one, other in pairs(old)), abs=2)
    assert sum(one != other for one, other in pairs(now)) <= 2
    assert missed([before], nights.snapshots[0]) == 0
    # What the model of before was trained on is known of near-copies, too, and of later models they are clean.
    keys = keys_of(home.snapshots / "kettles", now[now["split"] == "test"])
    for line, least, most in ((Line((before,)), 10, 60), (Line((nights.snapshots[0],)), 0, 0)):
        mask, why = trained_on(line, keys)
        assert mask is not None, why
        assert least <= mask.sum() <= most


@pytest.mark.parametrize("lost", ["splits", "near", "tip.json"])
def test_what_is_remembered_is_filled_again_where_it_is_lost(tmp_path: Path, home: Home, lost: str) -> None:
    random_ = random.Random(19)
    nights = Nights(tmp_path, home)
    rows = [row(number, review(random_)) for number in range(300)]
    frames = [nights.take_in(rows)]
    rows = [one | {"text": review(random_)} if n % 2 else one for n, one in enumerate(rows)]
    frames.append(nights.take_in(rows))
    path = home.snapshots / "kettles" / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    rows = [one | {"text": review(random_)} for one in rows]
    copies = [row(1000 + n, near_copy(one["text"], n, random_)) for n, one in enumerate(rows)]
    frames.append(nights.take_in([*rows, *copies]))
    assert [changed(before, after) for before in frames for after in frames] == [0] * 9
    sides = frames[-1].set_index("row_id")["split"]
    assert sum({"train", "test"} == {sides.get(f"r{n}"), sides.get(f"r{1000 + n}")} for n in range(300)) <= 3
    assert missed(nights.snapshots[:2], nights.snapshots[2]) == 0


@pytest.mark.parametrize("lost", ["tip.json", "splits/*/*.parquet", "near/*.parquet"])
def test_one_damaged_file_hides_no_near_copy_of_a_text_that_has_left(tmp_path: Path, home: Home, lost: str) -> None:
    random_ = random.Random(5)
    nights = Nights(tmp_path, home)
    old = [row(number, review(random_)) for number in range(200)]
    sides = nights.take_in(old).set_index("row_id")["split"]
    nights.take_in([row(1000 + n, review(random_)) for n in range(200)])
    oldest = min((home.snapshots / "kettles").glob(lost), key=lambda path: path.stat().st_mtime_ns)
    oldest.chmod(0o644)
    oldest.write_bytes(b"{")
    late = nights.take_in([row(2000 + n, near_copy(one["text"], n, random_)) for n, one in enumerate(old)], file="late")
    now = late.set_index("row_id")["split"]
    assert sum({"train", "test"} == {sides[f"r{n}"], now.get(f"r{2000 + n}")} for n in range(200)) <= 2
    test = late[late["split"] == "test"]
    mask, why = trained_on(Line((nights.snapshots[0],)), keys_of(home.snapshots / "kettles", test))
    assert mask is not None, why
    learnt = test["row_id"].map(lambda name: sides.get(f"r{int(name[1:]) - 2000}")).isin(["train", "validation"])
    assert (learnt.to_numpy() & ~mask).sum() <= 2


def test_a_past_night_fills_in_again_what_later_nights_knew(tmp_path: Path, home: Home) -> None:
    random_ = random.Random(6)
    nights = Nights(tmp_path, home)
    nights.take_in([row(number, review(random_)) for number in range(100)])
    new = [row(1000 + n, review(random_)) for n in range(200)]
    sides = nights.take_in(new, file="more").set_index("row_id")["split"]
    shutil.rmtree(home.snapshots / "kettles" / "near")
    refresh(nights.pipeline, reviews.night(0), home, allowed=ALLOWED)
    late = nights.take_in([row(2000 + n, near_copy(one["text"], n, random_)) for n, one in enumerate(new)], file="late")
    now = late.set_index("row_id")["split"]
    assert sum({"train", "test"} == {sides[f"r{1000 + n}"], now.get(f"r{2000 + n}")} for n in range(200)) <= 2


@pytest.mark.slow
def test_thirty_nights_of_growth_with_copies_leave_none_across_train_and_test(tmp_path: Path, home: Home) -> None:
    random_ = random.Random(17)
    nights = Nights(tmp_path, home)
    rows: list[Row] = []
    copies: list[tuple[str, str]] = []
    frames = []
    for day in range(30):
        new: list[Row] = []
        for number in range(len(rows), len(rows) + 400):
            kind = random_.random()
            known = random_.choice(rows) if rows and kind < 0.1 else None
            if known is None:
                new.append(row(number, review(random_)))
            else:
                text = known["text"] if kind < 0.05 else near_copy(known["text"], number, random_)
                new.append(row(number, text))
                copies.append((known["id"], f"r{number}"))
        rows += new
        frames.append(nights.take_in(new, file=f"{day:02d}"))
        if day:
            assert changed(frames[-2], frames[-1]) == 0
    assert changed(frames[0], frames[-1]) == 0
    assert not frames[-1]["fingerprint"].duplicated().any()
    sides = frames[-1].set_index("row_id")["split"]
    across = sum({"train", "test"} == {sides.get(one), sides.get(other)} for one, other in copies)
    print(f"{len(rows):,} rows, {len(copies):,} copies, {across} across train and test")
    assert len(copies) > 1000
    assert across <= 0.01 * len(copies)
    by_split = frames[-1]["split"].value_counts(normalize=True)
    assert abs(by_split["test"] - 0.2) < 0.02
    assert abs(by_split["validation"] - 0.2) < 0.02
    assert [missed(nights.snapshots[:number], nights.snapshots[-1]) for number in (1, 15, 29)] == [0, 0, 0]
