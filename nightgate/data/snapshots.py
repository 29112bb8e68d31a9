"""Immutable snapshots: `home/snapshots/<pipeline>/<id>/` with `rows.parquet` and, written last, `manifest.json`.

The id is a hash of the canonical rows and the rules that made them, not of Parquet bytes: the same input has the same
id on any machine. The folder appears by one rename, so a folder under an id is complete.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from nightgate.durable_files import sha256_of, sync
from nightgate.errors import SnapshotError, first_line, storage_errors

log = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
ROWS_FILE = "rows.parquet"
MANIFEST_FILE = "manifest.json"
FORMAT_VERSION = 1
_AGAIN = "run again with --force: the refresh moves this folder aside and writes a new one from the source"
_ABANDONED_AFTER = 24 * 3600.0
"""Seconds after which a draft is considered left over from a killed process."""


@dataclass(frozen=True)
class Snapshot:
    id: str
    path: Path
    manifest: dict[str, Any]

    def __str__(self) -> str:
        return f"snapshot {self.id}"

    def rows(self, split: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """The rows of one split, sorted by fingerprint, with all columns or the given ones.

        Columns: row_id, fingerprint (32 hex digits), text (normalised), label (int64 class index), time
        (datetime64[us, UTC]) and group where the pipeline has them, slice_<name> for each slice.

        Raises:
            SnapshotError: the file cannot be read.
        """
        if split not in SPLITS:
            raise ValueError(f"{split!r} is not a split; it is one of {', '.join(SPLITS)}")
        [name] = self.manifest["files"]  # another than ROWS_FILE once rows were redacted
        path = self.path / name
        try:
            names = list(columns) if columns is not None else [n for n in pq.read_schema(path).names if n != "split"]
            table = pq.read_table(path, columns=names, filters=[("split", "==", split)])
        except (OSError, pa.ArrowException) as error:
            raise SnapshotError(f"{path} cannot be read: {first_line(error)}", next_step=_AGAIN) from error
        frame: pd.DataFrame = table.to_pandas()
        return frame


def open_snapshot(path: Path, *, verify: bool = True) -> Snapshot:
    """The snapshot in the folder `path`; `verify` reads its files and compares their SHA-256.

    Raises:
        SnapshotError: the folder or a file is missing, the manifest is incomplete, or a byte differs.
    """
    manifest = _read_manifest(path)
    for name, expected in manifest["files"].items():
        file = path / name
        if not file.is_file():
            problem = f"incomplete: {name} is missing"
        elif (size := file.stat().st_size) != expected["bytes"]:
            problem = f"damaged: {name} has {size} bytes, its manifest says {expected['bytes']}"
        elif verify and sha256_of(file) != expected["sha256"]:
            problem = f"damaged: {name} differs from its manifest (SHA-256)"
        else:
            continue
        raise SnapshotError(f"snapshot {path} is {problem}", next_step=_AGAIN)
    return Snapshot(manifest["id"], path, manifest)


def write_snapshot(
    folder: Path, rows: pd.DataFrame, rules: Mapping[str, Any], facts: Mapping[str, Any], *, name: str = ""
) -> Snapshot:
    """Write `rows` under `folder`/<id>, or reuse an intact snapshot there; a damaged one is moved aside.

    Args:
        folder: the pipeline's folder, home/snapshots/<pipeline>/.
        rows: the columns of `Snapshot.rows` and `split`, sorted by fingerprint.
        rules: rules that made the rows; part of the id, as JSON.
        facts: further content of the manifest, not part of the id. A reused snapshot keeps those of its first night.
        name: folder name to use instead of the id; an intact snapshot of that name is kept whatever its rows.

    Raises:
        StorageError: the disk is full, read-only or forbidden; the draft is removed.
    """
    identity = snapshot_id(rows, rules)
    final = folder / (name or identity)
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder)
        kept = _reuse_or_move_aside(final)
        if kept:
            return kept
        draft = folder / f".{identity}-{uuid.uuid4().hex[:8]}.draft"
        draft.mkdir()
        try:
            stored = draft / ROWS_FILE
            _write_rows(rows, stored)
            manifest = {
                "id": identity,
                "format": FORMAT_VERSION,
                **facts,
                "rules": dict(rules),
                "created_at": datetime.now(UTC).isoformat(),
                "files": {ROWS_FILE: {"sha256": sha256_of(stored), "bytes": stored.stat().st_size}},
            }
            (draft / MANIFEST_FILE).write_bytes(signed(manifest))
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
    return open_snapshot(final)


def signed(manifest: Mapping[str, Any]) -> bytes:
    """The content of a manifest's file, with a checksum of itself."""
    whole = {**manifest, "manifest_sha256": hashlib.sha256(_canonical(manifest)).hexdigest()}
    return (json.dumps(whole, indent=2, ensure_ascii=False) + "\n").encode()


def snapshot_id(rows: pd.DataFrame, rules: Mapping[str, Any]) -> str:
    """`s-` and 16 hex digits over the rules and every row, in order of the fingerprints."""
    digest = hashlib.sha256(_canonical({"format": FORMAT_VERSION, "rules": dict(rules)}))
    names = sorted(rows.columns)
    digest.update(_canonical(names))
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


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST_FILE
    if not path.is_dir():
        raise SnapshotError(f"there is no snapshot at {path}", next_step=_AGAIN)
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        stated = manifest.pop("manifest_sha256")
    except FileNotFoundError as error:
        raise SnapshotError(
            f"snapshot {path} is incomplete: {MANIFEST_FILE}, which is written last, is missing", next_step=_AGAIN
        ) from error
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise SnapshotError(f"snapshot {path} is damaged: {MANIFEST_FILE} is incomplete", next_step=_AGAIN) from error
    except OSError as error:
        raise SnapshotError(
            f"{file} cannot be read: {error.strerror}", next_step="give this user the right to read it"
        ) from error
    if stated != hashlib.sha256(_canonical(manifest)).hexdigest():
        raise SnapshotError(f"snapshot {path} is damaged: {MANIFEST_FILE} was altered", next_step=_AGAIN)
    return dict(manifest)


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


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
