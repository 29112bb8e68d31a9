"""The synthetic reviews of the sample source."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from nightgate.data.refresh import refresh
from nightgate.home import open_home
from nightgate.schedule import Night
from nightgate.source_config import SampleSource
from nightgate.sources.kinds import open_source
from nightgate.sources.sample import COLUMNS, sample_reviews
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
