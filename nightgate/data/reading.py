"""Read the parts of the source that have changed: new rows go to the delta, known ones are passed over.

base = Base(pipeline, night, folder, tip, chain)
read = read_parts(base, source, plan, known, draft)
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nightgate.data.base import Base
from nightgate.data.batches import Worked, work
from nightgate.data.columns import INDEX, Columns, Growing, Index, Mask, distinct, take
from nightgate.data.deltas import DeltaDraft
from nightgate.data.rules import hashed_shares, sides_of
from nightgate.data.tip import Tip
from nightgate.sources.source import Plan, Source
from nightgate.sources.source_table import Quarantined

log = logging.getLogger(__name__)

REPORTED_EVERY = 15.0
"""Seconds after which the log says how far the reading is."""
MOST_QUARANTINED = 100_000
"""Quarantined rows of a night that are handed over one by one; more are only counted."""
_PASSES = 8
"""Batches whose rows are looked up in a pass over the index each, before it is sorted, which takes 20 times as long: a
night that reads few rows behind a mark does without."""
NO_ROWS: Columns = {
    name: np.empty(0, kind) for name, kind in INDEX.items() if name not in ("label", "split", "state")
} | {"hashed": np.empty(0, np.int8)}


@dataclass(frozen=True)
class Read:
    """What the parts of the source gave tonight."""

    rows: Columns
    """Rows that are new, with the columns of the index but for label, split and state; `hashed` is the split by hash,
    -1 without a text."""
    quarantined: tuple[Quarantined, ...]
    parts: dict[str, dict[str, Any]]
    """As in `Tip.parts`, of all parts that the source has."""
    classes: tuple[str, ...]
    ids_behind_marks: frozenset[str] = frozenset()
    """Ids of the rows that are new, in parts of which only what is behind a mark was read."""
    missing: dict[str, int] = field(default_factory=dict)
    """Rows without a value, by column with rules."""
    checked: int = 0
    """Rows that were read."""

    @classmethod
    def nothing(cls, tip: Tip) -> Read:
        """Nothing was read: the parts have what is known of them."""
        parts = {name: part | {"complete": False, "future": 0} for name, part in tip.parts.items()}
        return cls(NO_ROWS, (), parts, tuple(tip.classes))


class _Ordered(NamedTuple):
    """Rows of the index, those with equal facts one after the other."""

    rows: NDArray[np.intp]
    facts: NDArray[np.uint64]
    """Sorted."""
    found: NDArray[np.int32]
    """How many of the equal rows that begin at a place were found."""


class KnownRows:
    """Equal rows are found as often as the index has them, in any of the parts: files may be renamed or merged."""

    def __init__(self, index: Index, parts: Collection[int]) -> None:
        """
        Args:
            parts: numbers of the parts that are read again, or gone.
        """
        self._index = index
        self._missing = np.zeros(len(index.holds), bool)
        if parts:
            # By number, in a fourth of the time of np.isin.
            again = np.zeros(1 + max(*parts, index["part"].max(initial=0)), bool)
            again[list(parts)] = True
            self._missing = index.where("part", lambda numbers: again[numbers])
        self._moved: list[tuple[NDArray[np.intp], int]] = []
        self._passes = 0
        self._all: _Ordered | None = None

    def find(self, facts: NDArray[np.uint64], part: int) -> Mask:
        """Which rows of a batch are known."""
        mask = np.zeros(len(facts), bool)
        if not (len(facts) and self._missing.any()):
            return mask
        order = np.argsort(facts, kind="stable")
        values = facts[order]
        known = self._candidates(values)
        begin, end = (np.searchsorted(known.facts, values, side=side) for side in ("left", "right"))
        # The how-manieth of the equal rows of the batch, after those of earlier batches.
        starts = np.flatnonzero(np.append(True, values[1:] != values[:-1]))
        nth = np.arange(len(values)) - np.repeat(starts, np.diff(np.append(starts, len(values))))
        place = begin + known.found[begin] + nth
        is_known = place < end
        np.add.at(known.found, begin[is_known], 1)
        rows = known.rows[place[is_known]]
        self._missing[rows] = False
        self._moved.append((rows[self._index["part"][rows] != part], part))
        mask[order] = is_known
        return mask

    def missing(self) -> Mask:
        """Rows of the index that no batch had."""
        return self._missing.copy()

    def moved(self) -> Mask:
        """Rows that were in another part than the index says, which it says from now on."""
        index, moved = self._index, np.zeros(len(self._missing), bool)
        for rows, part in self._moved:
            if len(rows):
                if not moved.any():
                    index["part"] = index["part"].copy()
                moved[rows], index["part"][rows] = True, part
        return moved

    def _candidates(self, values: NDArray[np.uint64]) -> _Ordered:
        """Rows that no batch had yet, with at least those that have one of these facts."""
        if self._all is None and self._passes < _PASSES:
            self._passes += 1
            return self._ordered(np.flatnonzero(self._index.among("facts", distinct(values)) & self._missing))
        if self._all is None:
            self._all = self._ordered(np.flatnonzero(self._missing))
        return self._all

    def _ordered(self, rows: NDArray[np.intp]) -> _Ordered:
        # A fifth of the time of np.lexsort, which only equal rows need.
        facts = self._index.at("facts", rows)
        order = np.argsort(facts)
        rows, facts = rows[order], facts[order]
        same = facts[1:] == facts[:-1]
        equal = np.flatnonzero(np.append(same, False) | np.append(False, same)) if same.any() else rows[:0]
        few = rows[equal]
        rows[equal] = few[np.lexsort((few, self._index["part"][few], facts[equal]))]
        return _Ordered(rows, facts, np.zeros(len(rows) + 1, np.int32))


def read_parts(base: Base, source: Source, plan: Plan, known: KnownRows, draft: DeltaDraft) -> Read:
    """Read the parts of the plan; the texts of new rows are in the draft then.

    Raises:
        DataError: a part cannot be read.
        StorageError: the disk is full.
    """
    tip, rules = base.tip, base.rules
    parts = {part.name: tip.parts[part.name] for part in plan.unchanged}
    found, quarantined, missing = Growing(NO_ROWS), list[Quarantined](), Counter[str]()
    ids = set[str]()
    classes, next_code = tuple(tip.classes), tip.codes
    reported = time.monotonic()
    for part in plan.read:
        code = tip.parts[part.name]["code"] if part.name in tip.parts else next_code
        next_code = max(next_code, code + 1)
        seen, future, next_times = 0, 0, []
        for raw in source.read(part):
            worked = work(raw, rules)
            classes = raw.classes or classes
            seen += raw.table.num_rows + len(raw.rejected)
            future += worked.future
            if time.monotonic() > reported + REPORTED_EVERY:
                reported = time.monotonic()
                log.info("%s: %s rows read", part.name, f"{seen:,}")
            next_times += [] if worked.next_time is None else [worked.next_time]
            room = max(MOST_QUARANTINED - len(quarantined), 0)
            quarantined += [replace(row, part=part.name) for row in worked.quarantined[:room]]
            missing.update(worked.missing)
            is_new = ~known.find(worked.small["facts"], code)
            text_at = base.chain.text_rows + draft.text_rows
            found.add(_indexed(worked, is_new, base, part=code, text_at=text_at))
            if not part.complete:
                ids.update(worked.ids.filter(pa.array(is_new)).drop_null().to_pylist())
            with_text = is_new[: worked.facts.num_rows]
            draft.add_texts(worked.facts if with_text.all() else worked.facts.filter(pa.array(with_text)))
        parts[part.name] = {
            "code": code,
            "version": part.version,
            "complete": part.complete,
            "bytes": part.bytes,
            "modified": None if part.modified is None else part.modified.isoformat(),
            "seen": seen,
            "future": future,
            "next_time": min(next_times, default=None),
        }
    checked = sum(parts[part.name]["seen"] for part in plan.read)
    return Read(found.columns, tuple(quarantined), parts, classes, frozenset(ids), dict(missing), checked)


def _indexed(worked: Worked, is_new: Mask, base: Base, *, part: int, text_at: int) -> Columns:
    """The new rows of a batch, as in `Read.rows`; `text_at`: place of the first text."""
    rows = take(worked.small, is_new)
    num_rows, num_texts = len(rows["facts"]), int(is_new[: worked.facts.num_rows].sum())
    rows["part"], rows["seen"] = (np.full(num_rows, value, np.int32) for value in (part, base.tip.number + 1))
    rows["text_at"] = np.full(num_rows, -1, np.int64)
    rows["text_at"][:num_texts] = text_at + np.arange(num_texts)
    halves = zip(rows["text_key"][:num_texts].tolist(), rows.pop("text_rest")[:num_texts].tolist(), strict=True)
    keys = [f"{key:016x}{rest:016x}" for key, rest in halves]
    if base.pipeline.data.group:
        groups = worked.facts["group"].filter(pa.array(is_new[: worked.facts.num_rows])).to_pylist()
        keys = [key if group is None else group for key, group in zip(keys, groups, strict=True)]
    rows["hashed"] = np.full(num_rows, -1, np.int8)
    rows["hashed"][:num_texts] = sides_of(keys, seed=base.pipeline.split.seed, **hashed_shares(base.pipeline))
    return rows


def leaving_rows(index: Index, known: KnownRows, plan: Plan, read: Read) -> Mask:
    """Rows of the index that the source no longer has: those that were not found again in parts that were read whole
    or are gone, and earlier versions of rows that were read behind a mark.
    """
    leaving = known.missing()
    for code in (read.parts[part.name]["code"] for part in plan.read if not part.complete):
        newer = distinct(read.rows["id_key"][read.rows["part"] == code])
        leaving &= (index["part"] != code) | index.among("id_key", newer)
    return leaving
