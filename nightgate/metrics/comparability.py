"""Which scores may be compared: breaks in a pipeline's history, and bridges over them. Pure.

A score means something beside another one when both were measured on one test version, within the same test window,
over the same labels, by the same average and the same definition of the metrics. Where any of that changes, history
says so (a break); where one champion was scored on both sides of it, its two scores tell how far the scale has moved
(a bridge).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date

from nightgate.config_types import duration

METRIC_DEFINITION = 1
"""Raised with every change of what a stored score means: how it is averaged, or which rows it is measured on."""


def metric_key(
    test_version: str, label_names: Iterable[str], average: str, test_window: str, min_test_rows: int
) -> str:
    """What a run stores of it: `m-` and 12 hex digits. Labels in another order give the same scores."""
    window = _window(test_window, min_test_rows)
    facts = [METRIC_DEFINITION, test_version, sorted(label_names), average, window]
    return f"m-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]}"


@dataclass(frozen=True)
class ScoredNight:
    """What a night's scores were measured by, and those of the models that were scored."""

    night: date
    metric_key: str | None
    test_version: str | None
    label_names: tuple[str, ...]
    average: str
    test_window: str
    """As [gate] had it that night, like the next."""
    min_test_rows: int
    model_version: int | None = None
    test_f1: float | None = None
    champion_version: int | None = None
    champion_f1: float | None = None


def changes(before: ScoredNight, after: ScoredNight) -> str:
    """What makes the scores of the two incomparable, in words; '' where they may be compared."""
    told = []
    if before.test_version != after.test_version:
        told.append(f"the test version was {before.test_version} and is {after.test_version}")
    if set(before.label_names) != set(after.label_names):
        told.append(f"the labels were {', '.join(before.label_names)} and are {', '.join(after.label_names)}")
    if before.average != after.average:
        told.append(f"the average was {before.average} and is {after.average}")
    if (was := _rows(before)) != (now := _rows(after)):
        told.append(f"the test rows that count were {was} and are {now}")
    if not told and before.metric_key != after.metric_key:
        told.append("the metrics are defined otherwise by another version of Nightgate")
    return "; ".join(told)


def _rows(night: ScoredNight) -> str:
    """Which test rows its scores are of, in words."""
    if not duration(night.test_window):
        return "all"
    return f"those of {_window(night.test_window, night.min_test_rows)[0]:g}d, {night.min_test_rows:,} at least"


def _window(test_window: str, min_test_rows: int) -> list[float]:
    """What two settings have in common that take the same rows: '2w' is '14d', and all rows are never too few."""
    length = duration(test_window)
    return [length.total_seconds() / 86_400, min_test_rows] if length else []


def breaks(nights: Sequence[ScoredNight]) -> list[str | None]:
    """For each night (in their order) the sentence about the break before it, or None where scores go on."""
    starts = [at for at in range(1, len(nights)) if changes(nights[at - 1], nights[at])]
    found: list[str | None] = [None] * len(nights)
    for place, at in enumerate(starts):
        before = nights[starts[place - 1] if place else 0 : at]
        after = nights[at : starts[place + 1] if place + 1 < len(starts) else len(nights)]
        changed = changes(nights[at - 1], nights[at])
        found[at] = f"scores from here on do not compare with those before: {changed}; {_bridge(before, after)}"
    return found


def _bridge(before: Sequence[ScoredNight], after: Sequence[ScoredNight]) -> str:
    """The first version that was scored on both sides, by its nearest nights."""
    for later in after:
        version = later.champion_version
        if version is None or later.champion_f1 is None:
            continue
        told = f"{later.champion_f1:.4f} after (night {later.night})"
        for earlier in reversed(before):
            if earlier.champion_version == version and earlier.champion_f1 is not None:
                return f"version {version}: {earlier.champion_f1:.4f} before (night {earlier.night}), {told}"
            if earlier.model_version == version and earlier.test_f1 is not None:
                # It was promoted by this very score, which is likely to flatter it.
                chosen = f"{earlier.test_f1:.4f} before, as the candidate (night {earlier.night})"
                return f"version {version}: {chosen}, {told}"
    return "no version was scored on both sides"
