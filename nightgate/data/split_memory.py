"""The split that each id, text, group and near-duplicate cluster was given first, kept for as long as the test version.

    memory = SplitMemory.open(folder, files)
    assigned = memory.assign({"id": ids, "text": texts}, hashed)
    memory.remember(assigned, taken)
    files += memory.write(folder)

A hash alone moves a row when its text is edited or its group corrected. Here the split of a row follows from the keys
that are known; a row without one is divided by hash, as ever, and its keys are known from then on. Rows that arrive
together and share a new key get one split. A row whose keys lie on two sides would leak, so it is left out.

Keys are hashes and never texts, so the files may outlive the snapshots. They are append-only: a refresh adds one file
with its new keys, named by its content, which no later one changes. 48 bits of a hash are kept, sorted, which takes 4
bytes of disk: of 10 million rows that come to as many, three are taken for known.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from nightgate.durable_files import replacing
from nightgate.errors import SnapshotError, first_line, storage_errors

Keys = NDArray[np.uint64]
"""Hashes of one kind, shape [rows] or [rows, keys of a row]; 0: the row has none."""
Codes = NDArray[np.int8]
Mask = NDArray[np.bool_]

TRAIN, VALIDATION, TEST = 0, 1, 2
LEFT_OUT = -1
REASONS = (
    "",
    "its id, text, group or near-copies were given different splits before",
    "a row that belongs with it is on another side",
    "the source names another split than it was given before",
)
"""Why a row is left out, by the codes of `Assigned.reasons`."""

_KINDS = {
    "id": np.uint64(0x9E3779B97F4A7C15),
    "text": np.uint64(0xC2B2AE3D27D4EB4F),
    "group": np.uint64(0x165667B19E3779F9),
    "cluster": np.uint64(0x27D4EB2F165667C5),
}
"""What keeps equal hashes of different kinds apart: part of the files."""
_UNKNOWN = -1
_TRAINED = 3
"""Code of a key whose split is test, but of which a row was trained on before that: by a model of another snapshot."""
_NO_KEYS = np.empty(0, np.uint64)
_CODE = np.uint64(3)
"""The bits of an entry that hold its split; the others are its key."""
_ON_DISK = pa.schema([pa.field("entry", pa.uint64(), nullable=False)])


@dataclass(frozen=True)
class Assigned:
    """The splits of rows."""

    splits: Codes
    """0 train, 1 validation, 2 test, or LEFT_OUT, shape [rows]."""
    reasons: Codes
    """Index in REASONS of why a row is left out, shape [rows]."""
    keys: Mapping[str, Keys]
    """As they were given."""
    known: Codes
    """Split that a row's known keys agree on, shape [rows]; -1: none."""


class SplitMemory:
    """Keys and their splits."""

    def __init__(self) -> None:
        self._known: list[tuple[Keys, Codes]] = []
        """Sorted keys and their splits: those of the files, then those that were learnt since."""
        self._trained: dict[str, Keys] = {}
        """Keys with the code _TRAINED, by file."""
        self._undecided = _NO_KEYS
        self._unwritten: list[tuple[Keys, Codes]] = []

    @classmethod
    def open(cls, folder: Path, files: Sequence[str]) -> SplitMemory:
        """The memory in `files` of `folder`, oldest first, as a manifest names them; without files an empty one.

        Raises:
            SnapshotError: a file is missing or damaged: fill a new memory with `recall`.
        """
        memory = cls()
        found = [(name, *_read(folder / name)) for name in files]
        for name, keys, codes in found:
            memory._trained[name] = keys[codes == _TRAINED]
        for files_of_run in (found[:1], found[1:]):
            if files_of_run:
                keys, codes = (np.concatenate([parts[place] for parts in files_of_run]) for place in (1, 2))
                memory._known.append(_sorted(keys[codes != _TRAINED], codes[codes != _TRAINED]))
        return memory

    def assign(
        self,
        keys: Mapping[str, Keys],
        hashed: Callable[[NDArray[np.intp]], Codes],
        *,
        given: Codes | None = None,
        most: Sequence[float] | None = None,
    ) -> Assigned:
        """The splits of rows that are new or changed; nothing is remembered yet.

        With groups only groups tie new rows together: texts that several groups hold, or nearly hold, would tie nearly
        all groups into one. A near-copy in a group of another side is left out instead, unless it is in test.

        Args:
            keys: any of id, text, group and cluster; of rows with a group all have one. Equal ids must be resolved.
            hashed: splits by hash of the rows at these places, for those of which nothing is known.
            given: splits that the source names, shape [rows]: train may still be cut into validation; -1: none.
            most: rows, by split, that may get a validation or test split by one hash: larger groups go to train.
        """
        num_rows = len(next(iter(keys.values())))
        least, known = np.full(num_rows, TEST + 1, np.int8), np.full(num_rows, _UNKNOWN, np.int8)
        unknown: dict[str, list[Keys]] = {}
        for kind, column in _columns(keys):
            splits = self._split_of(column)
            least = np.where(splits == _UNKNOWN, least, np.minimum(least, splits))
            known = np.maximum(known, splits)
            unknown.setdefault(kind, []).append(np.where(splits == _UNKNOWN, column, np.uint64(0)))
        reasons = np.where((known != _UNKNOWN) & (least != known), 1, 0).astype(np.int8)
        anchors = known.copy()
        if given is not None:
            reasons[(reasons == 0) & (known != _UNKNOWN) & (given != _UNKNOWN) & _differs(given, known)] = 3
            anchors = np.where((known == _UNKNOWN) & (given > TRAIN), given, anchors).astype(np.int8)

        # Rows that are left out tie nothing together.
        linking = ["group"] if "group" in keys else list(unknown)
        links = [np.where(reasons == 0, column, np.uint64(0)) for kind in linking for column in unknown[kind]]
        component = _components(links, num_rows)
        of_component = np.full(num_rows, _UNKNOWN, np.int8)
        anchored = np.flatnonzero((reasons == 0) & (anchors != _UNKNOWN))
        # Of several known splits test wins, then validation: the training copies leave.
        np.maximum.at(of_component, component[anchored], anchors[anchored])
        first = _representatives(component, keys["text"] if "text" in keys else component.astype(np.uint64))
        first = first[of_component[component[first]] == _UNKNOWN]
        drawn = hashed(first)
        if most is not None:
            sizes = np.bincount(component, minlength=num_rows)[component[first]]
            drawn = np.where(sizes > np.asarray(most)[drawn], TRAIN, drawn)
        of_component[component[first]] = drawn

        splits = of_component[component]
        reasons[(reasons == 0) & (anchors != _UNKNOWN) & (splits != anchors)] = 2
        if "group" in keys:
            for column in unknown.get("cluster", ()):
                reasons[(reasons == 0) & (splits < _largest(column, np.where(reasons == 0, splits, LEFT_OUT)))] = 2
        if given is not None:
            reasons[(reasons == 0) & (given != _UNKNOWN) & _differs(given, splits)] = 2
        splits = np.where(reasons == 0, splits, LEFT_OUT).astype(np.int8)
        return Assigned(splits, reasons, keys, np.where(reasons == 1, _UNKNOWN, known).astype(np.int8))

    def remember(self, assigned: Assigned, taken: Mask, merged: Mask | None = None) -> None:
        """Keep the splits of the rows that a snapshot takes in.

        Args:
            taken: those rows, shape [rows]: none that is left out, one of each text.
            merged: rows whose text a taken row has: their ids follow it, shape [rows].
        """
        assert (assigned.splits[taken] != LEFT_OUT).all()
        columns = list(_columns(assigned.keys))
        # A training row that leaves for a test row of its cluster: earlier models were trained on it.
        leaving = (assigned.reasons == 2) & (assigned.known != _UNKNOWN) & (assigned.known != TEST)
        self._note_trained(column[leaving] for kind, column in columns if kind == "cluster")
        self._learn(
            np.concatenate([column[taken] for _, column in columns]), np.tile(assigned.splits[taken], len(columns))
        )
        if merged is not None and "id" in assigned.keys:
            of_kind = dict(columns)
            self._learn(of_kind["id"][merged], self._split_of(of_kind["text"][merged]))

    def recall(self, keys: Mapping[str, Keys], splits: Codes) -> None:
        """Keep the splits of the rows of an earlier snapshot, newest snapshot first: after an upgrade or a loss.

        A key that the snapshot has on two sides stays open until `assign`; that it was trained on is remembered.
        """
        for _, column in _columns(keys):
            used = column != 0
            order = np.argsort(column[used], kind="stable")
            unique, start = np.unique(column[used][order], return_index=True)
            if not len(unique):
                continue
            sides = splits[used][order]
            least, largest = np.minimum.reduceat(sides, start), np.maximum.reduceat(sides, start)
            split = self._split_of(unique)
            fresh = (split == _UNKNOWN) & ~np.isin(unique, self._undecided)
            self._undecided = np.union1d(self._undecided, unique[fresh & (least != largest)])
            self._learn(unique[fresh & (least == largest)], least[fresh & (least == largest)])
            self._note_trained([unique[(least != TEST) & ~np.isin(self._split_of(unique), (TRAIN, VALIDATION))]])

    def write(self, folder: Path) -> list[str]:
        """Write what was learnt since `open` to a new file: its name, or nothing where nothing was.

        Raises:
            StorageError: the disk is full or read-only.
        """
        if not self._unwritten:
            return []
        entries = np.sort(np.concatenate([keys | codes.astype(np.uint64) for keys, codes in self._unwritten]))
        name = f"{hashlib.sha256(entries.tobytes()).hexdigest()[:16]}.parquet"
        with storage_errors(folder), replacing(folder / name) as draft:
            table = pa.table([pa.array(entries)], schema=_ON_DISK)
            encoding = {"entry": "DELTA_BINARY_PACKED"}
            pq.write_table(table, draft, compression="zstd", use_dictionary=False, column_encoding=encoding)
        self._trained[name] = entries[entries & _CODE == _TRAINED] & ~_CODE
        self._unwritten = []
        return [name]

    def trained_on(self, keys: Mapping[str, Keys], files: Collection[str] = ()) -> Mask:
        """Which rows have a key that a model was trained on or selected by, shape [rows].

        Args:
            files: those that the model's own snapshot names; () for a snapshot from before there were any.
        """
        columns = [column for _, column in _columns(keys)]
        found = np.zeros(len(columns[0]), bool)
        earlier = [trained for name, trained in self._trained.items() if name not in files]
        before = np.concatenate([*earlier, _NO_KEYS])
        for column in columns:
            found |= np.isin(self._split_of(column), (TRAIN, VALIDATION)) | np.isin(column, before)
        return found

    def _split_of(self, keys: Keys) -> Codes:
        splits = np.full(len(keys), _UNKNOWN, np.int8)
        for known, known_splits in self._known:
            if not len(known):
                continue
            places = np.minimum(np.searchsorted(known, keys), len(known) - 1)
            splits = np.where((splits == _UNKNOWN) & (known[places] == keys), known_splits[places], splits)
        return splits

    def _learn(self, keys: Keys, splits: Codes) -> None:
        """Add the keys that are not known yet."""
        fresh = (keys != 0) & (splits != _UNKNOWN) & (self._split_of(keys) == _UNKNOWN)
        if fresh.any():
            self._known.append(_sorted(keys[fresh], splits[fresh]))
            self._unwritten.append(self._known[-1])

    def _note_trained(self, keys: Iterable[Keys]) -> None:
        found = np.unique(np.concatenate([*keys, _NO_KEYS]))
        found = found[found != 0]
        if len(found):
            self._unwritten.append((found, np.full(len(found), _TRAINED, np.int8)))


def hash_of(value: str) -> int:
    """A key of an id, a group or a canonical text: 64 bits, never 0."""
    return int.from_bytes(hashlib.blake2b(value.encode(), digest_size=8).digest(), "little") or 1


def hashes_of(values: Sequence[str | None]) -> NDArray[np.uint64]:
    """`hash_of` each value; 0 for None."""
    blake2b, none = hashlib.blake2b, bytes(8)
    joined = [none if value is None else blake2b(value.encode(), digest_size=8).digest() for value in values]
    found = np.frombuffer(b"".join(joined), "<u8").astype(np.uint64)
    found[[row for row in np.flatnonzero(found == 0).tolist() if values[row] is not None]] = 1
    return found


def _columns(keys: Mapping[str, Keys]) -> Iterator[tuple[str, Keys]]:
    """Each kind and a column of its keys, with the kind mixed in; 0 stays 0."""
    for kind, matrix in keys.items():
        for column in (matrix,) if matrix.ndim == 1 else matrix.T:
            yield kind, np.where(column == 0, column, (column ^ _KINDS[kind]) << 16 >> 14)


def _differs(given: Codes, splits: Codes) -> Mask:
    """Whether a split is another than the source's; the source's train may be cut into train and validation."""
    return np.asarray(np.where(given == TRAIN, splits == TEST, splits != given))


def _components(columns: Sequence[Keys], num_rows: int) -> NDArray[np.intp]:
    """Number of each row's component: rows that share a key in a column are in one, shape [rows]."""
    keys = np.concatenate([*columns, _NO_KEYS])
    # Most keys occur once: sorting values alone takes a fifth of sorting places.
    inorder = np.sort(keys)
    repeated = np.unique(inorder[1:][(inorder[1:] == inorder[:-1]) & (inorder[1:] != 0)])
    if not len(repeated):
        return np.arange(num_rows)
    places = np.flatnonzero(repeated[np.minimum(np.searchsorted(repeated, keys), len(repeated) - 1)] == keys)
    places = places[np.argsort(keys[places], kind="stable")]
    same = keys[places][1:] == keys[places][:-1]
    pairs = (places[:-1][same] % num_rows, places[1:][same] % num_rows)
    graph = coo_array((np.ones(len(pairs[0]), bool), pairs), shape=(num_rows, num_rows))
    return np.asarray(connected_components(graph, directed=False)[1], np.intp)


def _sorted(keys: Keys, splits: Codes) -> tuple[Keys, Codes]:
    """The keys, sorted, each once, and their splits."""
    # np.unique takes ten times as long: numpy 2.3 and newer build a table of hashes first.
    entries = np.sort(keys | splits.astype(np.uint64))
    keys = entries & ~_CODE
    first = np.append(True, keys[1:] != keys[:-1])
    return keys[first], (entries[first] & _CODE).astype(np.int8)


def _representatives(component: NDArray[np.intp], by: Keys) -> NDArray[np.intp]:
    """The row with the smallest key of each component."""
    alone = np.bincount(component)[component] == 1
    several = np.flatnonzero(~alone)
    several = several[np.lexsort((by[several], component[several]))]
    first = np.unique(component[several], return_index=True)[1]
    return np.concatenate([np.flatnonzero(alone), several[first]])


def _largest(column: Keys, values: Codes) -> Codes:
    """The largest of the values of the rows with the same key, shape [rows]; -1 for rows without a key."""
    _, inverse = np.unique(column, return_inverse=True)
    largest = np.full(len(column), LEFT_OUT, np.int8)
    np.maximum.at(largest, inverse, values)
    return np.where(column == 0, LEFT_OUT, largest[inverse]).astype(np.int8)


def _read(path: Path) -> tuple[Keys, Codes]:
    try:
        # A year has a file a night: read_table takes four times as long for a small one.
        with pq.ParquetFile(path) as file:
            entries = file.read(["entry"])["entry"].to_numpy()
    except (OSError, KeyError, pa.ArrowException) as error:
        raise SnapshotError(
            f"the splits in {path} cannot be read: {first_line(error)}",
            next_step="restore the file from a backup, or let the next refresh fill it again from the snapshots",
        ) from error
    return entries & ~_CODE, (entries & _CODE).astype(np.int8)
