"""One task per step of a night. The steps, and what they promise, are in `nightgate.night.steps`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from typing import Any, ParamSpec, TypeVar

from prefect import Task, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from nightgate.errors import DatabaseError
from nightgate.night import evidence, steps, verdict
from nightgate.night.run import NightRun
from nightgate.training.protocol import EpochReport
from tasks.progress import LiveProgress

log = logging.getLogger("nightgate.tasks")

P = ParamSpec("P")
R = TypeVar("R")


def _database_was_away(_task: Any, _run: Any, state: Any) -> bool:
    """Retry what another minute may mend. Bad data and a failed training stay failed: the same input fails again."""
    return isinstance(state.result(raise_on_failure=False), DatabaseError)


def step(name: str) -> Callable[[Callable[P, R]], Task[P, R]]:
    """A task that is tried again while the database is away.

    It is never answered from a cache: what may be reused (snapshots, checkpoints) the library knows by content.
    """
    decorate: Callable[[Callable[P, R]], Task[P, R]] = task(
        task_run_name=name,
        cache_policy=NO_CACHE,
        retries=3,
        retry_delay_seconds=20,
        retry_condition_fn=_database_was_away,
    )
    return decorate


@step("wait for slot {run.pipeline.resources.slot}")
def take_slot(run: NightRun) -> None:
    steps.take_slot(run)


@step("refresh")
def refresh_data(run: NightRun) -> None:
    steps.refresh_data(run)


@step("look for news")
def skip_without_news(run: NightRun, *, force: bool = False) -> bool:
    return steps.skip_without_news(run, force=force)


# Not retried by Prefect: a killed training goes on from its checkpoint as a new attempt of the run.
@task(task_run_name="fine-tune", cache_policy=NO_CACHE)
def fine_tune(run: NightRun) -> Generator[EpochReport]:
    with LiveProgress(_key(run, "progress")) as live:
        yield from steps.fine_tune(run, live.show)
        epochs = f"{run.trained.epochs_run} epoch{'' if run.trained.epochs_run == 1 else 's'}"
        live.end(f"{epochs}, the best one is epoch {run.trained.best_epoch}")


@step("{scored}")
def record_epoch(run: NightRun, scored: steps.ScoredEpoch) -> None:
    steps.record_epoch(run, scored)


@step("score on test")
def score_on_test(run: NightRun) -> None:
    evidence.score_on_test(run)


@step("serve in a fresh process")
def try_serving(run: NightRun) -> None:
    evidence.try_serving(run)


@step("judge")
def judge(run: NightRun) -> None:
    verdict.judge(run)


@step("register")
def register_candidate(run: NightRun) -> None:
    steps.register_candidate(run)


@step("settle")
def settle(run: NightRun) -> None:
    steps.settle(run)


@task(task_run_name="report", cache_policy=NO_CACHE)
def report(run: NightRun) -> None:
    """The night in words and pictures: on the run's page in the UI, and as an HTML file beside the run."""
    markdown = steps.write_report(run)
    if not markdown:
        return
    try:
        create_markdown_artifact(
            key=_key(run, "night"), markdown=markdown, description=f"Night of {run.night.date}: {run.status}"
        )
    except Exception as error:  # noqa: BLE001 - a page that is missing must not make the night red
        log.warning("the run's page has no report: %s; it is at %s", error, run.directory / "report.html")


def _key(run: NightRun, what: str) -> str:
    """An artifact's key: lowercase letters, digits and dashes."""
    return f"{run.pipeline.name.replace('_', '-')}-{what}"
