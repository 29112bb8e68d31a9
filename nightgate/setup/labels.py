"""The labels in a column of unknown data, in order, as a pipeline file has them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nightgate.setup.columns import Column

RARE_ROWS, RARE_SHARE = 5, 0.001
"""A value of fewer rows, and of a smaller share of them, is a typing error and no label."""
NO_LABEL = {"n/a", "na", "nan", "null", "none", "-", "?", "unknown", "unlabeled", "unlabelled"}
_SHOWN = 100
"""Characters of the labels that stand in one line."""
_RANKS = {
    word: rank
    for rank, words in enumerate(
        (
            ("very negative", "strongly negative", "very bad", "terrible", "awful", "very low"),
            ("negative", "neg", "bad", "poor", "low", "no", "false", "dislike", "ham"),
            ("neutral", "mixed", "ok", "okay", "average", "medium", "normal", "fair", "maybe"),
            ("positive", "pos", "good", "high", "yes", "true", "like", "spam"),
            (
                "very positive",
                "strongly positive",
                "very good",
                "excellent",
                "great",
                "very high",
                "critical",
                "urgent",
            ),
        )
    )
    for word in words
}
"""Ranks of words that stand for an order."""


@dataclass(frozen=True)
class Labels:
    """`data.labels`, and what is to say of it."""

    value: str
    """As TOML."""
    why: str
    comment: str
    unlabelled: float
    """The share of rows that have none of the labels."""


def labels_of(column: Column, class_names: Sequence[str] = ()) -> Labels:
    """The labels in a column that has several values.

    Args:
        class_names: what the file calls its numbers.
    """
    counts = column.labels
    if class_names:
        return Labels(_listed(class_names), "the names that the file gives its numbers", "", column.missing)
    least = min(RARE_ROWS, RARE_SHARE * counts.total())
    kept = Counter({name: count for name, count in counts.items() if count >= least and name.lower() not in NO_LABEL})
    kept = kept if len(_spellings(kept)) >= 2 else counts
    spelling = _spellings(kept)
    spelt = {name: spelling[name.casefold()] if len(spelling) >= 2 else name for name in kept}
    rows = Counter[str]()
    for name, count in kept.items():
        rows[spelt[name]] += count
    names = in_order([*rows])
    shares = [f"{name} {rows[name] / kept.total():.0%}" for name in names]
    left_out = [f"{name!r} ({count:,} rows)" for name, count in counts.items() if name not in kept]
    comments = [f"left out: {', '.join(left_out[:5])}"] if left_out else []
    if names[0] == "0" and all(map(_is_number, names)):
        comments.append('or with names: { "0" = "...", "1" = "...", ... }')
    pairs = [(name, label) for label in names for name in kept if spelt[name] == label]
    value = _listed(names) if len(pairs) == len(names) else _table(pairs)
    why = f"in order; {', '.join(shares[:8])}{', ...' if len(shares) > 8 else ''}"
    return Labels(value, why, "; ".join(comments), 1 - kept.total() / len(column.values))


def in_order(labels: Sequence[str]) -> list[str]:
    """By number, by a number in them, by an order that words stand for, or else by name."""
    for key_of in (_number, lambda label: _RANKS.get(re.sub(r"[_-]", " ", label.casefold()))):
        keys = {label: key for label in labels if (key := key_of(label)) is not None}
        if len(set(keys.values())) == len(labels):
            return sorted(labels, key=keys.__getitem__)
    return sorted(labels, key=lambda label: (label.casefold(), label))


def _number(label: str) -> float | None:
    found = re.findall(r"-?\d+(?:\.\d+)?", label)
    return float(found[0]) if len(found) == 1 else None


def _spellings(labels: Counter[str]) -> dict[str, str]:
    """By a label in lower case the spelling that most rows have: `Good` and `good` are one label."""
    best: dict[str, str] = {}
    for label, _ in labels.most_common():
        best.setdefault(label.casefold(), label)
    return best


def _is_number(name: str) -> bool:
    """Whether a label can be written as a number of TOML."""
    return bool(re.fullmatch(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?", name))


def _listed(names: Sequence[str]) -> str:
    are_plain = all(map(_is_number, names)) or set(names) == {"true", "false"}
    written = [name if are_plain else quoted(name) for name in names]
    line = f"[{', '.join(written)}]"
    return line if len(line) <= _SHOWN else "[\n" + "".join(f"    {one},\n" for one in written) + "]"


def _table(pairs: Iterable[tuple[str, str]]) -> str:
    return "{ " + ", ".join(f"{quoted(name)} = {quoted(label)}" for name, label in pairs) + " }"


def quoted(text: str) -> str:
    """A text as TOML writes it."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
