"""The table that is published with fine-tuned models, and the metrics of `training.metrics`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from nightgate.database.transactions import Database
from nightgate.frames.reader import open_reader

_PUBLISHED = ["training_loss", "epoch", "step", "validation_loss", "accuracy", "f1", "precision", "recall"]


def published_rows(rows: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the epoch table that is published with fine-tuned models: four decimals, `n/a` for no value.

    Args:
        rows: rows of the view `epoch_results`.
    """
    found = rows[_PUBLISHED].itertuples(index=False)
    cells = [[_cell(column, value) for column, value in zip(_PUBLISHED, values, strict=True)] for values in found]
    return [column.replace("_", " ").title() for column in _PUBLISHED], cells


def published_table(rows: pd.DataFrame) -> str:
    """The table of `published_rows` in Markdown."""
    return markdown_table(*published_rows(rows))


def own_metrics(db: Database, run_id: str) -> dict[str, dict[str, float | None]]:
    """Values of `training.metrics`: by epoch ('1') on validation, then by 'test', which has the best epoch alone."""
    query = (
        "SELECT m.epoch, m.split, m.metric, m.value FROM epoch_metrics AS m "
        "JOIN epoch_results AS e ON e.run_id = m.run_id AND e.epoch = m.epoch "
        "WHERE m.run_id = :run AND (m.split = 'test' OR m.attempt = e.attempt) "
        "ORDER BY m.split DESC, m.epoch, m.attempt, m.metric"
    )
    found: dict[str, dict[str, float | None]] = {}
    for epoch, split, metric, value in db.frame(query, {"run": run_id}).itertuples(index=False):
        place = "test" if split == "test" else str(epoch)
        found.setdefault(place, {})[metric] = None if pd.isna(value) else float(value)
    return found


def own_rows(values: Mapping[str, Mapping[str, float | None]]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of `own_metrics`."""
    names = list(dict.fromkeys(name for row in values.values() for name in row))
    cells = [[place, *(_cell("", row.get(name)) for name in names)] for place, row in values.items()]
    return ["epoch", *names], cells


def own_tables(run_ids: Iterable[str]) -> list[str]:
    """The table of `own_rows` in Markdown, of each run that has own metrics."""
    with open_reader() as db:
        found = [own_metrics(db, run_id) for run_id in run_ids]
    return [markdown_table(*own_rows(values)) for values in found if values]


def markdown_table(header: list[str], cells: list[list[str]]) -> str:
    lines = [f"| {' | '.join(header)} |", f"|{'|'.join(':-:' for _ in header)}|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in cells)])


def _cell(column: str, value: Any) -> str:
    if value is None or pd.isna(value):
        return "n/a"
    if column == "step":
        return str(int(value))
    return f"{float(value):.1f}" if column == "epoch" else f"{float(value):.4f}"
