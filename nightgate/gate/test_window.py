"""Which test rows decide: the newest ones, because old rows hide that a champion has gone stale."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from nightgate.config_types import Duration, duration
from nightgate.gate.evidence import Mask

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def test_window(
    seen_at: NDArray[np.int64], data_until: datetime, length: Duration, min_rows: int, clean: Mask
) -> tuple[Mask, datetime | None]:
    """The clean rows that are no older than `length` before `data_until`, widened backwards to at least `min_rows`.

    Rows of one instant are in it together or not at all: widening never cuts a batch that came at once in two.

    Args:
        seen_at: microseconds since 1970 (UTC), shape [rows].
        data_until: aware.
        length: such as '90d'; '' for all rows.
        min_rows: of which all are taken where there are fewer.
        clean: rows that may count at all, shape [rows].

    Returns:
        The rows, shape [rows], and the instant of the oldest of them; None where no clean row is outside.
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


# Its name is no test's.
test_window.__test__ = False  # type: ignore[attr-defined]


def microseconds(moment: datetime) -> int:
    """Since 1970 (UTC), exactly."""
    return (moment - _EPOCH) // timedelta(microseconds=1)
