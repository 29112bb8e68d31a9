"""Frames as text: a table for eyes, JSON and CSV for programs. What the commands that read print to stdout."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from datetime import date
from enum import StrEnum
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


class Format(StrEnum):
    table = "table"
    json = "json"
    csv = "csv"


_MARK = "┄┄┄"
"""Where a line of its own goes; no cell of ours begins so, and the narrowest column has room for it."""


def formatted(
    frame: pd.DataFrame,
    output: Format,
    *,
    columns: Sequence[str] = (),
    vertical: bool = False,
    before: str = "",
) -> str:
    """The frame as text without a last line break; '' for a table without rows.

    Args:
        columns: what a table shows; JSON and CSV hold all columns.
        vertical: a table lists the fields of each row below each other.
        before: a column whose text, where a row has one, is a line of its own above that row of a table.
    """
    if output is Format.json:
        return json.dumps(_plain(frame), indent=2, ensure_ascii=False)
    if output is Format.csv:
        return frame.to_csv(index=False, date_format="%Y-%m-%dT%H:%M:%S.%fZ").rstrip("\n")
    if frame.empty:
        return ""
    if vertical:
        width = max(len(str(column)) for column in frame.columns)
        rows = frame.to_dict("records")
        return "\n".join(f"{name!s:<{width}}  {_cell(value)}".rstrip() for row in rows for name, value in row.items())
    lines = [] if not before else [None if value is None else str(value) for value in frame[before]]
    return _table(frame[list(columns)] if columns else frame, lines)


def _plain(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as JSON may hold them: no NaN, times and dates as ISO text."""
    import pandas as pd

    def plain(value: Any) -> Any:
        if pd.isna(value):
            return None
        if isinstance(value, date):
            return value.isoformat()
        return value.item() if hasattr(value, "item") else value

    return [{str(key): plain(value) for key, value in row.items()} for row in frame.to_dict("records")]


def _table(frame: pd.DataFrame, before: Sequence[str | None] = ()) -> str:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_edge=False, pad_edge=False, box=None)
    for column in frame.columns:
        table.add_column(str(column), overflow="fold")
    for values, line in zip_longest(frame.itertuples(index=False), before):
        if line is not None:
            table.add_row(_MARK)
        table.add_row(*(_cell(value) for value in values))
    buffer = io.StringIO()
    # In a file or pipe a table is as wide as it needs to be: lines are for tools there.
    width = None if sys.stdout.isatty() else 100_000
    Console(file=buffer, width=width, markup=False, highlight=False).print(table)
    waiting = (f"{_MARK} {line}" for line in before if line is not None)
    lines = (line.rstrip() for line in buffer.getvalue().splitlines())
    return "\n".join(next(waiting) if line == _MARK else line for line in lines)


def _cell(value: Any) -> str:
    import pandas as pd

    if pd.isna(value):
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if 0 < abs(value) < 1e-3 else f"{value:.4f}"
    if isinstance(value, pd.Timestamp):
        return f"{value:%Y-%m-%d %H:%M}"
    return str(value)
