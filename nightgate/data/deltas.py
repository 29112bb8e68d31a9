"""What one refresh adds to a pipeline's data: an immutable folder, named after the ones before it.

    home/snapshots/<pipeline>/deltas/<number>-<hex>/
        texts.parquet        what was taken from rows that are new, in reading order
        index.parquet        numbers of each row of the source that is new or whose state changed
        superseded.parquet   places in the index of earlier deltas of what holds no longer
        delta.json           written last: the delta before it and a checksum of each file

The state of the data is the index of a chain of deltas, without what later ones superseded. Places in it count from the
first row of the first delta, and so do those of texts. Everything is append-only: a snapshot names the last delta of
its chain. Only `nightgate.registry.compaction` writes deltas anew: to join them, or without rows that were forgotten.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nightgate.data.columns import AGAIN, INDEX, Columns, Index, named, opened, pieces
from nightgate.durable_files import sha256_of, sync
from nightgate.errors import SnapshotError, storage_errors

DELTAS = "deltas"
DELTA_FILE = "delta.json"
TEXTS_FILE, INDEX_FILE, SUPERSEDED_FILE = "texts.parquet", "index.parquet", "superseded.parquet"

TAKEN, MERGED, REPLACED, CONFLICTING, LEFT_OUT, DELETED, QUARANTINED = range(7)
STATES = ("taken", "merged", "replaced", "conflicting", "left_out", "deleted", "quarantined")
"""What became of a row, by its code in the column `state`."""
GONE = -1
"""In place of a state: superseded by another row."""

# Columns that may hold nulls take half as long again to read and to write.
_ON_DISK = pa.schema([pa.field(name, pa.from_numpy_dtype(kind), nullable=False) for name, kind in INDEX.items()])
_PACKED = ("time", "updated", "text_at", "place")
_FEW = ("own_label", "label", "given", "split", "state", "part", "seen")


@dataclass(frozen=True)
class Delta:
    path: Path
    facts: Mapping[str, Any]
    """Content of delta.json."""

    @property
    def number(self) -> int:
        return int(self.facts["number"])

    @property
    def text_rows(self) -> int:
        return int(self.facts["texts"])

    def superseded(self) -> NDArray[np.int64]:
        """Places of earlier rows that hold no longer, ascending.

        Raises:
            SnapshotError: the file cannot be read.
        """
        if SUPERSEDED_FILE not in self.facts["files"]:
            return np.empty(0, np.int64)
        path = self.path / SUPERSEDED_FILE
        with opened(path) as file, named(path):
            return np.concatenate([np.empty(0, np.int64), *pieces(file, "place")])


@dataclass(frozen=True)
class Chain:
    """Deltas, oldest first, each of which names the one before it."""

    deltas: tuple[Delta, ...] = ()

    @property
    def head(self) -> dict[str, str] | None:
        """Name and checksum of the last delta."""
        if not self.deltas:
            return None
        last = self.deltas[-1].path
        return {"delta": last.name, "sha256": sha256_of(last / DELTA_FILE)}

    @property
    def text_rows(self) -> int:
        return sum(delta.text_rows for delta in self.deltas)

    def index(self, columns: Sequence[str] = tuple(INDEX), *, superseded: bool = False) -> Columns:
        """These columns of every row that holds, and `place`, sorted by place.

        Args:
            superseded: of the others, too.

        Raises:
            SnapshotError: a file cannot be read.
        """
        with self.rows(superseded=superseded) as index:
            at = slice(None) if index.holds.all() else np.flatnonzero(index.holds)
            # Column by column: memory that is used for the first time costs more than the reading.
            return {name: index.read(name)[at] for name in columns} | {"place": np.arange(len(index.holds))[at]}

    @contextmanager
    def rows(self, *, superseded: bool = False) -> Iterator[Index]:
        """The index, of which the block reads what it needs.

        Args:
            superseded: all rows hold.

        Raises:
            SnapshotError: a file cannot be read.
        """
        gone = [delta.superseded() for delta in self.deltas if not superseded]
        paths = [delta.path / INDEX_FILE for delta in self.deltas]
        with ExitStack() as files:
            yield Index({path: files.enter_context(opened(path)) for path in paths}, gone)

    def texts(self, places: NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
        """These columns of the texts at these places, in their order.

        Raises:
            SnapshotError: a file cannot be read.
        """
        order = np.argsort(places, kind="stable")
        tables = list(self.batches(places[order], columns))
        if not tables:
            schema = pa.schema([pa.field(name, pa.string()) for name in columns])
            return schema.empty_table()
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return pa.concat_tables(tables).take(pa.array(back))

    def batches(self, places: NDArray[np.int64], columns: Sequence[str]) -> Iterator[pa.Table]:
        """As `texts`, of sorted places, each once, and piece by piece."""
        first = 0
        for delta in self.deltas:
            low, high = np.searchsorted(places, (first, first + delta.text_rows))
            if low < high:
                path = delta.path / TEXTS_FILE
                with opened(path, buffer=0) as file, named(path):
                    wanted = places[low:high] - first
                    begin = 0
                    for group in range(file.num_row_groups):
                        end = begin + file.metadata.row_group(group).num_rows
                        here = wanted[slice(*np.searchsorted(wanted, (begin, end)))]
                        if len(here):
                            table = file.read_row_group(group, columns=list(columns))
                            yield table if len(here) == table.num_rows else table.take(pa.array(here - begin))
                        begin = end
            first += delta.text_rows


def read_chain(folder: Path, head: Mapping[str, str] | None, *, verify: bool) -> Chain:
    """The chain of deltas under `folder` that ends with `head`; without `verify` only names and sizes are compared.

    Raises:
        SnapshotError: a delta is missing, incomplete or altered.
    """
    deltas = []
    while head is not None:
        deltas.append(read_delta(folder, head, verify=verify))
        head = deltas[-1].facts["parent"]
    return Chain(tuple(reversed(deltas)))


def read_delta(folder: Path, head: Mapping[str, str], *, verify: bool) -> Delta:
    """The delta that `head` names; see `read_chain`."""
    path = folder / DELTAS / head["delta"]
    try:
        content = (path / DELTA_FILE).read_bytes()
    except OSError as error:
        raise SnapshotError(f"{path / DELTA_FILE} cannot be read: {error.strerror}", next_step=AGAIN) from error
    if hashlib.sha256(content).hexdigest() != head["sha256"]:
        raise SnapshotError(f"{path} is damaged: {DELTA_FILE} was altered", next_step=AGAIN)
    delta = Delta(path, json.loads(content))
    check_files(path, delta.facts["files"], verify=verify)
    return delta


def signed(manifest: Mapping[str, Any]) -> bytes:
    """The content of a manifest's file, with a checksum of itself."""
    whole = {**manifest, "manifest_sha256": hashlib.sha256(canonical(manifest)).hexdigest()}
    return (json.dumps(whole, indent=2, ensure_ascii=False) + "\n").encode()


def read_signed(file: Path) -> dict[str, Any]:
    """The manifest in a file that `signed` made.

    Raises:
        SnapshotError: it is incomplete or was altered.
    """
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        stated = manifest.pop("manifest_sha256")
    except FileNotFoundError as error:
        raise SnapshotError(
            f"snapshot {file.parent} is incomplete: {file.name}, which is written last, is missing", next_step=AGAIN
        ) from error
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise SnapshotError(f"snapshot {file.parent} is damaged: {file.name} is incomplete", next_step=AGAIN) from error
    except OSError as error:
        raise SnapshotError(
            f"{file} cannot be read: {error.strerror}", next_step="give this user the right to read it"
        ) from error
    if stated != hashlib.sha256(canonical(manifest)).hexdigest():
        raise SnapshotError(f"snapshot {file.parent} is damaged: {file.name} was altered", next_step=AGAIN)
    return dict(manifest)


def canonical(value: Any) -> bytes:
    """JSON in one spelling."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def check_files(path: Path, files: Mapping[str, Any], *, verify: bool) -> None:
    """Compare the files of a folder with their sizes and, with `verify`, their SHA-256.

    Raises:
        SnapshotError: one is missing or differs.
    """
    for name, expected in files.items():
        file = path / name
        if not file.is_file():
            problem = f"incomplete: {name} is missing"
        elif (size := file.stat().st_size) != expected["bytes"]:
            problem = f"damaged: {name} has {size} bytes, its manifest says {expected['bytes']}"
        elif verify and sha256_of(file) != expected["sha256"]:
            problem = f"damaged: {name} differs from its manifest (SHA-256)"
        else:
            continue
        raise SnapshotError(f"{path} is {problem}", next_step=AGAIN)


def described(path: Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Checksum and size of each of these files, as a manifest states them."""
    return {name: {"sha256": sha256_of(path / name), "bytes": (path / name).stat().st_size} for name in names}


class DeltaDraft:
    """A delta while it is written."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path = path
        few = [name for name in schema.names if name not in ("text", "row_id")]
        # Level 4 in one page for a row group: 3 to 16 % less of the disk than level 3 in pages of 1 MB, of reviews and
        # of the benchmark's texts; 0 to 1 us a row more.
        self._writer = pq.ParquetWriter(
            path / TEXTS_FILE,
            schema,
            compression="zstd",
            compression_level=4,
            write_statistics=False,
            use_dictionary=few,
            column_encoding={"text": "DELTA_LENGTH_BYTE_ARRAY"},
            data_page_size=1 << 24,
        )
        self.text_rows = 0
        self.facts: dict[str, Any] | None = None
        self.delta: Delta | None = None

    def add_texts(self, facts: pa.Table) -> None:
        if facts.num_rows:
            with storage_errors(self._path):
                self._writer.write_table(facts)
            self.text_rows += facts.num_rows

    def link_texts(self, delta: Delta) -> None:
        """Take the texts of a delta as they are."""
        self.close_texts()
        target = self._path / TEXTS_FILE
        with storage_errors(self._path):
            target.unlink()
            try:
                os.link(delta.path / TEXTS_FILE, target)
            except OSError:  # a file system without links
                shutil.copyfile(delta.path / TEXTS_FILE, target)
        self.text_rows = delta.text_rows

    def close_texts(self) -> None:
        self._writer.close()

    @property
    def unfinished(self) -> Delta:
        """The delta as far as its texts go, once they are closed."""
        return Delta(self._path, {"texts": self.text_rows})

    def finish(self, chain: Chain, number: int, index: Columns, superseded: NDArray[np.int64]) -> None:
        """Write the index and, last, the facts."""
        columns = {name: index[name].astype(kind, copy=False) for name, kind in INDEX.items()}
        tables = {INDEX_FILE: pa.table(columns, schema=_ON_DISK)}
        if len(superseded):
            tables[SUPERSEDED_FILE] = pa.table({"place": np.sort(superseded)})
        with storage_errors(self._path):
            self.close_texts()
            for name, table in tables.items():
                pq.write_table(
                    table,
                    self._path / name,
                    compression="zstd",
                    write_statistics=False,
                    use_dictionary=[column for column in _FEW if column in table.column_names],
                    column_encoding={name: "DELTA_BINARY_PACKED" for name in _PACKED if name in table.column_names},
                )
            self.facts = {
                "parent": chain.head,
                "number": number,
                "texts": self.text_rows,
                "index": len(index["state"]),
                "files": described(self._path, [TEXTS_FILE, *tables]),
            }
            (self._path / DELTA_FILE).write_text(json.dumps(self.facts, indent=1) + "\n", encoding="utf-8")
            for file in self._path.iterdir():
                file.chmod(file.stat().st_mode & 0o444)


@contextmanager
def new_delta(folder: Path, number: int, schema: pa.Schema, *, mark: str = "") -> Iterator[DeltaDraft]:
    """A delta to write, which becomes `folder`/deltas/<its name> where `finish` was called.

    Args:
        mark: what follows its number in the name, instead of a hash of its content: a refresh that is repeated after
            it was killed comes to the same delta.
    """
    path = folder / DELTAS / f".{number:06d}-{mark or uuid.uuid4().hex[:8]}.tmp"
    with storage_errors(path):
        path.mkdir(parents=True)
        draft = DeltaDraft(path, schema)
    try:
        yield draft
        if draft.facts is not None:
            final = path.with_name(f"{number:06d}-{mark or sha256_of(path / DELTA_FILE)[:8]}")
            with storage_errors(path):
                for file in (*path.iterdir(), path):
                    sync(file)
                if mark or not final.exists():
                    path.rename(final)
                sync(final.parent)
            draft.delta = Delta(final, draft.facts)
    finally:
        draft.close_texts()
        shutil.rmtree(path, ignore_errors=True)


TextsOf = Callable[[NDArray[np.int64], Sequence[str]], pa.Table]
"""Reads columns of the texts at places, as `Chain.texts`."""
