"""Complete random evidence of one night, drawn from a seed."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightgate.gate.evidence import Evidence, Rows, Serving, Side, Slice

TONIGHT = datetime(2026, 3, 1, 3, 15, tzinfo=UTC)
LABELS = ("bad", "fair", "good")
DAY = 86_400_000_000


def rows(num_rows: int, seed: int = 0, *, days: int = 60, num_groups: int = 0, labels: int = 3) -> Rows:
    """Rows spread evenly over the `days` before tonight, with one slice."""
    rng = np.random.default_rng(seed)
    until = round(TONIGHT.timestamp()) * 1_000_000
    return Rows(
        true=rng.integers(0, labels, num_rows),
        seen_at=until - 1 - rng.integers(0, days * DAY, num_rows),
        fingerprints=tuple(rng.bytes(16).hex() for _ in range(num_rows)),
        groups=rng.integers(0, num_groups, num_rows) if num_groups else None,
        slices=(Slice("language", ("de", "en"), rng.integers(0, 2, num_rows)),),
    )


def guesses(true: NDArray[np.int64], share_right: float, seed: int, labels: int = 3) -> NDArray[np.int64]:
    """Predictions of which `share_right` are correct, errors spread over the other labels."""
    rng = np.random.default_rng(seed)
    wrong = (true + rng.integers(1, labels, len(true))) % labels
    return np.where(rng.random(len(true)) < share_right, true, wrong)


def side(of: Rows, golden: Rows | None, share_right: float, seed: int, **changes: Any) -> Side:
    facts: dict[str, Any] = {
        "predictions": guesses(of.true, share_right, seed),
        "data_until": TONIGHT - timedelta(days=1),
        "golden": None if golden is None else guesses(golden.true, share_right, seed + 1),
        "trained_on": np.zeros(len(of), dtype=np.bool_),
        "calibration_error": 0.05,
        "serving": Serving("", 64, 1e-6, 0, 3.5, 90_000_000),
    }
    return Side(**(facts | changes))


def evidence(num_rows: int = 3000, **changes: Any) -> Evidence:
    """A candidate 4 points better than the champion, which is also the anchor."""
    test, golden = rows(num_rows), rows(200, seed=9)
    champion = side(test, golden, 0.60, seed=3, version=3)
    whole = Evidence(
        label_names=LABELS,
        test_version="t-0011223344",
        data_until=TONIGHT,
        test=test,
        candidate=side(test, golden, 0.64, seed=5, data_until=TONIGHT),
        champion=champion,
        anchor=champion,
        golden=golden,
        champion_nights=4,
        seed_average="weighted",
    )
    return replace(whole, **changes)
