"""A shop's table of reviews in PostgreSQL that is written to day and night, and what of it a snapshot must hold."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from threading import Event, Thread
from typing import Any

import psycopg

from nightgate.schedule import Night

FIRST_NIGHT = date(2026, 3, 1)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
SCHEMA = """
CREATE SCHEMA shop;
CREATE TABLE shop.reviews (
    id text PRIMARY KEY, body text, stars integer, created_at timestamptz, updated_at timestamptz NOT NULL,
    deleted_at timestamptz, due date NOT NULL);
CREATE TABLE shop.census (night date PRIMARY KEY, num_rows integer NOT NULL);
"""
"""`due` is the first night that may see the row; `census` counts the rows that a night must account for."""


@dataclass(frozen=True)
class Review:
    id: str
    body: str | None
    stars: int
    created_at: datetime | None
    updated_at: datetime
    due: date
    deleted_at: datetime | None = None

    @property
    def is_usable(self) -> bool:
        return (
            bool(self.body and self.body.strip())
            and self.stars in (1, 5)
            and self.created_at is not None
            and self.deleted_at is None
        )


def night(number: int) -> Night:
    """The night `number` days after the first, at 03:15."""
    instant = datetime(FIRST_NIGHT.year, FIRST_NIGHT.month, FIRST_NIGHT.day, 3, 15, tzinfo=UTC) + number * DAY
    return Night(instant.date(), "backfill", instant, instant)


class Shop:
    """The table, and the same rows in memory as an independent account of what was written."""

    def __init__(self, url: str, *, marks_deletions: bool, rows: int = 400, seed: int = 7) -> None:
        self.marks_deletions = marks_deletions
        self.rows: dict[str, Review] = {}
        self.texts = "body"
        self._random = random.Random(seed)
        self._number = 0
        self._connection = psycopg.connect(url, autocommit=True)
        self._url = url
        self._connection.execute(SCHEMA)  # type: ignore[arg-type]
        with self._connection.transaction():
            for _ in range(rows):
                self.add(0, age=self._hours(48, 1400))

    def close(self) -> None:
        self._connection.close()

    def day(self, number: int) -> None:
        """All that is written between the last night and this one, and the census of the night."""
        with self._connection.transaction():
            for _ in range(40):
                self.add(number, age=self._hours(0, 24))
            for _ in range(4):  # written late: with times of yesterday
                self.add(number, age=self._hours(24, 46))
            for _ in range(6):
                self.change(number, body=self._body())
            for _ in range(3):
                self.change(number, stars=self._random.choice((1, 5)))
            for _ in range(5):
                self.change(number)  # nothing but its time
            for _ in range(5):  # a text that is there already, now and then with another opinion
                other = self._random.choice(list(self.rows.values()))
                self.add(number, age=self._hours(0, 24), body=other.body, stars=self._random.choice((1, 5)))
            for bad in ({"body": None}, {"body": " \t"}, {"stars": 9}, {"created_at": None}):
                self.add(number, age=self._hours(0, 24), **bad)
            for _ in range(2):  # a row whose time has not come
                self.add(number + 2, age=self._hours(1, 20), updated_at=night(number).data_until - HOUR)
            for review in [review for review in self.rows.values() if review.stars == 9 and not review.deleted_at][:2]:
                self.change(number, review, stars=5)
            for _ in range(4):
                self.remove(number)
            count = "SELECT %s, COUNT(*) FROM shop.reviews WHERE due <= %s"
            self._connection.execute(f"INSERT INTO shop.census {count}", (night(number).date,) * 2)

    @contextmanager
    def busy(self, number: int) -> Iterator[None]:
        """Writes of customers while the night reads, and a transaction that began before it and ends after it."""
        stop = Event()

        def write() -> None:
            with psycopg.connect(self._url, autocommit=True) as connection:
                shop = self._as_seen_by(connection)
                while not stop.is_set():
                    shop.add(number + 1, age=shop._hours(1, 23))
                    shop.change(number + 1)
                    stop.wait(0.005)

        with psycopg.connect(self._url) as late:
            unseen = self._as_seen_by(late)
            unseen.rows = {}
            unseen.add(number + 1, age=self._hours(25, 30))
            writer = Thread(target=write)
            writer.start()
            try:
                yield
            finally:
                stop.set()
                writer.join()
            late.commit()
            self.rows |= unseen.rows

    def _as_seen_by(self, connection: psycopg.Connection[Any]) -> Shop:
        other = object.__new__(Shop)
        other.__dict__ = self.__dict__ | {"_connection": connection, "_random": random.Random(self._random.random())}
        other.__dict__["_prefix"] = f"{self._random.randrange(10**6)}-"
        return other

    def add(self, number: int, age: timedelta, **more: Any) -> None:
        """A review that was written `age` before the night of this number."""
        self._number += 1
        when = night(number).data_until - age
        name = f"r{getattr(self, '_prefix', '')}{self._number:05d}"
        stars = self._random.choice((1, 5))
        fields = {"body": self._body(), "stars": stars, "created_at": when, "updated_at": when} | more
        review = Review(id=name, due=night(number).date, **fields)
        self._connection.execute(
            f"INSERT INTO shop.reviews (id, {self.texts}, stars, created_at, updated_at, due) "  # type: ignore[arg-type]
            "VALUES (%s, %s, %s, %s, %s, %s)",
            (name, review.body, str(review.stars), review.created_at, review.updated_at, review.due),
        )
        self.rows[name] = review

    def change(self, number: int, review: Review | None = None, **changed: Any) -> None:
        """Another body, other stars, or nothing but another `updated_at`."""
        review = review or self._random.choice([one for one in list(self.rows.values()) if one.deleted_at is None])
        review = replace(review, updated_at=night(number).data_until - self._hours(0, 23), **changed)
        self._connection.execute(
            f"UPDATE shop.reviews SET {self.texts} = %s, stars = %s, updated_at = %s, deleted_at = %s WHERE id = %s",  # type: ignore[arg-type]
            (review.body, str(review.stars), review.updated_at, review.deleted_at, review.id),
        )
        self.rows[review.id] = review

    def remove(self, number: int) -> None:
        review = self._random.choice([one for one in self.rows.values() if one.deleted_at is None])
        if self.marks_deletions:
            self.change(number, review, deleted_at=night(number).data_until - HOUR)
        else:
            self._connection.execute("DELETE FROM shop.reviews WHERE id = %s", (review.id,))
            del self.rows[review.id]

    def alter(self) -> None:
        """A release of the shop: a column more, one of another type, one with another name."""
        self._connection.execute("ALTER TABLE shop.reviews ADD COLUMN channel text DEFAULT 'app'")
        self._connection.execute("ALTER TABLE shop.reviews ALTER COLUMN stars TYPE text")
        self._connection.execute("ALTER TABLE shop.reviews RENAME COLUMN body TO review")
        self.texts = "review"

    def usable(self, number: int) -> dict[str, set[str]]:
        """The texts that a snapshot of this night must hold, with the ids of their rows."""
        found: dict[str, set[str]] = {}
        for review in self.rows.values():
            if review.is_usable and review.created_at and review.created_at < night(number).data_until:
                found.setdefault(str(review.body), set()).add(review.id)
        return found

    def unusable(self, number: int) -> set[str]:
        """The ids of rows that a night of this number must hold in quarantine."""
        due = (review for review in self.rows.values() if review.due <= night(number).date)
        return {review.id for review in due if not (review.is_usable or review.deleted_at)}

    def _hours(self, first: float, last: float) -> timedelta:
        return self._random.uniform(first, last) * HOUR

    def _body(self) -> str:
        words = ("kettle", "lamp", "fine", "broken", "again", "late", "love", "returned", "colour", "box", "gift")
        return " ".join(self._random.choices(words, k=6)) + f" {self._random.randrange(10**6)}"
