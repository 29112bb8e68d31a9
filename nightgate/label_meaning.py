"""What a pipeline's labels mean: the column that they are read from, and the label of each value in it.

Scores, predictions and golden rows are compared only where labels mean the same, even if they have the same names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nightgate.config.values import labels_by_value

SHOWN = 5
"""Changed values that are named; the others are counted."""


@dataclass(frozen=True)
class LabelMeaning:
    column: str
    values: Mapping[str, str]
    """Label by canonical value of the column, in the order of the pipeline file."""
    classes: tuple[str, ...] = ()
    """The source's names of its class numbers, where the values are these numbers; () if it has none, or if an earlier
    release stored the snapshot, without them."""

    @classmethod
    def of(cls, data: Mapping[str, Any], classes: Sequence[str] | None = ()) -> LabelMeaning:
        """From the section `data` of a stored configuration."""
        return cls(data["label"], labels_by_value(data["labels"]), tuple(classes or ()))

    @property
    def rules(self) -> dict[str, Any]:
        """As a part of a snapshot's rules: JSON."""
        classes = {"classes": list(self.classes)} if self.classes else {}
        return {"label": self.column, "values": dict(self.values), **classes}

    def change(self, later: LabelMeaning) -> str:
        """What changed from here to `later`, as a clause; '' if labels mean the same."""
        found = []
        if self.column != later.column:
            found.append(f"the label column was {self.column!r} and is {later.column!r}")
        found += _changed("", self.values, later.values)
        if self.classes and later.classes:
            found += _changed("class ", *(dict(enumerate(names)) for names in (self.classes, later.classes)))
        more = [f"{len(found) - SHOWN:,} more"] if len(found) > SHOWN else []
        return ", ".join([*found[:SHOWN], *more])

    def flaw(self, tonight: LabelMeaning) -> str:
        """Why a model whose labels mean this cannot be scored tonight, as a clause behind its name; '' if it can."""
        own, wanted = (list(dict.fromkeys(meaning.values.values())) for meaning in (self, tonight))
        if sorted(own) != sorted(wanted):
            return (
                f"knows the labels {', '.join(own)} and the pipeline has {', '.join(wanted)}, "
                "so it cannot be scored on tonight's rows"
            )
        change = self.change(tonight)
        return f"was trained on labels that mean something else: {change}" if change else ""


def _changed(kind: str, before: Mapping[Any, str], after: Mapping[Any, str]) -> list[str]:
    def named(label: str | None) -> str:
        return "not used" if label is None else label

    return [
        f"{kind}{value!r} was {named(before.get(value))} and is {named(after.get(value))}"
        for value in dict.fromkeys([*before, *after])
        if before.get(value) != after.get(value)
    ]
