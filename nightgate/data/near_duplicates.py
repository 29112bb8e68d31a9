"""Near-duplicates: texts that differ in case, punctuation, a number or a few words share a cluster.

    near = NearDuplicates.open(folder, files)
    clusters = near.find(batches, num_texts)
    files += near.write(folder)

Texts with the same letters and digits, case folded, always share one. Texts with at least 16 of them, some 20
characters, are compared by MinHash too (Broder 1997): 32 hashes of their runs of five, in 8 bands of 4. Two texts with
equal hashes in a band are candidates, and near-duplicates if 21 of all 32 are equal in their last 4 bits (Li and König
2010), which are what is kept: an estimated Jaccard similarity of 0.63, with a standard error of 0.09. Bands alone would
tie a third of all short texts into one cluster.

Measured on 99,000 sentences of 98 characters, and 22,600 reviews of 308: 9 microseconds a text. Of copies that came on
a later night (in another case, without punctuation, with a digit, a signature or a misspelt word) 0.986 and 0.9998 are
found; the largest clusters have 42 and 6 texts. A text takes 22 bytes on disk.

Not covered, but for equal letters and digits: copies of texts after the first 2 million, and of those whose cluster has
5 % of all texts or 1,000, as that of a template has.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rensa import RMinHash
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from nightgate.data.deltas import Chain
from nightgate.data.split_memory import Keys, hash_of
from nightgate.durable_files import replacing
from nightgate.errors import SnapshotError, first_line, storage_errors
from nightgate.text_rules import canonical_text

log = logging.getLogger(__name__)

Signatures = NDArray[np.uint8]
"""The last 8 bits of each hash, shape [texts, 32]; zeros for texts that are too short."""
Packed = NDArray[np.uint8]
"""The last 4 bits, two hashes in a byte, shape [texts, 16]."""
Pairs = tuple[NDArray[np.intp], NDArray[np.intp]]

T = TypeVar("T", bound=np.generic)

NUM_HASHES = 32
_BAND = 4
_EQUAL = 21
_KEY = (1 << 48) - 1
"""What `SplitMemory` keeps of a key: the last 48 bits."""
_LAST_OF_FOUR = np.uint64(0x1111111111111111)
_SHINGLE = 5
_SHORTEST = 16
_BLOCK = 512
"""Texts whose hashes fit the processor's cache: 1.4 times as fast as 8,000."""
_MOST_CANDIDATES = 64
"""Known texts that a new one is compared with in a band: of 2 million, 30 have the same 16 bits by chance."""
_TEXTS_AT_ONCE = 1 << 13
"""New texts that are compared with known ones at a time: a million by chance with 30 each take a gigabyte."""
_TOUCHED = 3
"""Further clusters that count for a text which is a near-copy of texts in several."""
_MOST_TEXTS = 2_000_000
_SHARE_OF_TEXTS, _MOST_IN_CLUSTER = 0.05, 1000
_FEWEST = 5
"""The most texts of a cluster, as a share of all but in these bounds: one template must not put all on one side."""
_TEMPLATE = np.uint64(_KEY)
"""Cluster of texts that would make theirs too large: it ties nothing together."""
_SKETCH = f"minhash {RMinHash.ALGORITHM_VERSION}, {NUM_HASHES} hashes of {_SHINGLE} characters, 4 bits"
"""How the signatures of a file were made: others cannot be compared with them."""
_SKETCH_BEFORE = _SKETCH.replace("4 bits", "8 bits")
"""Of files of before, whose keys have 64 bits."""
_TEMPLATE_BEFORE = np.uint64(np.iinfo(np.uint64).max - 1)
_ON_DISK = pa.schema(
    [
        pa.field("key", pa.uint64(), nullable=False),
        pa.field("root", pa.uint64(), nullable=False),  # 0: the key itself
        pa.field("signature", pa.binary(NUM_HASHES // 2), nullable=False),
    ],
    {"sketch": _SKETCH},
)


def canonical_keys(texts: Iterable[str]) -> Keys:
    """Keys of the canonical texts; 0: no letter or digit."""
    return _keys_of(map(canonical_text, texts))


def sketch(texts: Sequence[str]) -> tuple[Keys, Signatures]:
    """`canonical_keys` and signatures of normalised texts."""
    canonical = [canonical_text(text) for text in texts]
    signatures = np.zeros((len(canonical), NUM_HASHES), np.uint8)
    long = [place for place, text in enumerate(canonical) if len(text) >= _SHORTEST]
    for start in range(0, len(long), _BLOCK):
        block = long[start : start + _BLOCK]
        hashes, offsets = _shingles([canonical[place] for place in block])
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, NUM_HASHES, 42)
        signatures[block] = np.array(matrix.to_rows(), np.uint32).astype(np.uint8)
    return _keys_of(canonical), signatures


class NearDuplicates:
    """The signatures and clusters of the texts of all refreshes: append-only, one file for each refresh."""

    def __init__(self) -> None:
        self._keys = np.empty(0, np.uint64)
        self._roots = np.empty(0, np.uint64)
        self._signatures = np.empty((0, NUM_HASHES // 2), np.uint8)
        self._written = 0

    @classmethod
    def open(cls, folder: Path, files: Sequence[str]) -> NearDuplicates:
        """The texts in `files` of `folder`, oldest first.

        Raises:
            SnapshotError: a file is missing, damaged or of another way to sketch: `find` the texts of the snapshot
                with a new index.
        """
        near = cls()
        found = [_read(folder / name) for name in files]
        if found:
            near._add(*(np.concatenate(parts) for parts in zip(*found, strict=True)))
        near._written = len(near._keys)
        return near

    def find(self, batches: Iterable[Sequence[str]], num_texts: int) -> Keys:
        """The clusters of texts, for `SplitMemory.assign`: shape [texts, 2 or 5], 0: none. New texts are added.

        The first is the text's own key, then come the keys of the clusters that it is a near-copy of.

        Args:
            batches: normalised texts.
        """
        # Filled in place and let go of as soon as it can be: a million signatures take 32 MB.
        keys, signatures = np.empty(num_texts, np.uint64), np.empty((num_texts, NUM_HASHES), np.uint8)
        end = 0
        for texts in batches:
            begin, end = end, end + len(texts)
            keys[begin:end], signatures[begin:end] = sketch(texts)
        new, signatures = self._unknown(keys, signatures)
        packed = _packed(signatures)
        alike = _joined(_alike(pair, packed, packed) for pair in _among(signatures))
        del signatures
        roots, touched = self._roots_of(new, packed, alike)
        room = max(0, _MOST_TEXTS - len(self._keys))
        if len(new) > room:
            log.warning(
                "near-duplicates: %s texts are beyond the first %s; later copies of them are found by equal letters "
                "and digits only",
                f"{len(new) - room:,}",
                f"{_MOST_TEXTS:,}",
            )
        self._add(new[:room], roots[:room], packed[:room])
        return self._found(keys, new, roots, touched)

    def find_in(self, chain: Chain, places: NDArray[np.int64]) -> Keys:
        """`find` the texts at these places of a chain, in their order.

        Raises:
            SnapshotError: a file of the chain cannot be read.
        """
        order = np.argsort(places, kind="stable")
        batches = (table["text"].to_pylist() for table in chain.batches(places[order], ["text"]))
        found = self.find(batches, len(places))
        in_order = np.empty_like(found)
        in_order[order] = found
        return in_order

    def clusters(self, keys: Keys) -> Keys:
        """The clusters of known texts, shape [texts, 2]: their own keys, then those of another cluster; 0: none."""
        found = np.zeros((len(keys), 2), np.uint64)
        found[:, 0] = keys
        known, roots = self._known(keys)
        if len(known):
            at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
            found[:, 1] = np.where((known[at] == keys) & (roots[at] != keys) & (roots[at] != _TEMPLATE), roots[at], 0)
        return found

    def write(self, folder: Path) -> list[str]:
        """Write the texts that were added since `open` to a new file: its name, or nothing where none were.

        Raises:
            StorageError: the disk is full or read-only.
        """
        keys, roots = self._keys[self._written :], self._roots[self._written :]
        if not len(keys):
            return []
        signatures = np.ascontiguousarray(self._signatures[self._written :])
        digest = hashlib.sha256()
        for part in (keys, roots, signatures):
            digest.update(part.data)
        name = f"{digest.hexdigest()[:16]}.parquet"
        binary = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(NUM_HASHES // 2), len(keys), [None, pa.py_buffer(signatures)]
        )
        other = np.where(roots == keys, np.uint64(0), roots)
        table = pa.table([pa.array(keys), pa.array(other), binary], schema=_ON_DISK)
        with storage_errors(folder), replacing(folder / name) as draft:
            encoding = {"key": "DELTA_BINARY_PACKED", "signature": "PLAIN"}
            pq.write_table(table, draft, compression="zstd", use_dictionary=["root"], column_encoding=encoding)
        self._written = len(self._keys)
        return [name]

    def _unknown(self, keys: Keys, signatures: Signatures) -> tuple[Keys, Signatures]:
        """The texts that are long enough to be compared and not known yet, each once, sorted by key.

        The signatures are put in this order where they are: ten million take 320 MB.
        """
        unique, place = np.unique(keys, return_index=True)
        is_new = np.asarray(signatures.any(axis=1))[place] & (unique != 0) & ~np.isin(unique, self._known(unique)[0])
        place = place[is_new]
        for band in signatures.view(np.uint32).T:
            band[: len(place)] = band[place]
        return unique[is_new], signatures[: len(place)]

    def _known(self, keys: Keys) -> tuple[Keys, Keys]:
        """The keys of known texts, sorted, and their clusters: at least those among `keys`."""
        places = _occurring(self._keys, keys, 48)
        places = places[np.argsort(self._keys[places])]
        return self._keys[places], self._roots[places]

    def _roots_of(self, new: Keys, packed: Packed, alike: Pairs) -> tuple[Keys, Keys]:
        """The clusters of new texts, sorted by key, shape [texts], and others that they touch, shape [texts, 3]."""
        graph = coo_array((np.ones(len(alike[0]), bool), alike), shape=(len(new), len(new)))
        component = np.asarray(connected_components(graph, directed=False)[1], np.intp)
        sizes = np.bincount(component, minlength=len(new))
        most = np.clip((len(self._keys) + len(new)) * _SHARE_OF_TEXTS, _FEWEST, _MOST_IN_CLUSTER)

        found = (_alike(pair, packed, self._signatures) for pair in _with_known(packed, self._signatures))
        # Of a template each text has hundreds of originals, of one cluster.
        copies, of_copies = _joined(_distinct(copies, self._roots[originals]) for copies, originals in found)
        known, place = np.unique(of_copies, return_inverse=True)
        counted, counts = np.unique(self._roots[_occurring(self._roots, known, 48)], return_counts=True)
        members = counts[np.searchsorted(counted, known)]
        fits = (members[place] + sizes[component[copies]] <= most) & (known[place] != _TEMPLATE)

        # A component joins the smallest of the clusters that its texts are copies of, or is one of its own.
        none = np.iinfo(np.uint64).max
        roots, own = (np.full(len(new), none, np.uint64) for _ in range(2))
        np.minimum.at(own, component, new)
        np.minimum.at(roots, component[copies], np.where(fits, known[place], _TEMPLATE))
        roots = np.where(roots == none, np.where(sizes <= most, own, _TEMPLATE), roots)
        touched = np.zeros((len(new), _TOUCHED), np.uint64)
        for text, root in np.unique(np.stack([copies[fits].astype(np.uint64), known[place[fits]]]), axis=1).T:
            touched[text, np.flatnonzero(touched[text] == 0)[:1]] = root
        return roots[component], touched

    def _found(self, keys: Keys, new: Keys, roots: Keys, touched: Keys) -> Keys:
        """What `find` returns, once the new texts are added, those beyond the limit apart."""
        found = self.clusters(keys)
        if len(new):
            at = np.minimum(np.searchsorted(new, keys), len(new) - 1)
            known = np.flatnonzero(new[at] == keys)
            found[known, 1] = roots[at[known]]
            if touched.any():
                others = np.zeros((len(keys), _TOUCHED), np.uint64)
                others[known] = touched[at[known]]
                found = np.column_stack([found, others])
        found[:, 1:][(found[:, 1:] == found[:, :1]) | (found[:, 1:] == _TEMPLATE)] = 0
        return found

    def _add(self, keys: Keys, roots: Keys, signatures: Packed) -> None:
        self._keys = np.concatenate([self._keys, keys])
        self._roots = np.concatenate([self._roots, roots])
        # Of a first refresh not copied: a million take 16 MB.
        self._signatures = np.concatenate([self._signatures, signatures]) if len(self._signatures) else signatures


def _keys_of(canonical: Iterable[str]) -> Keys:
    return np.array([hash_of(text) & _KEY if text else 0 for text in canonical], np.uint64)


def _shingles(texts: Sequence[str]) -> tuple[Keys, NDArray[np.int64]]:
    """Hashes of all runs of five characters, and where those of each text begin, with the end as last."""
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    codes = np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32).astype(np.uint64)
    last = len(codes) - _SHINGLE + 1
    hashes = codes[:last].copy()
    for place in range(1, _SHINGLE):
        hashes = hashes * np.uint64(0x100000001B3) + codes[place : last + place]
    hashes = (hashes ^ (hashes >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes ^= hashes >> np.uint64(32)
    # Runs that reach into the next text are dropped.
    counts = lengths - _SHINGLE + 1
    offsets = np.concatenate([[0], np.cumsum(counts)])
    starts = np.cumsum(lengths) - lengths
    return hashes[np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], counts)], offsets


def _packed(signatures: Signatures) -> Packed:
    packed = signatures[:, ::2] << np.uint8(4)
    packed |= signatures[:, 1::2] & np.uint8(15)
    return packed


def _bands(signatures: Signatures | Packed) -> Iterator[NDArray[Any]]:
    """The hashes of each band as one number, shape [texts]."""
    for band in np.split(signatures, NUM_HASHES // _BAND, axis=1):
        yield np.ascontiguousarray(band).view(np.uint32 if band.shape[1] == _BAND else np.uint16).ravel()


def _among(signatures: Signatures) -> Iterator[Pairs]:
    """Candidates among texts, by band: each with the one before it and with the first of those equal in the band."""
    for band in _bands(signatures):
        order = np.argsort(band, kind="stable")
        ordered = band[order]
        later = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1
        begins = np.diff(later, prepend=-1) != 1
        first = np.maximum.accumulate(np.where(begins, later - 1, 0))
        yield np.tile(order[later], 2), np.concatenate([order[later - 1], order[first]])


def _with_known(signatures: Packed, known: Packed) -> Iterator[Pairs]:
    """Candidates of new texts among known ones, by band: all that are equal in it, or `_MOST_CANDIDATES` of them."""
    for new, old in zip(_bands(signatures), _bands(known), strict=True):
        candidates = _occurring(old, new, 16)
        candidates = candidates[np.argsort(old[candidates], kind="stable")]
        equal = old[candidates]
        for begin in range(0, len(new) or 1, _TEXTS_AT_ONCE):
            wanted = new[begin : begin + _TEXTS_AT_ONCE]
            first = np.searchsorted(equal, wanted)
            sizes = np.searchsorted(equal, wanted, side="right") - first
            counts = np.minimum(sizes, _MOST_CANDIDATES)
            text = np.repeat(np.arange(len(wanted)), counts)
            turn = np.arange(len(text)) - np.repeat(np.cumsum(counts) - counts, counts)
            yield begin + text, candidates[first[text] + turn * sizes[text] // counts[text]]


def _occurring(values: NDArray[Any], wanted: NDArray[Any], bits: int) -> NDArray[np.intp]:
    """Places of the values whose first 20 of `bits` bits are those of a wanted one: few others, in one fast pass."""
    table, beyond = np.zeros(1 << 20, bool), max(bits - 20, 0)
    table[wanted >> beyond] = True
    return np.flatnonzero(table[values >> beyond])


def _alike(pairs: Pairs, ones: Packed, others: Packed) -> Pairs:
    """The pairs whose signatures are equal in enough places."""
    ones, others = ones.view(np.uint64), others.view(np.uint64)
    alike = [np.empty(0, bool)]
    for start in range(0, len(pairs[0]), 1 << 18):
        one, other = (side[start : start + (1 << 18)] for side in pairs)
        # `take` and the sum of two columns: five times as fast as `ones[one]` and `sum(axis=1)`.
        differs = ones.take(one, axis=0) ^ others.take(other, axis=0)
        differs |= differs >> np.uint64(2)
        differs |= differs >> np.uint64(1)
        differing = np.bitwise_count(differs & _LAST_OF_FOUR)
        alike.append(differing[:, 0] + differing[:, 1] <= NUM_HASHES - _EQUAL)
    kept = np.concatenate(alike)
    return pairs[0][kept], pairs[1][kept]


def _distinct(copies: NDArray[np.intp], roots: Keys) -> tuple[NDArray[np.intp], Keys]:
    """Each pair of a text and a cluster once."""
    known, place = np.unique(roots, return_inverse=True)
    copies, place = np.divmod(np.unique(copies * len(known) + place), max(len(known), 1))
    return copies, known[place]


def _joined(pairs: Iterator[tuple[NDArray[np.intp], NDArray[T]]]) -> tuple[NDArray[np.intp], NDArray[T]]:
    parts = list(pairs)
    return np.concatenate([one for one, _ in parts]), np.concatenate([other for _, other in parts])


def _read(path: Path) -> tuple[Keys, Keys, Signatures]:
    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
    except (OSError, pa.ArrowException) as error:
        problem = first_line(error)
    else:
        sketched = (table.schema.metadata or {}).get(b"sketch", b"").decode()
        if table.column_names == _ON_DISK.names and sketched in (_SKETCH, _SKETCH_BEFORE):
            keys, roots = table["key"].to_numpy(), table["root"].to_numpy()
            content = np.frombuffer(table["signature"].combine_chunks().buffers()[1], np.uint8)
            signatures = content.reshape(len(table), -1)
            if sketched == _SKETCH_BEFORE:
                roots = np.where(roots == _TEMPLATE_BEFORE, _TEMPLATE, roots & np.uint64(_KEY))
                keys, signatures = keys & np.uint64(_KEY), _packed(signatures)
            return keys, np.where(roots == 0, keys, roots), signatures
        problem = f"it does not hold {_SKETCH}"
    raise SnapshotError(
        f"the near-duplicates in {path} cannot be read: {problem}",
        next_step="let the next refresh find them again in the texts of the snapshot",
    )
