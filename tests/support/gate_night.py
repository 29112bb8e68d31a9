"""Constructed evidence of two classes of equal size and errors, so that F1 is the share of correct rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightgate.gate.decision import Check, Decision
from nightgate.gate.evidence import Evidence, Rows, Serving, Side, Slice

TONIGHT = datetime(2026, 3, 2, 3, 15, tzinfo=UTC)
YESTERDAY = TONIGHT - timedelta(days=1)
DAY = 86_400_000_000
UNTIL = round(TONIGHT.timestamp()) * 1_000_000
SERVED = Serving(rows=64, logit_difference=1e-6, latency_ms=4.0, size_bytes=90_000_000)


def rows(num_rows: int = 2000, slices: Sequence[Slice] = (), groups: NDArray[np.int64] | None = None) -> Rows:
    """Rows of alternating classes, all from the last day."""
    assert num_rows % 2 == 0, num_rows
    return Rows(
        true=np.arange(num_rows) % 2,
        seen_at=UNTIL - 1 - np.arange(num_rows),
        fingerprints=tuple(f"{at:08x}{0:024x}" for at in range(num_rows)),
        groups=groups,
        slices=tuple(slices),
    )


def labels(of: Rows, share_right: float, first_error: float = 0.0) -> NDArray[np.int64]:
    """Predictions whose errors are consecutive rows of each class from `first_error` (a share of its rows) on.

    With the same `first_error` the better model is right wherever the worse one is.
    """
    half = len(of) // 2
    place = (np.arange(len(of)) // 2 - round(first_error * half)) % half
    wrong = place < round((1 - share_right) * half)
    return np.where(wrong, 1 - of.true, of.true)


def side(of: Rows, share_right: float, golden: Rows | None = None, first_error: float = 0.0, **changes: Any) -> Side:
    facts: dict[str, Any] = {
        "predictions": labels(of, share_right, first_error),
        "data_until": YESTERDAY,
        "golden": None if golden is None else labels(golden, share_right, first_error),
        "trained_on": np.zeros(len(of), dtype=np.bool_),
        "calibration_error": 0.05,
        "serving": SERVED,
    }
    return Side(**(facts | changes))


def night(ours: float = 0.62, theirs: float = 0.60, test: Rows | None = None, **changes: Any) -> Evidence:
    """A candidate against version 3, which is the champion and the anchor."""
    test, golden = rows() if test is None else test, rows(100)
    champion = side(test, theirs, golden, version=3)
    whole = Evidence(
        label_names=("bad", "good"),
        test_version="t-0123456789",
        data_until=TONIGHT,
        test=test,
        candidate=side(test, ours, golden, data_until=TONIGHT),
        champion=champion,
        anchor=champion,
        golden=golden,
        champion_nights=4,
    )
    return replace(whole, **changes)


def first_night(ours: float = 0.62, **changes: Any) -> Evidence:
    """A night without champion and anchor."""
    return replace(night(ours, **changes), champion=None, anchor=None, champion_nights=None)


def of_candidate(evidence: Evidence, **changes: Any) -> Evidence:
    return replace(evidence, candidate=replace(evidence.candidate, **changes))


def of_champion(evidence: Evidence, **changes: Any) -> Evidence:
    """Changes the champion, and with it an anchor that is the champion."""
    assert evidence.champion is not None
    champion = replace(evidence.champion, **changes)
    anchor = champion if evidence.anchored_by_champion else evidence.anchor
    return replace(evidence, champion=champion, anchor=anchor)


def check(decision: Decision, name: str, slice_value: str = "") -> Check:
    [found] = [check for check in decision.checks if (check.name, check.slice_value) == (name, slice_value)]
    return found


def outcomes(decision: Decision) -> dict[str, str]:
    """Outcomes by name of the checks that are not of a single slice."""
    return {check.name: check.outcome for check in decision.checks if not check.slice_name}
