"""The parts of a night that also run on their own, as Prefect tasks: what each does is in `nightgate.night`."""

from __future__ import annotations

from nightgate.night.refresh import refresh as refresh_now
from tasks.night import step

refresh = step("refresh")(refresh_now)
