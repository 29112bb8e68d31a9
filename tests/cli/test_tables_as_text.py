"""Frames as text: what programs parse and what people read."""

from __future__ import annotations

import csv
import io
import json
from datetime import date

import pandas as pd
import pytest

from nightgate.cli.tables_as_text import Format, formatted


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


def test_a_long_reason_stays_on_its_line(frame: pd.DataFrame) -> None:
    frame["reason"] = "long " * 2000
    assert len(formatted(frame, Format.table).splitlines()) == 3
