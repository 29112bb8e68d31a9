"""Format data frames for stdout: a table for people, Markdown for pages, JSON, CSV and Parquet for programs."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from datetime import date
from enum import StrEnum
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len

from nightgate.plain_text import as_json, printable

if TYPE_CHECKING:
    import pandas as pd


class Format(StrEnum):
    table = "table"
    json = "json"
    csv = "csv"
    markdown = "markdown"
    parquet = "parquet"


_MARK = "┄┄┄"
"""Placeholder of a line between rows; no cell begins like this, and the narrowest column has room for it."""
GAP = 2
PROSE = 40
"""A column with a longer cell of several words is wrapped at blanks; all others keep their width."""
NARROWEST = 16
"""To which prose is wrapped where columns cannot be left out."""


def formatted(
    frame: pd.DataFrame,
    output: Format,
    *,
    columns: Sequence[str] = (),
    vertical: bool = False,
    before: str = "",
    indent: str = "",
) -> str:
    """The frame as text without a final line break; '' for a table without rows.

    Args:
        columns: what a table shows, by importance: as many as fit, prose last. Markdown has these, JSON and CSV all.
        vertical: list the fields of each row of a table below each other.
        before: name of a column whose text, if any, is a line of its own above that row of a table.
        indent: what precedes each line of a table.
    """
    if output is Format.json:
        return as_json(_plain(frame))
    if output is Format.csv:
        return frame.to_csv(index=False, date_format="%Y-%m-%dT%H:%M:%S.%fZ").rstrip("\n")
    if frame.empty:
        return ""
    if output is Format.markdown:
        from nightgate.frames.epochs import markdown_table

        shown = frame[list(columns or frame.columns)]
        found = shown.itertuples(index=False)
        return markdown_table(
            list(map(str, shown.columns)), [[_cell(value).replace("|", "\\|") for value in row] for row in found]
        )
    if vertical:
        width = max(len(str(column)) for column in frame.columns)
        rows = frame.to_dict("records")
        return "\n".join(f"{name!s:<{width}}  {_cell(value)}".rstrip() for row in rows for name, value in row.items())
    lines = [_cell(value) or None for value in frame[before]] if before else []
    cells = {str(name): [_cell(value) for value in frame[name]] for name in columns or frame.columns}
    # The terminal's width; COLUMNS, or 120, in a file or a pipe.
    width = shutil.get_terminal_size((120, 24)).columns - len(indent)
    table = _table(_fitting(cells, width) if columns else cells, lines, width)
    return "\n".join(f"{indent}{line}" for line in table)


def as_parquet(frame: pd.DataFrame) -> bytes:
    """The frame with its types; text where a column mixes numbers and words."""
    from pandas.api.types import infer_dtype

    kinds = {name: infer_dtype(frame[name], skipna=True) for name in frame.columns}
    mixed = {name: frame[name].map(str, na_action="ignore") for name, kind in kinds.items() if kind.startswith("mixed")}
    empty = {name: frame[name].astype("string") for name, kind in kinds.items() if kind == "empty"}
    buffer = io.BytesIO()
    frame.assign(**mixed, **empty).to_parquet(buffer, index=False)
    return buffer.getvalue()


def _plain(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows with JSON's types: null for NaN, times and dates in ISO format."""
    import pandas as pd

    def plain(value: Any) -> Any:
        if pd.isna(value):
            return None
        if isinstance(value, date):
            return value.isoformat()
        return value.item() if hasattr(value, "item") else value

    return [{str(key): plain(value) for key, value in row.items()} for row in frame.to_dict("records")]


def _fitting(cells: dict[str, list[str]], width: int) -> dict[str, list[str]]:
    """The columns that fit into `width` without breaking a word, prose last; the first one in any case."""
    fitting: list[str] = []
    for name, column in cells.items():
        longest_word = max(cell_len(word) for cell in (name, *column) for word in cell.split())
        needed = max(PROSE, longest_word) if _is_prose(column) else _natural_width(name, column)
        if needed <= width or not fitting:
            fitting.append(name)
            width -= needed + GAP
    return {name: cells[name] for name in sorted(fitting, key=lambda name: _is_prose(cells[name]))}


def _is_prose(column: Sequence[str]) -> bool:
    return any(len(cell) > PROSE and " " in cell for cell in column)


def _natural_width(name: str, column: Sequence[str]) -> int:
    return max(map(cell_len, (name, *column)))


def _widths(cells: dict[str, list[str]], width: int) -> dict[str, int]:
    """Widths of the columns: prose shares what the others leave of `width`, down to NARROWEST."""
    widths = {name: _natural_width(name, column) for name, column in cells.items()}
    prose = sorted((name for name, column in cells.items() if _is_prose(column)), key=widths.__getitem__)
    spare = width - GAP * (len(cells) - 1) - sum(widths[name] for name in cells if name not in prose)
    for position, name in enumerate(prose):
        widths[name] = max(NARROWEST, min(widths[name], spare // (len(prose) - position)))
        spare -= widths[name]
    return widths


def _table(cells: dict[str, list[str]], before: Sequence[str | None], width: int) -> list[str]:
    from rich.console import Console
    from rich.table import Table

    widths = _widths(cells, width)
    table = Table(show_edge=False, pad_edge=False, box=None)
    for name in cells:
        table.add_column(name, width=widths[name], overflow="fold")
    for values, line in zip_longest(zip(*cells.values(), strict=True), before):
        if line is not None:
            table.add_row(_MARK)
        table.add_row(*values)
    buffer = io.StringIO()
    total = sum(widths.values()) + GAP * (len(widths) - 1)
    Console(file=buffer, width=total, markup=False, highlight=False).print(table)
    waiting = (f"{_MARK} {line}" for line in before if line is not None)
    lines = (line.rstrip() for line in buffer.getvalue().splitlines())
    return [next(waiting) if line == _MARK else line for line in lines]


def _cell(value: Any) -> str:
    import pandas as pd

    if pd.isna(value):
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if 0 < abs(value) < 1e-3 else f"{value:.4f}"
    if isinstance(value, pd.Timestamp):
        return f"{value:%Y-%m-%d %H:%M}"
    return printable(str(value))
