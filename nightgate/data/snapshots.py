"""Immutable snapshots: `home/snapshots/<pipeline>/<id>/manifest.json`, which names a chain of deltas.

Golden rows, and the snapshots of earlier releases, have their rows in a file beside the manifest. The id is a hash of
the canonical rows and the rules that made them, not of Parquet bytes: the same input has the same id on any machine.
The folder appears by one rename, so a folder under an id is complete.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nightgate.config.pipeline import Pipeline
from nightgate.data.columns import AGAIN, Columns, take
from nightgate.data.deltas import (
    TAKEN,
    Chain,
    TextsOf,
    canonical,
    check_files,
    described,
    read_chain,
    read_signed,
    signed,
)
from nightgate.data.rules import SPLITS, label_meaning, memory_of, version_of_rules
from nightgate.data.split_memory import Keys, hashes_of
from nightgate.durable_files import sync
from nightgate.errors import SnapshotError, first_line, storage_errors
from nightgate.label_meaning import LabelMeaning
from nightgate.text_rules import fingerprint

T = TypeVar("T")
log = logging.getLogger(__name__)

ROWS_FILE = "rows.parquet"
MANIFEST_FILE = "manifest.json"
FORMAT_VERSION = 2
ONE_FILE = 1
"""Format of snapshots that have their rows in a file of their own: golden rows, and those of earlier releases."""
_BATCH = 65_536
_ABANDONED_AFTER = 24 * 3600.0
"""Seconds after which a draft is considered left over from a killed process."""


@dataclass(frozen=True)
class Snapshot:
    id: str
    path: Path
    manifest: dict[str, Any]

    def __str__(self) -> str:
        return f"snapshot {self.id}"

    def rows(
        self, split: str, columns: Sequence[str] | None = None, *, at: NDArray[np.intp] | None = None
    ) -> pd.DataFrame:
        """The rows of one split, sorted by fingerprint, with all columns or the given ones.

        Columns: row_id, fingerprint (32 hex digits), text (normalised), label (int64 class index), time
        (datetime64[us, UTC]) and group where the pipeline has them, slice_<name> for each slice. Only on request
        text_key (uint64), the first half of the fingerprint, and seen, the ascending number of the refresh that the row
        came with (0 in snapshots of earlier releases): with label and time they are read without any text.

        Args:
            at: places of the wanted rows among those of the split: the texts of no others are read.

        Raises:
            SnapshotError: a file cannot be read.
        """
        if split not in SPLITS:
            raise ValueError(f"{split!r} is not a split; it is one of {', '.join(SPLITS)}")
        if self.manifest["format"] == ONE_FILE:
            return self._rows_of_file(split, columns, at)
        names = list(columns) if columns is not None else self.columns
        chain = self.chain()
        index = chain.index(["state", "split", "text_key", "label", "time", "text_at", "seen"])
        index = take(index, (index["state"] == TAKEN) & (index["split"] == SPLITS.index(split)))
        return rows_of(chain, index, names, at)

    @property
    def columns(self) -> list[str]:
        """The columns of `rows`."""
        if self.manifest["format"] == ONE_FILE:
            return [name for name in self._read(lambda path: pq.read_schema(path).names) if name != "split"]
        return list(self.manifest["columns"])

    def batches(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """These columns (text, slice_<name>) of the rows of all splits in turn, in no particular order.

        Raises:
            SnapshotError: a file cannot be read.
        """
        if self.manifest["format"] == ONE_FILE:
            with self._read(pq.ParquetFile) as file:
                for batch in file.iter_batches(batch_size=_BATCH, columns=list(columns)):
                    yield pa.Table.from_batches([batch])
            return
        chain = self.chain()
        index = chain.index(["state", "text_at"])
        yield from chain.batches(np.sort(index["text_at"][index["state"] == TAKEN]), columns)

    def text_keys(self) -> NDArray[np.uint64]:
        """The first half of the fingerprint of every row.

        Raises:
            SnapshotError: a file cannot be read.
        """
        if self.manifest["format"] == ONE_FILE:
            return np.concatenate([self.rows(split, ["text_key"])["text_key"].to_numpy() for split in SPLITS])
        index = self.chain().index(["state", "text_key"])
        keys: NDArray[np.uint64] = index["text_key"][index["state"] == TAKEN]
        return keys

    def split_keys(
        self, *, with_ids: bool, clusters: Callable[[list[str]], Keys] | None = None
    ) -> tuple[dict[str, Keys], NDArray[np.int8]]:
        """Hashes of the ids, texts and groups that rows had, as `SplitMemory` takes them, and the split of each row.

        Args:
            with_ids: whether row ids are the source's.
            clusters: makes keys of near-copies of texts, which are not stored.

        Raises:
            SnapshotError: a file cannot be read.
        """
        if self.manifest["format"] != ONE_FILE:
            chain = self.chain()
            index = chain.index(["id_key", "text_key", "group_key", "split", "text_at"], superseded=True)
            index = take(index, index["split"] >= 0)
            keys = {"id": index["id_key"], "text": index["text_key"], "group": index["group_key"]}
            if clusters is not None:
                places, back = np.unique(index["text_at"], return_inverse=True)
                found = [clusters(table["text"].to_pylist()) for table in chain.batches(places, ["text"])]
                keys["cluster"] = np.concatenate(found)[back]
            return keys, index["split"]
        columns = ["text_key", *(["row_id"] if with_ids else []), *(["group"] if self.manifest["group"] else [])]
        columns += [] if clusters is None else ["text"]
        frames = [self.rows(split, ["fingerprint", *columns]).assign(split=SPLITS.index(split)) for split in SPLITS]
        frame = pd.concat(frames)
        keys = {"text": frame["text_key"].to_numpy()}
        for kind, name in (("id", "row_id"), ("group", "group")):
            if name in frame:
                own = (frame[name] == frame["fingerprint"]).to_numpy()
                keys[kind] = np.where(own, keys["text"] if kind == "group" else 0, hashes_of(frame[name].tolist()))
        if clusters is not None:
            keys["cluster"] = clusters(frame["text"].tolist())
        return keys, frame["split"].to_numpy(np.int8)

    def chain(self) -> Chain:
        """The deltas of a snapshot that has no file of its own.

        Raises:
            SnapshotError: one is missing.
        """
        return read_chain(self.path.parent, self.manifest["head"], verify=False)

    def _rows_of_file(self, split: str, columns: Sequence[str] | None, at: NDArray[np.intp] | None) -> pd.DataFrame:
        names = list(columns) if columns is not None else self.columns
        made = {"text_key", "seen"}
        stored = list(dict.fromkeys("fingerprint" if name in made else name for name in names))
        table = self._read(lambda path: pq.read_table(path, columns=stored, filters=[("split", "==", split)]))
        frame: pd.DataFrame = (table if at is None else table.take(pa.array(at))).to_pandas()
        if made.intersection(names):
            frame = frame.assign(text_key=text_keys(frame["fingerprint"]), seen=0)[names]
        return frame

    def _read(self, read: Callable[[Path], T]) -> T:
        [name] = self.manifest["files"]
        try:
            return read(self.path / name)
        except (OSError, pa.ArrowException) as error:
            raise SnapshotError(f"{self.path / name} cannot be read: {first_line(error)}", next_step=AGAIN) from error


def rows_of(chain: Chain, index: Columns, names: Sequence[str], at: NDArray[np.intp] | None = None) -> pd.DataFrame:
    """The rows of an index with the columns of `Snapshot.rows`, sorted by fingerprint; `at`: as there."""
    index = take(index, np.argsort(index["text_key"], kind="stable"))
    if at is not None:
        index = take(index, at)
    found: dict[str, Any] = {
        "text_key": pa.array(index["text_key"]),
        "label": pa.array(index["label"]).cast(pa.int64()),
        "time": pa.array(index["time"]).cast(pa.timestamp("us", tz="UTC")) if "time" in names else None,
        "seen": index.get("seen"),
    }
    found |= facts_of(chain.texts, index["text_at"], [name for name in names if name not in found])
    frame: pd.DataFrame = pa.table({name: found[name] for name in names}).to_pandas()
    return frame


def facts_of(texts_of: TextsOf, places: NDArray[np.int64], names: Sequence[str]) -> dict[str, pa.Array]:
    """These columns of the texts at places, with `fingerprint`, which also stands for a missing id or group."""
    table = texts_of(places, [name for name in names if name != "fingerprint"])
    found = {name: table[name].combine_chunks() for name in table.column_names}
    named = [name for name in ("row_id", "group") if name in found]
    if "fingerprint" in names or any(found[name].null_count for name in named):
        texts = found["text"] if "text" in found else texts_of(places, ["text"])["text"]
        found["fingerprint"] = pa.array(map(fingerprint, texts.to_pylist()), pa.string())
        found |= {name: pc.coalesce(found[name], found["fingerprint"]) for name in named}
    return found


def text_keys(fingerprints: Iterable[str]) -> NDArray[np.uint64]:
    """The first halves of fingerprints as numbers."""
    return np.array([int(mark[:16], 16) for mark in fingerprints], np.uint64)


def version_of(snapshot: Snapshot, pipeline: Pipeline) -> str:
    """The test version of a snapshot of `pipeline`; an earlier release stored one without the labels' meaning."""
    return version_of_rules(meaning_of(snapshot, pipeline).rules | snapshot.manifest["rules"])


def meaning_of(snapshot: Snapshot, pipeline: Pipeline) -> LabelMeaning:
    """What the labels of a snapshot of `pipeline` mean."""
    return label_meaning(pipeline, snapshot.manifest["rules"].get("classes", ()))


def open_snapshot(path: Path, *, verify: bool = True) -> Snapshot:
    """The snapshot in the folder `path`; `verify` reads its files and compares their SHA-256.

    Raises:
        SnapshotError: the folder or a file is missing, the manifest is incomplete, or a byte differs.
    """
    if not path.is_dir():
        raise SnapshotError(f"there is no snapshot at {path}", next_step=AGAIN)
    manifest = read_signed(path / MANIFEST_FILE)
    check_files(path, manifest["files"], verify=verify)
    if manifest["format"] != ONE_FILE:
        read_chain(path.parent, manifest["head"], verify=verify)
    return Snapshot(manifest["id"], path, manifest)


def newest_snapshots(folder: Path, of: str) -> list[Snapshot]:
    """Of each format the newest snapshot whose rows were divided by the rules that `memory_of` names, newest first."""
    found: dict[int, Snapshot] = {}
    for path in folder.glob(f"*/{MANIFEST_FILE}"):
        with suppress(SnapshotError):
            snapshot = open_snapshot(path.parent, verify=False)
            other = found.get(snapshot.manifest["format"])
            is_newer = other is None or other.manifest["created_at"] < snapshot.manifest["created_at"]
            if is_newer and memory_of(snapshot.manifest["rules"]) == of:
                found[snapshot.manifest["format"]] = snapshot
    return sorted(found.values(), key=lambda one: str(one.manifest["created_at"]), reverse=True)


def write_snapshot(
    folder: Path, rows: pd.DataFrame, rules: Mapping[str, Any], facts: Mapping[str, Any], *, name: str = ""
) -> Snapshot:
    """Write `rows` as one file under `folder`/<id>, or reuse an intact snapshot there; a damaged one is moved aside.

    Args:
        folder: the pipeline's folder, home/snapshots/<pipeline>/.
        rows: the columns of `Snapshot.rows` and `split`, sorted by fingerprint.
        rules: rules that made the rows; part of the id, as JSON.
        facts: further content of the manifest, not part of the id. A reused snapshot keeps those of its first night.
        name: folder name to use instead of the id; an intact snapshot of that name is kept whatever its rows.

    Raises:
        StorageError: the disk is full, read-only or forbidden; the draft is removed.
    """
    identity = id_of_rows(rows, rules)
    manifest = {"id": identity, "format": ONE_FILE, **facts, "rules": dict(rules)}
    return _write(folder / (name or identity), manifest, lambda path: _write_rows(rows, path / ROWS_FILE))


def write_manifest(
    folder: Path, identity: str, head: Mapping[str, str], rules: Mapping[str, Any], facts: Mapping[str, Any]
) -> Snapshot:
    """Write the manifest of the chain of deltas that ends with `head` under `folder`/<id>, or reuse an intact one.

    Args:
        folder: the pipeline's folder, home/snapshots/<pipeline>/.
        rules, facts: as in `write_snapshot`.

    Raises:
        StorageError: the disk is full, read-only or forbidden; the draft is removed.
    """
    manifest = {"id": identity, "format": FORMAT_VERSION, **facts, "rules": dict(rules), "head": dict(head)}
    return _write(folder / identity, manifest, lambda _: None)


def row_sums(rows: Columns) -> NDArray[np.uint64]:
    """Two sums of a number for each taken row of the index, which no order changes; those of several pieces add up."""
    sums = []
    for odd in (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)):
        mixed = (rows["text_key"] ^ rows["facts"] * odd) + rows["label"].astype(np.uint64) * np.uint64(3)
        mixed += rows["split"].astype(np.uint64)
        for shift in (32, 29, 32):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * odd
        sums.append(mixed.sum(dtype=np.uint64))
    return np.array(sums)


def snapshot_id(sums: NDArray[np.uint64], rules: Mapping[str, Any], slices: Collection[str] = ()) -> str:
    """`s-` and 16 hex digits over the rules, the slices' names and every taken row, by their `row_sums`."""
    named = {"slices": sorted(slices)} if slices else {}
    digest = hashlib.sha256(canonical({"format": FORMAT_VERSION, "rules": dict(rules), **named}))
    digest.update(sums.astype("<u8").tobytes())
    return f"s-{digest.hexdigest()[:16]}"


def _write(final: Path, manifest: Mapping[str, Any], fill: Callable[[Path], None]) -> Snapshot:
    folder = final.parent
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder)
        kept = _reuse_or_move_aside(final)
        if kept:
            return kept
        draft = folder / f".{manifest['id']}-{uuid.uuid4().hex[:8]}.draft"
        draft.mkdir()
        try:
            fill(draft)
            files = described(draft, sorted(file.name for file in draft.iterdir()))
            whole = {**manifest, "created_at": datetime.now(UTC).isoformat(), "files": files}
            (draft / MANIFEST_FILE).write_bytes(signed(whole))
            for file in draft.iterdir():
                file.chmod(file.stat().st_mode & 0o444)
                sync(file)
            sync(draft)
            try:
                draft.rename(final)
            except OSError:
                # Another process was first.
                kept = _reuse_or_move_aside(final)
                if kept:
                    return kept
                draft.rename(final)
            sync(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return open_snapshot(final, verify=False)


def id_of_rows(rows: pd.DataFrame, rules: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(canonical({"format": ONE_FILE, "rules": dict(rules)}))
    names = sorted(rows.columns)
    digest.update(canonical(names))
    columns: list[Iterable[Any]] = []
    for name in names:
        column = rows[name]
        if isinstance(column.dtype, pd.DatetimeTZDtype):
            # Microseconds since 1970, independent of the unit that pandas uses.
            column = column.dt.tz_convert("UTC").dt.tz_localize(None).astype("datetime64[us]").astype("int64")
        columns.append(column.tolist())
    # Encoding row by row keeps memory use constant.
    encode = json.JSONEncoder(ensure_ascii=True, separators=(",", ":")).encode
    for values in zip(*columns, strict=True):
        digest.update(encode(values).encode())
        digest.update(b"\n")
    return f"s-{digest.hexdigest()[:16]}"


def _write_rows(rows: pd.DataFrame, path: Path) -> None:
    kinds = {"label": pa.int64(), "time": pa.timestamp("us", tz="UTC")}
    fields = [pa.field(str(name), kinds.get(name, pa.string()), nullable=False) for name in rows.columns]
    table = pa.Table.from_pandas(rows, schema=pa.schema(fields), preserve_index=False)
    pq.write_table(table.replace_schema_metadata(None), path, compression="zstd")


def _reuse_or_move_aside(final: Path) -> Snapshot | None:
    if not final.exists():
        return None
    try:
        return open_snapshot(final)
    except SnapshotError as error:
        aside = final.with_name(f"{final.name}.damaged-{uuid.uuid4().hex[:8]}")
        final.rename(aside)
        log.warning("%s; it was moved to %s and is written again", error.reason, aside.name)
        return None


def _remove_abandoned(folder: Path) -> None:
    for draft in folder.glob(".*.draft"):
        if time.time() - draft.stat().st_mtime > _ABANDONED_AFTER:
            shutil.rmtree(draft, ignore_errors=True)
