"""The generated year is whole, tells its story, and is the same in copies and on both engines."""

from __future__ import annotations

import pandas as pd

from benchmarks.fleet_facts import YEAR, Story
from nightgate.database.transactions import Database

STORY = Story(YEAR.nights, YEAR.every)


def frame(db: Database, view: str, pipeline: str = "reviews") -> pd.DataFrame:
    found = db.frame(f"SELECT * FROM {view} WHERE pipeline = :name", {"name": pipeline})
    if "night" in found:
        found["night"] = found["night"].astype(str)
    return found


def test_the_year_has_every_kind_of_night(year: Database) -> None:
    nights = frame(year, "nights")

    assert len(nights) == YEAR.nights
    counts = nights["status"].value_counts()
    assert counts["promoted"] > 8
    assert counts["held"] > 80
    assert counts["skipped"] > 150
    assert counts["failed"] == sum(map(STORY.fails, range(YEAR.nights)))
    assert (nights["attempts"] == 2).sum() > 2
    runs = frame(year, "nightly_runs")
    assert len(runs) == YEAR.nights + 1  # one night was run again


def test_the_champions_follow_one_another_without_a_gap(year: Database) -> None:
    champions = frame(year, "champion_timeline").sort_values("valid_from")
    assert (champions["kind"] == "rollback").sum() == 1
    assert champions["valid_to"].tolist()[:-1] == champions["valid_from"].tolist()[1:]
    assert champions["valid_to"].isna().tolist() == [False] * (len(champions) - 1) + [True]
    assert str(champions["valid_from"].iloc[0]).startswith("2025-01-01")


def test_class_2_falls_with_the_other_learning_rate(year: Database) -> None:
    slices = frame(year, "slice_metrics")
    ours = slices[(slices["slice_name"] == "label") & (slices["slice_value"] == "2") & (slices["split"] == "test")]
    by_day = (pd.to_datetime(ours["night"]) - pd.Timestamp("2025-01-01")).dt.days
    within = by_day.isin(STORY.other_setting)
    before = by_day.between(STORY.at(0.3), STORY.other_setting.start - 1)
    assert ours.loc[before, "f1"].mean() - ours.loc[within, "f1"].mean() > 0.1


def test_a_copy_has_the_rows_of_its_source_under_its_own_name(year: Database) -> None:
    for view in ("nightly_runs", "metric_history", "gate_checks", "joint_outcomes", "champion_timeline", "data_drift"):
        source, copy = frame(year, view), frame(year, view, "reviews-02")
        own = [name for name in source if name == "pipeline" or name.endswith("run_id")]
        assert len(source) == len(copy) > 0, view
        assert copy["pipeline"].unique().tolist() == ["reviews-02"]
        order = [name for name in source if name not in own]
        pd.testing.assert_frame_equal(
            source[order].sort_values(order, ignore_index=True), copy[order].sort_values(order, ignore_index=True)
        )
