"""Test sets in the database: each set of rows once, and most as their difference from an earlier set.

    base = db.read(lambda session: newest_whole(session, "reviews", "test"))
    packed = db.read(lambda session: pack(session, "reviews", "test", rows, label_names, base))
    db.write(lambda session: add(session, packed))
    rows = db.read(lambda session: load(session, "reviews", packed["test_set_id"]).rows)

From night to night a test set gains some rows and other labels for a few. 5,000 rows take 130 KiB as a whole, and
1 KiB and a half more for each night since; a set is whole again once its difference is a tenth of a whole set.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from nightgate.database.gate_schema import TestSet
from nightgate.database.shared_values import is_recorded, merge_rows
from nightgate.database.views import selecting
from nightgate.gate.evidence import Labels, Rows, Slice

FINGERPRINT_BYTES = 16
_NAME = f"S{FINGERPRINT_BYTES}"
"""Fingerprints in numpy. All have this width, so its padding with zeros cannot make two of them equal."""
_CONTENT = ("fingerprints", "labels", "seen_at", "groups", "slices")
_LARGEST = 0.1
"""Bytes of a difference as a share of those of its base, beyond which a set is stored as a whole."""

_COLUMNS = sa.inspect(TestSet).local_table.c
_WHOLE = (
    sa.select(*_COLUMNS)
    .where(_COLUMNS.pipeline == sa.bindparam("pipeline"), _COLUMNS.kind == sa.bindparam("kind"))
    .where(_COLUMNS.base_id.is_(None))
    .order_by(_COLUMNS.recorded_at.desc())
    .limit(1)
)


class StoredRows:
    """The rows of a stored test set. Each column is read from its bytes when it is asked for first."""

    def __init__(self, stored: sa.Row[Any], base: StoredRows | None = None) -> None:
        self.id = stored.test_set_id
        self.base = base
        self._stored = stored

    @property
    def size(self) -> int:
        """Bytes of what is stored of it."""
        return _size({name: getattr(self._stored, name) for name in _CONTENT})

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(self._stored.label_names)

    @cached_property
    def rows(self) -> Rows:
        text, width = self.names.tobytes().hex(), 2 * FINGERPRINT_BYTES
        return Rows(
            true=self.true,
            seen_at=self.seen_at,
            fingerprints=tuple(text[start : start + width] for start in range(0, len(text), width)),
            groups=self._groups,
            slices=self._slices,
        )

    @cached_property
    def names(self) -> NDArray[Any]:
        """Fingerprints, shape [rows]."""
        own = np.frombuffer(zlib.decompress(self._stored.fingerprints), _NAME)
        if self.base is None:
            return own
        names = np.empty(self._stored.num_rows, _NAME)
        names[self._known] = self.base.names[self._places[self._known]]
        names[~self._known] = own
        return names

    @cached_property
    def true(self) -> Labels:
        kind = label_type(self.label_names)
        return self._sum(array(self._stored.labels, kind), self.base.true if self.base else None).astype(np.int64)

    @cached_property
    def seen_at(self) -> NDArray[np.int64]:
        return self._sum(array(self._stored.seen_at, "<i8"), self.base.seen_at if self.base else None)

    @cached_property
    def _groups(self) -> NDArray[np.int64] | None:
        if self._stored.groups is None:
            return None
        of_base = self.base._groups if self.base else None
        return self._sum(array(self._stored.groups, "<i4"), of_base).astype(np.int64)

    @cached_property
    def _slices(self) -> tuple[Slice, ...]:
        stored: dict[str, Any] = json.loads(zlib.decompress(self._stored.slices))
        of_base = {one.name: one.codes for one in self.base._slices} if self.base else {}
        return tuple(
            Slice(name, tuple(values), self._sum(np.array(codes, dtype=np.int64), of_base.get(name)))
            for name, (values, codes) in stored.items()
        )

    @cached_property
    def _places(self) -> NDArray[np.int64]:
        """Place of each row in the base; -1 for those that it lacks."""
        assert self._stored.places is not None
        return np.cumsum(array(self._stored.places, "<i4"), dtype=np.int64) - 1

    @cached_property
    def _known(self) -> NDArray[np.bool_]:
        return self._places >= 0

    def _sum(self, own: NDArray[Any], of_base: NDArray[np.int64] | None) -> NDArray[Any]:
        """What is stored and the base's values. They wrap around, like the differences."""
        if of_base is not None:
            own[self._known] += of_base[self._places[self._known]].astype(own.dtype)
        return own

    @cached_property
    def _order(self) -> NDArray[np.int64]:
        return np.argsort(self.names)

    def find(self, fingerprints: Sequence[str]) -> NDArray[np.int64]:
        """The place of each row in this set; -1 for those that it lacks."""
        if not len(self.names):
            return np.full(len(fingerprints), -1)
        order, wanted = self._order, named(fingerprints)
        at = order[np.minimum(np.searchsorted(self.names, wanted, sorter=order), len(order) - 1)]
        return np.where(self.names[at] == wanted, at, -1)

    def difference(self, rows: Rows) -> tuple[NDArray[np.int64], Rows]:
        """Places of these rows in this set, and the difference of each value; fingerprints only of those it lacks."""
        places = self.find(rows.fingerprints)
        known = places >= 0

        def less(values: NDArray[np.int64], ours: NDArray[np.int64] | None) -> NDArray[np.int64]:
            values = values.copy()
            if ours is not None:
                values[known] -= ours[places[known]]
            return values

        own = {one.name: one.codes for one in self._slices}
        return places, Rows(
            true=less(rows.true, self.true),
            seen_at=less(rows.seen_at, self.seen_at),
            fingerprints=tuple(itertools.compress(rows.fingerprints, ~known)),
            groups=None if rows.groups is None else less(rows.groups, self._groups),
            slices=tuple(replace(one, codes=less(one.codes, own.get(one.name))) for one in rows.slices),
        )


def load(session: Session, pipeline: str, test_set_id: str, base: StoredRows | None = None) -> StoredRows:
    """A stored test set.

    Args:
        base: read before, and used if it is this one's, or is this set.
    """
    if base is not None and base.id == test_set_id:
        return base
    session.flush()
    query = "SELECT * FROM test_sets WHERE pipeline = :pipeline AND test_set_id = :test_set"
    stored = session.execute(selecting(query, {"pipeline": pipeline, "test_set": test_set_id})).one()
    if stored.base_id is None:
        return StoredRows(stored)
    if base is None or base.id != stored.base_id:
        base = load(session, pipeline, stored.base_id)
    return StoredRows(stored, base)


def load_before(session: Session, pipeline: str, moment: datetime) -> Iterator[StoredRows]:
    """The test sets of nights before an instant (aware), sets of one base in a row: it is read once."""
    query = (
        "SELECT t.test_set_id FROM test_sets AS t WHERE t.pipeline = :pipeline AND t.test_set_id IN ("
        "SELECT p.test_set_id FROM test_predictions AS p JOIN nightly_runs AS r ON r.run_id = p.run_id "
        "WHERE p.pipeline = :pipeline AND p.kind = 'test' AND r.data_until < :moment) "
        "ORDER BY COALESCE(t.base_id, t.test_set_id)"
    )
    base = None
    for test_set_id in session.scalars(selecting(query, {"pipeline": pipeline, "moment": moment})).all():
        found = load(session, pipeline, test_set_id, base)
        base = found.base or found
        yield found


def newest_whole(session: Session, pipeline: str, kind: str) -> StoredRows | None:
    """The newest set of a kind that is stored as a whole."""
    newest = session.execute(_WHOLE, {"pipeline": pipeline, "kind": kind}).first()
    return None if newest is None else StoredRows(newest)


def pack(
    session: Session, pipeline: str, kind: str, rows: Rows, label_names: Sequence[str], base: StoredRows | None
) -> dict[str, Any]:
    """The columns of `test_set` for these rows, or its key alone where they are stored already; for `add`.

    Args:
        base: the newest whole set of this kind.
    """
    content = _content(rows, label_names)
    digest = hashlib.sha256(json.dumps([kind, label_names]).encode())
    for name, column in content.items():
        digest.update(f"{name} {len(column or b'')} ".encode() + (column or b""))
    key = {"pipeline": pipeline, "test_set_id": f"e-{digest.hexdigest()[:16]}"}
    if is_recorded(session, TestSet, **key):
        return key
    columns: dict[str, Any] = key | {"kind": kind, "num_rows": len(rows), "label_names": list(label_names)}
    if base is not None:
        places, difference = base.difference(rows)
        packed = _packed(_content(difference, label_names)) | {"places": compress(np.diff(places, prepend=-1), "<i4")}
        if _size(packed) <= _LARGEST * base.size:
            return columns | packed | {"base_id": base.id}
    return columns | _packed(content)


def add(session: Session, packed: dict[str, Any]) -> None:
    """Insert a test set, unless it is stored."""
    if "kind" in packed:
        merge_rows(session, TestSet, [packed | {"recorded_at": datetime.now(UTC)}])


def label_type(label_names: Sequence[str]) -> str:
    """The type of a label in bytes: one, or two if there are more than 256 labels."""
    return "<u1" if len(label_names) <= 256 else "<u2"


def named(fingerprints: Sequence[str]) -> NDArray[Any]:
    """Fingerprints in hex as bytes, shape [rows]; they can be sorted and compared."""
    return np.frombuffer(bytes.fromhex("".join(fingerprints)), dtype=_NAME)


def compress(values: NDArray[np.int64], kind: str, strategy: int = zlib.Z_DEFAULT_STRATEGY) -> bytes:
    """Numbers as compressed bytes of this type."""
    packer = zlib.compressobj(strategy=strategy)
    return packer.compress(values.astype(kind).tobytes()) + packer.flush()


def array(content: bytes, kind: str) -> NDArray[Any]:
    """The numbers that `compress` was given, of its type."""
    return np.frombuffer(zlib.decompress(content), dtype=kind).copy()


def _content(rows: Rows, label_names: Sequence[str]) -> dict[str, bytes | None]:
    """The columns of rows, before they are compressed."""
    return {
        "fingerprints": bytes.fromhex("".join(rows.fingerprints)),
        "labels": rows.true.astype(label_type(label_names)).tobytes(),
        "seen_at": rows.seen_at.astype("<i8").tobytes(),
        "groups": None if rows.groups is None else rows.groups.astype("<i4").tobytes(),
        "slices": json.dumps({one.name: [one.values, one.codes.tolist()] for one in rows.slices}).encode(),
    }


def _packed(content: dict[str, bytes | None]) -> dict[str, bytes | None]:
    return {name: None if column is None else zlib.compress(column) for name, column in content.items()}


def _size(packed: dict[str, bytes | None]) -> int:
    return sum(len(column or b"") for column in packed.values())
