"""The checks of `nightgate doctor` on pipeline files: content, what a night needs (`readiness`), daylight saving."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from zoneinfo import ZoneInfo, available_timezones

from nightgate.config.pipeline import Pipeline
from nightgate.config.schedule import Schedule
from nightgate.cron import started_at, wall_times
from nightgate.errors import NightgateError
from nightgate.operations import readiness
from nightgate.operations.findings import Finding
from nightgate.pipeline_files import load_pipeline, pipeline_files

SECONDS = 3.0
"""Limit of a request to the hub."""
DAYS = timedelta(days=400)
"""Period to check, which has both changes of the clocks."""


def examine() -> list[Finding]:
    """Check all pipelines that can be run by name."""
    findings: list[Finding] = []
    loaded: list[Pipeline] = []
    for name, path in pipeline_files().items():
        try:
            pipeline = load_pipeline(path)
        except NightgateError as error:
            findings.append(Finding("problem", f"pipeline {name}", error.reason, error.next_step))
            continue
        findings.append(Finding("ok", f"pipeline {name}", str(path)))
        if path.stem != "template":  # it names files that do not exist
            loaded.append(pipeline)
    hub = readiness.Hub(SECONDS)
    with ThreadPoolExecutor(8, thread_name_prefix="doctor-hub") as pool:
        for found in pool.map(lambda one: _ready(one, hub), loaded):
            findings += found
    findings.append(_timezones())
    for pipeline in loaded:
        findings += daylight_findings(pipeline.name, pipeline.schedule, datetime.now(UTC))
    return findings


def _ready(pipeline: Pipeline, hub: readiness.Hub) -> list[Finding]:
    return [
        readiness.base_model(pipeline, hub),
        readiness.source(pipeline, hub),
        *readiness.own_metrics(pipeline, hub),
    ]


# --- schedules ---


def _timezones() -> Finding:
    known = len(available_timezones())
    try:
        package = f"tzdata {version('tzdata')}"
    except PackageNotFoundError:
        package = "no package tzdata"
    if known < 100:
        return Finding("problem", "timezones", f"{known} known, {package}", "pip install tzdata")
    return Finding("ok", "timezones", f"{known} known, {package}")


def daylight_findings(name: str, schedule: Schedule, after: datetime) -> Iterator[Finding]:
    """A warning for nights (from `after`, aware, for 400 days) in an hour that daylight saving skips or repeats."""
    found = list(filter(None, (_daylight(schedule, after, skipped=skipped) for skipped in (True, False))))
    if not found:
        return
    other = _safe_cron(schedule, after)
    remedy = (f"set schedule.cron = {other!r}, or " if other else "set ") + "schedule.timezone = 'UTC'"
    yield Finding("warning", f"schedule {name}", "; ".join(found), remedy)


def _daylight(schedule: Schedule, after: datetime, *, skipped: bool) -> str:
    """Describe the first night in a skipped (or repeated) hour; '' if there is none."""
    zone = ZoneInfo(schedule.timezone)
    start = after.astimezone(zone).replace(tzinfo=None)
    for firing in wall_times(schedule.cron, start):
        if firing - start > DAYS:
            return ""
        earlier, later = (firing.replace(tzinfo=zone, fold=fold).utcoffset() or timedelta() for fold in (0, 1))
        if earlier < later and skipped:
            starts = started_at(firing, zone).astimezone(zone)
            missing = f"{firing:%H:%M} does not exist on {firing.date()} ({schedule.timezone}), when clocks go forward"
            if starts.date() == firing.date():
                return f"{missing}: Prefect starts that night at {starts:%H:%M}"
            twice = f"Prefect starts it on {starts:%Y-%m-%d at %H:%M}, as a second run of that night"
            return f"{missing}: {twice}, and {firing.date()} is missed"
        if earlier > later and not skipped:
            return (
                f"{firing:%H:%M} comes twice on {firing.date()} ({schedule.timezone}), when clocks go back: "
                "the night starts the first time"
            )
    return ""


def _safe_cron(schedule: Schedule, after: datetime) -> str:
    """The same cron at the next hour without a change of the clocks; '' if its hour is not a number."""
    minute, hour, *rest = schedule.cron.split()
    if not hour.isdigit():
        return ""
    for more in range(1, 24):
        other = schedule.model_copy(update={"cron": " ".join([minute, str((int(hour) + more) % 24), *rest])})
        if not any(_daylight(other, after, skipped=skipped) for skipped in (True, False)):
            return other.cron
    return ""
