"""The test window: rows by age, widening, clean rows, exact instants."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from nightgate.gate.test_window import test_window as window_of
from tests.support.gate_night import DAY, TONIGHT, UNTIL

AGES = np.array([0, 1, 1, 2, 3, 3, 3, 9])
"""Days before tonight."""


def found(length: str, min_rows: int, clean: list[bool] | None = None) -> tuple[list[int], object]:
    """Ages in days of the rows in the window, and of its start."""
    window, start = window_of(UNTIL - AGES * DAY, TONIGHT, length, min_rows, np.array(clean or [True] * 8))
    return AGES[window].tolist(), None if start is None else (TONIGHT - start).days


@pytest.mark.parametrize(
    ("length", "min_rows", "ages", "start"),
    [
        ("2d", 1, [0, 1, 1, 2], 2),
        ("47h", 1, [0, 1, 1], 1),
        ("2d", 4, [0, 1, 1, 2], 2),
        ("1w", 1, [0, 1, 1, 2, 3, 3, 3], 3),
        ("9d", 1, [0, 1, 1, 2, 3, 3, 3, 9], None),
        ("", 1, [0, 1, 1, 2, 3, 3, 3, 9], None),
        # Too few rows are widened backwards by whole instants.
        ("1h", 2, [0, 1, 1], 1),
        ("1h", 3, [0, 1, 1], 1),
        ("1h", 4, [0, 1, 1, 2], 2),
        ("1h", 5, [0, 1, 1, 2, 3, 3, 3], 3),
        ("1h", 8, [0, 1, 1, 2, 3, 3, 3, 9], None),
        ("1h", 100, [0, 1, 1, 2, 3, 3, 3, 9], None),
    ],
)
def test_rows_no_older_than_the_window_decide(length: str, min_rows: int, ages: list[int], start: int | None) -> None:
    assert found(length, min_rows) == (ages, start)


def test_rows_that_a_side_was_trained_on_neither_decide_nor_count() -> None:
    clean = [False, True, True, False, True, True, True, True]
    assert found("1h", 3, clean) == ([1, 1, 3, 3, 3], 3)
    assert found("", 3, clean) == ([1, 1, 3, 3, 3, 9], None)
    assert found("1h", 3, [False] * 8) == ([], None)


def test_the_start_is_that_of_the_oldest_row_in_it_to_the_microsecond() -> None:
    seen_at = np.array([UNTIL - 5, UNTIL - DAY, UNTIL - DAY - 1])
    window, start = window_of(seen_at, TONIGHT, "1d", 1, np.ones(3, dtype=np.bool_))
    assert window.tolist() == [True, True, False]
    assert start == TONIGHT - timedelta(days=1)
    _, start = window_of(seen_at, TONIGHT - timedelta(microseconds=1), "1d", 1, np.ones(3, dtype=np.bool_))
    assert start is None


def test_times_before_1970_and_in_other_time_zones_are_handled() -> None:
    night = datetime(1969, 12, 31, 12, tzinfo=UTC).astimezone()
    seen_at = np.array([-DAY, -DAY // 2 - 1, -3 * DAY])
    window, start = window_of(seen_at, night, "12h", 1, np.ones(3, dtype=np.bool_))
    assert window.tolist() == [True, True, False]
    assert start == datetime(1969, 12, 31, tzinfo=UTC)


def test_without_rows_there_is_no_window() -> None:
    nothing = np.zeros(0, dtype=np.int64)
    window, start = window_of(nothing, TONIGHT, "1d", 1, np.zeros(0, dtype=np.bool_))
    assert (len(window), start) == (0, None)
