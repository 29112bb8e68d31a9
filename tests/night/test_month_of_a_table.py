"""A month of refreshes of a PostgreSQL table that is written to meanwhile: every row is accounted for, every night."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from nightgate.data.snapshots import SPLITS, Snapshot
from nightgate.database.connection import make_engine
from nightgate.errors import ConfigurationError
from nightgate.night import steps
from nightgate.night.run import open_night
from nightgate.pipeline_files import check_pipeline
from tests.conftest import PostgresServer
from tests.support.shop import Shop, night

NIGHTS = 30
RELEASE = 20
"""The night before which the shop changes its table."""

UNACCOUNTED = """
SELECT COALESCE(c.night, s.night) AS night, SUM(c.rows_seen) AS seen, MAX(s.num_rows) AS in_table
FROM refresh_counts c FULL JOIN shop.census s ON s.night = c.night
GROUP BY COALESCE(c.night, s.night)
HAVING COUNT(s.night) = 0 OR COUNT(c.night) = 0 OR SUM(c.rows_seen - c.rows_future) <> MAX(s.num_rows)
    OR SUM(c.rows_seen) <> SUM(c.rows_taken + c.rows_merged + c.rows_replaced + c.rows_deleted + c.rows_quarantined
                               + c.rows_conflicting + c.rows_future + c.rows_outside)
"""
"""Nights whose rows are not all accounted for: the census counts those whose time had come."""

pytestmark = [pytest.mark.slow, pytest.mark.database]


@pytest.fixture
def url(postgres: PostgresServer, migrated: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A database that has both the shop's table and Nightgate's."""
    name = postgres.create(template=migrated("postgresql", postgres))
    monkeypatch.setenv("NIGHTGATE_DATABASE_URL", postgres.url(name))
    monkeypatch.setenv("SHOP", postgres.url(name))
    yield postgres.url(name)
    postgres.drop(name)


def refresh(pipeline: dict[str, Any], number: int) -> Snapshot:
    with open_night(check_pipeline(pipeline, "month.toml"), night(number)) as run:
        snapshot = steps.refresh(run)
        run.finish("skipped", "only the rows are of interest")
    return snapshot


@pytest.mark.parametrize("has_marks", [True, False], ids=["updated and deleted", "swept every night"])
def test_every_row_of_a_month_is_accounted_for(url: str, tmp_path: Path, has_marks: bool) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    columns = {"updated": "updated_at", "deleted": "deleted_at"} if has_marks else {}
    data = {"source": {"kind": "sql", "url_env": "SHOP", "table": "shop.reviews"}, "id": "id", "text": "body"}
    data |= {"label": "stars", "labels": [1, 5], "time": "created_at", "near_duplicates": False} | columns
    pipeline: dict[str, Any] = {"name": "month", "data": data, "training": {"base_model": str(tmp_path / "model")}}
    splits: dict[str, str] = {}
    with closing(Shop(url, marks_deletions=has_marks)) as shop:
        for number in range(NIGHTS):
            if number == RELEASE:
                shop.alter()
            shop.day(number)
            if number == RELEASE:
                with pytest.raises(ConfigurationError, match="no column 'body'") as caught:
                    refresh(pipeline, number)
                assert "[data]" in caught.value.next_step
                data["text"] = "review"
            with shop.busy(number):
                snapshot = refresh(pipeline, number)
            for split in SPLITS:
                for text in snapshot.rows(split, ["text"])["text"]:
                    assert splits.setdefault(text, split) == split
        shop.day(NIGHTS)
        snapshot = refresh(pipeline, NIGHTS)

        with make_engine(url).connect() as connection:
            assert connection.execute(sa.text(UNACCOUNTED)).all() == []
            nights = connection.execute(sa.text("SELECT COUNT(DISTINCT night) FROM refresh_counts")).scalar()
            bad = connection.execute(
                sa.text("SELECT row_id, resolved_night IS NULL, first_night < night FROM quarantined_rows")
            ).all()
        assert nights == NIGHTS + 1
        assert {row for row, is_open, _ in bad if is_open} == shop.unusable(NIGHTS)
        assert {row for row, is_open, _ in bad if not is_open}

        expected = shop.usable(NIGHTS)
        found = {row.text: row for split in SPLITS for row in snapshot.rows(split).itertuples()}
        assert found.keys() == expected.keys()
        alone = {text: shop.rows[next(iter(ids))] for text, ids in expected.items() if len(ids) == 1}
        assert {text: (row.row_id, (1, 5)[row.label]) for text, row in found.items() if text in alone} == {
            text: (review.id, review.stars) for text, review in alone.items()
        }
