"""Leakage: test rows in the snapshots of a model or of any of its ancestors."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nightgate.data.near_duplicates import NearDuplicates
from nightgate.data.rules import memory_of
from nightgate.data.snapshots import Snapshot, write_snapshot
from nightgate.data.split_memory import TEST, TRAIN, VALIDATION, Keys, SplitMemory
from nightgate.data.tip import EMPTY, MEMORY, NEAR, write_tip
from nightgate.database.transactions import Database
from nightgate.home import Home
from nightgate.registry import promotion
from nightgate.registry.leakage import Line, keys_of, line_of, trained_on
from nightgate.runs import records
from nightgate.text_rules import NORMALISATION_VERSION
from tests.support import night_rows


def mark(number: int) -> str:
    return f"{number + 1:016x}" * 2


def rows(numbers: Sequence[int], prefix: str = "") -> pd.DataFrame:
    """Rows by number, without ids of their own unless they are to begin with `prefix`."""
    marks = [mark(number) for number in numbers]
    ids = [f"{prefix}{number}" for number in numbers] if prefix else marks
    return pd.DataFrame({"row_id": ids, "fingerprint": marks, "text": [f"text {number}" for number in numbers]})


def snapshot(
    folder: Path,
    train: Sequence[int] = (),
    validation: Sequence[int] = (),
    test: Sequence[int] = (),
    normalisation: int = NORMALISATION_VERSION,
) -> Snapshot:
    """A snapshot as earlier releases wrote them, with these rows, by number."""
    sides = {"train": train, "validation": validation, "test": test}
    frame = pd.concat([rows(numbers).assign(split=side, label=0) for side, numbers in sides.items()])
    frame = frame.sort_values("fingerprint").reset_index(drop=True)
    return write_snapshot(folder, frame, {"normalisation": normalisation, "split": "given"}, {"group": False})


def found_in(line: Line, numbers: Sequence[int]) -> list[int]:
    mask, why = trained_on(line, keys_of(Path("none"), rows(numbers)))
    assert mask is not None, why
    assert (mask.shape, mask.dtype, why) == ((len(numbers),), np.bool_, "")
    return [number for number, seen in zip(numbers, mask, strict=True) if seen]


# --- snapshots with their rows ---


def test_rows_of_the_training_and_validation_sides_of_any_snapshot_are_marked(tmp_path: Path) -> None:
    first = snapshot(tmp_path, train=range(10), validation=[10, 11], test=[12, 13])
    second = snapshot(tmp_path, train=[20, 12], validation=[21], test=[22])
    assert found_in(Line((first,)), [13, 3, 11, 12, 99]) == [3, 11]
    assert found_in(Line((second, first)), [13, 12, 11, 22, 20]) == [12, 11, 20]
    assert found_in(Line(()), [1, 2]) == []
    assert found_in(Line((first,)), []) == []


def test_with_a_missing_or_damaged_snapshot_leakage_is_unknown(tmp_path: Path) -> None:
    whole = snapshot(tmp_path, train=range(10), test=[12])
    broken = replace(whole, path=shutil.copytree(whole.path, tmp_path / "broken"))
    content = bytearray((broken.path / "rows.parquet").read_bytes())
    content[len(content) // 2] ^= 1
    (broken.path / "rows.parquet").chmod(0o644)
    (broken.path / "rows.parquet").write_bytes(content)
    gone = replace(whole, path=tmp_path / "gone")
    older = snapshot(tmp_path, train=range(11), normalisation=NORMALISATION_VERSION - 1)
    for one, named in ((broken, "rows.parquet"), (gone, str(gone.path)), (older, older.id)):
        found, why = trained_on(Line((whole, one)), keys_of(tmp_path, rows([1])))
        assert found is None
        assert named in why


def test_five_thousand_rows_are_looked_up_in_five_large_snapshots_within_seconds(tmp_path: Path) -> None:
    large = snapshot(tmp_path, train=range(36_000), test=range(36_000, 40_000))
    began = time.process_time()
    assert len(found_in(Line((large,) * 5), range(33_500, 38_500))) == 2500
    # 0.5 s on a core of 2024.
    assert time.process_time() - began < 4


# --- the memory of splits, which outlives them ---

SPLIT_RULES = {"seed": 42, "validation": 0.1, "test": 0.1, "by": "text"}


def remembered(folder: Path, files: list[str], seen: pd.DataFrame, split: int, clusters: Keys | None = None) -> None:
    """Add rows with a split to the memory in `files`."""
    of = folder / MEMORY / memory_of({"split": SPLIT_RULES})
    memory = SplitMemory.open(of, files)
    keys = dict(keys_of(Path("none"), seen))
    if clusters is not None:
        keys["cluster"] = clusters
    memory.remember(memory.assign(keys, lambda some: np.full(len(some), split, np.int8)), np.ones(len(seen), bool))
    files += memory.write(of)


def without_rows(folder: Path, files: Sequence[str]) -> Snapshot:
    """A snapshot of which the database has the manifest, and whose folder is gone."""
    rules = {"normalisation": NORMALISATION_VERSION, "split": SPLIT_RULES}
    manifest = {"rules": rules, "memory": {"of": memory_of(rules), "files": list(files)}}
    return Snapshot("s-gone", folder / "s-gone", manifest)


def marked(folder: Path, files: list[str], line: Line, some: pd.DataFrame) -> list[bool]:
    write_tip(folder, replace(EMPTY, memory={memory_of({"split": SPLIT_RULES}): files}))
    mask, why = trained_on(line, keys_of(folder, some))
    assert mask is not None, why
    return [bool(seen) for seen in mask]


def test_a_row_is_marked_by_its_id_or_its_text_when_the_snapshot_is_gone(tmp_path: Path) -> None:
    files: list[str] = []
    remembered(tmp_path, files, rows([1, 2], "r"), TRAIN)
    remembered(tmp_path, files, rows([3], "r"), VALIDATION)
    remembered(tmp_path, files, rows([4, 5], "r"), TEST)
    line = Line((without_rows(tmp_path, files),))
    assert marked(tmp_path, files, line, rows([1, 2, 3, 4, 5, 6], "r")) == [True, True, True, False, False, False]
    edited = rows([11, 14], "").assign(row_id=["r1", "r4"])
    assert marked(tmp_path, files, line, edited) == [True, False]
    copied = rows([1, 4], "n")
    assert marked(tmp_path, files, line, copied) == [True, False]


def test_a_near_copy_of_a_training_row_is_marked(tmp_path: Path) -> None:
    near = NearDuplicates()
    first, copy, other = (
        "the kettle boils quickly and is very quiet",
        "The kettle boils quickly, and is very quiet too",
        "a lamp that gives less light than a candle",
    )
    clusters = near.find([[first, copy, other]], 3)
    files: list[str] = []
    remembered(tmp_path, files, rows([1], "r"), TRAIN, clusters=clusters[:1])
    write_tip(tmp_path, replace(EMPTY, near=near.write(tmp_path / NEAR), memory={"x": []}))
    keys = keys_of(tmp_path, rows([8, 9], "n").assign(text=[copy, other]))
    mask, _ = trained_on(Line((without_rows(tmp_path, files),)), keys)
    assert mask is not None
    assert mask.tolist() == [True, False]


def test_a_test_row_whose_near_copy_left_training_is_marked_for_models_of_before(tmp_path: Path) -> None:
    files: list[str] = []
    remembered(tmp_path, files, rows([1], "r"), TRAIN)
    remembered(tmp_path, files, rows([2], "r"), TEST)
    before = Line((without_rows(tmp_path, files),))
    of = tmp_path / MEMORY / memory_of({"split": SPLIT_RULES})
    memory = SplitMemory.open(of, files)
    keys = {**keys_of(Path("none"), rows([1, 2], "r")), "cluster": np.array([7, 7], np.uint64)}
    assigned = memory.assign(keys, lambda some: np.zeros(len(some), np.int8))
    memory.remember(assigned, assigned.splits >= 0)
    files += memory.write(of)
    write_tip(tmp_path, replace(EMPTY, memory={of.name: files}))
    test_row = {**keys_of(tmp_path, rows([2], "r")), "cluster": np.array([7], np.uint64)}
    after = Line((without_rows(tmp_path, files),))
    goes_on = Line((*after.snapshots, *before.snapshots))
    for line, seen in ((before, [True]), (after, [False]), (goes_on, [True])):
        mask, why = trained_on(line, test_row)
        assert mask is not None, why
        assert mask.tolist() == seen


def test_without_the_memory_and_the_rows_leakage_is_unknown(tmp_path: Path) -> None:
    found, why = trained_on(Line((without_rows(tmp_path, ["lost.parquet"]),)), keys_of(tmp_path, rows([1])))
    assert found is None
    assert "lost.parquet" in why


# --- lines ---


def version(db: Database, day: int, of: Snapshot | None, *, started_from: int | None = None) -> None:
    """Store version `day` + 1, by a run of its own on the snapshot `of`."""
    run = night_rows.opened(db, day)
    if of is not None:
        refreshed = night_rows.refreshed(db, of.id, bad_rows=0)
        stored = replace(refreshed.snapshot, manifest=refreshed.snapshot.manifest | of.manifest)
        records.record_snapshot(db, run.run_id, 1, replace(refreshed, snapshot=stored))
    assert promotion.add_version(db, run.run_id, 1, str, started_from=started_from) == day + 1


@pytest.fixture
def nights(home: Home) -> list[Snapshot]:
    """Snapshots: night k trains on the row k."""
    return [snapshot(home.snapshots / "reviews", train=[number], test=[100]) for number in range(4)]


def test_a_line_has_the_snapshots_of_all_ancestors(database: Database, home: Home, nights: list[Snapshot]) -> None:
    version(database, 0, nights[0])
    version(database, 1, nights[1])
    version(database, 2, nights[2], started_from=1)
    version(database, 3, nights[2], started_from=3)

    def ids(of: int | None, tonight: Snapshot | None = None) -> list[int]:
        line = line_of(database, home, "reviews", of, tonight=tonight)
        assert not line.unknown
        return [[one.path for one in nights].index(one.path) for one in line.snapshots]

    assert ids(None) == []
    assert ids(2) == [1]
    assert ids(4) == [2, 0]
    assert ids(3, nights[3]) == [3, 2, 0]
    assert ids(None, nights[3]) == [3]
    assert found_in(line_of(database, home, "reviews", 4), [0, 1, 2, 3, 100]) == [0, 2]


def test_a_line_with_a_gap_is_unknown(database: Database, home: Home, nights: list[Snapshot]) -> None:
    version(database, 0, None)
    version(database, 1, nights[1], started_from=1)
    assert "version 1" in line_of(database, home, "reviews", 2).unknown
    assert "version 7" in line_of(database, home, "reviews", 7).unknown
