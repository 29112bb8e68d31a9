"""Whether a pipeline's base model and source can be found, and its own metrics work: no row and no weight is read.

A night is checked before it is claimed, so that a mistyped setting leaves no failed night; `nightgate doctor` checks
all pipelines.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from nightgate.config.pipeline import Pipeline
from nightgate.config.sources import FilesSource, HubSource, OwnSource, SampleSource, SqlSource
from nightgate.config.training import is_metric_file
from nightgate.database.transactions import Database
from nightgate.engine.base_model_folder import local_folder
from nightgate.errors import ConfigurationError, NightgateError, SourceUnavailableError, without_credentials
from nightgate.metrics.from_counts import SHIPPED
from nightgate.operations.findings import Finding
from nightgate.operations.source_check import check_files, check_golden, check_sample, check_sql
from nightgate.registry import versions
from nightgate.schedule import tonight
from nightgate.sources.kinds import open_source
from nightgate.training import launch

NIGHT_SECONDS = 10.0
"""Limit of a request to the hub before a night; its own client waits as long."""
TRIAL_SECONDS = 300.0
"""Limit of the trial of the own metrics, of which some seconds are the imports of `evaluate`."""


@dataclass(frozen=True)
class Readiness:
    """What is known of a pipeline before its night is claimed."""

    findings: tuple[Finding, ...]

    def check(self, has_snapshot: bool = False) -> None:
        """Raise where the night could only fail.

        Args:
            has_snapshot: the night goes on with rows that were read already; their source need not exist any more.

        Raises:
            ConfigurationError: the source or the base model is missing, or one of its own metrics cannot be used.
        """
        problems = [one for one in self.findings if one.status == "problem" and not (has_snapshot and _is_of_rows(one))]
        if problems:
            found = [one.found for one in problems]
            raise ConfigurationError(
                found[0] if len(found) == 1 else "the night cannot run:",
                found if len(found) > 1 else (),
                next_step="; ".join(one.remedy for one in problems),
            )


def check_base_model(pipeline: Pipeline) -> None:
    """Raise where the base model cannot be found.

    Raises:
        ConfigurationError: there is no such model.
    """
    Readiness((base_model(pipeline, Hub(NIGHT_SECONDS)),)).check()


def check_source(pipeline: Pipeline) -> None:
    """Raise where the source cannot be read: it is missing, or lacks a column.

    Raises:
        ConfigurationError: as said, with the nearest column.
    """
    Readiness((source(pipeline, Hub(NIGHT_SECONDS)),)).check()


def examine(pipeline: Pipeline, db: Database | None) -> Readiness:
    """Look for what a night of the pipeline needs.

    Args:
        db: None where nothing was run yet.
    """
    hub = Hub(NIGHT_SECONDS)
    model = base_model(pipeline, hub)
    goes_on = pipeline.training.start_from == "champion" and db is not None and versions.versions(db, pipeline.name)
    if goes_on and model.status == "problem":
        model = replace(model, status="warning")  # only a full training needs it
    return Readiness((source(pipeline, hub), model, *own_metrics(pipeline, hub)))


def _is_of_rows(finding: Finding) -> bool:
    return finding.check.startswith("data ")


def base_model(pipeline: Pipeline, hub: Hub) -> Finding:
    """The base model: a folder, in the cache of the hub, or to be downloaded from it."""
    check, name = f"model {pipeline.name}", pipeline.training.base_model
    revision = pipeline.training.base_model_revision
    try:
        folder = local_folder(name)
    except NightgateError as error:
        return Finding("problem", check, error.reason, error.next_step)
    if folder is not None:
        if not (folder / "config.json").is_file():
            found = f"base_model {name!r}: the folder {folder} has no config.json"
            return Finding("problem", check, found, "name the folder of a model in training.base_model")
        return Finding("ok", check, f"{name}: {folder}")
    cached = _cached(name, revision, "model")
    if cached and (any(cached.glob("*.safetensors")) or any(cached.glob("pytorch_model*.bin"))):
        return Finding("ok", check, f"{name}: in the cache of the hub, {cached}")
    remedy = "connect to the network, or name a folder or package:NAME/FOLDER in training.base_model"
    return hub.finding(check, name, revision, "model", remedy)


def source(pipeline: Pipeline, hub: Hub) -> Finding:
    """The source of the rows, and the file of golden rows: whether they exist and have the columns."""
    check, data = f"data {pipeline.name}", pipeline.data
    try:
        check_golden(data)
        if isinstance(data.source, FilesSource):
            num_files = check_files(data.source, data, pipeline.split.column)
            return Finding("ok", check, f"{num_files:,} files at {', '.join(data.source.paths)}")
        if isinstance(data.source, SampleSource):
            check_sample(data, pipeline.split.column)
            return Finding("ok", check, "synthetic reviews")
        if isinstance(data.source, SqlSource):
            return Finding("ok", check, check_sql(data.source, data, pipeline.split.column))
        if isinstance(data.source, OwnSource):
            open_source(data, tonight(pipeline.schedule), split_column=pipeline.split.column)
            return Finding("ok", check, f"source {data.source.kind!r} of an installed package")
    except SourceUnavailableError as error:
        # The night is not missed for it: its refresh tries again.
        return Finding("warning", check, error.reason, error.next_step)
    except NightgateError as error:
        return Finding("problem", check, error.reason, error.next_step)
    return _data_set(check, data.source, hub)


def own_metrics(pipeline: Pipeline, hub: Hub) -> tuple[Finding, ...]:
    """Those of `training.metrics` that do not ship with us, tried on a few rows in a process of their own."""
    metrics = tuple(name for name in pipeline.training.metrics if name not in SHIPPED)
    if not metrics:
        return ()
    check = f"metrics {pipeline.name}"
    files = [Path(name) for name in metrics if is_metric_file(name)]
    written = tuple(path.stat().st_mtime_ns for path in files if path.is_file())
    problem = _tried(len(pipeline.data.label_names), metrics, written)
    if not problem:
        return (Finding("ok", check, ", ".join(metrics)),)
    away = f"; {hub.problem}" if len(files) < len(metrics) and hub.problem else ""
    return (Finding("problem", check, problem["reason"] + away, problem["next_step"]),)


@lru_cache
def _tried(num_labels: int, metrics: tuple[str, ...], written: tuple[int, ...]) -> dict[str, str]:  # noqa: ARG001
    """Why these metrics cannot be used; {} where they can. `written` is when their files were, for the cache."""
    command = [sys.executable, "-P", "-m", "nightgate.training.epoch_metrics", str(num_labels), *metrics]
    try:
        done = subprocess.run(
            command, env=launch.environment(1), capture_output=True, text=True, check=True, timeout=TRIAL_SECONDS
        )
        problem: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    except (subprocess.SubprocessError, ValueError, IndexError) as error:
        last = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1:]
        found = f"training.metrics: they could not be tried: {type(error).__name__}: {''.join(map(str, last))}"
        return {"reason": found, "next_step": f"see what `{shlex.join(command)}` says"}
    return problem


def _data_set(check: str, source: HubSource, hub: Hub) -> Finding:
    if "/" not in source.dataset or Path(source.dataset).exists():
        return Finding("ok", check, f"{source.dataset}: read by `datasets` itself")
    from huggingface_hub import constants

    cache = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME, "datasets"))
    if hub.problem and (cache / source.dataset.replace("/", "___")).is_dir():
        found = f"{source.dataset}: in the cache of `datasets`, but {hub.problem}: new rows are not seen"
        return Finding("warning", check, found, "connect to the network")
    remedy = 'connect to the network, or read local files with kind = "files"'
    return hub.finding(check, source.dataset, source.revision or "", "dataset", remedy)


def _cached(name: str, revision: str, kind: str) -> Path | None:
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(
            name, revision=revision or None, repo_type=kind, local_files_only=True
        )
    except (OSError, ValueError):
        return None  # not cached, or not a valid name
    return Path(folder)


class Hub:
    """The hub of models and data sets, asked only where nothing local has the name."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    @cached_property
    def problem(self) -> str:
        """Why nothing can be downloaded; '' if the hub answers."""
        import httpx
        from huggingface_hub import constants

        if constants.HF_HUB_OFFLINE:
            return "HF_HUB_OFFLINE forbids the download"
        endpoint = constants.ENDPOINT
        try:
            httpx.head(endpoint, timeout=self._seconds)
        except httpx.HTTPError as error:
            return without_credentials(f"the hub ({endpoint}) does not answer: {type(error).__name__}: {error}")
        return ""

    def finding(self, check: str, name: str, revision: str, kind: str, remedy: str) -> Finding:
        """Whether the hub has a model or data set, and gives it to this user."""
        import huggingface_hub
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

        def problem(found: str, remedy: str) -> Finding:
            return Finding("problem", check, found, remedy)

        what = f"{'base_model' if kind == 'model' else 'data set'} {name!r}"
        if self.problem:
            return problem(f"{what} is not on this machine, and {self.problem}", remedy)
        named = f"{what} (revision {revision})" if revision else what
        options: dict[str, Any] = {"revision": revision or None, "repo_type": kind, "timeout": self._seconds}
        try:
            huggingface_hub.HfApi().repo_info(name, **options)
        except GatedRepoError:
            return problem(f"{named} is gated", "accept its terms on the hub and set HF_TOKEN")
        except RevisionNotFoundError:
            return problem(f"the hub has {what}, but no revision {revision!r}", "correct the revision")
        except RepositoryNotFoundError:
            found = f"{what}: the hub has none of that name, or it is private"
            return problem(found, "correct the name, or set HF_TOKEN if it is private")
        except Exception as error:  # noqa: BLE001 - the HTTP library of the client changes between versions
            return problem(without_credentials(f"{named}: {type(error).__name__}: {error}".splitlines()[0]), remedy)
        return Finding("ok", check, f"{named}: on the hub, the first night downloads it")
