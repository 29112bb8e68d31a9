"""The test window: the newest test rows decide, because old rows hide that a champion has gone stale."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from nightgate.config.values import Duration, duration
from nightgate.gate.evidence import Mask

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def test_window(
    seen_at: NDArray[np.int64], data_until: datetime, length: Duration, min_rows: int, clean: Mask
) -> tuple[Mask, datetime | None]:
    """Select the clean rows of the last `length` before `data_until`, widened backwards to at least `min_rows`.

    Rows of one instant stay together: widening never divides a batch that arrived at once.

    Args:
        seen_at: microseconds since 1970 (UTC), shape [rows].
        data_until: aware.
        length: such as '90d'; '' for all rows.
        min_rows: rows to have at least; all rows if there are fewer.
        clean: rows that may be selected, shape [rows].

    Returns:
        Mask of the rows, shape [rows], and the time of the oldest of them; None if no clean row is left out.
    """
    limit = duration(length)
    if limit is None:
        return clean.copy(), None
    start = microseconds(data_until - limit)
    instants = np.sort(seen_at[clean])
    if len(instants) > min_rows:
        start = min(start, int(instants[-min_rows]))
    elif len(instants):
        start = int(instants[0])
    window = clean & (seen_at >= start)
    if np.array_equal(window, clean):
        return window, None
    return window, _EPOCH + timedelta(microseconds=int(seen_at[window].min()))


# pytest collects it by its name otherwise.
test_window.__test__ = False  # type: ignore[attr-defined]


def microseconds(moment: datetime) -> int:
    """Microseconds since 1970 (UTC), without rounding."""
    return (moment - _EPOCH) // timedelta(microseconds=1)
