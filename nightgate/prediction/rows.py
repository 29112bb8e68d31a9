"""Rows to predict, in windows of one size: from a source, from lines of text, or given.

Every row of the source has its place here, in the source's order. One without a text, or that cannot be used, has a
reason instead of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from nightgate.config.data import Data
from nightgate.data.batches import array_of, hash_of_forgotten, plain_values, read_texts
from nightgate.errors import DataError
from nightgate.schedule import Night
from nightgate.sources.found_files import COMPRESSIONS
from nightgate.sources.kinds import open_source
from nightgate.sources.source import RawBatch, origin_without_id
from nightgate.sources.source_table import COLUMNS_OF_DATA
from nightgate.sources.text_stream import File, open_text
from nightgate.text_rules import fingerprint, normalise_text

WINDOW_ROWS = 4096
"""Texts of a window are sorted by length and predicted by one version; a killed run repeats at most one window."""
NO_TEXT, FORGOTTEN = "empty_text", "forgotten"
"""Reasons of rows without a prediction; the others are those of quarantined rows."""
SCHEMA = pa.schema([(name, pa.string()) for name in ("origin", "id", "text", "reason")])
"""Of windows. id: the source's, else the fingerprint of the text. text: normalised; null with a reason."""

PRECISION = "precision"
"""The column that says in which precision a row was predicted; null without a prediction."""
KEYS = ("origin", "id", "reason")
"""The columns by which a row is found again: `keys_of`."""

Row = tuple[str, str | None, str | None, str | None]


def rows_of_source(data: Data, night: Night, forgotten: frozenset[str] = frozenset()) -> Iterator[pa.Table]:
    """All rows of the source of `data`, of which only ids and texts are read.

    Args:
        forgotten: hashes of the ids whose texts are not read.

    Raises:
        DataError: it cannot be read, or lacks a column.
    """
    columns = [*([data.id] if data.id else []), *data.text_columns]
    with _errors_of_predict():
        source = open_source(data, night, columns=list(dict.fromkeys(columns)))
        for part in source.plan(None).read:
            for batch in source.read(part):
                yield _table(_usable(batch, data, forgotten))


@contextmanager
def _errors_of_predict() -> Iterator[None]:
    """Let the next steps of errors of reading name `[predict]` and its option."""
    try:
        yield
    except DataError as error:
        step = error.next_step.replace("data.source.paths", "--input, or predict.source.paths")
        step = step.replace("data.source:", "predict.source:")
        error.next_step = step.replace(COLUMNS_OF_DATA, "name the columns in [predict] (id, text) as the source does")
        raise


def rows_of_lines(lines: Iterable[str], place: str) -> Iterator[pa.Table]:
    """A row for each line, blank ones too."""
    rows: list[Row] = []
    for number, line in enumerate(lines, 1):
        text = normalise_text(line)
        rows.append(_row(f"{place}:{number}", None, text, "" if text else NO_TEXT))
        if len(rows) == WINDOW_ROWS:
            yield _table(rows)
            rows = []
    yield _table(rows)


def rows_of_text_file(path: Path) -> Iterator[pa.Table]:
    """A row for each line of a text file in UTF-8, plain or compressed.

    Raises:
        DataError: it cannot be read.
    """
    with open_text(File(path, str(path), COMPRESSIONS.get(path.suffix.lower())), "utf-8", newline="\n") as lines:
        yield from rows_of_lines(lines, str(path))


def windows(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of `WINDOW_ROWS`, and the rest."""
    waiting = SCHEMA.empty_table()
    for table in tables:
        waiting = pa.concat_tables([waiting, table])
        while waiting.num_rows >= WINDOW_ROWS:
            yield waiting.slice(0, WINDOW_ROWS).combine_chunks()
            waiting = waiting.slice(WINDOW_ROWS)
    if waiting.num_rows:
        yield waiting.combine_chunks()


def keys_of(rows: Iterable[Sequence[str | None]]) -> list[str]:
    """By what rows of `KEYS` are found again: their id, or their origin where there is none.

    Those with a reason, which have no prediction, have keys of their own: one that gets a text later is a new row.
    """
    return [(row_id or origin or "") + ("\n" if reason else "") for origin, row_id, reason in rows]


def _usable(batch: RawBatch, data: Data, forgotten: frozenset[str]) -> list[Row]:
    """The rows of a batch, those that could not be divided into columns in their places."""
    texts, _, problems = read_texts([array_of(batch.table, name) for name in data.text_columns])
    ids = plain_values(array_of(batch.table, data.id)).to_pylist() if data.id else [None] * len(texts)
    rows = []
    for place, (number, row_id, text) in enumerate(zip(batch.numbers.to_pylist(), ids, texts, strict=True)):
        reason = problems[place].reason if place in problems else ""
        rows.append(_row(f"{batch.place}:{number}", row_id, text, reason))
    rows += [_row(row.origin, row.row_id, "", row.reason) for row in batch.rejected]
    if batch.rejected:
        rows.sort(key=lambda row: int(row[0].rpartition(":")[2]))
    return [_left_out(row) if row[1] and hash_of_forgotten(row[1]) in forgotten else row for row in rows]


def _row(origin: str, row_id: str | None, text: str, reason: str) -> Row:
    return origin, row_id or (fingerprint(text) if text else None), text or None, reason or None


def _left_out(row: Row) -> Row:
    return origin_without_id(row[0], row[1]), None, None, FORGOTTEN


def _table(rows: Sequence[Row]) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [()] * len(SCHEMA)
    return pa.table([pa.array(column, pa.string()) for column in columns], schema=SCHEMA)


def decoded(lines: Iterable[bytes]) -> Iterator[str]:
    """Lines of standard input as text.

    Raises:
        DataError: they are not UTF-8.
    """
    try:
        for line in lines:
            yield line.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise DataError(
            f"standard input is not UTF-8 text: {error}",
            next_step="convert it, for example with `iconv -f cp1252 -t utf-8`",
        ) from error
