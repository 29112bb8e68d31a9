"""Rules for the values of single columns (`[data.checks.columns]`), checked by pandera a batch at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from nightgate.config.checks import ColumnRules
from nightgate.config.values import canonical_label


@dataclass(frozen=True)
class Broken:
    """What a batch of rows says against the rules of its columns."""

    rows: Mapping[int, str] = field(default_factory=dict)
    """Why the row at a position is quarantined as `bad_value`."""
    missing: Mapping[str, int] = field(default_factory=dict)
    """Rows without a value, by column."""


def check_columns(columns: Mapping[str, Sequence[Any]], rules: Mapping[str, ColumnRules]) -> Broken:
    """Check the columns that have rules; a missing value breaks none but counts."""
    broken: dict[int, str] = {}
    missing: dict[str, int] = {}
    for name, column in rules.items():
        values = pd.Series(map(canonical_label, columns[name]), dtype=object)
        given = values.dropna()
        missing[name] = len(values) - len(given)
        for row in _failing(given, column):
            broken.setdefault(row, f"column {name!r} holds {given[row][:80]!r}; it must be {_wanted(column)}")
    return Broken(broken, missing)


def _failing(texts: pd.Series[Any], rules: ColumnRules) -> list[int]:
    """Labels of the values, none of them missing, that break a rule."""
    # Imported here because most pipelines have no such rules.
    import pandera.pandas as pa

    of_text, of_number = [], []
    if rules.allowed is not None:
        of_text.append(pa.Check.isin(rules.allowed))
    if rules.min_length is not None or rules.max_length is not None:
        of_text.append(pa.Check.str_length(rules.min_length, rules.max_length))
    if rules.min is not None:
        of_number.append(pa.Check.ge(rules.min))
    if rules.max is not None:
        of_number.append(pa.Check.le(rules.max))
    if rules.type == "integer":
        of_number.append(pa.Check(lambda numbers: numbers % 1 == 0))
    columns = {"text": pa.Column(None, of_text)}
    if of_number or rules.type == "number":
        # What is no number is missing after the conversion.
        columns["number"] = pa.Column(None, of_number, nullable=False)
    frame = pd.DataFrame({"text": texts, "number": pd.to_numeric(texts, errors="coerce")})
    try:
        pa.DataFrameSchema(columns).validate(frame, lazy=True)
    except pa.errors.SchemaErrors as error:
        return sorted({int(row) for row in error.failure_cases["index"]})
    return []


def _wanted(rules: ColumnRules) -> str:
    wanted = [{"text": "", None: "", "number": "a number", "integer": "an integer"}[rules.type]]
    wanted += [f"at least {rules.min:g}" if rules.min is not None else ""]
    wanted += [f"at most {rules.max:g}" if rules.max is not None else ""]
    wanted += [f"of {rules.min_length} characters or more" if rules.min_length is not None else ""]
    wanted += [f"of {rules.max_length} characters or fewer" if rules.max_length is not None else ""]
    wanted += [f"one of {', '.join(rules.allowed[:10])}" if rules.allowed is not None else ""]
    return ", ".join(word for word in wanted if word)
