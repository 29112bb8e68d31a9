"""Every query of docs/sql.md gives on both engines what pandas computes from the views, and what the page prints.

pytest tests/project/test_cookbook.py --snapshot-update     # writes what the page prints anew
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmarks.cookbook import PAGE, questions
from benchmarks.results import table
from nightgate.database.transactions import Database

ROOT = Path(__file__).parents[2]
QUESTIONS = questions()
ELSEWHERE = {
    f"{page.name}, {number}": sql.replace("'sample'", "'reviews'")
    for page in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
    if page != PAGE
    for number, sql in enumerate(re.findall(r"```sql\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.S), 1)
}
"""Queries of other pages, whose rows are those of `make demo`."""
QUARTER, HALF = "2025-10-01", "2025-07-01"
Answer = Callable[["Views"], pd.DataFrame]
ANSWERS: dict[str, Answer] = {}


def answers(title: str) -> Callable[[Answer], Answer]:
    def add(function: Answer) -> Answer:
        ANSWERS[title] = function
        return function

    return add


class Views:
    """The rows of `reviews` in each view, whole; nights are text, and times are aware."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._read: dict[str, pd.DataFrame] = {}

    def all(self, view: str) -> pd.DataFrame:
        if view not in self._read:
            self._read[view] = comparable(self._db.frame(f"SELECT * FROM {view}"))
        return self._read[view]

    def __getattr__(self, view: str) -> pd.DataFrame:
        found = self.all(view)
        return found[found["pipeline"] == "reviews"]

    @cached_property
    def judged(self) -> pd.DataFrame:
        """Nights with a score, oldest first."""
        return self.nights.dropna(subset="test_f1").sort_values("night", ignore_index=True)

    @cached_property
    def newest(self) -> str:
        """The run of the newest night with a verdict."""
        return str(self.nights.dropna(subset="verdict").sort_values("night")["run_id"].iloc[-1])

    def of_newest(self, view: str) -> pd.DataFrame:
        found = getattr(self, view)
        return found[found["run_id"] == self.newest]

    def champion_on(self, moment: str) -> pd.Series[Any]:
        time = pd.Timestamp(moment, tz="UTC")
        of = self.champion_timeline
        [at] = [row for _, row in of.iterrows() if row["valid_from"] <= time and not row["valid_to"] <= time]
        [version] = [row for _, row in self.model_versions.iterrows() if row["version"] == at["model_version"]]
        return pd.concat([at[["model_version", "promoted_by", "valid_from", "reason"]], version.drop("pipeline")])

    def fall(self, scores: pd.DataFrame, column: str) -> pd.DataFrame:
        """What changed about the night around which the mean of ten falls most, of `scores` in order."""
        score = scores[column].reset_index(drop=True)
        before, after = score.rolling(10).mean().shift(1), score.rolling(10).mean().shift(-9)
        at = (after - before).idxmin()
        nights = scores["night"].tolist()
        changes = self.night_changes.query("kind != 'champion'")
        near = changes[changes["night"].between(nights[at - 2], nights[at + 2])]
        near = near.sort_values(["night", "kind", "name"])[["night", "kind", "name", "before", "after"]]
        near = near.rename(columns={"night": "changed"})
        assert len(near) > 0
        return near.assign(night=nights[at], f1_before=before[at], f1_after=after[at])


def comparable(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with the same types from both engines."""
    rows = rows.copy()
    for column in rows:
        if rows[column].dtype != object and not isinstance(rows[column].dtype, pd.StringDtype):
            continue
        known = rows[column].dropna()
        if len(known) and known.map(str).str.fullmatch(r"\d{4}-\d\d-\d\d[T ].*").all():
            rows[column] = pd.to_datetime(rows[column], utc=True, format="ISO8601")
        elif len(known) and known.map(str).str.fullmatch(r"\d{4}-\d\d-\d\d").all():
            rows[column] = rows[column].map(str, na_action="ignore")
    return rows


@pytest.fixture(scope="module")
def kept() -> dict[str, Views]:
    return {}


@pytest.fixture
def views(year: Database, kept: dict[str, Views]) -> Views:
    known = kept.setdefault(year.dialect, Views(year))
    known._db = year
    return known


def test_every_question_has_an_answer_in_pandas() -> None:
    assert [*QUESTIONS, *ELSEWHERE] == list(ANSWERS)
    assert PAGE.read_text(encoding="utf-8").count("```sql") == len(QUESTIONS)
    for sql in QUESTIONS.values():
        assert "LIMIT" in sql
        assert "'reviews'" in sql or "GROUP BY pipeline" in sql


def assert_as_computed(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    assert len(found) > 0
    pd.testing.assert_frame_equal(
        comparable(found).convert_dtypes(),
        comparable(expected[list(found.columns)].reset_index(drop=True)).convert_dtypes(),
        check_dtype=False,
        rtol=1e-9,
    )


@pytest.mark.parametrize("title", ELSEWHERE)
def test_a_query_of_another_page_gives_what_pandas_computes(title: str, year: Database, views: Views) -> None:
    assert_as_computed(year.frame(ELSEWHERE[title]), ANSWERS[title](views))


@pytest.mark.parametrize("title", QUESTIONS)
def test_a_query_gives_what_pandas_computes_and_what_the_page_prints(
    title: str, year: Database, views: Views, request: pytest.FixtureRequest
) -> None:
    sql = QUESTIONS[title]
    found = year.frame(sql)

    assert_as_computed(found, ANSWERS[title](views))
    page, (before, after) = PAGE.read_text(encoding="utf-8"), (f"```sql\n{sql}```\n\n", f"{printed(found)}\n")
    if request.config.getoption("--snapshot-update"):
        place = re.compile(re.escape(before) + r"(?:\|[^\n]*\n)*\n?")
        PAGE.write_text(place.sub(lambda _: before + after, page), encoding="utf-8")
    else:
        assert before + after in page


def printed(rows: pd.DataFrame) -> str:
    """The rows as a table in Markdown, the same from both engines."""
    cells = [[_cell(value) for value in row] for row in rows.convert_dtypes().astype(object).itertuples(index=False)]
    return table(list(rows.columns), cells) + "\n"


def _cell(value: Any) -> str:
    if pd.isna(value):
        return ""
    if isinstance(value, float):
        return f"{value:.4f}"
    # SQLite has times as text of fixed width.
    if isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", value):
        value = pd.Timestamp(value)
    if isinstance(value, pd.Timestamp):
        return f"{value:%Y-%m-%d %H:%M}"
    return value.isoformat() if isinstance(value, date) else str(value).replace("|", r"\|")


def counted(rows: pd.DataFrame, by: str | list[str], **columns: Any) -> pd.DataFrame:
    return rows.groupby(by, as_index=False).agg(**columns)


# --- epochs ---


@answers("The published table of a run")
def _(views: Views) -> pd.DataFrame:
    newest = views.nights.dropna(subset="best_epoch").sort_values("night")["run_id"].iloc[-1]
    return views.epoch_results[views.epoch_results["run_id"] == newest].sort_values("epoch")


@answers("When did the validation loss rise while the training loss fell?")
def _(views: Views) -> pd.DataFrame:
    epochs = views.epoch_results.query("night >= @QUARTER").sort_values(["run_id", "epoch"])
    steps = epochs.groupby("run_id")[["training_loss", "validation_loss"]].diff()
    worse = epochs.assign(rise=steps["validation_loss"])[(steps["training_loss"] < 0) & (steps["validation_loss"] > 0)]
    found = counted(
        worse, "night", first_epoch=("epoch", "min"), epochs=("epoch", "size"), largest_rise=("rise", "max")
    )
    return found.sort_values(["largest_rise", "night"], ascending=[False, True]).head(5)


@answers("Does the score on validation rows hold on test rows?")
def _(views: Views) -> pd.DataFrame:
    best = views.judged.merge(views.epoch_results[["run_id", "epoch", "f1"]], on="run_id")
    best = best[best["epoch"] == best["best_epoch"]].sort_values("night", ascending=False).head(5)
    return best.assign(validation_f1=best["f1"], optimism=best["f1"] - best["test_f1"])


# --- nights ---


@answers("Last night against the one before")
def _(views: Views) -> pd.DataFrame:
    return views.judged.assign(change=views.judged["test_f1"].diff()).iloc[:-3:-1]


@answers("What did the gate decide?")
def _(views: Views) -> pd.DataFrame:
    return views.nights.sort_values("night", ascending=False).head(7)


@answers("Why, check by check?")
def _(views: Views) -> pd.DataFrame:
    return views.of_newest("gate_checks").query("slice_name == ''").sort_values("position")


@answers("Why were nights of this quarter held?")
def _(views: Views) -> pd.DataFrame:
    held = views.nights.query("status == 'held' and night >= @QUARTER").sort_values("night", ascending=False)
    return held.assign(reason=held["reason"].str[:100]).head(5)


@answers("Which checks held them?")
def _(views: Views) -> pd.DataFrame:
    checks = views.gate_checks.query("night >= @QUARTER and slice_name == '' and outcome in ['failed', 'underpowered']")
    found = counted(checks, ["check_name", "outcome"], nights=("night", "size"), last_night=("night", "max"))
    return found.sort_values(["nights", "check_name", "outcome"], ascending=[False, True, True])


@answers("The best and the worst nights")
def _(views: Views) -> pd.DataFrame:
    newest = views.judged["metric_key"].iloc[-1]
    ranked = views.judged[views.judged["metric_key"] == newest].sort_values("test_f1", ascending=False)
    return pd.concat([ranked.head(3), ranked.tail(3)]).drop_duplicates()


@answers("Which nights failed, and what was to be done?")
def _(views: Views) -> pd.DataFrame:
    columns = {"nights": ("night", "size"), "last_night": ("night", "max"), "next_step": ("next_step", "max")}
    return counted(views.nights.query("status == 'failed'"), "error_type", **columns)


# --- champions ---


@answers("Who was champion on a date, and why, and from which data, configuration and code?")
def _(views: Views) -> pd.DataFrame:
    version = views.champion_on("2025-07-01").to_frame().T
    return version.merge(views.snapshots[["snapshot_id", "rows_total"]], on="snapshot_id")


@answers("With which settings was it trained?")
def _(views: Views) -> pd.DataFrame:
    asked = ["training.base_model", "training.epochs", "training.learning_rate", "gate.policy", "gate.margin"]
    settings = views.settings[views.settings["config_hash"] == views.champion_on("2025-07-01")["config_hash"]]
    return settings[settings["setting"].isin(asked)].sort_values("setting")


@answers("Every champion, and why it was promoted")
def _(views: Views) -> pd.DataFrame:
    found = views.champion_timeline.sort_values("valid_from", ascending=False).head(8)
    return found.assign(reason=found["reason"].str[:80])


@answers("The longest time without a promotion")
def _(views: Views) -> pd.DataFrame:
    nights = views.nights.sort_values("night").set_index("night")
    promoted = nights.index[nights["status"] == "promoted"]
    rows = []
    for start, end in zip(promoted, [*promoted[1:], None], strict=True):
        within = nights.loc[start:end].iloc[1 : None if end is None else -1]
        until = within.index[-1] if len(within) else start
        rows.append((start, until, len(within), int(within["test_f1"].count())))
    found = pd.DataFrame(rows, columns=["since", "until", "nights_without", "judged_without"])
    return found.sort_values(["nights_without", "since"], ascending=False).head(3)


@answers("How good is the champion on rows that did not select it?")
def _(views: Views) -> pd.DataFrame:
    return views.nights.query("champion_fresh_rows > 0").sort_values("night", ascending=False).head(5)


@answers("Rollbacks, and how long promotions were frozen after them")
def _(views: Views) -> pd.DataFrame:
    back = views.promotions.query("kind == 'rollback'").drop(columns="ended_at")
    return back.merge(
        views.freezes[["frozen_at", "ended_at", "end_reason"]], left_on="promoted_at", right_on="frozen_at"
    )


# --- classes and slices ---


@answers("F1 of each class, month by month")
def _(views: Views) -> pd.DataFrame:
    classes = views.slice_results.query("slice_name == 'label' and split == 'test'")
    classes = classes[classes["run_id"].isin(views.nights["run_id"])]
    month = classes["night"].str[:7].rename("month")
    table = classes.pivot_table(index=month, columns="slice_value", values="f1", aggfunc="mean").add_prefix("class_")
    return table.assign(nights=classes.groupby(month)["run_id"].nunique()).reset_index().rename_axis(columns=None)


@answers("Since when is class 2 worse, and what changed?")
def _(views: Views) -> pd.DataFrame:
    ours = views.slice_results.query("slice_name == 'label' and slice_value == '2' and split == 'test'")
    return views.fall(ours.sort_values("night"), "f1")


@answers("Where is the newest model worst?")
def _(views: Views) -> pd.DataFrame:
    return views.of_newest("slice_results").query("split == 'test'").nsmallest(4, "f1")


@answers("Which classes and slices fell behind the champion's?")
def _(views: Views) -> pd.DataFrame:
    checks = views.of_newest("gate_checks").query("slice_name != ''")
    return checks.assign(gain=checks["candidate_value"] - checks["champion_value"]).nsmallest(4, "gain")


@answers("What does the newest model confuse?")
def _(views: Views) -> pd.DataFrame:
    wrong = views.of_newest("confusion").query("split == 'test' and true_label != predicted_label")
    return wrong.sort_values(["count", "true_label", "predicted_label"], ascending=[False, True, True]).head(4)


@answers("Where do candidate and champion differ, row by row?")
def _(views: Views) -> pd.DataFrame:
    cells = views.of_newest("joint_outcomes").query("scope == 'window' and reference == 'champion'")
    ours, theirs = (cells[name] == cells["true_label"] for name in ("candidate_label", "reference_label"))
    cells = cells.assign(gained=cells["count"].where(ours & ~theirs, 0), lost=cells["count"].where(theirs & ~ours, 0))
    return counted(cells, "true_label", gained=("gained", "sum"), lost=("lost", "sum"))


# --- what changed ---


@answers("Since when is it worse, and what changed?")
def _(views: Views) -> pd.DataFrame:
    falls = {key: views.fall(some, "test_f1") for key, some in views.judged.groupby("metric_key") if len(some) >= 20}
    return min(falls.values(), key=lambda one: (one["f1_after"] - one["f1_before"]).iloc[0])


@answers("What changed between two nights?")
def _(views: Views) -> pd.DataFrame:
    found = views.night_changes.query("'2025-06-01' <= night <= '2025-08-31' and kind != 'champion'")
    return found.sort_values(["night", "kind", "name"])


@answers("Did a setting help?")
def _(views: Views) -> pd.DataFrame:
    rates = views.settings.query("setting == 'training.learning_rate'")[["config_hash", "value"]]
    nights = views.judged.merge(rates, on="config_hash").rename(columns={"value": "learning_rate"})
    columns = {"nights": ("night", "size"), "mean_f1": ("test_f1", "mean")}
    columns |= {"first_night": ("night", "min"), "last_night": ("night", "max")}
    return counted(nights, "learning_rate", **columns).sort_values("mean_f1", ascending=False)


@answers("Where do scores stop being comparable, and by how much did the scale move?")
def _(views: Views) -> pd.DataFrame:
    at = views.night_changes.query("kind in ['test_version', 'labels', 'average']")
    f1 = views.nightly_runs.set_index("run_id")["champion_f1"]
    version = views.nights.set_index("run_id")["champion_version"]
    return at.assign(
        champion_version=at["run_id"].map(version),
        champion_before=at["before_run_id"].map(f1),
        champion_after=at["run_id"].map(f1),
    ).sort_values("night", ascending=False)


# --- data and cost ---


@answers("Did drift come before a drop?")
def _(views: Views) -> pd.DataFrame:
    warned = views.data_drift.query("outcome == 'warning' and night >= @HALF")
    by_run = counted(
        warned.assign(times=warned["value"] / warned["threshold"]),
        "run_id",
        warnings=("night", "size"),
        by_times=("times", "max"),
    )
    score = views.judged["test_f1"]
    scored = views.judged.assign(
        mean_before=score.shift(1).rolling(10, min_periods=1).mean(),
        lowest_after=score[::-1].shift(1).rolling(10, min_periods=1).min()[::-1],
    )
    return scored.merge(by_run, on="run_id").sort_values("night")


@answers("How many rows came in each month, and how many could not be used?")
def _(views: Views) -> pd.DataFrame:
    nights = views.nights.query("status != 'failed'")
    counts = views.refresh_counts[views.refresh_counts["run_id"].isin(nights["run_id"])]
    names = ("rows_seen", "rows_taken", "rows_quarantined")
    found = counted(counts.assign(month=counts["night"].str[:7]), "month", **{name: (name, "sum") for name in names})
    return found.sort_values("month", ascending=False).head(4)


@answers("GPU hours per promotion")
def _(views: Views) -> pd.DataFrame:
    runs = views.nightly_runs.query("night >= @HALF")
    on_gpu = views.attempts.query("device == 'NVIDIA H200'")
    until = on_gpu["finished_at"].where(on_gpu["error_type"] != "crashed", on_gpu["heartbeat_at"])
    seconds = (until - on_gpu["started_at"]).dt.total_seconds() - on_gpu["slot_wait_seconds"]
    seconds = seconds.groupby(on_gpu["run_id"]).sum()
    runs = runs.assign(
        month=runs["night"].str[:7],
        hours=runs["run_id"].map(seconds).fillna(0) / 3600,
        promoted=runs["status"] == "promoted",
    )
    found = counted(runs, "month", gpu_hours=("hours", "sum"), promotions=("promoted", "sum"))
    each = found["gpu_hours"] / found["promotions"].where(found["promotions"] > 0)
    return found.assign(hours_per_promotion=each)


@answers("What did resumed runs lose?")
def _(views: Views) -> pd.DataFrame:
    epochs = views.metric_history
    later = epochs.merge(epochs, on=["run_id", "epoch"], suffixes=("", "_later")).query("attempt_later > attempt")
    lost = later.groupby(["run_id", "attempt"]).size().rename("lost").reset_index()
    found = views.attempts.merge(lost, on=["run_id", "attempt"])
    found = found.assign(epochs_lost=found["lost"], reason=found["reason"].str[:80])
    return found.sort_values("night", ascending=False).head(5)


@answers("Which nights took longest, and how long did they wait?")
def _(views: Views) -> pd.DataFrame:
    nights = views.nights
    took = (nights["finished_at"] - nights["started_at"]).dt.total_seconds()
    nights = nights.assign(duration_seconds=took).sort_values(["duration_seconds", "night"], ascending=[False, True])
    return nights.head(5)


@answers("Which pipelines need somebody today?")
def _(views: Views) -> pd.DataFrame:
    # The other needs are compared with those of `nightgate history` in tests/frames.
    last = counted(views.all("nights"), "pipeline", night=("night", "max"))
    silent = pd.Timestamp("2026-01-05") - pd.to_datetime(last["night"])
    need = "no night for " + silent.dt.days.astype(str) + " days"
    return last.assign(need=need, reason=None, next_step="nightgate doctor")


@answers("How was the last quarter of every pipeline?")
def _(views: Views) -> pd.DataFrame:
    nights = views.all("nights").query("night >= @QUARTER")
    nights = nights.assign(
        is_promoted=nights["status"] == "promoted",
        is_failed=nights["status"] == "failed",
    )
    columns = {"nights": ("night", "size"), "promoted": ("is_promoted", "sum"), "failed": ("is_failed", "sum")}
    found = counted(nights, "pipeline", **columns, mean_f1=("test_f1", "mean"))
    runs = views.all("nightly_runs").query("night >= @QUARTER")
    return found.assign(gpu_hours=found["pipeline"].map(runs.groupby("pipeline")["gpu_seconds"].sum()) / 3600)


# --- other pages ---


@answers("README.md, 1")
def _(views: Views) -> pd.DataFrame:
    seen = views.refresh_counts.groupby("run_id")["rows_seen"].sum()
    nights = views.nights.sort_values("night")
    return nights.assign(rows_seen=nights["run_id"].map(seen), reason=nights["reason"].str[:72])


@answers("evaluate.md, 1")
def _(views: Views) -> pd.DataFrame:
    return views.champion_evaluations.query("role == 'champion'").sort_values("evaluated_at")


@answers("gate.md, 1")
def _(views: Views) -> pd.DataFrame:
    cells = views.joint_outcomes.query("scope == 'window' and reference == 'champion'")
    cells = cells[cells["reference_label"] != cells["candidate_label"]]
    labels = ["true_label", "reference_label", "candidate_label"]
    return cells.sort_values(["night", "count", *labels], ascending=[False, False, True, True, True]).head(6)


@answers("operations.md, 1")
def _(views: Views) -> pd.DataFrame:
    names = ["moment", "what", "version", "rows", "f1", "why"]
    runs = views.nightly_runs.assign(what="night " + views.nightly_runs["status"])
    runs = runs[["finished_at", "what", "model_version", "rows_new", "test_f1", "reasons"]].set_axis(names, axis=1)
    checked = views.champion_evaluations.assign(what=views.champion_evaluations["role"] + " evaluated")
    checked = checked[["evaluated_at", "what", "model_version", "rows", "f1", "alarm"]].set_axis(names, axis=1)
    return pd.concat([runs, checked]).sort_values("moment")


@answers("own-data.md, 1")
def _(views: Views) -> pd.DataFrame:
    still = views.quarantined_rows[views.quarantined_rows["resolved_night"].isna()]
    found = counted(still, "reason", num_rows=("origin", "size"), example=("origin", "min"))
    return found.sort_values(["num_rows", "reason"], ascending=[False, True])


@answers("own-data.md, 2")
def _(views: Views) -> pd.DataFrame:
    newest = views.nights.sort_values("night")["run_id"].iloc[-1]
    return views.refresh_counts[views.refresh_counts["run_id"] == newest]


@answers("own-data.md, 3")
def _(views: Views) -> pd.DataFrame:
    return views.data_checks[views.data_checks["outcome"].isin(["failed", "allowed"])]
