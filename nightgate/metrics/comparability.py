"""Comparability of scores: breaks in a pipeline's history, and bridges over them.

Two scores are comparable if they share test version, test window, labels and their meaning, average and metric
definition. A change of any of these is a break. A model that was scored on both sides is a bridge: its two scores show
the shift in scale.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date

from nightgate.config.values import duration
from nightgate.label_meaning import LabelMeaning

METRIC_DEFINITION = 1
"""Incremented whenever the meaning of all stored scores changes, such as their average or their rows."""
PREDICTED_CLASSES = "-predicted"
"""End of the key of nights whose stored macro scores also average classes that were predicted but have no true rows."""


def metric_key(
    test_version: str, label_names: Iterable[str], average: str, test_window: str, min_test_rows: int
) -> str:
    """The key of comparable scores, `m-` and 12 hex digits; the order of the labels does not matter."""
    window = _window(test_window, min_test_rows)
    facts = [METRIC_DEFINITION, test_version, sorted(label_names), average, window]
    return f"m-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]}"


def averages_predicted_classes(key: str | None) -> bool:
    """Whether the stored macro scores with this key also average classes that have no true rows."""
    return key is not None and key.endswith(PREDICTED_CLASSES)


@dataclass(frozen=True)
class ScoredNight:
    """The scores of a night and the settings they were measured with."""

    night: date
    metric_key: str | None
    test_version: str | None
    label_names: tuple[str, ...]
    average: str
    test_window: str
    """From [gate] on that night, as `min_test_rows`."""
    min_test_rows: int
    model_version: int | None = None
    test_f1: float | None = None
    champion_version: int | None = None
    champion_f1: float | None = None
    meaning: LabelMeaning | None = None


@dataclass(frozen=True)
class Bridge:
    """A version's F1 on the nearest nights on both sides of a break, which shows the shift in scale."""

    version: int
    before: float
    before_night: date
    after: float
    after_night: date
    as_candidate: bool
    """Whether `before` is the score that promoted the version, and therefore likely too high."""

    def __str__(self) -> str:
        candidate = ", as the candidate" if self.as_candidate else ""
        was = f"{self.before:.4f} before{candidate} (night {self.before_night})"
        return f"version {self.version}: {was}, {self.after:.4f} after (night {self.after_night})"


@dataclass(frozen=True)
class Break:
    """Why the scores from a night on do not compare with those before it. As text it is a sentence."""

    changed: str
    bridge: Bridge | None

    def __str__(self) -> str:
        bridge = self.bridge or "no version was scored on both sides"
        return f"scores are not comparable with earlier ones: {self.changed}; {bridge}"


def changes(before: ScoredNight, after: ScoredNight) -> str:
    """Why the scores of two nights are not comparable; '' where they are."""
    found = []
    if before.test_version != after.test_version:
        found.append(f"the test version was {before.test_version} and is {after.test_version}")
    if set(before.label_names) != set(after.label_names):
        found.append(f"the labels were {', '.join(before.label_names)} and are {', '.join(after.label_names)}")
    elif before.meaning and after.meaning and (change := before.meaning.change(after.meaning)):
        found.append(f"labels mean something else: {change}")
    if before.average != after.average:
        found.append(f"the average was {before.average} and is {after.average}")
    if (was := _window_text(before)) != (now := _window_text(after)):
        found.append(f"the test window was {was} and is {now}")
    if not found and before.metric_key != after.metric_key:
        classes = {True: "predicted classes without true rows too", False: "classes with true rows only"}
        over = [classes[averages_predicted_classes(night.metric_key)] for night in (before, after)]
        if over[0] != over[1]:
            found.append(f"the macro average was over {over[0]} and is over {over[1]}")
        else:
            found.append("another version of Nightgate defines the metrics differently")
    return "; ".join(found)


def _window_text(night: ScoredNight) -> str:
    window = _window(night.test_window, night.min_test_rows)
    return f"{window[0]:g}d (at least {night.min_test_rows:,} rows)" if window else "all rows"


def _window(test_window: str, min_test_rows: int) -> list[float]:
    """Days and least rows of a test window, equal for equal rows: '2w' is '14d'; [] for all rows."""
    length = duration(test_window)
    return [length.total_seconds() / 86_400, min_test_rows] if length else []


def breaks(nights: Sequence[ScoredNight]) -> list[Break | None]:
    """For each night, in order, the break before it, or None."""
    starts = [at for at in range(1, len(nights)) if changes(nights[at - 1], nights[at])]
    found: list[Break | None] = [None] * len(nights)
    for place, at in enumerate(starts):
        before = nights[starts[place - 1] if place else 0 : at]
        after = nights[at : starts[place + 1] if place + 1 < len(starts) else len(nights)]
        found[at] = Break(changes(nights[at - 1], nights[at]), _bridge(before, after))
    return found


def _bridge(before: Sequence[ScoredNight], after: Sequence[ScoredNight]) -> Bridge | None:
    """The scores of the first version that was scored on both sides, on the nearest nights."""
    for later in after:
        version = later.champion_version
        if version is None or later.champion_f1 is None:
            continue
        for earlier in reversed(before):
            was = None
            if earlier.champion_version == version:
                was = earlier.champion_f1
            as_candidate = was is None and earlier.model_version == version
            was = earlier.test_f1 if as_candidate else was
            if was is not None:
                return Bridge(version, was, earlier.night, later.champion_f1, later.night, as_candidate)
    return None
