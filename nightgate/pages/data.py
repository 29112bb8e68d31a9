"""What the page of a pipeline shows, read from the views: `page_of(db, "sample")` is a dict for JSON."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import numpy as np
import pandas as pd

from nightgate.database.transactions import Database
from nightgate.errors import ConfigurationError
from nightgate.frames.nights import read_history
from nightgate.frames.reader import select
from nightgate.pages.columns import by_column, plain

DAYS = 365
"""Of nights on a page, unless its first night is given."""
NIGHT_COLUMNS = (
    *("night", "status", "reason", "run_id", "test_f1", "f1_ci_low", "f1_ci_high", "min_f1", "f1_delta"),
    *(
        "champion_version",
        "champion_f1",
        "champion_fresh_f1",
        "rows_total",
        "rows_new",
        "rows_quarantined",
        "test_rows",
    ),
    *("best_epoch", "duration_seconds", "gpu_seconds", "break_before", "bridge_before", "bridge_after"),
    *("later_failure", "alarm", "started_from", "training_reason"),
)
MOST_SLICES = 60
"""Classes and slices of a page: those with most rows."""
MOST_CELLS = 60_000
"""Cells of confusion matrices of a page, some 20 bytes each: those of the newest nights."""
WEEK = 7
SURE = 4.0
"""Standard errors by which a fall is more than the noise of nights."""


def page_of(db: Database, pipeline: str, since: date | None = None) -> dict[str, Any]:
    """All that the page of `pipeline` shows, from the night `since` on.

    Raises:
        ConfigurationError: it has no night since then.
        DatabaseError: the database cannot be used.
    """
    nights = read_nights(db, pipeline, since)
    first = nights["night"].iloc[0] if len(nights) else date.max
    of = _Reader(db, pipeline, first, nights["run_id"])
    slices, falls, left_out = _slices(of, nights)
    counts = of.rows(
        "SELECT run_id, CAST(SUM(rows_quarantined) AS INTEGER) AS rows_quarantined FROM refresh_counts "
        "WHERE {these} GROUP BY run_id"
    )
    nights["rows_quarantined"] = pd.Series(counts["rows_quarantined"].to_numpy(), counts["n"], dtype="Int64")
    return {
        "kind": "pipeline",
        "pipeline": pipeline,
        "nights": by_column(nights, NIGHT_COLUMNS),
        "earlier": of.table(
            "SELECT CAST(COUNT(*) AS INTEGER) AS nights, MIN(night) AS first "
            "FROM nights WHERE pipeline = :pipeline AND night < :first"
        )["columns"],
        "epochs": of.columns(
            "SELECT run_id, epoch, f1, validation_loss, training_loss FROM epoch_results WHERE {these}"
        ),
        "slices": slices,
        "slices_left_out": left_out,
        "falls": falls,
        "confusion": by_column(_newest_cells(of), ("n", "true_label", "predicted_label", "count")),
        "drift": _drift(of, len(nights)),
        "checks": of.columns(
            "SELECT run_id, check_name, slice_name, slice_value, outcome FROM gate_checks "
            "WHERE {these} AND outcome IN ('failed', 'underpowered', 'warning') ORDER BY night, position"
        ),
        "changes": by_column(_changes(of), ("n", "kind", "name", "before", "after")),
        "quarantine": of.table(
            "SELECT reason, CAST(COUNT(*) - COUNT(resolved_night) AS INTEGER) AS open, "
            "CAST(COUNT(resolved_night) AS INTEGER) AS resolved, MAX(first_night) AS newest "
            "FROM quarantined_rows WHERE pipeline = :pipeline GROUP BY reason ORDER BY open DESC, reason"
        ),
        # Of all runs: those that a later one of the same night replaced cost the same.
        "months": of.table(
            "SELECT month, CAST(COUNT(DISTINCT night) AS INTEGER) AS nights, "
            "CAST(SUM(CASE WHEN status = 'promoted' THEN 1 ELSE 0 END) AS INTEGER) AS promoted, "
            "SUM(duration_seconds) AS duration_seconds, SUM(gpu_seconds) AS gpu_seconds FROM nightly_runs "
            "WHERE pipeline = :pipeline AND night >= :first GROUP BY month ORDER BY month DESC"
        ),
        "champions": of.table(
            "SELECT c.model_version, c.valid_from, c.valid_to, c.promoted_by, c.reason, v.test_f1 "
            "FROM champion_timeline AS c "
            "JOIN model_versions AS v ON v.pipeline = c.pipeline AND v.version = c.model_version "
            "WHERE c.pipeline = :pipeline ORDER BY c.valid_from"
        ),
    }


def read_nights(db: Database, pipeline: str | None, since: date | None) -> pd.DataFrame:
    """The nights of a pipeline, or of all, since a date or of the last year.

    Raises:
        ConfigurationError: there are nights, but none since then.
        DatabaseError: the database cannot be used.
    """
    query, parameters = "SELECT MAX(night) AS night FROM nights", {}
    if pipeline is not None:
        query, parameters = f"{query} WHERE pipeline = :pipeline", {"pipeline": pipeline}
    newest = select(db, query, parameters)["night"].iloc[0]
    if since is not None and newest is not None and newest < since:
        raise ConfigurationError(
            f"{pipeline or 'the home'} has no night since {since}; the newest is {newest}",
            next_step=f"start with an earlier night, such as --since {newest}",
        )
    return read_history(db, pipeline, since=since or (newest and newest - timedelta(days=DAYS - 1)))


class _Reader:
    """Rows of the views that belong to the nights of a page."""

    def __init__(self, db: Database, pipeline: str, first: date, runs: pd.Series[Any]) -> None:
        self._db = db
        self._parameters = {"pipeline": pipeline, "first": first}
        self._places = {run: place for place, run in enumerate(runs)}

    def frame(self, query: str) -> pd.DataFrame:
        used = {name: value for name, value in self._parameters.items() if f":{name}" in query}
        return select(self._db, query, used)

    def table(self, query: str) -> dict[str, Any]:
        found = self.frame(query)
        return by_column(found, list(found.columns))

    def rows(self, query: str) -> pd.DataFrame:
        """Rows of the runs that count, by `n`, the place of their night; `{these}` stands for the page's nights."""
        found = self.frame(query.format(these="pipeline = :pipeline AND night >= :first"))
        found.insert(0, "n", found.pop("run_id").map(self._places))
        found = found[found["n"].notna()]
        return found.assign(n=found["n"].astype(int)).sort_values("n", kind="stable", ignore_index=True)

    def columns(self, query: str) -> dict[str, Any]:
        found = self.rows(query)
        return by_column(found, list(found.columns))


def _changes(of: _Reader) -> pd.DataFrame:
    """What changed by night; a new definition of the score only where none of its parts that are named did."""
    found = of.rows("SELECT run_id, kind, name, before, after FROM night_changes WHERE {these}")
    parts = found.loc[found["kind"].isin(["test_version", "labels", "average"]), "n"]
    return found[(found["kind"] != "metric") | ~found["n"].isin(parts)]


def _slices(of: _Reader, nights: pd.DataFrame) -> tuple[list[dict[str, Any]], list[dict[str, Any]], int]:
    """F1 of each class and slice by night, most rows first; their falls, largest first; how many are left out."""
    rows = of.rows(
        "SELECT run_id, slice_name, slice_value, support, f1 FROM slice_results "
        "WHERE {these} AND split = 'test' AND is_best"
    )
    segment = nights["break_before"].notna().astype(int).cumsum()
    groups = sorted(rows.groupby(["slice_name", "slice_value"]), key=lambda one: -one[1]["support"].mean())
    shown, falls = [], []
    for (name, value), some in groups[:MOST_SLICES]:
        f1 = some.set_index("n")["f1"].reindex(nights.index).astype(float)
        shown.append({"name": name, "value": value, "support": round(some["support"].mean()), "f1": plain(f1)})
        if fall := largest_fall(f1, segment):
            falls.append({"name": name, "value": value, **fall})
    # Classes first; of each name those with most rows.
    shown.sort(key=lambda one: (one["name"] != "label", one["name"]))
    falls.sort(key=lambda fall: fall["after"] - fall["before"])
    return shown, falls, len(groups) - len(shown)


def largest_fall(f1: pd.Series[float], segment: pd.Series[int]) -> dict[str, Any] | None:
    """The night `n` from which a week's mean lies furthest below that of the week before, which began with the night
    `since`, and both means; a week is seven nights with scores.

    None where no fall is more than noise. Only scores of one `segment`, which are comparable, are compared.
    """
    found: list[dict[str, Any]] = []
    for _, scores in f1.dropna().groupby(segment):
        week = scores.rolling(WEEK)
        before, after = week.mean().shift(1), week.mean().shift(1 - WEEK)
        noise = np.sqrt((week.var().shift(1) + week.var().shift(1 - WEEK)) / WEEK)
        falls = (before - after).where(before - after > SURE * noise + 0.005).dropna()
        if len(falls):
            n: Any = falls.idxmax()
            places = scores.index.tolist()
            since = places[places.index(n) - WEEK]
            found.append({"n": int(n), "since": since, "before": round(before[n], 4), "after": round(after[n], 4)})
    return min(found, key=lambda fall: fall["after"] - fall["before"], default=None)


def _newest_cells(of: _Reader) -> pd.DataFrame:
    """Cells of the confusion matrices on test, of as many of the newest nights as there is room for."""
    cells = of.rows(
        "SELECT run_id, true_label, predicted_label, count FROM confusion "
        "WHERE {these} AND split = 'test' AND count > 0"
    )
    return cells[cells["n"] > cells["n"].iloc[-MOST_CELLS - 1]] if len(cells) > MOST_CELLS else cells


def _drift(of: _Reader, num_nights: int) -> list[dict[str, Any]]:
    """The value and the threshold of each statistic by night."""
    rows = of.rows("SELECT run_id, reference, statistic, slice_name, value, threshold FROM data_drift WHERE {these}")
    found = []
    for (reference, statistic, name), some in rows.groupby(["reference", "statistic", "slice_name"]):
        by_night = some.drop_duplicates("n", keep="last").set_index("n").reindex(range(num_nights))
        columns = {column: plain(by_night[column].astype(float)) for column in ("value", "threshold")}
        found.append({"reference": reference, "statistic": statistic, "slice_name": name} | columns)
    return found
