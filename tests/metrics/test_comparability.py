"""Breaks in the comparability of scores, and versions that bridge them."""

from __future__ import annotations

from dataclasses import asdict, replace
from datetime import date, timedelta
from functools import partial
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from numpy.typing import NDArray
from syrupy.assertion import SnapshotAssertion

import nightgate
from nightgate.analysis.replay import as_frame, breaks_before, replay, summary
from nightgate.cli.tables_as_text import Format, formatted
from nightgate.config.pipeline import Pipeline
from nightgate.database import schema
from nightgate.database.transactions import Database
from nightgate.gate.evidence import Rows, Side
from nightgate.label_meaning import LabelMeaning
from nightgate.metrics.comparability import ScoredNight, breaks, changes, metric_key
from tests.support import night_rows
from tests.support.judged_nights import Model, judged_night


def meaning(*values: tuple[str, str], column: str = "label") -> LabelMeaning:
    return LabelMeaning(column, dict(values), ("bad", "good"))


USUAL = meaning(("0", "bad"), ("1", "good"))
FIRST = ScoredNight(
    date(2026, 3, 1),
    "m-1",
    "t-1",
    ("bad", "good"),
    "weighted",
    "90d",
    2000,
    model_version=1,
    test_f1=0.55,
    meaning=USUAL,
)


def nights(*changed: dict[str, Any]) -> list[ScoredNight]:
    return [replace(FIRST, night=FIRST.night + timedelta(days=day), **facts) for day, facts in enumerate(changed)]


def test_the_key_is_the_same_exactly_where_scores_are_comparable() -> None:
    usual: dict[str, Any] = {"test_version": "t-1", "label_names": ("bad", "good"), "average": "macro"}
    usual |= {"test_window": "14d", "min_test_rows": 2000}
    key = metric_key(**usual)
    assert key == metric_key(**usual | {"label_names": ["good", "bad"], "test_window": "2w"})
    others: list[dict[str, Any]] = [
        {"test_version": "t-2"},
        {"average": "weighted"},
        {"label_names": ("bad", "good", "fine")},
        {"test_window": "30d"},
        {"min_test_rows": 100},
        {"test_window": ""},
    ]
    assert len({key, *(metric_key(**usual | other) for other in others)}) == 7
    # Where all rows count, the least number of rows has no effect.
    everything = usual | {"test_window": ""}
    assert metric_key(**everything) == metric_key(**everything | {"min_test_rows": 100})


def test_nights_with_the_same_settings_have_no_break() -> None:
    assert breaks(nights({}, {}, {"test_f1": 0.9})) == [None, None, None]
    assert breaks([]) == []


@pytest.mark.parametrize(
    "facts",
    [
        {"test_version": "t-2", "metric_key": "m-2"},
        {"average": "macro", "metric_key": "m-2"},
        {"label_names": ("bad", "fine")},
        {"metric_key": "m-2"},
        {"test_window": "30d", "metric_key": "m-2"},
        {"min_test_rows": 100, "metric_key": "m-2"},
        {"meaning": meaning(("0", "good"), ("1", "bad")), "test_version": "t-2", "metric_key": "m-2"},
        {"meaning": meaning(("0", "bad"), ("1", "good"), ("2", "good"), column="stars")},
        {"meaning": replace(USUAL, classes=("good", "bad"))},
        {"metric_key": "m-1-predicted"},
    ],
)
def test_each_change_is_named(facts: dict[str, Any], snapshot: SnapshotAssertion) -> None:
    first, second, third = breaks(nights({}, facts, facts))
    assert (first, third) == (None, None)
    assert str(second) == snapshot


@pytest.mark.parametrize(
    "facts",
    [
        {"label_names": ("good", "bad")},
        {"test_window": "2160h"},
        {"meaning": meaning(("1", "good"), ("0", "bad"))},
        # A snapshot of an earlier release has no names of classes.
        {"meaning": replace(USUAL, classes=())},
    ],
)
def test_a_change_without_effect_on_scores_is_no_break(facts: dict[str, Any]) -> None:
    assert changes(*nights({}, facts)) == ""


def test_a_champion_scored_on_both_sides_is_the_bridge() -> None:
    found = breaks(
        nights(
            {"champion_version": 3, "champion_f1": 0.5},
            {"champion_version": 3, "champion_f1": 0.5412},
            {"test_version": "t-2", "champion_version": None},
            {"test_version": "t-2", "champion_version": 3, "champion_f1": 0.5288},
        )
    )
    assert "version 3: 0.5412 before (night 2026-03-02), 0.5288 after (night 2026-03-04)" in str(found[2])


def test_a_bridge_may_be_the_candidate_before(snapshot: SnapshotAssertion) -> None:
    found = breaks(nights({"model_version": 7}, {"average": "macro", "champion_version": 7, "champion_f1": 0.5}))
    assert str(found[1]) == snapshot


def test_a_break_may_have_no_bridge() -> None:
    alone = {"test_version": "t-2", "champion_version": 4, "champion_f1": 0.5, "model_version": 2}
    assert "version 4" not in str(breaks(nights({}, alone))[1])
    # A bridge spans one break, not two.
    third = {"test_version": "t-3", "champion_version": 1, "champion_f1": 0.5}
    found = breaks(nights({"champion_version": 1, "champion_f1": 0.6}, alone, third))
    assert "version 1" not in str(found[2])


def test_history_has_the_break_as_a_column_and_as_a_line(database: Database) -> None:
    first = judged_night(database, 0, Model("first", 0.7))
    for day in (1, 2):
        judged_night(database, day, Model(f"candidate {day}", 0.7), first)
    change = {"test_version": "t-2", "metric_key": "m-2"}
    of_the_third = sa.update(schema.Run).where(schema.Run.night == night_rows.night(2).date).values(**change)
    database.write(lambda session: session.execute(of_the_third))
    found = nightgate.history("reviews")
    assert list(found["break_before"].isna()) == [True, True, False]
    sentence = found["break_before"].iloc[2]
    before, after = found["champion_f1"].iloc[1:]
    assert "t-0011223344" in sentence
    assert f"version 1: {before:.4f} before (night 2026-03-02), {after:.4f} after (night 2026-03-03)" in sentence
    changed = nightgate.changes("reviews", since="2026-03-03")
    assert changed.set_index("kind")[["before", "after"]].loc["metric"].tolist()[1] == "m-2"
    assert set(changed["kind"]) >= {"metric", "test_version"}
    # Breaks do not depend on which nights are shown.
    assert list(nightgate.history("reviews", since="2026-03-03")["break_before"]) == [sentence]
    lines = formatted(found, Format.table, columns=("night", "test_f1"), before="break_before").splitlines()
    assert [line.split()[0] for line in lines] == ["night", "2026-03-01", "2026-03-02", "┄┄┄", "2026-03-03"]
    assert lines[3] == f"┄┄┄ {sentence}"
    bridge = found[["bridge_version", "bridge_before", "bridge_after"]]
    assert bridge.iloc[:2].isna().all(axis=None)
    assert bridge.iloc[2].tolist() == [1, before, after]


class Stray(Model):
    """A model that gives four rows that it has wrong a third class, which has no rows."""

    def predictions(self, rows: Rows) -> NDArray[np.int64]:
        found = super().predictions(rows)
        found[np.flatnonzero(found != rows.true)[:4]] = 2
        return found


class Flawed(Stray):
    """One that has no score."""

    def side(self, rows: Rows, golden: Rows) -> Side:
        return replace(super().side(rows, golden), flaw="does not open")


def test_nights_that_averaged_classes_without_rows_are_cut_off(database: Database) -> None:
    """As those of before the first release, whose keys its migration marked."""
    record = night_rows.pipeline(average="macro").record()
    record["data"]["labels"] = ["bad", "good", "never"]
    nightly = partial(judged_night, pipeline=Pipeline.model_validate(record), label_names=("bad", "good", "never"))
    first = nightly(database, 0, Model("first", 0.7))
    nightly(database, 1, Model("second", 0.7), first)
    nightly(database, 2, Stray("third", 0.7), first)
    nightly(database, 3, Model("fourth", 0.7), Stray(**asdict(first)), anchor=first)
    nightly(database, 4, Model("fifth", 0.7), first, anchor=Stray(**asdict(first)))
    nightly(database, 5, Model("sixth", 0.7), Flawed(**asdict(first)), anchor=first)
    assert len(set(nightgate.history("reviews")["metric_key"])) == 1
    averaged = [False, False, True, True, True, False]
    marked = (schema.Run.night > date(2026, 3, 2)) & (schema.Run.night < date(2026, 3, 6))
    mark = sa.update(schema.Run).where(marked).values(metric_key=schema.Run.metric_key + "-predicted")
    database.write(lambda session: session.execute(mark))
    found = nightgate.history("reviews")
    replayed = list(replay(database, "reviews"))
    assert [one.redefined for one in replayed] == averaged
    assert list(found["break_before"].notna()) == [False, False, True, False, False, True]
    assert breaks_before(replayed) == [None] * 6
    assert "is over predicted classes without true rows too" in found["break_before"].iloc[2]
    assert "is over classes with true rows only" in found["break_before"].iloc[5]
    assert "2026-03-03, 2026-03-04, 2026-03-05" in summary(replayed)
    assert list(as_frame(replayed)["redefined"]) == averaged
    weighted = list(replay(database, "reviews", {"gate.average": "weighted"}))
    assert not any(one.redefined for one in weighted)


def test_another_test_window_is_a_break_in_history_and_in_a_replay(database: Database) -> None:
    first = judged_night(database, 0, Model("first", 0.7))
    judged_night(database, 1, Model("second", 0.7), first)
    record = night_rows.pipeline().record()
    short = Pipeline.model_validate({**record, "gate": {"test_window": "1d", "min_test_rows": 300}})
    judged_night(database, 2, Model("third", 0.7), first, pipeline=short)
    sentence = nightgate.history("reviews")["break_before"].iloc[2]
    assert all(part in sentence for part in ("90d", "2,000", "1d", "300", "version 1:"))
    assert breaks_before(list(replay(database, "reviews"))) == [None, None, sentence]
    # With one window for all nights the scores are comparable.
    assert breaks_before(list(replay(database, "reviews", {"gate.test_window": ""}))) == [None] * 3
