"""Take the rows of forgotten ids out of stored snapshots and golden sets.

    redact(folder / "s-0123456789abcdef", {"4711"})

A redacted snapshot keeps its id, which was a hash of rows that are gone. Its manifest says how many rows were taken out
and has the checksum of what remains: verification accepts that alone.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nightgate.data.snapshots import MANIFEST_FILE, SPLITS, Snapshot, open_snapshot, signed, snapshot_id
from nightgate.data.validation import Row
from nightgate.durable_files import replacing, sha256_of, write_whole
from nightgate.errors import SnapshotError, storage_errors
from nightgate.sources.source_table import Quarantined

R = TypeVar("R", Row, Quarantined)
FORGOTTEN_FILE = "forgotten.json"


def keep_out(folder: Path, ids: Collection[str]) -> None:
    """Let later refreshes leave rows with these ids out.

    Args:
        folder: of the pipeline's snapshots.

    Raises:
        StorageError: the disk is full, read-only or forbidden.
    """
    known = kept_out(folder)
    if not known.issuperset(map(hash_of, ids)):
        content = json.dumps(sorted(known | {*map(hash_of, ids)}), indent=0)
        write_whole(folder / FORGOTTEN_FILE, content.encode())


def kept_out(folder: Path) -> frozenset[str]:
    """Hashes of the ids that a refresh leaves out.

    Raises:
        SnapshotError: the file that holds them is damaged.
    """
    file = folder / FORGOTTEN_FILE
    try:
        return frozenset(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return frozenset()
    except (OSError, ValueError, TypeError) as error:
        raise SnapshotError(
            f"{file}, which keeps forgotten rows out, cannot be read: {error}",
            next_step="restore it from a backup, or remove it and forget the ids again",
        ) from error


def not_forgotten(rows: Sequence[R], folder: Path) -> list[R]:
    """The rows of a source, or those that it quarantines, without those that a refresh leaves out."""
    left_out = kept_out(folder)
    return [row for row in rows if hash_of(row.row_id or "") not in left_out] if left_out else list(rows)


def hash_of(row_id: str) -> str:
    """What is stored of a forgotten id: SHA-256, 64 hex digits."""
    return hashlib.sha256(row_id.encode()).hexdigest()


def rows_of(snapshot: Snapshot, ids: Collection[str]) -> tuple[Counter[tuple[str, str]], set[str]]:
    """How many rows have each of these ids, by id and split, and their texts.

    Raises:
        SnapshotError: the file cannot be read.
    """
    counts: Counter[tuple[str, str]] = Counter()
    texts: set[str] = set()
    for split in SPLITS:
        if snapshot.rows(split, ["row_id"])["row_id"].isin(ids).any():
            found = snapshot.rows(split, ["row_id", "text"]).query("row_id in @ids")
            counts.update((row_id, split) for row_id in found["row_id"])
            texts |= set(found["text"])
    return counts, texts


def redact(path: Path, ids: Collection[str]) -> None:
    """Take the rows with these ids out of the snapshot or golden set in the folder `path`.

    Idempotent, also after a kill: the manifest is replaced in one step, and names another file than before.

    Raises:
        SnapshotError: it is damaged.
        StorageError: the disk is full, read-only or forbidden.
    """
    snapshot = open_snapshot(path)
    [name] = snapshot.manifest["files"]
    with storage_errors(path):
        table = pq.read_table(path / name)
        gone = pc.is_in(table["row_id"], value_set=pa.array(sorted(ids)))
        if pc.any(gone).as_py():
            name = _replace(snapshot, table.filter(pc.invert(gone)), table.num_rows)
        for file in path.iterdir():
            if file.name not in {name, MANIFEST_FILE}:
                file.unlink()


def _replace(snapshot: Snapshot, remaining: pa.Table, num_rows: int) -> str:
    """Write what remains and a manifest that names it; returns the name of the new file."""
    manifest, path = snapshot.manifest, snapshot.path
    name = f"rows-{uuid.uuid4().hex[:8]}.parquet"
    with replacing(path / name) as draft:
        pq.write_table(remaining, draft, compression="zstd")
        draft.chmod(draft.stat().st_mode & 0o444)
    earlier = manifest.get("redacted", {}).get("rows", 0)
    changed = {
        **manifest,
        **_counts(manifest, remaining),
        "redacted": {
            "rows": earlier + num_rows - remaining.num_rows,
            "remaining": snapshot_id(remaining.to_pandas(), manifest["rules"]),
        },
        "files": {name: {"sha256": sha256_of(path / name), "bytes": (path / name).stat().st_size}},
    }
    with replacing(path / MANIFEST_FILE) as draft:
        draft.write_bytes(signed(changed))
        draft.chmod(draft.stat().st_mode & 0o444)
    return name


def _counts(manifest: dict[str, Any], remaining: pa.Table) -> dict[str, Any]:
    """The counts of a snapshot's manifest, of what remains; a golden set states none."""
    if "label_counts" not in manifest:
        return {}
    names = manifest["label_names"]
    counts = Counter(zip(remaining["split"].to_pylist(), remaining["label"].to_pylist(), strict=True))
    labels = {split: {name: counts[split, label] for label, name in enumerate(names)} for split in SPLITS}
    rows = {split: sum(of_split.values()) for split, of_split in labels.items()}
    return {"rows": rows, "rows_total": remaining.num_rows, "label_counts": labels}
