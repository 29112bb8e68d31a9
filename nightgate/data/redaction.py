"""Take the rows of forgotten ids out of stored snapshots and golden sets.

    redact(folder / "s-0123456789abcdef", {"4711"})

A redacted snapshot keeps its id, which was a hash of rows that are gone. Its manifest says how many rows were taken out
and has the checksum of what remains: verification accepts that alone.
"""

from __future__ import annotations

import re
import uuid
from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nightgate.data.batches import Columns, hashes_of
from nightgate.data.deltas import REDACTED_FILE, TAKEN, Delta, described, signed, take
from nightgate.data.rules import SPLITS
from nightgate.data.snapshots import MANIFEST_FILE, ONE_FILE, Snapshot, id_of_rows, open_snapshot, snapshot_id
from nightgate.data.tip import read_tip, write_tip
from nightgate.durable_files import replacing, sha256_of
from nightgate.errors import storage_errors


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
    if snapshot.manifest["format"] != ONE_FILE:
        _redact_chain(snapshot, ids)
        return
    [name] = snapshot.manifest["files"]
    with storage_errors(path):
        table = pq.read_table(path / name)
        gone = pc.is_in(table["row_id"], value_set=pa.array(sorted(ids)))
        if pc.any(gone).as_py():
            name = _replace(snapshot, table.filter(pc.invert(gone)), table.num_rows)
        for file in path.iterdir():
            if file.name not in {name, MANIFEST_FILE}:
                file.unlink()


def _redact_chain(snapshot: Snapshot, ids: Collection[str]) -> None:
    """Take the rows out of the deltas of a snapshot, which others share, and count again in its manifest."""
    chain, manifest = snapshot.chain(), snapshot.manifest
    index = chain.index(superseded=True)
    gone = take(index, _of_ids(index, ids))
    first, first_text = 0, 0
    for delta in chain.deltas:
        here = (gone["place"] >= first) & (gone["place"] < first + delta.facts["index"])
        texts = gone["text_at"][(gone["text_at"] >= first_text) & (gone["text_at"] < first_text + delta.text_rows)]
        if here.any() or len(texts):
            _redact_delta(delta, gone["place"][here] - first, np.unique(texts) - first_text)
        first, first_text = first + delta.facts["index"], first_text + delta.text_rows
    index = snapshot.chain().index()
    taken = take(index, index["state"] == TAKEN)
    rows = manifest.get("redacted", {}).get("rows", 0) + manifest["rows_total"] - len(taken["label"])
    if rows != manifest.get("redacted", {}).get("rows", 0):
        splits = [SPLITS[code] for code in taken["split"]]
        remaining = pa.table({"split": splits, "label": pa.array(taken["label"])})
        redacted = {"rows": rows, "remaining": snapshot_id(taken, manifest["rules"])}
        with storage_errors(snapshot.path), replacing(snapshot.path / MANIFEST_FILE) as draft:
            draft.write_bytes(signed({**manifest, **_counts(manifest, remaining), "redacted": redacted}))
            draft.chmod(draft.stat().st_mode & 0o444)
        # Another row may have the text of a row that is gone: the next refresh reads everything again.
        folder = snapshot.path.parent
        write_tip(folder, replace(read_tip(folder), head=None, parts={}, after={}))


def _of_ids(index: Columns, ids: Collection[str]) -> NDArray[np.bool_]:
    """Rows with these ids; of rows without one it is the fingerprint."""
    marks = [int(row_id[:16], 16) for row_id in ids if re.fullmatch("[0-9a-f]{32}", row_id)]
    of_text = (index["id_key"] == 0) & np.isin(index["text_key"], np.array(marks, np.uint64))
    found: NDArray[np.bool_] = np.isin(index["id_key"], hashes_of(sorted(ids))) | of_text
    return found


def _redact_delta(delta: Delta, rows: NDArray[np.int64], texts: NDArray[np.int64]) -> None:
    """Write a file of texts without these, and a sidecar that names it and the rows of the index that are gone."""
    known = {*delta.redacted.get("rows", ())}
    if known.issuperset(rows.tolist()) and delta.redacted:
        return
    name = f"texts-{uuid.uuid4().hex[:8]}.parquet"
    old = delta.texts_file
    with storage_errors(delta.path):
        with replacing(delta.path / name) as draft:
            _write_without(old, draft, texts)
            draft.chmod(draft.stat().st_mode & 0o444)
        facts = {"rows": sorted(known | {*rows.tolist()}), "files": described(delta.path, [name])}
        with replacing(delta.path / REDACTED_FILE) as draft:
            draft.write_bytes(signed(facts))
            draft.chmod(draft.stat().st_mode & 0o444)
        for file in delta.path.glob("texts*.parquet"):
            if file.name != name:
                file.unlink()


def _write_without(old: Path, new: Path, texts: NDArray[np.int64]) -> None:
    """Copy a file of texts; rows at these places become empty."""
    with pq.ParquetFile(old) as file, pq.ParquetWriter(new, file.schema_arrow, compression="zstd") as writer:
        first = 0
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            here = pa.array(np.isin(first + np.arange(table.num_rows), texts))
            for place, column in enumerate(table.column_names):
                table = table.set_column(place, column, pc.if_else(here, "", table[column]))
            writer.write_table(table)
            first += table.num_rows


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
            "remaining": id_of_rows(remaining.to_pandas(), manifest["rules"]),
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
