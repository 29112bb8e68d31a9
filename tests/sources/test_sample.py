"""The synthetic reviews of the sample source."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from nightgate.config.sources import SampleSource
from nightgate.data.refresh import refresh
from nightgate.home import open_home
from nightgate.schedule import Night
from nightgate.sources.kinds import open_source
from nightgate.sources.sample import COLUMNS, Sample, sample_reviews
from nightgate.sources.source import Plan
from tests.support import reviews

UNTIL = reviews.NIGHT.data_until


def by_id(columns: dict[str, list[Any]]) -> dict[str, tuple[Any, ...]]:
    rows = list(zip(*(columns[name] for name in COLUMNS), strict=True))
    assert len({row[0] for row in rows}) == len(rows)
    return {row[0]: row for row in rows}


def test_the_rows_are_the_same_on_every_machine_and_python() -> None:
    columns = sample_reviews(SampleSource(kind="sample", rows_per_day=20, days=5), UNTIL)
    # A change of the generator changes this, and every documented figure about the sample.
    assert hashlib.sha256("\n".join(columns["text"]).encode()).hexdigest()[:16] == "8e18cb118638302d"


def test_the_next_night_has_the_old_rows_and_one_more_day() -> None:
    source = SampleSource(kind="sample", rows_per_day=50, days=10)
    first = by_id(sample_reviews(source, UNTIL))
    second = by_id(sample_reviews(source, UNTIL + timedelta(days=1)))
    shared = first.keys() & second.keys()
    assert all(first[key] == second[key] for key in shared)
    assert 25 <= len(second.keys() - first.keys()) <= 75
    assert all(second[key][3] >= UNTIL for key in second.keys() - first.keys())


def test_the_next_night_generates_the_days_alone_that_it_lacks() -> None:
    data = reviews.pipeline({"kind": "sample", "days": 10}, data__id="review_id").data
    first = open_source(data, reviews.NIGHT)
    parts = first.plan(None).read
    assert len(parts) == 11
    assert sum(batch.table.num_rows for part in parts for batch in first.read(part)) == len(
        sample_reviews(SampleSource(kind="sample", days=10), UNTIL)["text"]
    )
    before = {"parts": {part.name: part.version for part in parts}, "after": {}}
    later = Night(reviews.NIGHT.date + timedelta(days=1), "backfill", UNTIL + timedelta(days=1))
    # The first and the last day are read up to the hour of the night, and so they change.
    assert [part.name for part in open_source(data, later).plan(before).read] == [
        "2026-02-20",
        "2026-03-01",
        "2026-03-02",
    ]


def test_rows_lie_in_the_days_before_the_night() -> None:
    times = sample_reviews(SampleSource(kind="sample", rows_per_day=30, days=7), UNTIL)["created_at"]
    assert min(times) >= UNTIL - timedelta(days=7)
    assert max(times) < UNTIL
    assert all(time.tzinfo is UTC for time in times)


def test_another_seed_gives_other_texts() -> None:
    one, other = (
        sample_reviews(SampleSource(kind="sample", rows_per_day=20, days=2, seed=seed), UNTIL) for seed in (1, 2)
    )
    assert one["text"] != other["text"]


def test_texts_are_many_and_stars_spread() -> None:
    columns = sample_reviews(SampleSource(kind="sample"), UNTIL)
    assert len(set(columns["text"])) > 0.9 * len(columns["text"])
    stars = Counter(columns["stars"])
    assert all(stars[star] > 300 for star in range(1, 6))
    assert len(set(columns["product"])) == 6
    assert not any("{" in text for text in columns["text"])


def read(settings: dict[str, Any], until: datetime = UNTIL) -> tuple[set[str], dict[str, tuple[Any, ...]]]:
    """The days that the source has, and its rows by id."""
    night = replace(reviews.NIGHT, data_until=until)
    source = Sample(SampleSource(kind="sample", rows_per_day=40, days=6, **settings), COLUMNS, night)
    plan = source.plan(None)
    batches = [batch for part in plan.read for batch in source.read(part)]
    rows = [tuple(row.values()) for batch in batches for row in batch.table.to_pylist()]
    return {part.name for part in plan.read}, {row[0]: row for row in rows}


def test_a_broken_export_lacks_every_second_day_and_counts_from_0_on_its_date_alone() -> None:
    days, rows = read({})
    some, broken = read({"broken_on": [UNTIL.date()]})
    assert len(some) == len(days) // 2
    assert {row_id for row_id in rows if f"{row_id[1:5]}-{row_id[5:7]}-{row_id[7:9]}" in some} == set(broken)
    assert all(row == (*rows[row_id][:2], rows[row_id][2] - 1, *rows[row_id][3:]) for row_id, row in broken.items())
    assert read({"broken_on": [UNTIL.date() - timedelta(days=1)]}) == (days, rows)


def test_checked_reviews_are_twice_as_many_with_the_same_texts_and_other_stars() -> None:
    days, rows = read({})
    assert read({"checked_from": UNTIL.date() + timedelta(days=1)}) == (days, rows)
    for since in (UNTIL.date(), UNTIL.date() - timedelta(days=3)):
        now, checked = read({"checked_from": since})
        assert now == days
        assert 1.9 < len(checked) / len(rows) < 2.1
        changed = [row_id for row_id, row in rows.items() if checked[row_id][1:] != row[1:]]
        assert 0.04 < len(changed) / len(rows) < 0.2
        assert all(rows[row_id][2] != checked[row_id][2] for row_id in changed)


def test_days_are_read_again_when_the_export_breaks_and_is_mended() -> None:
    def plan(day: int, before: Plan | None) -> Plan:
        settings = SampleSource(kind="sample", days=6, broken_on=(UNTIL.date() + timedelta(days=1),))
        night = replace(reviews.NIGHT, data_until=UNTIL + timedelta(days=day))
        parts = (*before.read, *before.unchanged) if before else ()
        return Sample(settings, COLUMNS, night).plan({"parts": {part.name: part.version for part in parts}})

    first = plan(0, None)
    assert plan(1, first).unchanged == ()
    # The days that both nights have in whole.
    assert len(plan(2, first).unchanged) == 3


def test_some_rows_are_unusable_or_repeated(tmp_path: Path) -> None:
    pipeline = reviews.pipeline(
        {"kind": "sample"}, data__id="review_id", data__labels=[1, 2, 3, 4, 5], data__time="created_at"
    )
    refreshed = refresh(pipeline, reviews.NIGHT, open_home(tmp_path))
    assert {row.reason for row in refreshed.quarantined} == {"empty_text", "unknown_label"}
    assert 0 < len(refreshed.quarantined) < 50
    assert refreshed.rows_duplicate > 10
    assert refreshed.rows_total > 2_700


def test_three_thousand_rows_take_less_than_a_second() -> None:
    started = time.perf_counter()
    sample_reviews(SampleSource(kind="sample", rows_per_day=100, days=30), datetime(2026, 3, 1, tzinfo=UTC))
    assert time.perf_counter() - started < 1
