"""Leakage: test rows in the snapshots of a model or of any of its ancestors."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nightgate.data.snapshots import write_snapshot
from nightgate.database.transactions import Database
from nightgate.home import Home
from nightgate.registry import promotion
from nightgate.registry.leakage import Line, line_of, trained_on
from nightgate.runs import records
from nightgate.text_rules import NORMALISATION_VERSION
from tests.support import night_rows

LABELS = ("bad", "good")


def mark(number: int) -> str:
    return f"{number:016x}{number:016x}"


def snapshot(
    folder: Path,
    train: Sequence[int] = (),
    validation: Sequence[int] = (),
    test: Sequence[int] = (),
    normalisation: int = NORMALISATION_VERSION,
) -> Path:
    """A snapshot with these rows, by number."""
    sides = [("train", n) for n in train] + [("validation", n) for n in validation] + [("test", n) for n in test]
    frame = pd.DataFrame(sides, columns=["split", "number"]).sort_values("number")
    frame["fingerprint"] = frame["number"].map(mark)
    frame["text"] = "text " + frame["number"].astype(str)
    rows = frame.drop(columns="number").assign(row_id=frame["fingerprint"], label=0)
    return write_snapshot(folder, rows.reset_index(drop=True), {"normalisation": normalisation}, {}).path


def found_in(line: Line, numbers: Sequence[int]) -> list[int]:
    mask, why = trained_on(line, [mark(number) for number in numbers])
    assert mask is not None, why
    assert (mask.shape, mask.dtype, why) == ((len(numbers),), np.bool_, "")
    return [number for number, seen in zip(numbers, mask, strict=True) if seen]


# --- snapshots ---


def test_rows_of_the_training_and_validation_sides_of_any_snapshot_are_marked(tmp_path: Path) -> None:
    first = snapshot(tmp_path, train=range(10), validation=[10, 11], test=[12, 13])
    second = snapshot(tmp_path, train=[20, 12], validation=[21], test=[22])
    assert found_in(Line((first,)), [13, 3, 11, 12, 99]) == [3, 11]
    assert found_in(Line((second, first)), [13, 12, 11, 22, 20]) == [12, 11, 20]
    assert found_in(Line(()), [1, 2]) == []
    assert found_in(Line((first,)), []) == []


def test_with_a_missing_or_damaged_snapshot_leakage_is_unknown(tmp_path: Path) -> None:
    whole = snapshot(tmp_path, train=range(10), test=[12])
    broken = shutil.copytree(whole, tmp_path / "broken")
    content = bytearray((broken / "rows.parquet").read_bytes())
    content[len(content) // 2] ^= 1
    (broken / "rows.parquet").chmod(0o644)
    (broken / "rows.parquet").write_bytes(content)
    older = snapshot(tmp_path, train=range(11), normalisation=NORMALISATION_VERSION - 1)
    for folder, named in ((broken, "rows.parquet"), (tmp_path / "gone", str(tmp_path / "gone")), (older, older.name)):
        found, why = trained_on(Line((whole, folder)), [mark(1)])
        assert found is None
        assert named in why


def test_five_thousand_rows_are_looked_up_in_twenty_large_snapshots_within_seconds(tmp_path: Path) -> None:
    large = snapshot(tmp_path, train=range(36_000), test=range(36_000, 40_000))
    began = time.process_time()
    assert len(found_in(Line((large,) * 20), range(33_500, 38_500))) == 2500
    # 0.3 s on a core of 2024.
    assert time.process_time() - began < 3


# --- lines ---


def version(db: Database, day: int, path: Path | None, *, started_from: int | None = None) -> None:
    """Store version `day` + 1, by a run of its own on the snapshot at `path`."""
    run = night_rows.opened(db, day)
    if path is not None:
        records.record_snapshot(db, run.run_id, 1, night_rows.refreshed(db, path.name, bad_rows=0))
    assert promotion.add_version(db, run.run_id, 1, str, started_from=started_from) == day + 1


@pytest.fixture
def nights(home: Home) -> list[Path]:
    """Snapshots: night k trains on the row k."""
    return [snapshot(home.snapshots / "reviews", train=[number], test=[100]) for number in range(4)]


def test_a_line_has_the_snapshots_of_all_ancestors(database: Database, home: Home, nights: list[Path]) -> None:
    version(database, 0, nights[0])
    version(database, 1, nights[1])
    version(database, 2, nights[2], started_from=1)
    version(database, 3, nights[2], started_from=3)
    assert line_of(database, home, "reviews", None) == Line(())
    assert line_of(database, home, "reviews", 2) == Line((nights[1],))
    assert line_of(database, home, "reviews", 4) == Line((nights[2], nights[0]))
    assert line_of(database, home, "reviews", 3, tonight=nights[3]) == Line((nights[3], nights[2], nights[0]))
    assert line_of(database, home, "reviews", None, tonight=nights[3]) == Line((nights[3],))
    assert found_in(line_of(database, home, "reviews", 4), [0, 1, 2, 3, 100]) == [0, 2]


def test_a_line_with_a_gap_is_unknown(database: Database, home: Home, nights: list[Path]) -> None:
    version(database, 0, None)
    version(database, 1, nights[1], started_from=1)
    assert "version 1" in line_of(database, home, "reviews", 2).unknown
    assert "version 7" in line_of(database, home, "reviews", 7).unknown
