"""`[data.checks]`: what stops a night before training because its data look broken."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from nightgate.config.values import Section
from nightgate.errors import ConfigurationError

CheckName = Literal["rows", "new_rows", "quarantined", "labels", "splits", "repeated_text", "missing"]
"""Names of the checks, as `--allow-failed-check` takes them."""


class ColumnRules(Section):
    """What the values of one column of the source must be; rows with others are quarantined."""

    type: Literal["text", "number", "integer"] | None = None
    """What a value must be, or be the text of: `3`, `3.0` and "3" are integers."""
    min: float | None = None
    """Smallest number."""
    max: float | None = None
    """Largest number."""
    min_length: int | None = Field(default=None, ge=0)
    """Fewest characters."""
    max_length: int | None = Field(default=None, ge=0)
    """Most characters."""
    allowed: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """All values that there are, as text."""
    max_missing: float = Field(default=1.0, ge=0, le=1)
    """Largest share of rows without a value; more fails the check `missing`. Catches a column that a change
    upstream no longer fills."""

    @model_validator(mode="after")
    def _bounds_make_sense(self) -> ColumnRules:
        for low, high in (("min", "max"), ("min_length", "max_length")):
            least, most = getattr(self, low), getattr(self, high)
            if least is not None and most is not None and least > most:
                raise ValueError(f"{low}: {least} is more than {high}, which is {most}")
        if self.type == "text" and (self.min is not None or self.max is not None):
            raise ValueError('type: min and max are for numbers, not for "text"')
        return self


class DataChecks(Section):
    """Data that look broken end the night before training: `failed`, with error type `data_check_failed`, and nothing
    is taken in. Counts too small to tell never fail."""

    max_rows_lost: float = Field(default=0.1, ge=0, le=1)
    """`rows`: largest share of the last snapshot's rows that may be gone. Catches a lost file, a truncated export, a
    query that lost its join. 1: off."""
    min_new_rows: float = Field(default=0.2, ge=0, le=1)
    """`new_rows`: fewest new rows, as a multiple of the median of the last seven nights that had any. Catches a feed
    that dries up. 0: off."""
    max_new_rows: float = Field(default=5.0, ge=1, le=1e9)
    """`new_rows`: most new rows, as the same multiple. Catches a feed that is delivered again, and texts that were all
    rewritten."""
    max_quarantined: float = Field(default=0.05, ge=0, le=1)
    """`quarantined`: largest share of newly read rows that cannot be used. Catches new label names, another date
    format, an emptied text column. 1: off."""
    max_label_shift: float = Field(default=0.25, ge=0, le=1)
    """`labels`: largest total variation distance between the label shares of the new rows and those of the last seven
    nights. Catches labels that moved by one, or are all the same. 1: off."""
    max_split_share: float = Field(default=2.0, ge=1, le=1e9)
    """`splits`: largest share of validation or test rows, as a multiple of its setting. Catches a group that holds most
    rows."""
    max_repeated_text: float = Field(default=0.25, gt=0, le=1)
    """`repeated_text`: largest share of newly read rows with one and the same text. Catches 'No comment.', and an error
    message in place of each text. 1: off."""
    columns: dict[str, ColumnRules] = Field(default={})
    """Rules for the values of single columns, by name."""


@dataclass(frozen=True)
class Allowed:
    """Data checks whose failure does not end this night, and who let them pass."""

    checks: frozenset[str] = frozenset()
    by: str = ""
    reason: str = ""

    @classmethod
    def named(cls, names: Iterable[str], by: str, reason: str = "") -> Allowed:
        """Checks by name.

        Raises:
            ConfigurationError: a name that no check has; the nearest one is suggested.
        """
        known = get_args(CheckName)
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                raise ConfigurationError(
                    f"there is no data check {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
                    next_step=f"name one of {', '.join(known)}",
                )
        return cls(frozenset(names), by, reason)


NONE_ALLOWED = Allowed()
