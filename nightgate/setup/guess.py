"""What the columns of unknown data mean: which is the text, the label, the time, each with what it was guessed from.

guess = guess_data(peek(["reviews.csv"]))
guess.lines                                  # of the table [data] of a pipeline file
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from nightgate.data.batches import GIVEN_NAMES
from nightgate.data.rules import SPLITS
from nightgate.errors import DataError
from nightgate.setup.columns import Column
from nightgate.setup.labels import labels_of, quoted
from nightgate.setup.peek import Peek

MOST_LABELS = 200
"""Labels of a classifier; more are ids, names or numbers."""
SLICE_VALUES, SLICE_ROWS, MOST_SLICES = 30, 50, 2
"""A slice has at most so many values, with so many rows on average; and at most so many are named."""

TEXT = ("text", "body", "review", "comment", "content", "message", "description", "sentence", "utterance", "query")
TITLE = ("title", "subject", "headline", "summary", "heading", "titel", "betreff", "titre")
LABEL = (
    *("label", "labels", "target", "class", "sentiment", "stars", "star", "rating", "ratings", "overall", "polarity"),
    *("emotion", "intent", "score", "topic", "category", "spam", "toxic", "y"),
)
TIME = (
    *("created", "posted", "submitted", "published", "received", "sent"),
    *("date", "datetime", "time", "timestamp", "at"),
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
        shown = " ".join(value.split())
        self.notes.append(f"{name} = {shown if len(shown) <= 100 else f'{shown[:100]}...'}: {why}")


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


def _either(names: Iterable[str]) -> str:
    return " or ".join(map(quoted, names))


def _array(names: Iterable[str]) -> str:
    return f"[{', '.join(map(quoted, names))}]"


# --- text ---


def _guess_text(guess: Guess, columns: Sequence[Column], known: Column | None, label: str) -> list[Column]:
    prose = [one for one in columns if one.is_prose and not one.time_formats and one.name != label]
    prose = prose or [one for one in columns if one.is_of_text and _is_hinted(one, TEXT) and one.distinct > 0.05]
    if known is None and not prose:
        raise DataError(
            f"of {len(columns)} columns with different values none holds texts of several words",
            next_step="name the column: nightgate init FILE --text COLUMN",
        )
    body = known or max(prose, key=lambda one: one.length * one.distinct * (2 if _is_hinted(one, TEXT) else 1))
    why = f"{body.length:,.0f} characters on average, {len(body.counts):,} of {len(body.given):,} distinct"
    titles = [one for one in columns if one is not body and one.is_of_text and _is_hinted(one, TITLE)]
    titles = [one for one in titles if known is None and one.distinct > 0.05 and one.name != label][:1]
    others = [one for one in prose if one not in (body, *titles) and one.length > body.length / 4]
    alternative = f"or more columns, which are joined: {_either(one.name for one in others)}" if others else ""
    if titles:
        names = [titles[0].name, body.name]
        why = f"{body.name!r} has {why}; {names[0]!r} is its title"
        guess.add("text", _array(names), why, f"or {quoted(body.name)} alone", alternative)
        return [*titles, body]
    guess.add("text", quoted(body.name), why, alternative)
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
    # A column that is called exactly so is meant, even where it cannot be used.
    exact = [one for one in hinted[:1] if one.name.lower() in LABEL]
    best = known or next(iter((*exact, *candidates, *hinted)), None)
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
    likely = [one for one in candidates if one is not best and (_is_hinted(one, LABEL) or len(one.labels) <= 20)]
    others = [f"{quoted(one.name)} ({len(one.labels)} values)" for one in likely[:4]]
    why = f"{len(best.labels)} values in {len(best.given):,} rows"
    guess.add("label", quoted(best.name), why, f"or {', '.join(others)}" if others else "")
    labels = labels_of(best, peek.class_names.get(best.name, []))
    guess.add("labels", labels.value, labels.why, labels.comment)
    if share := labels.unlabelled:
        guess.notes.append(f"{share:.1%} of the rows have no label, and are quarantined")
    if share > 0.03:
        limit = min(1.0, math.ceil(10 * share + 0.5) / 10)
        guess.tables.append(f"[data.checks]\nmax_quarantined = {limit}  # {share:.0%} of the rows have no label")
    return best


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
    why = f"all are times, such as {str(best.given[0])!r} and {str(best.given[-1])!r}" + (
        f"; {best.missing:.1%} are empty" if best.missing else ""
    )
    guess.add("time", quoted(best.name), why, f"or {_either(others)}" if others else "")
    if name:
        swapped = next((one for one in best.time_formats[1:] if sorted(one) == sorted(name)), "")
        also = f"or {quoted(swapped)}, in which they can be read too" if swapped else ""
        guess.add("time_format", quoted(name), f"as in {best.given[0]!r}", also)
    if not best.names_a_zone(name):
        guess.add("timezone", '"UTC"', "assumed, because the times name none", "of times that name none")


def _guess_id(guess: Guess, columns: Sequence[Column]) -> Column | None:
    ids = [one for one in columns if _is_hinted(one, ID) and not any(isinstance(value, float) for value in one.given)]
    unique = [one for one in ids if one.distinct == 1 and not one.missing]
    best = min(unique, key=lambda one: _rank(one, ID), default=None)
    if best:
        others = [one.name for one in unique if one is not best]
        guess.add("id", quoted(best.name), "different in every row", f"or {_either(others)}" if others else "")
    repeated = [one.name for one in ids if one not in unique and not one.is_constant and one.distinct > 0.001]
    if repeated:
        guess.lines.append(f"# group = {_either(repeated)}  # would keep all rows of one on one side of the split")
    return best


def _guess_split(guess: Guess, columns: Sequence[Column]) -> Column | None:
    for column in columns:
        names = {GIVEN_NAMES.get(value.casefold()) for value in column.counts} if len(column.counts) <= 6 else set()
        if names == set(SPLITS):
            guess.tables.append(f"[split]\ncolumn = {quoted(column.name)}")
            guess.notes.append(f"split.column = {quoted(column.name)}: it holds {', '.join(column.counts)}")
            return column
    return None


def _guess_slices(guess: Guess, columns: Sequence[Column]) -> None:
    def may_be(column: Column) -> bool:
        few = 2 <= len(column.counts) <= SLICE_VALUES and len(column.given) >= SLICE_ROWS * len(column.counts)
        return few and column.is_of_text and column.name != "label" and not all(map(str.isdigit, column.counts))

    found = sorted(filter(may_be, columns), key=lambda one: _rank(one, SLICE))
    best = [one for one in found if _is_hinted(one, SLICE)][:MOST_SLICES]
    others = [one.name for one in found if one not in best]
    value = _array(one.name for one in best)
    also = f"or {_either(others[:4])}" if others else ""
    if best:
        counts = ", ".join(f"{one.name} has {len(one.counts)} values" for one in best)
        guess.add("slices", value, f"metrics are broken down by them; {counts}", also)
    elif others:
        guess.lines.append(f"# slices = {_array(others[:1])}  # would break metrics down by it")
