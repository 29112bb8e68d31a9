"""JSON lines as batches: one object a line, whose values keep their types where a column has one type."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa

from nightgate.config.data import Data
from nightgate.errors import DataError
from nightgate.sources.source import BATCH_ROWS, RawBatch
from nightgate.sources.source_table import Quarantined, check_columns
from nightgate.sources.text_stream import File, empty_file, open_text


def read_json_lines(
    file: File, encoding: str, columns: Sequence[str], required: Sequence[str], data: Data
) -> Iterator[RawBatch]:
    """The rows of a file, with those of `columns` that it has; a list or an object in place of a text is `rejected`.

    Raises:
        DataError: it is empty or damaged, a line is not an object, or a required column is in no line.
    """
    found: dict[str, None] = {}
    # Lines end in \n alone: JSON may hold U+2028 and similar characters unescaped.
    with open_text(file, encoding, newline="\n") as text:
        lines = enumerate(text, 1)
        while True:
            rows: list[dict[str, Any]] = []
            numbers: list[int] = []
            rejected: list[Quarantined] = []
            seen = 0
            for number, line in islice(lines, BATCH_ROWS):
                seen += 1
                if line.isspace():
                    continue
                row = _object(line, number, file)
                if not row.keys() <= found.keys():
                    found.update(dict.fromkeys(row))
                odd = next((row[name] for name in data.text_columns if isinstance(row.get(name), list | dict)), None)
                if odd is not None:
                    detail, excerpt = f"holds a {type(odd).__name__}, not text", line.strip()[:200]
                    row_id = _as_text(row.get(data.id)) if data.id else None
                    rejected.append(Quarantined(f"{file.name}:{number}", row_id, "bad_text", detail, excerpt))
                    continue
                rows.append(row)
                numbers.append(number)
            if rows or rejected:
                present = [name for name in columns if name in found]
                table = pa.table({name: as_array([row.get(name) for row in rows]) for name in present})
                yield RawBatch(table, file.name, pa.array(numbers, pa.int64()), tuple(rejected))
            if seen < BATCH_ROWS:
                break
    if not found:
        raise empty_file(file)
    check_columns(required, list(found), file.name)


def _object(line: str, number: int, file: File) -> dict[str, Any]:
    if number == 1 and line.lstrip()[:1] == "[":
        raise DataError(
            f"{file.name} holds a JSON array instead of one object a line (JSON lines)",
            next_step=f"convert it, for example: jq -c '.[]' {file.name} > rows.jsonl",
        )
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        if line.strip() == "{" or (number == 1 and _goes_on(error, line)):
            raise DataError(
                f"{file.name}, line {number}: one object stands on several lines, not on one (JSON lines)",
                next_step=f"convert it, for example: jq -c . {file.name} > rows.jsonl",
            ) from error
        raise DataError(
            f"{file.name}, line {number}: not JSON ({error}); it begins with {line[:60]!r}",
            next_step="correct or remove that line; an incomplete last line means that the file is truncated",
        ) from error
    if not isinstance(row, dict):
        raise DataError(
            f"{file.name}, line {number}: holds {line.strip()[:60]!r}, which is not an object",
            next_step='write one object a line, such as {"text": "...", "label": 5}',
        )
    return row


def _goes_on(error: Exception, line: str) -> bool:
    """Whether an object is not closed at the end of its line, behind a comma or a bracket."""
    at_end = isinstance(error, json.JSONDecodeError) and error.pos >= len(line.rstrip())
    return at_end and line.rstrip().endswith((",", "{", "[", ":"))


def as_array(values: Sequence[Any]) -> pa.Array:
    """The values in their own type; as text where they have several, or no type of Arrow."""
    try:
        return pa.array(values)
    except (pa.ArrowException, TypeError, UnicodeEncodeError, OverflowError):
        return pa.array([_as_text(value) for value in values], pa.string())


def _as_text(value: Any) -> str | None:
    """7 and 7.0 give "7"; half of a surrogate pair, which JSON can hold, becomes U+FFFD."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
