"""Frames as JSON, CSV and tables."""

from __future__ import annotations

import csv
import io
import json
from datetime import date

import pandas as pd
import pyarrow.parquet as pq
import pytest

from nightgate.cli.gate import REPLAY_COLUMNS
from nightgate.cli.options import show
from nightgate.cli.read import VERSION_COLUMNS
from nightgate.cli.tables_as_text import Format, as_parquet, formatted
from nightgate.errors import ConfigurationError


@pytest.fixture
def frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "night": [date(2026, 1, 5), date(2026, 1, 6)],
            "f1": [0.123456, float("nan")],
            "version": pd.array([1, None], dtype="Int64"),
            "recorded_at": pd.to_datetime(["2026-01-05T03:15:00.5Z", None], utc=True),
            "reason": ['it says "fine", twice', None],
        }
    )


def test_json_holds_numbers_as_numbers_and_nothing_as_null(frame: pd.DataFrame) -> None:
    first, second = json.loads(formatted(frame, Format.json))
    assert first == {
        "night": "2026-01-05",
        "f1": 0.123456,
        "version": 1,
        "recorded_at": "2026-01-05T03:15:00.500000+00:00",
        "reason": 'it says "fine", twice',
    }
    assert second == {"night": "2026-01-06", "f1": None, "version": None, "recorded_at": None, "reason": None}


def test_json_of_no_rows_is_an_empty_list(frame: pd.DataFrame) -> None:
    assert json.loads(formatted(frame.iloc[:0], Format.json)) == []


def test_csv_holds_all_columns_and_full_precision(frame: pd.DataFrame) -> None:
    rows = list(csv.DictReader(io.StringIO(formatted(frame, Format.csv, columns=("night",)))))
    assert list(rows[0]) == list(frame.columns)
    assert rows[0]["f1"] == "0.123456"
    assert rows[0]["recorded_at"] == "2026-01-05T03:15:00.500000Z"
    assert rows[0]["reason"] == 'it says "fine", twice'
    assert rows[1]["version"] == ""


def test_markdown_has_the_columns_of_a_table_at_any_width(frame: pd.DataFrame) -> None:
    frame["reason"] = ["a | b", None]
    assert formatted(frame, Format.markdown, columns=("night", "f1", "reason")).splitlines() == [
        "| night | f1 | reason |",
        "|:-:|:-:|:-:|",
        r"| 2026-01-05 | 0.1235 | a \| b |",
        "| 2026-01-06 |  |  |",
    ]


def test_parquet_holds_all_columns_with_their_types(frame: pd.DataFrame) -> None:
    frame = frame.assign(value=[1, "one"], alarm=None)
    found = pq.read_table(io.BytesIO(as_parquet(frame)))
    types = ["date32[day]", "double", "int64", "timestamp[us, tz=UTC]", "string", "string", "string"]
    assert [str(field.type).removeprefix("large_") for field in found.schema] == types
    first, second = found.to_pylist()
    assert (first["night"], first["f1"], first["version"]) == (date(2026, 1, 5), 0.123456, 1)
    assert (second["version"], second["reason"], second["value"]) == (None, None, "one")


def test_parquet_is_not_printed_on_a_terminal(frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    with pytest.raises(ConfigurationError, match=r"> FILE\.parquet"):
        show(frame, Format.parquet)


def test_a_table_shows_the_columns_that_were_asked_for_with_four_decimals(frame: pd.DataFrame) -> None:
    assert formatted(frame, Format.table, columns=("night", "f1", "version")).splitlines() == [
        "night       f1      version",
        "2026-01-05  0.1235  1",
        "2026-01-06",
    ]


def test_a_table_of_no_rows_is_no_text(frame: pd.DataFrame) -> None:
    assert formatted(frame.iloc[:0], Format.table) == ""


def test_a_single_row_can_be_listed_field_by_field(frame: pd.DataFrame) -> None:
    assert formatted(frame.iloc[:1], Format.table, vertical=True).splitlines()[:4] == [
        "night        2026-01-05",
        "f1           0.1235",
        "version      1",
        "recorded_at  2026-01-05 03:15",
    ]


def test_brackets_in_a_cell_are_text_and_no_markup() -> None:
    assert formatted(pd.DataFrame({"text": ["[bold]fine[/bold]"]}), Format.table).splitlines()[1] == "[bold]fine[/bold]"


def wide_frame(columns: tuple[str, ...]) -> pd.DataFrame:
    """Two rows with cells as long as real ones."""
    cells = {
        "night": date(2026, 1, 5),
        "run_id": "sample-20260105-c9ec2f",
        "status": "superseded",
        "path": "/var/lib/nightgate/home/models/sample/v0001",
        "reason": "F1 0.5571 is below 0.5575 of the champion (version 1) on the same 365 test rows (-0.0004)",
        "flips": False,
        "version": 12,
    }
    cells |= dict.fromkeys(("verdict", "replayed", "chain_verdict"), "promote")
    values = {name: cells.get(name, "0.1234") for name in columns}
    return pd.DataFrame([values, values])


@pytest.mark.parametrize("columns", [VERSION_COLUMNS, REPLAY_COLUMNS], ids=["versions", "replay"])
@pytest.mark.parametrize("width", [80, 120, 300])
def test_a_table_fits_the_terminal_without_breaking_a_cell(
    monkeypatch: pytest.MonkeyPatch, columns: tuple[str, ...], width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    frame = wide_frame(columns)
    head, *lines = formatted(frame, Format.table, columns=columns).splitlines()
    shown = head.split()
    assert {"night", "run_id"} <= set(shown)
    assert all(len(line) <= width for line in (head, *lines))
    words = {word for value in frame.iloc[0] for word in str(value).split()}
    assert {word for line in lines for word in line.split()} <= words
    assert set(shown) == set(columns) or width < 300


def test_prose_wraps_at_blanks_in_a_pipe_too(frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    frame["reason"] = "long " * 100
    lines = formatted(frame, Format.table).splitlines()
    assert all(len(line) <= 120 for line in lines)
    assert sum(line.count("long") for line in lines) == 200
