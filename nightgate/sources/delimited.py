"""CSV and TSV as batches of text columns: ids such as 007 survive, empty fields are missing."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from nightgate import config
from nightgate.errors import DataError
from nightgate.sources.source import BATCH_ROWS, RawBatch
from nightgate.sources.source_table import Quarantined, check_columns
from nightgate.sources.text_stream import empty_file, open_text

_LONGEST_FIELD = 2**26


def read_delimited(
    path: Path, compression: str | None, delimiter: str, settings: config.FilesSource, columns: Sequence[str]
) -> Iterator[RawBatch]:
    """The rows of a file; those with too few or too many fields are `rejected`.

    Raises:
        DataError: it is empty or damaged, lacks a column, or has a quoted field that is not closed.
    """
    csv.field_size_limit(_LONGEST_FIELD)
    with open_text(path, compression, settings.encoding, newline="") as text:
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        row_start = 1
        try:
            header = [name.strip() for name in next(filter(None, reader), [])]
            if not any(header):
                raise empty_file(path)
            check_columns(columns, header, str(path))
            places = [header.index(name) for name in columns]
            row_start = reader.line_num + 1
            while True:
                rows: list[list[str]] = []
                numbers: list[int] = []
                rejected: list[Quarantined] = []
                seen = 0
                for row in islice(reader, BATCH_ROWS):
                    seen += 1
                    if len(row) > len(header) and not any(row[len(header) :]):
                        del row[len(header) :]
                    if len(row) == len(header):
                        rows.append(row)
                        numbers.append(row_start)
                    elif row:
                        detail = f"has {len(row)} fields where the header has {len(header)}"
                        origin = f"{path}:{row_start}"
                        rejected.append(Quarantined(origin, None, "bad_row", detail, delimiter.join(row)[:200]))
                    row_start = reader.line_num + 1
                if rows or rejected:
                    fields = list(zip(*rows, strict=True)) or [()] * len(header)
                    table = pa.table({name: _texts(fields[place]) for name, place in zip(columns, places, strict=True)})
                    yield RawBatch(table, str(path), pa.array(numbers, pa.int64()), tuple(rejected))
                if seen < BATCH_ROWS:
                    return
        except csv.Error as error:
            raise DataError(
                f"{path}, line {row_start}: a quoted field is not closed, or text follows its closing quote ({error})",
                next_step='correct that line: a quote inside a quoted field is written twice ("")',
            ) from error


def _texts(fields: Sequence[str]) -> pa.Array:
    texts = pa.array(fields, pa.string())
    return pc.if_else(pc.equal(texts, ""), None, texts) if "" in fields else texts
