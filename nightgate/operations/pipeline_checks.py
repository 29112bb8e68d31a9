"""What `nightgate doctor` finds in the pipeline files: whether they load, whether their base models and rows can be
had, and whether their nights fall into an hour that daylight saving skips or repeats.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from zoneinfo import ZoneInfo, available_timezones

import httpx
import huggingface_hub
from cronsim import CronSim
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from nightgate.config import FilesSource, HubSource, Pipeline, Schedule
from nightgate.data.sources import matching_files
from nightgate.errors import NightgateError, without_credentials
from nightgate.operations.findings import Finding
from nightgate.pipeline_files import load_pipeline, pipeline_files

SECONDS = 3.0
"""For which the hub is waited for."""
DAYS = timedelta(days=400)
"""Ahead: both changes of the clocks lie in it, whatever the day."""


def examine() -> list[Finding]:
    """All pipelines that can be run by name."""
    findings: list[Finding] = []
    loaded: list[Pipeline] = []
    for name, path in pipeline_files().items():
        try:
            pipeline = load_pipeline(path)
        except NightgateError as error:
            findings.append(Finding("problem", f"pipeline {name}", error.reason, error.next_step))
            continue
        findings.append(Finding("ok", f"pipeline {name}", str(path)))
        if path.stem != "template":  # which is there to be copied, and names files that nobody has
            loaded.append(pipeline)
    silence = hub_silence() if any(_needs_hub(one) for one in loaded) else ""
    checks: list[Callable[[], list[Finding]]] = [partial(_needed, pipeline, silence) for pipeline in loaded]
    with ThreadPoolExecutor(8, thread_name_prefix="doctor-hub") as pool:
        for found in pool.map(lambda check: check(), checks):
            findings += found
    findings.append(_timezones())
    for pipeline in loaded:
        findings += daylight_findings(pipeline.name, pipeline.schedule, datetime.now(UTC))
    return findings


# --- base models and rows ---


def hub_silence() -> str:
    """Why nothing can be fetched from the hub; '' when it answers."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE forbids to fetch it"
    endpoint = constants.ENDPOINT
    try:
        httpx.head(endpoint, timeout=SECONDS)
    except httpx.HTTPError as error:
        return without_credentials(f"the hub ({endpoint}) does not answer: {type(error).__name__}: {error}")
    return ""


def _needs_hub(pipeline: Pipeline) -> bool:
    return _on_hub(pipeline.training.base_model) or isinstance(pipeline.data.source, HubSource)


def _on_hub(base_model: str) -> bool:
    """As `base_models.resolve` tells a name on the hub from a folder."""
    is_path = base_model.startswith(("package:", ".", "/", "~")) or base_model.count("/") > 1 or "\\" in base_model
    return not is_path and not Path(base_model).expanduser().exists()


def _needed(pipeline: Pipeline, silence: str) -> list[Finding]:
    return [_base_model(pipeline, silence), _rows(pipeline, silence)]


def _base_model(pipeline: Pipeline, silence: str) -> Finding:
    check, name = f"model {pipeline.name}", pipeline.training.base_model
    revision = pipeline.training.base_model_revision
    if not _on_hub(name):
        from nightgate.engine import base_models  # and with it torch, which takes seconds

        try:
            return Finding("ok", check, f"{name}: {base_models.resolve(name)}")
        except NightgateError as error:
            return Finding("problem", check, error.reason, error.next_step)
    folder = _cached(name, revision, "model")
    if folder and (any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin"))):
        return Finding("ok", check, f"{name}: in the cache of the hub, {folder}")
    remedy = "connect to the network, or name a folder or package:NAME/FOLDER in training.base_model"
    return _on_the_hub(check, name, revision, "model", silence, remedy)


def _rows(pipeline: Pipeline, silence: str) -> Finding:
    check, source = f"data {pipeline.name}", pipeline.data.source
    if isinstance(source, FilesSource):
        try:
            return Finding("ok", check, f"{len(matching_files(source.paths)):,} files at {', '.join(source.paths)}")
        except NightgateError as error:
            return Finding("problem", check, error.reason, error.next_step)
    if not isinstance(source, HubSource):
        return Finding("ok", check, "synthetic reviews, made when they are needed")
    if "/" not in source.dataset or Path(source.dataset).exists():
        return Finding("ok", check, f"{source.dataset}: read by `datasets` itself")
    cache = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME, "datasets"))
    if silence and (cache / source.dataset.replace("/", "___")).is_dir():
        told = f"{source.dataset}: in the cache of `datasets`, but {silence}: new rows are not seen"
        return Finding("warning", check, told, "connect to the network")
    remedy = 'connect to the network, or read local files with kind = "files"'
    return _on_the_hub(check, source.dataset, source.revision or "", "dataset", silence, remedy)


def _cached(name: str, revision: str, kind: str) -> Path | None:
    try:
        folder = huggingface_hub.snapshot_download(
            name, revision=revision or None, repo_type=kind, local_files_only=True
        )
    except (OSError, ValueError):
        return None  # it is not there, or the name is none
    return Path(folder)


def _on_the_hub(check: str, name: str, revision: str, kind: str, silence: str, remedy: str) -> Finding:
    if silence:
        return Finding("problem", check, f"{name} is not on this machine, and {silence}", remedy)
    named = f"{name} (revision {revision})" if revision else name
    try:
        huggingface_hub.HfApi().repo_info(name, revision=revision or None, repo_type=kind, timeout=SECONDS)
    except GatedRepoError:
        return Finding("problem", check, f"{named} is gated", "accept its terms on the hub and set HF_TOKEN")
    except RevisionNotFoundError:
        return Finding("problem", check, f"the hub has {name}, but no revision {revision}", "correct the revision")
    except RepositoryNotFoundError:
        told = f"the hub has no {kind} {name}, or it is private"
        return Finding("problem", check, told, "correct the name, or set HF_TOKEN if it is private")
    except (HfHubHTTPError, httpx.HTTPError, ValueError) as error:
        told = without_credentials(f"{named}: {type(error).__name__}: {error}".splitlines()[0])
        return Finding("problem", check, told, remedy)
    return Finding("ok", check, f"{named}: the hub has it, the first night downloads it")


# --- the clock on the wall ---


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
    """Nights (from `after`, aware, for 400 days) that begin in an hour that daylight saving skips or repeats."""
    told = [
        text for text in (_daylight(schedule, after, skipped=True), _daylight(schedule, after, skipped=False)) if text
    ]
    if not told:
        return
    other = _safe_cron(schedule, after)
    remedy = (f"set schedule.cron = {other!r}, or " if other else "set ") + "schedule.timezone = 'UTC'"
    yield Finding("warning", f"schedule {name}", "; ".join(told), remedy)


def _daylight(schedule: Schedule, after: datetime, *, skipped: bool) -> str:
    """The first of these nights, in words; '' where there is none."""
    zone = ZoneInfo(schedule.timezone)
    start = after.astimezone(zone).replace(tzinfo=None)
    # Without a timezone the cron gives what the wall would show, also where it does not.
    for firing in CronSim(schedule.cron, start):
        if firing - start > DAYS:
            return ""
        earlier, later = (firing.replace(tzinfo=zone, fold=fold).utcoffset() or timedelta() for fold in (0, 1))
        if earlier < later and skipped:
            # What Prefect 3.8 makes of it: it counts back from the new time.
            begins = (firing - later).replace(tzinfo=UTC).astimezone(zone)
            told = f"{firing:%H:%M} does not exist on {firing.date()} ({schedule.timezone}), when clocks go forward"
            if begins.date() == firing.date():
                return f"{told}: Prefect begins that night at {begins:%H:%M}"
            twice = f"Prefect begins it on {begins:%Y-%m-%d at %H:%M}, where it is a second run of that night"
            return f"{told}: {twice}, and {firing.date()} is missed"
        if earlier > later and not skipped:
            return (
                f"{firing:%H:%M} comes twice on {firing.date()} ({schedule.timezone}), when clocks go back: "
                "the night begins the first time"
            )
    return ""


def _safe_cron(schedule: Schedule, after: datetime) -> str:
    """The same cron some hours later, where no change of the clocks meets it; '' where its hour is no number."""
    minute, hour, *rest = schedule.cron.split()
    if not hour.isdigit():
        return ""
    for more in range(1, 24):
        other = schedule.model_copy(update={"cron": " ".join([minute, str((int(hour) + more) % 24), *rest])})
        if not any(_daylight(other, after, skipped=skipped) for skipped in (True, False)):
            return other.cron
    return ""
