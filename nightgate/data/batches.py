"""Raw rows to usable rows, one Arrow batch at a time: normalised, identified, or quarantined with a reason.

    worked = work(raw_batch, rules)

`work` is pure: it reads no file and keeps nothing, so batches can be worked on in any order and on any machine.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nightgate.config.checks import ColumnRules
from nightgate.config.pipeline import Pipeline
from nightgate.config.values import canonical_label
from nightgate.data.columns import SMALL, Columns, mixed
from nightgate.data.rules import SPLITS
from nightgate.data.split_memory import hashes_of
from nightgate.sources.column_rules import check_columns
from nightgate.sources.source import RawBatch
from nightgate.sources.source_table import GIVEN_SPLIT, Problem, Quarantined, is_missing
from nightgate.sources.times import NO_TIME, microseconds, read_times
from nightgate.text_rules import fingerprint, join_texts, normalise_text

GIVEN_NAMES = {split: split for split in SPLITS}
GIVEN_NAMES |= {"training": "train", "valid": "validation", "val": "validation", "dev": "validation"}

MISSING = "(missing)"
"""Slice value of rows without one."""
SLICE_LENGTH = 200
"""Longest slice value, in characters."""
QUARANTINED_LABEL, DELETED_LABEL = -1, -2
"""In place of a label."""
_NOT_DELETED = {"", "0", "false", "f", "no", "n", "off"}


@dataclass(frozen=True)
class Rules:
    """What `work` does with a batch."""

    text: tuple[str, ...]
    label: str
    label_index: Mapping[str, int]
    id: str | None
    time: str | None
    group: str | None
    slices: tuple[str, ...]
    given: str | None
    updated: str | None
    deleted: str | None
    timezone: str
    time_format: str
    columns: Mapping[str, ColumnRules]
    """What values of columns must be."""
    forgotten: frozenset[str]
    """Hashes of ids whose rows are left out, as if the source had deleted them."""
    until: int
    """Rows at this time or later are of the future, in microseconds."""

    @classmethod
    def of(cls, pipeline: Pipeline, data_until: datetime, forgotten: frozenset[str] = frozenset()) -> Rules:
        data = pipeline.data
        return cls(
            text=data.text_columns,
            label=data.label,
            label_index=data.label_index,
            id=data.id,
            time=data.time,
            group=data.group,
            slices=data.slices,
            given=pipeline.split.column,
            updated=data.updated or None,
            deleted=data.deleted or None,
            timezone=data.timezone,
            time_format=data.time_format,
            columns=data.checks.columns,
            forgotten=forgotten,
            until=microseconds(data_until),
        )

    @property
    def schema(self) -> pa.Schema:
        """Of `Worked.facts`."""
        names = ("text", "row_id", *(("group",) if self.group else ()), *(f"slice_{name}" for name in self.slices))
        return pa.schema([pa.field(name, pa.string()) for name in names])


@dataclass(frozen=True)
class Worked:
    """Rows of one batch, without those of the future."""

    facts: pa.Table
    """text, row_id (null: the fingerprint), group (null: the row is its own group) and slice_<name>."""
    small: Columns
    """The columns of SMALL: first the rows of `facts`, then quarantined and deleted ones, which have no text."""
    ids: pa.Array
    """Row ids of the rows of `small`."""
    quarantined: tuple[Quarantined, ...]
    future: int
    """Rows at or after the night's cut-off."""
    next_time: int | None
    """The earliest of these."""
    missing: Mapping[str, int]
    """Rows without a value, by column with rules."""


def work(raw: RawBatch, rules: Rules) -> Worked:
    """The usable, deleted and quarantined rows of a batch."""
    table, num_rows = raw.table, raw.table.num_rows
    deleted = _deleted(table, rules)
    times, updated = (np.full(num_rows, NO_TIME, np.int64) for _ in range(2))
    given = np.full(num_rows, -1, np.int8)
    found: list[dict[int, Problem]] = []
    if rules.time:
        times, problems = read_times(array_of(table, rules.time), rules.timezone, rules.time_format)
        found.append(problems)
    if rules.updated:
        updated, _ = read_times(array_of(table, rules.updated), rules.timezone, rules.time_format)
    texts, column, problems = read_texts([array_of(table, name) for name in rules.text])
    found.append(problems)
    broken = check_columns({name: _values(array_of(table, name)) for name in rules.columns}, rules.columns)
    found.append({row: Problem("bad_value", why) for row, why in broken.rows.items()})
    labels, problems = _mapped(array_of(table, rules.label), lambda value: _label(value, rules), np.int16)
    found.append(problems)
    given_column = GIVEN_SPLIT if GIVEN_SPLIT in table.column_names else rules.given
    if given_column:
        given, problems = _mapped(array_of(table, given_column), _given, np.int8)
        found.append(problems)
    ids = plain_values(array_of(table, rules.id)) if rules.id else pa.nulls(num_rows, pa.string())
    if rules.forgotten:
        named = zip(ids.to_pylist(), texts, strict=True)
        deleted |= [hash_of_forgotten(row_id or fingerprint(text)) in rules.forgotten for row_id, text in named]
    future = times >= rules.until
    # The first problem of a row is its reason.
    bad: dict[int, Problem] = {}
    for problems in found:
        for row, why in problems.items():
            if not (future[row] or deleted[row]):
                bad.setdefault(row, why)
    usable = ~(future | deleted)
    usable[list(bad)] = False
    rows = np.flatnonzero(usable)

    if len(rows) < num_rows:
        texts, column = [texts[row] for row in rows.tolist()], column.take(pa.array(rows))
    marks = _digests(texts)
    facts = {"text": column, "row_id": ids.take(pa.array(rows))}
    small: Columns = {
        "text_key": marks[:, 0],
        "text_rest": marks[:, 1],
        "id_key": hashes_of(facts["row_id"].to_pylist()),
        "group_key": np.zeros(len(rows), np.uint64),
        "time": times[rows],
        "updated": updated[rows],
        "own_label": labels[rows],
        "given": given[rows],
    }
    # The checksum tells texts apart that differ in case only.
    exact = np.fromiter((zlib.crc32(text.encode()) for text in texts), np.uint64, len(texts))
    names = []
    if rules.group:
        facts["group"], keys = _named(array_of(table, rules.group).take(pa.array(rows)), _plain)
        names.append(keys)
        # A row without a group is one of its own.
        small["group_key"] = np.where(keys == 0, marks[:, 0], keys)
    for name in rules.slices:
        facts[f"slice_{name}"], keys = _named(array_of(table, name).take(pa.array(rows)), _slice)
        names.append(keys)
    numbers = (small[name] for name in ("text_rest", "id_key", "time", "own_label", "given"))
    small["facts"] = mixed(exact, *numbers, *names)

    quarantined = [row if _may_be_kept(row.row_id, rules) else _emptied(row) for row in raw.rejected]
    quarantined += (
        Quarantined(
            origin=f"{raw.place}:{raw.numbers[row]}",
            row_id=ids[row].as_py(),
            reason=why.reason,
            detail=why.detail,
            excerpt=_excerpt(table, rules.text, row),
        )
        for row, why in sorted(bad.items())
    )
    gone = np.flatnonzero(deleted & ~future)
    bad_ids, gone_ids = pa.array([row.row_id for row in quarantined], pa.string()), ids.take(pa.array(gone))
    others = _without_text(quarantined, table, gone_ids, gone, times, updated)
    return Worked(
        pa.table(facts, schema=rules.schema),
        {name: np.concatenate([small[name], others[name]]).astype(kind) for name, kind in SMALL.items()},
        pa.concat_arrays([facts["row_id"], bad_ids, gone_ids]),
        tuple(quarantined),
        int(future.sum()),
        int(times[future].min()) if future.any() else None,
        broken.missing,
    )


def hash_of_forgotten(row_id: str) -> str:
    """What is stored of a forgotten id: SHA-256, 64 hex digits."""
    return hashlib.sha256(row_id.encode()).hexdigest()


def _may_be_kept(row_id: str | None, rules: Rules) -> bool:
    return not rules.forgotten or row_id is None or hash_of_forgotten(row_id) not in rules.forgotten


def _emptied(row: Quarantined) -> Quarantined:
    """A row that cannot be read, without what it holds of a forgotten one."""
    return replace(row, row_id=None, detail="", excerpt="")


def _without_text(
    quarantined: Sequence[Quarantined],
    table: pa.Table,
    deleted_ids: pa.Array,
    deleted: NDArray[np.intp],
    times: NDArray[np.int64],
    updated: NDArray[np.int64],
) -> Columns:
    """The numbers of quarantined and deleted rows, which have no text."""
    found = {name: np.zeros(len(quarantined) + len(deleted), kind) for name, kind in SMALL.items()}
    for name in ("time", "updated"):
        found[name][:] = NO_TIME
    found["given"][:] = -1
    bad, gone = slice(0, len(quarantined)), slice(len(quarantined), None)
    reasons = [f"{row.reason}\n{row.detail}\n{row.row_id}\n{row.excerpt}" for row in quarantined]
    found["facts"][bad] = hashes_of(reasons)
    found["id_key"][bad] = hashes_of([row.row_id for row in quarantined])
    found["own_label"][bad] = QUARANTINED_LABEL
    values = [repr(row) for row in table.take(pa.array(deleted)).to_pylist()] if len(deleted) else []
    found["facts"][gone] = hashes_of(values)
    found["id_key"][gone] = hashes_of(deleted_ids.to_pylist())
    found["own_label"][gone] = DELETED_LABEL
    found["time"][gone], found["updated"][gone] = times[deleted], updated[deleted]
    return found


def array_of(table: pa.Table, name: str) -> pa.Array:
    """A column as one array, of strings where it has no values or long ones."""
    column = table[name].combine_chunks()
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_null(column.type) or pa.types.is_large_string(column.type):
        return column.cast(pa.string())
    return column


def read_texts(columns: Sequence[pa.Array]) -> tuple[list[str], pa.Array, dict[int, Problem]]:
    """The normalised texts, as a list and as an array; '' with a problem."""
    problems: dict[int, Problem] = {}
    if len(columns) == 1 and pa.types.is_string(columns[0].type):
        values = columns[0].to_pylist()
        texts = [normalise_text(value) if value else "" for value in values]
    else:
        values, texts = [None] * len(columns[0]), []
        for row, parts in enumerate(zip(*map(_values, columns), strict=True)):
            odd = [part for part in parts if isinstance(part, list | dict | bytes)]
            if odd:
                problems[row] = Problem("bad_text", f"holds a {type(odd[0]).__name__}, not text")
            known = () if odd else (part for part in parts if not is_missing(part))
            texts.append(join_texts(part if isinstance(part, str) else str(part) for part in known))
    for row, text in enumerate(texts):
        if not text:
            problems.setdefault(row, Problem("empty_text", "no text besides white space and invisible characters"))
    return texts, _with_changes(columns[0], values, texts), problems


def _digests(texts: Iterable[str]) -> NDArray[np.uint64]:
    """The 128 bits of each text's fingerprint as two numbers in the order of its hex digits, shape [texts, 2]."""
    sha256 = hashlib.sha256
    joined = b"".join([sha256(text.casefold().encode()).digest()[:16] for text in texts])
    return np.frombuffer(joined, ">u8").astype(np.uint64).reshape(-1, 2)


def _with_changes(column: pa.Array, values: Sequence[str | None], now: Sequence[str | None]) -> pa.Array:
    """`now` as an array; made of `column`, which has `values`, where few differ: a string costs 0.9 us to convert."""
    changed = [row for row, (value, new) in enumerate(zip(values, now, strict=True)) if value is not new]
    if not pa.types.is_string(column.type) or len(changed) > len(values) // 2:
        return pa.array(now, pa.string())
    if not changed:
        return column
    mask = np.zeros(len(values), bool)
    mask[changed] = True
    return pc.replace_with_mask(column, pa.array(mask), pa.array([now[row] for row in changed], pa.string()))


def plain_values(column: pa.Array) -> pa.Array:
    """Values such as ids as text that does not depend on the file format."""
    values = _values(column)
    return _with_changes(column, values, [_plain(value) for value in values])


def _distinct(column: pa.Array) -> tuple[NDArray[np.intp], list[Any]]:
    """For each row the place of its value among the distinct ones."""
    try:
        column = column.dictionary_encode(null_encoding="encode")
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        return np.arange(len(column)), _values(column)
    return column.indices.to_numpy(zero_copy_only=False).astype(np.intp), _values(column.dictionary)


def _values(column: pa.Array) -> list[Any]:
    try:
        return list(column.to_pylist())
    except (ValueError, OverflowError):  # times beyond what Python can hold
        return list(column.cast(pa.string()).to_pylist())


def _mapped(
    column: pa.Array, value_of: Callable[[Any], int | Problem], kind: type[np.integer[Any]]
) -> tuple[NDArray[Any], dict[int, Problem]]:
    """A number for each row, -1 with a problem."""
    places, values = _distinct(column)
    found = [value_of(value) for value in values]
    numbers = np.array([-1 if isinstance(value, Problem) else value for value in found], kind)[places]
    problems = {int(row): found[places[row]] for row in np.flatnonzero(numbers < 0)}
    return numbers, problems


def _named(column: pa.Array, name_of: Callable[[Any], str | None]) -> tuple[pa.Array, NDArray[np.uint64]]:
    """The name of each row's value, and its hash."""
    places, values = _distinct(column)
    names = [name_of(value) for value in values]
    return pa.array(names, pa.string()).take(pa.array(places)), hashes_of(names)[places]


def _deleted(table: pa.Table, rules: Rules) -> NDArray[np.bool_]:
    if not rules.deleted:
        return np.zeros(table.num_rows, bool)
    places, values = _distinct(array_of(table, rules.deleted))
    return np.array([(_plain(value) or "").casefold() not in _NOT_DELETED for value in values], bool)[places]


def _label(value: Any, rules: Rules) -> int | Problem:
    label = canonical_label(value) if not isinstance(value, list | dict) else str(value)
    if label is None:
        return Problem("missing_label", f"column {rules.label!r} is empty")
    index = rules.label_index.get(label)
    if index is None:
        known = ", ".join(rules.label_index)
        return Problem("unknown_label", f"{label[:80]!r} is not one of the labels {known}"[:300])
    return index


def _given(value: Any) -> int | Problem:
    name = _plain(value)
    split = GIVEN_NAMES.get((name or "").casefold())
    if split is None:
        return Problem("bad_split", f"split {name[:80]!r} is not train, validation or test" if name else "no split")
    return SPLITS.index(split)


def _plain(value: Any) -> str | None:
    """A value as text that does not depend on the file format: 7, 7.0 and "7" give "7"; "007" stays."""
    if isinstance(value, str):
        if value.isprintable() and " " not in value:
            return value or None
    elif is_missing(value):
        return None
    elif isinstance(value, float) and value.is_integer():
        value = int(value)
    text = " ".join(str(value).split())
    return text.encode("utf-8", "replace").decode().replace("\0", "") or None


def _slice(value: Any) -> str:
    """A slice value short enough for a database index: long values are cut and end in a hash, so they stay distinct."""
    text = _plain(value) or MISSING
    return text if len(text) <= SLICE_LENGTH else f"{text[: SLICE_LENGTH - 13]}...{fingerprint(text)[:10]}"


def _excerpt(table: pa.Table, columns: Sequence[str], row: int) -> str:
    parts = (_values(table[name].slice(row, 1).combine_chunks())[0] for name in columns)
    text = " ".join(str(part)[:400] for part in parts if not is_missing(part))
    return text.encode("utf-8", "replace").decode().replace("\0", " ")[:200]
