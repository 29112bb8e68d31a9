"""Take the rows of forgotten ids out of stored snapshots and golden sets.

    redact_deltas(folder, {"4711"})                        # all snapshots of a pipeline
    redact_file(folder / "s-0123456789abcdef", {"4711"})   # golden sets and snapshots of earlier releases: one file

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

from nightgate.data.columns import Columns, take
from nightgate.data.deltas import MERGED, TAKEN, Chain, described, signed
from nightgate.data.rules import SPLITS
from nightgate.data.snapshots import MANIFEST_FILE, Snapshot, id_of_rows, open_snapshot, row_sums, snapshot_id
from nightgate.data.split_memory import hashes_of
from nightgate.durable_files import replacing
from nightgate.errors import storage_errors
from nightgate.registry.compaction import Forest, read_forest, rewrite

Mask = NDArray[np.bool_]
Counts = Counter[tuple[str, str]]
"""Rows by id and split."""


def rows_of(snapshot: Snapshot, ids: Collection[str]) -> Counts:
    """How many rows of a snapshot or a golden set have each of these ids.

    Raises:
        SnapshotError: a file cannot be read.
    """
    if has_file(snapshot):
        found = ((split, snapshot.rows(split, ["row_id"])["row_id"]) for split in SPLITS)
        return Counter((row_id, split) for split, column in found for row_id in column[column.isin(ids)])
    index = snapshot.chain().index(["id_key", "text_key", "state", "split"])
    index = take(index, (index["state"] == TAKEN) & _of_ids(index, ids))
    by_key = {int(key): row_id for row_id in ids for key in (*hashes_of([row_id]), *_text_keys([row_id]))}
    keys = np.where(index["id_key"] == 0, index["text_key"], index["id_key"])
    return Counter((by_key[key], SPLITS[split]) for key, split in zip(keys.tolist(), index["split"], strict=True))


def has_file(snapshot: Snapshot) -> bool:
    """Whether its rows are in a file of its own, and not in deltas."""
    return "head" not in snapshot.manifest


def texts_of(snapshot: Snapshot, ids: Collection[str]) -> set[str]:
    """The texts of these rows of a snapshot with a file of its own."""
    frames = (snapshot.rows(split, ["row_id", "text"]) for split in SPLITS)
    return {text for frame in frames for text in frame["text"][frame["row_id"].isin(ids)]}


def redact_file(path: Path, ids: Collection[str]) -> None:
    """Take the rows with these ids out of the file of a snapshot or a golden set.

    Idempotent, also after a kill: the manifest is replaced in one step, and names another file than before.

    Raises:
        SnapshotError: it is damaged.
        StorageError: the disk is full, read-only or forbidden.
    """
    manifest = open_snapshot(path).manifest
    [name] = manifest["files"]
    with storage_errors(path):
        table = pq.read_table(path / name)
        remaining = table.filter(pc.invert(pc.is_in(table["row_id"], value_set=pa.array(sorted(ids)))))
        if remaining.num_rows < table.num_rows:
            name = f"rows-{uuid.uuid4().hex[:8]}.parquet"
            with replacing(path / name) as draft:
                pq.write_table(remaining, draft, compression="zstd")
                draft.chmod(draft.stat().st_mode & 0o444)
            splits = np.array([SPLITS.index(split) for split in remaining["split"].to_pylist()], np.int64)
            rest = id_of_rows(remaining.to_pandas(), manifest["rules"])
            changed = _redacted(manifest, splits, remaining["label"].to_numpy(), table.num_rows, rest)
            with replacing(path / MANIFEST_FILE) as draft:
                draft.write_bytes(signed(changed | {"files": described(path, [name])}))
                draft.chmod(draft.stat().st_mode & 0o444)
        for file in path.iterdir():
            if file.name not in {name, MANIFEST_FILE}:
                file.unlink()


def redact_deltas(folder: Path, ids: Collection[str]) -> None:
    """Take the rows with these ids out of all deltas of a pipeline, and let the next refresh read their parts again.

    Idempotent, also after a kill. The caller holds the pipeline's snapshots.

    Raises:
        StorageError: the disk is full, read-only or forbidden.
    """
    with storage_errors(folder):
        forest = read_forest(folder, verify=True)
        dropped = {name: _in_last(chain, ids)[1] for name, chain in forest.chains.items()}
        dropped = {name: mask for name, mask in dropped.items() if mask.any()}
        tip = forest.tip
        if dropped and tip.head is not None and tip.head["delta"] in forest.chains:
            copies, parts = _copies(forest.chains[tip.head["delta"]], ids)
            for name, mask in copies.items():
                dropped[name] = mask | dropped[name] if name in dropped else mask
            unread = {name: part | {"version": None} for name, part in tip.parts.items() if part["code"] in parts}
            forest = replace(forest, tip=replace(tip, parts=tip.parts | unread))
        rewrite(forest, dropped, change=_counted_again)


def in_deltas(forest: Forest, ids: Collection[str]) -> tuple[int, set[str]]:
    """Number of entries with these ids that have a text, of all versions of the rows, and the texts."""
    number, texts = 0, set[str]()
    for chain in forest.chains.values():
        index, found = _in_last(chain, ids)
        if found.any():
            number += int(found.sum())
            texts |= set(chain.texts(index["text_at"][found], ["text"])["text"].to_pylist())
    return number, texts


def _in_last(chain: Chain, ids: Collection[str]) -> tuple[Columns, Mask]:
    """The index of the last delta of a chain, and which of its rows have one of the ids and a text."""
    index = Chain(chain.deltas[-1:]).index(["id_key", "text_key", "text_at"], superseded=True)
    return index, _of_ids(index, ids) & (index["text_at"] >= 0)


def _copies(chain: Chain, ids: Collection[str]) -> tuple[dict[str, Mask], set[int]]:
    """Rows that hold and have the same text as a row that is taken out, by delta: when they are read again, one of
    them is taken in its place. With the numbers of the parts of all these.
    """
    index = chain.index(["id_key", "text_key", "text_at", "state", "part"])
    gone = _of_ids(index, ids) & (index["text_at"] >= 0)
    texts = np.unique(index["text_key"][gone & (index["state"] == TAKEN)])
    copies = ~gone & (index["state"] == MERGED) & np.isin(index["text_key"], texts)
    found, first = {}, 0
    for delta in chain.deltas:
        here = index["place"][copies] - first
        mask = np.zeros(delta.facts["index"], bool)
        mask[here[(here >= 0) & (here < len(mask))]] = True
        first += len(mask)
        if mask.any():
            found[delta.path.name] = mask
    return found, {*index["part"][gone | copies].tolist()}


def _of_ids(index: Columns, ids: Collection[str]) -> Mask:
    """Rows with these ids; without an id of its own a row's fingerprint counts."""
    found: Mask = (index["id_key"] == 0) & np.isin(index["text_key"], np.array(_text_keys(ids), np.uint64))
    found |= np.isin(index["id_key"], hashes_of(sorted(ids)))
    return found


def _text_keys(ids: Collection[str]) -> list[int]:
    """Of ids that may be fingerprints."""
    return [int(row_id[:16], 16) for row_id in ids if re.fullmatch("[0-9a-f]{32}", row_id)]


def _counted_again(manifest: dict[str, Any], chain: Chain) -> dict[str, Any]:
    """The manifest of a snapshot, with the counts of its new chain."""
    index = chain.index(["text_key", "facts", "label", "split", "state"])
    taken = take(index, index["state"] == TAKEN)
    if len(taken["label"]) == manifest["rows_total"]:
        return manifest
    rest = snapshot_id(row_sums(taken), manifest["rules"])
    return _redacted(manifest, taken["split"], taken["label"], manifest["rows_total"], rest)


def _redacted(
    manifest: dict[str, Any], splits: NDArray[Any], labels: NDArray[Any], num_rows: int, rest: str
) -> dict[str, Any]:
    """The manifest with the counts of what remains of `num_rows` rows, whose own id is `rest`."""
    earlier = manifest.get("redacted", {}).get("rows", 0)
    changed = manifest | {"redacted": {"rows": earlier + num_rows - len(labels), "remaining": rest}}
    if "label_counts" in manifest:  # a golden set states none
        names = manifest["label_names"]
        counts = np.bincount(splits.astype(np.int64) * len(names) + labels, minlength=len(SPLITS) * len(names))
        by_split = dict(zip(SPLITS, counts.reshape(len(SPLITS), -1).tolist(), strict=True))
        changed |= {
            "rows": {split: sum(counted) for split, counted in by_split.items()},
            "rows_total": len(labels),
            "label_counts": {split: dict(zip(names, counted, strict=True)) for split, counted in by_split.items()},
        }
    return changed
