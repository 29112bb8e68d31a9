"""Nights at a glance: the lines that `nightgate history` prints, one a night, the newest at the bottom.

Nights in a row that trained nothing for the same reason are one line. A break in comparability, a promotion by hand, a
later try that broke, and why a night trained in full where others go on, have lines of their own. No line is wider than
the terminal.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len, set_cell_size

from nightgate.frames.fleet import SCORES
from nightgate.frames.reader import records
from nightgate.plain_text import printable

if TYPE_CHECKING:
    import pandas as pd

Row = Mapping[str, Any]

YEAR = 366
"""Nights that are shown unless something else is asked for."""
GAP = 2
MARKS = {"!": "alarm", "*": "promoted", "~": "labels of test rows corrected"}
UNTRAINED = {"skipped", "missed", "superseded"}
"""Nights that differ in their reason alone, such as the champion's age, are one line."""
F1, GAIN = "F1     interval", "gain champion"
ALWAYS = {"night", "status", F1, GAIN}
"""Columns that leave little room for the reason; others have to leave more."""
LEAST, ROOM = 12, 36
"""Width of the reason in a narrow terminal, and in one with more columns."""
SCORE = 6
"""Width of an F1 without its interval."""
FEWEST_BARS = 5
"""Least width of the picture of a pipeline among others."""


@dataclass(frozen=True)
class Signs:
    """What lines are drawn with."""

    bars: str
    cut: str
    rule: str
    more: str


UNICODE = Signs("▁▂▃▄▅▆▇█", "│", "┄┄┄", "…")
ASCII = Signs("_.-:=+*#", "|", "---", "...")


@dataclass(frozen=True)
class Page:
    """Width and signs of the lines."""

    width: int
    signs: Signs = UNICODE

    @classmethod
    def of_terminal(cls) -> Page:
        """The terminal's width; COLUMNS, or 120, in a file or a pipe; ASCII where its encoding has no more."""
        try:
            "".join(vars(UNICODE).values()).encode(sys.stdout.encoding)
        except (LookupError, UnicodeEncodeError):
            signs = ASCII
        else:
            signs = UNICODE
        return cls(shutil.get_terminal_size((120, 24)).columns, signs)

    def cut(self, text: str, width: int | None = None) -> str:
        width = self.width if width is None else width
        if cell_len(text) <= width:
            return text
        return set_cell_size(text, max(0, width - len(self.signs.more))).rstrip() + self.signs.more[: max(0, width)]

    def wrapped(self, text: str, indent: int = 0) -> list[str]:
        """Lines of `text`, all but the first indented."""
        from rich.console import Console
        from rich.text import Text

        if not text:
            return []
        lines = Text(printable(text)).wrap(Console(), max(1, self.width - indent), overflow="fold")
        return [f"{'':{indent if at else 0}}{line.plain.rstrip()}" for at, line in enumerate(lines)]

    def note(self, text: str) -> list[str]:
        """Lines between nights."""
        return self.wrapped(f"{self.signs.rule} {text}", len(self.signs.rule) + 1)


def glance(nights: pd.DataFrame, timeline: pd.DataFrame, page: Page, *, older: bool) -> list[str]:
    """The lines of a pipeline's nights.

    Args:
        nights: a frame of `nightgate.history`, not empty.
        timeline: its `champion_timeline`.
        older: whether there are nights before these.
    """
    rows, champions = records(nights), records(timeline)
    marks = [f"{mark} {meaning}" for mark, meaning in MARKS.items() if any(mark in _marks(row) for row in rows)]
    lines: list[str] = [
        *page.wrapped(_title(rows, champions, older=older)),
        *_picture(rows, page),
        *page.wrapped(", ".join(marks)),
        "",
        *_table(rows, champions, page),
    ]
    return [page.cut(line) for line in lines]


def fleet(pipelines: pd.DataFrame, page: Page) -> list[str]:
    """A line for each pipeline, and below them what needs attention today.

    Args:
        pipelines: as `nightgate.frames.fleet.read_fleet`.
    """
    rows = records(pipelines)
    if not rows:
        return []
    cells: dict[str, list[str]] = {}
    for row in rows:
        version = row["champion_version"]
        score = next((one for one in reversed(row["scores"]) if one is not None), None)
        values = {
            "pipeline": f"{'!' if row['needs'] else ' '} {row['pipeline']}",
            "last night": f"{row['night']} {row['status']}",
            "champion since": "" if version is None else f"{version} {row['champion_since']:%Y-%m-%d}",
            "F1": "" if score is None else f"{score:.4f}",
        }
        for name, cell in values.items():
            cells.setdefault(name, [name if cells else f"  {name}"]).append(cell)
    widths = {name: max(map(cell_len, column)) for name, column in cells.items()}
    room = page.width - sum(widths.values()) - GAP * len(widths)
    bars = [sparkline([row["scores"]], min(room, SCORES), page.signs) for row in rows]
    last = ["last nights"[:room], *bars] if room >= FEWEST_BARS else ["" for _ in (None, *bars)]
    lines = [
        f"{''.join(f'{cell:<{widths[name] + GAP}}' for name, cell in zip(cells, line, strict=True))}{bar}".rstrip()
        for *line, bar in zip(*cells.values(), last, strict=True)
    ]
    needing = [row for row in rows if row["needs"]]
    lines += ["", f"{len(needing)} of {len(rows)} need somebody today{':' if needing else ''}"]
    for row in needing:
        lines += page.wrapped(f"{row['pipeline']}: {row['needs']}", 4)
        lines += [f"  {line}" for line in page.wrapped(f"next: {row['remedy']}" if row["remedy"] else "", 4)]
    return [page.cut(line) for line in lines]


def sparkline(runs: Sequence[Sequence[float | None]], width: int, signs: Signs) -> str:
    """The numbers as bars on one scale, a cut between runs that do not compare; the mean of those that share a bar."""
    numbers = [one for run in runs for one in run if one is not None]
    if not numbers:
        return ""
    low, span = min(numbers), max(numbers) - min(numbers)
    top = len(signs.bars) - 1
    places = max(1, width - len(runs) + 1)
    shrink = max(1.0, sum(map(len, runs)) / places)

    def bar(found: Sequence[float | None]) -> str:
        known = [one for one in found if one is not None]
        if not known:
            return " "
        mean = sum(known) / len(known)
        return signs.bars[round((mean - low) / span * top) if span else top // 2]

    def bars(run: Sequence[float | None]) -> str:
        count = max(1, int(len(run) / shrink))
        edges = [place * len(run) // count for place in range(count + 1)]
        return "".join(bar(run[begin:end]) for begin, end in pairwise(edges))

    return signs.cut.join(map(bars, runs))


# --- above the table ---


def _title(rows: Sequence[Row], champions: Sequence[Row], *, older: bool) -> str:
    first, last = rows[0], rows[-1]
    count = f"{len(rows):,} night{'' if len(rows) == 1 else 's'}"
    parts = [f"{last['pipeline']}: {count}, {first['night']} to {last['night']}"]
    if champions and champions[-1]["valid_to"] is None:
        parts.append(f"champion: version {champions[-1]['model_version']} since {champions[-1]['valid_from']:%Y-%m-%d}")
    if older:
        parts.append("older ones with --since or --limit")
    return "; ".join(parts)


def _picture(rows: Sequence[Row], page: Page) -> Iterator[str]:
    """F1 over the nights, between its lowest and its highest."""
    scores = [row["test_f1"] for row in rows if row["test_f1"] is not None]
    if len(scores) < 2:
        return
    runs: list[list[float | None]] = [[]]
    for row in rows:
        if row["break_before"] and runs[-1]:
            runs.append([])
        runs[-1].append(row["test_f1"])
    head = f"F1 {min(scores):.4f} to {max(scores):.4f}  "
    yield head + sparkline(runs, page.width - len(head), page.signs)


# --- the table ---


def _table(rows: Sequence[Row], champions: Sequence[Row], page: Page) -> Iterator[str]:
    groups = list(_folded(rows))
    alone = [group[0] for group in groups if len(group) == 1]
    columns = [{name: name for name in _cells(rows[0])}, *map(_cells, alone)]
    gutter = max(len(_marks(row)) for row in rows)
    gutter += 1 if gutter else 0
    widths = _fitting({name: [cells[name] for cells in columns] for name in columns[0]}, page.width - gutter)
    room = page.width - gutter - sum(widths.values()) - GAP * len(widths)

    def line(mark: str, cells: Mapping[str, str], text: str) -> str:
        fixed = "".join(f"{cells[name][:size]:<{size + GAP}}" for name, size in widths.items())
        return f"{mark:<{gutter}}{fixed}{text}".rstrip()

    yield line("", columns[0], "reason" if room >= LEAST else "")
    starts = [group[0]["started_at"] for group in groups]
    by_hand: dict[int, list[Row]] = {}
    for one in champions:
        if one["promoted_by"] != "gate":
            before = [at for at, start in enumerate(starts) if start <= one["valid_from"]]
            by_hand.setdefault(before[-1] if before else -1, []).append(one)
    for at, group in enumerate(groups):
        first, last = group[0], group[-1]
        if first["break_before"]:
            yield from page.note(first["break_before"])
        if len(group) > 1:
            yield f"{'':<{gutter}}{first['night']} to {last['night']}: {_summary(group)}"
        else:
            yield line(_marks(first), _cells(first), _reason(first, room, page) if room >= LEAST else "")
        if len(group) == 1 and first["training"] == "full" and first["training_reason"]:
            yield from page.note(f"{first['night']} trained in full: {first['training_reason']}")
        if first["later_failure"]:
            yield from page.note(f"{first['night']}: {first['later_failure']}")
        for one in by_hand.get(at, ()):
            yield from page.note(_by_hand(one))


def _folded(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """The nights, those in a row together that are one line."""

    def key(row: Row) -> Any:
        has_news = row["test_f1"] is not None or row["alarm"] or row["break_before"] or row["later_failure"]
        if has_news or row["status"] in {"running", "waiting"}:
            return row["run_id"]
        return row["status"], "" if row["status"] in UNTRAINED else _clause(row["reason"] or "")

    return (list(group) for _, group in groupby(rows, key))


def _summary(group: Sequence[Row]) -> str:
    reasons = [row["reason"] or "" for row in group]
    text = f"{len(group):,} nights {group[0]['status']}"
    last = reasons[-1]
    return text + (f"{': ' if len(set(reasons)) == 1 else '; the last: '}{printable(last)}" if last else "")


def _by_hand(champion: Row) -> str:
    what = "rolled back to" if champion["kind"] == "rollback" else "promoted"
    who = f"{champion['valid_from']:%Y-%m-%d %H:%M} UTC: {champion['promoted_by']}"
    return f"{who} {what} version {champion['model_version']}: {champion['reason']}"


def _marks(row: Row) -> str:
    found = {"!": row["alarm"], "*": row["status"] == "promoted", "~": row["labels_corrected"]}
    return "".join(mark for mark, holds in found.items() if holds)


def _cells(row: Row) -> dict[str, str]:
    """The columns by importance; `champion` is that after the night, `champion F1` that of the one before it."""
    score, gain, theirs, seconds = (row[name] for name in ("test_f1", "f1_delta", "champion_f1", "duration_seconds"))
    low, high = row["f1_ci_low"], row["f1_ci_high"]
    champion = row["model_version" if row["status"] == "promoted" else "champion_version"]
    return {
        "night": str(row["night"]),
        "status": row["status"],
        F1: "" if score is None else f"{score:.4f}" + ("" if low is None else f" {low:.3f}-{high:.3f}"),
        GAIN: f"{'' if gain is None else f'{gain:+.4f}':<7} {_count(champion):>5}".rstrip(),
        "run": row["run_id"],
        "went on from": _count(row["started_from"]),
        "champion F1": "" if theirs is None else f"{theirs:.4f}",
        "new rows": _count(row["rows_new"]),
        "test rows": _count(row["test_rows"]),
        "candidate": _count(row["model_version"]),
        "minutes": "" if seconds is None else f"{seconds / 60:.1f}",
        "device": row["device"] or "",
        "code": row["code_version"] or "",
    }


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _fitting(cells: Mapping[str, Sequence[str]], width: int) -> dict[str, int]:
    """The columns that fit, and their widths; none that is empty."""
    found: dict[str, int] = {}
    for name, column in cells.items():
        needed, room = max(map(cell_len, column)), LEAST if name in ALWAYS else ROOM
        if name == F1 and needed + GAP + room > width:
            # The score without its interval, rather than a reason.
            needed, room = SCORE, 0
        if any(column[1:]) and needed + GAP + room <= width:
            found[name] = needed
            width -= needed + GAP
    return found


def _reason(row: Row, room: int, page: Page) -> str:
    """The reason, or as much of its first clause as there is room for, after the alarm and whether it was a dry run."""
    corrected = row["labels_corrected"]
    alarm = [f"alarm: {row['alarm']}"] if row["alarm"] else []
    alarm += ["dry run"] if row["dry_run"] else []
    labels = [f"labels of {corrected:,} test rows were corrected"] if corrected else []
    reason = row["reason"] or ""
    whole, brief = ("; ".join([*alarm, *filter(None, [text]), *labels]) for text in (reason, _clause(reason)))
    return page.cut(printable(whole if cell_len(whole) <= room else brief), room)


def _clause(reason: str) -> str:
    """The first clause that says more than the columns beside it: one with the F1s and the gain does not."""
    first, _, rest = reason.partition("; ")
    if not first.startswith("F1 "):
        return first
    if "min_f1" in first:
        return first.partition(" test rows ")[2] or first
    rule = first.rpartition(": ")[2]
    return rule if rule != first else rest.partition("; ")[0] or first
