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

from nightgate.data.columns import among, pieces, repeated
from nightgate.durable_files import replacing
from nightgate.errors import SnapshotError, first_line, storage_errors

Keys = NDArray[np.uint64]
"""Hashes of one kind, shape [rows] or [rows, keys of a row]; 0: the row has none."""
Entries = NDArray[np.uint64]
"""Keys whose last two bits hold their split, sorted."""
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
"""The bits of an entry that hold its split; those of a key are 0."""
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
        self._files: dict[str, Entries] = {}
        self._known: list[Entries] = []
        """Those of the files, then those that were learnt since."""
        self._undecided = _NO_KEYS
        self._unwritten: list[Entries] = []

    @classmethod
    def open(cls, folder: Path, files: Sequence[str]) -> SplitMemory:
        """The memory in `files` of `folder`, oldest first, as a manifest names them; without files an empty one.

        Raises:
            SnapshotError: a file is missing or damaged: fill a new memory with `recall`.
        """
        memory = cls()
        memory._files = {name: _read(folder / name) for name in files}
        # The first file has the most by far, and is sorted.
        first, others = list(memory._files.values())[:1], list(memory._files.values())[1:]
        memory._known = [*first, np.sort(np.concatenate([_NO_KEYS, *others]))]
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
        unknown: dict[str, Keys] = {}
        for kind, columns in _columns(keys):
            for column in columns:
                splits = self._split_of(column)
                least = np.where(splits == _UNKNOWN, least, np.minimum(least, splits))
                known = np.maximum(known, splits)
                column[splits != _UNKNOWN] = 0
            unknown[kind] = columns
        reasons = np.where((known != _UNKNOWN) & (least != known), 1, 0).astype(np.int8)
        anchors = known.copy()
        if given is not None:
            reasons[(reasons == 0) & (known != _UNKNOWN) & (given != _UNKNOWN) & _differs(given, known)] = 3
            anchors = np.where((known == _UNKNOWN) & (given > TRAIN), given, anchors).astype(np.int8)

        for columns in unknown.values():
            columns[:, reasons != 0] = 0  # rows that are left out tie nothing together
        tied, component = _components([unknown["group"]] if "group" in keys else [*unknown.values()])
        of_component = np.full(component.max(initial=-1) + 1, _UNKNOWN, np.int8)
        # Of several known splits test wins, then validation: the training copies leave.
        np.maximum.at(of_component, component, anchors[tied])
        # Others get that of the row with the smallest text, by hash.
        order = np.lexsort([keys["text"][tied] if "text" in keys else tied, component])
        first = tied[order[np.unique(component[order], return_index=True)[1]]]
        alone = (anchors == _UNKNOWN) & (reasons == 0)
        alone[tied] = False
        is_open = of_component == _UNKNOWN
        drawn = hashed(np.concatenate([np.flatnonzero(alone), first[is_open]]))
        if most is not None:
            sizes = np.ones(len(drawn), np.int32)
            sizes[len(drawn) - is_open.sum() :] = np.bincount(component)[is_open]
            drawn = np.where(sizes > np.asarray(most)[drawn], TRAIN, drawn)
        splits = anchors.copy()
        splits[alone], of_component[is_open] = np.split(drawn, [alone.sum()])
        splits[tied] = of_component[component]
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
        # A training row that leaves for a test row of its cluster: earlier models were trained on it.
        leaving = (assigned.reasons == 2) & (assigned.known != _UNKNOWN) & (assigned.known != TEST)
        for kind, columns in _columns(assigned.keys, leaving):
            if kind == "cluster":
                self._note_trained(columns.ravel())
        splits = assigned.splits[taken]
        self._learn((keys.ravel(), np.tile(splits, len(keys))) for _, keys in _columns(assigned.keys, taken))
        if merged is not None and "id" in assigned.keys:
            of_kind = dict(_columns(assigned.keys, merged))
            self._learn([(of_kind["id"].ravel(), self._split_of(of_kind["text"].ravel()))])

    def recall(self, keys: Mapping[str, Keys], splits: Codes) -> None:
        """Keep the splits of the rows of an earlier snapshot, newest snapshot first: after an upgrade or a loss.

        A key that the snapshot has on two sides stays open until `assign`; that it was trained on is remembered.
        """
        for _, columns in _columns(keys):
            column, sides = columns.ravel(), np.tile(splits, len(columns))
            used = column != 0
            order = np.argsort(column[used], kind="stable")
            unique, start = np.unique(column[used][order], return_index=True)
            if not len(unique):
                continue
            sides = sides[used][order]
            least, largest = np.minimum.reduceat(sides, start), np.maximum.reduceat(sides, start)
            split = self._split_of(unique)
            fresh = (split == _UNKNOWN) & ~np.isin(unique, self._undecided)
            self._undecided = np.union1d(self._undecided, unique[fresh & (least != largest)])
            self._learn([(unique[fresh & (least == largest)], least[fresh & (least == largest)])])
            self._note_trained(unique[(least != TEST) & ~np.isin(self._split_of(unique), (TRAIN, VALIDATION))])

    def write(self, folder: Path) -> list[str]:
        """Write what was learnt since `open` to a new file: its name, or nothing where nothing was.

        Raises:
            StorageError: the disk is full or read-only.
        """
        if not self._unwritten:
            return []
        entries = np.concatenate(self._unwritten)
        entries.sort()
        name = f"{hashlib.sha256(entries.data).hexdigest()[:16]}.parquet"
        with storage_errors(folder), replacing(folder / name) as draft:
            table = pa.table([pa.array(entries)], schema=_ON_DISK)
            encoding = {"entry": "DELTA_BINARY_PACKED"}
            pq.write_table(table, draft, compression="zstd", use_dictionary=False, column_encoding=encoding)
        self._files[name], self._unwritten = entries, []
        return [name]

    def has(self, keys: Mapping[str, Keys], splits: Sequence[int] = (TRAIN, VALIDATION)) -> Mask:
        """Which rows have a key with one of these splits, shape [rows]."""
        found = [np.isin(self._split_of(column), splits) for _, columns in _columns(keys) for column in columns]
        return np.asarray(np.any(found, axis=0))

    def trained_on_before(self, keys: Mapping[str, Keys], files: Collection[str]) -> Mask:
        """Which rows have a key of test of which a row was trained on before that, as other files than these say.

        Args:
            files: those that the model's own snapshot names; () for a snapshot from before there were any.
        """
        later = np.concatenate([_NO_KEYS, *(entries for name, entries in self._files.items() if name not in files)])
        before = later[later & _CODE == _TRAINED] & ~_CODE
        return np.asarray(np.any([np.isin(columns, before).any(axis=0) for _, columns in _columns(keys)], axis=0))

    def _split_of(self, keys: Keys) -> Codes:
        # In ascending order a search begins where the one before it ended, in memory that is at hand.
        order = np.argsort(keys)
        wanted, splits = keys[order], np.full(len(keys), _UNKNOWN, np.int8)
        for known in self._known:
            if len(known):
                # An entry differs from its key by the code alone.
                code = known[np.minimum(np.searchsorted(known, wanted), len(known) - 1)] ^ wanted
                splits = np.where((splits == _UNKNOWN) & (code < _TRAINED), code.astype(np.int8), splits)
        found = np.empty_like(splits)
        found[order] = splits
        return found

    def _learn(self, columns: Iterable[tuple[Keys, Codes]]) -> None:
        """Add the keys that are not known yet, of different kinds, with their splits."""
        learnt = []
        for keys, splits in columns:
            fresh = (keys != 0) & (splits != _UNKNOWN) & (self._split_of(keys) == _UNKNOWN)
            if fresh.any():
                learnt.append(_entries(keys[fresh], splits[fresh]))
        self._known += learnt
        self._unwritten += learnt

    def _note_trained(self, keys: Keys) -> None:
        if keys.any():
            self._unwritten.append(_entries(keys[keys != 0], np.int8(_TRAINED)))


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


def _columns(keys: Mapping[str, Keys], rows: Mask | slice = slice(None)) -> Iterator[tuple[str, Keys]]:
    """Each kind and its keys with the kind mixed in, shape [keys of a row, rows]; 0 stays 0."""
    for kind, matrix in keys.items():
        columns = np.ascontiguousarray(np.atleast_2d(matrix[rows].T))
        mixed = columns ^ _KINDS[kind]
        # In place: each copy of ten million keys takes 80 MB.
        mixed <<= np.uint64(16)
        mixed >>= np.uint64(14)
        mixed[columns == 0] = 0
        del columns
        yield kind, mixed


def _differs(given: Codes, splits: Codes) -> Mask:
    """Whether a split is another than the source's; the source's train may be cut into train and validation."""
    return np.asarray(np.where(given == TRAIN, splits == TEST, splits != given))


def _components(kinds: Sequence[Keys]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows that share a key with another one, ascending, and for each the number of its component."""
    ones, others = [np.empty(0, np.intp)], [np.empty(0, np.intp)]
    for columns in kinds:
        keys = columns.ravel()
        places = np.flatnonzero(among(keys, repeated(keys)))
        places = places[np.argsort(keys[places], kind="stable")]
        same = keys[places][1:] == keys[places][:-1]
        ones.append(places[:-1][same] % columns.shape[1])
        others.append(places[1:][same] % columns.shape[1])
    rows, ends = np.unique(np.concatenate([*ones, *others]), return_inverse=True)
    pairs = np.split(ends, 2)
    graph = coo_array((np.ones(len(pairs[0]), bool), (pairs[0], pairs[1])), shape=(len(rows), len(rows)))
    return rows, np.asarray(connected_components(graph, directed=False)[1], np.intp)


def _entries(keys: Keys, codes: Codes | np.int8) -> Entries:
    """The keys with their splits, sorted, each once, in the memory of `keys`."""
    entries = np.bitwise_or(keys, codes, out=keys, casting="unsafe", dtype=np.uint64)
    entries.sort()
    first = np.append(True, (entries[1:] ^ entries[:-1]) > _CODE)
    return entries if first.all() else entries[first]


def _largest(column: Keys, values: Codes) -> Codes:
    """The largest of the values of the rows with the same key, shape [rows]; -1 for rows without a key."""
    _, inverse = np.unique(column, return_inverse=True)
    largest = np.full(len(column), LEFT_OUT, np.int8)
    np.maximum.at(largest, inverse, values)
    return np.where(column == 0, LEFT_OUT, largest[inverse]).astype(np.int8)


def _read(path: Path) -> Entries:
    try:
        # A year has a file a night: read_table takes four times as long for a small one. Read through a small buffer,
        # two million keys touch 10 MB less.
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 16) as file:
            entries, end = np.empty(file.metadata.num_rows, np.uint64), 0
            for piece in pieces(file, "entry"):
                entries[end : (end := end + len(piece))] = piece
    except (OSError, KeyError, pa.ArrowException) as error:
        raise SnapshotError(
            f"the splits in {path} cannot be read: {first_line(error)}",
            next_step="restore the file from a backup, or let the next refresh fill it again from the snapshots",
        ) from error
    return entries
