"""What a refresh counted: the rows of each part of the source, and the figures that nights are compared by."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightgate.data.base import Base
from nightgate.data.batches import DELETED_LABEL, QUARANTINED_LABEL
from nightgate.data.columns import Columns, Index, among, blocks, distinct, repeated, take
from nightgate.data.deltas import DELETED, GONE, MERGED, QUARANTINED, STATES, TAKEN, Chain
from nightgate.data.reading import Read
from nightgate.data.resolve import Resolved
from nightgate.data.rules import SPLITS, snapshot_columns, source_of, split_version
from nightgate.data.snapshots import Snapshot, facts_of, open_snapshot, row_sums
from nightgate.data.tip import Tip
from nightgate.data.training_rows import window_start
from nightgate.errors import InternalError, SnapshotError
from nightgate.sources.source import Plan
from nightgate.sources.times import NO_TIME, microseconds, moment

Counts = NDArray[np.int64]
log = logging.getLogger(__name__)

MOST_VOTES = 1_000
"""Texts with several labels whose votes are handed over."""
_COUNTED = ("text_key", "facts", "time", "label", "split", "part")
GONE_SINCE = "(parts that are gone)"
"""Name of the counts of rows whose parts the source has lost since the night of a backfill."""
NIGHTS_COMPARED = 7
"""A week, so that its quiet days are among them."""


@dataclass(frozen=True)
class PartCounts:
    """Where each row of a part of the source went: a file, a split, a day of the sample, a table."""

    part: str
    rows_seen: int
    taken: int = 0
    """In the snapshot."""
    merged: int = 0
    """With a text that another row of the snapshot has."""
    replaced: int = 0
    """Earlier versions of a row id."""
    deleted: int = 0
    """That the source marks as deleted."""
    quarantined: int = 0
    conflicting: int = 0
    """Left out because labels of one text, or known splits of one row, disagree."""
    future: int = 0
    """Of the night's `data_until` or later."""
    outside: int = 0
    """Older than `train_window` and in no other place."""
    vanished: int = 0
    """Rows of earlier nights that the part no longer has; not among `rows_seen`."""
    bytes: int | None = None
    modified: datetime | None = None
    unchanged: bool = False
    """Not read again: the counts are those of the night that read it."""
    complete: bool = True
    """False: only rows behind a mark were read."""

    def __post_init__(self) -> None:
        if self.rows_seen != self.accounted:
            counts = ", ".join(f"{name} {value:,}" for name, value in asdict(self).items() if type(value) is int)
            raise InternalError(
                f"the rows of {self.part} don't balance, {self.accounted:,} of {self.rows_seen:,} are accounted for: "
                f"{counts}",
                next_step="this is a bug in Nightgate: report it with the log",
            )

    @property
    def accounted(self) -> int:
        placed = self.taken + self.merged + self.replaced + self.deleted
        return placed + self.quarantined + self.conflicting + self.future + self.outside


@dataclass(frozen=True)
class LabelVotes:
    """The labels that rows with one text have."""

    fingerprint: str
    votes: Mapping[str, int]
    """Rows by label."""
    label: str | None
    """The one that the text has in the snapshot; None: the text was left out."""


@dataclass(frozen=True)
class Statistics:
    """Figures of one night that the checks compare with those of earlier nights."""

    night: date
    rows_total: int
    rows_new: int
    """Rows of the snapshot that the last one lacks."""
    rows_read: int
    """Rows that no earlier night saw, usable or not."""
    rows_quarantined: int
    """Of `rows_read`."""
    labels: Mapping[str, int] = field(default_factory=dict)
    """`rows_new` by label."""
    splits: Mapping[str, int] = field(default_factory=dict)
    """`rows_total` by split."""
    commonest: int = 0
    """How many of `rows_read` have the text that most of them have."""
    commonest_text: str = ""
    """Its beginning."""
    missing: Mapping[str, int] = field(default_factory=dict)
    """How many of `rows_checked` have no value, for each column with rules."""
    rows_checked: int = 0
    """Rows of the parts that were read, known ones too."""
    is_first: bool = False
    """Whether there was nothing to compare with: all rows count as new."""
    source: str = ""
    """`source_of` the pipeline: nights of another source say nothing about this one."""
    until: str = ""
    """The night's `data_until`, ISO 8601 in UTC; '': unknown."""

    def to_json(self) -> dict[str, Any]:
        return asdict(replace(self, commonest_text="")) | {"night": self.night.isoformat()}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Statistics:
        return cls(**{**stored, "night": date.fromisoformat(stored["night"])})


def remember(recent: Sequence[Statistics], tonight: Statistics) -> tuple[Statistics, ...]:
    """The nights that the next one is compared with. A second refresh of a date adds to the first one's new rows."""
    *before, last = recent or (tonight,)
    if recent and last.night == tonight.night:
        labels = {name: last.labels.get(name, 0) + count for name, count in tonight.labels.items()}
        rows_new = last.rows_new + tonight.rows_new
        tonight = replace(tonight, rows_new=rows_new, labels=labels, is_first=last.is_first)
        return (*before, tonight)[-NIGHTS_COMPARED:]
    return (*recent, tonight)[-NIGHTS_COMPARED:]


@dataclass(frozen=True)
class Totals:
    """What is counted of all rows that hold."""

    states: Counts
    """Rows by the number of their part and what became of them, as in STATES."""
    outside: Counts
    """Training rows that are older than `train_window`, by part."""
    labels: Counts
    """Rows of the snapshot by split and label."""
    trainable: Counts
    """Training rows by label, without those outside."""
    times: tuple[int, int]
    """The first and last time of a row of the snapshot."""
    sums: NDArray[np.uint64]
    """`row_sums` of the rows of the snapshot."""

    @classmethod
    def of(cls, base: Base, num_parts: int, *parts: Columns) -> Totals:
        """Count the rows of the index in `parts`, piece by piece; those with the state GONE are passed over."""
        data = base.pipeline.data
        start = window_start(base.pipeline, base.night.data_until)
        first = NO_TIME if start is None else microseconds(start.to_pydatetime())
        shape = (num_parts, len(STATES) + 1)
        states, outside, sums = np.zeros(shape, np.int64), np.zeros(num_parts, np.int64), np.zeros(2, np.uint64)
        labels, old_labels = (np.zeros((number, len(data.label_names)), np.int64) for number in (len(SPLITS), 1))
        earliest, latest = np.iinfo(np.int64).max, NO_TIME
        for rows in blocks(*parts):
            states += _counted(states, rows["part"], rows["state"] - GONE)
            taken = take({name: rows[name] for name in _COUNTED}, rows["state"] == TAKEN)
            old = take(taken, (taken["split"] == 0) & (taken["time"] < first))
            labels += _counted(labels, taken["split"], taken["label"])
            old_labels += _counted(old_labels, np.zeros(len(old["label"])), old["label"])
            outside += np.bincount(old["part"], minlength=num_parts)
            earliest, latest = taken["time"].min(initial=earliest), taken["time"].max(initial=latest)
            sums += row_sums(taken)
        return cls(states[:, 1:], outside, labels, labels[0] - old_labels[0], (int(earliest), int(latest)), sums)

    @classmethod
    def kept(cls, base: Base) -> Totals | None:
        """Those of the last refresh; None where tip.json does not have them, or time alone changes them."""
        kept, head = base.tip.totals, base.chain.head
        if head is None or kept.get("head") != head["sha256"] or base.pipeline.data.train_window:
            return None
        states, labels = (np.array(kept[name], np.int64) for name in ("states", "labels"))
        sums = np.array(kept["sums"], np.uint64)
        return cls(states, np.zeros(len(states), np.int64), labels, labels[0], tuple(kept["times"]), sums)

    def to_json(self, head: Mapping[str, str] | None) -> dict[str, Any]:
        """For `kept`; `head`: of the chain with these rows."""
        found = {name: getattr(self, name).tolist() for name in ("states", "labels", "sums")}
        return {"head": (head or {}).get("sha256"), "times": self.times, **found}

    def changed(self, without: Totals, others: Totals) -> Totals | None:
        """These without some of their rows, and with others; None where the first or last row leaves."""
        first, last = self.times
        if without.rows and first != NO_TIME and (without.times[0] <= first or without.times[1] >= last):
            return None
        states = others.states - without.states
        states[: len(self.states)] += self.states
        labels, sums = self.labels - without.labels + others.labels, self.sums - without.sums + others.sums
        times = (min(first, others.times[0]), max(last, others.times[1]))
        return Totals(states, others.outside, labels, labels[0], times, sums)

    @property
    def rows(self) -> int:
        """Of the snapshot."""
        return int(self.labels.sum())


def count_all(base: Base, num_parts: int, index: Index, resolved: Resolved, kept: Totals | None) -> Totals:
    """What is counted of the rows that hold now.

    Args:
        index: rows that held before.
        kept: what was counted of them; None counts them again.
    """
    before, after = resolved.superseded, resolved.rows
    if kept is not None:
        totals = kept.changed(Totals.of(base, num_parts, before), Totals.of(base, num_parts, after))
        if totals is not None:
            return totals
    state = np.where(index.holds, index["state"], np.int8(GONE))
    state[before["place"]] = GONE
    return Totals.of(base, num_parts, {name: index[name] for name in _COUNTED} | {"state": state}, after)


def _counted(table: Counts, rows: NDArray[Any], columns: NDArray[Any]) -> Counts:
    """How many there are of each pair of a row and a column of a table."""
    return np.bincount(rows.astype(np.int64) * table.shape[1] + columns, minlength=table.size).reshape(table.shape)


def count_parts(
    base: Base, totals: Totals, read: Read, plan: Plan, gone: Sequence[str], vanished: dict[int, int]
) -> tuple[PartCounts, ...]:
    """Where each row of each part is; what is counted is added to `read.parts`."""
    codes = {part["code"]: name for name, part in read.parts.items()}
    counts, outside = totals.states, totals.outside
    again = {part.name for part in plan.read}
    parts = []
    for code, name in codes.items():
        part = read.parts[name]
        placed = _placed(counts[code], outside[code])
        if not part["complete"]:
            # Only what is behind a mark was read: the part has what is known of it.
            part["seen"] = int(counts[code].sum()) + part["future"]
        read.parts[name] = part | {"counts": placed}
        parts.append(part_counts(name, read.parts[name], vanished.get(code, 0), unchanged=name not in again))
    parts += [
        PartCounts(part=name, rows_seen=0, vanished=vanished.get(base.tip.parts[name]["code"], 0)) for name in gone
    ]
    others = np.setdiff1d(np.flatnonzero(counts.any(axis=1)), [*codes])
    if len(others):
        # Only in a backfill; the names of the parts are gone, too.
        placed = _placed(counts[others].sum(axis=0), outside[others].sum())
        parts.append(PartCounts(part=GONE_SINCE, rows_seen=sum(placed.values()), **placed, unchanged=True))
    return tuple(sorted(parts, key=lambda part: part.part))


def _placed(by_state: NDArray[np.int64], outside: np.int64) -> dict[str, Any]:
    """Rows by what became of them, under the names of `PartCounts`."""
    placed = dict(zip(STATES, by_state.tolist(), strict=True))
    placed["taken"] -= int(outside)
    placed["conflicting"] += placed.pop("left_out")
    return placed | {"outside": int(outside)}


def part_counts(name: str, part: Mapping[str, Any], vanished: int = 0, *, unchanged: bool) -> PartCounts:
    return PartCounts(
        part=name,
        rows_seen=part["seen"],
        **part["counts"],
        future=part["future"],
        vanished=vanished,
        bytes=part["bytes"],
        modified=None if part["modified"] is None else datetime.fromisoformat(part["modified"]),
        unchanged=unchanged,
        complete=part["complete"],
    )


def vanished_rows(leaving: Columns, new: Columns) -> dict[int, int]:
    """Rows that left without a newer version, by the number of their part; not those that were marked as deleted."""
    leaving = take(leaving, leaving["state"] != DELETED)
    left = leaving["part"][~among(leaving["id_key"], distinct(new["id_key"]))]
    codes, counts = np.unique(left, return_counts=True)
    return dict(zip(codes.tolist(), counts.tolist(), strict=True))


def describe(base: Base, totals: Totals) -> dict[str, Any]:
    data = base.pipeline.data
    names = data.label_names
    by_split = dict(zip(SPLITS, totals.labels.tolist(), strict=True))
    times = [moment(time).isoformat() for time in totals.times] if data.time and totals.rows else [None, None]
    return {
        "pipeline": base.pipeline.name,
        "label_names": list(names),
        "columns": snapshot_columns(data),
        "slices": list(data.slices),
        "group": data.group is not None,
        "rows": {split: sum(counted) for split, counted in by_split.items()},
        "rows_total": totals.rows,
        "rows_quarantined": int(totals.states[:, QUARANTINED].sum()),
        "rows_duplicate": int(totals.states[:, MERGED].sum()),
        "label_counts": {split: dict(zip(names, counted, strict=True)) for split, counted in by_split.items()},
        "test_version": split_version(base.pipeline),
        "data_until": base.until,
        "first_time": times[0],
        "last_time": times[1],
    }


def statistics_of(
    base: Base, chain: Chain, read: Read, rows: Columns, before: Columns, totals: Totals, *, is_first: bool
) -> Statistics:
    """What the data checks compare with other nights.

    Args:
        chain: with the texts of tonight.
        rows: rows of the index that are new or have another state than before.
        before: these, and rows that are gone, as they were.
    """
    known = distinct(before["text_key"][before["state"] == TAKEN])
    new_labels = rows["label"][(rows["state"] == TAKEN) & ~among(rows["text_key"], known)]
    texts = read.rows["text_key"]
    keys, counts = np.unique(texts[among(texts, repeated(texts))], return_counts=True)
    commonest, text = int(counts.max(initial=(read.rows["text_at"] >= 0).any())), ""
    if len(keys):
        place = np.flatnonzero(texts == keys[counts.argmax()])[:1]
        text = chain.texts(read.rows["text_at"][place], ["text"])["text"][0].as_py()[:60]
    by_label = np.bincount(new_labels, minlength=len(base.pipeline.data.label_names)).tolist()
    return Statistics(
        night=base.night.date,
        rows_total=totals.rows,
        rows_new=len(new_labels),
        rows_read=int((read.rows["own_label"] != DELETED_LABEL).sum()),
        rows_quarantined=int((read.rows["own_label"] == QUARANTINED_LABEL).sum()),
        labels={name: count for name, count in zip(base.pipeline.data.label_names, by_label, strict=True) if count},
        splits=dict(zip(SPLITS, totals.labels.sum(axis=1).tolist(), strict=True)),
        commonest=commonest,
        commonest_text=text,
        missing=read.missing,
        rows_checked=read.checked,
        is_first=is_first,
        source=source_of(base.pipeline),
        until=base.until,
    )


def unchanged_statistics(base: Base, facts: Mapping[str, Any]) -> Statistics:
    """As `statistics_of`, of a night without news; `facts`: the manifest of the last snapshot."""
    counts = {"rows_total": facts["rows_total"], "rows_new": 0, "rows_read": 0, "rows_quarantined": 0}
    return Statistics(base.night.date, **counts, source=source_of(base.pipeline), until=base.until)


def label_votes(votes: Columns, chain: Chain, names: Sequence[str]) -> tuple[LabelVotes, ...]:
    """The votes on the texts with the most rows, most first; `votes`: as of `nightgate.data.resolve.Resolved`."""
    text = votes["text_key"]
    begin = np.flatnonzero(np.append(True, text[1:] != text[:-1]))[: len(text)]
    rows, text_at = np.add.reduceat(votes["rows"], begin), np.maximum.reduceat(votes["text_at"], begin)
    most = np.argsort(-rows, kind="stable")[:MOST_VOTES]
    marks = facts_of(chain.texts, text_at[most], ["fingerprint"])["fingerprint"].to_pylist()
    end, found = np.append(begin[1:], len(text)), []
    for mark, place in zip(marks, most.tolist(), strict=True):
        columns = (votes[name][begin[place] : end[place]].tolist() for name in ("label", "rows", "chosen"))
        of_text = [(names[label], count, chosen) for label, count, chosen in zip(*columns, strict=True)]
        label = next((name for name, _, chosen in of_text if chosen), None)
        found.append(LabelVotes(mark, {name: count for name, count, _ in of_text}, label))
    return tuple(found)


def count_new(snapshot: Snapshot, previous: Path | None, tip: Tip, rows_new: int) -> int:
    """Rows whose text the previous snapshot lacks.

    Args:
        tip: of the refresh before.
        rows_new: rows whose text its snapshot lacks.
    """
    if previous is None:
        return int(snapshot.manifest["rows_total"])
    if previous.name == snapshot.id:
        return 0
    if tip.head is not None and tip.nights[-1].snapshot == previous.name:
        return rows_new
    try:
        before = open_snapshot(previous, verify=False).text_keys()
    except SnapshotError as error:
        log.warning("all rows count as new: the previous snapshot cannot be read: %s", error.reason)
        return int(snapshot.manifest["rows_total"])
    return int((~np.isin(snapshot.text_keys(), before)).sum())
