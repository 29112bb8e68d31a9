"""A page as data: headings, sentences, tables and pictures, and the two ways to write it down.

What a report says is decided once, in `report`; `as_markdown` writes it for Prefect's UI and
`html_page` for a browser. All text is escaped here and there, and nowhere else: labels, slice values and
reasons come from the data and may hold anything.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from nightgate.reports.pictures import Picture, printable

Tone = Literal["good", "bad", "warn", "calm"]


@dataclass(frozen=True)
class Mono:
    """What may be typed or pasted: names, paths, settings."""

    text: str
    href: str = ""
    """Where it lies, relative to the page; only a page on disk can lead there."""


@dataclass(frozen=True)
class Strong:
    text: str


@dataclass(frozen=True)
class Mark:
    """A word with a meaning that a colour and a sign repeat."""

    text: str
    tone: Tone

    @property
    def sign(self) -> str:
        return {"good": "✓", "bad": "✗", "warn": "!", "calm": "–"}[self.tone]


Span = str | Mono | Strong | Mark


@dataclass(frozen=True)
class Text:
    spans: tuple[Span, ...]
    kind: Literal["lead", "plain", "small"] = "plain"


@dataclass(frozen=True)
class Callout:
    """What must not be overlooked."""

    spans: tuple[Span, ...]
    tone: Tone


@dataclass(frozen=True)
class Table:
    header: Sequence[str]
    rows: Sequence[Sequence[Span]]
    numbers: bool = False
    """All columns but the first are numbers, set to the right."""
    centred: bool = False
    highlight: int | None = None
    """The row that counts."""
    brief: Sequence[int] | None = None
    """Rows that are enough where there is little room; None: all."""


@dataclass(frozen=True)
class Facts:
    """Names and values, below each other."""

    rows: Sequence[tuple[str, Sequence[Span]]]


@dataclass(frozen=True)
class Tile:
    name: str
    value: str
    detail: str = ""
    tone: Tone = "calm"


@dataclass(frozen=True)
class Tiles:
    tiles: Sequence[Tile]


@dataclass(frozen=True)
class Code:
    text: str
    language: str


Block = Text | Callout | Table | Facts | Tiles | Code | Picture


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Document:
    title: str
    status: Mark
    head: Sequence[Block]
    sections: Sequence[Section] = field(default_factory=tuple)


def as_markdown(page: Document) -> str:
    """The page as markdown, with its pictures inside as data URIs."""
    parts = [f"# {escaped(page.title)}: {escaped(page.status.text)}", *map(_block, page.head)]
    for section in page.sections:
        parts += [f"## {escaped(section.title)}", *map(_block, section.blocks)]
    return "\n\n".join(part for part in parts if part) + "\n"


# An underscore within a word, as in min_f1, means nothing, nor does a number sign but at the start of a line.
_SPECIAL = re.compile(r"[\\`*\[\]<>|~&$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_BLOCK = re.compile(r"^(\d*)(?=[-+=#.)])")


def escaped(text: str) -> str:
    """`text` as markdown that shows it as it is, on one line: neither markup nor HTML.

    By backslashes and not by entities, which one of the two UIs of Prefect shows as they are inside of tables.
    """
    return _SPECIAL.sub(lambda found: "\\" + found.group(), printable(text))


def _paragraph(text: str) -> str:
    """Markdown that begins a line without becoming a list, a heading or a rule."""
    return _BLOCK.sub(r"\1\\", text, count=1)


def _block(block: Block) -> str:
    if isinstance(block, Text):
        return _paragraph(_spans(block.spans))
    if isinstance(block, Callout):
        # Not a quotation: one of the UIs would put quotation marks around it.
        return f"**{Mark('', block.tone).sign}** {_spans(block.spans)}"
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Facts):
        return _lines(["", ""], [":--", ":--"], [[f"**{escaped(name)}**", _spans(spans)] for name, spans in block.rows])
    if isinstance(block, Tiles):
        names = [escaped(tile.name) for tile in block.tiles]
        values = [f"**{escaped(tile.value)}**" for tile in block.tiles]
        details = [escaped(tile.detail) for tile in block.tiles]
        return _lines(names, [":-:"] * len(names), [values, details])
    if isinstance(block, Code):
        fence = _fence(block.text, at_least=3)
        return f"{fence}{block.language}\n{block.text}\n{fence}"
    # The words in brackets are read aloud; brackets in them would end them.
    return f"![{escaped(block.alt)}]({block.data_uri()})"


def _table(table: Table) -> str:
    rows = [[_spans([cell]) for cell in row] for row in table.rows]
    if table.highlight is not None:
        rows[table.highlight] = [f"**{cell}**" for cell in rows[table.highlight]]
    if table.brief is not None and len(table.brief) < len(rows):
        chosen: list[list[str]] = []
        for at, place in enumerate(table.brief):
            if at and place != table.brief[at - 1] + 1:
                chosen.append(["…"] * len(table.header))
            chosen.append(rows[place])
        rows = chosen
    first, rest = (":-:", ":-:") if table.centred else (":--", "--:" if table.numbers else ":--")
    rules = [first, *[rest] * (len(table.header) - 1)]
    return _lines([escaped(name) for name in table.header], rules, rows)


def _lines(header: Sequence[str], rules: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(header)} |", f"|{'|'.join(rules)}|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)


def _spans(spans: Sequence[Span]) -> str:
    return "".join(_span(span) for span in spans)


def _span(span: Span) -> str:
    if isinstance(span, Mono):
        return _code(span.text)
    if isinstance(span, Strong):
        return f"**{escaped(span.text)}**"
    if isinstance(span, Mark):
        return f"{span.sign}\N{NO-BREAK SPACE}{escaped(span.text)}"
    return escaped_within(span)


def escaped_within(text: str) -> str:
    """As `escaped`, but blanks at either end stay: the text stands between others."""
    before, after = " " * text.startswith(" "), " " * (text.endswith(" ") and bool(text.strip()))
    return f"{before}{escaped(text)}{after}"


def _code(text: str) -> str:
    """Inline code that no back-tick in `text` ends, and no bar divides."""
    text = printable(text).replace("|", r"\|")
    fence = _fence(text, at_least=1)
    pad = " " if text.startswith("`") or text.endswith("`") or not text else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _fence(text: str, *, at_least: int) -> str:
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    return "`" * max(at_least, longest + 1)
