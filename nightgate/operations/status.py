"""`nightgate status`: what runs, what waits, how the last nights ended, and when the next ones start.

It reads the database, and the progress file in the folder of a run. Schedules of a Prefect server (`Deployed`) are an
argument, because the library does not import Prefect.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from typing import Any, Literal

import pandas as pd
import sqlalchemy as sa
from sqlalchemy.orm import Session

from nightgate import locks
from nightgate.config.pipeline import Pipeline
from nightgate.cron import instants
from nightgate.database.transactions import Database
from nightgate.database.views import selecting
from nightgate.errors import NightgateError
from nightgate.frames.fleet import champion_evaluations, last_nights, last_scheduled, open_freezes
from nightgate.frames.nights import later_failures
from nightgate.frames.reader import records
from nightgate.home import Home
from nightgate.pipeline_files import load_pipeline, pipeline_files
from nightgate.registry.approvals import command, open_approvals
from nightgate.registry.freezes import FreezeRow
from nightgate.runs.liveness import cause_of_death, now
from nightgate.schedule import scheduled_night
from nightgate.settings import read_settings
from nightgate.training.progress import Recorded, read_progress

COLUMNS = (
    "section",
    "pipeline",
    "night",
    "status",
    "run_id",
    "attempt",
    "stage",
    "epoch",
    "epochs",
    "step",
    "total_steps",
    "loss",
    "examples_per_second",
    "eta_seconds",
    "waits_for",
    "position",
    "model_version",
    "test_f1",
    "f1_delta",
    "rows",
    "f1",
    "f1_ci_low",
    "f1_ci_high",
    "alarm",
    "since",
    "until",
    "host",
    "schedule",
    "reason",
    "next_step",
)
"""Columns of all sections; those that a section does not use are empty. `until` is the deadline of what waits, the end
of the last night, up to when a champion's rows came, and the start of the next night."""

SECTIONS = {
    "running": "Running",
    "waiting": "Waiting",
    "last_night": "Last night",
    "champion": "Champion on rows that came since it was chosen",
    "next_night": "Next night",
}

FRESH = timedelta(seconds=60)
"""Limit of a progress's age beyond which its speed is not shown."""
LATE = timedelta(minutes=15)
"""Delay from which a night is late: a worker polls every 15 s, a busy one takes longer."""
RECONCILE = "nightgate reconcile"


@dataclass(frozen=True)
class Deployed:
    """State of a pipeline's schedule on a Prefect server."""

    schedule: Literal["active", "paused", "none"]
    next_at: datetime | None = None
    """When the next scheduled run is due (aware), if there is one."""
    late: tuple[datetime, ...] = ()
    """When runs were due (aware) that have not started."""


def status(
    db: Database, deployed: Mapping[str, Deployed] | None = None, *, moment: datetime | None = None
) -> pd.DataFrame:
    """The rows of all sections, with COLUMNS.

    Args:
        deployed: schedules by pipeline; None if no server answers.
        moment: the present (aware).
    """
    moment = moment or datetime.now(UTC)
    rows = [*_running(db, moment), *_queued(db, deployed or {}), *_unapproved(db, moment)]
    rows += [*_last_nights(db), *_champions(db)]
    known = {str(row["pipeline"]) for row in rows}
    freezes = {row["pipeline"]: FreezeRow(**row) for row in records(open_freezes(db))}
    rows += (_with_freeze(freezes.get(row["pipeline"]), row) for row in _next_nights(db, known, deployed, moment))
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    for name in ("since", "until"):
        frame[name] = pd.to_datetime(frame[name], utc=True)
    for name in ("attempt", "epoch", "epochs", "step", "total_steps", "position", "model_version", "rows"):
        frame[name] = frame[name].astype("Int64")
    return frame


def used_pipelines(db: Database) -> set[str]:
    """Pipelines that have a run in the database, with or without a file."""
    return set(db.frame("SELECT DISTINCT pipeline FROM nightly_runs")["pipeline"])


def last_due(pipeline: Pipeline, before: datetime) -> datetime | None:
    """The last instant of the cron before `before` (both aware), within 60 days."""
    return next(reversed(due_between(pipeline, before - timedelta(days=60), before)), None)


def due_between(pipeline: Pipeline, after: datetime, before: datetime) -> list[datetime]:
    """Instants of the cron between two others, in UTC; all are aware."""
    found = instants(pipeline.schedule.cron, pipeline.schedule.timezone, after)
    return list(takewhile(lambda instant: instant < before, found))


# --- running and waiting ---


def _running(db: Database, moment: datetime) -> Iterator[dict[str, Any]]:
    query = selecting(
        "SELECT r.pipeline, r.night, r.run_id, r.snapshot_id, r.best_epoch, r.verdict, d.config, a.attempt, a.slot, "
        "a.host, a.pid, a.owner_started, a.owner_ticks, a.process_space, a.started_at, a.heartbeat_at, "
        "(SELECT MAX(e.epoch) FROM metric_history AS e WHERE e.run_id = r.run_id) AS epochs_done "
        "FROM nightly_runs AS r JOIN run_documents AS d ON d.run_id = r.run_id "
        "JOIN attempts AS a ON a.run_id = r.run_id AND a.attempt = r.attempts "
        "WHERE r.status = 'running' ORDER BY a.started_at"
    )

    def read(session: Session) -> list[tuple[sa.Row[Any], str]]:
        present = now(session)
        return [(run, cause_of_death(run, present)) for run in session.execute(query)]

    runs = db.read(read)
    queues = {slot: locks.queue(db.home, locks.SLOT + slot) for slot in {run.slot for run, _ in runs} if slot}
    waiting = []
    for run, death in runs:
        places = queues.get(run.slot or "", [])
        ahead = [place.holder for place in places if place.waits]
        row: dict[str, Any] = {
            "section": "running",
            "pipeline": run.pipeline,
            "night": run.night,
            "status": "dead" if death else "running",
            "run_id": run.run_id,
            "attempt": run.attempt,
            "since": run.started_at,
            "host": run.host,
            "reason": death,
            "next_step": RECONCILE if death else "",
        }
        if run.run_id in ahead and not death:
            holders = ", ".join(place.holder for place in places if not place.waits)
            row |= {
                "section": "waiting",
                "status": "waiting",
                "waits_for": f"slot {run.slot}",
                "position": ahead.index(run.run_id) + 1,
                "reason": f"held by {holders}" if holders else "",
            }
            waiting.append(row)
        else:
            recorded = read_progress(db.home.runs / run.run_id)
            yield row | _progress(run, recorded, moment)
    yield from sorted(waiting, key=lambda row: (row["waits_for"], row["position"]))


def _progress(run: sa.Row[Any], recorded: Recorded | None, moment: datetime) -> dict[str, Any]:
    """Stage and progress of a run, from its row and from the progress file of this attempt."""
    found: dict[str, Any] = {"epoch": run.epochs_done, "epochs": run.config["training"]["epochs"]}
    if run.verdict is not None:
        return found | {"stage": "finishing"}
    if run.snapshot_id is None:
        return found | {"stage": "refreshing data"}
    if recorded is None or recorded.attempt != run.attempt:
        return found | {"stage": "starting the training"}
    progress = recorded.progress
    found |= {"epoch": progress.epoch or run.epochs_done, "step": progress.step, "total_steps": progress.total_steps}
    if moment - recorded.at > FRESH:
        return found | {"stage": "scoring on test" if run.best_epoch else "at work"}
    stages = {"load": progress.detail or "loading", "train": "training", "evaluate": "evaluating", "save": "saving"}
    return found | {
        "stage": stages[progress.phase],
        "loss": progress.loss,
        "examples_per_second": progress.examples_per_second,
        "eta_seconds": progress.eta_seconds,
    }


def holders(home: Home, pipeline: Pipeline) -> list[str]:
    """The runs that hold the slot of a pipeline, where it is full; [] where a night of it could start."""
    slot = pipeline.resources.slot
    held = [place.holder for place in locks.queue(home, locks.SLOT + slot) if not place.waits] if slot else []
    return held if len(held) >= read_settings().slot_limit(slot) else []


def _queued(db: Database, deployed: Mapping[str, Deployed]) -> Iterator[dict[str, Any]]:
    """Nights that are due and that Prefect's queue holds back, because their slot is full: they have no row yet."""
    files = pipeline_files()
    due = []
    for name in deployed:
        with suppress(NightgateError):  # a broken file is shown with the next night
            pipeline = load_pipeline(files[name]) if deployed[name].late and name in files else None
            if pipeline is not None and (held := holders(db.home, pipeline)):
                due += [(pipeline, at, held) for at in deployed[name].late]
    before = Counter[str]()
    for pipeline, at, held in sorted(due, key=lambda one: (-one[0].resources.priority, one[1])):
        slot = pipeline.resources.slot
        before[slot] += 1
        yield {
            "section": "waiting",
            "pipeline": pipeline.name,
            "night": scheduled_night(pipeline.schedule, at).date,
            "status": "waiting",
            "waits_for": f"slot {slot}",
            "position": before[slot] + sum(place.waits for place in locks.queue(db.home, locks.SLOT + slot)),
            "since": at,
            "reason": f"held by {', '.join(held)}",
        }


def _unapproved(db: Database, moment: datetime) -> Iterator[dict[str, Any]]:
    for one in open_approvals(db):
        overdue = one.deadline <= moment
        yield {
            "section": "waiting",
            "pipeline": one.pipeline,
            "night": one.night,
            "status": "overdue" if overdue else "waiting",
            "run_id": one.run_id,
            "waits_for": f"approval of version {one.version}",
            "model_version": one.version,
            "test_f1": one.test_f1,
            "f1_delta": one.test_f1 - one.champion_f1
            if one.test_f1 is not None and one.champion_f1 is not None
            else None,
            "since": one.requested_at,
            "until": one.deadline,
            "reason": one.reason,
            "next_step": RECONCILE if overdue else command(one.pipeline, one.run_id),
        }


# --- last and next nights ---


def _last_nights(db: Database) -> Iterator[dict[str, Any]]:
    nights = last_nights(db)
    rows = records(nights.rename(columns={"started_at": "since", "finished_at": "until"}))
    for row, failure in zip(rows, later_failures(db, nights), strict=True):
        yield row | {"section": "last_night", "reason": "; ".join(filter(None, (row["reason"], failure)))}


def _champions(db: Database) -> Iterator[dict[str, Any]]:
    """The newest evaluation of each champion."""
    newest = champion_evaluations(db).rename(columns={"rows_from": "since", "rows_to": "until"})
    for row in records(newest):
        next_step = f"nightgate run {row['pipeline']}" if row["alarm"] else ""
        yield row | {"section": "champion", "next_step": next_step}


def _next_nights(
    db: Database, known: Iterable[str], deployed: Mapping[str, Deployed] | None, moment: datetime
) -> Iterator[dict[str, Any]]:
    files = pipeline_files()
    scheduled = {row["pipeline"]: row["scheduled_for"] for row in records(last_scheduled(db))}
    for name in sorted({*known, *(deployed or ())}):
        row: dict[str, Any] = {"section": "next_night", "pipeline": name, "status": "unknown"}
        try:
            pipeline = load_pipeline(files[name]) if name in files else None
        except NightgateError as error:
            yield row | {"reason": error.reason.splitlines()[0], "next_step": "nightgate doctor"}
            continue
        there = None if deployed is None else deployed.get(name, Deployed("none"))
        row["schedule"] = there.schedule if there else "no server answers"
        if pipeline is None:
            yield row | {"until": there.next_at if there else None, "reason": "no file of that name here"}
            continue
        at = there.next_at if there else None
        if at is None and (there is None or there.schedule == "active"):
            at = pipeline.next_night(moment)
        row |= {"until": at, "status": "due" if at else "unscheduled"}
        due, last = last_due(pipeline, moment - LATE), scheduled.get(name)
        is_queued = there is not None and due in there.late and bool(holders(db.home, pipeline))
        if last is not None and due is not None and last < due and not is_queued:
            row |= {
                "status": "late",
                "since": due,
                "reason": f"the night of {due:%Y-%m-%d %H:%M} UTC has not begun",
                "next_step": "nightgate doctor",
            }
        yield row


def _with_freeze(freeze: FreezeRow | None, row: dict[str, Any]) -> dict[str, Any]:
    """Add the freeze of its pipeline to the row of a next night."""
    if freeze is None:
        return row
    reasons = filter(None, (row.get("reason"), f"its nights are held, because it is {freeze}"))
    return row | {"reason": "; ".join(reasons), "next_step": row.get("next_step") or freeze.remedy}
