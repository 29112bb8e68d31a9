"""CSV and TSV as batches of text columns: ids such as 007 survive, empty fields are missing.

A file that was written without quoting is recognised: there a quote is a letter, and every line is a row.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from nightgate.config.values import canonical_label
from nightgate.errors import DataError
from nightgate.sources.source import BATCH_ROWS, RawBatch
from nightgate.sources.source_table import Quarantined, check_columns
from nightgate.sources.text_stream import File, empty_file, open_text

_LONGEST_FIELD = 2**26
_UNQUOTED = 'if its fields were written without quoting, say so in data.source: quoting = "none"'


@dataclass(frozen=True)
class DelimitedFile:
    file: File
    delimiter: str
    encoding: str
    label: str
    """Column of the label."""
    labels: frozenset[str]
    """Its canonical values."""

    def read(self, columns: Sequence[str], required: Sequence[str], quoting: str) -> Iterator[RawBatch]:
        """The rows, with those of `columns` that it has; rows with too few or too many fields are `rejected`.

        Args:
            quoting: "standard", "none", or "auto" to recognise it.

        Raises:
            DataError: the file is empty or damaged, lacks a required column, has a quoted field that is not closed or
                that swallows whole rows.
        """
        found = self.recognised() if quoting == "auto" else quoting
        place, start = self.file.name, 1
        with self._rows(found) as reader:
            try:
                header = self._header(reader)
                present = [name for name in columns if name in header]
                check_columns([*required, *present], header, place)
                places, width = [header.index(name) for name in present], len(header)
                start = reader.line_num + 1
                while True:
                    rows: list[list[str]] = []
                    numbers: list[int] = []
                    rejected: list[Quarantined] = []
                    seen = 0
                    for row in islice(reader, BATCH_ROWS):
                        seen += 1
                        if len(row) > width and not any(row[width:]):
                            del row[width:]
                        if quoting == "auto" and reader.line_num > start and self._swallows(row, header):
                            raise self._swallowed(start, reader.line_num)
                        if len(row) == width:
                            rows.append(row)
                            numbers.append(start)
                        elif row:
                            detail = f"has {len(row)} fields where the header has {width}"
                            excerpt = self.delimiter.join(row)[:200]
                            rejected.append(Quarantined(f"{place}:{start}", None, "bad_row", detail, excerpt))
                        start = reader.line_num + 1
                    if rows or rejected:
                        fields = list(zip(*rows, strict=True)) or [()] * width
                        table = pa.table(dict(zip(present, (_texts(fields[at]) for at in places), strict=True)))
                        yield RawBatch(table, place, pa.array(numbers, pa.int64()), tuple(rejected))
                    if seen < BATCH_ROWS:
                        return
            except csv.Error as error:
                if reader.line_num == 1:
                    check_columns(required, [self._first_line()], place)
                raise DataError(
                    f"{place}, line {start}: a quoted field is not closed, or text follows its closing quote ({error})",
                    next_step=f'correct that line: a quote inside a quoted field is written twice (""); {_UNQUOTED}',
                ) from error

    def columns(self) -> list[str]:
        """The names in the header.

        Raises:
            DataError: the file is empty or damaged.
        """
        with self._rows("standard") as reader:
            return self._header(reader)

    def recognised(self) -> str:
        """How the fields are quoted.

        "none" if reading with quoting fails, or gives fewer rows, where without it each line is a row.
        """
        with open_text(self.file, self.encoding, newline="") as text:
            if not any('"' in piece for piece in iter(lambda: text.read(2**18), "")):
                return "standard"
        width = 1
        with self._rows("standard") as reader:
            try:
                header = self._header(reader)
                width = len(header)
                for row in reader:
                    whole = len(row) == width
                    lines_are_rows = self._lines_are_rows(row, width)
                    if whole and not lines_are_rows:
                        return "standard"  # a field holds a delimiter or a line break, which only quoting can
                    if (row and not whole and lines_are_rows) or self._swallows(row, header):
                        break
                else:
                    return "standard"
            except csv.Error:
                pass
        with open_text(self.file, self.encoding, newline="") as text:
            rows = (line for line in text if not line.isspace())
            header_line = next(rows, "")
            if '"' in header_line or not all(self._lines_are_rows([line.rstrip("\r\n")], width) for line in rows):
                return "standard"
        return "none"

    @contextmanager
    def _rows(self, quoting: str) -> Iterator[Any]:
        csv.field_size_limit(_LONGEST_FIELD)
        rule: Literal[0, 3] = csv.QUOTE_NONE if quoting == "none" else csv.QUOTE_MINIMAL
        with open_text(self.file, self.encoding, newline="") as text:
            yield csv.reader(text, delimiter=self.delimiter, quoting=rule, strict=True)

    def _first_line(self) -> str:
        with open_text(self.file, self.encoding, newline="") as text:
            return text.readline().strip()

    def _header(self, reader: Iterable[list[str]]) -> list[str]:
        header = [name.strip() for name in next(filter(None, reader), [])]
        if not any(header):
            raise empty_file(self.file)
        return header

    def _lines_are_rows(self, row: Sequence[str], width: int) -> bool:
        """Whether each line of a row has `width` fields when it is read without quoting."""
        return all(line.count(self.delimiter) == width - 1 for line in self._lines(row))

    def _lines(self, row: Sequence[str]) -> list[str]:
        return self.delimiter.join(row).split("\n")

    def _swallows(self, row: Sequence[str], header: Sequence[str]) -> bool:
        """Whether the lines of a row are rows themselves, most of them with one of the labels."""
        lines = self._lines(row)
        if len(lines) < 2 or self.label not in header or not self._lines_are_rows(row, len(header)):
            return False
        at = header.index(self.label)
        return 2 * sum(canonical_label(line.split(self.delimiter)[at]) in self.labels for line in lines) > len(lines)

    def _swallowed(self, first: int, last: int) -> DataError:
        return DataError(
            f"{self.file.name}, line {first}: a quoted field that begins here ends in line {last}, and swallows rows",
            next_step=f'close it, or write a quote inside a quoted field twice (""); {_UNQUOTED}; '
            'if it is one text, quoting = "standard"',
        )


def _texts(fields: Sequence[str]) -> pa.Array:
    texts = pa.array(fields, pa.string())
    return pc.if_else(pc.equal(texts, ""), None, texts) if "" in fields else texts
