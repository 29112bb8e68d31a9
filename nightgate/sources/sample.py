"""Synthetic product reviews from a seeded grammar: the rows of `source = { kind = "sample" }`.

They are hard for the reasons that real reviews are: opinions are mixed ("the screen is superb, but the battery died"),
some praise is sarcasm, neighbouring stars overlap, and a share of the stars is wrong. No model reaches an F1 of 1.0.
A few rows are unusable or repeated, to exercise quarantine and deduplication.
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from nightgate.config.sources import SampleSource
from nightgate.schedule import Night
from nightgate.sources.source import BATCH_ROWS, Part, Plan, RawBatch
from nightgate.sources.source_table import check_columns

T = TypeVar("T")

COLUMNS = ("review_id", "text", "stars", "created_at", "product")

_STARS = (0.16, 0.13, 0.17, 0.22, 0.32)
"""Shares of reviewers who mean 1 to 5 stars."""
_PRAISE = (0.04, 0.22, 0.52, 0.80, 0.96)
"""Probability that an aspect is praised, for 1 to 5 stars."""
_WRONG_BY_ONE = 0.08
_WRONG = 0.03
_VERDICT = 0.80
_STRAY_VERDICT = 0.15
"""Probability that a verdict has the wording of a neighbouring star."""
_SARCASM = 0.05
_SHORT = 0.04
_REPEATED = 0.008
_UNUSABLE = 0.005


@cache
def _grammar() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("sample_grammar.toml").read_text(encoding="utf-8"))


class Sample:
    """The reviews of the `settings.days` days before the night, oldest day first. A day is a part.

    The rows of a day depend on the seed and the date alone, so that the next night has the same days and one more. On a
    night on which the export is broken days are missing, and stars differ; so they do once they are checked.
    """

    def __init__(self, settings: SampleSource, columns: Sequence[str], night: Night) -> None:
        check_columns(columns, COLUMNS, "the sample source")
        self._settings = settings
        self._columns = tuple(columns)
        self._until = night.data_until.astimezone(UTC)
        self._since = self._until - timedelta(days=settings.days)
        today = self._until.date()
        self._broken = today in settings.broken_on
        self._checked = settings.checked_from is not None and settings.checked_from <= today

    def plan(self, before: Mapping[str, Any] | None) -> Plan:
        days = [self._since.date() + timedelta(days=offset) for offset in range(self._settings.days + 1)]
        if self._broken:
            days = [day for day in days if day.toordinal() % 2]
        return Plan.of((Part(day.isoformat(), self._version(day)) for day in days), before)

    def _version(self, day: date) -> str:
        settings = f"{self._settings.seed}-{self._settings.rows_per_day}-{self._broken}-{self._checked}"
        # The first and the last day are read in part.
        ends = [f"{end:%H%M%S%f}" for end in (self._since, self._until) if end.date() == day]
        return "-".join([settings, *ends])

    def read(self, part: Part) -> Iterator[RawBatch]:
        day = _day(self._settings, date.fromisoformat(part.name), checked=self._checked)
        rows = [row for row in day if self._since <= row[3] < self._until]
        if self._broken:
            rows = [(row[0], row[1], row[2] - 1, *row[3:]) for row in rows]
        for first in range(0, len(rows), BATCH_ROWS):
            values = dict(zip(COLUMNS, zip(*rows[first : first + BATCH_ROWS], strict=True), strict=True))
            table = pa.table({name: pa.array(values[name]) for name in self._columns})
            yield RawBatch(table, part.name, pa.array(range(first + 1, first + 1 + table.num_rows), pa.int64()))

    def after(self) -> dict[str, Any]:
        return {}


def sample_reviews(source: SampleSource, until: datetime) -> dict[str, list[Any]]:
    """The reviews of the `source.days` days before `until` (aware), as lists by column, oldest day first.

    `stars` is 1 to 5 (0 in a few unusable rows), `created_at` an aware datetime in UTC. The rows of a day depend on
    the seed and the date alone: the next night has the same rows and one more day.
    """
    until = until.astimezone(UTC)
    since = until - timedelta(days=source.days)
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for offset in range(source.days + 1):
        for row in _day(source, since.date() + timedelta(days=offset)):
            if since <= row[3] < until:
                for name, value in zip(COLUMNS, row, strict=True):
                    columns[name].append(value)
    return columns


def _day(source: SampleSource, day: date, *, checked: bool = False) -> list[tuple[str, str, int, datetime, str]]:
    # Only random() is used: Python guarantees its sequence for a seed in all versions, but not that of choice().
    rng = random.Random(f"nightgate sample {source.seed} {day.isoformat()}")
    midnight = datetime.combine(day, time(), tzinfo=UTC)
    rows: list[tuple[str, str, int, datetime, str]] = []
    for number in range(2 * source.rows_per_day if checked else source.rows_per_day):
        review_id = f"r{day:%Y%m%d}-{number:05d}"
        created_at = midnight + timedelta(seconds=int(rng.random() * 86_400))
        product = _pick(rng, tuple(_grammar()["products"]))
        meant = _weighted(rng, _STARS)
        text, clicked = _review(rng, product, meant), _clicked(rng, meant)
        stars = 1 + (meant if checked else clicked)
        place = rng.random()
        if place < _REPEATED and rows:
            _, text, stars, _, product = _pick(rng, rows)
        elif place > 1 - _UNUSABLE:
            text, stars = _pick(rng, (("", stars), (" &nbsp; ", stars), (text, 0)))
        rows.append((review_id, text, stars, created_at, product))
    return rows


def _clicked(rng: random.Random, meant: int) -> int:
    """The recorded stars (from 0) of a reviewer who means `meant`, sometimes wrong."""
    place = rng.random()
    if place < _WRONG:
        return int(rng.random() * 5)
    return _neighbour(rng, meant) if place < _WRONG + _WRONG_BY_ONE else meant


def _review(rng: random.Random, product: str, meant: int) -> str:
    if rng.random() < _SHORT:
        return _filled(rng, _pick(rng, _grammar()["shorts"][meant]), product)
    parts = [_filled(rng, _pick(rng, _grammar()["openings"]), product)]
    if meant <= 1 and rng.random() < _SARCASM * 2:
        parts.append(_filled(rng, _pick(rng, _grammar()["sarcasms"]), product))
    aspects = list(_grammar()["products"][product].items())
    for _ in range(2 - int(rng.random() < 0.35) + int(rng.random() < 0.15)):
        if len(aspects) >= 2:
            first, second = (aspects.pop(int(rng.random() * len(aspects))) for _ in range(2))
            parts.append(_opinions(rng, meant, first, second))
    if rng.random() < 0.35:
        parts.append(_filled(rng, _pick(rng, _grammar()["facts"]), product))
    if rng.random() < _VERDICT:
        worded = _neighbour(rng, meant) if rng.random() < _STRAY_VERDICT else meant
        verdict = _filled(rng, _pick(rng, _grammar()["verdicts"][worded]), product)
        parts.insert(0 if rng.random() < 0.3 else len(parts), verdict)
    return _as_typed(rng, [part for part in parts if part])


def _opinions(
    rng: random.Random,
    meant: int,
    first: tuple[str, Sequence[Sequence[str]]],
    second: tuple[str, Sequence[Sequence[str]]],
) -> str:
    praised = [rng.random() < _PRAISE[meant] for _ in range(2)]
    frame = _pick(rng, _grammar()["agreeing"] if praised[0] == praised[1] else _grammar()["opposed"])
    words = [_pick(rng, both[0 if good else 1]) for (_, both), good in zip((first, second), praised, strict=True)]
    sentence = frame.format(first[0], words[0], second[0], words[1])
    # Each sentence begins with a capital; aspects are in lower case.
    return ". ".join(piece[:1].upper() + piece[1:] for piece in sentence.split(". "))


def _as_typed(rng: random.Random, parts: Sequence[str]) -> str:
    """The parts joined as in real reviews: mostly clean, some in capitals, some careless, some with HTML."""
    place = rng.random()
    if place < 0.03:
        return "<br />".join(parts).replace(" and ", " &amp; ")
    text = " ".join(parts)
    if place < 0.06:
        return text.upper()
    if place < 0.14:
        return text.lower().replace(",", "").replace("'", "")
    if place < 0.17:
        return text.replace(". ", "...  ").rstrip(".") + " :)"
    return text


def _filled(rng: random.Random, text: str, product: str) -> str:
    if "{" not in text:
        return text
    values = {name: _pick(rng, words) for name, words in _grammar()["words"].items()}
    noun = _grammar()["nouns"].get(product, product)
    return text.format(product=noun, days=2 + int(rng.random() * 90), count=2 + int(rng.random() * 8), **values)


def _neighbour(rng: random.Random, star: int) -> int:
    return min(4, max(0, star + (1 if rng.random() < 0.5 else -1)))


def _pick(rng: random.Random, options: Sequence[T]) -> T:
    return options[int(rng.random() * len(options))]


def _weighted(rng: random.Random, weights: Sequence[float]) -> int:
    place = rng.random() * sum(weights)
    for index, weight in enumerate(weights):
        place -= weight
        if place < 0:
            return index
    return len(weights) - 1
