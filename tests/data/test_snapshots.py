"""Snapshots on disk: atomic writes, verification and reuse."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from nightgate.data.refresh import refresh
from nightgate.data.rules import SPLITS
from nightgate.data.snapshots import Snapshot, open_snapshot, write_snapshot
from nightgate.errors import SnapshotError, StorageError
from nightgate.home import Home, open_home
from tests.support import reviews

pytestmark = pytest.mark.process


def some_rows(number: int = 90) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "split": [SPLITS[index % 3] for index in range(number)],
            "row_id": [f"{index}" for index in range(number)],
            "fingerprint": [f"{index:032x}" for index in range(number)],
            "text": [f"text {index}\nwith ünïcode" for index in range(number)],
            "label": pd.Series([index % 2 for index in range(number)], dtype="int64"),
            "time": pd.date_range("2026-01-01", periods=number, freq="h", tz="UTC").astype("datetime64[us, UTC]"),
        }
    )


@pytest.fixture
def snapshot(tmp_path: Path) -> Snapshot:
    return write_snapshot(tmp_path / "kettles", some_rows(), {"rule": 1}, {"pipeline": "kettles"})


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


def refusal(path: Path, verify: bool = True) -> str:
    with pytest.raises(SnapshotError) as caught:
        open_snapshot(path, verify=verify)
    assert "--force" in caught.value.next_step
    return str(caught.value)


def test_a_snapshot_is_one_folder_with_two_files(snapshot: Snapshot, tmp_path: Path) -> None:
    assert snapshot.path == tmp_path / "kettles" / snapshot.id
    assert sorted(path.name for path in snapshot.path.iterdir()) == ["manifest.json", "rows.parquet"]
    assert [path.name for path in snapshot.path.parent.iterdir()] == [snapshot.id]
    assert open_snapshot(snapshot.path) == snapshot
    # Files are read-only, and can be removed.
    assert not any(stat.S_IMODE(path.stat().st_mode) & 0o222 for path in snapshot.path.iterdir())
    shutil.rmtree(snapshot.path)


def test_rows_are_read_by_split_as_they_were_written(snapshot: Snapshot) -> None:
    for split in SPLITS:
        expected = some_rows().query("split == @split").drop(columns="split").reset_index(drop=True)
        pd.testing.assert_frame_equal(snapshot.rows(split), expected, check_dtype=False)
    assert snapshot.rows("train").dtypes["label"] == "int64"
    assert snapshot.rows("train").dtypes["time"] == "datetime64[us, UTC]"
    assert list(snapshot.rows("test", ["text", "label"])) == ["text", "label"]
    with pytest.raises(ValueError, match="'dev'"):
        snapshot.rows("dev")


def test_the_same_rows_are_written_once_and_other_rules_are_another_snapshot(
    snapshot: Snapshot, tmp_path: Path
) -> None:
    written = (snapshot.path / "manifest.json").stat()
    again = write_snapshot(tmp_path / "kettles", some_rows(), {"rule": 1}, {"pipeline": "kettles", "night": 2})
    assert again == snapshot
    assert (snapshot.path / "manifest.json").stat().st_mtime_ns == written.st_mtime_ns
    assert write_snapshot(tmp_path / "kettles", some_rows(), {"rule": 2}, {}).id != snapshot.id


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.999])
@pytest.mark.parametrize("name", ["rows.parquet", "manifest.json"])
def test_a_flipped_byte_is_detected(name: str, share: float, snapshot: Snapshot) -> None:
    path = snapshot.path / name
    flip(path, min(int(path.stat().st_size * share), path.stat().st_size - 2))
    refusal(snapshot.path)


def test_a_changed_manifest_is_detected_without_reading_the_rows(snapshot: Snapshot) -> None:
    path = snapshot.path / "manifest.json"
    path.chmod(0o644)
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"pipeline": "toasters"}))
    assert "manifest.json" in refusal(snapshot.path, verify=False)


def test_truncated_rows_are_detected_without_reading_them(snapshot: Snapshot) -> None:
    path = snapshot.path / "rows.parquet"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-10])
    assert f"{path.stat().st_size} bytes" in refusal(snapshot.path, verify=False)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"id": "s-1"}'])
def test_an_incomplete_manifest_is_refused(content: str, snapshot: Snapshot) -> None:
    path = snapshot.path / "manifest.json"
    path.chmod(0o644)
    path.write_text(content)
    assert "manifest.json" in refusal(snapshot.path)


@pytest.mark.parametrize("name", ["rows.parquet", "manifest.json"])
def test_a_missing_file_or_snapshot_is_refused(name: str, snapshot: Snapshot, tmp_path: Path) -> None:
    (snapshot.path / name).unlink()
    assert name in refusal(snapshot.path)
    assert "s-none" in refusal(tmp_path / "s-none")


def test_rows_removed_after_opening_are_a_snapshot_error(snapshot: Snapshot) -> None:
    (snapshot.path / "rows.parquet").unlink()
    with pytest.raises(SnapshotError, match=r"rows\.parquet"):
        snapshot.rows("train")


def test_a_damaged_snapshot_is_moved_aside_and_written_again(
    tmp_path: Path, home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "r.csv"
    pd.DataFrame(reviews.rows()).to_csv(path, index=False)
    pipeline = reviews.pipeline(reviews.files(path))
    first = refresh(pipeline, reviews.NIGHT, home).snapshot
    [texts] = first.path.parent.glob("deltas/*/texts.parquet")
    flip(texts, 1000)
    damaged = texts.read_bytes()
    refusal(first.path)
    second = refresh(pipeline, reviews.NIGHT, home, verify=True).snapshot
    assert second.id == first.id
    assert open_snapshot(second.path) == second
    (aside,) = [path for path in second.path.parent.glob("s-*") if path != second.path]
    assert aside.name.startswith(f"{first.id}.damaged-")
    assert texts.read_bytes() == damaged
    assert aside.name in caplog.text


def test_a_draft_of_a_killed_process_is_removed_after_a_day_and_not_before(tmp_path: Path) -> None:
    for name, age in ((".s-1-old.draft", 90_000), (".s-1-new.draft", 60)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.parquet").write_bytes(b"half")
        os.utime(tmp_path / name, (time.time() - age, time.time() - age))
    written = write_snapshot(tmp_path, some_rows(), {}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [".s-1-new.draft", written.id]


def test_a_failure_while_writing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_snapshot(tmp_path, some_rows(), {}, {"not": object()})
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not shutil.which("mount") or os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_a_storage_error_and_leaves_no_draft(small_disk: Path, tmp_path: Path) -> None:
    home = open_home(small_disk)
    path = tmp_path / "r.jsonl"
    rows: list[dict[str, Any]] = [{**row, "text": row["text"] + os.urandom(400).hex()} for row in reviews.rows(1000)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pipeline = reviews.pipeline(reviews.files(path))
    with pytest.raises(StorageError, match="No space left on device") as caught:
        refresh(pipeline, reviews.NIGHT, home)
    assert "free some space" in caught.value.next_step
    assert [path for path in (home.snapshots / "kettles").rglob("*") if path.suffix] == []
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:100]))
    assert refresh(pipeline, reviews.NIGHT, home).rows_total == 100


def test_a_folder_without_write_permission_is_a_storage_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    if os.access(tmp_path, os.W_OK):
        pytest.skip("this user (root?) may write everywhere")
    with pytest.raises(StorageError, match="Permission denied"):
        write_snapshot(tmp_path / "kettles", some_rows(), {}, {})
