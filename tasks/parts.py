"""The parts of a night that also run on their own, as Prefect tasks: what each does is in the library."""

from __future__ import annotations

from nightgate.night.refresh import refresh as refresh_now
from nightgate.prediction.predict import predict_configured
from tasks.night import step

refresh = step("refresh")(refresh_now)
predict = step("predict")(predict_configured)
