"""The form behind Resume."""

from __future__ import annotations

from datetime import UTC, date, datetime

from flows.approval import evidence
from nightgate.registry.approvals import Waiting


def test_the_form_shows_both_scores_and_text_of_the_rows_as_text() -> None:
    moment = datetime(2026, 1, 5, 3, 15, tzinfo=UTC)
    reason = "F1 rose; slice \x1b[2J<img src=x> [free](http://evil.example)"
    waiting = Waiting("r-1", "shop", date(2026, 1, 5), 7, 0.61, 6, 0.6, moment, moment, reason, None)
    shown = evidence(waiting)
    for part in ("version 7", "0.6100", "version 6, has 0.6000", "2026-01-05 03:15 UTC", "F1 rose; slice"):
        assert part in shown
    assert "\x1b" not in shown
    assert r"\<img src=x\> \[free\](http://evil.example)" in shown
