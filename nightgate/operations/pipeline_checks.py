"""The checks of `nightgate doctor` on pipeline files: content, access to base models and rows, daylight saving."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from zoneinfo import ZoneInfo, available_timezones

import httpx
import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from nightgate.config import FilesSource, HubSource, Pipeline, Schedule
from nightgate.cron import started_at, wall_times
from nightgate.data.sources import matching_files
from nightgate.engine.base_model_folder import resolve
from nightgate.errors import NightgateError, without_credentials
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
    hub_problem = unreachable_hub() if any(_needs_hub(one) for one in loaded) else ""
    with ThreadPoolExecutor(8, thread_name_prefix="doctor-hub") as pool:
        for found in pool.map(lambda one: [_base_model(one, hub_problem), _rows(one, hub_problem)], loaded):
            findings += found
    findings.append(_timezones())
    for pipeline in loaded:
        findings += daylight_findings(pipeline.name, pipeline.schedule, datetime.now(UTC))
    return findings


# --- base models and rows ---


def unreachable_hub() -> str:
    """Why nothing can be downloaded from the hub; '' if it answers."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE forbids the download"
    endpoint = constants.ENDPOINT
    try:
        httpx.head(endpoint, timeout=SECONDS)
    except httpx.HTTPError as error:
        return without_credentials(f"the hub ({endpoint}) does not answer: {type(error).__name__}: {error}")
    return ""


def _needs_hub(pipeline: Pipeline) -> bool:
    return _on_hub(pipeline.training.base_model) or isinstance(pipeline.data.source, HubSource)


def _on_hub(base_model: str) -> bool:
    """Whether `base_model_folder.resolve` takes this for a name on the hub."""
    is_path = base_model.startswith(("package:", ".", "/", "~")) or base_model.count("/") > 1 or "\\" in base_model
    return not is_path and not Path(base_model).expanduser().exists()


def _base_model(pipeline: Pipeline, hub_problem: str) -> Finding:
    check, name = f"model {pipeline.name}", pipeline.training.base_model
    revision = pipeline.training.base_model_revision
    if not _on_hub(name):
        try:
            return Finding("ok", check, f"{name}: {resolve(name)}")
        except NightgateError as error:
            return Finding("problem", check, error.reason, error.next_step)
    folder = _cached(name, revision, "model")
    if folder and (any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin"))):
        return Finding("ok", check, f"{name}: in the cache of the hub, {folder}")
    remedy = "connect to the network, or name a folder or package:NAME/FOLDER in training.base_model"
    return _hub_finding(check, name, revision, "model", hub_problem, remedy)


def _rows(pipeline: Pipeline, hub_problem: str) -> Finding:
    check, source = f"data {pipeline.name}", pipeline.data.source
    if isinstance(source, FilesSource):
        try:
            return Finding("ok", check, f"{len(matching_files(source.paths)):,} files at {', '.join(source.paths)}")
        except NightgateError as error:
            return Finding("problem", check, error.reason, error.next_step)
    if not isinstance(source, HubSource):
        return Finding("ok", check, "synthetic reviews")
    if "/" not in source.dataset or Path(source.dataset).exists():
        return Finding("ok", check, f"{source.dataset}: read by `datasets` itself")
    cache = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME, "datasets"))
    if hub_problem and (cache / source.dataset.replace("/", "___")).is_dir():
        found = f"{source.dataset}: in the cache of `datasets`, but {hub_problem}: new rows are not seen"
        return Finding("warning", check, found, "connect to the network")
    remedy = 'connect to the network, or read local files with kind = "files"'
    return _hub_finding(check, source.dataset, source.revision or "", "dataset", hub_problem, remedy)


def _cached(name: str, revision: str, kind: str) -> Path | None:
    try:
        folder = huggingface_hub.snapshot_download(
            name, revision=revision or None, repo_type=kind, local_files_only=True
        )
    except (OSError, ValueError):
        return None  # not cached, or not a valid name
    return Path(folder)


def _hub_finding(check: str, name: str, revision: str, kind: str, hub_problem: str, remedy: str) -> Finding:
    if hub_problem:
        return Finding("problem", check, f"{name} is not on this machine, and {hub_problem}", remedy)
    named = f"{name} (revision {revision})" if revision else name
    try:
        huggingface_hub.HfApi().repo_info(name, revision=revision or None, repo_type=kind, timeout=SECONDS)
    except GatedRepoError:
        return Finding("problem", check, f"{named} is gated", "accept its terms on the hub and set HF_TOKEN")
    except RevisionNotFoundError:
        return Finding("problem", check, f"the hub has {name}, but no revision {revision}", "correct the revision")
    except RepositoryNotFoundError:
        found = f"the hub has no {kind} {name}, or it is private"
        return Finding("problem", check, found, "correct the name, or set HF_TOKEN if it is private")
    except (HfHubHTTPError, httpx.HTTPError, ValueError) as error:
        found = without_credentials(f"{named}: {type(error).__name__}: {error}".splitlines()[0])
        return Finding("problem", check, found, remedy)
    return Finding("ok", check, f"{named}: on the hub, the first night downloads it")


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
