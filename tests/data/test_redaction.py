"""Forgotten ids stay out of later snapshots and golden sets, whatever the source has."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from nightgate.data.golden_rows import golden_set
from nightgate.data.redaction import redact
from nightgate.data.refresh import refresh
from nightgate.data.snapshots import SPLITS, Snapshot, open_snapshot
from nightgate.data.tip import keep_out
from nightgate.errors import SnapshotError
from nightgate.home import Home
from tests.support import reviews


def ids_of(snapshot: Snapshot) -> set[str]:
    return {row_id for split in SPLITS for row_id in snapshot.rows(split)["row_id"]}


def test_a_refresh_leaves_forgotten_rows_out(home: Home, tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    rows = pd.DataFrame(reviews.rows())
    pd.concat([rows, rows[7:9].assign(stars=3)]).to_csv(path, index=False)
    pipeline = reviews.pipeline(reviews.files(path), data__golden=str(path))
    before = refresh(pipeline, reviews.NIGHT, home).snapshot
    folder = home.snapshots / pipeline.name
    redact(before.path, {"00007"})
    keep_out(folder, {"00007"})
    after = refresh(pipeline, reviews.NIGHT, home, before.path)
    assert ids_of(after.snapshot) == ids_of(open_snapshot(before.path)) == {f"{n:05d}" for n in range(120) if n != 7}
    assert after.rows_new == 0
    assert [row.row_id for row in after.quarantined] == ["00008"]
    [counts] = after.parts
    assert (counts.rows_seen, counts.taken, counts.deleted, counts.quarantined) == (122, 119, 2, 1)
    golden = golden_set(pipeline, home, after.snapshot, reviews.NIGHT)
    assert "00007" not in set(golden.rows()["row_id"])


def test_a_damaged_list_of_forgotten_ids_is_an_error(home: Home, tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    pd.DataFrame(reviews.rows()).to_csv(path, index=False)
    pipeline = reviews.pipeline(reviews.files(path))
    keep_out(home.snapshots / pipeline.name, {"00007"})
    (home.snapshots / pipeline.name / "forgotten.json").write_text("[")
    with pytest.raises(SnapshotError, match=r"forgotten\.json") as caught:
        refresh(pipeline, reviews.NIGHT, home)
    assert "forget" in caught.value.next_step
