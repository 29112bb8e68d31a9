"""JSON lines as batches: one object a line, whose values keep their types where a column has one type."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from nightgate import config
from nightgate.errors import DataError
from nightgate.sources.source import BATCH_ROWS, RawBatch
from nightgate.sources.source_table import check_columns
from nightgate.sources.text_stream import empty_file, open_text


def read_json_lines(
    path: Path, compression: str | None, settings: config.FilesSource, columns: Sequence[str]
) -> Iterator[RawBatch]:
    """The rows of a file.

    Raises:
        DataError: it is empty or damaged, a line is not an object, or a column is in no line.
    """
    found: dict[str, None] = {}
    # Lines end in \n alone: JSON may hold U+2028 and similar characters unescaped.
    with open_text(path, compression, settings.encoding, newline="\n") as text:
        lines = enumerate(text, 1)
        while True:
            rows: list[dict[str, Any]] = []
            numbers: list[int] = []
            seen = 0
            for number, line in islice(lines, BATCH_ROWS):
                seen += 1
                if line.isspace():
                    continue
                row = _object(line, number, path)
                found.update(dict.fromkeys(row))
                rows.append(row)
                numbers.append(number)
            if rows:
                table = pa.table({name: as_array([row.get(name) for row in rows]) for name in columns})
                yield RawBatch(table, str(path), pa.array(numbers, pa.int64()))
            if seen < BATCH_ROWS:
                break
    if not found:
        raise empty_file(path)
    check_columns(columns, list(found), str(path))


def _object(line: str, number: int, path: Path) -> dict[str, Any]:
    if number == 1 and line.lstrip()[:1] == "[":
        raise DataError(
            f"{path} holds a JSON array instead of one object a line (JSON lines)",
            next_step=f"convert it, for example: jq -c '.[]' {path} > {path.with_suffix('.jsonl')}",
        )
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}, line {number}: not JSON ({error}); it begins with {line[:60]!r}",
            next_step="correct or remove that line; an incomplete last line means that the file is truncated",
        ) from error
    if not isinstance(row, dict):
        raise DataError(
            f"{path}, line {number}: holds {line.strip()[:60]!r}, which is not an object",
            next_step='write one object a line, such as {"text": "...", "label": 5}',
        )
    return row


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
