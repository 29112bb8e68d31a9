"""What the columns of unknown data mean: which is the text, the label, the time, each with what it was guessed from.

guess = guess_data(peek(["reviews.csv"]))
guess.lines                                  # of the table [data] of a pipeline file
"""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from nightgate.data.batches import GIVEN_NAMES
from nightgate.data.rules import SPLITS
from nightgate.errors import DataError
from nightgate.setup.columns import Column, in_order, spellings
from nightgate.setup.peek import Peek

MOST_LABELS = 200
"""Labels of a classifier; more are ids, names or numbers."""
RARE_ROWS, RARE_SHARE = 5, 0.001
"""A value of fewer rows, and of a smaller share of them, is left out of the labels."""
SLICE_VALUES, SLICE_ROWS, MOST_SLICES = 30, 50, 2
"""A slice has at most so many values, with so many rows on average; and at most so many are named."""

TEXT = ("text", "body", "review", "comment", "content", "message", "description", "sentence", "utterance", "query")
TITLE = ("title", "subject", "headline", "summary", "heading", "titel", "betreff", "titre")
LABEL = (
    *("label", "labels", "target", "class", "sentiment", "stars", "star", "rating", "ratings", "overall", "polarity"),
    *("emotion", "intent", "score", "topic", "category", "spam", "toxic", "y"),
)
TIME = (
    "created",
    "posted",
    "submitted",
    "published",
    "received",
    "sent",
    "date",
    "datetime",
    "time",
    "timestamp",
    "at",
)
UPDATED = ("updated", "modified", "changed", "edited")
ID = ("id", "ids", "uuid", "guid", "key")
SLICE = (
    *("language", "lang", "country", "locale", "region", "category", "product", "channel", "department", "market"),
    *("platform", "brand", "segment", "shop", "store", "division", "source", "type"),
)


@dataclass
class Guess:
    """Fields of a pipeline file, and what they were guessed from."""

    lines: list[str] = field(default_factory=list)
    """Lines of `[data]` but for its source, in order; alternatives as comments."""
    tables: list[str] = field(default_factory=list)
    """Further tables."""
    notes: list[str] = field(default_factory=list)
    """What was guessed, and from what."""

    def add(self, name: str, value: str, why: str, *comments: str) -> None:
        """A field; comments hold alternatives."""
        comment = "; ".join(filter(None, comments))
        self.lines.append(f"{name} = {value}" + (f"  # {comment}" if comment else ""))
        self.notes.append(f"{name} = {value}: {why}")


def guess_data(peek: Peek, *, text: str = "", label: str = "") -> Guess:
    """Guess which column is what.

    Args:
        text, label: columns that are known; '' to guess them.

    Raises:
        DataError: no column can be the text or the label.
    """
    columns = {name: Column(name, values) for name, values in peek.columns.items()}
    left = [column for column in columns.values() if not column.is_constant or column.name in (text, label)]
    guess = Guess()
    texts = _guess_text(guess, left, _named(columns, text) if text else None, label)
    left = [column for column in left if column not in texts]
    times = [column for column in left if column.time_formats and _is_likely_time(column) and column.name != label]
    split = _guess_split(guess, left)
    others = [column for column in left if column not in times and column is not split]
    chosen = _guess_label(guess, peek, others, _named(columns, label) if label else None)
    others = [column for column in others if column is not chosen]
    _guess_time(guess, times)
    unique = _guess_id(guess, others)
    _guess_slices(guess, [column for column in others if column is not unique])
    constant = [f"{one.name} ({next(iter(one.counts), 'empty')[:20]!r})" for one in columns.values() if one.is_constant]
    if constant:
        guess.notes.append(f"not used: {', '.join(constant)}: the same in all rows")
    return guess


def _named(columns: dict[str, Column], name: str) -> Column:
    if name in columns:
        return columns[name]
    near = difflib.get_close_matches(name, columns, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise DataError(f"there is no column {name!r}{hint}", next_step=f"name one of {', '.join(columns)}")


def _rank(column: Column, hints: Sequence[str]) -> int:
    """How well a name says what a column is: the place of the hint, whole names before words of them; else a lot."""
    name = column.name.lower()
    places = [place for place, hint in enumerate(hints) if hint in column.words or hint in name.split("_")]
    return hints.index(name) if name in hints else len(hints) + min(places, default=len(hints))


def _is_hinted(column: Column, hints: Sequence[str]) -> bool:
    return _rank(column, hints) < 2 * len(hints)


def _quoted(names: Iterable[str]) -> str:
    return " or ".join(json.dumps(name, ensure_ascii=False) for name in names)


# --- text ---


def _guess_text(guess: Guess, columns: Sequence[Column], known: Column | None, label: str) -> list[Column]:
    prose = [one for one in columns if one.is_prose and not one.time_formats and one.name != label]
    prose = prose or [one for one in columns if one.is_of_text and _is_hinted(one, TEXT) and one.distinct > 0.05]
    if known is None and not prose:
        raise DataError(
            f"no column holds texts of several words; there are {', '.join(one.name for one in columns) or 'none'}",
            next_step="name the column: nightgate init FILE --text COLUMN",
        )
    body = known or max(prose, key=lambda one: one.length * one.distinct * (2 if _is_hinted(one, TEXT) else 1))
    why = f"{body.length:,.0f} characters on average, {len(body.counts):,} of {len(body.given):,} distinct"
    titles = [one for one in columns if one is not body and one.is_of_text and _is_hinted(one, TITLE)]
    titles = [one for one in titles if known is None and one.distinct > 0.05 and one.name != label][:1]
    others = [one for one in prose if one not in (body, *titles) and one.length > body.length / 4]
    alternative = f"or more columns, which are joined: {_quoted(one.name for one in others)}" if others else ""
    if titles:
        names = [titles[0].name, body.name]
        alternative = "; ".join(filter(None, (f"or {_quoted([body.name])} alone", alternative)))
        guess.add(
            "text",
            json.dumps(names, ensure_ascii=False),
            f"{body.name!r} has {why}; {names[0]!r} is its title",
            alternative,
        )
        return [*titles, body]
    guess.add("text", _quoted([body.name]), why, alternative)
    return [body]


# --- label ---


def _guess_label(guess: Guess, peek: Peek, columns: Sequence[Column], known: Column | None) -> Column:
    last = {column.name: -place for place, column in enumerate(columns)}

    def order(column: Column) -> tuple[int, int, int]:
        """By name; of columns whose names say nothing, those that are no likely slice, the last one first."""
        return _rank(column, LABEL), _is_hinted(column, SLICE), last[column.name]

    hinted = sorted((one for one in columns if _is_hinted(one, LABEL)), key=order)
    fitting = [one for one in columns if one.may_be_label and len(one.labels) <= MOST_LABELS]
    candidates = sorted((one for one in fitting if not (one.is_prose or _is_hinted(one, ID))), key=order)
    best = known or next((one for one in (*hinted[:1], *candidates)), None)
    if best is None:
        raise DataError(
            "no column holds labels: values that come again, such as stars or categories",
            next_step="add one to the data, or name it: nightgate init FILE --label COLUMN",
        )
    if best.is_constant or best not in fitting:
        count = len(best.labels)
        few = "only one value" if best.is_constant else f"{count:,} different values in {len(best.given):,} rows"
        others = [one.name for one in candidates if one is not best]
        raise DataError(
            f"column {best.name!r} holds {few}: a classifier needs 2 to {MOST_LABELS} labels, each with several rows",
            next_step=f"name another column: nightgate init FILE --label {others[0] if others else 'COLUMN'}; "
            "or group its values in the data",
        )
    others = [f"{_quoted([one.name])} ({len(one.labels)} values)" for one in candidates if one is not best]
    values = len(best.labels)
    why = f"{values} values in {len(best.given):,} rows"
    guess.add("label", _quoted([best.name]), why, f"or {', '.join(others[:4])}" if others else "")
    _guess_labels(guess, peek.class_names.get(best.name, []), best)
    if share := best.missing:
        guess.notes.append(f"{share:.1%} of the rows have no label, and are quarantined")
    if share > 0.03:
        limit = min(1.0, round(share + 0.1, 1))
        guess.tables.append(f"[data.checks]\nmax_quarantined = {limit}  # {share:.0%} of the rows have no label")
    return best


def _guess_labels(guess: Guess, class_names: Sequence[str], column: Column) -> None:
    counts = column.labels
    if class_names:
        guess.add(
            "labels", json.dumps(list(class_names), ensure_ascii=False), "the names that the file gives its numbers"
        )
        return
    rare = {name: count for name, count in counts.items() if count < RARE_ROWS and count < RARE_SHARE * counts.total()}
    if len(counts) - len(rare) >= 2:
        counts = Counter({name: count for name, count in counts.items() if name not in rare})
    else:
        rare = {}
    as_one = dict(spellings(counts))
    names = in_order(list(dict.fromkeys(as_one.values())))
    if len(names) < 2:
        as_one, names = {name: name for name in counts}, in_order(list(counts))
    left_out = f"left out: {', '.join(f'{name!r} ({count} rows)' for name, count in rare.items())}" if rare else ""
    shares = ", ".join(
        f"{name} {sum(counts[one] for one in as_one if as_one[one] == name) / counts.total():.0%}" for name in names[:8]
    )
    is_number = all(map(_is_number, names))
    if len(names) < len(as_one):
        pairs = [(one, name) for name in names for one in as_one if as_one[one] == name]
        value = "{ " + ", ".join(f"{_quoted([one])} = {_quoted([name])}" for one, name in pairs) + " }"
    else:
        value = (
            "[" + ", ".join(name if is_number or name in ("true", "false") else _quoted([name]) for name in names) + "]"
        )
    rename = 'or with names: { "0" = "...", "1" = "...", ... }' if is_number and names[0] == "0" else ""
    guess.add("labels", value, f"in order; {shares}" + (", ..." if len(names) > 8 else ""), left_out, rename)


def _is_number(name: str) -> bool:
    """Whether a label can be written as a number of TOML."""
    return bool(re.fullmatch(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?", name))


# --- time, id, split, slices ---


def _is_likely_time(column: Column) -> bool:
    """Numbers may be ids, so that their name must say that they are times."""
    return column.time_formats[0] not in ("epoch_s", "epoch_ms") or _is_hinted(column, (*TIME, *UPDATED, "ts"))


def _guess_time(guess: Guess, columns: Sequence[Column]) -> None:
    if not columns:
        guess.lines.append("# time: no column holds times, so that a late night sees the rows as they are when it runs")
        return
    best = min(columns, key=lambda one: (_is_hinted(one, UPDATED), one.missing > 0.05, _rank(one, TIME)))
    name, others = best.time_formats[0], [one.name for one in columns if one is not best]
    first, last = min(best.counts), max(best.counts)
    why = f"all are times, such as {first!r} and {last!r}" + (f"; {best.missing:.1%} are empty" if best.missing else "")
    guess.add("time", _quoted([best.name]), why, f"or {_quoted(others)}" if others else "")
    if name:
        swapped = next((one for one in best.time_formats[1:] if sorted(one) == sorted(name)), "")
        also = f"or {_quoted([swapped])}, in which they can be read too" if swapped else ""
        guess.add("time_format", json.dumps(name), f"as in {best.given[0]!r}", also)
    if not best.names_a_zone(name):
        guess.add("timezone", '"UTC"', "assumed, because the times name none", "of times that name none")


def _guess_id(guess: Guess, columns: Sequence[Column]) -> Column | None:
    ids = [one for one in columns if _is_hinted(one, ID) and not any(isinstance(value, float) for value in one.given)]
    unique = [one for one in ids if one.distinct == 1 and not one.missing]
    best = min(unique, key=lambda one: _rank(one, ID), default=None)
    if best:
        others = [one.name for one in unique if one is not best]
        guess.add("id", _quoted([best.name]), "different in every row", f"or {_quoted(others)}" if others else "")
    repeated = [one.name for one in ids if one not in unique and not one.is_constant and one.distinct > 0.001]
    if repeated:
        guess.lines.append(f"# group = {_quoted(repeated)}  # would keep all rows of one on one side of the split")
    return best


def _guess_split(guess: Guess, columns: Sequence[Column]) -> Column | None:
    for column in columns:
        names = {GIVEN_NAMES.get(value.casefold()) for value in column.counts} if len(column.counts) <= 6 else set()
        if names == set(SPLITS):
            guess.tables.append(f"[split]\ncolumn = {_quoted([column.name])}")
            guess.notes.append(f"split.column = {_quoted([column.name])}: it holds {', '.join(column.counts)}")
            return column
    return None


def _guess_slices(guess: Guess, columns: Sequence[Column]) -> None:
    def may_be(column: Column) -> bool:
        few = 2 <= len(column.counts) <= SLICE_VALUES and len(column.given) >= SLICE_ROWS * len(column.counts)
        return few and column.is_of_text and column.name != "label"

    found = sorted(filter(may_be, columns), key=lambda one: _rank(one, SLICE))
    best = [one for one in found if _is_hinted(one, SLICE)][:MOST_SLICES]
    others = [one.name for one in found if one not in best]
    value = json.dumps([one.name for one in best], ensure_ascii=False)
    also = f"or {_quoted(others[:4])}" if others else ""
    if best:
        counts = ", ".join(f"{one.name} has {len(one.counts)} values" for one in best)
        guess.add("slices", value, f"metrics are broken down by them; {counts}", also)
    elif others:
        guess.lines.append(f"# slices = [{_quoted(others[:1])}]  # would break metrics down by it")
