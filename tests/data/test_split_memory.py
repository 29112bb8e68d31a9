"""Splits are remembered by id, text, group and cluster: whatever happens to the rows, none changes its split."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightgate.data.rules import sides_of
from nightgate.data.split_memory import LEFT_OUT, TEST, TRAIN, VALIDATION, Assigned, Keys, SplitMemory, hash_of
from nightgate.errors import SnapshotError
from nightgate.text_rules import fingerprint

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Row:
    id: str
    text: str
    group: str = ""
    cluster: str = ""
    given: int = -1

    def side(self) -> int:
        """By hash alone."""
        return int(sides_of([self.group or fingerprint(self.text)], seed=42, validation=0.2, test=0.3)[0])


def keys_of(rows: Sequence[Row]) -> dict[str, Keys]:
    kinds = [kind for kind in ("id", "text", "group", "cluster") if any(getattr(row, kind) for row in rows)]
    values = {kind: [getattr(row, kind) for row in rows] for kind in kinds}
    return {kind: np.array([hash_of(v) if v else 0 for v in values[kind]], np.uint64) for kind in kinds}


def assign(memory: SplitMemory, rows: Sequence[Row], most: Sequence[float] | None = None) -> Assigned:
    def hashed(places: np.ndarray) -> np.ndarray:
        return np.array([rows[place].side() for place in places], np.int8)

    named = np.array([row.given for row in rows], np.int8) if any(row.given >= 0 for row in rows) else None
    return memory.assign(keys_of(rows), hashed, given=named, most=most)


def night(folder: Path, files: list[str], rows: Sequence[Row], held: frozenset[str] = frozenset()) -> dict[Row, int]:
    """The splits of the rows that were taken in, one of each text, after a refresh that adds its file to `files`.

    Args:
        held: texts of rows that stand as before and are not read.
    """
    if not rows:
        return {}
    memory = SplitMemory.open(folder, files)
    assigned = assign(memory, rows)
    first: dict[str, int] = {}
    for place, row in enumerate(rows):
        if assigned.splits[place] != LEFT_OUT:
            first.setdefault(row.text, place)
    taken = np.zeros(len(rows), bool)
    taken[[place for text, place in first.items() if text not in held]] = True
    merged = np.array([not taken[place] and row.text in {*first, *held} for place, row in enumerate(rows)])
    memory.remember(assigned, taken, merged)
    files += memory.write(folder)
    return {rows[place]: int(assigned.splits[place]) for place in np.flatnonzero(taken).tolist()}


def find(side: int, **fields: str) -> Row:
    """A row that its hash puts on a side."""
    kind = "group" if "group" in fields else "text"
    numbered = (
        Row(**{"id": "", "text": "", **fields, kind: f"{fields.get(kind, '')}{n}"})  # type: ignore[arg-type]
        for n in range(1000)
    )
    return next(row for row in numbered if row.side() == side)


# --- what moves nobody ---


def test_alone_a_row_keeps_the_split_of_its_hash(tmp_path: Path) -> None:
    rows = [Row(f"i{n}", f"text {n}", cluster=f"c{n}") for n in range(300)]
    assert night(tmp_path, [], rows) == {row: row.side() for row in rows}
    grouped = [Row(f"i{n}", f"text {n}", f"g{n // 3}", f"c{n}") for n in range(300)]
    assert night(tmp_path, [], grouped) == {row: row.side() for row in grouped}


def test_edits_prefixes_group_corrections_late_copies_and_deletions_change_no_split(tmp_path: Path) -> None:
    files: list[str] = []
    rows = [Row(f"i{n}", f"text {n}") for n in range(400)]
    before = {row.id: split for row, split in night(tmp_path, files, rows).items()}
    for change in ("edited {}", "read: {}"):
        rows = [replace(row, text=change.format(row.text)) for row in rows]
        assert {row.id: split for row, split in night(tmp_path, files, rows).items()} == before
    assert sum(row.side() != before[row.id] for row in rows) > 100  # a hash would have moved them
    # Deleted, then back under another id with an old text.
    back = [Row(f"n{n}", f"text {n}") for n in range(400)]
    assert list(night(tmp_path, files, back).values()) == list(before.values())


def test_a_row_whose_corrected_group_lies_elsewhere_is_left_out_and_its_group_stays(tmp_path: Path) -> None:
    files: list[str] = []
    train, test = find(TRAIN, id="a", text="x", group="g"), find(TEST, id="b", text="y", group="g")
    night(tmp_path, files, [train, test])
    moved = replace(train, group=test.group)
    assert night(tmp_path, files, [moved, test]) == {test: TEST}
    assert night(tmp_path, files, [replace(train, group="new"), test])[replace(train, group="new")] == TRAIN
    # A text that another group's row had first stays there.
    late = replace(test, id="c", text="x")
    assert night(tmp_path, files, [late, train, test]) == {train: TRAIN, test: TEST}


def test_a_merged_row_keeps_the_split_of_its_text_when_it_is_edited(tmp_path: Path) -> None:
    files: list[str] = []
    (train,) = night(tmp_path, files, [find(TRAIN, id="a"), replace(find(TRAIN, id="a"), id="b")])
    edited = find(TEST, id="b")
    assert night(tmp_path, files, [train, edited]) == {train: TRAIN, edited: TRAIN}


ROW = st.builds(
    Row,
    st.sampled_from([f"i{n}" for n in range(6)]),
    st.sampled_from([f"t{n}" for n in range(8)]),
    st.sampled_from([f"g{n}" for n in range(4)]),
    st.sampled_from(["", *(f"c{n}" for n in range(4))]),
)


@dataclass
class Seen:
    """Every key that a row was taken in with, and its splits."""

    splits: dict[tuple[str, str], set[int]] = field(default_factory=dict)

    def add(self, taken: Mapping[Row, int]) -> None:
        for row, split in taken.items():
            for kind in ("id", "text", "group", "cluster"):
                if value := getattr(row, kind):
                    self.splits.setdefault((kind, value), set()).add(split)


@settings(max_examples=60)
@given(st.lists(st.lists(ROW, max_size=6), min_size=1, max_size=6), st.booleans(), st.booleans(), st.randoms())
def test_no_key_is_ever_on_two_sides(
    tmp_path_factory: pytest.TempPathFactory, changes: list[list[Row]], groups: bool, sweep: bool, order: random.Random
) -> None:
    folder, files, seen = tmp_path_factory.mktemp("splits"), list[str](), Seen()
    source: dict[str, Row] = {}
    taken: dict[Row, int] = {}
    for changed in changes:
        for row in changed:  # the newest of an id replaces it; a few are deleted
            source[row.id] = row if groups else replace(row, group="")
            if order.random() < 0.1:
                del source[row.id]
        stand = {row: split for row, split in taken.items() if source.get(row.id) == row}
        rows = [row for row in source.values() if sweep or row not in stand]
        order.shuffle(rows)
        rows.sort(key=lambda row: row not in stand)
        held = frozenset() if sweep else frozenset(row.text for row in stand)
        now = night(folder, files, rows, held) | ({} if sweep else stand)
        assert {row: now.get(row) for row in stand} == stand  # rows that stand as they did keep their split
        seen.add(now)
        assert all(len(splits) == 1 for splits in seen.splits.values()), seen
        taken = now


@settings(max_examples=40)
@given(st.lists(ROW, min_size=1, max_size=12, unique_by=lambda row: row.id), st.booleans(), st.randoms())
def test_the_order_of_the_rows_of_a_night_does_not_matter(rows: list[Row], groups: bool, order: random.Random) -> None:
    rows = rows if groups else [replace(row, group="") for row in rows]
    shuffled = order.sample(rows, len(rows))
    one, other = assign(SplitMemory(), rows), assign(SplitMemory(), shuffled)
    assert dict(zip(rows, one.splits.tolist(), strict=True)) == dict(zip(shuffled, other.splits.tolist(), strict=True))


# --- what lies on two sides ---


@pytest.mark.parametrize("older", [TRAIN, VALIDATION])
def test_of_old_near_copies_on_two_sides_the_training_copy_leaves(tmp_path: Path, older: int) -> None:
    files: list[str] = []
    test, other, free = find(TEST, id="a"), find(older, id="b"), find(TRAIN, id="c")
    night(tmp_path, files, [test, other, free])
    clustered = [replace(row, cluster="c") for row in (test, other)]
    assert night(tmp_path, files, [*clustered, free]) == {clustered[0]: TEST, free: free.side()}
    # A later near-copy follows the test row, which an earlier model has seen, a later one has not.
    assert night(tmp_path, files, [Row("d", "later", cluster="c")]) == {Row("d", "later", cluster="c"): TEST}
    memory = SplitMemory.open(tmp_path, files)
    assert memory.trained_on_before(keys_of(clustered[:1]), files[:1]).tolist() == [True]
    assert memory.trained_on_before(keys_of(clustered[:1]), ()).tolist() == [True]
    assert memory.trained_on_before(keys_of(clustered[:1]), files).tolist() == [False]


def test_with_groups_near_copies_tie_no_groups_together() -> None:
    train, test = find(TRAIN, id="a", text="x", group="g"), find(TEST, id="b", text="y", group="g")
    rows = [replace(train, cluster="c"), replace(test, cluster="c"), replace(train, id="d", text="z")]
    assigned = assign(SplitMemory(), rows)
    assert assigned.splits.tolist() == [LEFT_OUT, TEST, TRAIN]
    assert assigned.reasons.tolist() == [2, 0, 0]


def test_a_split_that_the_source_names_counts_as_one_that_was_given_before(tmp_path: Path) -> None:
    files: list[str] = []
    test = Row("a", "x", given=TEST)
    near = [Row("b", "y", cluster="c", given=TRAIN), Row("c", "z", cluster="c", given=TEST)]
    assert night(tmp_path, files, [test, *near]) == {test: TEST, near[1]: TEST}
    renamed = assign(SplitMemory.open(tmp_path, files), [replace(test, given=TRAIN), Row("d", "x", given=TEST)])
    assert (renamed.splits.tolist(), renamed.reasons.tolist()) == ([LEFT_OUT, TEST], [3, 0])


def test_a_group_that_is_larger_than_a_side_may_be_goes_to_train() -> None:
    group = find(VALIDATION, id="", text="", group="g").group
    rows = [Row(f"i{n}", f"t{n}", group) for n in range(30)] + [find(VALIDATION, id="x", text="x", group="h")]
    assert assign(SplitMemory(), rows, most=[np.inf, 29, 29]).splits.tolist() == [TRAIN] * 30 + [VALIDATION]
    assert assign(SplitMemory(), rows, most=[np.inf, 30, 29]).splits.tolist() == [VALIDATION] * 31


# --- files ---


def test_files_are_only_added_and_hold_each_key_once(tmp_path: Path) -> None:
    files: list[str] = []
    rows = [Row(f"i{n}", f"text {n}") for n in range(50)]
    night(tmp_path, files, rows)
    content = {file: (tmp_path / file).read_bytes() for file in files}
    night(tmp_path, files, rows)
    assert list(content) == files  # nothing new: no file
    night(tmp_path, files, [*rows, Row("new", "new")])
    assert len(files) == 2
    assert {file: (tmp_path / file).read_bytes() for file in files[:1]} == content
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(files)
    assert sum(pq.read_metadata(tmp_path / file).num_rows for file in files) == 102


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"PAR1")])
def test_a_missing_or_damaged_file_is_named(tmp_path: Path, damage: object) -> None:
    files: list[str] = []
    night(tmp_path, files, [Row("a", "x")])
    damage(tmp_path / files[0])  # type: ignore[operator]
    with pytest.raises(SnapshotError, match=files[0]):
        SplitMemory.open(tmp_path, files)


def test_a_lost_memory_is_filled_from_snapshots(tmp_path: Path) -> None:
    rows = [Row(f"i{n}", f"text {n}") for n in range(200)]
    edited = [replace(row, text=f"edited {row.text}") for row in rows]
    files: list[str] = []
    first, second = night(tmp_path, files, rows), night(tmp_path, files, edited)
    memory = SplitMemory()
    for snapshot in (second, first):  # newest first
        memory.recall(keys_of(list(snapshot)), np.array(list(snapshot.values()), np.int8))
    refilled = memory.write(tmp_path)
    again = [replace(row, text=f"once more {row.text}") for row in rows]
    assert night(tmp_path, refilled, again) == night(tmp_path, files, again)


def test_a_key_that_an_old_snapshot_has_on_two_sides_is_decided_by_its_newest_row(tmp_path: Path) -> None:
    # Before splits were remembered, an edit that was appended as a new row left both versions, here on two sides.
    old, new = find(TRAIN, id="a", text="old"), find(TEST, id="a", text="new")
    memory = SplitMemory()
    memory.recall(keys_of([old, new]), np.array([TRAIN, TEST], np.int8))
    memory.recall(keys_of([old]), np.array([TRAIN], np.int8))  # an older snapshot does not decide
    assigned = assign(memory, [new])
    assert assigned.splits.tolist() == [TEST]
    memory.remember(assigned, np.ones(1, bool))
    files = memory.write(tmp_path)
    memory = SplitMemory.open(tmp_path, files)
    # Models of before saw the id in train.
    assert memory.trained_on_before(keys_of([new]), ()).tolist() == [True]
    assert memory.trained_on_before(keys_of([new]), files).tolist() == [False]
    assert memory.has(keys_of([new, old])).tolist() == [False, True]
