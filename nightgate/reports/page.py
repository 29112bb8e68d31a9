"""A report as data: sections of sentences, tables and pictures, which templates write as HTML and as Markdown.

Text comes from data and may hold anything; the templates escape all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeVar

from nightgate.reports.pictures import Picture

Tone = Literal["good", "bad", "warn", "calm"]
T = TypeVar("T")


@dataclass(frozen=True)
class Code:
    """Something to type or paste: a name, a path, a setting."""

    text: str
    href: str = ""
    """Relative to the HTML file; Markdown shows no link."""


@dataclass(frozen=True)
class Strong:
    text: str


@dataclass(frozen=True)
class Mark:
    """A word whose meaning a colour and a sign repeat."""

    text: str
    tone: Tone

    @property
    def sign(self) -> str:
        return {"good": "✓", "bad": "✗", "warn": "!", "calm": "–"}[self.tone]


Span = str | Code | Strong | Mark
Spans = Sequence[Span]


@dataclass(frozen=True)
class Text:
    spans: Spans
    size: Literal["lead", "plain", "small"] = "plain"


@dataclass(frozen=True)
class Callout:
    """A sentence that must not be overlooked."""

    spans: Spans
    mark: Mark


@dataclass(frozen=True)
class Table:
    header: Sequence[str]
    rows: Sequence[Sequence[Span]]
    align: Literal["left", "right", "centre"] = "left"
    """Of all columns but the first, which is on the left unless all are centred."""
    brief_rows: Sequence[Sequence[Span]] | None = None
    """Rows for Markdown, where there is less room; None: all."""


@dataclass(frozen=True)
class Facts:
    """Names and values, one a line."""

    rows: Sequence[tuple[str, Spans]]


@dataclass(frozen=True)
class Tile:
    name: str
    value: str
    detail: str = ""
    tone: Tone = "calm"


@dataclass(frozen=True)
class Tiles:
    """The figures at the head of a report."""

    tiles: Sequence[Tile]


@dataclass(frozen=True)
class Query:
    sql: str


Block = Text | Callout | Table | Facts | Tiles | Query | Picture


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        return self.title.lower().replace(" ", "-")


@dataclass(frozen=True)
class Page:
    title: str
    status: Mark
    head: Sequence[Block]
    sections: Sequence[Section] = ()


_TONES: dict[Tone, str] = {
    "good": "promoted passed",
    "bad": "failed missed",
    "warn": "held waiting cancelled underpowered warning",
}


def mark(state: str) -> Mark:
    """The status of a run or an attempt, or the outcome of a check."""
    tone: Tone = next((tone for tone, states in _TONES.items() if state in states.split()), "calm")
    return Mark(state.replace("_", " "), tone)


def score(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4f}"


def gap(value: float | None) -> str:
    return "n/a" if value is None else f"{value:+.4f}"


def number(value: int | None) -> str:
    return "n/a" if value is None else f"{value:,}"


def percent(share: float) -> str:
    return f"{share:.1%}"


def rows(count: int | None) -> str:
    return "n/a" if count is None else f"{count:,} row{'' if count == 1 else 's'}"


def duration(seconds: float | None) -> str:
    """The two largest units, such as '2 min 6 s'."""
    if seconds is None:
        return "n/a"
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def moment(at: datetime | None) -> str:
    return "n/a" if at is None else f"{at:%Y-%m-%d %H:%M} UTC"


def first_of(values: Sequence[T], limit: int, what: str) -> tuple[Sequence[T], list[Block]]:
    """The first `limit` values, and a sentence that says how many there are if some are left out."""
    if len(values) <= limit:
        return values, []
    return values[:limit], [Text((f"The first {limit} of {len(values):,} {what}.",), "small")]


def unstated(sentence: str, stated: str | None) -> str:
    """The clauses of `sentence`, divided by '; ', that `stated` does not contain."""
    return "; ".join(clause for clause in sentence.split("; ") if clause not in (stated or ""))
