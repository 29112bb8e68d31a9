"""What the events of nights say."""

from __future__ import annotations

from datetime import date

import pytest

from flows.events import next_step
from nightgate.schema import STATUSES
from nightgate.settling import End


@pytest.mark.parametrize("status", sorted(set(STATUSES) - {"running"}))
def test_every_end_says_what_to_do_next_also_where_that_is_nothing(status: str) -> None:
    end = End("r-1", "reviews", date(2026, 1, 5), status, "why", None, None, False, None, None, None, None)
    assert next_step(end).startswith(("nothing to do", "look at it: nightgate history reviews --run r-1"))
    told = End("r-1", "reviews", date(2026, 1, 5), status, "why", None, "do that", False, None, None, None, None)
    assert next_step(told) == "do that"
