"""What a column of unknown data looks like: its values counted and measured, its times recognised."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cached_property
from itertools import product
from typing import Any

from nightgate.config.values import canonical_label
from nightgate.sources.source_table import is_missing
from nightgate.sources.time_formats import read_moment

SAMPLE = 200
"""Values by which times are recognised."""
_DAYS = ("%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y", "%Y/%m/%d", "%d.%m.%y", "%d/%m/%y", "%m/%d/%y")
_WORDS = ("%d %b %Y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y", "%m %d, %Y")
TIME_FORMATS = (
    "",
    *("".join(parts) for parts in product((*_DAYS, *_WORDS), ("", " %H:%M", " %H:%M:%S", ", %H:%M", " %I:%M %p"))),
    "%a %b %d %H:%M:%S %Y",
    "%a, %d %b %Y %H:%M:%S %z",
)
"""ISO 8601, and formats of strptime; where day and month look the same, the day comes first."""
_FIRST_YEAR = 1990


@dataclass(frozen=True)
class Column:
    """A column of the rows that are looked at."""

    name: str
    values: Sequence[Any]
    """None, NaN or blank where there is none."""

    @cached_property
    def given(self) -> list[Any]:
        return [value for value in self.values if not is_missing(value)]

    @cached_property
    def counts(self) -> Counter[str]:
        """Rows by value as text."""
        return Counter(map(str, self.given))

    @property
    def missing(self) -> float:
        """The share of rows without a value."""
        return 1 - len(self.given) / len(self.values)

    @property
    def distinct(self) -> float:
        """Distinct values as a share of those that there are."""
        return len(self.counts) / max(len(self.given), 1)

    @property
    def is_constant(self) -> bool:
        return len(self.counts) <= 1

    @cached_property
    def words(self) -> frozenset[str]:
        """The words of its name: of `reviewText` review and text."""
        return frozenset(word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+", self.name))

    @cached_property
    def is_of_text(self) -> bool:
        return all(isinstance(value, str) for value in self.given) and bool(self.given)

    @property
    def length(self) -> float:
        """Characters on average."""
        return sum(map(len, map(str, self.given))) / max(len(self.given), 1)

    @cached_property
    def is_prose(self) -> bool:
        """Texts of several words, or of a script without spaces, most of them different."""
        sample = self.given[:SAMPLE]
        spoken = sum(" " in value or not value.isascii() for value in map(str, sample))
        return self.is_of_text and not self._is_few and spoken >= len(sample) / 2

    @property
    def _is_few(self) -> bool:
        return len(self.counts) <= max(2, 0.05 * len(self.given))

    @property
    def labels(self) -> Counter[str]:
        """Rows by label, as a pipeline file names labels."""
        return Counter(name for name in map(canonical_label, self.given) if name is not None)

    @property
    def may_be_label(self) -> bool:
        """Whether it holds values that come again, and no fractions or objects."""
        plain = all(isinstance(value, str | int | float) for value in self.given)
        return plain and not self.is_constant and self.distinct <= 0.5

    @cached_property
    def time_formats(self) -> tuple[str, ...]:
        """The formats in which all of its values are times, as `data.time_format`; the likeliest first."""
        step = max(len(self.given) // SAMPLE, 1)
        sample = self.given[::step]
        if self.is_constant or any(isinstance(value, bool | list | dict) for value in sample):
            return ()
        if all(isinstance(value, date) for value in sample):
            return ("",)
        if all(re.fullmatch(r"[0-9]+(\.[0-9]*)?", str(value)) for value in sample):
            formats: tuple[str, ...] = ("epoch_s", "epoch_ms")
        else:
            formats = TIME_FORMATS
        return tuple(name for name in formats if all(_is_time(value, name) for value in sample))

    def names_a_zone(self, time_format: str) -> bool:
        return read_moment(self.given[0], time_format).tzinfo is not None


def _is_time(value: Any, time_format: str) -> bool:
    try:
        year = read_moment(value, time_format).year
    except (ValueError, OverflowError):
        return False
    return _FIRST_YEAR <= year <= datetime.now(UTC).year + 1
